"""``silorec bench deployment``: what it makes of a run's events, and the parts that it measures alone; whole runs: tests/e2e."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.consortium.home import CoordinatorHome
from common.errors import ConfigError
from simulations.bench import deployed_parts, goals_of, run_bench
from simulations.bench.deployed_parts import message_cost, request_cost
from simulations.bench.deployed_rounds import Deployed, Timed, timed
from simulations.bench.deployment import _compared, _traffic
from simulations.trial.consortium import Federation
from simulations.trial.faults import COORDINATOR, Endured, Fault, Planned
from simulations.trial.hosts import Host
from simulations.watch import Silent


def stage(round: int, name: str, seconds: float) -> dict[str, Any]:
    return {"event": "stage", "round": round, "stage": f"query.{name}", "seconds": seconds}


def test_rounds_and_stages_are_medians_from_the_second_round_on() -> None:
    events: list[dict[str, Any]] = [{"event": "run", "rounds": 4}]
    for round, seconds in enumerate((50.0, 40.0, 5.0, 7.0, 6.0)):
        events += [
            stage(round, "mask", seconds / 2),
            stage(round, "sign", 1.0),
            {"event": "round", "round": round, "seconds": seconds},
        ]
    events += [stage(4, "sign", 2.0)]  # tried again
    found = timed(events, np.zeros(1, np.float32))
    assert found.seconds == 6.0
    assert found.stages == {"mask": 3.0, "sign": 1.0}
    assert found.beside_stages == 2.0


def test_a_message_is_as_large_as_its_vector_and_comes_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployed_parts, "MESSAGES", 2)
    small = message_cost(None, tmp_path)
    large = message_cost(np.arange(5000, dtype=np.float32), tmp_path)
    assert 0 < small.size < 2000
    assert 20_000 < large.size - small.size < 22_000
    assert min(small.on_disk, small.in_memory, large.on_disk, large.in_memory) > 0
    assert large.both == large.on_disk + large.in_memory


def test_a_request_is_asked_of_the_coordinators_own_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployed_parts, "KEPT", 5)
    monkeypatch.setattr(deployed_parts, "NEW", 3)
    trial = Federation(tmp_path, {"coordinator": Host("coordinator", "127.0.0.1")}, ())
    trial.found()
    for secure in (True, False):
        found = request_cost(trial.coordinator, secure=secure)
        assert 0 < found.kept < 1
        assert 0 < found.new < 1
    with pytest.raises(OSError, match=r"cannot find|No such file|tls\.pem|authority"):
        request_cost(CoordinatorHome(tmp_path / "nobody"), secure=True)


def test_what_goals_speak_of_is_told(tmp_path: Path) -> None:
    alone = Timed(2.0, {"mask": 1.5}, np.ones(3, np.float32))
    spread = Deployed(Timed(5.0, {"mask": 4.0}, np.ones(3, np.float32)), {"mask": 1.0}, {}, 30_000.0, 20_000.0)
    figures = [*_compared("tiny", alone, spread), *_compared("minilm", alone, spread), *_traffic(spread, None, 20_000, 5_000_000)]
    values = {figure.name: figure.value for figure in figures}
    assert values["tiny: the same bits"] == 1.0
    assert values["tiny: deployed over in-process"] == 2.5
    assert values["whole model over what a silo sends and gets"] == 200.0
    told_under_faults = {"rounds finished under faults", "the audit accepts the ledgers under faults"}
    assert {goal.figure for goal in goals_of("deployment")} <= set(values) | told_under_faults
    with pytest.raises(ConfigError, match="it has: overhead, endurance"):
        run_bench("deployment", tmp_path, Silent(), only="all")


def test_a_fault_costs_what_rounds_take_longer_than_rounds_without() -> None:
    faults = tuple(Planned(3, whom, fault, 0.0, 1.0) for whom, fault in (("a", Fault.POWER), (COORDINATOR, Fault.COORDINATOR)))
    endured = Endured(finished_round=14, calm=2.0, faulty=26.0, rounds=10, faults=faults, answered={})
    assert endured.lost == 3.0
    assert endured.in_words() == "coordinator killed 1, power cut 1"
