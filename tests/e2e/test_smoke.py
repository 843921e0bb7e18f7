"""The smoke scenario through both grids: one algorithm, two ways for its messages, the same final adapter bit for bit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psutil
import pytest

from client.place import LEDGER, folder_of, make_simulated_roster
from common.config import Config
from common.data.population import enrolled
from common.errors import FederationError
from common.model.resident import resident
from server.app import app as server_app
from server.checkpoint import read_final
from simulations.flower import run_with_flower
from simulations.scenario import load_scenario
from tests import tiny


def smoke(*overrides: str) -> Config:
    return enrolled(load_scenario("smoke", overrides=["run.device=cpu", *overrides]))


def in_process(config: Config, out: Path) -> np.ndarray:
    server_app(tiny.grid(config, out), tiny.server_context(config, out))
    return read_final(out)


@pytest.fixture
def leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every process that inherits this mark has ended when the test is over."""
    mark = uuid4().hex
    monkeypatch.setenv("SILOREC_TEST_MARK", mark)
    yield
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("SILOREC_TEST_MARK") == mark:
                left.append(process.cmdline())
    assert not left


def test_both_grids_give_the_same_final_adapter(tmp_path: Path, leaves_no_process: None) -> None:
    config = smoke()
    mine = in_process(config, tmp_path / "in-process")
    theirs = run_with_flower(config, tmp_path / "flower", 3, processes=2)
    assert mine.shape == (resident(config).manifest.n_parameters,)
    np.testing.assert_array_equal(mine, theirs)
    assert np.linalg.norm(mine - resident(config).start) > 0.1


def test_the_final_adapter_follows_from_the_seed(tmp_path: Path) -> None:
    first, again = (in_process(smoke(), tmp_path / name) for name in "ab")
    np.testing.assert_array_equal(first, again)
    other = in_process(smoke("run.seed=1"), tmp_path / "c")
    assert not np.array_equal(first, other)


def test_a_private_run_charges_each_silos_ledger_and_is_not_repeatable(tmp_path: Path) -> None:
    from common.privacy.ledger import read_ledger
    from common.privacy.plan import plan_for

    config = smoke("privacy.mode=silo", "training.sampling_probability=1.0", "federation.rounds=1")
    first, second = (in_process(config, tmp_path / name) for name in "ab")
    assert not np.array_equal(first, second)
    declared = config.federation.declared_users
    for silo, users in enumerate(declared):
        chain = read_ledger(tmp_path / "a" / "silos" / str(silo) / "ledger.sqlite")
        assert [what.released for _, what in chain.reservations] == plan_for(config, users, min(declared)).all_events()


@pytest.mark.slow
def test_a_run_that_fails_says_why_and_leaves_no_process(tmp_path: Path, leaves_no_process: None) -> None:
    """The place of the first silo's ledger is taken by a folder, so it refuses; a quorum of all cannot be had."""
    config = smoke("federation.quorum=1.0", "federation.deadline=20", "federation.rounds=1")
    make_simulated_roster(tmp_path, 3)
    (folder_of(tmp_path, 0) / LEDGER).mkdir()
    with pytest.raises(FederationError, match=r"flwr run ended as finished:failed(.|\n)*silo 0: LEDGER_UNAVAILABLE"):
        run_with_flower(config, tmp_path, 3)


def test_ctrl_c_ends_what_was_started(tmp_path: Path, leaves_no_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(flower: Any, run_id: str, until: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.flower.Flower.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_with_flower(smoke(), tmp_path, 3)
