"""The coordinator dies at every stage of a secure run and is started anew: nothing is lost, and nothing is charged twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

import server.federation
from client.place import LEDGER, folder_of
from common.config import Config, to_toml
from common.privacy.audit.evidence import load_evidence
from common.privacy.audit.verify import verify
from common.privacy.ledger import read_ledger
from common.privacy.plan import plan_for
from common.protocol import ADVERTISE, ENROL, MASK, REVEAL, SHARE, SIGN
from common.secagg.roster import ROSTER, read_roster
from server.app import start_of
from server.exchange import Roster
from server.federation import FederationResult, run_federation
from simulations.grid import Faults
from tests import tiny

N = 3
STAGES = (ENROL, ADVERTISE, SHARE, MASK, SIGN, REVEAL)


class Killed(BaseException):
    """As SIGKILL: no handler of ordinary errors sees it."""


def config(**settings: Any) -> Config:
    """Three silos, so a sum takes two."""
    return tiny.config(**({"partition__silos": N, "data__synthetic__users": 60, "training__local_steps": 1} | settings))


def run(config: Config, out: Path, faults: Faults | None = None) -> FederationResult:
    grid = tiny.grid(config, out, faults=faults)
    (out / "config.toml").write_text(to_toml(config))
    roster = Roster.of(config.federation)
    return run_federation(grid, config, start_of(config), roster, folder=out, key_roster=read_roster(out / ROSTER))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> FederationResult:
    return run(config(), tmp_path_factory.mktemp("undisturbed"))


def dies_at(stage: str, number: int, silo: int) -> Faults:
    """When ``silo`` is about to be asked for ``stage`` of round ``number``; those before it have answered."""

    def fault(asked: int, message: Message) -> None:
        of_round = message.content["request"].get("round", 0)
        if (message.metadata.message_type, of_round, asked) == (stage, number, silo):
            raise Killed

    return fault


def killed(settings: Config, out: Path, faults: Faults) -> None:
    with pytest.raises(Killed):
        run(settings, out, faults)


@pytest.mark.parametrize(("stage", "number"), [(ENROL, 0), *((stage, number) for stage in STAGES[1:] for number in (0, 2))])
def test_killed_in_a_stage_and_started_anew_it_ends_with_the_same_adapter(
    tmp_path: Path, undisturbed: FederationResult, stage: str, number: int
) -> None:
    """All silos are there again, so sums are over the same ones; of the kill only the transcript tells."""
    for silo in (0, 2):
        out = tmp_path / str(silo)
        killed(config(), out, dies_at(stage, number, silo))
        again = run(config(), out)
        np.testing.assert_array_equal(again.vector, undisturbed.vector)
        assert again.history == undisturbed.history


@pytest.fixture
def around_saving(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], None]:
    """``around_saving(number, before)``: die before or after the checkpoint of round ``number`` is written."""
    real = server.federation.save

    def plan(number: int, before: bool) -> None:
        def save(folder: Path, state: Any) -> Path:
            if state.round == number and before:
                raise Killed
            path = real(folder, state)
            if state.round == number:
                raise Killed
            return path

        monkeypatch.setattr(server.federation, "save", save)

    return plan


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_killed_around_a_checkpoint_and_started_anew_it_ends_with_the_same_adapter(
    tmp_path: Path,
    undisturbed: FederationResult,
    around_saving: Callable[[int, bool], None],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    before: bool,
) -> None:
    around_saving(number, before)
    with pytest.raises(Killed):
        run(config(), tmp_path)
    monkeypatch.undo()
    again = run(config(), tmp_path)
    np.testing.assert_array_equal(again.vector, undisturbed.vector)
    assert again.history == undisturbed.history


def test_however_often_it_is_killed_in_mode_silo_no_ledger_is_charged_twice_for_a_question(
    tmp_path: Path, around_saving: Callable[[int, bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, killed at every stage of the count and of both rounds and around every checkpoint, 22 times in all."""
    settings = config(privacy__mode="silo")
    for number in range(3):
        for stage in STAGES:
            if number == 0 or stage != ENROL:
                killed(settings, tmp_path, dies_at(stage, number, 1))
        for before in (True, False):
            around_saving(number, before)
            with pytest.raises(Killed):
                run(settings, tmp_path)
            monkeypatch.undo()
    run(settings, tmp_path)
    declared = settings.federation.declared_users
    for silo in range(N):
        chain = read_ledger(folder_of(tmp_path, silo) / LEDGER)
        assert [what.released for _, what in chain.reservations] == plan_for(settings, declared[silo], min(declared)).all_events()
        assert not chain.open_reservations
    verified = verify(load_evidence(tmp_path))
    assert verified.holds, "; ".join(f"{check.name}: {check.named}" for check in verified.broken)
