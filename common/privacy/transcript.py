"""What a coordinator received, as a list that it cannot rewrite in silence: the other side of the silos' ledgers.

Hash-chained JSON lines, one per answer or refusal, on the disk before the coordinator uses the answer. A transcript holds digests
of answers, never the answers. An auditor lays it beside the silos' ledgers (``common.privacy.audit.verify``): every answer must
have a commitment with the same digest, else something left a silo uncharged.

Each round's checkpoint names the entry up to which the transcript had come (:class:`Mark`): a run goes on only with a transcript
that holds it, so one that was cut off or exchanged is found.

A last line without its newline was being written when the coordinator was killed; the answer in it was not used, and it is cut
off when the run goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.durable import sync_folder
from common.errors import FederationError

FORMAT = 1
FILE = "transcript.jsonl"

_TAG = b"silorec-transcript-1\0"
_NOTHING = "0" * 64


@dataclass(frozen=True)
class Answered:
    """One answer of one silo: ``question`` and ``answer`` are digests, 64 hex characters."""

    action: str
    round: int
    silo: int
    question: str
    answer: str


@dataclass(frozen=True)
class Mark:
    """How far a transcript had come: the number of its lines, and the hash of the last one (64 hex characters)."""

    length: int
    hash: str


@dataclass(frozen=True)
class Record:
    """A transcript that was read: what the run said of itself when it began or was taken up again, and the answers in order."""

    runs: tuple[Mapping[str, Any], ...]
    answers: tuple[Answered, ...]
    refusals: tuple[Mapping[str, Any], ...]
    sums: tuple[Mapping[str, Any], ...] = ()
    hashes: tuple[str, ...] = ()
    """Of all lines, in order."""

    @property
    def run(self) -> Mapping[str, Any]:
        """The first line's facts: ``config`` (hash), ``coordinator``, ``declared_users``, ``manifest``, ``mode``; where the run
        went on from another one, ``continues`` too.
        """
        return self.runs[0]

    @property
    def mark(self) -> Mark:
        """How far it has come."""
        return Mark(len(self.hashes), self.hashes[-1])

    def holds(self, mark: Mark) -> bool:
        """Whether it had come as far as ``mark`` says, and has perhaps gone on."""
        return 0 < mark.length <= len(self.hashes) and self.hashes[mark.length - 1] == mark.hash

    @property
    def predecessors(self) -> tuple[str, ...]:
        """The runs that this one went on from, by the hashes of their configurations, the first one first."""
        continues = self.run.get("continues")
        runs = continues.get("runs") if isinstance(continues, Mapping) else None
        return tuple(str(run) for run in runs) if isinstance(runs, list) else ()


class Transcript:
    """The transcript at ``path``, to write to.

    Parameters
    ----------
    run:
        What the run says of itself.
    mark:
        How far the transcript had come when the checkpoint that is gone on from was written; None asks for nothing.

    Raises
    ------
    FederationError
        If what is there is damaged, belongs to another run, or does not hold the entry of ``mark``; from all methods, if the disk
        takes no more.
    """

    def __init__(
        self, path: Path, run: Mapping[str, Any], *, mark: Mark | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.path, self._clock = path, clock
        raw = path.read_bytes() if path.exists() else b""
        self._end = raw.rfind(b"\n") + 1
        lines = _chained(raw[: self._end], str(path))
        self._last, self._seq = _last(lines), len(lines)
        if lines and lines[0]["entry"].get("config") != run.get("config"):
            raise FederationError(f"{path}: the transcript of another run; choose another folder")
        if mark is not None and (mark.length > len(lines) or _last(lines[: mark.length]) != mark.hash):
            raise FederationError(
                f"{path}: has {len(lines)} lines and does not hold line {mark.length}, up to which it had come when the "
                "checkpoint beside it was written: it was cut off or exchanged. Restore the transcript of this run"
            )
        self._append([{"type": "run", **run}])

    @property
    def mark(self) -> Mark:
        """How far it has come."""
        return Mark(self._seq, self._last)

    def record(
        self,
        action: str,
        round_number: int,
        question: str,
        answers: Mapping[int, str],
        refusals: Mapping[int, str],
    ) -> None:
        """Note the digest of each silo's answer and the code of each refusal; on the disk when this returns."""
        told = {"action": action, "round": round_number}
        entries = [{"type": "answer", **told, "silo": s, "question": question, "answer": d} for s, d in answers.items()]
        entries += [{"type": "refusal", **told, "silo": s, "code": code} for s, code in refusals.items()]
        self._append(entries)

    def record_sum(self, facts: Mapping[str, Any]) -> None:
        """Note one attempt at a secure sum: who took part in which stage, and who signed for the survivors."""
        self._append([{"type": "sum", **facts}])

    def _append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        lines = []
        last, seq = self._last, self._seq
        for entry in entries:
            body = {"format": FORMAT, "seq": seq, "time": int(self._clock()), "previous": last, **entry}
            last, seq = _hash(body), seq + 1
            lines.append(_canonical({"entry": body, "hash": last}) + b"\n")
        content = b"".join(lines)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
                file.truncate(self._end)
                file.seek(self._end)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if self._end == 0:
                sync_folder(self.path.parent)
        except OSError as error:
            raise FederationError(
                f"{self.path}: cannot be written ({error.strerror}), and no answer is used before it is noted here: mend that "
                "and start again"
            ) from None
        self._last, self._seq, self._end = last, seq, self._end + len(content)


def read_transcript(path: Path) -> Record:
    """Read and check a whole transcript.

    Raises
    ------
    FederationError
        Naming the line at which the chain is broken.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise FederationError(f"{path}: the transcript cannot be read ({error.strerror})") from None
    lines = _chained(raw[: raw.rfind(b"\n") + 1], str(path))
    entries = [line["entry"] for line in lines]
    if not entries or entries[0]["type"] != "run":
        raise FederationError(f"{path}: not a transcript: it does not begin with a run")
    by_type = {kind: [e for e in entries if e["type"] == kind] for kind in ("run", "answer", "refusal", "sum")}
    try:
        answers = tuple(Answered(e["action"], e["round"], e["silo"], e["question"], e["answer"]) for e in by_type["answer"])
    except KeyError as error:
        raise FederationError(f"{path}: an answer lacks its {error.args[0]!r}") from None
    hashes = tuple(str(line["hash"]) for line in lines)
    return Record(tuple(by_type["run"]), answers, tuple(by_type["refusal"]), tuple(by_type["sum"]), hashes)


def _chained(raw: bytes, where: str) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(raw.splitlines(keepends=True), start=1):
        try:
            parsed = json.loads(line)
            sound = _canonical(parsed) + b"\n" == line and _hash(parsed["entry"]) == parsed["hash"]
            sound = sound and parsed["entry"]["previous"] == _last(lines) and parsed["entry"]["seq"] == len(lines)
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise FederationError(f"{where}:{number}: the transcript's chain is broken here: it was altered or damaged")
        lines.append(parsed)
    return lines


def _last(lines: Sequence[Mapping[str, Any]]) -> str:
    return str(lines[-1]["hash"]) if lines else _NOTHING


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_TAG + _canonical(body)).hexdigest()


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
