"""What is saved is what is loaded, and a damaged or foreign checkpoint is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.durable import write_durably
from common.errors import FederationError
from common.privacy.transcript import FILE as TRANSCRIPT
from common.privacy.transcript import Mark, Transcript, read_transcript
from server.checkpoint import FILE, Checkpoint, load, save, save_final
from tests.server.test_survival import run

STATE = Checkpoint(
    config_hash="c" * 64,
    manifest_hash="m" * 64,
    vector=np.arange(5, dtype=np.float32),
    round=3,
    optimiser={"m": np.linspace(0, 1, 5), "v": np.full(5, 1e-300)},
    seed=7,
    transcript=Mark(12, "a" * 64),
    history=({"round": 0, "answered": [0, 1], "refused": {}}, {"round": 1, "answered": [1], "refused": {"0": "INTERNAL"}}),
)


def read(folder: Path) -> Checkpoint | None:
    return load(folder, config_hash=STATE.config_hash, manifest_hash=STATE.manifest_hash)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, STATE)
    back = read(tmp_path)
    assert back is not None
    assert (back.round, back.history) == (STATE.round, STATE.history)
    assert (back.seed, back.transcript) == (7, Mark(12, "a" * 64))
    assert back.vector.dtype == np.float32
    np.testing.assert_array_equal(back.vector, STATE.vector)
    assert set(back.optimiser) == {"m", "v"}
    for name, value in STATE.optimiser.items():
        assert back.optimiser[name].dtype == np.float64
        np.testing.assert_array_equal(back.optimiser[name], value)


@given(vector=arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_any_vector_comes_back(tmp_path_factory: pytest.TempPathFactory, vector: np.ndarray) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    save(folder, replace(STATE, vector=vector, optimiser={}))
    back = read(folder)
    assert back is not None
    assert back.vector.tobytes() == vector.tobytes()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert read(tmp_path) is None


@pytest.mark.parametrize("keep", [*range(0, 700, 23), -1])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    path = save(tmp_path, STATE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FederationError, match="damaged checkpoint"):
        read(tmp_path)


@pytest.mark.parametrize(("field", "word"), [("config_hash", "another configuration"), ("manifest_hash", "another model")])
def test_a_foreign_checkpoint_is_refused(tmp_path: Path, field: str, word: str) -> None:
    save(tmp_path, replace(STATE, **{field: "x" * 64}))
    with pytest.raises(FederationError, match=word):
        read(tmp_path)


def test_a_write_that_fails_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, STATE)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        FederationError, match=r"round 4 cannot be written \(No space left on device\); what was there before is whole"
    ):
        save(tmp_path, replace(STATE, round=4))
    monkeypatch.undo()
    back = read(tmp_path)
    assert back is not None
    assert back.round == 3
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_what_is_written_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace_ = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("fsync"), fsync(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace_(a, b))[1])
    write_durably(tmp_path / "file", b"content")
    assert done == ["fsync", "rename", "fsync"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_checkpoint_of_format_1_is_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    facts = {"format": 1, "round": 3, "config_hash": STATE.config_hash, "manifest_hash": STATE.manifest_hash, "history": []}
    save_file({"vector": STATE.vector, "optimiser.m": np.ones(5)}, tmp_path / FILE, {"silorec": json.dumps(facts)})
    back = read(tmp_path)
    assert back is not None
    assert (back.round, back.seed, back.transcript) == (3, None, None)
    np.testing.assert_array_equal(back.vector, STATE.vector)
    save_file({"vector": STATE.vector}, tmp_path / FILE, {"silorec": json.dumps(facts | {"format": 3})})
    with pytest.raises(FederationError, match="not a checkpoint of format 1 to 2"):
        read(tmp_path)


# The power fails


class PowerCut(BaseException):
    """Nothing after this is on the disk, and nobody can catch it."""


@contextmanager
def dying_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[list[str]]:
    """The ``step``-th call that brings something to the disk is the last thing that this process does, or does not do."""
    done: list[str] = []

    def around(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            if len(done) == step:
                raise PowerCut
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        for name in ("fsync", "replace", "open"):
            patched.setattr(os, name, around(name))
        yield done


def test_after_a_power_cut_at_any_write_there_is_the_old_state_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, STATE)
    new = replace(STATE, round=4, vector=STATE.vector + 1)
    with dying_at(monkeypatch, 0) as whole:
        save(tmp_path / "elsewhere", new)
    assert whole.count("fsync") == 2
    seen = set()
    for step in range(1, len(whole) + 1):
        save(tmp_path, STATE)
        with dying_at(monkeypatch, step), pytest.raises(PowerCut):
            save(tmp_path, new)
        back = read(tmp_path)
        assert back is not None
        assert (back.round, back.vector[0]) in {(3, 0.0), (4, 1.0)}
        seen.add(back.round)
    assert seen == {3, 4}


def test_a_run_that_loses_power_at_any_write_of_any_round_ends_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(rounds=2)
    with dying_at(monkeypatch, 0) as steps:
        run(folder=tmp_path / "whole", rounds=2)
    assert steps.count("fsync") > 8
    for step in range(1, len(steps) + 1):
        folder = tmp_path / str(step)
        with dying_at(monkeypatch, step), pytest.raises(PowerCut):
            run(folder=folder, rounds=2)
        again = run(folder=folder, rounds=2)
        np.testing.assert_array_equal(again.vector, whole.vector)
        assert again.history == whole.history
        read_transcript(folder / TRANSCRIPT)


@pytest.mark.parametrize("keep", [0.2, 0.7, 0.99])
def test_a_transcript_that_was_cut_off_since_the_checkpoint_is_refused(tmp_path: Path, keep: float) -> None:
    run(folder=tmp_path, rounds=2)
    path = tmp_path / TRANSCRIPT
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: int(keep * len(lines))]))
    with pytest.raises(FederationError, match=r"it was cut off or exchanged\. Restore the transcript of this run"):
        run(folder=tmp_path, rounds=2)


def test_a_transcript_of_the_same_run_that_is_another_one_is_refused(tmp_path: Path) -> None:
    run(folder=tmp_path / "a", rounds=2)
    run(folder=tmp_path / "b", rounds=2)
    config = read_transcript(tmp_path / "b" / TRANSCRIPT).run
    (tmp_path / "b" / TRANSCRIPT).unlink()
    other = Transcript(tmp_path / "b" / TRANSCRIPT, {"config": config["config"]}, clock=lambda: 5.0)
    for _ in range(20):
        other.record("train", 1, "0" * 64, {0: "1" * 64}, {})
    shutil.copy(tmp_path / "b" / TRANSCRIPT, tmp_path / "a" / TRANSCRIPT)
    with pytest.raises(FederationError, match="does not hold line"):
        run(folder=tmp_path / "a", rounds=2)


def test_a_transcript_that_has_gone_on_since_the_checkpoint_is_fine(tmp_path: Path) -> None:
    """Answers to the round that the kill fell into; they are kept, for the silos have been charged for them."""
    run(folder=tmp_path, rounds=1)
    path = tmp_path / TRANSCRIPT
    before = read_transcript(path)
    Transcript(path, {"config": before.run["config"]}).record("train", 2, "0" * 64, {0: "1" * 64}, {})
    run(folder=tmp_path, rounds=1)
    after = read_transcript(path)
    assert after.holds(before.mark)
    assert len(after.answers) == len(before.answers) + 1


# The disk is full


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files whose name holds one of these words cannot be brought to the disk."""
    words: list[str] = []
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if any(word in os.readlink(f"/proc/self/fd/{descriptor}") for word in words):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    return words


@pytest.mark.parametrize("file", [FILE, TRANSCRIPT])
def test_a_full_disk_ends_the_run_with_a_sentence_and_the_checkpoint_stays(
    tmp_path: Path, full_disk: list[str], file: str
) -> None:
    def fill(report: Any) -> None:
        if report["event"] == "round" and report["round"] == 1:
            full_disk.append(file)

    with pytest.raises(FederationError, match=rf"{file}: .*cannot be written \(No space left on device\).* start again"):
        run(folder=tmp_path, tell=fill)
    full_disk.clear()
    told: list[Any] = []
    resumed = run(folder=tmp_path, tell=told.append)
    assert told[0]["from_round"] == 2
    np.testing.assert_array_equal(resumed.vector, run().vector)
    full_disk.append("final")
    with pytest.raises(FederationError, match="the last adapter cannot be written"):
        save_final(tmp_path, STATE)


def test_a_transcript_that_could_not_be_written_goes_on_where_it_was(tmp_path: Path, full_disk: list[str]) -> None:
    transcript = Transcript(tmp_path / TRANSCRIPT, {"config": "c"})
    transcript.record("train", 1, "0" * 64, {0: "1" * 64, 1: "2" * 64}, {})
    before = transcript.mark
    full_disk.append(TRANSCRIPT)
    with pytest.raises(FederationError, match="No space left"):
        transcript.record("train", 2, "0" * 64, {0: "3" * 64}, {})
    assert transcript.mark == before
    full_disk.clear()
    transcript.record("train", 2, "0" * 64, {0: "4" * 64}, {})
    assert [answer.answer[0] for answer in read_transcript(tmp_path / TRANSCRIPT).answers] == ["1", "2", "4"]
