"""Whom a round is asked of: a silo that fails is left out for some rounds and then invited again.

After a failure a silo is left out of the next round, after another one of two, then of four, up to a limit; a round in which it
takes part ends that. A silo whose node has gone and comes back is invited at once. A silo that refuses for good, because its
budget is spent or its operator does not allow the run, is asked no more; a coordinator that is started again asks it once more.
Where fewer than the quorum would be left, all who have not refused for good are invited.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

log = logging.getLogger("silorec.server")

#: Hears of a federation's events: JSON-able mappings, each with its name under ``event``.
Tell = Callable[[Mapping[str, Any]], None]


def telling(tell: Tell | None) -> Tell:
    """``tell``, whose exceptions end up in the log: a run does not end because somebody who watches it fails."""

    def told(event: Mapping[str, Any]) -> None:
        if tell is None:
            return
        try:
            tell(event)
        except Exception as error:
            log.warning("the event %r could not be told: %s: %s", event.get("event"), type(error).__name__, error)

    return told


class Attendance:
    """Who is left out of which rounds.

    Parameters
    ----------
    quorum:
        How many silos a round takes.
    longest:
        How many rounds a silo is left out of at most; 0 leaves none out.
    tell:
        Hears ``left_out`` and ``invited``.
    """

    def __init__(self, quorum: int, longest: int, tell: Tell) -> None:
        self.quorum, self.longest, self._tell = quorum, longest, tell
        self.refused: dict[int, str] = {}
        """For the rest of the run, with the code."""
        self._failures: dict[int, int] = {}
        self._until: dict[int, int] = {}
        self._out: set[int] = set()

    @property
    def left_out(self) -> frozenset[int]:
        """Who is not asked in this round."""
        return frozenset(self._out | self.refused.keys())

    def begin(self, number: int, present: Collection[int], *, everybody: bool = False) -> None:
        """Decide for round ``number``; ``everybody`` invites all who have not refused for good: a round is tried again."""
        out = {silo for silo, until in self._until.items() if until > number and silo not in self.refused}
        if everybody or len(set(present) - out - self.refused.keys()) < self.quorum:
            out = set()
        for silo in sorted(self._until.keys() - out - self.refused.keys()):
            self._invite(silo)
        self._out = out

    def came(self, silo: int) -> None:
        """It took part in a round."""
        self._failures.pop(silo, None)

    def failed(self, silo: int, number: int, why: str) -> None:
        """It was there, was asked in round ``number``, and is not in it."""
        if not self.longest or silo in self.refused:
            return
        times = self._failures[silo] = self._failures.get(silo, 0) + 1
        self._until[silo] = number + 1 + min(2 ** (times - 1), self.longest)
        log.warning("silo %d is left out until round %d: %s", silo, self._until[silo], why)
        self._tell({"event": "left_out", "silo": silo, "reason": why, "until_round": self._until[silo]})

    def refuse(self, silo: int, why: str) -> None:
        """It takes no part in the rest of the run."""
        if silo in self.refused:
            return
        self.refused[silo] = why
        self._until.pop(silo, None)
        log.warning("silo %d is left out of the rest of the run: %s", silo, why)
        self._tell({"event": "left_out", "silo": silo, "reason": why, "until_round": None})

    def back(self, silo: int) -> None:
        """Its node was gone and has enrolled again: it is invited at once."""
        if silo in self._until:
            self._invite(silo)
        self._out.discard(silo)

    def _invite(self, silo: int) -> None:
        del self._until[silo]
        self._tell({"event": "invited", "silo": silo})
