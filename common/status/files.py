"""``status.json``: the one file that says how a run or a silo does at this moment, kept by a process as long as it lives.

It is replaced in one step, so a reader sees the whole of it or the one before. A process that lives renews ``heartbeat``; where
that is older than :data:`STALE` seconds, the process is not running, or its machine sleeps. Writing it never ends a run: a full
disk is logged once, and the next write is tried all the same.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.status.events import seconds

log = logging.getLogger("silorec.status")

STATUS = "status.json"
FORMAT = 1
STALE = 30.0
BEAT = 5.0

#: States in which a process is expected to be alive.
LIVE = frozenset({"waiting", "round", "running"})


class Unbreakable:
    """Writes of status, none of which may end the work that they tell of."""

    def __init__(self) -> None:
        self._failed = False

    def attempt(self, write: Callable[[], None], path: Path) -> None:
        """``write()``; if the disk refuses, say so once until it works again."""
        try:
            write()
        except OSError as error:
            if not self._failed:
                log.warning("%s: the status cannot be written (%s); the work goes on without", path, error.strerror or error)
            self._failed = True
        else:
            self._failed = False


def replace_status(path: Path, content: Mapping[str, Any]) -> None:
    """Put ``content`` at ``path`` in one step. It is not forced to the disk: after a power cut the process writes a new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        partial.write_text(json.dumps({"format": FORMAT, **content}, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_status(path: Path, now: float | None = None) -> dict[str, Any]:
    """What ``path``, a status file or the folder of one, says.

    Parameters
    ----------
    now:
        Seconds since 1970, by default the present.

    Returns
    -------
    What was written, with ``age``, the seconds since the last heartbeat, and ``stale``, whether a process that should be alive
    gave none for :data:`STALE` seconds.

    Raises
    ------
    DataError
        If there is none, or it is none of ours.
    """
    file = path / STATUS if path.is_dir() else path
    try:
        status = json.loads(file.read_bytes())
        if status["format"] != FORMAT:
            raise DataError(
                f"format {status['format']!r} is not known here, only {FORMAT}: read it with the silorec that wrote it", file
            )
        age = max(0.0, (time.time() if now is None else now) - seconds(status["heartbeat"]))
        live = status["state"] in LIVE
    except FileNotFoundError:
        raise DataError("there is no status: nothing was started here yet", file) from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file) from None
    except (ValueError, KeyError, TypeError):
        raise DataError("is no status file of silorec; remove it, a running process writes a new one", file) from None
    return {**status, "age": age, "stale": live and age > STALE}


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


class Pulse:
    """Calls ``beat`` every so many seconds in a thread of its own, between ``start`` and ``stop``."""

    def __init__(self, beat: Callable[[], None], every: float) -> None:
        self._beat, self._every = beat, every
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._over.clear()
        self._thread = threading.Thread(target=self._run, name="silorec-status", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._over.wait(self._every):
            self._beat()
