"""Gaussian differential privacy against dp_accounting and scipy; the estimate against its stated coverage."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom, nct, norm

from common.errors import PrivacyError
from common.privacy.audit.gaussian_bound import (
    gaussian_delta,
    gaussian_epsilon,
    gaussian_estimate,
    gaussian_mu,
    noncentrality,
)


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("delta", [1e-8, 1e-5, 1e-3, 0.1])
def test_epsilon_and_mu_are_those_of_dp_accounting(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu, delta)
    assert epsilon == pytest.approx(dp_accounting.get_epsilon_gaussian(1 / mu, delta), abs=1e-6)
    if epsilon > 0:
        assert gaussian_mu(epsilon, delta) == pytest.approx(mu, rel=1e-8)
        assert 1 / gaussian_mu(epsilon, delta) == pytest.approx(dp_accounting.get_sigma_gaussian(epsilon, delta), rel=1e-3)


@pytest.mark.parametrize(("mu", "epsilon"), [(0.5, 0.0), (1.0, 1.0), (2.0, 4.0)])
def test_delta_is_the_mass_above_e_to_the_epsilon(mu: float, epsilon: float) -> None:
    def excess(x: float) -> float:
        return max(0.0, norm.pdf(x - mu) - math.exp(epsilon) * norm.pdf(x))

    start = epsilon / mu + mu / 2  # where the ratio of densities is e^epsilon
    assert gaussian_delta(mu, epsilon) == pytest.approx(quad(excess, start, start + 12)[0], rel=1e-6)


def test_no_difference_costs_nothing_and_delta_zero_has_no_epsilon() -> None:
    assert gaussian_epsilon(0.0, 1e-5) == 0
    assert gaussian_delta(0.0, 0.0) == 0
    with pytest.raises(PrivacyError, match="delta = 0"):
        gaussian_epsilon(1.0, 0.0)


@pytest.mark.parametrize(("t", "degrees"), [(-1.0, 5), (0.0, 30), (2.0, 10), (7.5, 200), (20.0, 998)])
@pytest.mark.parametrize("probability", [0.005, 0.025, 0.5, 0.975])
def test_the_non_central_t_is_scipys(t: float, degrees: int, probability: float) -> None:
    assert nct.cdf(t, degrees, noncentrality(t, degrees, probability)) == pytest.approx(probability, abs=1e-6)


@pytest.mark.parametrize("mu", [0.0, 0.9, 4.0])
def test_the_interval_covers_mu_as_often_as_stated(mu: float) -> None:
    """300 samples, each end of the 95 % interval wrong in 2.5 % of them; a correct one passes with probability above 0.998."""
    rng, too_high, too_low = np.random.default_rng(2), 0, 0
    for _ in range(300):
        included = rng.random(60) < 0.5
        found = gaussian_estimate(3 + 2 * (rng.standard_normal(60) + mu * included), included, delta=1e-5)
        too_high += found.mu_low > mu
        too_low += found.mu_high < mu
    most = binom.ppf(1 - 1e-3, 300, 0.025)
    assert too_high <= most
    assert too_low <= most


def test_the_estimate_closes_in_on_the_truth() -> None:
    """Its standard error is 0.02 here; four of them."""
    rng = np.random.default_rng(3)
    included = rng.random(10_000) < 0.5
    found = gaussian_estimate(rng.standard_normal(10_000) + 0.9249 * included, included, delta=1e-5)
    assert found.mu == pytest.approx(0.9249, abs=0.085)
    assert found.epsilon_low < 4.0 < found.epsilon_high
    assert found.method.startswith("approximate")
    assert "Assuming" in found.sentence
    assert not found.assumption_doubtful


def test_scores_that_are_not_normal_with_one_spread_are_reported() -> None:
    rng = np.random.default_rng(4)
    included = rng.random(1000) < 0.5
    wide = gaussian_estimate(rng.standard_normal(1000) * np.where(included, 2.0, 1.0), included, delta=1e-5)
    heavy = gaussian_estimate(rng.standard_t(2, 1000) + included, included, delta=1e-5)
    assert wide.assumption_doubtful
    assert wide.same_spread_p < 1e-6
    assert heavy.assumption_doubtful
    assert heavy.normal_p < 1e-6
    assert "do not rely" in heavy.sentence


def test_huge_differences_give_finite_intervals() -> None:
    rng = np.random.default_rng(5)
    included = rng.random(1000) < 0.5
    found = gaussian_estimate(rng.standard_normal(1000) + 50 * included, included, delta=1e-5)
    assert 45 < found.mu_low < found.mu < found.mu_high < 55


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(PrivacyError, match="needs 3"):
        gaussian_estimate([1.0, 2.0, 3.0], [True, True, False], delta=1e-5)
    with pytest.raises(PrivacyError, match="do not vary"):
        gaussian_estimate([1.0] * 6, [True, False] * 3, delta=1e-5)
    with pytest.raises(PrivacyError, match="score 1 is inf"):
        gaussian_estimate([1.0, math.inf] * 3, [True, False] * 3, delta=1e-5)
    with pytest.raises(PrivacyError, match="boolean"):
        gaussian_estimate([1.0, 2.0] * 3, [1, 0] * 3, delta=1e-5)
    with pytest.raises(PrivacyError, match="confidence"):
        gaussian_estimate([1.0, 2.0] * 3, [True, False] * 3, delta=1e-5, confidence=0.05)
