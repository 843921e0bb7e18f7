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
from common.privacy.events import GaussianCount, PoissonGaussianSteps, Unprotected
from common.privacy.plan import COUNT_MAX_NORM, delta_for, plan_for


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
