"""Why an item is recommended: what each item of the history did to its score.

A score has three parts that add up to it (float32 rounding aside), besides what the request boosts::

    score(i) = Σ_t pooled_t · <text of v_t, text of v_i>  +  <rest of the query, v_i>  +  b_i
               pool: one exact share per history item        sequence                     popularity

The shares of the pool are exact, and say nothing of what the sequence model makes of an item. Where the pool decides little, they
would mislead, so reasons are then leave-one-out differences: the score less that of the same history without the item. These are
exact as differences, but of a model that is not additive: they need not add up to the score, and two items that say the same can
both seem to matter little.

Which of the two is used is decided once per answer: by the part, pool or sequence, that sets the recommended items apart from the
average item, that is by the larger sum of ``|<part of the query, v_i - mean v>|``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.bundle.contents import Bundle, ItemTable
from common.engine.queries import QueryModel
from common.engine.requests import Reason, ReasonKind

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Asked:
    """One history as the model read it: ``(T,)`` positions, the query ``(dim,)``, and shares of the pool ``(T,)``."""

    history: NDArray[np.int64]
    query: Floats
    pooled: Floats

    def pool_vector(self, bundle: Bundle) -> Floats:
        """The pool's part of the query ``(dim,)``; the rest is the sequence model's."""
        vector = np.zeros(bundle.items.dim, dtype=np.float32)
        text = bundle.items.text_dim
        vector[:text] = self.pooled @ bundle.items.rows(self.history)[:, :text]
        return vector


class Explainer:
    """Reasons for the items of one answer."""

    def __init__(self, bundle: Bundle, model: QueryModel) -> None:
        self._bundle, self._model = bundle, model
        self._mean = mean_vector(bundle.items)

    def reasons(self, asked: Asked, recommended: NDArray[np.integer]) -> list[tuple[Reason, ...]]:
        """For each recommended position, one reason per different item of the history, largest contribution first."""
        if not len(asked.history) or not len(recommended):
            return [()] * len(recommended)
        different = np.array(sorted(set(asked.history.tolist())), dtype=np.int64)
        kind = self.kind(asked, recommended)
        parts = (
            self.of_the_pool(asked, different, recommended) if kind == "pool" else self.left_out(asked, different, recommended)
        )
        return [self._sorted(different, column, kind) for column in parts.T]

    def kind(self, asked: Asked, recommended: NDArray[np.integer]) -> ReasonKind:
        """Which sort of reasons does these items justice; see the module's text."""
        pool = asked.pool_vector(self._bundle)
        apart = self._bundle.items.rows(recommended) - self._mean
        by_pool, by_sequence = np.abs(apart @ pool).sum(), np.abs(apart @ (asked.query - pool)).sum()
        return "pool" if by_pool >= by_sequence else "left out"

    def of_the_pool(self, asked: Asked, different: NDArray[np.int64], recommended: NDArray[np.integer]) -> NDArray[np.float64]:
        """Exact shares ``(different, recommended)``; an item that the history holds twice has the sum of both."""
        items, text = self._bundle.items, self._bundle.items.text_dim
        shares = np.array([asked.pooled[asked.history == position].sum() for position in different], dtype=np.float32)
        alike = items.rows(different)[:, :text] @ items.rows(recommended)[:, :text].T
        return (shares[:, None] * alike).astype(np.float64)

    def left_out(self, asked: Asked, different: NDArray[np.int64], recommended: NDArray[np.integer]) -> NDArray[np.float64]:
        """Differences ``(different, recommended)`` of scores; one call of the model for all."""
        shorter = [asked.history[asked.history != position].tolist() for position in different]
        queries = self._model.queries(*self._model.padded(shorter))
        changes = asked.query - queries
        return (changes @ self._bundle.items.rows(recommended).T).astype(np.float64)

    def _sorted(self, different: NDArray[np.int64], contributions: NDArray[np.float64], kind: ReasonKind) -> tuple[Reason, ...]:
        catalogue = self._bundle.catalogue
        order = np.argsort(-contributions, kind="stable")
        return tuple(
            Reason(p, catalogue.ids[p], catalogue.titles[p], float(contributions[place]), kind)
            for place in order
            for p in (int(different[place]),)
        )


def mean_vector(items: ItemTable) -> Floats:
    """The average item ``(dim,)``."""
    rows, total = 65_536, np.zeros(items.dim)
    for first in range(0, len(items), rows):
        total += items.rows(np.arange(first, min(first + rows, len(items)))).sum(axis=0, dtype=np.float64)
    return (total / len(items)).astype(np.float32)
