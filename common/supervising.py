"""A child process that is kept running: started again with back-off when it ends, and never left behind.

Both sides of a deployment watch over processes of Flower. A child dies with its supervisor, also when that is killed
(``PR_SET_PDEATHSIG`` on Linux), so nothing holds a port or a ledger that nobody watches.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

log = logging.getLogger("silorec.supervision")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
HEALTHY = 60.0
"""Seconds that a child must have run for its next end to count as the first."""
GRACE = 10.0
TAIL = 1 << 14
_PR_SET_PDEATHSIG = 1


class Child:
    """One process, with its output in a file.

    Parameters
    ----------
    name:
        In the log.
    command:
        Its arguments; called anew for each start, since ports and files may change.
    output:
        Gets what the process writes; appended to, and begun anew when it is larger than ``largest_output`` bytes at a start.
    environment:
        Added to this process' own.
    clock:
        Seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        output: Path,
        environment: Mapping[str, str] | None = None,
        *,
        largest_output: int = 50_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.output = name, output
        self._command, self._environment, self._largest, self._clock = command, dict(environment or {}), largest_output, clock
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._next = -float("inf")
        self._pause = FIRST_PAUSE
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Of the running process; None where there is none."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def look(self) -> int | None:
        """Start the process if it is not running and its pause is over; its exit status if it has just ended, else None."""
        ended = None
        if self._process is not None:
            ended = self._process.poll()
            if ended is None:
                return None
            self._process = None
            self._pause = FIRST_PAUSE if self._clock() - self._started > HEALTHY else min(self._pause * 2, LONGEST_PAUSE)
            self._next = self._clock() + self._pause
            log.warning("%s has ended with status %d; it is started again in %g s", self.name, ended, self._pause)
        if self._clock() >= self._next:
            self._start()
        return ended

    def restart(self) -> None:
        """End the process; the next look starts it without a pause."""
        self.end()
        self._next, self._pause = -float("inf"), FIRST_PAUSE

    def end(self, grace: float = GRACE) -> None:
        """Ask the process and its descendants to end, and after ``grace`` seconds end them."""
        process, self._process = self._process, None
        if process is None:
            return
        family = _descendants(process.pid)
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            log.warning("%s did not end within %g s and is killed", self.name, grace)
            process.kill()
            process.wait()
        for member in _alive(family, 1.0):
            _tell(member, to_end=True)
        for member in _alive(family, grace):
            _tell(member, to_end=False)
        _alive(family, grace)

    def tail(self, lines: int = 20) -> str:
        """The last lines that the process wrote."""
        try:
            with self.output.open("rb") as file:
                file.seek(max(0, self.output.stat().st_size - TAIL))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _start(self) -> None:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        begin_anew = self.output.exists() and self.output.stat().st_size > self._largest
        with open(os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
            if begin_anew:
                out.truncate(0)
            self._process = subprocess.Popen(
                list(self._command()),
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        self._started, self.starts = self._clock(), self.starts + 1
        log.info("%s runs as process %d", self.name, self._process.pid)


def die_with_parent() -> None:
    """For ``preexec_fn``, on Linux: end the process when the one that started it ends, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _alive(family: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that have not ended after ``seconds``."""
    return list(psutil.wait_procs(family, timeout=seconds)[1])


def _descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def _tell(process: psutil.Process, *, to_end: bool) -> None:
    with contextlib.suppress(psutil.Error):
        process.terminate() if to_end else process.kill()
