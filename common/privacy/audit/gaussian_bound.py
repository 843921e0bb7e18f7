"""Gaussian differential privacy: what mu means in epsilon, and an *approximate* estimate of mu from two samples of scores.

A mechanism is mu-GDP when telling neighbours apart is at least as hard as telling N(0, 1) from N(mu, 1) by one draw (Dong, Roth
& Su 2019, arXiv 1905.02383). Its epsilon at a delta is that of the Gaussian mechanism (Balle & Wang 2018, arXiv 1805.06530).

:func:`gaussian_estimate` is no bound that always holds. It assumes that scores of canaries are normal, with one standard
deviation for included and excluded ones, and independent. Nasr et al. 2023 (arXiv 2302.07956) and Andrew et al. 2023 (arXiv
2302.03098) estimate in this spirit. Bounds without such an assumption: ``common.privacy.audit.one_run``,
``common.privacy.audit.fdp_bound``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import PrivacyError

#: Below this p-value the result says that its own assumption looks wrong.
ASSUMPTION_LEVEL = 0.01


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Least delta at which mu-GDP gives ``epsilon``: Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu).

    Raises
    ------
    PrivacyError
        If ``mu`` or ``epsilon`` is negative or no number.
    """
    from scipy.special import log_ndtr

    if not (0 <= mu < math.inf and epsilon >= 0):
        raise PrivacyError(f"mu = {mu}, epsilon = {epsilon}: both must be at least 0, and mu finite")
    if mu == 0 or epsilon == math.inf:
        return 0.0
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return math.exp(first) * -math.expm1(min(0.0, second - first)) if first > -745 else 0.0


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of mu-GDP at ``delta``; 0 for mu = 0.

    Raises
    ------
    PrivacyError
        If ``mu`` is negative or no number, or ``delta`` not in (0, 1): at delta 0 no epsilon is finite.
    """
    from scipy.optimize import brentq

    if not 0 < delta < 1:
        raise PrivacyError(f"delta = {delta}, must be in (0, 1): a Gaussian mechanism has no finite epsilon at delta = 0")
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    above = mu * mu / 2 + mu * math.sqrt(-2 * math.log(delta))  # Chernoff: delta is not passed there
    return float(brentq(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0.0, above, xtol=1e-12, rtol=1e-12))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu whose epsilon at ``delta`` is ``epsilon``, the inverse of :func:`gaussian_epsilon`.

    Raises
    ------
    PrivacyError
        If ``epsilon`` is not positive and finite, or ``delta`` not in (0, 1).
    """
    from scipy.optimize import brentq

    if not 0 < epsilon < math.inf:
        raise PrivacyError(f"epsilon = {epsilon}, must be positive and finite")
    low, high = 0.0, 1.0
    while gaussian_epsilon(high, delta) < epsilon:
        low, high = high, 2 * high
    return float(brentq(lambda mu: gaussian_epsilon(mu, delta) - epsilon, low, high, xtol=1e-12, rtol=1e-12))


@dataclass(frozen=True)
class GaussianEstimate:
    """Mu and epsilon of normal scores with one standard deviation, with two-sided intervals. Approximate: see the module.

    ``same_spread_p`` is the p-value of an F test of equal variances, ``normal_p`` of D'Agostino and Pearson's test of normality
    (the smaller of the two groups' values, doubled; 1 where a group has fewer than 20). ``assumption_doubtful`` says whether
    one is below :data:`ASSUMPTION_LEVEL`; if so the intervals mean nothing. Not finding it doubtful is no proof of it.
    """

    mu: float
    mu_low: float
    mu_high: float
    epsilon: float
    epsilon_low: float
    epsilon_high: float
    delta: float
    confidence: float
    n_included: int
    n_excluded: int
    same_spread_p: float
    normal_p: float
    assumption_doubtful: bool
    sentence: str
    method: str = "approximate: normal scores, common standard deviation"


def gaussian_estimate(scores: ArrayLike, included: ArrayLike, *, delta: float, confidence: float = 0.95) -> GaussianEstimate:
    """Estimate mu = (mean of included - mean of excluded) / common standard deviation, and epsilon at ``delta``.

    Under the assumption, the two-sample t statistic has a non-central t distribution with non-centrality mu over the root of
    1/n_included + 1/n_excluded; the interval of mu inverts it. Epsilon grows with mu, so its interval is the image. Negative
    values of mu are cut at 0.

    Parameters
    ----------
    scores, included:
        ``(m,)`` finite floats, higher for canaries that look included; ``(m,)`` booleans. Each group needs at least 3.
    confidence:
        Of the two-sided interval; each end alone holds with (1 + confidence) / 2.

    Raises
    ------
    PrivacyError
        If shapes, ``delta`` or ``confidence`` do not fit, a group is too small, or the scores do not vary.
    """
    values, member = check_scores(scores, included, finite=True)
    check_level(confidence)
    inside, outside = values[member], values[~member]
    if min(len(inside), len(outside)) < 3:
        raise PrivacyError(f"{len(inside)} included and {len(outside)} excluded canaries: the estimate needs 3 of each")
    degrees = len(values) - 2
    spread = math.sqrt((np.var(inside) * len(inside) + np.var(outside) * len(outside)) / degrees)
    if not spread > 0:
        raise PrivacyError("the scores do not vary: mu cannot be estimated")
    unit = math.sqrt(1 / len(inside) + 1 / len(outside))
    mu = float(inside.mean() - outside.mean()) / spread
    tail = (1 - confidence) / 2
    low, high = (max(0.0, noncentrality(mu / unit, degrees, p) * unit) for p in (1 - tail, tail))
    mu = max(0.0, mu)
    epsilon, epsilon_low, epsilon_high = (gaussian_epsilon(value, delta) for value in (mu, low, high))
    same, normal = _same_spread(inside, outside), _normality(inside, outside)
    doubtful = min(same, normal) < ASSUMPTION_LEVEL
    sentence = (
        f"Assuming normal scores with one standard deviation, epsilon at delta = {delta:g} is about {epsilon:.2f} "
        f"({confidence:.0%} interval {epsilon_low:.2f} to {epsilon_high:.2f})."
    )
    if doubtful:
        sentence += " The scores do not look like that, so do not rely on it."
    return GaussianEstimate(
        mu=mu,
        mu_low=low,
        mu_high=high,
        epsilon=epsilon,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        delta=delta,
        confidence=confidence,
        n_included=len(inside),
        n_excluded=len(outside),
        same_spread_p=same,
        normal_p=normal,
        assumption_doubtful=doubtful,
        sentence=sentence,
    )


def noncentrality(t: float, degrees: float, probability: float) -> float:
    """The non-centrality at which a non-central t with ``degrees`` of freedom is at most ``t`` with this probability.

    P[T <= t] = E[Phi(t W - lambda)] with W = sqrt(chi2 / degrees), integrated by Gauss-Legendre: it holds for large t too.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr
    from scipy.stats import chi

    root = math.sqrt(degrees)
    low, high = (float(chi.ppf(p, degrees)) / root for p in (1e-14, 1 - 1e-14))
    nodes, weights = _legendre()
    places = low + (nodes + 1) * (high - low) / 2
    mass = weights * chi.pdf(places * root, degrees)
    mass /= mass.sum()
    ends = sorted((t * low, t * high))
    return float(brentq(lambda x: float(mass @ ndtr(t * places - x)) - probability, ends[0] - 40, ends[1] + 40, xtol=1e-10))


@lru_cache(maxsize=1)
def _legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.polynomial.legendre.leggauss(200)


def _same_spread(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """Two-sided F test."""
    from scipy.stats import f

    below, above = float(np.var(inside, ddof=1)), float(np.var(outside, ddof=1))
    if not above > 0:
        return 0.0
    ratio, degrees = below / above, (len(inside) - 1, len(outside) - 1)
    return min(1.0, 2 * min(float(f.cdf(ratio, *degrees)), float(f.sf(ratio, *degrees))))


def _normality(*groups: NDArray[np.float64]) -> float:
    from scipy.stats import normaltest

    p_values = [float(normaltest(group).pvalue) for group in groups if len(group) >= 20 and np.ptp(group) > 0]
    return min(1.0, len(p_values) * min(p_values)) if p_values else 1.0


def check_scores(
    scores: ArrayLike, included: ArrayLike, *, finite: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores and membership as arrays of one length.

    Raises
    ------
    PrivacyError
        If one is not ``(m,)``, lengths differ, ``included`` is not boolean, or a score is NaN (with ``finite``: or infinite).
    """
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError):
        raise PrivacyError("scores: expected numbers, one for each canary") from None
    member: NDArray[Any] = np.asarray(included)
    if values.ndim != 1 or member.shape != values.shape or not len(values):
        raise PrivacyError(
            f"scores of shape {values.shape} with membership of shape {member.shape}: both must be (m,), m at least 1"
        )
    if member.dtype != np.bool_:
        raise PrivacyError(f"membership of type {member.dtype}: must be boolean, true for an included canary")
    if np.isnan(values).any() or (finite and not np.isfinite(values).all()):
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise PrivacyError(f"score {bad} is {values[bad]}: every score must be a {'finite ' if finite else ''}number")
    return values, member


def check_level(confidence: float) -> None:
    """Raises
    ------
    PrivacyError
        If ``confidence`` is not in (0.5, 1).
    """
    if not 0.5 < confidence < 1:
        raise PrivacyError(f"confidence = {confidence}, must be in (0.5, 1)")
