"""The bound of Steinke et al. against figures of the paper's authors' kind, sums written out here, and simulated audits."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binom

from common.errors import PrivacyError
from common.privacy.audit.gaussian_bound import gaussian_mu
from common.privacy.audit.one_run import (
    GRID_LENGTH,
    Method,
    audit_scores,
    ceiling,
    guess,
    guess_grid,
    steinke_bound,
    steinke_p_value,
)

Scores = tuple[NDArray[np.float64], NDArray[np.bool_]]


def gaussian_audit(rng: np.random.Generator, m: int, mu: float) -> Scores:
    included = rng.random(m) < 0.5
    return rng.standard_normal(m) + mu * included, included


def randomised_response(rng: np.random.Generator, m: int, epsilon: float) -> Scores:
    """Each coin is told truly with probability e^eps / (1 + e^eps); the included canaries stand first, ties and all."""
    included = np.sort(rng.random(m) < 0.5)[::-1]
    return (included ^ (rng.random(m) < expit(-epsilon))).astype(float), included


@pytest.mark.parametrize(("n", "epsilon"), [(50, 2.78), (100, 3.49), (200, 4.19), (500, 5.11), (1000, 5.81), (5000, 7.42)])
def test_the_best_possible_bounds_are_the_known_ones(n: int, epsilon: float) -> None:
    assert ceiling(n) == pytest.approx(epsilon, abs=0.005)
    assert ceiling(n) == pytest.approx(-math.log(0.05 ** (-1 / n) - 1), abs=1e-8)  # q^n = 0.05, solved by hand


@pytest.mark.parametrize(("m", "n", "v"), [(8, 5, 5), (30, 20, 17), (60, 60, 41), (100, 40, 40), (100, 40, 1)])
@pytest.mark.parametrize("odds", [1, 2, 7, 300])
@pytest.mark.parametrize("delta", [Fraction(0), Fraction(1, 10**6), Fraction(1, 500)])
def test_the_p_value_is_the_theorem_in_exact_fractions(m: int, n: int, v: int, odds: int, delta: Fraction) -> None:
    q = Fraction(odds, odds + 1)
    mass = [math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1)]
    worst = max(sum(mass[v - i : v]) / i for i in range(1, v + 1))
    exact = min(Fraction(1), sum(mass[v:]) + 2 * m * delta * worst)
    assert steinke_p_value(m, n, v, math.log(odds), delta=float(delta)) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("delta", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("n", [5, 60])
def test_no_number_of_right_guesses_is_likelier_than_the_p_value_when_all_canaries_fall_together(
    epsilon: float, delta: float, n: int
) -> None:
    """With probability delta all is told, else each coin by randomised response: (epsilon, delta)-DP, and dependent."""
    for v in range(n + 1):
        truth = delta + (1 - delta) * binom.sf(v - 1, n, expit(epsilon))
        assert truth <= steinke_p_value(n, n, v, epsilon, delta=delta) * (1 + 1e-9)


@pytest.mark.parametrize(("m", "n", "v", "delta"), [(100, 100, 80, 0.0), (1000, 50, 48, 1e-5), (500, 200, 150, 1e-4)])
def test_the_bound_is_the_largest_epsilon_refuted(m: int, n: int, v: int, delta: float) -> None:
    bound = steinke_bound(m, n, v, delta=delta)
    assert steinke_p_value(m, n, v, bound, delta=delta) <= 0.05
    assert steinke_p_value(m, n, v, bound + 1e-6, delta=delta) > 0.05


def test_the_p_value_grows_with_epsilon_and_falls_with_right_guesses() -> None:
    values = np.array(
        [[steinke_p_value(500, 100, v, eps, delta=1e-4) for v in range(50, 101, 5)] for eps in np.linspace(0, 6, 25)]
    )
    assert (np.diff(values, axis=0) >= -1e-12).all()
    assert (np.diff(values, axis=1) <= 1e-12).all()


def test_delta_and_more_canaries_can_only_weaken_the_bound() -> None:
    bounds = [steinke_bound(m, 100, 95, delta=delta) for m, delta in [(100, 0.0), (100, 1e-5), (10_000, 1e-5), (10_000, 1e-4)]]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[-1]


def test_a_hundred_thousand_canaries_are_no_trouble() -> None:
    """99 % right of 100,000: by the normal approximation the odds are at least those of 0.99 - 1.645 standard errors."""
    share = 0.99 - 1.645 * math.sqrt(0.99 * 0.01 / 100_000)
    assert steinke_bound(100_000, 100_000, 99_000) == pytest.approx(math.log(share / (1 - share)), abs=2e-3)
    assert 4 < steinke_bound(100_000, 100_000, 99_000, delta=1e-7) < steinke_bound(100_000, 100_000, 99_000)


@pytest.mark.parametrize(("epsilon", "m"), [(0.5, 300), (1.0, 200), (3.0, 200)])
def test_randomised_response_is_refuted_as_often_as_stated_and_no_more(epsilon: float, m: int) -> None:
    """All m guessed from its output, it is the worst case of the theorem: the bound must be wrong in at most 5 % of 200 audits
    (more than 21 wrong ones happen with probability below 1e-3), and must come near the truth (0.7 of it less 0.15)."""
    rng = np.random.default_rng(1)
    bounds = []
    for _ in range(200):
        scores, included = randomised_response(rng, m, epsilon)
        bounds.append(steinke_bound(m, m, int((included == (scores > 0.5)).sum())))
    assert sum(bound > epsilon for bound in bounds) <= binom.ppf(1 - 1e-3, 200, 0.05)
    assert np.median(bounds) > 0.7 * epsilon - 0.15


@pytest.mark.parametrize("method", ["steinke", "gaussian"])
def test_audits_of_a_true_gaussian_mechanism_are_wrong_no_more_often_than_stated(method: Method) -> None:
    """200 audits over the whole grid at 95 %: more than 21 wrong ones happen to a correct method with probability below 1e-3."""
    delta = 1e-5
    mu, rng, wrong = gaussian_mu(2.0, delta), np.random.default_rng(4), 0
    for _ in range(200):
        wrong += audit_scores(*gaussian_audit(rng, 200, mu), delta=delta, method=method).refutes(2.0)
    assert wrong <= binom.ppf(1 - 1e-3, 200, 0.05)


def test_trying_the_grid_on_randomised_response_is_paid_for() -> None:
    """As above, with the number of guesses chosen after the fact: without the correction this fails (see the next test)."""
    rng, wrong = np.random.default_rng(5), 0
    for _ in range(200):
        wrong += audit_scores(*randomised_response(rng, 243, 1.0), delta=0.0).refutes(1.0)
    assert wrong <= binom.ppf(1 - 1e-3, 200, 0.05)


def test_choosing_among_many_numbers_of_guesses_without_correction_would_be_wrong_too_often() -> None:
    """Why the correction is there: of 60 uncorrected numbers, one is wrong in some 18 % of audits of mere coins."""
    rng, wrong, audits = np.random.default_rng(6), 0, 200
    least = {n: binom.isf(0.05, n, 0.5) for n in range(5, 301, 5)}  # more right ones than that are significant
    for _ in range(audits):
        scores, included = gaussian_audit(rng, 300, 0.0)
        wrong += any(guess(scores, included, n).correct > least[n] for n in least)
    assert wrong > binom.ppf(1 - 1e-3, audits, 0.05)


@pytest.mark.parametrize(
    ("method", "delta", "least"), [("steinke", 1e-5, 0.25), ("steinke", 1e-3, 0.25), ("gaussian", 1e-5, 0.4)]
)
def test_a_thousand_canaries_show_a_good_part_of_a_true_epsilon_of_four(method: Method, delta: float, least: float) -> None:
    """Median of 30 audits over the grid; 0.36, 0.35 and 0.51 of the truth were measured over 50."""
    mu, rng = gaussian_mu(4.0, delta), np.random.default_rng(7)
    found = [audit_scores(*gaussian_audit(rng, 1000, mu), delta=delta, method=method).epsilon_lower for _ in range(30)]
    assert least * 4 <= np.median(found) <= 4


def test_guesses_go_to_both_ends_and_are_counted() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.5, 0.3, 0.2, 0.1])
    included = np.array([True, False, True, True, False, True, False])
    both = guess(scores, included, 5)
    assert (both.n_in, both.n_out, both.correct_in, both.correct_out) == (3, 2, 2, 1)
    assert (both.n, both.correct) == (5, 3)
    assert guess(scores, included, 2, side="in").correct == 1
    assert guess(scores, included, 3, side="out").correct == 2


def test_equal_scores_tell_nothing_even_if_the_included_stand_first() -> None:
    """All scores equal, the included first: about half of the guesses are right, not all (four standard deviations)."""
    included = np.arange(1000) < 500
    for order in (included, ~included):
        assert abs(guess(np.zeros(1000), order, 1000).correct - 500) < 4 * math.sqrt(250)
        assert audit_scores(np.zeros(1000), order, delta=1e-5).epsilon_lower == 0


def test_what_an_audit_could_have_shown_is_what_perfect_scores_show() -> None:
    rng = np.random.default_rng(8)
    included = rng.random(500) < 0.5
    for delta, method in [(0.0, "steinke"), (1e-5, "steinke"), (1e-5, "gaussian")]:
        n = int(2 * min(included.sum(), (~included).sum())) // 2
        perfect = audit_scores(included.astype(float), included, delta=delta, guesses=n, method=method)  # type: ignore[arg-type]
        assert perfect.n_correct == n
        assert perfect.epsilon_lower == pytest.approx(perfect.ceiling)
        useless = audit_scores(rng.standard_normal(500), included, delta=delta, guesses=n, method=method)  # type: ignore[arg-type]
        assert useless.ceiling == perfect.ceiling > useless.epsilon_lower


def test_an_audit_too_small_to_say_anything_says_so() -> None:
    included = np.array([True, False, True, False])
    result = audit_scores([4.0, 1.0, 3.0, 2.0], included, delta=0.0)
    assert not result.can_say_anything
    assert "can say nothing" in result.sentence
    large_delta = audit_scores(np.arange(100.0), np.arange(100) >= 50, delta=0.2)
    assert not large_delta.can_say_anything
    assert "0.2" in large_delta.sentence


def test_a_claim_above_the_ceiling_is_known_to_be_out_of_reach() -> None:
    rng = np.random.default_rng(9)
    result = audit_scores(*gaussian_audit(rng, 100, 5.0), delta=1e-6)
    assert result.could_refute(result.ceiling - 0.01)
    assert not result.could_refute(8.0)
    assert not result.refutes(8.0)
    assert result.refutes(result.epsilon_lower - 0.01)


def test_no_evidence_is_not_sold_as_privacy() -> None:
    result = audit_scores(*gaussian_audit(np.random.default_rng(10), 500, 0.0), delta=1e-5)
    assert result.epsilon_lower == 0
    assert "no evidence of privacy" in result.sentence


def test_the_grid_depends_on_nothing_that_the_scores_show() -> None:
    assert guess_grid(1000) == (1000, 333, 111, 37)
    assert guess_grid(10) == (10,)
    assert len(guess_grid(100_000)) == GRID_LENGTH
    assert guess_grid(1000, delta=1e-3) == (333,)
    assert guess_grid(1000, delta=1e-5) == guess_grid(1000)


def test_several_numbers_of_guesses_share_the_error_probability() -> None:
    scores, included = gaussian_audit(np.random.default_rng(11), 400, 1.5)
    several = audit_scores(scores, included, delta=1e-5, guesses=[40, 100])
    singly = [audit_scores(scores, included, delta=1e-5, guesses=n, confidence=0.975) for n in (40, 100)]
    assert several.epsilon_lower == pytest.approx(max(one.epsilon_lower for one in singly))
    assert several.grid == (40, 100)


def test_coins_that_were_not_fair_are_refused() -> None:
    with pytest.raises(PrivacyError, match="fair coin"):
        audit_scores(np.arange(100.0), np.ones(100, dtype=bool), delta=1e-5)
    with pytest.raises(PrivacyError, match="100 of 1000"):
        audit_scores(np.arange(1000.0), np.arange(1000) < 100, delta=1e-5)


def test_bad_input_is_refused_with_its_reason() -> None:
    coins = np.arange(10) < 5
    with pytest.raises(PrivacyError, match="score 0 is nan"):
        audit_scores([math.nan] * 10, coins, delta=1e-5)
    with pytest.raises(PrivacyError, match=r"\(10,\).*\(9,\)"):
        audit_scores(np.arange(10.0), coins[:9], delta=1e-5)
    with pytest.raises(PrivacyError, match="delta"):
        audit_scores(np.arange(10.0), coins, delta=1.0)
    with pytest.raises(PrivacyError, match="guesses"):
        audit_scores(np.arange(10.0), coins, delta=0.0, guesses=11)
    with pytest.raises(PrivacyError, match="twice"):
        audit_scores(np.arange(10.0), coins, delta=0.0, guesses=[5, 5])
    with pytest.raises(PrivacyError, match="side"):
        audit_scores(np.arange(10.0), coins, delta=0.0, side="up")  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match="confidence"):
        steinke_bound(10, 5, 5, confidence=0.05)
    with pytest.raises(PrivacyError, match="right"):
        steinke_bound(10, 5, 6)
