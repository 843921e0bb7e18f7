"""``silorec bench distributed`` measures what its goals speak of, on a federation of seconds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import simulations.scenario
from common.config import load, to_dict
from common.model.resident import resident
from common.privacy.plan import plan_for
from simulations.bench import goals_of, run_bench
from simulations.bench.distributed import noise_of
from simulations.compare import AS_MODE_SILO
from simulations.watch import Silent
from tests import tiny

SETTINGS: dict[str, Any] = {
    "privacy__mode": "distributed",
    "partition__silos": 4,
    "federation__declared_users": (10, 10, 10, 10),
    "federation__server_optimizer": "adam",
    "federation__server_learning_rate": 0.01,
    "training__local_steps": 1,
    "aggregation__dropout": 0.0,
    "aggregation__corrupt": 0.0,
}


def test_the_sum_has_the_noise_of_one_silo_instead_of_four(tmp_path: Path) -> None:
    """Standard deviations over n parameters are off by ``1/√(2n)`` themselves; false alarm about once in 100 million each."""
    config = tiny.config(**SETTINGS)
    slack = 5.8 / math.sqrt(2 * resident(config).manifest.n_parameters)
    plan = plan_for(config, 10, 10)
    one = plan.noise_multiplier * plan.max_grad_norm / (config.training.sampling_probability * 40)
    shared = noise_of(config, tmp_path / "distributed")
    apart = noise_of(load(to_dict(config), AS_MODE_SILO), tmp_path / "silo")
    assert shared == pytest.approx(one, rel=slack + 0.002)  # a thousandth more than needed is added for floating point
    assert apart == pytest.approx(one * math.sqrt(4), rel=slack)


def test_every_goal_is_about_a_figure_that_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulations.scenario, "load_scenario", lambda name: tiny.config(**SETTINGS))
    report = run_bench("distributed", tmp_path, Silent())
    values = {figure.name: figure.value for figure in report.figures}
    assert len(values) == len(report.figures)
    assert {goal.figure for goal in report.goals} <= set(values)
    assert goals_of("distributed")
    assert values["ndcg@10, distributed over silo"] == values["ndcg@10, distributed"] / values["ndcg@10, silo"]
    assert values["ndcg@10, distributed before training"] > 0
    assert json.loads((tmp_path / "distributed.json").read_text())["bench"] == "distributed"
