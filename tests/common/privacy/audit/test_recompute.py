"""Four accountants side by side: they agree on what silorec plans, and a fault in any of them, or in a claim, shows."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from common.errors import PrivacyError
from common.privacy.accountant import epsilon, epsilon_if_others_collude
from common.privacy.audit import rdp_reference
from common.privacy.audit import recompute as module
from common.privacy.audit.recompute import Figure, Recomputed, Rule, recompute, recompute_if_others_collude
from common.privacy.events import (
    DistributedCount,
    DistributedMetrics,
    DistributedStep,
    Event,
    GaussianCount,
    GaussianMetrics,
    PoissonGaussianSteps,
    Unprotected,
)
from common.privacy.plan import PrivacyPlan, plan_for
from simulations.scenario import load_scenario

DECLARED = (250, 140, 290, 270)  # of the demo's four silos

MIXED: tuple[Event, ...] = (
    GaussianCount(8.0, 1.0),
    *(PoissonGaussianSteps(3.0, 0.1, 5, 1.0, r) for r in range(1, 5)),
    GaussianMetrics(10.0, 1.4, 4),
)


def planned(*overrides: str, users: int = 250) -> PrivacyPlan:
    return plan_for(load_scenario("ml-100k", overrides=overrides), users, min(DECLARED))


def rule(found: Recomputed, name: str) -> Rule:
    return next(rule for rule in found.rules if rule.name == name)


def outcomes(found: Recomputed) -> dict[str, str]:
    return {rule.name: rule.outcome for rule in found.rules}


ALL_HOLD = {
    "tight accountants agree": "holds",
    "bounds enclose one value": "holds",
    "rdp not below pld": "holds",
    "rdp not below prv": "holds",
    "reference agrees with rdp": "holds",
}


def check_acceptance(found: Recomputed) -> None:
    """The rules once more, by hand."""
    rdp, reference, pld, prv = (found.figures[name].epsilon for name in ("rdp", "reference", "pld", "prv"))
    assert rdp is not None
    assert reference is not None
    assert pld is not None
    assert prv is not None
    assert pld == pytest.approx(prv, rel=0.01)
    assert rdp >= max(pld, prv)
    assert found.figures["pld"].low <= prv <= found.figures["prv"].high
    assert found.holds
    assert found.complete


@pytest.mark.parametrize("users", sorted(set(DECLARED)))
def test_all_accountants_agree_on_the_plan_of_the_demo(users: int) -> None:
    plan = planned(users=users)
    found = recompute(plan.all_events(), plan.delta)
    check_acceptance(found)
    assert outcomes(found) == ALL_HOLD
    rdp, reference = found.figures["rdp"], found.figures["reference"]
    assert rdp.epsilon == pytest.approx(plan.epsilon, rel=1e-3)
    assert rdp.epsilon == epsilon(plan.all_events(), plan.delta)
    assert reference.epsilon == pytest.approx(rdp.epsilon, rel=1e-3)
    assert reference.order == rdp.order
    for name in ("pld", "prv"):  # the bounds are narrow enough for the rule to mean something
        figure = found.figures[name]
        assert figure.high - figure.low <= 0.01 * figure.high


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.sampling_probability=0.25", "training.local_steps=10", "federation.rounds=12", "privacy.epsilon=2"),
        ("training.sampling_probability=0.02", "training.local_steps=30", "federation.rounds=10", "privacy.epsilon=3"),
        ("training.sampling_probability=0.5", "federation.rounds=6", "privacy.epsilon=0.5", "privacy.delta=1e-6"),
        ("training.sampling_probability=0.1", "federation.rounds=20", "privacy.accountant=pld", "privacy.epsilon=4"),
    ],
)
def test_all_accountants_agree_on_other_plans(overrides: tuple[str, ...]) -> None:
    plan = planned(*overrides)
    found = recompute(plan.all_events(), plan.delta)
    check_acceptance(found)
    assert found.figures["reference"].epsilon == pytest.approx(found.figures["rdp"].epsilon, rel=1e-3)


def test_all_accountants_agree_on_counts_metrics_and_steps_together() -> None:
    found = recompute(MIXED, 1e-5)
    check_acceptance(found)
    assert outcomes(found) == ALL_HOLD
    shuffled = recompute(MIXED[::-1], 1e-5)
    assert shuffled.figures["rdp"].epsilon == pytest.approx(found.figures["rdp"].epsilon, rel=1e-9)
    assert shuffled.figures["prv"].epsilon == pytest.approx(found.figures["prv"].epsilon, rel=1e-6)


def test_where_dp_accounting_is_not_tight_the_rule_says_why() -> None:
    """Order 4.9: 0.3 % above the reference; at whole orders the two agree. Its figure is on the safe side."""
    events = [PoissonGaussianSteps(4.2557, 0.5278, 43, 1.0)]
    found = recompute(events, 1.155e-3)
    told = rule(found, "reference agrees with rdp")
    assert told.outcome == "explained"
    assert told.difference is not None
    assert 0.001 < told.difference < 0.005
    assert "without its signs" in told.explanation
    assert found.holds
    check_acceptance(found)


@pytest.mark.slow
def test_two_hundred_mixed_releases_take_less_than_half_a_minute() -> None:
    """Thirty different mechanisms, of processor time; 9 s were measured."""
    events: list[Event] = []
    for i in range(200):
        k = i % 10
        match i % 7:
            case 0:
                events.append(GaussianCount(20.0 + k, 1.0))
            case 1:
                events.append(GaussianMetrics(30.0 + k, 1.0, i))
            case _:
                events.append(PoissonGaussianSteps(2 + 0.3 * k, 0.05 + 0.02 * k, 5, 1.0, i))
    began = time.process_time()
    check_acceptance(recompute(events, 1e-5))
    assert time.process_time() - began < 30


# Mode distributed

SHARED: tuple[Event, ...] = (
    DistributedCount(8.0, 1.0, honest=3),
    *(DistributedStep(2.0, 0.1, 1.0, r, honest=3) for r in range(1, 21)),
    DistributedMetrics(10.0, 1.4, 4, honest=3),
)


def test_all_accountants_agree_on_shared_releases_and_on_what_is_left_of_them() -> None:
    seen, left = recompute(SHARED, 1e-5), recompute_if_others_collude(SHARED, 1e-5)
    assert left is not None
    for found in (seen, left):
        check_acceptance(found)
        assert outcomes(found) == ALL_HOLD
        for name in ("rdp", "reference"):
            order = found.figures[name].order
            assert order is not None
            assert order.is_integer()
    assert seen.figures["rdp"].epsilon == epsilon(SHARED, 1e-5)
    assert left.figures["rdp"].epsilon == epsilon_if_others_collude(SHARED, 1e-5)
    for name in ("rdp", "reference", "pld", "prv"):
        assert left.figures[name].low >= 0
        assert left.figures[name].high > 1.5 * seen.figures[name].high


def test_the_figures_of_shared_releases_are_those_of_continuous_noise_at_whole_orders() -> None:
    same = (
        GaussianCount(8.0, 1.0),
        *(PoissonGaussianSteps(2.0, 0.1, 1, 1.0, r) for r in range(1, 21)),
        GaussianMetrics(10.0, 1.4, 4),
    )
    shared, continuous = recompute(SHARED, 1e-5), recompute(same, 1e-5)
    for name in ("pld", "prv"):
        assert shared.figures[name].epsilon == pytest.approx(continuous.figures[name].epsilon, rel=1e-6)
    whole = [float(order) for order in range(2, 64)]
    assert shared.figures["rdp"].epsilon == module.rdp_figure(same, 1e-5, whole).epsilon
    assert shared.figures["reference"].epsilon == pytest.approx(module.reference_figure(same, 1e-5, whole).epsilon, rel=1e-9)


def test_nothing_depends_on_other_silos_in_other_modes() -> None:
    assert recompute_if_others_collude(MIXED, 1e-5) is None
    assert recompute_if_others_collude([], 1e-5) is None
    mixed = recompute_if_others_collude([MIXED[0], SHARED[1]], 1e-5)
    assert mixed is not None
    assert mixed.releases == 2


def test_an_accountant_that_counts_the_noise_of_a_sum_as_one_silos_own_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure for colluding silos is wrong by too little cost, in one accountant."""
    real = module.pld_figure
    full = {(q, sigma * 3**0.5): times for (q, sigma), times in rdp_reference.mechanisms(
        [event.if_others_collude() for event in SHARED]  # type: ignore[union-attr]
    ).items()}  # fmt: skip
    monkeypatch.setattr(module, "pld_figure", lambda _, *rest, **named: real(full, *rest, **named))
    left = recompute_if_others_collude(SHARED, 1e-5)
    assert left is not None
    assert not left.holds
    assert rule(left, "tight accountants agree").outcome == "differs"


def test_an_accountant_of_shared_releases_at_orders_between_whole_ones_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if noise were continuous: its figure is lower than what is known of discrete noise."""
    sampled = [DistributedStep(0.8, 0.3, 1.0, r, honest=3) for r in range(1, 4)]
    found = recompute(sampled, 1e-3)
    assert found.holds
    same = [PoissonGaussianSteps(0.8, 0.3, 3, 1.0)]
    lower = replace(found.figures["rdp"], epsilon=module.reference_figure(same, 1e-3).high, high=0.0)
    assert lower.epsilon is not None
    assert found.figures["rdp"].epsilon is not None
    assert lower.epsilon < found.figures["rdp"].epsilon * 0.999
    monkeypatch.setattr(module, "rdp_figure", lambda *_, **__: replace(lower, high=lower.epsilon))
    assert rule(recompute(sampled, 1e-3), "reference agrees with rdp").outcome == "differs"


# Special lists


def test_one_unprotected_release_makes_every_figure_infinite() -> None:
    found = recompute([*MIXED, Unprotected("update", 3)], 1e-5)
    assert {figure.epsilon for figure in found.figures.values()} == {math.inf}
    assert found.unprotected == ("update",)
    assert found.proven == math.inf
    assert found.as_dict()["figures"]["prv"]["epsilon"] is None
    assert found.as_dict()["figures"]["prv"]["available"]
    assert found.as_dict()["unprotected"] == ["update"]
    assert found.check_claim(8.0).outcome == "differs"
    assert found.check_claim(math.inf).outcome == "holds"


def test_no_release_costs_nothing() -> None:
    found = recompute([], 1e-5)
    assert {figure.epsilon for figure in found.figures.values()} == {0.0}
    assert found.holds
    assert found.check_claim(0.0).outcome == "holds"


def test_noise_so_great_that_nothing_shows_costs_nothing() -> None:
    found = recompute([GaussianCount(1e6, 1.0)], 1e-5)
    assert {figure.epsilon for figure in found.figures.values()} == {0.0}
    assert found.holds


def test_a_cost_below_what_grids_resolve_is_explained_and_not_called_a_fault() -> None:
    found = recompute([PoissonGaussianSteps(1.0, 1e-6, 10_000, 1.0)], 1e-6)
    told = rule(found, "tight accountants agree")
    assert told.outcome == "explained"
    assert "below what the grids resolve" in told.explanation


def test_what_an_accountant_cannot_take_is_said_and_the_rest_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of a ten-thousandth: neither the quadrature nor Opacus goes there."""
    monkeypatch.setattr(module, "_MOST_POINTS", 500_000)  # for speed
    found = recompute([GaussianCount(1e-4, 1.0)], 1e-5)
    assert "must be from 0.001" in found.figures["reference"].reason
    assert found.figures["prv"].epsilon is None
    assert outcomes(found)["rdp not below pld"] == "holds"
    assert outcomes(found)["reference agrees with rdp"] == "not checked"
    assert not found.complete
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_delta_is_a_probability(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta"):
        recompute(MIXED, delta)


def test_without_opacus_its_column_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("opacus", "opacus.accountants", "opacus.accountants.analysis", "opacus.accountants.analysis.prv"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    found = recompute(MIXED, 1e-5)
    prv = found.figures["prv"]
    assert prv.epsilon is None
    assert "not available" in prv.reason
    assert "opacus" in prv.reason
    assert outcomes(found) == {
        **dict.fromkeys(("tight accountants agree", "bounds enclose one value", "rdp not below prv"), "not checked"),
        **dict.fromkeys(("rdp not below pld", "reference agrees with rdp"), "holds"),
    }
    assert found.holds
    assert not found.complete
    assert found.as_dict()["complete"] is False


@pytest.mark.parametrize("events", [MIXED, [], [Unprotected("count")]])
def test_the_result_is_plain_json(events: Sequence[Event]) -> None:
    found = recompute(events, 1e-5)
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["releases"] == len(events)
    assert set(told["figures"]) == {"rdp", "reference", "pld", "prv"}
    assert told["holds"] is found.holds
    assert told == found.as_dict()


# Faults planted in an accountant


def faulty(monkeypatch: pytest.MonkeyPatch, name: str, change: Any) -> Recomputed:
    """The figures with one accountant given other mechanisms or events than there were."""
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda first, *rest, **named: real(change(first), *rest, **named))
    return recompute(MIXED, 1e-5)


def with_noise(factor: float) -> Any:
    def change(mechanisms: module.Mechanisms) -> module.Mechanisms:
        return {(q, sigma * factor): times for (q, sigma), times in mechanisms.items()}

    return change


@pytest.mark.parametrize("name", ["pld_figure", "prv_figure"])
@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_noise_misread_by_a_fiftieth_in_one_tight_accountant_shows(
    monkeypatch: pytest.MonkeyPatch, name: str, factor: float
) -> None:
    found = faulty(monkeypatch, name, with_noise(factor))
    assert not found.holds
    told = rule(found, "tight accountants agree")
    assert told.outcome == "differs"
    assert "also on finer grids" in told.explanation
    assert rule(found, "bounds enclose one value").outcome == "differs"


@pytest.mark.parametrize("name", ["pld_figure", "prv_figure"])
def test_a_step_forgotten_in_one_tight_accountant_shows(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = faulty(monkeypatch, name, lambda mechanisms: {key: times - (times > 1) for key, times in mechanisms.items()})
    assert rule(found, "tight accountants agree").outcome == "differs"


def test_epsilon_that_starts_again_each_round_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accountant that is asked about the last round only."""
    found = faulty(monkeypatch, "epsilon_and_order", lambda events: events[-2:])
    assert not found.holds
    assert {name for name, outcome in outcomes(found).items() if outcome == "differs"} == {
        "bounds enclose one value",
        "rdp not below pld",
        "rdp not below prv",
        "reference agrees with rdp",
    }


@pytest.mark.parametrize("factor", [0.998, 1.002])
def test_noise_misread_by_a_five_hundredth_in_the_rdp_accountant_shows(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """In either direction: that its figure is above the reference is no excuse where whole orders differ too."""

    def change(events: Sequence[Event]) -> list[Event]:
        return [replace(event, noise_multiplier=event.noise_multiplier * factor) for event in events]  # type: ignore[union-attr]

    found = faulty(monkeypatch, "epsilon_and_order", change)
    assert rule(found, "reference agrees with rdp").outcome == "differs"
    assert not found.holds


def test_a_sampling_probability_misread_by_the_reference_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    real = rdp_reference.rdp_of_sampled_gaussian
    monkeypatch.setattr(
        rdp_reference, "rdp_of_sampled_gaussian", lambda q, sigma, order: real(q * 1.005 if q < 1 else q, sigma, order)
    )
    assert rule(recompute(MIXED, 1e-5), "reference agrees with rdp").outcome == "differs"


def test_an_rdp_figure_below_the_reference_is_never_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault between whole orders only, towards less."""
    real = module.rdp_figure

    def low(events: Sequence[Event], delta: float, orders: Sequence[float] | None = None) -> Figure:
        figure = real(events, delta, orders)
        return figure if orders else replace(figure, epsilon=figure.high * 0.995, high=figure.high * 0.995)

    monkeypatch.setattr(module, "rdp_figure", low)
    assert rule(recompute(MIXED, 1e-5), "reference agrees with rdp").outcome == "differs"


@pytest.mark.parametrize(
    ("factor", "outcome"), [(1.0099, "holds"), (1.0102, "differs"), (1 / 1.0099, "holds"), (0.9899, "differs")]
)
def test_the_threshold_of_the_tight_accountants_is_one_in_a_hundred(
    monkeypatch: pytest.MonkeyPatch, factor: float, outcome: str
) -> None:
    pld = module.pld_figure(rdp_reference.mechanisms(MIXED), 1e-5, 4.0)
    monkeypatch.setattr(
        module, "prv_figure", lambda *_, **__: Figure(pld.high * factor, low=pld.low * factor, high=pld.high * factor * 1.001)
    )
    assert rule(recompute(MIXED, 1e-5), "tight accountants agree").outcome == outcome


@pytest.mark.parametrize(("factor", "outcome"), [(1.0009, "holds"), (1.0011, "differs"), (0.9991, "holds"), (0.9989, "differs")])
def test_the_threshold_of_the_reference_is_one_in_a_thousand(
    monkeypatch: pytest.MonkeyPatch, factor: float, outcome: str
) -> None:
    real = module.reference_figure

    def scaled(events: Sequence[Event], delta: float, orders: Sequence[float] | None = None) -> Figure:
        rdp = module.rdp_figure(events, delta, orders)
        figure = real(events, delta, orders)
        return replace(figure, epsilon=rdp.high * factor, high=rdp.high * factor)

    monkeypatch.setattr(module, "reference_figure", scaled)
    assert rule(recompute(MIXED, 1e-5), "reference agrees with rdp").outcome == outcome


def test_a_grid_that_was_too_coarse_is_tried_again_finer(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = module.prv_figure, []

    def coarse(mechanisms: module.Mechanisms, delta: float, about: float, finer: int = 1) -> Figure:
        asked.append(finer)
        figure = real(mechanisms, delta, about, finer)
        return figure if finer > 1 else replace(figure, epsilon=figure.high * 1.1)

    monkeypatch.setattr(module, "prv_figure", coarse)
    assert outcomes(recompute(MIXED, 1e-5)) == ALL_HOLD
    assert asked == [1, 4]


# Faults planted in what is claimed


@pytest.fixture(scope="module")
def demo() -> tuple[PrivacyPlan, Recomputed]:
    plan = planned()
    return plan, recompute(plan.all_events(), plan.delta)


def test_a_true_claim_holds(demo: tuple[PrivacyPlan, Recomputed]) -> None:
    plan, found = demo
    for claimed in (
        plan.epsilon,
        epsilon(plan.all_events(), plan.delta),
        epsilon(plan.all_events(), plan.delta, "pld"),
        math.inf,
    ):
        assert found.check_claim(claimed).outcome == "holds"


def test_a_claim_for_one_round_only_differs(demo: tuple[PrivacyPlan, Recomputed]) -> None:
    """Epsilon set back at each round: what several published examples report."""
    plan, found = demo
    claimed = max(epsilon([event], plan.delta) for event in plan.all_events())
    told = found.check_claim(claimed)
    assert told.outcome == "differs"
    assert "they cost more than that" in told.explanation
    assert told.difference is not None
    assert told.difference > 0.3


def test_a_claim_that_forgets_the_count_differs(demo: tuple[PrivacyPlan, Recomputed]) -> None:
    plan, found = demo
    assert found.check_claim(epsilon(plan.all_events()[1:], plan.delta, "pld")).outcome == "differs"


@pytest.mark.parametrize("factor", [0.5, 0.9, 0.99])
def test_a_claim_made_with_more_noise_than_there_was_differs(demo: tuple[PrivacyPlan, Recomputed], factor: float) -> None:
    """The claim is the tight figure of the plan; the events in evidence have less noise."""
    plan, honest = demo
    steps = [replace(event, noise_multiplier=event.noise_multiplier * factor) for event in plan.all_events()]  # type: ignore[union-attr]
    found = recompute(steps, plan.delta)
    assert found.holds  # the accountants agree on events that say what was so
    assert found.check_claim(honest.proven).outcome == "differs"
    assert found.proven > honest.proven


def test_events_that_claim_more_noise_cost_less_and_so_differ_from_the_honest_figure(
    demo: tuple[PrivacyPlan, Recomputed],
) -> None:
    plan, honest = demo
    told = [replace(event, noise_multiplier=event.noise_multiplier * 1.1) for event in plan.all_events()]  # type: ignore[union-attr]
    found = recompute(told, plan.delta)
    for name in ("rdp", "reference", "pld", "prv"):
        assert found.figures[name].high < 0.95 * honest.figures[name].high


def test_a_claim_between_the_bounds_is_not_supported(demo: tuple[PrivacyPlan, Recomputed]) -> None:
    _, found = demo
    pld = found.figures["pld"]
    told = found.check_claim((pld.low + pld.high) / 2)
    assert told.outcome == "differs"
    assert "no accountant here supports it" in told.explanation
