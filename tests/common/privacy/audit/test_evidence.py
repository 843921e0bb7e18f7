"""Evidence is read as it lies there, whole or damaged, and nothing in it is changed."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import DataError, LedgerError
from common.privacy.audit.evidence import LEDGER, load_evidence, read_copy
from common.privacy.ledger import Ledger, read_ledger
from common.privacy.store import Store
from tests.common.privacy.audit.made_up_evidence import Federation
from tests.common.privacy.ledgers import AUDITOR, SILO, asks, digest, full_ledger, key_of, policy, quick_folder, steps


@pytest.fixture
def folder() -> Iterator[Path]:
    made = quick_folder()
    yield made
    shutil.rmtree(made)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below ``folder`` with its bytes and the time of its last change."""
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def run_folder(folder: Path, silos: int = 2) -> Path:
    """As a simulation leaves it, so far as ledgers go."""
    for place in range(silos):
        (folder / "silos" / str(place)).mkdir(parents=True)
        Ledger.create(folder / "silos" / str(place) / LEDGER, policy(silo=f"silo-{place}"), key_of(f"silo {place}"))
    return folder


def test_a_runs_folder_has_its_ledgers_by_place(folder):
    evidence = load_evidence(run_folder(folder, 11))
    assert list(evidence.places.values()) == list(range(11)), "in the order of places, not of letters"
    assert [chain.silo for chain in evidence.ledgers.values()] == [f"silo-{place}" for place in range(11)]
    assert evidence.places["silos/10/ledger.sqlite"] == 10
    assert (evidence.transcript, evidence.config, evidence.result, evidence.problems) == (None, None, None, ())


def test_a_folder_of_exports_has_each_file_as_a_ledger(tmp_path):
    federation = Federation()
    evidence = load_evidence(federation.write(tmp_path, result={"mode": "silo"}))
    assert {name: chain.silo for name, chain in evidence.ledgers.items()} == {"north.jsonl": "north", "south.jsonl": "south"}
    assert evidence.places == {}
    assert evidence.config == federation.config
    assert evidence.result == {"mode": "silo"}
    assert evidence.transcript is not None
    assert [answer.round for answer in evidence.transcript.answers] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_files_of_a_run_that_are_no_ledgers_are_left_alone(tmp_path):
    folder = Federation().write(tmp_path)
    for name in ("rounds.jsonl", "catalogue.jsonl"):
        (folder / name).write_text("{}\n")
    assert load_evidence(folder).problems == ()


@pytest.mark.parametrize("form", ["database", "export"])
def test_one_ledger_will_do(folder, form):
    ledger = full_ledger(folder)
    if form == "export":
        (folder / "mine.jsonl").write_bytes(ledger.export())
    evidence = load_evidence(folder / ("mine.jsonl" if form == "export" else LEDGER))
    assert [chain.head for chain in evidence.ledgers.values()] == [ledger.chain.head]


def test_the_folder_of_a_deployed_silo_will_do(folder):
    full_ledger(folder)
    assert list(load_evidence(folder).ledgers) == [LEDGER]


def test_reading_changes_nothing(folder):
    full_ledger(folder / "silos" / "0")
    before = contents(folder)
    load_evidence(folder)
    assert contents(folder) == before


def test_reading_does_not_even_tidy_up_after_a_crash(folder):
    """The write-ahead log of a process that was killed is evidence too; SQLite would merge it and delete it."""
    ledger = full_ledger(folder / "live")
    reader = sqlite3.connect(ledger.path)
    reader.execute("SELECT count(*) FROM entries").fetchone()
    ledger.countersign(AUDITOR)
    shutil.copytree(folder / "live", folder / "seized", ignore=shutil.ignore_patterns("*-shm"))
    reader.close()
    before = contents(folder / "seized")
    assert before[f"{LEDGER}-wal"][0]
    (chain,) = load_evidence(folder / "seized").ledgers.values()
    assert chain.head == ledger.chain.head
    assert contents(folder / "seized") == before
    assert read_ledger(folder / "seized" / LEDGER).head == chain.head
    assert contents(folder / "seized") != before, "that is why a copy is read"


def test_what_is_still_in_the_write_ahead_log_is_read(folder):
    ledger = Ledger.create(folder / LEDGER, policy(), SILO)
    ledger.reserve(asks(steps(1)), digest("a question"))
    reader = sqlite3.connect(folder / LEDGER)  # an open reader keeps the log from being merged
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM entries").fetchone()
    ledger.reserve(asks(steps(2)), digest("another"))
    assert (folder / f"{LEDGER}-wal").stat().st_size > 0
    before = contents(folder)
    assert len(read_copy(folder / LEDGER).entries) == 3
    assert {k: v for k, v in contents(folder).items() if not k.endswith("-shm")} == {
        k: v for k, v in before.items() if not k.endswith("-shm")
    }
    reader.close()


def test_a_ledger_that_is_being_written_is_read_between_two_entries(folder, monkeypatch):
    monkeypatch.setattr("common.privacy.audit.evidence.PATIENCE", 0.05)
    ledger = Ledger.create(folder / LEDGER, policy(), SILO)
    with Store(folder / LEDGER).turn(), pytest.raises(LedgerError, match="has been writing this ledger"):
        read_copy(folder / LEDGER)
    assert read_copy(folder / LEDGER).head == ledger.chain.head


def test_a_damaged_ledger_is_a_problem_that_names_the_entry_and_the_others_are_read(tmp_path):
    folder = Federation().write(tmp_path)
    lines = (folder / "north.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "north.jsonl").write_bytes(b"".join(lines[:2] + lines[3:]))
    evidence = load_evidence(folder)
    assert list(evidence.ledgers) == ["south.jsonl"]
    (problem,) = evidence.problems
    assert (problem.part, problem.name) == ("ledger", "north.jsonl")
    assert problem.what.startswith("entry 2: ")


def test_a_database_that_lost_entries_is_a_problem(folder):
    run_folder(folder, 1)
    head = folder / "silos" / "0" / f"{LEDGER}.head"
    head.write_text(f"9 {digest('x')}\n")
    (problem,) = load_evidence(folder).problems
    assert problem.name == "silos/0/ledger.sqlite"
    assert "9 entries were written, but only 1" in problem.what
    assert "silorec-audit" not in problem.what, "the copy's place means nothing to anybody"


@pytest.mark.parametrize(
    ("name", "content", "part", "what"),
    [
        ("transcript.jsonl", "{}\n", "transcript", "1: the transcript's chain is broken"),
        ("config.toml", "a = ", "configuration", "not a TOML file"),
        ("result.json", "[1]", "result", "expected a JSON object"),
        ("result.json", "\xe9".encode("latin-1"), "result", "not JSON"),
        ("empty.jsonl", "", "ledger", "the export is empty"),
        ("other.jsonl", '{"a": 1}\n{}\n', "ledger", "not in the canonical form"),
    ],
)
def test_what_cannot_be_read_is_a_problem(tmp_path, name, content, part, what):
    folder = Federation().write(tmp_path)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (problem,) = load_evidence(folder).problems
    assert (problem.part, problem.name) == (part, name)
    assert what in problem.what


def test_nothing_to_audit_is_an_error(tmp_path):
    with pytest.raises(DataError, match="there is nothing to audit"):
        load_evidence(tmp_path)
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(DataError, match="there is nothing to audit"):
        load_evidence(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        load_evidence(tmp_path / "nowhere")


def test_of_several_copies_the_longest_is_current(tmp_path):
    federation = Federation()
    federation.write(tmp_path)
    (tmp_path / "older.jsonl").write_bytes(federation.books[0].export(3))
    evidence = load_evidence(tmp_path)
    assert list(evidence.ledgers) == ["north.jsonl", "older.jsonl", "south.jsonl"]
    assert list(evidence.current) == ["north.jsonl", "south.jsonl"]
