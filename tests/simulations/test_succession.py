"""A fourth silo joins after two rounds: the run goes on as another one, and both are in order for an auditor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.place import LEDGER, folder_of, make_simulated_roster
from common.config import Config, load, to_dict, to_run_config, to_toml
from common.errors import FederationError
from common.privacy.accountant import epsilon
from common.privacy.audit.evidence import load_evidence
from common.privacy.audit.verify import Verified, verify
from common.privacy.entries import Chain
from common.privacy.ledger import read_ledger
from common.privacy.plan import plan_for
from common.privacy.transcript import FILE as TRANSCRIPT
from common.privacy.transcript import read_transcript
from common.protocol import COUNT, config_hash
from server.app import start_of
from server.checkpoint import FILE, START, Checkpoint
from server.checkpoint import load as checkpoint_in
from server.exchange import Roster
from server.federation import FederationResult, run_federation
from server.succession import is_successor, succeed, why_not
from simulations.grid import InProcessGrid
from tests import tiny

ROUNDS = 5


def config(silos: int, **settings: Any) -> Config:
    """The first ``silos`` of four, which declare as many users whoever else is there."""
    declared = [20, 30, 25, 40][:silos]
    base = {"privacy__mode": "silo", "data__synthetic__users": 60, "training__local_steps": 1, "federation__rounds": ROUNDS}
    settled = tiny.config(**(base | {"partition__silos": silos, "federation__server_optimizer": "fedadam"} | settings))
    return load(to_dict(settled), {"federation.declared_users": declared})


def run(config: Config, folder: Path, home: Path, stop_after: int | None = None) -> FederationResult:
    """The coordinator's folder is the run's own; the silos keep their ledgers in ``home``, whatever run they are in."""
    from client.app import app

    silos = len(config.federation.declared_users)
    grid = InProcessGrid(app, silos, to_run_config(config) | {"app.out": str(home)})
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(to_toml(config))
    done: list[int] = []
    return run_federation(
        grid,
        config,
        start_of(config),
        Roster.of(config.federation),
        folder=folder,
        key_roster=make_simulated_roster(home, silos),
        on_round=lambda report: done.append(report.round),
        stop=lambda: bool(done) and done[-1] == stop_after,
    )


def state_in(folder: Path, config: Config) -> Checkpoint:
    found = checkpoint_in(folder, config_hash=config_hash(config))
    assert found is not None
    return found


def audited(folder: Path, home: Path) -> Verified:
    """The audit of a run's folder with the ledgers beside it."""
    shutil.copytree(home / "silos", folder / "silos", dirs_exist_ok=True)
    verified = verify(load_evidence(folder))
    assert verified.holds, "; ".join(f"{check.name}: {check.named}" for check in verified.broken)
    return verified


def ledger(home: Path, silo: int) -> Chain:
    return read_ledger(folder_of(home, silo) / LEDGER)


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FederationResult]:
    """Three silos for two rounds, then four for three."""
    path = tmp_path_factory.mktemp("joined")
    run(config(3), path / "first", path / "home", stop_after=2)
    (path / "first" / START).write_bytes(b"the adapter after the count")
    assert succeed(path / "first", path / "second", config(3), config(4)) == path / "second" / FILE
    return path, run(config(4), path / "second", path / "home")


def test_the_successor_goes_on_at_the_next_round_with_the_history_and_the_fourth_silo(
    joined: tuple[Path, FederationResult],
) -> None:
    path, result = joined
    assert [(entry["round"], entry["answered"]) for entry in result.history] == [
        *((number, [0, 1, 2]) for number in range(3)),
        *((number, [0, 1, 2, 3]) for number in range(3, 6)),
    ]
    assert result.round == ROUNDS
    assert (path / "second" / START).read_bytes() == b"the adapter after the count"


def test_it_begins_with_the_adapter_and_the_optimiser_of_its_predecessor(tmp_path: Path) -> None:
    run(config(3), tmp_path / "first", tmp_path / "home", stop_after=1)
    before = state_in(tmp_path / "first", config(3))
    succeed(tmp_path / "first", tmp_path / "second", config(3), config(4))
    after = state_in(tmp_path / "second", config(4))
    np.testing.assert_array_equal(after.vector, before.vector)
    assert set(after.optimiser) == set(before.optimiser) != set()
    for name, value in before.optimiser.items():
        np.testing.assert_array_equal(after.optimiser[name], value)
    assert (after.round, after.history, after.seed) == (1, before.history, before.seed)
    record = read_transcript(tmp_path / "first" / TRANSCRIPT)
    assert read_transcript(tmp_path / "second" / TRANSCRIPT).run["continues"] == {
        "config": config_hash(config(3)),
        "round": 1,
        "transcript": record.mark.hash,
        "length": record.mark.length,
        "runs": [config_hash(config(3))],
    }


def test_both_folders_pass_the_audit_and_nobody_is_charged_twice(joined: tuple[Path, FederationResult]) -> None:
    """Those who were there from the start pay for one whole run in two parts, the fourth silo for the rounds that it was in."""
    path, _ = joined
    for folder in ("first", "second"):
        audited(path / folder, path / "home")
    plan = plan_for(config(4), 20, 20)
    assert plan == plan_for(config(3), 20, 20)
    for silo in range(4):
        chain = ledger(path / "home", silo)
        charged = [what.released for _, what in chain.reservations]
        assert charged == (plan.all_events() if silo < 3 else plan.all_events()[3:])
        assert len({(what.run, what.question) for _, what in chain.reservations}) == len(charged)
    told = next(check for check in audited(path / "second", path / "home").checks if check.name == "budget").evidence
    assert f"silo-0: {epsilon(plan.all_events(), plan.delta):.6g}" in told
    assert {answer.action for answer in read_transcript(path / "second" / TRANSCRIPT).answers if answer.round == 0} == set()
    assert COUNT in {answer.action for answer in read_transcript(path / "first" / TRANSCRIPT).answers}


def test_a_successor_that_claims_less_than_both_runs_cost_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that goes on under half of the epsilon: its own rounds keep it, with those before them they do not."""
    half = config(4, privacy__epsilon=4.0)
    run(config(3), tmp_path / "first", tmp_path / "home", stop_after=2)
    monkeypatch.setattr("server.succession.why_not", lambda before, config: "")
    succeed(tmp_path / "first", tmp_path / "second", config(3), half)
    run(half, tmp_path / "second", tmp_path / "home")
    shutil.copytree(tmp_path / "home" / "silos", tmp_path / "second" / "silos")
    verified = verify(load_evidence(tmp_path / "second"))
    assert [check.name for check in verified.broken] == ["budget"]
    assert [named.ledger for named in verified.check("budget").named] == [f"silos/{silo}/ledger.sqlite" for silo in range(3)]


def test_a_successor_of_a_successor_names_both(joined: tuple[Path, FederationResult], tmp_path: Path) -> None:
    path, _ = joined
    later = load(
        to_dict(config(4)),
        {"partition.silos": 5, "federation.declared_users": [20, 30, 25, 40, 50], "name": "later", "federation.patience": 2.0},
    )
    succeed(path / "second", tmp_path / "third", config(4), later)
    assert read_transcript(tmp_path / "third" / TRANSCRIPT).predecessors == (config_hash(config(3)), config_hash(config(4)))


def test_it_may_be_called_again_after_a_crash_at_any_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    run(config(3), tmp_path / "first", tmp_path / "home", stop_after=1)
    succeed(tmp_path / "first", tmp_path / "whole", config(3), config(4))
    expected = state_in(tmp_path / "whole", config(4))
    (tmp_path / "second").mkdir()
    replace = os.replace
    for step in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                succeed(tmp_path / "first", tmp_path / "second", config(3), config(4))
        assert not (tmp_path / "second" / FILE).exists(), step
    assert os.replace is replace
    succeed(tmp_path / "first", tmp_path / "second", config(3), config(4))
    succeed(tmp_path / "first", tmp_path / "second", config(3), config(4))
    np.testing.assert_array_equal(state_in(tmp_path / "second", config(4)).vector, expected.vector)
    run(config(4), tmp_path / "second", tmp_path / "home")
    audited(tmp_path / "second", tmp_path / "home")


REFUSED = {
    "federation.rounds": (9, "it has another federation.rounds"),
    "privacy.epsilon": (20.0, "it has another privacy.epsilon"),
    "training.learning_rate": (0.5, "it has another training.learning_rate"),
    "run.seed": (1, "it has another run.seed"),
    "federation.declared_users": ([21, 30, 25, 40], "does not begin with the"),
    "aggregation.dropout": (0.2, "it has another aggregation.dropout"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_run_that_differs_in_anything_else_is_no_successor(key: str, tmp_path: Path) -> None:
    value, why = REFUSED[key]
    other = load(to_dict(config(4)), {key: value})
    assert not is_successor(config(3), other)
    assert why in why_not(config(3), other)
    with pytest.raises(FederationError, match="the run cannot go on from"):
        succeed(tmp_path / "first", tmp_path / "second", config(3), other)


def test_settings_of_waiting_may_change() -> None:
    waiting = {"federation.deadline": 5.0, "federation.stage_deadline": 2.0, "federation.quorum": 0.7, "federation.patience": 1.0}
    assert is_successor(config(3), load(to_dict(config(4)), waiting | {"federation.ask_budgets": True, "name": "second"}))
    assert is_successor(config(3), load(to_dict(config(3)), {"federation.round_attempts": 9}))


def test_a_smaller_silo_joins_only_where_delta_stays_what_it_was() -> None:
    smaller = load(to_dict(config(4)), {"federation.declared_users": [20, 30, 25, 12]})
    assert "set privacy.delta = 0.005" in why_not(config(3), smaller)
    assert is_successor(config(3), load(to_dict(smaller), {"privacy.delta": 0.005}))
    assert is_successor(load(to_dict(config(3)), {"privacy.mode": "none"}), load(to_dict(smaller), {"privacy.mode": "none"}))


def test_where_nothing_is_finished_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert succeed(tmp_path / "first", tmp_path / "second", config(3), config(4)) is None
    assert not (tmp_path / "second").exists()


def test_a_damaged_predecessor_is_refused(tmp_path: Path) -> None:
    run(config(3), tmp_path / "first", tmp_path / "home", stop_after=1)
    path = tmp_path / "first" / TRANSCRIPT
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(FederationError, match="was cut off or exchanged since the checkpoint"):
        succeed(tmp_path / "first", tmp_path / "second", config(3), config(4))
