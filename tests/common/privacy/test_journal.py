"""The journal is on the disk before anything is released, survives a crash at any byte, and never forgets."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import PrivacyError
from common.privacy.events import Event, GaussianCount, PoissonGaussianSteps, Unprotected
from common.privacy.journal import Journal

COUNT = GaussianCount(3.0, 1.0)
STEPS = [PoissonGaussianSteps(1.1, 0.05, 4, 1.0, r) for r in range(1, 7)]


def filled(path: Path, events: list[Event]) -> bytes:
    journal = Journal(path)
    for event in events:
        journal.charge(event)
    return path.read_bytes()


def test_what_was_charged_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "journal.jsonl"
    events: list[Event] = [COUNT, *STEPS, Unprotected("update", 7)]
    for event in events:
        Journal(path).charge(event)  # another process each time
    assert list(Journal(path).events) == events
    lines = path.read_text().splitlines()
    assert [json.loads(line)["format"] for line in lines] == [1] * len(events)


def test_epsilon_goes_on_over_rounds_and_restarts(tmp_path: Path) -> None:
    """Composed step by step with dp_accounting, to 1e-6."""
    path = tmp_path / "journal.jsonl"
    oracle = rdp.RdpAccountant()
    Journal(path).charge(COUNT)
    oracle.compose(dp_accounting.GaussianDpEvent(3.0))
    spent = [Journal(path).epsilon(1e-4)]
    for event in STEPS[:3]:
        Journal(path).charge(event)
        for _ in range(4):
            oracle.compose(dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(1.1)))
        spent.append(Journal(path).epsilon(1e-4))
        assert spent[-1] == pytest.approx(oracle.get_epsilon(1e-4), abs=1e-6)
    assert all(a < b for a, b in itertools.pairwise(spent))


def test_no_file_means_nothing_spent_and_reading_makes_none(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert Journal(path).events == ()
    assert Journal(path).epsilon(1e-5) == 0.0
    assert not path.exists()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_crash_at_any_byte_loses_at_most_the_charge_in_progress(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    events: list[Event] = [COUNT, *STEPS[:2]]
    whole = filled(path, events)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    journal = Journal(path)
    assert list(journal.events) == events[:complete]
    journal.charge(STEPS[5])
    assert list(Journal(path).events) == [*events[:complete], STEPS[5]]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x00\x00\n",
        b"\n",
        b"[]\n",
        b"3\n",
        b"{}\n",
        b'{"format": 2, "kind": "unprotected", "what": "x", "round": 0}\n',
        b'{"format": 1, "kind": "free lunch"}\n',
        b'{"format": 1, "kind": "gaussian-count", "noise_multiplier": -1.0, "max_norm": 1.0, "round": 0}\n',
        b'{"format": 1, "kind": "gaussian-count", "noise_multiplier": NaN, "max_norm": 1.0, "round": 0}\n',
        b"\xff\xfe\n",
    ],
)
def test_a_line_that_is_no_event_stops_the_silo(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    first, second = filled(path, [COUNT, STEPS[0]]).splitlines(keepends=True)
    path.write_bytes(first + garbage + second)
    with pytest.raises(PrivacyError, match=r"journal\.jsonl:2: not a privacy event"):
        Journal(path)
    assert path.read_bytes() == first + garbage + second


def test_a_folder_that_cannot_be_written_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "journal.jsonl", tmp_path / "file" / "deeper" / "journal.jsonl"):
        with pytest.raises(PrivacyError, match=r"journal\.jsonl: the (charge could not be written|journal cannot be read)"):
            Journal(path).charge(COUNT)
    with pytest.raises(PrivacyError, match="the journal cannot be read"):
        Journal(tmp_path)


def test_a_full_disk_refuses_and_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.charge(COUNT)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(PrivacyError, match=r"could not be written \(No space left on device\); nothing was released"):
            journal.charge(STEPS[0])
    assert list(journal.events) == [COUNT]


def test_a_charge_is_on_the_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is synced after it was written, and so is the new entry in the folder."""
    path = tmp_path / "new" / "journal.jsonl"
    synced: list[tuple[str, int]] = []
    real = os.fsync

    def watched(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_size))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    Journal(path).charge(COUNT)
    size = path.stat().st_size
    assert (str(path), size) in synced
    assert [name for name, _ in synced] == [str(tmp_path), str(path), str(path.parent)]


def test_another_process_cannot_charge_unseen(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path, [COUNT])
    one, other = Journal(path), Journal(path)
    one.charge(STEPS[0])
    with pytest.raises(PrivacyError, match="has changed since it was read; read it again"):
        other.charge(STEPS[1])
    assert list(other.events) == [COUNT]
    assert list(Journal(path).events) == [COUNT, STEPS[0]]


def test_two_fresh_journals_on_one_path_do_not_overwrite_each_other(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    one, other = Journal(path), Journal(path)
    one.charge(COUNT)
    with pytest.raises(PrivacyError, match="has changed"):
        other.charge(STEPS[0])
    assert list(Journal(path).events) == [COUNT]


@pytest.mark.parametrize("left", [b"", b'{"format": 1'])
def test_a_journal_that_was_cut_or_taken_away_meanwhile_refuses(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path, [COUNT])
    journal = Journal(path)
    path.write_bytes(left)
    with pytest.raises(PrivacyError, match="has changed"):
        journal.charge(STEPS[0])
    path.unlink()
    with pytest.raises(PrivacyError, match="has changed"):
        journal.charge(STEPS[0])


def _charge_in_a_race(path: Path, wanted: int) -> None:
    done = 0
    while done < wanted:
        try:
            Journal(path).charge(COUNT)
            done += 1
        except PrivacyError as error:
            if "has changed" not in str(error):
                raise


def test_processes_that_race_lose_no_charge(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=_charge_in_a_race, args=(path, 15)) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0] * 4
    assert len(Journal(path).events) == 60


def test_only_the_operator_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path, [COUNT])
    assert path.stat().st_mode & 0o077 == 0
