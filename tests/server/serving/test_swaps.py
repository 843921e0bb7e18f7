"""Bundles are exchanged while silos ask: no question is lost, and no answer is a mixture of two bundles."""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from common.bundle.contents import Bundle
from common.engine import Engine
from common.privacy.signing import SigningKey
from common.proto import recommender_pb2 as messages
from tests.bundles import write_tiny
from tests.server.serving.running_service import Running, question, raw_call

log = logging.getLogger(__name__)

HISTORIES = [(), (3,), (7, 1, 7), (40, 41, 42, 43), (149, 0)]


def check(raw: bytes, expected: dict[str, np.ndarray], row: int) -> str:
    """Digest of the bundle that answered, whose scores all of the answer's must be."""
    got = messages.RecommendResponse.FromString(raw)
    digest = got.bundle.hex()
    scores = expected[digest][row]
    assert np.abs(scores[list(got.positions)] - got.scores).max() < 1e-4, "an answer from a mixture of bundles"
    assert np.diff(got.scores).max() <= 0
    return digest


def under_load(folder: Path, key: SigningKey, requests: int, every: float, threads: int = 8) -> tuple[int, dict[str, int], int]:
    """Ask ``requests`` questions while another bundle is put in place ``every`` so many seconds.

    Returns how many were answered, how often by which bundle, and how often bundles were exchanged.
    """
    made: list[Bundle] = [write_tiny(folder / f"made-{seed}", key, n_items=150, seed=seed) for seed in range(4)]
    assert len({bundle.catalogue_fingerprint for bundle in made}) == 1
    expected = {bundle.digest: Engine(bundle).scores(HISTORIES) for bundle in made}
    shop = folder / "shop.bundle"
    shop.write_bytes((folder / "made-0").read_bytes())
    done = threading.Event()

    def exchange() -> None:
        place, due = 0, time.monotonic() + every
        while not done.wait(max(0.0, due - time.monotonic())):
            due = max(due + every, time.monotonic())
            place = (place + 1) % len(made)
            partial = folder / "shop.partial"
            partial.write_bytes((folder / f"made-{place}").read_bytes())
            os.replace(partial, shop)
            running.live.swap()

    with Running(shop, key.public_key) as running, ThreadPoolExecutor(threads + 1) as pool:
        exchanging = pool.submit(exchange)
        asked = [question(made[0].catalogue_fingerprint, history) for history in HISTORIES]

        def ask(share: int) -> dict[str, int]:
            counted: dict[str, int] = {}
            with grpc.insecure_channel(running.target, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
                call = raw_call(channel)
                for number in range(share):
                    digest = check(call(asked[number % len(asked)], timeout=30), expected, number % len(asked))
                    counted[digest] = counted.get(digest, 0) + 1
            return counted

        try:
            shares = [future.result() for future in [pool.submit(ask, requests // threads) for _ in range(threads)]]
        finally:
            done.set()
        exchanging.result()
        by_bundle = {bundle.digest: sum(share.get(bundle.digest, 0) for share in shares) for bundle in made}
        return sum(by_bundle.values()), by_bundle, running.live.status.swaps


def test_no_question_is_lost_or_answered_by_two_bundles(tmp_path: Path, key: SigningKey) -> None:
    answered, by_bundle, swaps = under_load(tmp_path, key, requests=1_600, every=0.05)
    assert answered == 1_600
    assert swaps >= 4
    assert sum(count > 0 for count in by_bundle.values()) >= 3


def test_a_mixture_would_be_noticed(tmp_path: Path, key: SigningKey) -> None:
    """One score of the other bundle is enough."""
    first, second = (write_tiny(tmp_path / f"{seed}", key, n_items=150, seed=seed) for seed in (0, 1))
    expected = {bundle.digest: Engine(bundle).scores(HISTORIES) for bundle in (first, second)}
    positions, scores = Engine(first).top([HISTORIES[1]], 100)
    scores = scores.copy()
    scores[0, 50] = expected[second.digest][1][positions[0, 50]]
    raw = messages.RecommendResponse(bundle=bytes.fromhex(first.digest), positions=positions[0], scores=scores[0])
    with pytest.raises(AssertionError):
        check(raw.SerializeToString(), expected, 1)


@pytest.mark.slow
def test_two_hundred_thousand_questions_with_an_exchange_every_second(tmp_path: Path, key: SigningKey) -> None:
    began = time.monotonic()
    answered, by_bundle, swaps = under_load(tmp_path, key, requests=200_000, every=1.0)
    seconds = time.monotonic() - began
    log.info("%d questions in %.0f s, %d exchanges, by bundle %s", answered, seconds, swaps, sorted(by_bundle.values()))
    assert answered == 200_000
    assert swaps >= 0.5 * seconds
    assert min(by_bundle.values()) > 0
