"""Faults at random in every round, of silos and coordinator: the run ends with all its rounds, and no ledger says too little."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.privacy.ledger import read_ledger
from simulations.bench.deployment import MORE_SILOS, outlive
from simulations.trial.consortium import federation
from simulations.trial.faults import COORDINATOR, OF_A_SILO, Fault, drawn
from simulations.trial.hosts import hosts
from tests.e2e.deployed import UNPROTECTED


@pytest.mark.slow
def test_all_rounds_are_finished_under_faults_and_the_audit_accepts_the_ledgers(tmp_path: Path) -> None:
    with hosts(["coordinator", *MORE_SILOS]) as machines, federation(tmp_path, machines, MORE_SILOS, policy=UNPROTECTED) as trial:
        found = outlive(trial, 6, calm=2, seed=8)
        assert found.endured.finished_round == 8
        assert found.accepted
        assert {planned.fault for planned in found.endured.faults} & set(OF_A_SILO)
        told = found.endured.answered
        assert all(len(silos) >= 3 for silos in told.values())
        for number, name in enumerate(MORE_SILOS):
            charged = [what.round for _, what in read_ledger(trial.silo(name).ledger).reservations if what.action == "train"]
            assert len(charged) == len(set(charged)), "no round is charged twice"
            assert {round for round, silos in told.items() if number in silos and round > 0} <= set(charged)


def test_faults_are_the_same_for_the_same_seed_and_as_frequent_as_said() -> None:
    """Of 5,000 draws with chance 0.2, 1,000 +- 28: six standard deviations are a false alarm in 10^9."""
    rounds = range(1000)
    found = drawn(rounds, MORE_SILOS, seed=3)
    assert found == drawn(rounds, MORE_SILOS, seed=3)
    assert found != drawn(rounds, MORE_SILOS, seed=4)
    of_silos = [planned for planned in found if planned.whom != COORDINATOR]
    assert 1000 - 170 < len(of_silos) < 1000 + 170
    assert {planned.fault for planned in of_silos} == set(OF_A_SILO)
    killed = [planned for planned in found if planned.whom == COORDINATOR]
    assert {planned.fault for planned in killed} == {Fault.COORDINATOR}
    assert 10 < len(killed) < 95
