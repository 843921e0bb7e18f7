"""Administrative acts, as a list that nobody changes in silence: who was admitted, revoked, when a run was started.

Hash-chained JSON lines, each on the disk before :meth:`Journal.append` returns. A chain shows that no line in it was altered,
removed or put in. That lines at its end were cut off only something else can show: a copy of a later head, or a roster whose
digest the last lines should hold.

A last line without its newline was being written when the process was killed; its act was not done, and the next line takes its
place.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.durable import sync_folder
from common.errors import ConsortiumError

FORMAT: Final = 1

_TAG: Final = b"silorec-journal-1\0"
_NOTHING: Final = "0" * 64


@dataclass(frozen=True)
class Act:
    """One line: number, time (seconds since 1970), what was done, its facts, and the hash that fixes it and all before."""

    seq: int
    time: int
    act: str
    facts: Mapping[str, Any]
    hash: str


class Journal:
    """The journal at ``path``, made with its first line. Several processes may write to it."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock

    def append(self, act: str, **facts: Any) -> Act:
        """Note that ``act`` is done, with facts that JSON can hold; on the disk when this returns.

        Raises
        ------
        ConsortiumError
            If what is there is damaged, or nothing can be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
                return self._append(file, act, facts)
        except OSError as error:
            raise ConsortiumError(f"{self.path}: the journal cannot be written ({error.strerror})") from None

    def _append(self, file: Any, act: str, facts: Mapping[str, Any]) -> Act:
        raw = file.read()
        end = raw.rfind(b"\n") + 1
        acts = _chained(raw[:end], self.path)
        seq, now = len(acts), int(self._clock())
        body = {"format": FORMAT, "seq": seq, "time": now, "previous": _last(acts), "act": act, "facts": dict(facts)}
        done = Act(seq, now, act, facts, _hash(body))
        file.seek(end)
        file.truncate()
        file.write(_canonical({"entry": body, "hash": done.hash}) + b"\n")
        file.flush()
        os.fsync(file.fileno())
        if not acts:
            sync_folder(self.path.parent)
        return done


def read_journal(path: Path) -> tuple[Act, ...]:
    """All acts, in order, every line checked.

    Raises
    ------
    ConsortiumError
        Naming the line at which the chain is broken, or if the file cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConsortiumError(f"{path}: the journal cannot be read ({error.strerror})") from None
    return tuple(_chained(raw[: raw.rfind(b"\n") + 1], path))


def _chained(raw: bytes, path: Path) -> list[Act]:
    acts: list[Act] = []
    for number, line in enumerate(raw.split(b"\n")[:-1], start=1):
        try:
            parsed = json.loads(line)
            body = parsed["entry"]
            act = Act(body["seq"], body["time"], body["act"], body["facts"], parsed["hash"])
            sound = _canonical(parsed) == line and _hash(body) == act.hash and body["format"] == FORMAT
            sound = sound and body["previous"] == _last(acts) and act.seq == len(acts)
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise ConsortiumError(f"{path}:{number}: the journal's chain is broken here: it was altered or damaged")
        acts.append(act)
    return acts


def _last(acts: Sequence[Act]) -> str:
    return acts[-1].hash if acts else _NOTHING


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_TAG + _canonical(body)).hexdigest()


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
