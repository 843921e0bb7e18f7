"""What a silo shows its own operator while it takes part: ``status.json`` in its home, and nothing of it is sent anywhere.

The process that watches over the silo keeps it alive, the one that computes answers notes each of them:

    with SiloStatus(home):                      # heartbeat, until the block is left
        ...
    SiloStatus(home).note("train", 7, None, 12.5)

Both may be different processes; a lock beside the file keeps them apart. Noted are actions, rounds, codes and seconds. Nothing
here can end a silo's work: what the disk refuses is logged, once.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from filelock import FileLock, Timeout

from common.consortium.home import SiloHome
from common.errors import ErrorCode
from common.protocol import RELEASED
from common.status.events import stamp
from common.status.files import BEAT, FORMAT, Pulse, Unbreakable, read_json, replace_status

OTHER: Final = "other"
RECENT: Final = 20
"""Answers whose seconds are kept."""

_LOCK_SECONDS = 5.0
_CODES = frozenset(code.name for code in ErrorCode)


class SiloStatus:
    """The status file of one home; a context manager that says the silo is running.

    Parameters
    ----------
    home:
        The silo's.
    clock:
        Seconds since 1970.
    """

    def __init__(self, home: SiloHome, *, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock, self._disk = home.status, clock, Unbreakable()
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), mode=0o600)
        self._pulse = Pulse(self.beat, BEAT)

    def note(self, action: str, round: int | None, code: str | None, seconds: float) -> None:
        """An answer was given, or refused with ``code``, after so many seconds; ``round`` is None where the question says none.

        Names that the protocol does not know count as ``other``, because anybody may have sent them.
        """
        now = self._clock()
        action = action if action in RELEASED else OTHER

        def noted(status: dict[str, Any]) -> None:
            status["last_contact"] = stamp(now)
            spent = status["answer_seconds"].setdefault(action, {"count": 0, "sum": 0.0})
            spent["count"] += 1
            spent["sum"] += seconds
            if code is not None:
                known = code if code in _CODES else OTHER
                status["refusals"][known] = status["refusals"].get(known, 0) + 1
                status["last_error"] = {"code": known, "action": action, "round": round, "time": stamp(now)}
                return
            status["answers"][action] = status["answers"].get(action, 0) + 1
            status["recent_seconds"] = [*status["recent_seconds"], seconds][-RECENT:]
            status["seconds_per_answer"] = statistics.median(status["recent_seconds"])
            status["last_answer"] = {"action": action, "round": round, "time": stamp(now), "seconds": seconds}
            if round is not None and round != status["last_round"]:
                status["last_round"] = round
                status["rounds_answered"] += 1

        self._change(noted)

    def contact(self) -> None:
        """The coordinator was reached, without a question."""
        now = self._clock()
        self._change(lambda status: status.update(last_contact=stamp(now)))

    def beat(self) -> None:
        """The silo is running."""
        self._change(lambda status: status.update(state="running", pid=os.getpid()))

    def __enter__(self) -> SiloStatus:
        now = self._clock()
        self._change(lambda status: status.update(state="running", since=stamp(now), pid=os.getpid()))
        self._pulse.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._pulse.stop()
        self._change(lambda status: status.update(state="stopped"))

    def _change(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Read, change and replace the file under its lock."""

        def changed() -> None:
            try:
                with self._lock.acquire(timeout=_LOCK_SECONDS):
                    status = self._read()
                    change(status)
                    replace_status(self.path, {**status, "heartbeat": stamp(self._clock())})
            except Timeout:
                raise OSError("another process holds its lock") from None

        self._disk.attempt(changed, self.path)

    def _read(self) -> dict[str, Any]:
        """What is there; a damaged file is begun anew."""
        fresh: dict[str, Any] = {
            "kind": "silo",
            "state": "running",
            "since": None,
            "last_contact": None,
            "last_round": None,
            "rounds_answered": 0,
            "answers": {},
            "refusals": {},
            "answer_seconds": {},
            "recent_seconds": [],
            "seconds_per_answer": None,
            "last_answer": None,
            "last_error": None,
        }
        found = read_json(self.path) or {}
        return {**fresh, **found} if (found.get("format"), found.get("kind")) == (FORMAT, "silo") else fresh
