"""The filter's figures are those of dp_accounting, of closed forms and of integrals; and no limit is passed."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from dp_accounting import rdp
from dp_accounting.rdp import rdp_privacy_accountant
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Config
from common.errors import BudgetExhausted, PrivacyError
from common.privacy.accountant import epsilon, noise_for_gaussian
from common.privacy.events import (
    DistributedCount,
    DistributedMetrics,
    DistributedStep,
    Event,
    GaussianCount,
    GaussianMetrics,
    PoissonGaussianSteps,
    Unprotected,
    if_others_collude,
)
from common.privacy.filter import (
    DAY,
    ORDERS,
    ROUNDING,
    WHOLE_ORDERS,
    Charge,
    Limit,
    Spending,
    best_order,
    day_of,
    epsilon_at,
    order_for,
    orders_for,
    rdp_at,
    rdp_budget,
)
from common.privacy.plan import plan_for
from tests.common.privacy.ledgers import COUNT, RUN, SHARED_COUNT, digest, shared_step, steps

DELTA = 1e-5


def charges(*events: Event, run: str = RUN, time: int = 0) -> list[Charge]:
    return [Charge(run, time, event) for event in events]


@pytest.mark.parametrize("order", [1.1, 2.0, 3.9, 17.0, 1024.0])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 8.0])
def test_a_gaussian_costs_its_closed_form(order: float, sigma: float) -> None:
    """Mironov 2017, Prop. 7, and Canonne, Kamath & Steinke 2020, Prop. 12; to 1e-12."""
    cost = order / (2 * sigma**2)
    assert rdp_at(GaussianCount(sigma, 1.0), order) == pytest.approx(cost, rel=1e-12)
    assert rdp_at(GaussianMetrics(sigma, 3.0, 2), order) == pytest.approx(cost, rel=1e-12)
    assert rdp_at(PoissonGaussianSteps(sigma, 1.0, 7, 1.0), order) == pytest.approx(7 * cost, rel=1e-12)
    right = cost + math.log((order - 1) / order) - (math.log(DELTA) + math.log(order)) / (order - 1)
    assert epsilon_at(cost, order, DELTA) == pytest.approx(max(right, 0.0), rel=1e-12)


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 1.0), (0.2, 2.0), (0.5, 0.7), (0.9, 1.0)])
@pytest.mark.parametrize("order", [2.0, 3.9, 9.0])
def test_a_sampled_step_costs_the_integral_that_defines_it(q: float, sigma: float, order: float) -> None:
    """Rényi divergence of q·N(1, σ²) + (1−q)·N(0, σ²) from N(0, σ²) on a grid of 2e5 points; to 1e-8 at whole orders.

    Between them dp_accounting adds up a series without its signs, which is an upper bound, here within 1 %.
    """
    x = np.linspace(-40 * sigma, 40 * sigma + order, 200_001)
    ratio = np.log1p(q * np.expm1((2 * x - 1) / (2 * sigma**2)))
    log_density = order * ratio - x**2 / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    peak = log_density.max()
    divergence = (peak + math.log(np.trapezoid(np.exp(log_density - peak), x))) / (order - 1)
    cost = rdp_at(PoissonGaussianSteps(sigma, q, 5, 1.0), order)
    if order.is_integer():
        assert cost == pytest.approx(5 * divergence, rel=1e-8)
    else:
        assert 5 * divergence * (1 - 1e-8) <= cost <= 5 * divergence * 1.01


def of_continuous_noise(q: float, z: float, orders: list[float]) -> list[float]:
    """One release with noise multiplier ``z``, by dp_accounting."""
    accountant = rdp.RdpAccountant(orders=orders)
    accountant.compose(PoissonGaussianSteps(z, q, 1, 1.0).to_dp_event())
    return [float(value) for value in accountant.rdp]


def of_discrete_noise(q: float, sigma: float, moved: tuple[int, ...], order: float) -> float:
    """Rényi divergence, by adding up over all points of a grid that matter: noise of ``sigma`` steps in each number, and a user
    who moves the sum by ``moved`` steps, present with probability ``q``; the larger of both directions."""
    reach = math.ceil(40 * sigma + order * max(moved))
    line = np.arange(-reach, reach + 1, dtype=np.float64)
    axes = np.meshgrid(*([line] * len(moved)), indexing="ij")
    total = math.log(float(np.exp(-(line**2) / (2 * sigma**2)).sum())) * len(moved)
    without = -sum(axis**2 for axis in axes) / (2 * sigma**2) - total
    there = -sum((axis - d) ** 2 for axis, d in zip(axes, moved, strict=True)) / (2 * sigma**2) - total
    mixed = np.logaddexp((math.log1p(-q) if q < 1 else -math.inf) + without, math.log(q) + there)

    def divergence(p: np.ndarray, q: np.ndarray) -> float:
        terms = order * p + (1 - order) * q
        return (float(terms.max()) + math.log(float(np.exp(terms - terms.max()).sum()))) / (order - 1)

    return max(divergence(mixed, without), divergence(without, mixed))


GRIDS: list[tuple[float, float, tuple[int, ...]]] = [
    (1.0, 0.7, (1,)),
    (0.5, 0.4, (1,)),
    (0.3, 1.0, (1,)),
    (0.01, 0.3, (1,)),
    (0.2, 20.0, (10,)),
    (0.1, 6.0, (3, 4)),
]


@pytest.mark.parametrize(("q", "sigma", "moved"), GRIDS)
def test_at_whole_orders_discrete_noise_costs_what_continuous_noise_does(q: float, sigma: float, moved: tuple[int, ...]) -> None:
    """However coarse the grid, sampled or not; to 1e-9."""
    z = sigma / math.hypot(*moved)
    for order in (2.0, 3.0, 5.0, 9.0):
        added_up = of_discrete_noise(q, sigma, moved, order)
        assert of_continuous_noise(q, z, [order])[0] == pytest.approx(added_up, rel=1e-9)
        assert rdp_at(DistributedStep(z, q, 1.0, honest=3), order) == pytest.approx(added_up, rel=1e-9)
        if q == 1.0:
            assert rdp_at(DistributedCount(z, 1.0, honest=3), order) == pytest.approx(added_up, rel=1e-9)
            assert rdp_at(DistributedMetrics(z, 1.0, honest=3), order) == pytest.approx(added_up, rel=1e-9)


@pytest.mark.parametrize(("q", "sigma", "moved"), GRIDS)
def test_between_whole_orders_the_cost_is_above_that_of_discrete_noise_and_below_the_next_whole_order(
    q: float, sigma: float, moved: tuple[int, ...]
) -> None:
    event = DistributedStep(sigma / math.hypot(*moved), q, 1.0, honest=3)
    for order in (1.02, 1.1, 1.5, 2.5, 3.7, 8.9):
        cost = rdp_at(event, order)
        assert of_discrete_noise(q, sigma, moved, order) * (1 - 1e-9) <= cost
        assert cost <= rdp_at(event, float(math.ceil(order))) * (1 + 1e-9)


def test_between_whole_orders_discrete_noise_may_cost_more_than_continuous_noise() -> None:
    """Which is why no figure for continuous noise is taken there."""
    from common.privacy.audit.rdp_reference import rdp_of_sampled_gaussian

    continuous = rdp_of_sampled_gaussian(0.3, 1.0, 1.1)
    assert of_discrete_noise(0.3, 1.0, (1,), 1.1) > continuous * (1 + 1e-7)
    assert rdp_at(DistributedStep(1.0, 0.3, 1.0, honest=3), 1.1) > continuous


fractional = st.sampled_from([order for order in ORDERS if not order.is_integer()]) | st.floats(1.02, 1000).filter(
    lambda order: not order.is_integer()
)


@given(st.floats(0.3, 50), fractional)
@settings(max_examples=200, deadline=None)
def test_where_everybody_takes_part_the_chord_is_above_the_closed_form_by_what_convexity_leaves(z: float, order: float) -> None:
    """``(a - 1) D_a = a (a - 1) / 2z²``; its chord between a whole k and k + 1 is ``((2k)(a - k) + k(k - 1)) / 2z²``."""
    cost = rdp_at(DistributedCount(z, 1.0, honest=2), order)
    k = math.floor(order)
    assert cost == pytest.approx((2 * k * (order - k) + k * (k - 1)) / (2 * z**2) / (order - 1), rel=1e-9)
    assert cost >= order / (2 * z**2) * (1 - 1e-12)
    assert cost == pytest.approx(rdp_at(DistributedStep(z, 1.0, 1.0, honest=2), order), rel=1e-12)


@given(st.floats(0.3, 30), st.floats(0.001, 1), fractional)
@settings(max_examples=100, deadline=None)
def test_between_whole_orders_the_cost_lies_on_the_chord(z: float, q: float, order: float) -> None:
    k = math.floor(order)
    ends = of_continuous_noise(q, z, [float(whole) for whole in (k, k + 1) if whole > 1])
    low, high = ((k - 1) * ends[0] if k > 1 else 0.0), k * ends[-1]
    chord = low + (order - k) * (high - low)
    assert rdp_at(DistributedStep(z, q, 1.0, honest=5), order) == pytest.approx(chord / (order - 1), rel=1e-9, abs=1e-15)


@given(st.floats(0.3, 30), st.floats(0.001, 1), st.sampled_from(WHOLE_ORDERS), st.integers(1, 100))
@settings(max_examples=100, deadline=None)
def test_at_whole_orders_a_shared_release_costs_what_dp_accounting_says_of_the_sum(
    z: float, q: float, order: float, honest: int
) -> None:
    """Whoever adds the noise; and more where it is the share of one."""
    for event, theirs in (
        (DistributedStep(z, q, 1.0, honest=honest), of_continuous_noise(q, z, [order])[0]),
        (DistributedCount(z, 1.0, honest=honest), of_continuous_noise(1.0, z, [order])[0]),
        (DistributedMetrics(z, 1.0, honest=honest), of_continuous_noise(1.0, z, [order])[0]),
    ):
        assert rdp_at(event, order) == pytest.approx(theirs, rel=1e-12)
        left = rdp_at(if_others_collude(event), order)
        assert left == rdp_at(event, order) if honest == 1 else left > rdp_at(event, order)
    alone = of_continuous_noise(q, z / math.sqrt(honest), [order])[0]
    assert rdp_at(if_others_collude(DistributedStep(z, q, 1.0, honest=honest)), order) == pytest.approx(alone, rel=1e-9)


def test_orders_are_looked_for_among_whole_ones_where_a_release_is_shared() -> None:
    assert orders_for([COUNT, steps(1)]) == ORDERS
    assert orders_for([COUNT, shared_step(1)]) == WHOLE_ORDERS
    sampled = [shared_step(r, 1.2, 0.05) for r in range(1, 7)]
    assert best_order(sampled, DELTA) in WHOLE_ORDERS
    same = [PoissonGaussianSteps(1.2, 0.05, 1, 1.0, r) for r in range(1, 7)]
    assert best_order(same, DELTA) not in WHOLE_ORDERS, "or this test would show nothing"
    best = min(epsilon_at(Spending(charges(*sampled)).rdp(order), order, DELTA) for order in WHOLE_ORDERS)
    order = best_order(sampled, DELTA)
    assert Spending(charges(*sampled)).epsilon(order, DELTA) == best == pytest.approx(epsilon(sampled, DELTA), rel=1e-9)


def test_spending_if_others_collude_is_that_of_what_is_left() -> None:
    spending = Spending([*charges(COUNT, SHARED_COUNT, shared_step(1)), *charges(shared_step(1), run=digest("2"), time=DAY)])
    left = spending.if_others_collude()
    one = rdp_at(PoissonGaussianSteps(1.0, 0.2, 1, 1.0), 4.0)  # noise of 2 from 4 honest silos
    assert left.rdp(4.0) == pytest.approx(rdp_at(COUNT, 4.0) + 4 / (2 * 2.5**2) + 2 * one, rel=1e-12)
    assert left.rdp(4.0, run=digest("2")) == left.rdp(4.0, day=1) == pytest.approx(one, rel=1e-12)
    assert left.rdp(4.0) > spending.rdp(4.0)
    assert left.runs() == spending.runs()
    alone = Spending(charges(COUNT, steps(1)))
    assert alone.if_others_collude().charges == alone.charges


def test_a_budget_counts_what_the_coordinator_sees_and_one_shared_release_more_is_refused() -> None:
    order = 5.0
    limit = Limit("epsilon", epsilon_at(4 * rdp_at(shared_step(1), order), order, DELTA), DELTA, order)
    spending = Spending()
    for number in range(1, 5):
        charge = charges(shared_step(number))[0]
        spending.check([limit], charge)
        spending.add(charge)
    with pytest.raises(BudgetExhausted, match=r"epsilon: epsilon would be .* is spent"):
        spending.check([limit], charges(shared_step(5))[0])
    assert spending.if_others_collude().epsilon(order, DELTA) > limit.epsilon


events = st.builds(GaussianCount, st.floats(0.3, 20), st.just(1.0)) | st.builds(
    PoissonGaussianSteps, st.floats(0.3, 20), st.floats(0.001, 1), st.integers(1, 40), st.just(1.0), st.integers(1, 9)
)


@given(st.lists(events, min_size=1, max_size=6), st.sampled_from(ORDERS), st.sampled_from([1e-3, 1e-5, 1e-9]))
@settings(max_examples=60, deadline=None)
def test_sums_are_those_of_dp_accounting_at_that_order_and_not_below_its_best(
    released: list[Event], order: float, delta: float
) -> None:
    spending = Spending(charges(*released))
    alone, all_orders = rdp.RdpAccountant(orders=[order]), rdp.RdpAccountant()
    for event in released:
        alone.compose(event.to_dp_event())
        all_orders.compose(event.to_dp_event())
    assert spending.rdp(order) == pytest.approx(alone.rdp[0], rel=1e-12)
    assert spending.epsilon(order, delta) == pytest.approx(alone.get_epsilon(delta), rel=1e-12)
    assert spending.epsilon(order, delta) >= all_orders.get_epsilon(delta) * (1 - 1e-12)


def test_orders_are_those_that_dp_accounting_looks_at() -> None:
    assert list(ORDERS) == list(rdp_privacy_accountant.DEFAULT_RDP_ORDERS)


@pytest.mark.parametrize("target", [0.3, 1.0, 2.0, 4.0, 8.0, 20.0])
@pytest.mark.parametrize("delta", [1e-4, 1e-6])
def test_at_the_default_order_gaussian_releases_can_spend_most(target: float, delta: float) -> None:
    """Held against dp_accounting's conversion at every order, by bisection over the number ρ of σ-normalised releases."""

    def most(order: float) -> float:
        low, high = 0.0, 1e4
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if epsilon_at(order * middle, order, delta) <= target else (low, middle)
        return low

    chosen = order_for(target, delta)
    spendable = {order: most(order) for order in ORDERS}
    whole = [order for order in ORDERS if order == int(order)]
    assert chosen in whole
    assert spendable[chosen] == pytest.approx(max(spendable[order] for order in whole), rel=1e-9)
    assert spendable[chosen] > 0.96 * max(spendable.values())
    assert rdp_budget(target, delta, chosen) == pytest.approx(chosen * spendable[chosen], rel=1e-9)


def test_a_single_gaussian_calibrated_to_a_budget_fits_at_the_default_order() -> None:
    """Calibrated by dp_accounting over its orders; the filter's one order gives up less than 0.2 % against them."""
    for target in (1.0, 4.0, 8.0):
        sigma = noise_for_gaussian(target, DELTA)
        order = order_for(target, DELTA)
        assert epsilon_at(rdp_at(GaussianCount(sigma, 1.0), order), order, DELTA) == pytest.approx(target, rel=2e-3)


def test_whole_orders_are_the_better_ones() -> None:
    """A Rényi divergence never falls with its order: a figure at 2.5 above the one at 3 is too large, by that factor at least."""
    much_noise = PoissonGaussianSteps(30.0, 0.5, 1, 1.0)
    assert 20 < rdp_at(much_noise, 2.5) / rdp_at(much_noise, 3.0) < 30
    sampled = [PoissonGaussianSteps(s, q, 1, 1.0) for s in (0.3, 1.0, 3.0, 30.0) for q in (0.001, 0.05, 0.2, 0.5, 0.99)]
    assert math.isinf(rdp_at(PoissonGaussianSteps(1.0, 0.2, 1, 1.0), 1.5))
    for event in sampled:
        costs = [rdp_at(event, order) for order in WHOLE_ORDERS]
        assert all(math.isfinite(cost) for cost in costs)
        assert all(a <= b * (1 + 1e-6) for a, b in itertools.pairwise(costs))


def test_there_is_no_order_for_a_budget_without_room() -> None:
    with pytest.raises(PrivacyError, match=r"epsilon = 0\.001 at delta = 1e-05 leaves no room at any Rényi order"):
        order_for(0.001, DELTA)


def test_the_best_order_of_a_plan_is_dp_accountings_and_makes_the_filter_as_good() -> None:
    plan = plan_for(Config(), 900, 900)
    released = plan.all_events()
    accountant = rdp.RdpAccountant()
    for event in released:
        accountant.compose(event.to_dp_event())
    order = best_order(released, plan.delta)
    assert order == accountant.get_epsilon_and_optimal_order(plan.delta)[1]
    assert Spending(charges(*released)).epsilon(order, plan.delta) == pytest.approx(epsilon(released, plan.delta), rel=1e-9)
    for unplanned in ([], [Unprotected("update", 1)]):
        with pytest.raises(PrivacyError, match="protected releases only"):
            best_order(unplanned, DELTA)


def test_a_plan_that_meets_its_budget_fits_and_one_release_more_does_not() -> None:
    plan = plan_for(Config(), 900, 900)
    limit = Limit("epsilon", plan.epsilon, plan.delta, best_order(plan.all_events(), plan.delta))
    spending = Spending()
    for charge in charges(*plan.all_events()):
        spending.check([limit], charge)
        spending.add(charge)
    assert limit.epsilon * 0.999 < spending.epsilon(limit.order, limit.delta) <= limit.epsilon * (1 + ROUNDING)
    with pytest.raises(BudgetExhausted, match=r"epsilon: epsilon would be .* the policy allows 8 at delta"):
        spending.check([limit], charges(plan.train_event(1))[0])


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_tolerance_is_for_rounding_only(sign: int) -> None:
    order = 5.0
    exact = epsilon_at(rdp_at(COUNT, order), order, DELTA)
    limit = Limit("epsilon", exact * (1 + sign * 2e-6), DELTA, order)
    if sign > 0:
        Spending().check([limit], charges(COUNT)[0])
    else:
        with pytest.raises(BudgetExhausted):
            Spending().check([limit], charges(COUNT)[0])
    Spending().check([Limit("epsilon", exact, DELTA, order)], charges(COUNT)[0])


def test_runs_and_days_have_sums_of_their_own() -> None:
    other = digest("another run")
    spending = Spending(
        [
            *charges(COUNT, steps(1), time=0),
            *charges(steps(2), time=DAY - 1),
            *charges(COUNT, run=other, time=DAY),
        ]
    )
    one, two = rdp_at(steps(1), 4.0), rdp_at(COUNT, 4.0)
    assert spending.rdp(4.0) == pytest.approx(2 * one + 2 * two, rel=1e-12)
    assert spending.rdp(4.0, run=RUN) == pytest.approx(2 * one + two, rel=1e-12)
    assert spending.rdp(4.0, run=other) == pytest.approx(two, rel=1e-12)
    assert spending.rdp(4.0, day=0) == pytest.approx(2 * one + two, rel=1e-12)
    assert spending.rdp(4.0, day=1) == pytest.approx(two, rel=1e-12)
    assert spending.rdp(4.0, run=digest("unknown")) == spending.rdp(4.0, day=2) == 0.0
    assert spending.epsilon(4.0, DELTA, day=2) == 0.0
    assert spending.runs() == (RUN, other)
    assert (day_of(DAY - 1), day_of(DAY)) == (0, 1)


def test_each_limit_refuses_by_its_name_and_only_its_own() -> None:
    order = 4.0
    room = [epsilon_at(n * rdp_at(COUNT, order), order, DELTA) for n in range(8)]
    total, per_run, per_day = (
        Limit(name, room[n], DELTA, order) for name, n in (("epsilon", 6), ("epsilon_per_run", 3), ("epsilon_per_day", 4))
    )
    limits = [total, per_run, per_day]
    spending = Spending(charges(COUNT, COUNT, COUNT))
    with pytest.raises(BudgetExhausted, match=r"^epsilon_per_run: .* in this run after this release"):
        spending.check(limits, charges(COUNT)[0])
    other = charges(COUNT, run=digest("2"))[0]
    spending.check(limits, other)
    spending.add(other)
    with pytest.raises(BudgetExhausted, match=r"^epsilon_per_day: .* on this day \(UTC\) after"):
        spending.check(limits, other)
    later = charges(COUNT, run=digest("2"), time=DAY)[0]
    for _ in range(2):
        spending.check(limits, later)
        spending.add(later)
    with pytest.raises(BudgetExhausted, match=r"^epsilon: epsilon would"):
        spending.check(limits, charges(COUNT, run=digest("3"), time=9 * DAY)[0])


def test_a_check_adds_nothing() -> None:
    spending = Spending(charges(COUNT))
    before = spending.rdp(3.0)
    for _ in range(3):
        spending.check([Limit("epsilon", 8.0, DELTA, 3.0)], charges(COUNT)[0])
    assert (spending.rdp(3.0), spending.charges) == (before, charges(COUNT))


def test_sums_at_an_order_that_is_asked_for_later_are_the_same() -> None:
    released = [COUNT, *(steps(r) for r in range(1, 9))]
    asked_late = Spending(charges(*released))
    asked_early = Spending()
    asked_early.rdp(7.3)
    for charge in charges(*released):
        asked_early.add(charge)
    assert asked_early.rdp(7.3) == asked_late.rdp(7.3)
    after = asked_late.epsilon_after(charges(COUNT)[0], 7.3, DELTA)
    asked_late.add(charges(COUNT)[0])
    assert after == asked_late.epsilon(7.3, DELTA)


def test_what_is_unprotected_or_cannot_be_computed_is_infinite_and_passes_every_limit() -> None:
    huge = PoissonGaussianSteps(1.0, 0.1, 10**400, 1.0, 1)
    for event in (Unprotected("update", 1), huge):
        assert math.isinf(rdp_at(event, 4.0))
        spending = Spending()
        with pytest.raises(BudgetExhausted, match="epsilon would be infinite"):
            spending.check([Limit("epsilon", 1e9, DELTA, 4.0)], charges(event)[0])
        spending.add(charges(event)[0])
        assert math.isinf(spending.epsilon(4.0, DELTA))
    assert Spending().epsilon(4.0, DELTA) == 0.0


@given(events, st.sampled_from(ORDERS))
@settings(max_examples=150, deadline=None)
def test_no_cost_is_negative_or_no_number(event: Event, order: float) -> None:
    assert rdp_at(event, order) >= 0


def test_without_dp_accounting_the_sentence_says_what_to_install() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "class Absent:\n"
            "    def find_spec(name, *_):\n"
            "        if name.split('.')[0] == 'dp_accounting':\n"
            "            raise ModuleNotFoundError('absent', name='dp_accounting')\n"
            "sys.meta_path.insert(0, Absent)\n"
            "from common.errors import LedgerError\n"
            "from common.privacy.events import GaussianCount\n"
            "from common.privacy.filter import order_for, rdp_at\n"
            "order_for(8.0, 1e-5)\n"
            "try:\n"
            "    rdp_at(GaussianCount(1.0, 1.0), 2.0)\n"
            "except LedgerError as error:\n"
            "    print(error)\n",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "dp_accounting is not installed" in done.stdout
    assert "pip install 'silorec[client]'" in done.stdout
