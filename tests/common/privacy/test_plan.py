"""What a silo will release is known beforehand, from public numbers, and fits the budget."""

from __future__ import annotations

import inspect
import math
from typing import Any

import dp_accounting
import pytest
from dp_accounting import rdp

from common.config import Config, load
from common.errors import PrivacyError
from common.privacy.accountant import epsilon
from common.privacy.events import (
    DistributedCount,
    DistributedMetrics,
    DistributedStep,
    GaussianCount,
    PoissonGaussianSteps,
    Unprotected,
)
from common.privacy.filter import WHOLE_ORDERS, Charge, Spending, best_order
from common.privacy.plan import COUNT_MAX_NORM, METRICS_MAX_NORM, delta_for, plan_for
from common.secagg.rules import Rules
from tests.common.privacy.ledgers import RUN


def config(**settings: Any) -> Config:
    flat = {key.replace("__", "."): value for key, value in settings.items()}
    return load(
        {"privacy.epsilon": 2.0, "federation.rounds": 5, "training.local_steps": 3, "training.sampling_probability": 0.05, **flat}
    )


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_all_releases_together_spend_the_budget_and_no_more(accountant: str) -> None:
    plan = plan_for(config(privacy__accountant=accountant), 200, 100)
    assert plan.delta == pytest.approx(1 / 1000)
    spent = plan.epsilon_after(5, accountant)
    assert 0.99 * 2.0 <= spent <= 2.0
    assert plan.epsilon_after(0, accountant) <= 0.15 * 2.0


def test_epsilon_of_the_plan_is_dp_accounting_over_all_rounds() -> None:
    plan = plan_for(config(), 200, 100)
    oracle = rdp.RdpAccountant()
    oracle.compose(dp_accounting.GaussianDpEvent(plan.count_noise_multiplier))
    for done in range(1, 4):
        for _ in range(3):
            oracle.compose(dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(plan.noise_multiplier)))
        assert plan.epsilon_after(done) == pytest.approx(oracle.get_epsilon(plan.delta), abs=1e-6)


def test_the_events_are_what_the_plan_says() -> None:
    plan = plan_for(config(privacy__max_grad_norm=0.5), 200, 100)
    assert plan.all_events() == [
        GaussianCount(plan.count_noise_multiplier, COUNT_MAX_NORM),
        *(PoissonGaussianSteps(plan.noise_multiplier, 0.05, 3, 0.5, r) for r in range(1, 6)),
    ]
    assert plan.count_noise_std == plan.count_noise_multiplier * COUNT_MAX_NORM
    assert plan.expected_batch_size == pytest.approx(0.05 * 200)


def test_a_plan_knows_nothing_but_public_numbers() -> None:
    """Its inputs are the configuration and two declared numbers, so no user can change it; equal inputs give an equal plan."""
    assert list(inspect.signature(plan_for).parameters) == ["config", "declared_users", "smallest"]
    assert plan_for(config(), 200, 100) == plan_for(config(), 200, 100)
    assert plan_for(config(run__seed=1), 200, 100) == plan_for(config(run__seed=2), 200, 100)


def test_every_round_more_costs_more_noise() -> None:
    noise = [plan_for(config(federation__rounds=rounds), 200, 100).noise_multiplier for rounds in (1, 5)]
    assert noise == sorted(noise)
    assert len(set(noise)) == 2


def test_no_rounds_release_the_count_only() -> None:
    plan = plan_for(config(federation__rounds=0), 200, 100)
    assert plan.noise_multiplier == 0.0
    assert len(plan.all_events()) == 1


def test_without_protection_epsilon_is_infinite_and_the_events_say_so() -> None:
    plan = plan_for(config(privacy__mode="none"), 200, 100)
    assert plan.all_events() == [Unprotected("interaction counts"), *(Unprotected("update", r) for r in range(1, 6))]
    assert epsilon(plan.all_events(), plan.delta) == math.inf
    assert plan.noise_multiplier == plan.count_noise_std == 0.0


def test_delta_is_configured_or_comes_from_the_smallest_silo() -> None:
    assert delta_for(config(privacy__delta=1e-7), [10, 20]) == 1e-7
    assert delta_for(config(), [40, 20]) == pytest.approx(1 / 200)


@pytest.mark.parametrize(("declared", "smallest"), [(0, 10), (10, 0), (-3, 10)])
def test_nobody_declares_no_users(declared: int, smallest: int) -> None:
    with pytest.raises(PrivacyError, match="declared users must be at least 1"):
        plan_for(config(), declared, smallest)


def test_a_budget_that_no_noise_meets_is_refused() -> None:
    with pytest.raises(PrivacyError, match="epsilon"):
        plan_for(config(privacy__epsilon=1e9), 200, 100)


def shared(**settings: Any) -> Config:
    """Mode ``distributed`` of nine silos, of which three may vanish, and two may collude."""
    flat = {"privacy__mode": "distributed", "partition__silos": 9, "aggregation__corrupt": 0.25, "training__local_steps": 1}
    return config(**{**flat, **settings})


def test_in_mode_distributed_the_honest_silos_of_the_rules_are_counted_on() -> None:
    rules = Rules.of(shared())
    assert (rules.least, rules.corrupted, rules.honest) == (6, 2, 4)
    plan = plan_for(shared(), 200, 100)
    assert (plan.mode, plan.honest, plan.steps_per_round) == ("distributed", 4, 1)
    assert plan_for(shared(aggregation__corrupt=0.0), 200, 100).honest == 6
    assert plan_for(config(), 200, 100).honest == plan_for(config(privacy__mode="none"), 200, 100).honest == 0


def test_in_mode_distributed_the_events_are_of_one_step_a_round_of_all_silos() -> None:
    plan = plan_for(shared(privacy__max_grad_norm=0.5, privacy__metrics_share=0.1), 200, 100)
    assert plan.all_events() == [
        DistributedCount(plan.count_noise_multiplier, COUNT_MAX_NORM, honest=4),
        *(DistributedStep(plan.noise_multiplier, 0.05, 0.5, r, honest=4) for r in range(1, 6)),
        DistributedMetrics(plan.metrics_noise_multiplier, METRICS_MAX_NORM, 5, honest=4),
    ]
    assert plan.expected_batch_size == pytest.approx(0.05 * 200), "of this silo; the coordinator adds up"


def test_in_mode_distributed_all_releases_together_spend_the_budget_and_no_more() -> None:
    plan = plan_for(shared(privacy__metrics_share=0.1), 200, 100)
    assert 0.99 * 2.0 <= epsilon(plan.all_events(), plan.delta) <= 2.0
    assert plan.epsilon_after(0) <= 0.15 * 2.0
    left = plan.epsilon_if_others_collude()
    assert left == epsilon(plan.collusion_events(), plan.delta)
    assert left > 1.5 * 2.0
    assert [event.noise_multiplier for event in plan.collusion_events()] == pytest.approx(  # type: ignore[union-attr]
        [event.noise_multiplier / 2 for event in plan.all_events()]  # type: ignore[union-attr]
    )


def test_in_mode_distributed_the_noise_does_not_depend_on_how_many_share_it_and_what_is_left_does() -> None:
    few, many = (plan_for(shared(aggregation__corrupt=corrupt), 200, 100) for corrupt in (0.25, 0.0))
    assert (few.honest, many.honest) == (4, 6)
    assert few.noise_multiplier == many.noise_multiplier
    assert few.epsilon_if_others_collude() < many.epsilon_if_others_collude()


def test_in_other_modes_nothing_depends_on_other_silos() -> None:
    plan = plan_for(config(), 200, 100)
    assert plan.collusion_events() == plan.all_events()
    assert plan.epsilon_if_others_collude() == plan.epsilon_after(5)


def test_a_filter_at_a_whole_order_has_room_for_a_plan_of_mode_distributed_and_for_no_more() -> None:
    from client.place import policy_of_a_simulation
    from common.config import load, to_dict
    from common.errors import BudgetExhausted, PolicyRefused
    from tests.common.privacy.ledgers import asks

    settings = load(to_dict(shared()), {"federation.declared_users": [200, 100, *[150] * 7]})
    plan = plan_for(settings, 200, 100)
    policy = policy_of_a_simulation(plan, 0, settings)
    assert policy.modes == ("distributed",)
    assert policy.order in WHOLE_ORDERS
    assert policy.order == best_order(plan.all_events(), plan.delta)
    assert policy.max_honest_silos == 4
    spending = Spending()
    for event in plan.all_events():
        policy.check(asks(event, declared_users=200))
        spending.check(policy.limits, Charge(RUN, 0, event))
        spending.add(Charge(RUN, 0, event))
    with pytest.raises(BudgetExhausted):
        spending.check(policy.limits, Charge(RUN, 0, plan.train_event(5)))
    more = plan_for(load(to_dict(settings), {"aggregation.corrupt": 0.0}), 200, 100)
    with pytest.raises(PolicyRefused, match="max_honest_silos"):
        policy.check(asks(more.train_event(1), declared_users=200))
