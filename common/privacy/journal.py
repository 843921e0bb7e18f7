"""The durable list of what a silo has spent: JSON lines on the silo's own disk.

An event is charged before its release: :meth:`Journal.charge` returns only after the line is on the disk, and whatever
is released must follow it. So a crash can only make the journal count more than was released, never less. A last line
without its newline was never charged to the end, hence nothing was released under it; it is cut off at the next charge.

Two processes may hold the same journal, but only one of them can charge: the file is locked while it is written, and a journal
that has changed since it was read refuses, because whoever asks has decided on a budget that is no longer true.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import BinaryIO

from common.errors import PrivacyError
from common.privacy.accountant import Method, epsilon
from common.privacy.events import Event, event_from_dict, event_to_dict

FORMAT = 1


class Journal:
    """Events of one silo in the order they were charged.

    Raises
    ------
    PrivacyError
        If the file cannot be read or holds a line that is not an event: then nobody knows what was spent, and nothing may be
        released.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: list[Event] = []
        self._end = 0
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise PrivacyError(f"{path}: the journal cannot be read ({error.strerror}); nothing may be released") from error
        self._replay(raw)

    @property
    def events(self) -> tuple[Event, ...]:
        return tuple(self._events)

    def charge(self, event: Event) -> None:
        """Spend ``event``: on the disk when this returns.

        Raises
        ------
        PrivacyError
            If it could not be written, or another process has charged the same journal since this one was read.
        """
        line = json.dumps({"format": FORMAT, **event_to_dict(event)}).encode() + b"\n"
        try:
            _make_folder(self.path.parent)
            with open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._check_unchanged(file)
                file.truncate(self._end)
                file.seek(self._end)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if self._end == 0:
                _sync_folder(self.path.parent)
        except OSError as error:
            raise PrivacyError(
                f"{self.path}: the charge could not be written ({error.strerror}); nothing was released"
            ) from error
        self._end += len(line)
        self._events.append(event)

    def epsilon(self, delta: float, method: Method = "rdp") -> float:
        """Everything ever charged here, at ``delta``."""
        return epsilon(self._events, delta, method)

    def _check_unchanged(self, file: BinaryIO) -> None:
        """What was read is still there, and nobody has charged anything since; call with the lock held."""
        tail = b""
        size = os.fstat(file.fileno()).st_size
        if size > self._end:
            file.seek(self._end)
            tail = file.read()
        if size < self._end or b"\n" in tail:
            raise PrivacyError(f"{self.path}: the journal has changed since it was read; read it again. Nothing was released")

    def _replay(self, raw: bytes) -> None:
        self._end = raw.rfind(b"\n") + 1
        for number, line in enumerate(raw[: self._end].splitlines(), start=1):
            try:
                values = json.loads(line)
                if values.pop("format") != FORMAT:
                    raise ValueError("unknown format")
                self._events.append(event_from_dict(values))
            except (ValueError, KeyError, AttributeError, TypeError, PrivacyError) as error:
                raise PrivacyError(
                    f"{self.path}:{number}: not a privacy event ({error}); restore the journal from a copy, "
                    "or the silo must not go on"
                ) from None


def _make_folder(folder: Path) -> None:
    """Make ``folder`` and what it lies in, each on the disk."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
