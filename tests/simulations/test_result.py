"""What a run of mode distributed says of its privacy is what its ledgers give, and an auditor finds the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting import rdp
from typer.testing import CliRunner

from client.place import LEDGER
from common.config import load
from common.errors import PrivacyError
from common.privacy.audit.evidence import load_evidence
from common.privacy.audit.report import audit
from common.privacy.audit.verify import verify
from common.privacy.events import DistributedCount, DistributedStep
from common.privacy.filter import WHOLE_ORDERS
from common.privacy.ledger import read_ledger
from common.privacy.plan import plan_for
from common.secagg.rules import Rules
from simulations.attacks.cli import attack_app
from simulations.result import spent_in, statement
from tests.simulations import made_up_run, small_run

SHARED = ("privacy.mode=distributed", "partition.silos=4", "training.local_steps=1", "aggregation.corrupt=0.25")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four silos: three at least in a sum, one may collude, two are counted on."""
    return small_run.run(tmp_path_factory.mktemp("shared"), *SHARED)


def by_dp_accounting(events: list[Any], delta: float, shares: int) -> float:
    """At whole orders, with the noise of ``shares`` equal parts of what the events say."""
    accountant = rdp.RdpAccountant(orders=list(WHOLE_ORDERS))
    for event in events:
        one = dp_accounting.GaussianDpEvent(event.noise_multiplier / math.sqrt(shares))
        sampled = isinstance(event, DistributedStep)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(event.sampling_probability, one) if sampled else one)
    return float(accountant.get_epsilon(delta))


def charged(folder: Path, silo: int) -> list[Any]:
    return [what.released for _, what in read_ledger(folder / "silos" / str(silo) / LEDGER).reservations]


def test_both_figures_are_those_of_the_ledgers(shared: Path) -> None:
    told = small_run.result(shared)
    assert (told["mode"], told["honest_silos"], told["colluding_silos"]) == ("distributed", 2, 1)
    for silo, row in enumerate(told["silos"]):
        events = charged(shared, silo)
        assert [type(event) for event in events] == [DistributedCount, DistributedStep, DistributedStep]
        assert {event.honest for event in events} == {2}
        assert row["epsilon"] == pytest.approx(by_dp_accounting(events, told["delta"], 1), rel=1e-9)
        assert row["epsilon_if_others_collude"] == pytest.approx(by_dp_accounting(events, told["delta"], 2), rel=1e-9)
    assert told["epsilon"] == max(row["epsilon"] for row in told["silos"])
    assert told["epsilon_if_others_collude"] == max(row["epsilon_if_others_collude"] for row in told["silos"])
    assert 7.9 < told["epsilon"] <= 8.0 < told["epsilon_if_others_collude"]
    assert told["epsilon_pld"] < told["epsilon_pld_if_others_collude"] < told["epsilon_if_others_collude"]


def test_the_result_has_the_documented_keys(shared: Path) -> None:
    told, expected = small_run.result(shared), made_up_run.made_up(mode="distributed")[0]
    assert told.keys() == expected.keys()
    assert {frozenset(row) for row in told["silos"]} == {frozenset(expected["silos"][0])}
    documented = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    for key in told.keys() - made_up_run.made_up()[0].keys():
        assert f"`{key}`" in documented


def test_the_statement_says_both_figures_and_whom_they_hold_against(shared: Path) -> None:
    told = small_run.result(shared)
    spent, left = (math.ceil(100 * told[key] - 1e-7) / 100 for key in ("epsilon", "epsilon_if_others_collude"))
    assert f"with epsilon = {spent:.2f} and" in told["statement"]
    assert "sums with the noise of at least 2 honest silos in them, and with at most 1 other silo colluding" in told["statement"]
    assert f"If all other silos collude with the coordinator, epsilon is {left:.2f}" in told["statement"]
    assert "everybody who sees what leaves the silo" not in told["statement"]


def test_a_real_run_of_mode_distributed_passes_the_audit(shared: Path) -> None:
    verified = verify(load_evidence(shared))
    assert verified.holds, [str(named) for check in verified.broken for named in check.named]
    assert {check.name for check in verified.skipped} == {"countersignatures"}
    document, told = audit(load_evidence(shared)), small_run.result(shared)
    assert document["holds"], document["verdict"]
    for key in ("epsilon", "epsilon_pld", "epsilon_if_others_collude", "epsilon_pld_if_others_collude", "honest_silos"):
        assert document["claims"][key] == pytest.approx(told[key], rel=1e-12)
    assert document["claims"]["sharing"] in told["statement"]


@pytest.mark.parametrize("kind", ["all", "canaries", "members", "reconstruction"])
def test_an_attack_on_mode_distributed_says_that_it_can_show_nothing_and_what_can_be_attacked(shared: Path, kind: str) -> None:
    done = CliRunner().invoke(attack_app, [str(shared), "--kind", kind])
    assert isinstance(done.exception, PrivacyError)
    for said in ("an attack trains one silo by itself", "would speak for or against the claim", "--set privacy.mode=silo"):
        assert said in str(done.exception)


def test_figures_of_ledgers_that_are_not_there_are_zero_and_of_other_modes_have_no_second(private: Path, tmp_path: Path) -> None:
    config = load(private / "config.toml")
    spent = spent_in(config, private)
    assert spent.left == spent.per_silo
    nothing = spent_in(config, tmp_path)
    assert (nothing.epsilon, nothing.epsilon_if_others_collude) == (0.0, 0.0)
    assert "epsilon_if_others_collude" not in json.loads((private / "result.json").read_text())


def test_the_statement_of_each_mode() -> None:
    config = load({"federation.declared_users": [100, 80, 90, 90]}, overrides=[*SHARED, "privacy.epsilon=6"])
    plan = plan_for(config, 100, 80)
    assert Rules.of(config).honest == plan.honest == 2
    assert "there is no bound" in statement(config, plan, 5.0, None)
    silo = load({"privacy.mode": "silo"})
    told = statement(silo, plan_for(silo, 100, 80), 5.0, 5.0)
    assert told.endswith("against everybody who sees what leaves the silo, the coordinator included.")
    assert "collude" not in told
    assert statement(load({"privacy.mode": "none"}), plan, None).startswith("This run protects nobody")
