"""A transcript says what was received, survives a kill, and shows every later change."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import FederationError
from common.privacy.transcript import Answered, Transcript, read_transcript

RUN = {"config": "c" * 64, "mode": "silo", "declared_users": [3, 4]}


def write(path: Path) -> Path:
    transcript = Transcript(path, RUN)
    transcript.record("query.count", 0, "q0", {0: "a", 1: "b"}, {})
    transcript.record("train", 1, "q1", {1: "c"}, {0: "BUDGET_EXHAUSTED"})
    return path


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    record = read_transcript(write(tmp_path / "t.jsonl"))
    assert record.run["mode"] == "silo"
    assert record.answers == (
        Answered("query.count", 0, 0, "q0", "a"),
        Answered("query.count", 0, 1, "q0", "b"),
        Answered("train", 1, 1, "q1", "c"),
    )
    assert [(r["silo"], r["code"]) for r in record.refusals] == [(0, "BUDGET_EXHAUSTED")]


def test_a_run_that_is_taken_up_goes_on_in_the_same_chain(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl")
    Transcript(path, RUN).record("train", 2, "q2", {0: "d"}, {})
    record = read_transcript(path)
    assert len(record.runs) == 2
    assert record.answers[-1] == Answered("train", 2, 0, "q2", "d")


def test_another_run_does_not_write_into_it(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="the transcript of another run"):
        Transcript(write(tmp_path / "t.jsonl"), {**RUN, "config": "d" * 64})


def test_a_kill_at_any_byte_loses_at_most_the_lines_in_progress(tmp_path: Path) -> None:
    whole = write(tmp_path / "t.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(ends[0], len(whole)):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole[:cut])
        Transcript(path, RUN).record("train", 9, "q9", {0: "z"}, {})
        record = read_transcript(path)
        complete = sum(end <= cut for end in ends)
        assert len(record.answers) + len(record.refusals) + len(record.runs) == complete + 2
        assert record.answers[-1].answer == "z"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_found_and_the_line_is_named(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "t.jsonl"
    path.unlink(missing_ok=True)
    raw = bytearray(write(path).read_bytes())
    place = data.draw(st.integers(0, len(raw) - 2))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(raw))
    with pytest.raises(FederationError, match=r"t\.jsonl:\d+: the transcript's chain is broken"):
        read_transcript(path)


def test_a_line_that_was_taken_out_or_moved_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in (lines[:1] + lines[2:], [lines[0], lines[2], lines[1], *lines[3:]], [*lines[:2], lines[1], *lines[2:]]):
        path.write_bytes(b"".join(changed))
        with pytest.raises(FederationError, match="chain is broken"):
            read_transcript(path)


def test_what_is_no_transcript_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(FederationError, match="not a transcript"):
        read_transcript(tmp_path / "empty")
    with pytest.raises(FederationError, match="cannot be read"):
        read_transcript(tmp_path / "missing")
