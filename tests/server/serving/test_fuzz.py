"""Whatever bytes come: the service refuses them with a sentence, or answers, and stays as it was."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.bundle.contents import Bundle
from common.privacy.signing import SigningKey
from common.proto import SERVICE, path_of
from common.recommending import ANSWERS, PAD
from tests.server.serving.running_service import Running, question, raw_call
from tests.server.serving.test_questions import field, packed, varint
from tests.server.serving.test_running import process

log = logging.getLogger(__name__)

METHODS = ["Recommend", "RecommendBatch", "GetCard"]
FINE = {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"}

numbers = st.integers(0, 2**32 - 1)
positions = st.one_of(st.integers(0, 149), st.just(0xFFFFFFFF), numbers)
histories = (
    st.lists(positions, max_size=70)
    | st.lists(positions, min_size=32, max_size=32)
    | st.lists(positions, min_size=64, max_size=64)
)
tags = st.integers(0, 40).map(varint)
fields = st.one_of(
    st.builds(field, st.integers(1, 20), st.binary(max_size=60)),
    st.builds(lambda history: field(2, packed(history)), histories),
    st.builds(lambda tag, value: tag + varint(value), tags, st.integers(0, 2**63)),
    st.binary(max_size=20),
)


def with_catalogue(bundle: Bundle) -> st.SearchStrategy[bytes]:
    """Fields behind the right fingerprint, which get further; some are questions."""
    fingerprint = field(1, bytes.fromhex(bundle.catalogue_fingerprint))
    shown = st.lists(st.integers(0, 149), max_size=32).map(lambda items: items + [PAD] * (32 - len(items)))
    good = shown | st.lists(shown, max_size=66).map(lambda rows: [slot for row in rows for slot in row])
    return st.builds(
        lambda history, more: fingerprint + field(2, packed(history)) + more, good | histories, st.just(b"") | fields
    )


keys = st.text("abcdefghijklmnopqrstuvwxyz-_.0123456789", min_size=1, max_size=20).filter(lambda key: not key.endswith("-bin"))
metadata = st.lists(st.tuples(keys, st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)), max_size=3)


def ended(call: Callable[[], object]) -> tuple[str, str]:
    """Status and sentence of a call."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def ask_anything(channel: grpc.Channel, bundle: Bundle, examples: int) -> dict[str, int]:
    """How often which status came of ``examples`` made-up messages."""
    seen: dict[str, int] = {}

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        method=st.sampled_from(METHODS),
        raw=st.lists(fields, max_size=4).map(b"".join) | with_catalogue(bundle),
        sent=st.just([]) | metadata,
    )
    def once(method: str, raw: bytes, sent: list[tuple[str, str]]) -> None:
        got, said = ended(lambda: raw_call(channel, method)(raw, timeout=20, metadata=sent))
        assert got in FINE, got
        assert got == "OK" or said
        seen[got] = seen.get(got, 0) + 1

    once()
    return seen


def stream_anything(channel: grpc.Channel, examples: int) -> None:
    streams = {
        "GetBundle": channel.unary_stream(path_of("GetBundle")),
        "Watch": channel.unary_stream("/grpc.health.v1.Health/Watch"),
        "Info": channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
    }

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(name=st.sampled_from(sorted(streams)), raw=st.lists(fields, max_size=3).map(b"".join) | st.binary(max_size=100))
    def once(name: str, raw: bytes) -> None:
        replies = streams[name](iter([raw]) if name == "Info" else raw, timeout=20)
        got, said = ended(lambda: next(replies, None))
        assert got in FINE, (got, said)
        replies.cancel()

    once()


def throw_bytes(port: int, examples: int) -> None:
    """Bytes that are not gRPC, not even HTTP/2."""

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(raw=st.binary(max_size=200), preface=st.booleans())
    def once(raw: bytes, preface: bool) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            plain.sendall((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if preface else b"") + raw)

    once()


def test_no_message_breaks_the_service(
    service: Running, channel: grpc.Channel, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    seen = ask_anything(channel, bundle, 400)
    stream_anything(channel, 60)
    throw_bytes(service.port, 60)
    assert {"OK", "INVALID_ARGUMENT"} <= set(seen)
    assert len(raw_call(channel)(question(bundle.catalogue_fingerprint, (1,)), timeout=5)) > 8 * ANSWERS
    assert not caplog.records


def test_an_unknown_method_is_refused(channel: grpc.Channel) -> None:
    for path in (f"/{SERVICE}/Nothing", "/silorec.v2.Recommender/Recommend"):
        assert ended(lambda path=path: raw_call(channel, path)(b"", timeout=5))[0] == "UNIMPLEMENTED"


@pytest.mark.slow
def test_ten_minutes_of_anything_leave_the_memory_as_it_was(bundle_file: Path, bundle: Bundle, key: SigningKey) -> None:
    """The service is a process of its own; its memory is compared with that after a third of the time."""
    seen: dict[str, int] = {}
    sizes: list[int] = []
    generous = ("--insecure", "--rate", "1e6", "--burst", "1000000")
    with process("--bundle", str(bundle_file), "--signer", key.public_key, *generous) as (running, facts):
        port = int(facts["address"].rpartition(":")[2])
        memory, until = psutil.Process(running.pid), time.monotonic() + 600
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            while time.monotonic() < until:
                for name, count in ask_anything(channel, bundle, 2_000).items():
                    seen[name] = seen.get(name, 0) + count
                stream_anything(channel, 200)
                throw_bytes(port, 200)
                sizes.append(memory.memory_info().rss)
            assert raw_call(channel)(question(bundle.catalogue_fingerprint, (1,)), timeout=5)
        running.terminate()
        out, err = running.communicate(timeout=30)
    warm = sizes[len(sizes) // 3]
    log.info("%d rounds, %s, memory in MiB %s", len(sizes), seen, [size >> 20 for size in sizes])
    assert (running.returncode, out) == (0, "")
    assert "Traceback" not in err
    assert sizes[-1] < warm + (8 << 20)
