"""``events.jsonl``: what a federation told, one JSON object per line with its ``time``, in the order in which it happened.

It is for people and their tools, not for auditors: nothing is hash-chained (that is ``common.privacy.transcript``), and a run
goes on where it cannot be written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"

Event = Mapping[str, Any]


def append(path: Path, event: Event, time: float) -> None:
    """Add ``event`` with its time (seconds since 1970) as a line; a line that a crash left torn is closed first."""
    line = json.dumps({"time": stamp(time), **event}) + "\n"
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())


class Follower:
    """Reads a file of events as it grows, also one that is not there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def new(self) -> Iterator[tuple[Event, float]]:
        """The events since the last call, each with its time; torn and foreign lines are passed over."""
        try:
            with open(self.path, "rb") as file:
                file.seek(0, 2)
                if file.tell() < self._offset:  # another file
                    self._offset = 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
                time = seconds(event.pop("time"))
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            if isinstance(event.get("event"), str):
                yield event, time


def read_events(path: Path) -> list[tuple[Event, float]]:
    """All events of a file with their times in seconds since 1970; none where there is no file."""
    return list(Follower(path).new())


def stamp(time: float) -> str:
    """``2026-03-01T09:30:00.125Z``."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds(stamped: str) -> float:
    """Seconds since 1970 of what :func:`stamp` wrote; :class:`ValueError` for anything else."""
    return datetime.fromisoformat(stamped).timestamp()
