"""The durable list of what a silo has spent: JSON lines on the silo's own disk.

An event is charged before its release: :meth:`Journal.charge` returns only after the line is on the disk, and whatever
is released must follow it. So a crash can only make the journal count more than was released, never less. A last line
without its newline was never charged to the end, hence nothing was released under it; it is cut off at the next charge.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from common.errors import PrivacyError
from common.privacy.accountant import Method, epsilon
from common.privacy.events import Event, event_from_dict, event_to_dict

FORMAT = 1


class Journal:
    """Events of one silo in the order they were charged.

    Raises
    ------
    PrivacyError
        If the file holds a line that is not an event: then nobody knows what was spent, and nothing may be released.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: list[Event] = []
        self._end = 0
        if path.exists():
            self._replay()

    @property
    def events(self) -> tuple[Event, ...]:
        return tuple(self._events)

    def charge(self, event: Event) -> None:
        """Spend ``event``: on the disk when this returns."""
        line = json.dumps({"format": FORMAT, **event_to_dict(event)}).encode() + b"\n"
        fresh = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(self.path, "r+b" if not fresh else "w+b") as file:
                file.truncate(self._end)
                file.seek(self._end)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                _sync_folder(self.path.parent)
        except OSError as error:
            raise PrivacyError(f"{self.path}: the charge could not be written ({error.strerror}); nothing was released") from error
        self._end += len(line)
        self._events.append(event)

    def epsilon(self, delta: float, method: Method = "rdp") -> float:
        """Everything ever charged here, at ``delta``."""
        return epsilon(self._events, delta, method)

    def _replay(self) -> None:
        raw = self.path.read_bytes()
        self._end = raw.rfind(b"\n") + 1
        for number, line in enumerate(raw[: self._end].splitlines(), start=1):
            try:
                values = json.loads(line)
                if values.pop("format") != FORMAT:
                    raise ValueError("unknown format")
                self._events.append(event_from_dict(values))
            except (ValueError, KeyError, AttributeError, TypeError, PrivacyError) as error:
                raise PrivacyError(
                    f"{self.path}:{number}: not a privacy event ({error}); restore the journal from a copy, or the silo must not go on"
                ) from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
