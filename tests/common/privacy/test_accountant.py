"""Epsilon against dp_accounting composed by hand, against a closed form written down here, and against Opacus."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from opacus.accountants.analysis import rdp as opacus_rdp
from scipy import stats

from common.errors import PrivacyError
from common.privacy.accountant import (
    Method,
    epsilon,
    epsilon_and_order,
    epsilon_if_others_collude,
    noise_for_gaussian,
    noise_for_steps,
)
from common.privacy.events import (
    DistributedCount,
    DistributedStep,
    Event,
    GaussianCount,
    PoissonGaussianSteps,
    Unprotected,
    if_others_collude,
)
from common.privacy.filter import WHOLE_ORDERS

RUN: tuple[Event, ...] = (
    GaussianCount(3.0, 1.0),
    PoissonGaussianSteps(1.1, 0.05, 4, 1.0, 1),
    PoissonGaussianSteps(1.1, 0.05, 4, 1.0, 2),
    PoissonGaussianSteps(1.7, 0.1, 9, 0.5, 3),
    PoissonGaussianSteps(1.1, 0.05, 4, 1.0, 4),
)
ORDERS = range(2, 257)


def rdp_of_sampled_gaussian(q: float, sigma: float, order: int) -> float:
    """Mironov, Talwar & Zhang 2019, section 3.3, whole orders: log of the sum over k of C(a, k) (1-q)^(a-k) q^k exp(k(k-1)/2σ²),
    over a - 1."""
    if q == 1.0:
        return order / (2 * sigma**2)
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + (order - k) * math.log1p(-q)
        + k * math.log(q)
        + k * (k - 1) / (2 * sigma**2)
        for k in range(order + 1)
    ]
    top = max(terms)
    return (top + math.log(math.fsum(math.exp(t - top) for t in terms))) / (order - 1)


def epsilon_from_rdp(divergences: Sequence[float], orders: Sequence[int], delta: float) -> float:
    """Canonne, Kamath & Steinke 2020, proposition 12."""
    return min(r + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for r, a in zip(divergences, orders, strict=True))


def rdp_of_run(order: int) -> float:
    """Of RUN, added up by hand."""
    return (
        rdp_of_sampled_gaussian(1.0, 3.0, order)
        + 12 * rdp_of_sampled_gaussian(0.05, 1.1, order)
        + 9 * rdp_of_sampled_gaussian(0.1, 1.7, order)
    )


@pytest.mark.parametrize("delta", [1e-5])
def test_a_run_costs_what_dp_accounting_says_of_all_its_rounds_together(delta: float) -> None:
    accountant = rdp.RdpAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(3.0))
    for sigma, q, steps in ((1.1, 0.05, 12), (1.7, 0.1, 9)):
        for _ in range(steps):
            accountant.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma)))
    assert epsilon(RUN, delta) == pytest.approx(accountant.get_epsilon(delta), abs=1e-6)


def test_the_tighter_bound_is_what_dp_accounting_says_too() -> None:
    """Its grid of 1e-3 nats is coarser than the library's own: a little above, never below."""
    accountant = pld.PLDAccountant()
    for event in RUN:
        accountant.compose(event.to_dp_event())
    fine = accountant.get_epsilon(1e-4)
    assert fine - 1e-6 <= epsilon(RUN, 1e-4, "pld") <= fine * 1.001


@pytest.mark.parametrize(("q", "sigma", "steps"), [(0.25, 1.1, 24), (0.01, 0.9, 1000), (0.5, 5.0, 60), (1.0, 3.0, 10)])
def test_rdp_of_poisson_sampled_gaussians_is_the_closed_form(q: float, sigma: float, steps: int) -> None:
    """dp_accounting tries more orders, so it may be below the closed form's figure, but by little."""
    ours = epsilon([PoissonGaussianSteps(sigma, q, steps, 1.0)], 1e-5)
    closed = epsilon_from_rdp([steps * rdp_of_sampled_gaussian(q, sigma, a) for a in ORDERS], ORDERS, 1e-5)
    assert ours <= closed + 1e-9
    assert ours == pytest.approx(closed, rel=0.02)
    accountant = rdp.RdpAccountant(orders=list(ORDERS))
    accountant.compose(PoissonGaussianSteps(sigma, q, steps, 1.0).to_dp_event())
    assert accountant.get_epsilon(1e-5) == pytest.approx(closed, rel=1e-9)


@pytest.mark.parametrize(("q", "sigma", "steps"), [(0.25, 1.1, 24), (0.01, 0.9, 1000), (0.5, 5.0, 60)])
def test_opacus_agrees(q: float, sigma: float, steps: int) -> None:
    divergences = opacus_rdp.compute_rdp(q=q, noise_multiplier=sigma, steps=steps, orders=list(ORDERS))
    np.testing.assert_allclose(divergences, [steps * rdp_of_sampled_gaussian(q, sigma, a) for a in ORDERS], rtol=1e-9)
    theirs, _ = opacus_rdp.get_privacy_spent(orders=list(ORDERS), rdp=divergences, delta=1e-5)
    assert epsilon([PoissonGaussianSteps(sigma, q, steps, 1.0)], 1e-5) == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("sigma", [0.7, 2.0, 6.0])
def test_one_gaussian_is_bounded_from_above(sigma: float) -> None:
    """The exact curve of Balle & Wang 2018, theorem 8; PLD comes within a thousandth, RDP stays above."""
    delta = 1e-5

    def exact_delta(eps: float) -> float:
        return float(stats.norm.cdf(0.5 / sigma - eps * sigma) - math.exp(eps) * stats.norm.cdf(-0.5 / sigma - eps * sigma))

    event = [GaussianCount(sigma, 1.0)]
    assert exact_delta(epsilon(event, delta, "pld")) <= delta * (1 + 1e-6)
    assert exact_delta(epsilon(event, delta, "pld") - 2e-3) > delta
    assert exact_delta(epsilon(event, delta, "rdp")) < delta


@pytest.mark.parametrize("delta", [1e-2, 1e-7])
def test_the_tighter_bound_is_tighter(delta: float) -> None:
    assert 0 < epsilon(RUN, delta, "pld") < epsilon(RUN, delta, "rdp")


@pytest.mark.parametrize("method", ["rdp", "pld"])
def test_more_releases_cost_more(method: Method) -> None:
    spent = [epsilon(RUN[:n], 1e-4, method) for n in range(len(RUN) + 1)]
    assert spent[0] == 0.0
    assert all(a < b for a, b in itertools.pairwise(spent))
    assert epsilon(RUN[::-1], 1e-4, method) == pytest.approx(spent[-1], rel=1e-9)


def test_one_unprotected_release_costs_everything() -> None:
    assert epsilon([*RUN, Unprotected("update", 1)], 1e-4) == math.inf


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_is_a_probability(delta: float) -> None:
    for ask in (lambda: epsilon(RUN, delta), lambda: epsilon([], delta), lambda: noise_for_gaussian(1.0, delta)):
        with pytest.raises(PrivacyError, match="delta"):
            ask()


@pytest.mark.parametrize("method", ["rdp", "pld"])
@pytest.mark.parametrize(("target", "delta"), [(0.2, 1e-2), (1.0, 1e-5), (8.0, 1e-3)])
def test_the_noise_of_one_release_meets_the_budget_from_below_and_wastes_less_than_a_hundredth(
    target: float, delta: float, method: Method
) -> None:
    sigma = noise_for_gaussian(target, delta, method)
    spent = epsilon([GaussianCount(sigma, 1.0)], delta, method)
    assert 0.99 * target <= spent <= target


@pytest.mark.parametrize(
    ("target", "delta", "q", "steps", "method"),
    [
        (2.0, 1e-3, 0.25, 24, "rdp"),
        (0.5, 1e-3, 0.05, 24, "pld"),
        (1.0, 1e-5, 0.05, 500, "rdp"),
        (0.1, 1e-4, 1.0, 10, "rdp"),
    ],
)
def test_the_noise_of_a_run_leaves_room_for_what_came_before(
    target: float, delta: float, q: float, steps: int, method: Method
) -> None:
    before = [GaussianCount(noise_for_gaussian(0.15 * target, delta, method), 1.0)]
    sigma = noise_for_steps(target, delta, sampling_probability=q, steps=steps, before=before, method=method)
    spent = epsilon([*before, PoissonGaussianSteps(sigma, q, steps, 1.0)], delta, method)
    assert 0.99 * target <= spent <= target
    alone = noise_for_steps(target, delta, sampling_probability=q, steps=steps, method=method)
    assert alone < sigma


def test_a_budget_that_is_spent_before_training_is_refused() -> None:
    with pytest.raises(PrivacyError, match="the releases before training spend all of epsilon"):
        noise_for_steps(1.0, 1e-5, sampling_probability=0.1, steps=10, before=[GaussianCount(1.0, 1.0)])


@pytest.mark.parametrize(("target", "method"), [(0.0, "rdp"), (-1.0, "pld"), (1e9, "rdp")])
def test_an_impossible_budget_is_refused(target: float, method: Method) -> None:
    with pytest.raises(PrivacyError, match="epsilon"):
        noise_for_gaussian(target, 1e-5, method)
    with pytest.raises(PrivacyError, match="epsilon"):
        noise_for_steps(target, 1e-5, sampling_probability=1.0, steps=10, method=method)


def test_the_library_leaves_no_warnings_on_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        epsilon([PoissonGaussianSteps(1.0, 0.25, 24, 1.0)], 1e-3)  # leaves out orders that do not converge
    assert not caplog.records


@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_epsilon_comes_with_the_order_that_gives_it(delta: float) -> None:
    best, order = epsilon_and_order(RUN, delta)
    assert best == epsilon(RUN, delta)
    assert epsilon_and_order(RUN, delta, [order]) == (best, order)
    others = [epsilon_and_order(RUN, delta, [other])[0] for other in (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)]
    assert min(others) >= best
    divergence = rdp_of_run(16)
    assert others[3] == pytest.approx(epsilon_from_rdp([divergence], [16], delta), rel=1e-9)


def test_nothing_and_no_protection_have_no_order() -> None:
    assert epsilon_and_order([], 1e-4) == (0.0, math.inf)
    assert epsilon_and_order([*RUN, Unprotected("update", 1)], 1e-4) == (math.inf, math.inf)
    with pytest.raises(PrivacyError, match="delta"):
        epsilon_and_order(RUN, 0.0)


#: As RUN without the steps of round 3, in mode ``distributed``; its best order by dp_accounting is between whole ones.
SHARED: tuple[Event, ...] = (
    DistributedCount(3.0, 1.0, honest=4),
    *(DistributedStep(1.1, 0.05, 1.0, r, honest=4) for r in range(1, 13)),
)


def test_shared_releases_cost_what_dp_accounting_says_of_their_sums_at_whole_orders() -> None:
    accountant, anywhere = rdp.RdpAccountant(orders=list(WHOLE_ORDERS)), rdp.RdpAccountant()
    for event in SHARED:
        accountant.compose(event.to_dp_event())
        anywhere.compose(event.to_dp_event())
    for delta in (1e-3, 1e-5):
        ours, order = epsilon_and_order(SHARED, delta)
        assert ours == epsilon(SHARED, delta) == pytest.approx(accountant.get_epsilon(delta), rel=1e-12)
        assert order in WHOLE_ORDERS
    assert anywhere.get_epsilon_and_optimal_order(1e-5)[1] not in WHOLE_ORDERS, "or this test would show nothing"
    assert epsilon(SHARED, 1e-5) > anywhere.get_epsilon(1e-5)
    divergence = rdp_of_sampled_gaussian(1.0, 3.0, 9) + 12 * rdp_of_sampled_gaussian(0.05, 1.1, 9)
    assert epsilon_and_order(SHARED, 1e-5, [9])[0] == pytest.approx(epsilon_from_rdp([divergence], [9], 1e-5), rel=1e-9)


def test_one_shared_release_among_others_asks_for_whole_orders() -> None:
    assert epsilon_and_order([*RUN, DistributedCount(50.0, 1.0, honest=2)], 1e-5)[1] in WHOLE_ORDERS
    with pytest.raises(PrivacyError, match=r"order 2\.5: .*mode distributed .* at whole Rényi orders only"):
        epsilon_and_order(SHARED, 1e-5, [2.0, 2.5])


def test_the_tighter_bound_of_shared_releases_is_that_of_continuous_noise() -> None:
    same = [GaussianCount(3.0, 1.0), PoissonGaussianSteps(1.1, 0.05, 12, 1.0, 1)]
    assert epsilon(SHARED, 1e-4, "pld") == pytest.approx(epsilon(same, 1e-4, "pld"), rel=1e-9)


@pytest.mark.parametrize("method", ["rdp", "pld"])
def test_if_others_collude_the_noise_of_one_share_is_left(method: Method) -> None:
    left = epsilon_if_others_collude(SHARED, 1e-4, method)
    alone = [DistributedCount(1.5, 1.0, honest=1), *(DistributedStep(0.55, 0.05, 1.0, r, honest=1) for r in range(1, 13))]
    assert left == epsilon(alone, 1e-4, method)
    assert left > epsilon(SHARED, 1e-4, method)
    assert left == epsilon([if_others_collude(event) for event in SHARED], 1e-4, method)
    assert epsilon_if_others_collude(RUN, 1e-4, method) == epsilon(RUN, 1e-4, method)


def test_if_others_collude_more_is_left_the_fewer_are_counted_on() -> None:
    left = [epsilon_if_others_collude([DistributedCount(3.0, 1.0, honest=n)], 1e-5) for n in (1, 2, 3, 10, 100)]
    assert left[0] == epsilon([DistributedCount(3.0, 1.0, honest=1)], 1e-5)
    assert all(a < b for a, b in itertools.pairwise(left))
    assert epsilon_if_others_collude([*SHARED, Unprotected("update", 1)], 1e-4) == math.inf


@pytest.mark.parametrize("method", ["rdp", "pld"])
def test_the_noise_of_shared_releases_meets_the_budget_where_it_is_counted(method: Method) -> None:
    count = noise_for_gaussian(0.3, 1e-4, method, whole_orders=True)
    assert 0.99 * 0.3 <= epsilon([DistributedCount(count, 1.0, honest=4)], 1e-4, method) <= 0.3
    before = [DistributedCount(count, 1.0, honest=4)]
    sigma = noise_for_steps(2.0, 1e-4, sampling_probability=0.05, steps=12, before=before, method=method)
    steps = [DistributedStep(sigma, 0.05, 1.0, r, honest=4) for r in range(1, 13)]
    assert 0.99 * 2.0 <= epsilon([*before, *steps], 1e-4, method) <= 2.0
    assert sigma == noise_for_steps(
        2.0, 1e-4, sampling_probability=0.05, steps=12, before=before, method=method, whole_orders=True
    )


def test_noise_that_was_calibrated_at_any_order_would_pass_the_budget_of_a_shared_release() -> None:
    """The reason for ``whole_orders``."""
    sigma = noise_for_gaussian(8.0, 1e-2)
    assert epsilon([DistributedCount(sigma, 1.0, honest=4)], 1e-2) > 8.0
    sigma = noise_for_gaussian(8.0, 1e-2, whole_orders=True)
    assert epsilon([DistributedCount(sigma, 1.0, honest=4)], 1e-2) <= 8.0


@pytest.mark.parametrize(("q", "sigma"), [(1.0, 2.0), (0.2, 1.0), (0.5, 0.7)])
@pytest.mark.parametrize("eps", [0.5, 1.5])
def test_delta_of_discrete_noise_is_that_of_continuous_noise_but_for_the_square_of_its_step(
    q: float, sigma: float, eps: float
) -> None:
    """So the tighter figures say something of discrete noise too: with n steps to a user's bound it is off by less than 1 / n²,
    and mode ``distributed`` has some 2^29. One release, added up over the grid, against the closed form for continuous noise."""
    where = sigma**2 * math.log((math.exp(eps) - 1 + q) / q) + 0.5  # from here on the user shows by more than eps
    with_user, without = stats.norm.sf((where - 1) / sigma), stats.norm.sf(where / sigma)
    continuous = q * with_user + (1 - q) * without - math.exp(eps) * without
    for n in (10, 100, 1000):
        s = sigma * n
        x = np.arange(-math.ceil(12 * s), math.ceil(12 * s) + n + 1, dtype=np.float64)
        absent, there = np.exp(-(x**2) / (2 * s**2)), np.exp(-((x - n) ** 2) / (2 * s**2))
        absent, there = absent / absent.sum(), there / there.sum()
        discrete = float(np.maximum((1 - q) * absent + q * there - math.exp(eps) * absent, 0).sum())
        assert abs(discrete / continuous - 1) < 1 / n**2
    assert epsilon([DistributedStep(sigma, q, 1.0, honest=2)], continuous, "pld") == pytest.approx(eps, rel=2e-3)
