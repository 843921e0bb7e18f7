r"""One training run against a claimed trade-off curve (f-DP): is this number of right guesses possible?

Mahloujifar, Melis & Chaudhuri 2024, "Auditing f-differential privacy in one run" (arXiv 2410.22235). A claim about a whole curve
says more than one pair (epsilon, delta), so fewer guesses refute it than with Steinke, Nasr & Jagielski's bound
(``common.privacy.audit.one_run``). What it refutes is the *curve*.

The statement, and why it holds
-------------------------------
Each of m canaries is included by a fair coin of its own, u in {0, 1}^m. The mechanism runs once. From its output alone,
somebody guesses the coins of exactly c canaries. p_i is the probability that exactly i guesses are right. The mechanism is f-DP
for canaries added *and* removed; F(x) = 1 - f(x), concave and growing.

*Lemma.* For every set T of counts: sum_{i in T} (i/m) p_i <= F(sum_{i in T} ((c-i+1)/m) p_{i-1}).

*Proof.* Fix u and a canary j, and take the outputs for which j is guessed as u_j and the number of right guesses, measured
against u, lies in T. Let u' differ from u in j alone. f-DP: P[outputs | u] <= F(P[outputs | u']). Measured against u', such an
output guesses j wrongly and has one right guess less. Average over u uniform, so u' is uniform as well, and over j uniform.
Given i right guesses, a share i/m of canaries is guessed rightly, and given i-1 a share (c-i+1)/m wrongly. F is concave: Jensen
moves the average inside. []

*The largest tail.* With T = {i, ..., c}, r_i = sum_{l >= i} (l/m) p_l and h_i = sum_{l >= i} ((c-l)/m) p_l, the lemma says
h_{i-1} >= G(r_i) with G the inverse of F, for each i; and r_0 + h_0 = c/m because probabilities sum to 1. Ask whether P[at
least v right] can be tau. Moving mass from a count to the next lower one raises all later h by as much as it lowers the later r
(each by 1/m for each unit), so it breaks no constraint at lower counts. Hence, if any distribution satisfies the constraints
with i <= v, so does the one with mass tau at v exactly and, below v, no more mass at each count than its constraint asks for.
Its total is computed from v downwards. If it passes 1, tau is impossible. The total grows with tau (the same move: from v to v
- 1), so the largest possible tau is found by bisection; it is a p-value. []

For a symmetric curve the inverse of f is f, so G(y) = f(1 - y). A curve below the true one only makes the test more careful.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from common.errors import PrivacyError
from common.privacy.audit.gaussian_bound import check_level, gaussian_epsilon

#: Type-1 error in [0, 1] -> least type-2 error. Convex, not growing, symmetric (f(f(x)) = x where f(x) > 0), at most 1 - x.
TradeOff = Callable[[float], float]

#: No p-value is given below it: a curve is evaluated at 1 minus it, which float64 must still tell from 1.
LEAST_P = 1e-9

#: Beyond it nothing is hidden: the bound stops there.
LARGEST_MU = 100.0


@dataclass(frozen=True)
class FdpBound:
    """Largest mu for which mu-GDP is refuted, and its epsilon at ``delta``; both 0 when none is."""

    mu: float
    epsilon: float
    delta: float
    n_canaries: int
    n_guesses: int
    n_correct: int
    confidence: float


def gaussian_trade_off(mu: float) -> TradeOff:
    """The curve of mu-GDP: f(x) = Phi(Phi^-1(1 - x) - mu)."""
    from scipy.special import ndtr, ndtri

    if not 0 <= mu < math.inf:
        raise PrivacyError(f"mu = {mu}, must be at least 0 and finite")
    return lambda x: float(ndtr(-ndtri(x) - mu))


def trade_off_from_profile(epsilons: ArrayLike, deltas: ArrayLike) -> TradeOff:
    """The curve of a mechanism that is (epsilon, delta)-DP for every pair given, such as points of a privacy profile.

    It is the upper envelope of the pairs' own curves (Dong, Roth & Su 2019, proposition 3): a lower bound of the mechanism's
    curve, whatever the pairs, so what it refutes is refuted. More pairs, finer curve;
    ``dp_accounting.pld.PLDAccountant.get_delta`` gives rounded-up ones, for add and remove both, for composed steps of
    Poisson-sampled Gaussians.

    Parameters
    ----------
    epsilons, deltas:
        ``(n,)``, epsilons at least 0, deltas in [0, 1].
    """
    eps, delta = np.atleast_1d(np.asarray(epsilons, dtype=np.float64)), np.atleast_1d(np.asarray(deltas, dtype=np.float64))
    if eps.ndim != 1 or eps.shape != delta.shape or not len(eps):
        raise PrivacyError(
            f"privacy profile with {eps.shape} epsilons and {delta.shape} deltas: need as many of one as of the other"
        )
    if not ((eps >= 0) & np.isfinite(eps)).all() or not ((delta >= 0) & (delta <= 1)).all():
        raise PrivacyError("privacy profile: epsilons must be at least 0 and finite, deltas in [0, 1]")
    grow, shrink = np.exp(eps), np.exp(-eps)

    def curve(x: float) -> float:
        room = 1 - delta
        return max(0.0, float(np.max(room - grow * x)), float(np.max(shrink * (room - x))))

    return curve


def fdp_p_value(trade_off: TradeOff, *, n_canaries: int, n_guesses: int, n_correct: int) -> float:
    """Largest probability that any mechanism within ``trade_off`` gives to ``n_correct`` or more right guesses (rounded up).

    A p-value of the claim if the number of guesses was fixed before the scores were seen.

    Raises
    ------
    PrivacyError
        If the counts do not fit, or ``trade_off`` is no symmetric trade-off curve.
    """
    check_counts(n_canaries, n_guesses, n_correct)
    _check_curve(trade_off)
    inverse: Callable[[float], float] = lambda y: trade_off(1 - y)  # noqa: E731
    if n_correct == 0 or not _impossible(inverse, n_canaries, n_guesses, n_correct, 1.0):
        return 1.0
    low, high = math.log(LEAST_P), 0.0  # of tau
    if _impossible(inverse, n_canaries, n_guesses, n_correct, LEAST_P):
        return LEAST_P
    while high - low > 1e-7:
        middle = (low + high) / 2
        if _impossible(inverse, n_canaries, n_guesses, n_correct, math.exp(middle)):
            high = middle
        else:
            low = middle
    return math.exp(high)


def fdp_reject(trade_off: TradeOff, *, n_canaries: int, n_guesses: int, n_correct: int, confidence: float = 0.95) -> bool:
    """Whether the claim is refuted: a mechanism within ``trade_off`` reaches this with probability below 1 - ``confidence``.

    Raises
    ------
    PrivacyError
        As :func:`fdp_p_value`, or if ``confidence`` does not fit.
    """
    check_counts(n_canaries, n_guesses, n_correct)
    check_level(confidence)
    _check_curve(trade_off)
    return n_correct > 0 and _impossible(lambda y: trade_off(1 - y), n_canaries, n_guesses, n_correct, 1 - confidence)


def fdp_bound_gaussian(n_canaries: int, n_guesses: int, n_correct: int, *, delta: float, confidence: float = 0.95) -> FdpBound:
    """Largest mu such that mu-GDP is refuted, rounded down by less than 1e-6, and its epsilon at ``delta``.

    What it says of a mechanism that is not Gaussian: no mu below is a true statement of Gaussian differential privacy about it.
    Steps of a Poisson-sampled Gaussian have a curve of their own; test that one with :func:`fdp_reject`.

    Raises
    ------
    PrivacyError
        If the counts, ``delta`` or ``confidence`` do not fit.
    """
    from scipy.special import ndtr, ndtri

    check_counts(n_canaries, n_guesses, n_correct)
    check_level(confidence)
    if not 0 < delta < 1:
        raise PrivacyError(f"delta = {delta}, must be in (0, 1): a Gaussian mechanism has no finite epsilon at delta = 0")

    def refuted(mu: float) -> bool:
        return _impossible(lambda y: float(ndtr(ndtri(y) - mu)), n_canaries, n_guesses, n_correct, 1 - confidence)

    low, high = 0.0, 1.0
    if n_correct == 0 or not refuted(0.0):
        return FdpBound(0.0, 0.0, delta, n_canaries, n_guesses, n_correct, confidence)
    while high < LARGEST_MU and refuted(high):
        low, high = high, min(2 * high, LARGEST_MU)
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return FdpBound(low, gaussian_epsilon(low, delta), delta, n_canaries, n_guesses, n_correct, confidence)


def _impossible(inverse: Callable[[float], float], m: int, c: int, v: int, tau: float) -> bool:
    """Whether the least total probability that goes with tail ``tau`` at ``v`` passes 1. The names are the module's."""
    whole = c / m * (1 + 1e-12)  # rounding alone refutes nothing
    r, h = tau * v / m, tau * (c - v) / m
    for i in range(v - 1, -1, -1):
        needed = inverse(r)
        if needed <= h:  # this count needs no mass, so r stays, so no later one needs any
            break
        r, h = r + (needed - h) * i / (c - i), needed
        if r + h > whole:
            return True
    return r + h > whole


def check_counts(n_canaries: int, n_guesses: int, n_correct: int) -> None:
    """Raises
    ------
    PrivacyError
        Unless 1 <= guesses <= canaries and 0 <= right ones <= guesses, all whole.
    """
    counts = (n_canaries, n_guesses, n_correct)
    if any(isinstance(n, bool) or not isinstance(n, int | np.integer) for n in counts) or not (
        1 <= n_guesses <= n_canaries and 0 <= n_correct <= n_guesses
    ):
        raise PrivacyError(
            f"{n_canaries} canaries, {n_guesses} guesses, {n_correct} right: must be whole, with 1 <= guesses <= canaries and "
            "0 <= right <= guesses"
        )


def _check_curve(trade_off: TradeOff) -> None:
    """On points: in [0, 1 - x], not growing, convex, symmetric."""
    points = np.linspace(0, 1, 41)
    values = np.array([float(trade_off(float(x))) for x in points])
    if not np.isfinite(values).all() or (values < 0).any() or (values > 1 - points + 1e-9).any():
        raise PrivacyError("the claimed trade-off curve leaves [0, 1 - x]: no mechanism has such a curve")
    if (np.diff(values) > 1e-9).any() or (np.diff(values, 2) < -1e-9).any():
        raise PrivacyError("the claimed trade-off curve is not a convex, falling curve")
    twice = np.array([float(trade_off(float(y))) for y in values])
    if (np.abs(twice - points)[values > 1e-6] > 1e-4).any():
        raise PrivacyError("the claimed trade-off curve is not symmetric: take the curve that holds for adding and for removing")
