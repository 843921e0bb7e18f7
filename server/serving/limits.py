"""How much the service takes on, in all and from one silo, so that none can keep the others waiting."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from common.errors import ServingError
from common.proto import BATCH_LIMIT
from common.recommending import SLOTS
from server.serving.refusal import busy

WAIT = 0.1
"""Seconds after which a caller is told to try again when a queue is full."""


@dataclass(frozen=True)
class Limits:
    """What a service allows.

    Parameters
    ----------
    rate:
        Questions a second that one silo may ask, averaged; each history of a batch is a question, any other call counts as one.
    burst:
        Questions that a silo may ask at once after a pause.
    under_way:
        Calls under way at once, of all silos. Further ones get ``RESOURCE_EXHAUSTED``.
    under_way_of_one:
        Of these, of one silo.
    waiting:
        Questions that wait for the engine, of all silos.
    deadline:
        Longest seconds of a call that asks something; a caller's own deadline counts if it is shorter.
    downloads, downloads_of_one:
        Streams at once that outlast a question: bundles, health watches, reflection; of all silos and of one.
    download_deadline:
        Longest seconds of such a stream.

    Raises
    ------
    ServingError
        If one is not positive, or a batch could never be answered.
    """

    rate: float = 500.0
    burst: int = 1_000
    under_way: int = 1_024
    under_way_of_one: int = 256
    waiting: int = 1_024
    deadline: float = 5.0
    downloads: int = 32
    downloads_of_one: int = 4
    download_deadline: float = 900.0

    def __post_init__(self) -> None:
        for part in fields(self):
            if not getattr(self, part.name) > 0:
                raise ServingError(f"{part.name} = {getattr(self, part.name)}: this limit is above 0")
        if min(self.burst, self.waiting) < BATCH_LIMIT:
            raise ServingError(f"burst = {self.burst}, waiting = {self.waiting}: a batch has up to {BATCH_LIMIT} questions")

    @property
    def message_bytes(self) -> int:
        """Of the largest message that is read: a full batch and what is around it."""
        return 4 * SLOTS * BATCH_LIMIT + 64


class Allowance:
    """A token bucket for each silo; it fills at ``rate`` a second up to ``burst``. To be used from one thread."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._left: dict[str, tuple[float, float]] = {}

    def spend(self, silo: str, questions: int) -> None:
        """Take ``questions`` of a silo's allowance, all or none.

        Raises
        ------
        Refused
            If there are not enough; it says when there will be.
        """
        now = self._clock()
        left, since = self._left.get(silo, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate)
        if left < questions:
            self._left[silo] = left, now
            raise busy(f"this silo may ask {self._rate:g} questions a second", (questions - left) / self._rate)
        self._left[silo] = left - questions, now


class Places:
    """So many at once, in all and of one silo. To be used from one thread."""

    def __init__(self, what: str, in_all: int, of_one: int) -> None:
        self._what, self._in_all, self._of_one = what, in_all, of_one
        self._taken: Counter[str] = Counter()
        self._sum = 0

    @property
    def taken(self) -> int:
        return self._sum

    @contextmanager
    def one(self, silo: str) -> Iterator[None]:
        """Hold a place inside.

        Raises
        ------
        Refused
            If there is none.
        """
        if self._sum >= self._in_all:
            raise busy(f"the service has {self._in_all} {self._what} under way and takes no more", WAIT)
        if self._taken[silo] >= self._of_one:
            raise busy(f"this silo has {self._of_one} {self._what} under way and may have no more", WAIT)
        self._taken[silo] += 1
        self._sum += 1
        try:
            yield
        finally:
            self._sum -= 1
            self._taken[silo] -= 1
            if not self._taken[silo]:
                del self._taken[silo]
