"""Matching two days of questions: nearest neighbour, a trained matcher, and both with everybody assigned at once.

A matcher gives a score to every pair. The *success* of an adversary who takes the best is the share of people whose first
question it finds the right second question for. Guessing gives one over the number of people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from common.errors import DataError
from common.privacy.audit.roc import clopper_pearson
from simulations.linkage.recorded import Compared

HARD, EASY = 15, 25
"""Wrong pairs per person that the matcher learns from: the nearest ones, and random ones."""


@dataclass(frozen=True, eq=False)
class Linked:
    """How one adversary did against ``n`` people.

    Parameters
    ----------
    above:
        int64 ``(n,)``: how many wrong people the adversary held more likely than the right one; 0 is a link.
    margin:
        float64 ``(n,)``: score of its best guess over that of the second best: how sure it was.
    assigned:
        bool ``(n,)``: whether the right one was found when everybody is assigned to somebody else, at once; None if not tried.
    """

    above: NDArray[np.int64]
    margin: NDArray[np.float64]
    assigned: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.above)

    @property
    def found(self) -> NDArray[np.bool_]:
        """Who was linked, among all."""
        return self.above == 0

    def success(self, pool: int | None = None) -> float:
        """Expected share of people who are linked among ``pool`` people, themselves included; everybody if None.

        The others in a smaller pool are drawn without replacement: nobody above may be among them (hypergeometric, exact).
        """
        return float(self.chance_in(len(self) if pool is None else pool).mean())

    def chance_in(self, pool: int) -> NDArray[np.float64]:
        """``(n,)``: probability that each person is linked in a random pool of that size."""
        others = len(self) - 1
        if not 1 <= pool <= others + 1:
            raise DataError(f"a pool of {pool} people out of {others + 1}")
        below = others - self.above
        enough = below >= pool - 1
        logs = _log_choose(np.where(enough, below, pool - 1), pool - 1) - _log_choose(np.array(others), pool - 1)
        return np.where(enough, np.exp(logs), 0.0)

    def surest(self, share: float) -> float:
        """Share of right links among the ``share`` of people of whom the adversary was surest."""
        most = max(1, round(share * len(self)))
        return float(self.found[np.argsort(-self.margin, kind="stable")[:most]].mean())

    def among(self, chosen: NDArray[np.bool_]) -> float:
        """Success against some of the people, who stay among all."""
        return float(self.found[chosen].mean())


def interval(share: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a share of ``n`` people; of a mean over draws of the same people, as if there were one draw.

    People are taken as independent. They are not quite: two who look alike are mixed up together.
    """
    return clopper_pearson(round(share * n), n, confidence)


def linked(scores: NDArray[np.floating], rng: np.random.Generator, *, assign: bool = False) -> Linked:
    """Judge scores ``(n, n)`` whose diagonal is right; what is tied is broken by chance."""
    n = len(scores)
    if scores.shape != (n, n) or n < 2:
        raise DataError(f"scores of pairs are square and of at least two people, not {scores.shape}")
    scores = _without_ties(np.asarray(scores, dtype=np.float64), rng)
    right = np.diagonal(scores)
    above = (scores > right[:, None]).sum(axis=1)
    best = np.partition(scores, n - 2, axis=1)
    return Linked(above.astype(np.int64), best[:, -1] - best[:, -2], one_to_one(scores) if assign else None)


def one_to_one(scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each is matched rightly in the assignment with the largest sum (Kuhn 1955; Jonker & Volgenant 1987).

    What somebody can do who sees everybody on both days and knows that all came back: an upper bound for the service.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores, maximize=True)
    found = np.zeros(len(scores), dtype=np.bool_)
    found[rows] = rows == columns
    return found


def trained(compared: Compared, seed: int, folds: int = 2) -> NDArray[np.float64]:
    """Log-odds ``(n, n)`` that a pair is one person, by gradient-boosted trees that learnt it from other people.

    People are split into ``folds``; the rows of each are scored by trees that saw only the other folds' people as rows, each with
    the right second question, its nearest wrong ones and random ones. Among candidates are people of all folds.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    n, rng = len(compared.nearest), np.random.default_rng(seed)
    fold = rng.permutation(n) % folds
    scores = np.empty((n, n))
    for number in range(folds):
        rows, columns = _pairs(compared.nearest, np.flatnonzero(fold != number), rng)
        trees: Any = HistGradientBoostingClassifier(
            max_iter=60, learning_rate=0.1, max_leaf_nodes=15, min_samples_leaf=20, l2_regularization=1.0, random_state=seed
        )
        trees.fit(compared.features[rows, columns], rows == columns)
        asked = np.flatnonzero(fold == number)
        flat = compared.features[asked].reshape(len(asked) * n, -1)
        scores[asked] = trees.decision_function(flat).reshape(len(asked), n)
    # Trees have few different values: the nearest neighbour decides between equals.
    return scores + 1e-6 * compared.nearest


def _pairs(
    nearest: NDArray[np.float64], people: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of pairs to learn from: the right one of each, near ones and random ones."""
    n = len(nearest)
    hard = min(HARD, n - 1)
    near = (
        np.argpartition(-nearest[people], hard, axis=1)[:, : hard + 1]
        if hard < n - 1
        else np.tile(np.arange(n), (len(people), 1))
    )
    columns = np.concatenate([near, rng.integers(n, size=(len(people), EASY))], axis=1)
    rows = np.repeat(people, columns.shape[1])
    wrong = rows != columns.ravel()
    return np.concatenate([people, rows[wrong]]), np.concatenate([people, columns.ravel()[wrong]])


def _without_ties(scores: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """The same order, equal scores in random order: noise far below any difference that is meant."""
    return scores + 1e-9 * rng.random(scores.shape)


def _log_choose(n: NDArray[np.integer], k: int) -> NDArray[np.float64]:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
