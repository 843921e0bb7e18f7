"""Questions of many silos answered together: one call of the model for all that came while the engine was busy.

An idle engine takes a question at once. The busier it is, the more questions the next call has, which cost less each. Every
batch is answered by one engine, whose catalogue all of its questions name.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from common.recommending import ANSWERS
from common.serving import Current, HasBundle
from server.serving.limits import WAIT
from server.serving.questions import Questions, check_positions
from server.serving.refusal import Refused, busy

MOST = 64
"""Questions in one call of the model; memory of a call grows with it."""

PACE: Final = 0.002
"""Seconds between the beginnings of two batches where questions come together: small batches cost more for each question. A
question that is alone waits for nobody.
"""

log = logging.getLogger(__name__)


class Answering(HasBundle, Protocol):
    """An engine that computes elsewhere while the event loop goes on."""

    async def answer(self, histories: Sequence[Sequence[int]], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """As :meth:`common.engine.Engine.top`."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What one bundle answers.

    ``digest`` names it (32 bytes); positions uint32 ``(n, ANSWERS)``, ``PAD`` where there is no item; scores float32 alike.
    """

    digest: bytes
    positions: NDArray[np.uint32]
    scores: NDArray[np.float32]

    def to_bytes(self) -> bytes:
        """A ``RecommendResponse``, or a ``RecommendBatchResponse``, which looks the same: its three fields, numbers packed.

        Put together by hand: a protocol buffer is made of Python numbers one by one, at six times the cost.
        """
        packed = (self.positions.astype("<u4", copy=False).tobytes(), self.scores.astype("<f4", copy=False).tobytes())
        return b"".join(
            tag + _varint(len(part)) + part for tag, part in zip((b"\x0a", b"\x12", b"\x1a"), (self.digest, *packed), strict=True)
        )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


@dataclass(frozen=True, eq=False)
class _Entry:
    questions: Questions
    future: asyncio.Future[Answers]
    until: float

    def __len__(self) -> int:
        return len(self.questions.histories)


Outcome = Answers | Refused


class Batcher:
    """A queue in front of the engine, which has one batch at a time. Made and asked on an event loop.

    Parameters
    ----------
    current:
        Gives what answers now; asked once for each batch.
    waiting:
        Questions in the queue at most.
    most:
        Questions in one batch at most, unless one call brings more.
    """

    def __init__(self, current: Callable[[], Current[Answering]], waiting: int, most: int = MOST) -> None:
        self._current, self._most, self._limit = current, most, waiting
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Entry] = deque()
        self._waiting = 0
        self._working: asyncio.Task[None] | None = None
        self.batches = self.questions = 0

    async def ask(self, questions: Questions, seconds: float) -> Answers:
        """Answers to ``questions``, all from one bundle.

        Raises
        ------
        Refused
            If the queue is full, the engine did not come to them within ``seconds``, or they do not fit the bundle that answers.
        """
        count = len(questions.histories)
        if self._waiting + count > self._limit:
            raise busy(f"{self._waiting} questions wait already", WAIT)
        future: asyncio.Future[Answers] = self._loop.create_future()
        self._waiting += count
        try:
            self._queue.append(_Entry(questions, future, time.monotonic() + seconds))
            if self._working is None:
                self._working = self._loop.create_task(self._work())
            expiry = self._loop.call_later(seconds, _expire, future)  # a third of what asyncio.timeout costs
            try:
                return await future
            finally:
                expiry.cancel()
        finally:
            self._waiting -= count

    async def close(self) -> None:
        """Answer what is in the queue."""
        if self._working is not None:
            await self._working

    async def _work(self) -> None:
        """As long as there is something in the queue."""
        try:
            while self._queue:
                batch = [self._queue.popleft()]
                size = len(batch[0])
                while self._queue and size < self._most:
                    batch.append(self._queue.popleft())
                    size += len(batch[-1])
                began = self._loop.time()
                _deliver(batch, await self._outcomes(batch))
                if size > 1 and (early := began + PACE - self._loop.time()) > 0:
                    await asyncio.sleep(early)
        finally:
            self._working = None

    async def _outcomes(self, batch: Sequence[_Entry]) -> list[Outcome]:
        try:
            return await self._answer(batch)
        except Exception as error:  # a bug; what it says may quote a question, so only its kind is logged
            log.error("a batch could not be answered: %s", type(error).__name__)
            return [Refused(grpc.StatusCode.INTERNAL, "the service failed to answer; nothing was wrong with the question")] * len(
                batch
            )

    async def _answer(self, batch: Sequence[_Entry]) -> list[Outcome]:
        current = self._current()
        engine, issued = current.engine, current.prepared
        now = time.monotonic()
        outcomes: list[Outcome | None] = []
        histories: list[tuple[int, ...]] = []
        for entry in batch:
            refused = _refusal(entry, now, issued.catalogue, len(engine.bundle.items), engine.bundle.digest)
            outcomes.append(refused)
            if refused is None:
                histories += entry.questions.histories
        self.batches += 1
        self.questions += len(histories)
        if not histories:
            return [outcome for outcome in outcomes if outcome is not None]
        positions, scores = await engine.answer(histories, ANSWERS)
        places = positions.astype(np.uint32)  # -1, where there is no item, becomes PAD
        answered: list[Outcome] = []
        at = 0
        for entry, outcome in zip(batch, outcomes, strict=True):
            if outcome is None:
                rows = slice(at, at + len(entry))
                outcome, at = Answers(issued.digest, places[rows], scores[rows]), at + len(entry)
            answered.append(outcome)
        return answered


def too_late() -> Refused:
    return Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "the question was not answered in time; ask again later")


def _refusal(entry: _Entry, now: float, catalogue: bytes, n_items: int, digest: str) -> Refused | None:
    """Why an entry is not answered with this bundle, if so."""
    if now > entry.until or entry.future.done():
        return too_late()
    if entry.questions.catalogue != catalogue:
        return Refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"the question counts in another catalogue than bundle {digest}, which answers here; fetch that one with GetBundle",
        )
    try:
        check_positions(entry.questions, n_items)
    except Refused as refused:
        return refused
    return None


def _expire(future: asyncio.Future[Answers]) -> None:
    if not future.done():
        future.set_exception(too_late())


def _deliver(batch: Sequence[_Entry], outcomes: Sequence[Outcome]) -> None:
    for entry, outcome in zip(batch, outcomes, strict=True):
        if entry.future.done():
            continue
        if isinstance(outcome, Refused):
            entry.future.set_exception(outcome)
        else:
            entry.future.set_result(outcome)
