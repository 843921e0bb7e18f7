"""Exchanging bundles under load: no request fails, and every answer is one bundle's from its first byte to its last."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from pathlib import Path

import httpx
import pytest

from client.gateway.desk import Desk
from client.gateway.models import Question
from common.bundle.contents import Bundle
from common.engine import Engine
from common.privacy.signing import create_key
from tests.bundles import write_tiny
from tests.client.gateway_load import Heard, asking, heard
from tests.client.gateway_server import command, gateway, opened

log = logging.getLogger(__name__)

ITEMS = 1682
QUESTIONS = [
    json.dumps({"history": [f"{i * 37 % ITEMS}", f"{i * 91 % ITEMS}", f"{i * 7 % ITEMS}"], "k": 10, "explain": i % 2 == 0})
    for i in range(50)
]


def answers_of(bundle: Bundle) -> list[bytes]:
    """To every question, by an engine without a gateway."""
    desk = Desk(Engine(bundle))
    return [desk.recommend(Question.model_validate_json(question)).model_dump_json().encode() for question in QUESTIONS]


class Rivals:
    """Two bundles of the same items that give every question other scores, and what each answers."""

    def __init__(self, folder: Path) -> None:
        key = create_key(folder / "signer.key")
        self.signer = key.public_key
        self.paths = [folder / "one.bundle", folder / "two.bundle"]
        self.live = folder / "live.bundle"
        sizes = {"n_items": ITEMS, "dim": 96, "text_dim": 64, "window": 30, "prefix": ""}
        one, two = (write_tiny(path, key, seed=seed, **sizes) for seed, path in enumerate(self.paths))
        shutil.copy(self.paths[0], self.live)
        self.digests = {one.digest, two.digest}
        self.expected: dict[tuple[int, str], str] = {}
        for number, bodies in enumerate(zip(answers_of(one), answers_of(two), strict=True)):
            scores = [{item["score"] for item in json.loads(body)["recommendations"]} for body in bodies]
            assert not scores[0] & scores[1]
            for bundle, body in zip((one, two), bodies, strict=True):
                self.expected[number, bundle.digest] = hashlib.sha256(body).hexdigest()

    def publish(self, turn: int) -> None:
        """Put the one or the other at the watched place, in one step."""
        shutil.copy(self.paths[turn % 2], self.live.with_suffix(".partial"))
        os.replace(self.live.with_suffix(".partial"), self.live)

    def check(self, told: list[Heard], requests: int) -> None:
        """All were answered, each by one of the two as a whole, and each of the two answered."""
        assert [failure for part in told for failure in part.failed] == []
        assert sum(part.requests for part in told) == requests
        for part in told:
            for number, digest, body in part.answers:
                assert self.expected[number, digest] == body
        assert {digest for part in told for _, digest, _ in part.answers} == self.digests


@pytest.fixture
def rivals(tmp_path: Path) -> Rivals:
    return Rivals(tmp_path)


def test_no_request_fails_or_mixes_two_bundles_while_they_are_exchanged(rivals: Rivals, caplog: pytest.LogCaptureFixture) -> None:
    live = opened(rivals.live, rivals.signer)
    requests, turn = 800, 0
    with caplog.at_level(logging.WARNING), gateway(live) as address:
        processes = asking(address, QUESTIONS, requests, 2)
        while any(process.poll() is None for process in processes) and turn < 400:
            turn += 1
            rivals.publish(turn)
            assert live.look()
            time.sleep(0.02)
        told = heard(processes)
    rivals.check(told, requests)
    assert live.status.swaps == turn >= 5
    assert (live.status.refused, caplog.text) == (0, "")


@pytest.mark.slow
def test_two_hundred_thousand_requests_with_a_swap_every_second(rivals: Rivals, tmp_path: Path) -> None:
    requests, turn = 200_000, 0
    stderr, token = tmp_path / "stderr", tmp_path / "token"
    options = ["--bundle", str(rivals.live), "--signer", rivals.signer, "--admin-token-file", str(token)]
    with command(*options, stderr=stderr) as running, httpx.Client(base_url=running.address, timeout=30) as asking_too:
        asking_too.headers["Authorization"] = f"Bearer {token.read_text().strip()}"
        heard(asking(running.address, QUESTIONS, 2000, 2))
        before = running.rss()
        began = time.monotonic()
        processes = asking(running.address, QUESTIONS, requests, 3)
        while any(process.poll() is None for process in processes):
            turn += 1
            rivals.publish(turn)
            assert asking_too.post("/v1/reload").status_code == 200  # else two in one look of the watcher are none
            time.sleep(max(0.0, began + turn - time.monotonic()))
        told, took = heard(processes), time.monotonic() - began
        after = running.rss()
        facts = asking_too.get("/v1/bundle").json()
        status, ending = running.end()
    mebibytes = [round(size / 2**20) for size in (before, after)]
    log.info(
        "%d requests in %.0f s, %.0f a second, %d swaps; memory %d, then %d MiB; ended in %.2f s",
        requests, took, requests / took, facts["swaps"], *mebibytes, ending,
    )  # fmt: skip
    rivals.check(told, requests)
    assert (facts["swaps"], facts["refused"]) == (turn, 0)
    assert turn >= 0.9 * took
    assert (status, stderr.read_text()) == (0, "")
    assert after - before < 64 * 2**20
