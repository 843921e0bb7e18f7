"""How well scores tell members from non-members: ROC curve, its area, and true positives at few false ones.

Carlini et al. 2022 (arXiv 2112.03570) argue for true positives at a low false positive rate: an attack that is sure of a few
members does harm though its area is near one half. Such a rate needs non-members enough to be seen; where there are too few,
the answer says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import PrivacyError
from common.privacy.audit.gaussian_bound import check_level, check_scores


@dataclass(frozen=True)
class RateAtFpr:
    """True positive rate at the lowest threshold with at most the asked share of false positives among the non-members at hand.

    ``low`` and ``high`` are Clopper & Pearson's interval. It is exact: the threshold comes from the non-members alone.
    ``fpr_high`` is the upper end of the same interval for the false positive rate at that threshold. Where ``can_say_anything``
    is false, there are fewer than 1 / fpr non-members, the threshold lies above all of them, and the rates are not those at the
    false positive rate asked for.
    """

    fpr: float
    tpr: float
    low: float
    high: float
    fpr_high: float
    threshold: float
    confidence: float
    can_say_anything: bool
    sentence: str


@dataclass(frozen=True, eq=False)
class Roc:
    """An ROC curve. ``fpr``, ``tpr`` and ``thresholds`` are ``(k,)``: a score *above* the threshold is called a member; from
    (0, 0) to (1, 1).

    ``auc`` is the probability that a member scores above a non-member, ties counted by half. Its interval is DeLong's (1988) on
    the logit scale; where that has no width, Newcombe's (2006, method 5).
    """

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    auc: float
    auc_low: float
    auc_high: float
    confidence: float
    n_members: int
    n_non_members: int

    def tpr_at(self, fpr: float) -> RateAtFpr:
        """True positive rate where at most ``fpr`` of non-members are called members.

        Raises
        ------
        PrivacyError
            If ``fpr`` is not in (0, 1).
        """
        if not 0 < fpr < 1:
            raise PrivacyError(f"fpr = {fpr}, must be in (0, 1)")
        allowed = math.floor(fpr * self.n_non_members + 1e-9)
        at = int(np.searchsorted(np.rint(self.fpr * self.n_non_members), allowed, side="right")) - 1
        right, wrong = round(self.tpr[at] * self.n_members), round(self.fpr[at] * self.n_non_members)
        low, high = clopper_pearson(right, self.n_members, self.confidence)
        fpr_high = clopper_pearson(wrong, self.n_non_members, self.confidence)[1]
        enough = allowed >= 1
        if enough:
            sentence = (
                f"At most {fpr:.3g} of non-members called members: {self.tpr[at]:.4g} of members are found "
                f"({self.confidence:.0%} interval {low:.4g} to {high:.4g})."
            )
        else:
            sentence = (
                f"{self.n_non_members} non-members can say nothing about a false positive rate of {fpr:.3g}: "
                f"it needs at least {math.ceil(1 / fpr - 1e-9):,}."
            )
        return RateAtFpr(
            fpr, float(self.tpr[at]), low, high, fpr_high, float(self.thresholds[at]), self.confidence, enough, sentence
        )


def roc(scores: ArrayLike, member: ArrayLike, *, confidence: float = 0.95) -> Roc:
    """ROC curve of ``scores``, higher for what looks like a member.

    Parameters
    ----------
    scores, member:
        ``(n,)`` floats without NaN; ``(n,)`` booleans.
    confidence:
        Of all intervals, two-sided.

    Raises
    ------
    PrivacyError
        If shapes do not fit, or members or non-members are missing.
    """
    values, inside = check_scores(scores, member)
    check_level(confidence)
    n_in, n_out = int(inside.sum()), int((~inside).sum())
    if not n_in or not n_out:
        raise PrivacyError(f"{n_in} members and {n_out} non-members: an ROC curve needs both")
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of each group of equal scores
    tpr = np.append(0.0, np.cumsum(inside[order])[last] / n_in)
    fpr = np.append(0.0, np.cumsum(~inside[order])[last] / n_out)
    # A score above the threshold is called a member: above the next lower score that occurs, or above all and none.
    thresholds = np.append(ranked[0], np.append(ranked[last[:-1] + 1], -np.inf))
    auc, low, high = _area(values[inside], values[~inside], confidence)
    return Roc(fpr, tpr, thresholds, auc, low, high, confidence, n_in, n_out)


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a binomial probability (Clopper & Pearson 1934)."""
    from scipy.stats import beta

    if not 0 <= successes <= trials or trials < 1:
        raise PrivacyError(f"{successes} of {trials}: must be 0 <= successes <= trials, trials at least 1")
    check_level(confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.isf(tail, successes + 1, trials - successes))
    return low, high


def _area(inside: NDArray[np.float64], outside: NDArray[np.float64], confidence: float) -> tuple[float, float, float]:
    from scipy.special import expit, logit, ndtri
    from scipy.stats import rankdata

    n_in, n_out = len(inside), len(outside)
    together = rankdata(np.concatenate([inside, outside]))
    # Of each member, the share of non-members below it, and of each non-member, the share of members above it.
    above = (together[:n_in] - rankdata(inside)) / n_out
    below = 1 - (together[n_in:] - rankdata(outside)) / n_in
    area, z = float(above.mean()), float(ndtri((1 + confidence) / 2))
    variance = (float(np.var(above, ddof=1)) / n_in if n_in > 1 else 0.0) + (
        float(np.var(below, ddof=1)) / n_out if n_out > 1 else 0.0
    )
    if 0 < area < 1 and variance > 0 and min(n_in, n_out) > 1:
        half = z * math.sqrt(variance) / (area * (1 - area))
        return area, float(expit(logit(area) - half)), float(expit(logit(area) + half))
    return area, *_newcombe(area, n_in, n_out, z)


def _newcombe(area: float, n_in: int, n_out: int, z: float) -> tuple[float, float]:
    """Areas from which ``area`` is z standard errors away."""
    from scipy.optimize import brentq

    def away(theta: float) -> float:
        size = (n_in + n_out) / 2 - 1
        shape = (1 - theta) / (2 - theta) + theta / (1 + theta)
        return abs(area - theta) - z * math.sqrt(theta * (1 - theta) * (1 + size * shape) / (n_in * n_out))

    tiny = 1e-12
    low = 0.0 if area <= tiny or away(tiny) < 0 else float(brentq(away, tiny, area - tiny if area == 1 else area))
    high = 1.0 if area >= 1 - tiny or away(1 - tiny) < 0 else float(brentq(away, area + tiny if area == 0 else area, 1 - tiny))
    return low, high
