"""Secure sums through Flower's own simulation: eight silos whose stages are played in whichever process, and one that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from client.place import folder_of, make_simulated_roster
from common.config import Config
from common.errors import ErrorCode
from common.model.resident import resident
from common.privacy.transcript import FILE, Record, read_transcript
from common.protocol import COUNT, METRICS, TRAIN
from server.app import app as server_app
from server.checkpoint import read_final, read_metrics
from simulations.flower import run_with_flower
from tests import tiny

N, FAILING = 8, 3


def config(**settings: Any) -> Config:
    run = {"data__synthetic__users": 96, "partition__silos": N, "aggregation__method": "secure", "federation__deadline": 60.0}
    return tiny.config(**(run | settings))


def in_process(config: Config, out: Path) -> np.ndarray:
    server_app(tiny.grid(config, out), tiny.server_context(config, out))
    return read_final(out)


def fails_at_its_vector(out: Path) -> None:
    """A file is in the way where silo 3 keeps its answers: it shows its keys and shares its secrets, and cannot go on."""
    make_simulated_roster(out, N)
    (folder_of(out, FAILING) / "answers").write_text("in the way")


def sums(out: Path, *expected: tuple[str, int]) -> Record:
    """The transcript: these sums, each at the first attempt, and all silos were there when it began."""
    record = read_transcript(out / FILE)
    assert [(one["action"], one["round"]) for one in record.sums] == list(expected)
    assert all(one["outcome"] == "sum" for one in record.sums)
    assert all(one["advertised"] == one["shared"] == list(range(N)) for one in record.sums)
    return record


def test_eight_silos_give_the_same_adapter_on_both_grids_and_every_sum_is_over_all(tmp_path: Path) -> None:
    settings = config(privacy__metrics_share=0.1)
    mine = in_process(settings, tmp_path / "in-process")
    theirs = run_with_flower(settings, tmp_path / "flower", N, processes=2)
    np.testing.assert_array_equal(mine, theirs)
    assert np.linalg.norm(mine - resident(settings).start) > 0.1
    for out in (tmp_path / "in-process", tmp_path / "flower"):
        record = sums(out, (COUNT, 0), (TRAIN, 1), (TRAIN, 2), (METRICS, 2))
        assert all(one["survivors"] == list(range(N)) for one in record.sums)
        assert not record.refusals
        assert len(record.answers) == 4 * N
    figures, others = (read_metrics(tmp_path / name) for name in ("in-process", "flower"))
    assert figures == others
    assert 0 < figures["hr"] <= 1


def test_a_silo_that_fails_after_it_has_shared_leaves_a_sum_over_seven_on_both_grids(tmp_path: Path) -> None:
    """Its masks are in the others' vectors, and come off with the shares of its key."""
    for name in ("in-process", "flower"):
        fails_at_its_vector(tmp_path / name)
    settings = config(federation__rounds=1, federation__backoff_rounds=0)
    mine = in_process(settings, tmp_path / "in-process")
    theirs = run_with_flower(settings, tmp_path / "flower", N, processes=2)
    np.testing.assert_array_equal(mine, theirs)
    for out in (tmp_path / "in-process", tmp_path / "flower"):
        record = sums(out, (COUNT, 0), (TRAIN, 1))
        assert all(one["survivors"] == [silo for silo in range(N) if silo != FAILING] for one in record.sums)
        assert {(entry["silo"], entry["code"]) for entry in record.refusals} == {(FAILING, ErrorCode.DATA_UNAVAILABLE.name)}
    whole = in_process(settings, tmp_path / "whole")
    assert not np.array_equal(mine, whole), "the silo that failed was in the sum"
