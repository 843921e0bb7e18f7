"""The f-DP bound against closed forms, a linear programme, mechanisms whose distribution is known exactly, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import expit, ndtr
from scipy.stats import binom

from common.errors import PrivacyError
from common.privacy.audit.fdp_bound import (
    fdp_bound_gaussian,
    fdp_p_value,
    fdp_reject,
    gaussian_trade_off,
    trade_off_from_profile,
)
from common.privacy.audit.gaussian_bound import gaussian_delta, gaussian_epsilon, gaussian_mu
from common.privacy.audit.one_run import guess
from common.privacy.events import PoissonGaussianSteps


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0, 2.5])
def test_one_canary_is_guessed_as_well_as_the_neyman_pearson_lemma_allows(mu: float) -> None:
    """The best guess of one coin from N(0, 1) or N(mu, 1) is right with probability Phi(mu / 2): there the bound is tight."""
    p = fdp_p_value(gaussian_trade_off(mu), n_canaries=1, n_guesses=1, n_correct=1)
    assert p == pytest.approx(ndtr(mu / 2), rel=1e-5)


@pytest.mark.parametrize("epsilons", [[0.0], [1.0], [0.2, 0.7, 1.5, 3.0]])
@pytest.mark.parametrize(("m", "c", "v"), [(1, 1, 1), (10, 4, 3), (12, 12, 10), (40, 9, 9), (60, 25, 21)])
def test_the_p_value_is_the_optimum_of_the_linear_programme_that_it_stands_for(
    epsilons: list[float], m: int, c: int, v: int
) -> None:
    """For a curve of straight lines the constraints of the proof are linear: a general solver finds the same largest tail."""
    deltas = [gaussian_delta(1.0, eps) for eps in epsilons]
    rows = []
    for i in range(1, v + 1):
        right, wrong = np.zeros(c + 1), np.zeros(c + 1)
        right[i:] = np.arange(i, c + 1) / m
        wrong[i - 1 : c] = (c - np.arange(i - 1, c)) / m
        for eps, delta in zip(epsilons, deltas, strict=True):
            rows.append((right - math.exp(eps) * wrong, delta))  # right <= delta + e^eps wrong
            rows.append((math.exp(-eps) * right - wrong, math.exp(-eps) * (math.exp(eps) - 1 + delta)))  # its mirror image
    tail = np.zeros(c + 1)
    tail[v:] = -1
    solved = linprog(tail, A_ub=np.array([r for r, _ in rows]), b_ub=[b for _, b in rows], A_eq=np.ones((1, c + 1)), b_eq=[1.0])
    p = fdp_p_value(trade_off_from_profile(epsilons, deltas), n_canaries=m, n_guesses=c, n_correct=v)
    assert p == pytest.approx(-solved.fun, rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("delta", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("n", [5, 60])
def test_no_number_of_right_guesses_is_likelier_than_the_bound_when_all_canaries_fall_together(
    epsilon: float, delta: float, n: int
) -> None:
    """With probability delta all is told, else each coin by randomised response: (epsilon, delta)-DP, and dependent."""
    curve = trade_off_from_profile([epsilon], [delta])
    for v in range(n + 1):
        truth = delta + (1 - delta) * binom.sf(v - 1, n, expit(epsilon))
        assert truth <= fdp_p_value(curve, n_canaries=n, n_guesses=n, n_correct=v) * (1 + 1e-6)


@pytest.mark.parametrize(("m", "c"), [(50, 50), (50, 10), (300, 20), (300, 150)])
def test_no_number_of_right_guesses_is_likelier_than_the_bound_for_a_gaussian_mechanism(m: int, c: int) -> None:
    """10,000 runs of a true Gaussian mechanism. For each v, a correct bound fails here with probability at most 1e-6."""
    mu, runs = 1.0, 10_000
    rng = np.random.default_rng(11)
    right = np.zeros(runs, dtype=int)
    for run in range(runs):
        included = rng.random(m) < 0.5
        scores = rng.standard_normal(m) + mu * included
        right[run] = guess(scores, included, c).correct
    for v in range(c // 2, c + 1):
        p = fdp_p_value(gaussian_trade_off(mu), n_canaries=m, n_guesses=c, n_correct=v)
        assert (right >= v).sum() <= binom.ppf(1 - 1e-6, runs, min(p, 1 - 1e-12))


def test_a_true_gaussian_mechanism_is_refuted_no_more_often_than_stated() -> None:
    """200 audits at 95 %: more than 21 false alarms happen to a correct bound with probability below 1e-3."""
    delta = 1e-5
    mu = gaussian_mu(4.0, delta)
    rng, wrong = np.random.default_rng(5), 0
    for _ in range(200):
        included = rng.random(300) < 0.5
        made = guess(rng.standard_normal(300) + mu * included, included, 60)
        wrong += fdp_bound_gaussian(300, made.n, made.correct, delta=delta).epsilon > 4.0
    assert wrong <= binom.ppf(1 - 1e-3, 200, 0.05)


def test_a_mechanism_with_half_the_claimed_noise_is_refuted() -> None:
    rng, found = np.random.default_rng(6), 0
    for _ in range(20):
        included = rng.random(1000) < 0.5
        made = guess(rng.standard_normal(1000) + 2.0 * included, included, 200)
        found += fdp_reject(gaussian_trade_off(1.0), n_canaries=1000, n_guesses=made.n, n_correct=made.correct)
    assert found >= 19


def test_the_bound_is_the_largest_mu_refuted() -> None:
    for m, c, v in [(1000, 100, 90), (1000, 37, 35), (500, 500, 330)]:
        mu = fdp_bound_gaussian(m, c, v, delta=1e-5).mu
        assert fdp_reject(gaussian_trade_off(mu - 1e-5), n_canaries=m, n_guesses=c, n_correct=v)
        assert not fdp_reject(gaussian_trade_off(mu + 1e-5), n_canaries=m, n_guesses=c, n_correct=v)


def test_rejection_and_p_value_say_the_same() -> None:
    curve = gaussian_trade_off(0.8)
    for v in range(50, 101, 5):
        p = fdp_p_value(curve, n_canaries=800, n_guesses=100, n_correct=v)
        assert fdp_reject(curve, n_canaries=800, n_guesses=100, n_correct=v, confidence=0.99) == (p < 0.01)


def test_epsilon_of_the_bound_is_that_of_the_gaussian_mechanism_at_delta() -> None:
    bound = fdp_bound_gaussian(1000, 100, 90, delta=1e-4)
    assert bound.epsilon == pytest.approx(gaussian_epsilon(bound.mu, 1e-4))
    assert bound.epsilon > 0


def test_coin_flips_refute_nothing() -> None:
    assert fdp_bound_gaussian(1000, 100, 50, delta=1e-5).epsilon == 0
    assert fdp_bound_gaussian(1000, 100, 0, delta=1e-5).epsilon == 0


def test_a_profile_of_a_gaussian_gives_a_curve_just_below_the_gaussian_one() -> None:
    epsilons = np.linspace(0, 12, 400)
    curve = trade_off_from_profile(epsilons, [gaussian_delta(1.3, eps) for eps in epsilons])
    exact = gaussian_trade_off(1.3)
    for x in np.linspace(0, 1, 51):
        assert exact(x) - 2e-3 <= curve(x) <= exact(x) + 1e-12


def test_steps_of_a_sampled_gaussian_can_be_tested_by_their_own_curve() -> None:
    """The claim is what dp_accounting says of the steps. Honest steps pass; the same steps without the sampling do not."""
    from dp_accounting import pld

    claim = PoissonGaussianSteps(1.0, 0.1, 30, 1.0)
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3).compose(claim.to_dp_event())
    epsilons = np.linspace(0, 10, 200)
    curve = trade_off_from_profile(epsilons, [accountant.get_delta(eps) for eps in epsilons])
    rng = np.random.default_rng(8)
    m, c = 2000, 200
    included = rng.random(m) < 0.5
    noise = rng.standard_normal(m) * math.sqrt(claim.steps)
    honest = guess(noise + included * rng.binomial(claim.steps, claim.sampling_probability, m), included, c)
    cheating = guess(noise + included * claim.steps, included, c)
    assert not fdp_reject(curve, n_canaries=m, n_guesses=c, n_correct=honest.correct)
    assert fdp_reject(curve, n_canaries=m, n_guesses=c, n_correct=cheating.correct, confidence=0.999)


def test_what_is_no_trade_off_curve_is_refused() -> None:
    counts = {"n_canaries": 10, "n_guesses": 5, "n_correct": 5}
    with pytest.raises(PrivacyError, match="leaves"):
        fdp_p_value(lambda x: 1.0, **counts)
    with pytest.raises(PrivacyError, match="convex"):
        fdp_p_value(lambda x: 0.5 if x < 0.5 else 0.0, **counts)
    with pytest.raises(PrivacyError, match="symmetric"):
        fdp_p_value(lambda x: max(0.0, 0.5 - 0.5 * x), **counts)
    with pytest.raises(PrivacyError, match="profile"):
        trade_off_from_profile([1.0, 2.0], [0.1])
    with pytest.raises(PrivacyError, match="delta = 0"):
        fdp_bound_gaussian(10, 5, 5, delta=0.0)
    with pytest.raises(PrivacyError, match="right"):
        fdp_reject(gaussian_trade_off(1.0), n_canaries=10, n_guesses=5, n_correct=6)
