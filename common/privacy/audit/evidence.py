"""What an auditor was given: ledgers, a transcript, a configuration and a result, read without changing any of them.

Two layouts. A *run's folder*, as ``silorec simulate`` leaves it: ``silos/<i>/ledger.sqlite``, ``transcript.jsonl``,
``config.toml``, ``result.json``. A *folder of exports*: one ``*.jsonl`` for each ledger (``silorec ledger export``), beside them
``transcript.jsonl`` and ``config.toml``, earlier exports, and countersignatures that auditors kept (``*.countersignature.json``),
as far as there are any. A single ledger or export will do, too.

Reading stops at nothing: what is damaged becomes a :class:`Problem`, and the rest is read. No key is needed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from common.config import Config, load
from common.errors import ConfigError, DataError, FederationError, LedgerError
from common.privacy.entries import Chain, read_export
from common.privacy.ledger import read_ledger
from common.privacy.store import PATIENCE
from common.privacy.transcript import FILE as TRANSCRIPT
from common.privacy.transcript import Record, read_transcript

LEDGER, CONFIG, RESULT = "ledger.sqlite", "config.toml", "result.json"

#: JSON lines in a run's folder that are no ledgers.
NO_LEDGERS = frozenset({TRANSCRIPT, "rounds.jsonl", "catalogue.jsonl", "events.jsonl", "journal.jsonl"})

#: Countersignatures that auditors kept, as ``silorec ledger countersign`` writes them.
COUNTERSIGNATURES = "*.countersignature.json"

Part = Literal["ledger", "countersignature", "transcript", "configuration", "result"]


@dataclass(frozen=True)
class Problem:
    """``name``, a file below the evidence's path, could not be read."""

    part: Part
    name: str
    what: str


@dataclass(frozen=True)
class Seen:
    """A countersignature that was kept outside of the ledger, in file ``name``: ``by`` has seen the entry with hash ``head``."""

    name: str
    silo: str
    head: str
    by: str
    signature: str


@dataclass(frozen=True)
class Evidence:
    """Everything that could be read below ``path``.

    Parameters
    ----------
    ledgers:
        Chains by the name of their file, relative to ``path``. Their hashes and signatures hold, or they would be problems.
    places:
        The place in the roster of those ledgers whose folder says it (``silos/<i>``).
    result:
        ``result.json``: what the run claims of itself.
    """

    path: Path
    ledgers: Mapping[str, Chain]
    places: Mapping[str, int] = field(default_factory=dict)
    seen: tuple[Seen, ...] = ()
    transcript: Record | None = None
    config: Config | None = None
    result: Mapping[str, Any] | None = None
    problems: tuple[Problem, ...] = ()

    @cached_property
    def current(self) -> dict[str, Chain]:
        """Of the copies of one ledger, those with one public key, the longest; in the order of :attr:`ledgers`."""
        longest: dict[str, str] = {}
        for name, chain in self.ledgers.items():
            have = longest.get(chain.public_key)
            if have is None or len(chain.entries) > len(self.ledgers[have].entries):
                longest[chain.public_key] = name
        return {name: chain for name, chain in self.ledgers.items() if name in longest.values()}

    def problem_with(self, part: Part) -> tuple[Problem, ...]:
        """What could not be read of one kind."""
        return tuple(problem for problem in self.problems if problem.part == part)


def load_evidence(path: Path) -> Evidence:
    """Read everything at ``path``: a run's folder, a folder of exports, or one ledger.

    Raises
    ------
    DataError
        If there is nothing to audit.
    """
    if not path.exists():
        raise DataError("no such file or folder", path)
    root = path if path.is_dir() else path.parent
    ledgers, places = _ledgers_below(path) if path.is_dir() else ({path.name: path}, dict[str, int]())
    problems: list[Problem] = []
    chains: dict[str, Chain] = {}
    for name, file in ledgers.items():
        try:
            chains[name] = _read_chain(file)
        except (LedgerError, OSError) as error:
            problems.append(Problem("ledger", name, _without(str(error), file)))
    seen = []
    for file in sorted(root.glob(COUNTERSIGNATURES)) if path.is_dir() else ():
        try:
            seen.append(_read_seen(file))
        except DataError as error:
            problems.append(Problem("countersignature", file.name, _without(str(error), file)))
    read: dict[str, Any] = {}
    readers: tuple[tuple[Part, str, Any], ...] = (
        ("transcript", TRANSCRIPT, read_transcript),
        ("configuration", CONFIG, load),
        ("result", RESULT, _read_json),
    )
    for part, name, reader in readers:
        file = root / name
        if path.is_dir() and file.exists():
            try:
                read[part] = reader(file)
            except (FederationError, ConfigError, DataError, OSError) as error:
                problems.append(Problem(part, name, _without(str(error), file)))
    if not chains and not problems and "transcript" not in read:
        raise DataError(
            f"there is nothing to audit: expected the folder of a run (silos/<i>/{LEDGER}), a folder of exported ledgers "
            f"(*.jsonl), or one ledger",
            path,
        )
    return Evidence(
        path=path,
        ledgers=chains,
        places={name: place for name, place in places.items() if name in chains},
        seen=tuple(seen),
        transcript=read.get("transcript"),
        config=read.get("configuration"),
        result=read.get("result"),
        problems=tuple(problems),
    )


def _ledgers_below(folder: Path) -> tuple[dict[str, Path], dict[str, int]]:
    """Files by their name below ``folder``, and places in the roster."""
    found: dict[str, Path] = {}
    places: dict[str, int] = {}
    if (folder / LEDGER).is_file():
        found[LEDGER] = folder / LEDGER
    silos = [child for child in folder.glob("silos/*") if (child / LEDGER).is_file()]
    for silo in sorted(silos, key=lambda child: (not child.name.isdecimal(), child.name.zfill(12))):
        name = f"silos/{silo.name}/{LEDGER}"
        found[name] = silo / LEDGER
        if silo.name.isdecimal():
            places[name] = int(silo.name)
    for file in sorted(folder.glob("*.jsonl")):
        if file.name not in NO_LEDGERS:
            found[file.name] = file
    return found, places


def _read_chain(file: Path) -> Chain:
    with file.open("rb") as opened:
        is_database = opened.read(16) == b"SQLite format 3\0"
    return read_copy(file) if is_database or file.suffix == ".sqlite" else read_export(file.read_bytes())


def read_copy(path: Path) -> Chain:
    """What the ledger at ``path`` says, read from a copy: SQLite, even where it only reads, merges a log that a crash left.

    Raises
    ------
    LedgerError
        If it is missing, damaged or in use.
    """
    with tempfile.TemporaryDirectory(prefix="silorec-audit-") as folder:
        copy = Path(folder) / path.name
        with _nobody_writes(path):
            for ending in ("", "-wal", ".head"):
                beside = path.with_name(path.name + ending)
                if beside.exists():
                    shutil.copyfile(beside, copy.with_name(copy.name + ending))
        try:
            return read_ledger(copy)
        except LedgerError as error:
            raise LedgerError(str(error).replace(str(copy), str(path))) from None


@contextlib.contextmanager
def _nobody_writes(path: Path) -> Iterator[None]:
    """Hold the ledger's lock together with other readers; where there is no lock to be had, there is no writer to fear."""
    try:
        descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            if time.monotonic() > give_up:
                raise LedgerError(f"{path}: a process has been writing this ledger for {PATIENCE:g} s; audit it when it is done")
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", path) from None
    except ValueError as error:  # of which UnicodeDecodeError and JSONDecodeError are kinds
        raise DataError(f"not JSON: {error}", path) from None
    if not isinstance(value, dict):
        raise DataError("expected a JSON object", path)
    return value


def _read_seen(path: Path) -> Seen:
    signed = _read_json(path).get("countersignature")
    forms = {"silo": r"[^\x00-\x1f]+", "head": "[0-9a-f]{64}", "by": "[0-9a-f]{64}", "signature": "[0-9a-f]{128}"}
    if not isinstance(signed, dict) or not all(re.fullmatch(form, str(signed.get(name))) for name, form in forms.items()):
        raise DataError("not a countersignature as silorec ledger countersign writes it", path)
    return Seen(path.name, *(str(signed[name]) for name in forms))


def _without(message: str, file: Path) -> str:
    """The message without its beginning, the file, which is said elsewhere."""
    for spelled in (str(file.absolute()), str(file)):
        message = message.removeprefix(f"{spelled}: ")
    return message
