"""Requests that nobody would send: made from the OpenAPI document by schemathesis, and bytes that are not even HTTP.

The long runs say in the log how many requests they made and what memory the gateway took.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from client.gateway.app import Settings
from common.privacy.signing import SigningKey, create_key
from tests.bundles import write_tiny
from tests.client.gateway_server import Command, command, gateway, opened

log = logging.getLogger(__name__)

ASKED_SOMETHING = ("POST /v1/recommend", "POST /v1/recommend/batch", "GET /v1/items", "POST /v1/items/search")
OPERATIONS = (
    *ASKED_SOMETHING, "GET /v1/card", "GET /v1/bundle", "POST /v1/rollback", "POST /v1/reload", "GET /healthz", "GET /readyz",
    "GET /metrics",
)  # fmt: skip
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
TOKEN = "a token of many characters"
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return create_key(tmp_path_factory.mktemp("keys") / "signer.key")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, key: SigningKey) -> Iterator[str]:
    path = tmp_path_factory.mktemp("bundles") / "tiny.bundle"
    write_tiny(path, key)
    with gateway(opened(path, key.public_key), Settings(admin_token=TOKEN)) as found:
        yield found


def fuzz(address: str, label: str, mode: GenerationMode, examples: int, start: int, answers: Counter[int]) -> None:
    """``examples`` requests to one operation, valid or invalid ones, each answer held against the document."""
    operation = schemathesis.openapi.from_url(f"{address}/openapi.json").find_operation_by_label(label)
    assert operation is not None
    session = requests.Session()

    @seed(start)
    @settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=QUIET)
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {TOKEN}"}
        answer = case.call(base_url=address, session=session)
        answers[answer.status_code] += 1
        too_large = answer.status_code == 413  # which schemathesis does not take for a refusal
        case.validate_response(answer, checks=[check for check in CHECKS if not (too_large and check is negative_data_rejection)])

    ask()
    session.close()


def modes(label: str) -> list[GenerationMode]:
    """What takes nothing cannot be asked wrongly."""
    return [mode for mode in GenerationMode if mode is GenerationMode.POSITIVE or label in ASKED_SOMETHING]


def test_the_document_names_every_route(address: str) -> None:
    document = httpx.get(f"{address}/openapi.json").json()
    assert {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods} == set(OPERATIONS)


@pytest.mark.parametrize("label", OPERATIONS)
def test_answers_are_as_documented_whatever_is_asked(address: str, label: str) -> None:
    answers: Counter[int] = Counter()
    for mode in modes(label):
        fuzz(address, label, mode, 15, 1, answers)
    assert sum(answers.values()) >= (20 if label in ASKED_SOMETHING else 1)
    assert max(answers) < 500


def send(address: str, content: bytes) -> bytes:
    """What comes back for these bytes; a gateway that still waits for more is left after a moment."""
    host, port = address.removeprefix("http://").split(":")
    reply = b""
    with socket.create_connection((host, int(port)), timeout=5) as connection, contextlib.suppress(ConnectionError, TimeoutError):
        connection.sendall(content)
        connection.settimeout(0.1)
        while part := connection.recv(65536):
            reply += part
    return reply


def spoilt_requests() -> st.SearchStrategy[bytes]:
    """A good request with some of its bytes changed, cut out, doubled, or put in."""
    body = b'{"history":["i1","i2"],"k":3,"explain":true}'
    head = b"POST /v1/recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    head += b"Connection: close\r\n\r\n"
    good = head % len(body) + body

    def spoil(changes: list[tuple[int, int, bytes]]) -> bytes:
        content = good
        for at, length, instead in changes:
            content = content[: at % len(good)] + instead + content[at % len(good) + length :]
        return content

    change = st.tuples(st.integers(0, len(good)), st.integers(0, 6), st.binary(max_size=8))
    return st.one_of(st.lists(change, min_size=1, max_size=4).map(spoil), st.binary(max_size=300))


def fuzz_bytes(address: str, examples: int, start: int, answers: Counter[int]) -> None:
    @seed(start)
    @settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=QUIET)
    @given(content=spoilt_requests())
    def ask(content: bytes) -> None:
        reply = send(address, content)
        if reply:
            assert reply.startswith(b"HTTP/1.1 "), reply
            answers[int(reply[9:12])] += 1
            assert int(reply[9:12]) < 500, reply

    ask()


def test_bytes_that_are_no_request_harm_nothing(address: str) -> None:
    answers: Counter[int] = Counter()
    fuzz_bytes(address, 150, 1, answers)
    assert 400 in answers
    assert len(answers) >= 3  # many are still requests, of another kind
    assert httpx.post(f"{address}/v1/recommend", json={"history": ["i1"]}).status_code == 200


MINUTES = 10


@pytest.mark.slow
def test_ten_minutes_of_fuzzing_break_nothing_and_memory_stays(tmp_path: Path, key: SigningKey) -> None:
    write_tiny(tmp_path / "tiny.bundle", key, n_items=1000)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    options = ["--bundle", str(tmp_path / "tiny.bundle"), "--signer", key.public_key, "--admin-token-file", str(token)]
    with command(*options, stderr=tmp_path / "stderr") as running:
        sizes, answers = fuzz_for(60 * MINUTES, running)
        good = httpx.post(f"{running.address}/v1/recommend", json={"history": ["i1"]})
        status, _ = running.end()
    log.info("%d answers in %d minutes: %s", sum(answers.values()), MINUTES, dict(sorted(answers.items())))
    log.info("memory after each turn, MiB: %s", [round(size / 2**20, 1) for size in sizes])
    assert (good.status_code, status) == (200, 0)
    assert max(answers) < 500
    third = len(sizes) // 3
    assert (
        max(sizes[-third:]) - max(sizes[third : 2 * third]) < 4 * 2**20
    )  # the first third is for what is loaded when first used


def fuzz_for(seconds: float, running: Command) -> tuple[list[int], Counter[int]]:
    """Turns through all operations and bytes until the time is over: memory after each, and answers by status."""
    sizes, answers, turn = [], Counter[int](), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        turn += 1
        for label in OPERATIONS:
            for mode in modes(label):
                fuzz(running.address, label, mode, 40, turn, answers)
        fuzz_bytes(running.address, 300, turn, answers)
        assert running.process.poll() is None
        sizes.append(running.rss())
    return sizes, answers
