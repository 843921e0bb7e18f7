"""Exact search: the score of every item for a query, and the best k of them.

Item vectors stay int8. A float32 copy is held only where it is small enough to live in a processor's cache; beyond, blocks of
int8 are widened on the way, which reads a quarter of the bytes from memory: ``silorec bench search`` measures both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.bundle.contents import ItemTable

Positions = NDArray[np.int32]
Floats = NDArray[np.float32]

COPY_BYTES: Final = 32 * 2**20
"""Largest float32 copy of the item vectors that is held."""

_BLOCK_BYTES: Final = 2**20  # of widened vectors: half of a core's second-level cache
_SCORES_BYTES: Final = 64 * 2**20
_GROUP: Final = 1024


class ExactSearch:
    """Scores of all items; safe to call from many threads at once."""

    def __init__(self, items: ItemTable) -> None:
        self.items = items
        small = 4 * items.vectors.size <= COPY_BYTES
        self._transposed: Floats | None = np.ascontiguousarray(items.rows(np.arange(len(items))).T) if small else None

    @property
    def copy_bytes(self) -> int:
        """Memory held beside the bundle's own."""
        return 0 if self._transposed is None else self._transposed.nbytes

    def scores(self, queries: Floats) -> Floats:
        """Scores ``(B, n_items)`` of queries ``(B, dim)``, biases included."""
        if self._transposed is not None:
            scores = queries @ self._transposed
        else:
            scores = self._widened(queries)
        scores += self.items.biases
        return scores

    def scores_at(self, queries: Floats, positions: NDArray[np.integer]) -> Floats:
        """Scores ``(B, m)`` of the items at ``positions`` ``(B, m)`` or ``(m,)``."""
        rows = self.items.rows(positions)
        products = queries @ rows.T if rows.ndim == 2 else np.einsum("bd,bmd->bm", queries, rows)
        return products + self.items.biases[positions]

    def in_parts(self, queries: Floats) -> Iterator[tuple[int, Floats]]:
        """Scores of as many queries at a time as fit into some memory: the first one's number, and ``(part, n_items)``."""
        at_once = max(1, _SCORES_BYTES // (4 * max(1, len(self.items))))
        for first in range(0, len(queries), at_once):
            yield first, self.scores(queries[first : first + at_once])

    def top(self, queries: Floats, k: int) -> tuple[Positions, Floats]:
        """Positions and scores ``(B, k)`` of the best, best first, equal ones in the order of the catalogue.

        Where there are fewer than ``k`` items, positions end with -1 and scores with -inf.
        """
        positions = np.full((len(queries), k), -1, dtype=np.int32)
        best = np.full((len(queries), k), -np.inf, dtype=np.float32)
        for first, part in self.in_parts(queries):
            if (many := _top_of_rows(part, k)) is not None:
                positions[first : first + len(part)], best[first : first + len(part)] = many
                continue
            for row, scores in enumerate(part, start=first):
                found = top_of(scores, k)
                positions[row, : len(found)] = found
                best[row, : len(found)] = scores[found]
        return positions, best

    def _widened(self, queries: Floats) -> Floats:
        n, dim = self.items.vectors.shape
        rows = max(1, _BLOCK_BYTES // (4 * dim))
        block = np.empty((rows, dim), dtype=np.float32)
        scores = np.empty((len(queries), n), dtype=np.float32)
        for first in range(0, n, rows):
            codes = self.items.vectors[first : first + rows]
            wide = block[: len(codes)]
            np.copyto(wide, codes)
            if len(queries) == 1:
                np.dot(wide, queries[0], out=scores[0, first : first + rows])
            else:
                scores[:, first : first + rows] = queries @ wide.T
        scores *= self.items.scales
        return scores


def top_of(scores: Floats, k: int) -> NDArray[np.intp]:
    """Positions of the best ``k`` of ``scores`` ``(n,)``, best first, equal ones by position; fewer where ``n < k``.

    ``-inf`` is for what is not to be found: it is left out. Large arrays are first cut to what can be among the best: the k-th
    largest of the maxima of groups is a lower bound of the k-th largest score.
    """
    n = len(scores)
    group = min(_GROUP, n // (4 * k))
    if group >= 16:
        maxima = scores[: n - n % group].reshape(-1, group).max(axis=1)
        floor = np.partition(maxima, len(maxima) - k)[len(maxima) - k]
    elif n > k:
        floor = np.partition(scores, n - k)[n - k]
    else:
        floor = np.float32(-np.inf)
    if floor == -np.inf:
        candidates = np.flatnonzero(scores > floor)
    else:
        candidates = np.flatnonzero(scores >= floor)
    order = np.argsort(-scores[candidates], kind="stable")
    return candidates[order[:k]]


def _top_of_rows(scores: Floats, k: int) -> tuple[NDArray[np.intp], Floats] | None:
    """:func:`top_of` for rows ``(B, n)`` at once, ``(B, k)`` each; None where they are better, or have to be, done one by one."""
    count, n = scores.shape
    if count == 1 or not 4 * k <= n < 64 * k:
        return None
    floors = np.partition(scores, n - k, axis=1)[:, n - k]
    flat = np.flatnonzero(scores >= floors[:, None])
    if len(flat) != count * k:
        return None  # more than k reach a floor: equal scores
    found = flat.reshape(count, k)
    best = scores.ravel()[found]
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1) % n, np.take_along_axis(best, order, axis=1)
