"""Questions that came while the engine was busy are answered together, each batch by one engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from common.engine import Engine
from common.proto import recommender_pb2 as messages
from common.serving import Current
from server.serving.batching import MOST, Answers, Batcher
from server.serving.issued import Issued
from server.serving.questions import Questions
from server.serving.refusal import Refused
from tests.bundles import tiny_bundle
from tests.server.serving.running_service import InThread


class Held(InThread):
    """A real engine that waits for leave before it answers, and writes down the sizes of its batches."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(tiny_bundle(**changes))
        self.leave, self.entered = threading.Event(), threading.Event()
        self.sizes: list[int] = []

    def top(self, histories: Sequence[Sequence[int]], k: int) -> Any:
        self.sizes.append(len(histories))
        self.entered.set()
        assert self.leave.wait(20)
        return super().top(histories, k)


def current(engine: InThread) -> Current[InThread]:
    bundle = engine.bundle
    issued = Issued(bytes.fromhex(bundle.digest), bytes.fromhex(bundle.catalogue_fingerprint), "{}", None)
    return Current(engine, issued, time.time())


def about(engine: Engine, *histories: tuple[int, ...]) -> Questions:
    return Questions(bytes.fromhex(engine.bundle.catalogue_fingerprint), histories or ((1, 2),))


async def entered(engine: Held) -> None:
    assert await asyncio.to_thread(engine.entered.wait, 20)


@pytest.mark.parametrize(("kind", "rows"), [(messages.RecommendResponse, 1), (messages.RecommendBatchResponse, 64)])
def test_an_answer_put_together_by_hand_is_the_schemas_own(kind: Any, rows: int) -> None:
    random = np.random.default_rng(rows)
    positions = random.integers(0, 2**32, (rows, 100), dtype=np.uint32)
    scores = random.normal(0.0, 9.0, (rows, 100)).astype(np.float32)
    scores[0, -1] = -np.inf
    raw = Answers(bytes(range(32)), positions, scores).to_bytes()
    assert raw == kind(bundle=bytes(range(32)), positions=positions.ravel(), scores=scores.ravel()).SerializeToString()


def test_what_came_while_the_engine_was_busy_is_one_batch() -> None:
    engine = Held()

    async def main() -> list[Answers]:
        batcher = Batcher(lambda: current(engine), waiting=1_000)
        first = asyncio.create_task(batcher.ask(about(engine, (0,)), 20.0))
        await entered(engine)
        rest = [asyncio.create_task(batcher.ask(about(engine, (i, i + 1)), 20.0)) for i in range(1, 31)]
        await asyncio.sleep(0.05)
        engine.leave.set()
        answers = await asyncio.gather(first, *rest)
        await batcher.close()
        return list(answers)

    answers = asyncio.run(main())
    assert engine.sizes == [1, 30]
    alone = Engine(engine.bundle)
    for place, answer in enumerate(answers):
        expected = alone.top([(0,) if place == 0 else (place, place + 1)], 100)
        assert np.allclose(answer.scores, expected[1], atol=1e-5)
        assert answer.digest.hex() == engine.bundle.digest


def test_batches_are_bounded_and_a_call_stays_whole() -> None:
    engine = Held()

    async def main() -> None:
        batcher = Batcher(lambda: current(engine), waiting=1_000)
        first = asyncio.create_task(batcher.ask(about(engine), 20.0))
        await entered(engine)
        whole = [asyncio.create_task(batcher.ask(about(engine, *[(i, 3)] * 40), 20.0)) for i in range(4)]
        await asyncio.sleep(0.05)
        engine.leave.set()
        await asyncio.gather(first, *whole)
        await batcher.close()

    asyncio.run(main())
    assert engine.sizes == [1, 80, 80]
    assert max(engine.sizes) < MOST + 64


def test_a_question_about_another_catalogue_does_not_spoil_the_batch() -> None:
    engine = Held()
    wrong = Questions(bytes(32), ((1,),))

    async def main() -> list[Any]:
        batcher = Batcher(lambda: current(engine), waiting=1_000)
        first = asyncio.create_task(batcher.ask(about(engine), 20.0))
        await entered(engine)
        asked = [about(engine), wrong, about(engine, (40,)), about(engine, (39,))]
        rest = [asyncio.create_task(batcher.ask(one, 20.0)) for one in asked]
        await asyncio.sleep(0.05)
        engine.leave.set()
        outcomes = await asyncio.gather(first, *rest, return_exceptions=True)
        await batcher.close()
        return outcomes

    outcomes = asyncio.run(main())
    assert [type(outcome) for outcome in outcomes] == [Answers, Answers, Refused, Refused, Answers]
    assert outcomes[2].code is grpc.StatusCode.FAILED_PRECONDITION
    assert outcomes[3].code is grpc.StatusCode.INVALID_ARGUMENT
    assert engine.sizes == [1, 2]


def test_an_exchange_in_between_lets_every_batch_be_of_one_bundle() -> None:
    """Both bundles have one catalogue. The engine changes while the first batch is computed."""
    old, new = Held(seed=1), InThread(tiny_bundle(seed=2))
    assert old.bundle.catalogue_fingerprint == new.bundle.catalogue_fingerprint
    answering: list[InThread] = [old]

    async def main() -> list[Answers]:
        batcher = Batcher(lambda: current(answering[0]), waiting=1_000)
        first = asyncio.create_task(batcher.ask(about(old, (5,)), 20.0))
        await entered(old)
        answering[0] = new
        rest = [asyncio.create_task(batcher.ask(about(old, (5,)), 20.0)) for _ in range(5)]
        await asyncio.sleep(0.05)
        old.leave.set()
        answers = await asyncio.gather(first, *rest)
        await batcher.close()
        return list(answers)

    answers = asyncio.run(main())
    for answer, engine in zip(answers, [Engine(old.bundle), *[new] * 5], strict=True):
        assert answer.digest.hex() == engine.bundle.digest
        assert np.allclose(answer.scores, engine.top([(5,)], 100)[1], atol=1e-5)


def test_who_waits_too_long_or_finds_the_queue_full_is_told() -> None:
    engine = Held()

    async def main() -> list[Any]:
        batcher = Batcher(lambda: current(engine), waiting=64)
        first = asyncio.create_task(batcher.ask(about(engine), 20.0))
        await entered(engine)
        began = time.monotonic()
        late = asyncio.create_task(batcher.ask(about(engine, (7,)), 0.2))
        many = asyncio.create_task(batcher.ask(about(engine, *[(1,)] * 62), 20.0))
        await asyncio.sleep(0.05)
        full = asyncio.create_task(batcher.ask(about(engine), 20.0))
        outcomes = await asyncio.gather(late, full, return_exceptions=True)
        assert time.monotonic() - began < 5.0
        engine.leave.set()
        outcomes += await asyncio.gather(first, many, batcher.ask(about(engine), 20.0))
        await batcher.close()
        return outcomes

    late, full, *answered = asyncio.run(main())
    assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert full.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "64 questions wait already" in full.sentence
    assert [len(answer.positions) for answer in answered] == [1, 62, 1]
    assert sum(engine.sizes) == 64  # nothing was computed for the one who had gone


def test_what_is_in_the_queue_is_answered_before_the_end() -> None:
    engine = Held()

    async def main() -> list[Answers]:
        batcher = Batcher(lambda: current(engine), waiting=1_000)
        first = asyncio.create_task(batcher.ask(about(engine), 20.0))
        await entered(engine)
        rest = [asyncio.create_task(batcher.ask(about(engine, (i,)), 20.0)) for i in range(5)]
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.05)
        engine.leave.set()
        answers = await asyncio.gather(first, *rest)
        await closing
        return list(answers)

    assert len(asyncio.run(main())) == 6


def test_a_failing_engine_fails_its_batch_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = InThread(tiny_bundle()), InThread(tiny_bundle())

    def broken(*_: object) -> None:
        raise RuntimeError("history 31337")

    bad.top = broken  # type: ignore[assignment, method-assign]
    answering = [bad]

    async def main() -> list[Any]:
        batcher = Batcher(lambda: current(answering[0]), waiting=1_000)
        outcomes = await asyncio.gather(batcher.ask(about(bad), 5.0), return_exceptions=True)
        answering[0] = good
        outcomes.append(await batcher.ask(about(good), 5.0))
        await batcher.close()
        return outcomes

    failed, answered = asyncio.run(main())
    assert failed.code is grpc.StatusCode.INTERNAL
    assert len(answered.positions) == 1
    assert "RuntimeError" in caplog.text
    assert "31337" not in caplog.text + failed.sentence
