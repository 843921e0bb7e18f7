"""The journal of administrative acts: nothing in it changes without being seen."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConsortiumError
from common.journal import Journal, read_journal


def written(path: Path) -> Path:
    journal = Journal(path, clock=lambda: 1_700_000_000.9)
    journal.append("found", consortium="shops")
    journal.append("admit", silo="north", number=0)
    journal.append("revoke", silo="north", reason="left – für immer")
    return path


def test_acts_are_read_as_they_were_written(tmp_path: Path) -> None:
    acts = read_journal(written(tmp_path / "journal.jsonl"))
    assert [(act.seq, act.time, act.act, act.facts) for act in acts] == [
        (0, 1_700_000_000, "found", {"consortium": "shops"}),
        (1, 1_700_000_000, "admit", {"silo": "north", "number": 0}),
        (2, 1_700_000_000, "revoke", {"silo": "north", "reason": "left – für immer"}),
    ]


def test_each_line_holds_the_hash_of_the_one_before(tmp_path: Path) -> None:
    """Checked without the module: SHA-256 over a tag and JSON with sorted keys."""
    last = "0" * 64
    for line in written(tmp_path / "journal.jsonl").read_text().splitlines():
        parsed = json.loads(line)
        body = json.dumps(parsed["entry"], sort_keys=True, separators=(",", ":"))
        assert parsed["entry"]["previous"] == last
        last = hashlib.sha256(b"silorec-journal-1\0" + body.encode()).hexdigest()
        assert parsed["hash"] == last


@settings(max_examples=200, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), by=st.integers(1, 255))
def test_a_changed_byte_is_seen(where: float, by: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.jsonl"
    path.unlink(missing_ok=True)
    raw = bytearray(written(path).read_bytes())
    raw[int(where * (len(raw) - 1))] ^= by  # the last newline's loss is a line that was not finished
    path.write_bytes(raw)
    with pytest.raises(ConsortiumError, match=r"changed\.jsonl:[123]: the journal's chain is broken here"):
        read_journal(path)


@pytest.mark.parametrize("lines", [(1, 2), (0, 2), (0, 2, 1), (0, 1, 1, 2)], ids=str)
def test_a_line_that_is_missing_or_out_of_place_is_seen(lines: tuple[int, ...], tmp_path: Path) -> None:
    path = written(tmp_path / "journal.jsonl")
    each = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(each[line] for line in lines))
    with pytest.raises(ConsortiumError, match="the journal's chain is broken here"):
        read_journal(path)
    with pytest.raises(ConsortiumError, match="the journal's chain is broken here"):
        Journal(path).append("admit")


def test_a_line_that_was_being_written_when_the_process_died_gives_way_to_the_next(tmp_path: Path) -> None:
    path = written(tmp_path / "journal.jsonl")
    whole = path.read_bytes()
    for end in range(whole.rstrip(b"\n").rfind(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:end])
        assert [act.act for act in read_journal(path)] == ["found", "admit"]
        Journal(path).append("extend", silo="north")
        assert [act.act for act in read_journal(path)] == ["found", "admit", "extend"]


def _append(path: Path, name: str) -> None:
    for number in range(20):
        Journal(path).append("note", by=name, number=number)


def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    processes = [multiprocessing.get_context("fork").Process(target=_append, args=(path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    acts = read_journal(path)
    for name in "abc":
        assert [act.facts["number"] for act in acts if act.facts["by"] == name] == list(range(20))
    assert len(acts) == 60


def test_a_journal_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConsortiumError, match=r"nowhere\.jsonl: the journal cannot be read \(No such file or directory\)"):
        read_journal(tmp_path / "nowhere.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConsortiumError, match=r"folder: the journal cannot be written \(Is a directory\)"):
        Journal(tmp_path / "folder").append("found")
