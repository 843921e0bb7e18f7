"""The reference against four others: 40-digit quadrature, the closed sum, Opacus' signed series, and dp_accounting.

Measured with dp_accounting 0.6.0: at whole orders it is exact. Between whole orders it sums the series of Mironov, Talwar & Zhang
2019, section 3.3, with the absolute values of the binomial coefficients, which alternate in sign; there it is above the truth, by
a factor of 100 at worst on the grid below, and gives up (infinity) where the series converges slowly. It is never below.
"""

from __future__ import annotations

import itertools
import logging
import math
import subprocess
import sys
from collections.abc import Sequence

import dp_accounting
import mpmath
import numpy as np
import pytest
from dp_accounting import rdp
from dp_accounting.rdp import rdp_privacy_accountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis import rdp as opacus_rdp
from scipy import special, stats

from common.errors import PrivacyError
from common.privacy import accountant
from common.privacy.audit import rdp_reference as reference
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

PROBABILITIES = (1e-4, 1e-3, 0.01, 0.05, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0)
NOISES = (0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
WHOLE = (2, 3, 5, 8, 16, 32, 63, 100, 256)
BETWEEN = (1.1, 1.25, 1.5, 1.9, 2.5, 3.7, 5.5, 10.9, 32.5, 100.5)
GRID = tuple(itertools.product(PROBABILITIES, NOISES))


def of_dp_accounting(q: float, sigma: float, orders: Sequence[float]) -> list[float]:
    """One step's RDP as its accountant holds it."""
    held = rdp.RdpAccountant(orders=list(orders))
    held.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma)))
    return [float(value) for value in held._rdp]


def by_high_precision(q: float, sigma: float, order: float, *, addition: bool = False) -> float:
    """The definition, integrated with 40 digits: no rearrangement, no logarithms."""
    with mpmath.workdps(40):
        s, p = mpmath.mpf(sigma), mpmath.mpf(1 - order if addition else order)

        def integrand(x: mpmath.mpf) -> mpmath.mpf:
            ratio = 1 - mpmath.mpf(q) + mpmath.mpf(q) * mpmath.exp((2 * x - 1) / (2 * s * s))
            return ratio**p * mpmath.exp(-x * x / (2 * s * s)) / (s * mpmath.sqrt(2 * mpmath.pi))

        low, high = min(0, float(p)) - 14 * sigma, max(1.0, float(p)) + 14 * sigma
        points = list(mpmath.linspace(low, high, 2 + math.ceil((high - low) / (3 * sigma))))
        return float(mpmath.log(mpmath.quad(integrand, points)) / (mpmath.mpf(order) - 1))


def by_series(q: float, sigma: float, order: float, *, signed: bool, terms: int = 400) -> float:
    """Mironov, Talwar & Zhang 2019, section 3.3, for real orders, with the signs of the coefficients or without."""
    i = np.arange(terms, dtype=np.float64)
    j = order - i
    z = sigma**2 * math.log(1 / q - 1) + 0.5
    sign = special.gammasgn(j + 1) if signed else np.ones(terms)
    choose = special.gammaln(order + 1) - special.gammaln(i + 1) - special.gammaln(j + 1)
    left = choose + i * math.log(q) + j * math.log1p(-q) + (i * i - i) / (2 * sigma**2) + special.log_ndtr((z - i) / sigma)
    right = choose + j * math.log(q) + i * math.log1p(-q) + (j * j - j) / (2 * sigma**2) + special.log_ndtr((j - z) / sigma)
    return math.log(math.fsum(sign * np.exp(left)) + math.fsum(sign * np.exp(right))) / (order - 1)


@pytest.mark.parametrize(
    ("q", "sigma", "order"),
    [
        (0.25, 20.0, 1.1),  # dp_accounting: 108 times as much
        (0.1, 10.0, 1.5),
        (0.01, 0.7, 1.1),
        (1e-4, 0.3, 1.25),
        (1e-4, 20.0, 1.9),  # a cost of 2e-11
        (0.5, 2.0, 2.5),
        (0.05, 1.0, 3.7),
        (0.25, 0.5, 5.5),
        (0.9, 0.3, 1.1),  # dp_accounting: gives up
        (0.999, 1.0, 1.5),
        (0.02, 1.1, 16.5),
        (0.3, 4.0, 20.5),
        (0.5, 2.0, 40.0),
        (0.01, 0.3, 32.0),
        (0.99, 1.5, 12.5),
        (0.9999, 0.7, 6.3),
    ],
)
def test_both_directions_are_those_of_high_precision(q: float, sigma: float, order: float) -> None:
    removal = by_high_precision(q, sigma, order)
    assert reference.divergence_of_removal(q, sigma, order) == pytest.approx(removal, rel=1e-10)
    addition = by_high_precision(q, sigma, order, addition=True)
    assert reference.divergence_of_addition(q, sigma, order) == pytest.approx(addition, rel=1e-10)
    assert reference.rdp_of_sampled_gaussian(q, sigma, order) == pytest.approx(max(removal, addition), rel=1e-10)


@pytest.mark.parametrize("order", WHOLE)
def test_the_quadrature_is_the_closed_sum_at_whole_orders(order: int) -> None:
    for q, sigma in GRID:
        closed = reference.rdp_by_binomial_sum(q, sigma, order)
        assert reference.rdp_of_sampled_gaussian(q, sigma, order) == pytest.approx(closed, rel=1e-10), (q, sigma)


def test_dp_accounting_agrees_within_a_thousandth_at_whole_orders() -> None:
    for q, sigma in GRID:
        for order, theirs in zip(WHOLE, of_dp_accounting(q, sigma, WHOLE), strict=True):
            assert reference.rdp_of_sampled_gaussian(q, sigma, order) == pytest.approx(theirs, rel=1e-3), (q, sigma, order)


def test_dp_accounting_is_never_below_between_whole_orders(caplog: pytest.LogCaptureFixture) -> None:
    """There it is an upper bound; on most of the grid within a thousandth, and wherever everybody takes part."""
    near = 0
    with caplog.at_level(logging.CRITICAL):
        for q, sigma in GRID:
            for order, theirs in zip(BETWEEN, of_dp_accounting(q, sigma, BETWEEN), strict=True):
                ours = reference.rdp_of_sampled_gaussian(q, sigma, order)
                assert theirs >= ours * (1 - 1e-3), (q, sigma, order)
                near += theirs <= ours * (1 + 1e-3)
                if q == 1.0:
                    assert theirs == pytest.approx(ours, rel=1e-12)
    assert near > 0.6 * len(GRID) * len(BETWEEN)


@pytest.mark.parametrize(
    ("q", "sigma", "order"), [(0.25, 2.0, 2.5), (0.1, 3.0, 1.5), (0.01, 1.0, 1.25), (0.05, 1.0, 3.7), (0.25, 10.0, 3.7)]
)
def test_the_difference_is_the_signs_of_the_series(q: float, sigma: float, order: float) -> None:
    ours = reference.rdp_of_sampled_gaussian(q, sigma, order)
    (theirs,) = of_dp_accounting(q, sigma, [order])
    assert by_series(q, sigma, order, signed=True) == pytest.approx(ours, rel=1e-6)
    assert by_series(q, sigma, order, signed=False) == pytest.approx(theirs, rel=1e-6)
    assert theirs > 1.001 * ours


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("q", [0.01, 0.1, 0.3])
def test_opacus_agrees_at_all_orders(q: float, sigma: float) -> None:
    """It keeps the signs."""
    theirs = opacus_rdp.compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=[*BETWEEN[:8], *WHOLE[:6]])
    ours = [reference.rdp_of_sampled_gaussian(q, sigma, order) for order in (*BETWEEN[:8], *WHOLE[:6])]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 20.0, 1e4])
@pytest.mark.parametrize("order", [1.01, 1.5, 2.0, 7.3, 64.0])
def test_the_quadrature_gives_the_closed_form_where_everybody_takes_part(sigma: float, order: float) -> None:
    """Mironov 2017, proposition 7: order / 2s², the same in both directions."""
    exact = order / (2 * sigma**2)
    assert reference.divergence_of_removal(1.0, sigma, order) == pytest.approx(exact, rel=1e-9)
    assert reference.divergence_of_addition(1.0, sigma, order) == pytest.approx(exact, rel=1e-9)
    assert reference.rdp_of_sampled_gaussian(1.0, sigma, order) == exact


def test_costs_far_below_the_rounding_of_one_are_right() -> None:
    """To second order in q the cost is order · q² · (exp(1/s²) - 1) / 2; adding it to 1 first would leave nothing."""
    for q, sigma, order in ((1e-9, 1.0, 1.5), (1e-7, 100.0, 3.3), (1e-10, 5.0, 2.0)):
        small = 0.5 * order * q**2 * math.expm1(1 / sigma**2)
        assert small < 1e-16
        assert reference.rdp_of_sampled_gaussian(q, sigma, order) == pytest.approx(small, rel=1e-5)


@given(
    st.floats(-6, 0).map(lambda x: 10**x),
    st.floats(math.log10(0.2), 2).map(lambda x: 10**x),
    st.floats(1.05, 300),
)
@settings(max_examples=200, deadline=None)
def test_removal_is_the_worse_direction_and_more_noise_costs_less(q: float, sigma: float, order: float) -> None:
    """Mironov, Talwar & Zhang 2019, theorem 5; and Rényi divergence grows with the order and with q, and falls with the noise."""
    cost = reference.divergence_of_removal(q, sigma, order)
    slack = 1 + 1e-9
    assert 0 < reference.divergence_of_addition(q, sigma, order) <= cost * slack
    assert cost <= order / (2 * sigma**2) * slack  # sampling never costs
    assert reference.rdp_of_sampled_gaussian(q, sigma * 1.1, order) <= cost * slack
    assert reference.rdp_of_sampled_gaussian(q * 0.9, sigma, order) <= cost * slack
    assert cost <= reference.rdp_of_sampled_gaussian(q, sigma, order * 1.1) * slack


EVENTS: tuple[Event, ...] = (
    GaussianCount(6.0, 1.0),
    GaussianMetrics(9.0, 2.0, 3),
    PoissonGaussianSteps(1.5, 0.1, 7, 1.0, 1),
    PoissonGaussianSteps(1.5, 0.1, 5, 1.0, 2),
    PoissonGaussianSteps(3.0, 1.0, 2, 1.0, 3),
)


def test_composition_adds_the_costs_of_all_steps() -> None:
    for order in (1.7, 4.0, 33.0):
        by_hand = order / (2 * 36) + order / (2 * 81) + 2 * order / 18 + 12 * by_high_precision(0.1, 1.5, order)
        assert reference.rdp_of_events(EVENTS, order) == pytest.approx(by_hand, rel=1e-10)
    assert reference.mechanisms(EVENTS) == {(1.0, 6.0): 1, (1.0, 9.0): 1, (0.1, 1.5): 12, (1.0, 3.0): 2}


@given(st.floats(1e-12, 60), st.sampled_from(rdp_privacy_accountant.DEFAULT_RDP_ORDERS), st.floats(1e-12, 0.9))
def test_the_conversion_is_that_of_dp_accounting(cost: float, order: float, delta: float) -> None:
    theirs, _ = rdp.compute_epsilon([order], [cost], delta)
    assert reference.epsilon_from_rdp(cost, order, delta) == pytest.approx(theirs, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_epsilon_and_its_order_are_those_of_dp_accounting_at_whole_orders(delta: float) -> None:
    orders = [*range(2, 64), 128, 256]
    ours, order = reference.epsilon_and_order(EVENTS, delta, orders)
    assert (ours, order) == pytest.approx(accountant.epsilon_and_order(EVENTS, delta, orders), rel=1e-9)
    assert reference.epsilon_at(EVENTS, delta, order) == ours
    assert all(reference.epsilon_at(EVENTS, delta, other) >= ours for other in orders)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 10.0])
def test_the_conversion_bounds_the_exact_curve_of_one_gaussian(sigma: float) -> None:
    """Balle & Wang 2018, theorem 8: at the epsilon found, delta is in truth smaller."""
    for delta in (1e-2, 1e-5, 1e-9):
        epsilon, _ = reference.epsilon_and_order([GaussianCount(sigma, 1.0)], delta, np.geomspace(1.05, 3000, 400).tolist())
        exact = stats.norm.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * stats.norm.cdf(-0.5 / sigma - epsilon * sigma)
        assert delta / 50 < exact <= delta


def test_nothing_costs_nothing_and_no_protection_costs_everything() -> None:
    assert reference.epsilon_and_order([], 1e-5, [2.0]) == (0.0, math.inf)
    assert reference.epsilon_and_order([*EVENTS, Unprotected("update")], 1e-5, [2.0]) == (math.inf, math.inf)
    assert reference.rdp_of_events([*EVENTS, Unprotected("update")], 2.0) == math.inf
    assert reference.epsilon_and_order([GaussianCount(1e6, 1.0)], 1e-5, [2.0]) == (0.0, 2.0)  # Bretagnolle & Huber


@pytest.mark.parametrize(
    ("q", "sigma", "order", "words"),
    [
        (0.0, 1.0, 2.0, "sampling probability"),
        (1.1, 1.0, 2.0, "sampling probability"),
        (math.nan, 1.0, 2.0, "sampling probability"),
        (0.5, 0.0, 2.0, "noise multiplier"),
        (0.5, 1e-4, 2.0, "noise multiplier"),
        (0.5, math.inf, 2.0, "noise multiplier"),
        (0.5, 1.0, 1.0, "order"),
        (0.5, 1.0, math.inf, "order"),
    ],
)
def test_what_has_no_divergence_is_refused(q: float, sigma: float, order: float, words: str) -> None:
    for compute in (reference.rdp_of_sampled_gaussian, reference.divergence_of_removal, reference.divergence_of_addition):
        with pytest.raises(PrivacyError, match=words):
            compute(q, sigma, order)


def test_the_closed_sum_and_epsilon_refuse_what_they_cannot_take() -> None:
    with pytest.raises(PrivacyError, match="whole orders"):
        reference.rdp_by_binomial_sum(0.5, 1.0, 2.5)  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match="delta = 1"):
        reference.epsilon_and_order(EVENTS, 1.0, [2.0])


def test_the_reference_works_without_the_accountants_it_checks() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("dp_accounting", "opacus", "torch", "scipy")))  # importing any of them fails
from common.privacy.audit import rdp_reference
from common.privacy.events import PoissonGaussianSteps
print(rdp_reference.epsilon_and_order([PoissonGaussianSteps(1.5, 0.1, 7, 1.0)], 1e-5, [2.5, 8.0])[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "8.0", done.stderr


SHARED: tuple[Event, ...] = (
    DistributedCount(5.0, 1.0, honest=3),
    *(DistributedStep(2.0, 0.2, 1.0, r, honest=3) for r in range(1, 5)),
    DistributedMetrics(7.0, 1.4, 4, honest=3),
)


def test_mechanisms_of_mode_distributed_are_those_of_the_sums() -> None:
    assert reference.mechanisms(SHARED) == {(1.0, 5.0): 1, (0.2, 2.0): 4, (1.0, 7.0): 1}


@pytest.mark.parametrize("order", [2, 3, 8, 32])
def test_at_whole_orders_shared_releases_cost_the_closed_sums(order: int) -> None:
    closed = order * (1 / 5.0**2 + 1 / 7.0**2) / 2 + 4 * reference.rdp_by_binomial_sum(0.2, 2.0, order)
    assert reference.rdp_of_events(SHARED, order) == pytest.approx(closed, rel=1e-10)
    assert reference.rdp_of_events(SHARED, float(order)) == pytest.approx(closed, rel=1e-10)


@pytest.mark.parametrize("order", [1.02, 1.5, 2.5, 3.7, 10.9, 100.5])
def test_between_whole_orders_shared_releases_cost_the_chord_and_others_what_they_did(order: int) -> None:
    k = math.floor(order)
    ends = [(k - 1) * reference.rdp_of_events(SHARED, k) if k > 1 else 0.0, k * reference.rdp_of_events(SHARED, k + 1)]
    chord = ((k + 1 - order) * ends[0] + (order - k) * ends[1]) / (order - 1)
    assert reference.rdp_of_events(SHARED, order) == pytest.approx(chord, rel=1e-12)
    continuous: list[Event] = [GaussianCount(5.0, 1.0), PoissonGaussianSteps(2.0, 0.2, 4, 1.0), GaussianMetrics(7.0, 1.4, 4)]
    assert reference.rdp_of_events(SHARED, order) > reference.rdp_of_events(continuous, order)
    both = reference.rdp_of_events([*SHARED, *continuous], order)
    assert both == pytest.approx(chord + reference.rdp_of_events(continuous, order), rel=1e-12)


@given(st.floats(1.02, 60), st.floats(0.3, 20), st.floats(0.001, 1.0))
@settings(max_examples=60, deadline=None)
def test_the_filter_charges_shared_releases_as_the_reference_does(order: float, sigma: float, q: float) -> None:
    """Two implementations, of which one integrates and the other adds up binomials; whole orders and between."""
    from common.privacy.filter import rdp_at

    for at in (order, float(round(order) + 1)):
        for event in (DistributedStep(sigma, q, 1.0, honest=2), DistributedCount(sigma, 1.0, honest=2)):
            assert rdp_at(event, at) == pytest.approx(reference.rdp_of_events([event], at), rel=1e-3, abs=1e-9)


def test_without_protection_shared_releases_help_nothing() -> None:
    assert reference.rdp_of_events([*SHARED, Unprotected("update", 1)], 2.5) == math.inf
