"""From canaries' scores to guesses, and to Steinke, Nasr & Jagielski's lower bound on epsilon.

Where some canaries are guessed, the highest scores are guessed included and the lowest excluded, as many of each
(``common.privacy.audit.one_run.guess``). Where *all* are guessed, half and half would be wrong even for canaries that can be told
perfectly, because coins do not come out even. There the scores are split where they part best (Otsu 1979): the two groups whose
means explain most of the variance. Both look at scores alone, never at coins, and both hold for scores on any scale: a fault may
shift or stretch them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.privacy.audit.one_run import Guesses, guess, guess_grid, steinke_bound


@dataclass(frozen=True)
class OneRunBound:
    """Steinke et al.'s bound over a grid of numbers of guesses that was fixed in advance (Bonferroni).

    Parameters
    ----------
    epsilon:
        Largest epsilon refuted at the delta asked for; 0 where none is.
    best, tried:
        The guesses that gave it, and those of the whole grid.
    ceiling:
        Largest epsilon that this grid could have refuted, had all guesses been right.
    """

    epsilon: float
    best: Guesses
    tried: tuple[Guesses, ...]
    ceiling: float


def one_run_bound(scores: NDArray[np.float64], included: NDArray[np.bool_], *, delta: float, confidence: float) -> OneRunBound:
    """The bound from scores ``(m,)`` and fair coins ``(m,)``, over ``common.privacy.audit.one_run.guess_grid``."""
    grid = guess_grid(len(scores))
    made = [guess_all(scores, included) if n == len(scores) else guess(scores, included, n) for n in grid]
    each = 1 - (1 - confidence) / len(grid)

    def bound(n: int, correct: int) -> float:
        return steinke_bound(len(scores), n, correct, delta=delta, confidence=each)

    bounds = [bound(guesses.n, guesses.correct) for guesses in made]
    best = max(range(len(grid)), key=lambda i: (bounds[i], made[i].correct / made[i].n))
    return OneRunBound(bounds[best], made[best], tuple(made), max(bound(n, n) for n in grid))


def guess_all(scores: NDArray[np.float64], included: NDArray[np.bool_]) -> Guesses:
    """Guess every canary, included where its score is above the gap between neighbours that splits all scores best.

    Where all scores are equal there is no gap: half and half.
    """
    ranked = np.sort(scores)
    n = len(ranked)
    gaps = np.flatnonzero(np.diff(ranked) > 0)  # a split is after the place
    if not len(gaps):
        return guess(scores, included, n)
    centred = ranked - ranked.mean()
    below = np.cumsum(centred)[gaps]
    explained = below**2 / ((gaps + 1.0) * (n - 1.0 - gaps))  # variance between the groups, but for a factor
    says_in = scores > ranked[gaps[np.argmax(explained)]]
    return Guesses(
        n_in=int(says_in.sum()),
        n_out=int((~says_in).sum()),
        correct_in=int((says_in & included).sum()),
        correct_out=int((~says_in & ~included).sum()),
    )
