"""Who asks on two days, and with what history.

Histories end somewhere on the first day; by the second, a person has met ``n`` more items. Three ways to say how many:

* :func:`apart`: the same ``n`` for everybody, 0 being the same question asked again;
* :func:`as_between_visits`: for each person what somebody, drawn at random, met between two visits in the data;
* :func:`real_visits`: only those who came back, with what they did between.

The second serves for choosing: it has everybody, and no single ``n`` that a cap would just escape. All end in the same place, so
what is asked on the second day is what quality is measured with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from common.data.interactions import Interactions
from common.errors import DataError

AWAY = 12 * 3600
"""Seconds without any interaction after which a person is taken to have left and come back: another day."""

History = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Visits:
    """The same people on two days; row ``i`` of both is one person.

    Parameters
    ----------
    first, second:
        Items until the end of each day, oldest first. The first is where the second begins.
    """

    first: tuple[History, ...]
    second: tuple[History, ...]

    def __post_init__(self) -> None:
        if len(self.first) != len(self.second):
            raise DataError(f"{len(self.first)} people on the first day and {len(self.second)} on the second")

    def __len__(self) -> int:
        return len(self.first)

    @property
    def between(self) -> NDArray[np.int64]:
        """``(len(self),)``: items that each person met between the days."""
        return np.array([len(b) - len(a) for a, b in zip(self.first, self.second, strict=True)], dtype=np.int64)


def apart(histories: Sequence[History], n: int) -> Visits:
    """Everybody meets ``n`` items between the days; whoever has not more than ``n`` is left out."""
    if n < 0:
        raise DataError(f"{n} items between two days: must be at least 0")
    kept = [history for history in histories if len(history) > n]
    return Visits(tuple(history[: len(history) - n] for history in kept), tuple(kept))


def as_between_visits(histories: Sequence[History], sizes: NDArray[np.integer], seed: int) -> Visits:
    """Each person meets as many items as one of ``sizes`` says, drawn from those that leave half of the history to the first day.

    Raises
    ------
    DataError
        If a history is so short that no size fits.
    """
    rng = np.random.default_rng(seed)
    ordered, first = np.sort(np.asarray(sizes)), []
    for history in histories:
        fitting = int(np.searchsorted(ordered, len(history) // 2, side="right"))
        if not fitting:
            raise DataError(f"a history of {len(history)} items is too short for the {ordered.min()} items of the shortest visit")
        first.append(history[: len(history) - int(ordered[rng.integers(fitting)])])
    return Visits(tuple(first), tuple(histories))


def visit_sizes(interactions: Interactions, away: int = AWAY) -> NDArray[np.int64]:
    """Items of each visit that was not somebody's first, where :data:`AWAY` seconds without anything part visits."""
    sizes = [np.diff(cuts)[1:] for cuts in _visits(interactions, away)]
    return np.concatenate(sizes).astype(np.int64) if sizes else np.zeros(0, dtype=np.int64)


def real_visits(interactions: Interactions, away: int = AWAY) -> Visits:
    """Everybody who came back: histories until the ends of their last two visits."""
    histories, first, second = interactions.histories(), [], []
    for history, cuts in zip(histories, _visits(interactions, away), strict=True):
        if len(cuts) > 2:
            first.append(history[: cuts[-2]])
            second.append(history)
    return Visits(tuple(first), tuple(second))


def _visits(interactions: Interactions, away: int) -> list[NDArray[np.int64]]:
    """Of each person the places in the history where visits begin, and its length."""
    order, starts = interactions.by_user
    times = interactions.time[order]
    out = []
    for begin, end in pairwise(starts):
        breaks = np.flatnonzero(np.diff(times[begin:end]) >= away) + 1
        out.append(np.concatenate([[0], breaks, [end - begin]]))
    return out
