"""A lower bound on epsilon from one training run (Steinke, Nasr & Jagielski 2023, arXiv 2305.08846).

m canaries are made. Each is put into the training data by a fair coin *of its own*, and the model is trained once. Every canary
gets a score, higher when it looks included. The auditor guesses "included" for the highest scores, "excluded" for the lowest,
and abstains on the rest. If the training was (epsilon, delta)-DP for adding or removing one canary, the number of right guesses
has a known worst case. When the number found is too improbable under it, that epsilon is refuted.

What the bound rests on: independent fair coins (exactly one half included is *not* that, and breaks it), scores computed
without a look at the coins, and a number of guesses fixed before the scores were seen. For the last, :func:`audit_scores` tries
a short grid declared in advance and pays for it by Bonferroni's correction: each of its k numbers is tested at level (1 -
confidence) / k.

A small bound is no evidence of privacy: it may be the audit that is weak. So each result carries the ceiling, the bound that it
would have given had every guess been right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from common.errors import PrivacyError
from common.privacy.audit.fdp_bound import check_counts, fdp_bound_gaussian
from common.privacy.audit.gaussian_bound import check_level, check_scores

Method = Literal["steinke", "gaussian"]
Side = Literal["both", "in", "out"]

#: The grid: all canaries, a third of them, a ninth ... Each number more costs confidence; very few guesses show little.
GRID_RATIO = 3
GRID_LEAST = 20
GRID_LENGTH = 5

#: Coins that come out like this less often than once in ten thousand audits are not believed to be fair.
COIN_LEVEL = 1e-4

_WHAT = {
    "steinke": "refuted for any mechanism",
    "gaussian": "refuted as a claim of Gaussian differential privacy",
}


@dataclass(frozen=True)
class Guesses:
    """How many canaries were guessed included and excluded, and how many of these guesses were right."""

    n_in: int
    n_out: int
    correct_in: int
    correct_out: int

    @property
    def n(self) -> int:
        return self.n_in + self.n_out

    @property
    def correct(self) -> int:
        return self.correct_in + self.correct_out


@dataclass(frozen=True)
class OneRunResult:
    """Outcome of one audit.

    Parameters
    ----------
    epsilon_lower:
        Largest epsilon refuted at ``delta``; 0 when none is.
    n_guesses, n_correct:
        Of the number of guesses that gave it.
    ceiling:
        Largest ``epsilon_lower`` that this audit could have reached, with its canaries, grid and confidence.
    grid:
        The numbers of guesses tried.
    mu_lower:
        Method ``gaussian`` only: largest mu for which mu-GDP is refuted.
    """

    epsilon_lower: float
    n_canaries: int
    n_guesses: int
    n_correct: int
    ceiling: float
    delta: float
    confidence: float
    method: Method
    grid: tuple[int, ...]
    mu_lower: float | None
    sentence: str

    @property
    def can_say_anything(self) -> bool:
        """Whether any scores at all would have given a bound above 0."""
        return self.ceiling > 0

    def refutes(self, claimed_epsilon: float) -> bool:
        """Whether a claim of ``claimed_epsilon`` at ``delta`` is refuted."""
        return self.epsilon_lower > claimed_epsilon

    def could_refute(self, claimed_epsilon: float) -> bool:
        """Whether perfect scores would have refuted ``claimed_epsilon``; if not, passing this audit means nothing."""
        return self.ceiling > claimed_epsilon


def steinke_p_value(n_canaries: int, n_guesses: int, n_correct: int, epsilon: float, *, delta: float = 0.0) -> float:
    """Largest probability that an (epsilon, delta)-DP training gives to ``n_correct`` or more right guesses (theorem 5.2).

    With X binomial(guesses, e^eps / (1 + e^eps)), n_correct = v and m canaries:
    min(1, P[X >= v] + 2 m delta max over i = 1..v of P[v > X >= v - i] / i).

    Raises
    ------
    PrivacyError
        If the counts, ``epsilon`` or ``delta`` do not fit.
    """
    check_counts(n_canaries, n_guesses, n_correct)
    if not epsilon >= 0:
        raise PrivacyError(f"epsilon = {epsilon}, must be at least 0")
    return _steinke(n_canaries, n_guesses, n_correct, delta)(epsilon)


def steinke_bound(n_canaries: int, n_guesses: int, n_correct: int, *, delta: float = 0.0, confidence: float = 0.95) -> float:
    """Largest epsilon refuted, rounded down by less than 1e-9; 0 when none is.

    Valid when the number of guesses was fixed before the scores were seen; ``n_canaries`` counts all, guessed or not.

    The p-value grows with epsilon as long as 2 m delta <= 1; beyond, the search may stop at a smaller epsilon than the largest.
    Every epsilon that it returns is refuted, because (epsilon, delta)-DP implies each larger epsilon.

    Raises
    ------
    PrivacyError
        If the counts, ``delta`` or ``confidence`` do not fit.
    """
    check_counts(n_canaries, n_guesses, n_correct)
    check_level(confidence)
    p_value, level = _steinke(n_canaries, n_guesses, n_correct, delta), 1 - confidence
    if p_value(0.0) > level:
        return 0.0
    low, high = 0.0, 1.0
    while p_value(high) <= level:
        low, high = high, 2 * high
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle) <= level else (low, middle)
    return low


def ceiling(n_guesses: int, confidence: float = 0.95, *, delta: float = 0.0, n_canaries: int | None = None) -> float:
    """The bound of Steinke et al. when every guess is right; nothing that this number of guesses shows can be larger.

    Parameters
    ----------
    n_canaries:
        All canaries, ``n_guesses`` when not given; matters only with ``delta`` above 0.
    """
    return steinke_bound(n_canaries or n_guesses, n_guesses, n_guesses, delta=delta, confidence=confidence)


def guess(scores: ArrayLike, included: ArrayLike, n_guesses: int, *, side: Side = "both") -> Guesses:
    """Guess "included" for the highest scores, "excluded" for the lowest, half of ``n_guesses`` each; count the right ones.

    Equal scores are ordered by a permutation that is always the same for the same number of canaries: by their place they would
    tell who is included, if the included ones stand first.

    Parameters
    ----------
    scores, included:
        ``(m,)`` floats without NaN, higher for canaries that look included; ``(m,)`` booleans.
    side:
        ``in`` or ``out`` to guess only one way. To be fixed before the scores are seen.

    Raises
    ------
    PrivacyError
        If shapes do not fit or there are fewer canaries than guesses.
    """
    values, member = check_scores(scores, included)
    check_counts(len(values), n_guesses, 0)
    if side not in ("both", "in", "out"):
        raise PrivacyError(f"side = {side!r}, must be both, in or out")
    n_in = {"both": (n_guesses + 1) // 2, "in": n_guesses, "out": 0}[side]
    n_out = n_guesses - n_in
    mixed = np.random.default_rng(len(values)).permutation(len(values))
    ranked = member[mixed[np.argsort(values[mixed], kind="stable")]]
    return Guesses(n_in, n_out, int(ranked[len(ranked) - n_in :].sum()), int(n_out - ranked[:n_out].sum()))


def guess_grid(n_canaries: int, *, delta: float = 0.0, confidence: float = 0.95) -> tuple[int, ...]:
    """Numbers of guesses that :func:`audit_scores` tries when not told. They depend on nothing that the scores show.

    With k numbers, the term with delta makes some 2 k m delta / (1 - confidence) right guesses worthless. Where that is more
    than a tenth of m / 3, the grid would cost more than it brings, and m / 3 alone is tried. ``gaussian`` has no such term.
    """
    grid = [n_canaries]
    while len(grid) < GRID_LENGTH and round(grid[-1] / GRID_RATIO) >= GRID_LEAST:
        grid.append(round(grid[-1] / GRID_RATIO))
    worthless = 2 * len(grid) * n_canaries * delta / (1 - confidence)
    return tuple(grid) if worthless <= n_canaries / GRID_RATIO / 10 else (max(1, round(n_canaries / GRID_RATIO)),)


def audit_scores(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    delta: float,
    confidence: float = 0.95,
    guesses: Literal["grid"] | int | Sequence[int] = "grid",
    side: Side = "both",
    method: Method = "steinke",
) -> OneRunResult:
    """Audit one training run by the scores of its canaries.

    Parameters
    ----------
    scores, included:
        ``(m,)`` floats without NaN, higher for canaries that look included; ``(m,)`` booleans from independent fair coins.
    delta:
        Of the claim; in [0, 1), above 0 for ``gaussian``.
    guesses:
        ``grid`` for :func:`guess_grid`; one number, or several that share the error probability. Whatever it is, it, ``side`` and
        ``method`` must have been fixed before the scores were seen.
    method:
        ``steinke`` refutes (epsilon, delta)-DP of any mechanism. ``gaussian`` refutes Gaussian differential privacy
        (Mahloujifar et al. 2024) and states the epsilon of the largest mu refuted: tighter, but it speaks of claims made by a
        Gaussian curve only.

    Raises
    ------
    PrivacyError
        If arguments do not fit, or the coins were hardly fair.
    """
    values, member = check_scores(scores, included)
    check_level(confidence)
    _check_coins(int(member.sum()), len(member))
    if method not in _WHAT:
        raise PrivacyError(f"method = {method!r}, must be one of {', '.join(_WHAT)}")
    grid = _grid(guesses, len(values), delta if method == "steinke" else 0.0, confidence)
    each = 1 - (1 - confidence) / len(grid)

    def bound(n: int, correct: int) -> tuple[float, float | None]:
        if method == "steinke":
            return steinke_bound(len(values), n, correct, delta=delta, confidence=each), None
        found = fdp_bound_gaussian(len(values), n, correct, delta=delta, confidence=each)
        return found.epsilon, found.mu

    tried = [guess(values, member, n, side=side) for n in grid]
    bounds = [bound(made.n, made.correct) for made in tried]
    # Where all bounds are 0, show the number of guesses that came closest to being better than coins.
    best = max(range(len(grid)), key=lambda i: (bounds[i][0], (tried[i].correct - tried[i].n / 2) / math.sqrt(tried[i].n)))
    (epsilon, mu), made = bounds[best], tried[best]
    top = max(bound(n, n)[0] for n in grid)
    return OneRunResult(
        epsilon_lower=epsilon,
        n_canaries=len(values),
        n_guesses=made.n,
        n_correct=made.correct,
        ceiling=top,
        delta=delta,
        confidence=confidence,
        method=method,
        grid=grid,
        mu_lower=mu,
        sentence=_sentence(epsilon, top, made, len(values), delta, confidence, method),
    )


def _steinke(m: int, n: int, v: int, delta: float) -> Callable[[float], float]:
    """The p-value as a function of epsilon; what does not depend on epsilon is computed once."""
    from scipy.special import betainc, gammaln

    if not 0 <= delta < 1:
        raise PrivacyError(f"delta = {delta}, must be in [0, 1)")
    below = np.arange(v - 1, -1, -1)
    steps = np.arange(1, v + 1)
    ways = gammaln(n + 1) - gammaln(below + 1) - gammaln(n - below + 1)

    def p_value(epsilon: float) -> float:
        if v == 0:
            return 1.0
        log_right, log_wrong = -float(np.logaddexp(0, -epsilon)), -float(np.logaddexp(0, epsilon))
        tail = float(betainc(v, n - v + 1, math.exp(log_right)))  # P[X >= v]
        if delta == 0 or math.isinf(log_wrong):
            return tail
        # P[v > X >= v - i] by summing upwards from the term next to v: no difference of numbers near 1.
        window = np.cumsum(np.exp(ways + below * log_right + (n - below) * log_wrong))
        return min(1.0, tail + 2 * m * delta * float(np.max(window / steps)))

    return p_value


def _grid(guesses: Literal["grid"] | int | Sequence[int], n_canaries: int, delta: float, confidence: float) -> tuple[int, ...]:
    if isinstance(guesses, str):
        if guesses != "grid":
            raise PrivacyError(f"guesses = {guesses!r}, must be 'grid', a whole number or several")
        return guess_grid(n_canaries, delta=delta, confidence=confidence)
    grid = (guesses,) if isinstance(guesses, int | np.integer) else tuple(guesses)
    if not grid or len(set(grid)) != len(grid):
        raise PrivacyError(f"guesses = {guesses!r}: need at least one number, and none twice")
    for n in grid:
        check_counts(n_canaries, n, 0)
    return tuple(int(n) for n in grid)


def _check_coins(n_included: int, n_canaries: int) -> None:
    from scipy.stats import binomtest

    if binomtest(n_included, n_canaries).pvalue < COIN_LEVEL:
        raise PrivacyError(
            f"{n_included} of {n_canaries} canaries are included: fair coins do that less than once in {1 / COIN_LEVEL:,.0f} "
            "times, and the bound rests on them; include each canary by a fair coin of its own"
        )


def _sentence(epsilon: float, top: float, made: Guesses, m: int, delta: float, confidence: float, method: Method) -> str:
    found = f"{made.correct} of {made.n} guesses about {m} canaries were right"
    if top == 0:
        return f"{found}. This audit can say nothing: at delta = {delta:g}, even right guesses alone would refute no epsilon."
    most = f"the most that this audit could have shown is {top:.2f}"
    if epsilon == 0:
        return f"{found}. That refutes no epsilon ({most}); it is no evidence of privacy either."
    what = f"every epsilon below {epsilon:.2f} at delta = {delta:g} is {_WHAT[method]}"
    return f"{found}. With {confidence:.0%} confidence, {what}; {most}."
