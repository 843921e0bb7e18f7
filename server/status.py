"""What a run shows of itself while it goes on: its events in ``events.jsonl``, and in ``status.json`` what they come to.

    with StatusFile(folder, names) as status:
        run_federation(..., tell=status.tell)

What the run did before a restart is read back from its events, so rounds, failures and estimates go on where they were. Nothing
here can end a run: what the disk refuses is logged, once.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from common.errors import SilorecError
from common.status.events import EVENTS, Event, append, read_events, stamp
from common.status.files import BEAT, STATUS, Pulse, Unbreakable, replace_status
from common.status.run import WAITING, folded
from server.checkpoint import FILE as CHECKPOINT

OFTEN = 0.2
"""Seconds between two writes of ``status.json``, at least; the end of a round or of the run does not wait."""

_AT_ONCE = frozenset({"run", "round", "finished", "failed", "stopped"})


class StatusFile:
    """The two files in a run's folder; ``tell`` may be called from any thread.

    Parameters
    ----------
    folder:
        The run's; made if it is not there.
    names:
        The silos', in the roster's order; without them the events' own.
    run:
        Its name, until an event tells it.
    clock:
        Seconds since 1970.
    """

    def __init__(self, folder: Path, names: Sequence[str] = (), *, run: str = "", clock: Callable[[], float] = time.time) -> None:
        self.path, self.events = folder / STATUS, folder / EVENTS
        self._checkpoint = folder / CHECKPOINT
        self._clock, self._lock, self._disk = clock, threading.RLock(), Unbreakable()
        self._disk.attempt(lambda: folder.mkdir(parents=True, exist_ok=True), folder)
        self.run = folded(read_events(self.events), names)
        self.run.run = self.run.run or run
        self._written, self._waiting, self._ended = -float("inf"), False, False
        self._pulse = Pulse(self._beat, OFTEN)

    def tell(self, event: Event) -> None:
        """Take in an event of the federation."""
        with self._lock:
            now = self._clock()
            self._disk.attempt(lambda: append(self.events, event, now), self.events)
            self.run.tell(event, now)
            self._ended = event["event"] in ("finished", "failed", "stopped")
            self._waiting = True
            if event["event"] in _AT_ONCE or now - self._written >= OFTEN:
                self._write(now)

    def __enter__(self) -> StatusFile:
        """From here on the run is alive, whatever became of it before; what it is to do it tells when its model is loaded."""
        with self._lock:
            self.run.state, self.run.reason = WAITING, ""
            self._write(self._clock())
        self._pulse.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Whoever leaves before the run has finished has failed, if by an error, or else has stopped."""
        self._pulse.stop()
        with self._lock:
            if isinstance(error, Exception) and self.run.state != "failed":
                self.tell({"event": "failed", "reason": str(error) if isinstance(error, SilorecError) else type(error).__name__})
            elif not self._ended:
                self.tell({"event": "stopped"})
            elif self._waiting:
                self._write(self._clock())

    def _beat(self) -> None:
        with self._lock:
            now = self._clock()
            if now - self._written >= (OFTEN if self._waiting else BEAT):
                self._write(now)

    def _write(self, now: float) -> None:
        self._written, self._waiting = now, False
        content = {**self.run.to_dict(now), "checkpoint": self._checkpointed(), "heartbeat": stamp(now), "pid": os.getpid()}
        self._disk.attempt(lambda: replace_status(self.path, content), self.path)

    def _checkpointed(self) -> str | None:
        """When the last checkpoint was written."""
        try:
            return stamp(self._checkpoint.stat().st_mtime)
        except OSError:
            return None
