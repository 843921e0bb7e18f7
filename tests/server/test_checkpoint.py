"""What is saved is what is loaded, and a damaged or foreign checkpoint is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.durable import write_durably
from common.errors import FederationError
from server.checkpoint import FILE, Checkpoint, load, save

STATE = Checkpoint(
    config_hash="c" * 64,
    manifest_hash="m" * 64,
    vector=np.arange(5, dtype=np.float32),
    round=3,
    optimiser={"m": np.linspace(0, 1, 5), "v": np.full(5, 1e-300)},
    history=({"round": 0, "answered": [0, 1], "refused": {}}, {"round": 1, "answered": [1], "refused": {"0": "INTERNAL"}}),
)


def read(folder: Path) -> Checkpoint | None:
    return load(folder, config_hash=STATE.config_hash, manifest_hash=STATE.manifest_hash)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, STATE)
    back = read(tmp_path)
    assert back is not None
    assert (back.round, back.history) == (STATE.round, STATE.history)
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


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
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
    with pytest.raises(OSError, match="No space"):
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
