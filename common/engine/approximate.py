"""Approximate search for large catalogues: cells of items that are alike, of which the promising ones are searched exactly.

An inverted file (Sivic & Zisserman 2003; Jégou et al. 2011): k-means divides the catalogue into cells, and a query looks into
those whose best item can be expected to be good. For a cell of ``n`` items with centre ``c``, mean bias ``b`` and root mean
square distance ``r`` from its centre, that is::

    <q, c> + b + WIDTH · |q| · r · sqrt(2 ln n / dim)

the last term being the largest of ``n`` normal deviates, with room. Popular items, which anybody may get, are in no cell but are
always looked at. What is looked at is scored exactly, so an answer can lack an item but never has a wrong score, and no item is
out of reach: with all cells it is exact search. A graph of items (HNSW) was measured as well: popularity sets a few items far
apart from all others, most items then lie at the end of few paths, and where recall could be reached it cost more than exact
search.

How many cells are looked into is set where the index is built: histories of two kinds are drawn from the public catalogue
(:mod:`common.engine.walks`), their best items found exactly, and the effort raised until recall is :data:`RECALL` for each kind
with a margin of two standard errors. Where half of the cells are not enough there is no index, and search stays exact.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.bundle.contents import ItemTable, Scoring
from common.engine.queries import QueryModel
from common.engine.search import ExactSearch, top_of
from common.engine.walks import tastes, walks

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Progress = Callable[[str, float], None]
"""Told what is being done and the share of it that is, 0 … 1."""

RECALL: Final = 0.99
DEPTHS: Final = (10, 100, 400)
"""Answer sizes for which the effort is set; a larger answer is searched exactly."""

QUERIES: Final = 300
"""Drawn histories of each kind that recall is measured on."""

EFFORTS: Final = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Numbers of cells that are tried."""

MOST_CELLS: Final = 0.5
"""Share of the cells that may be looked into: beyond, exact search is as good."""

CELLS_PER_ROOT: Final = 8
"""Cells, over the square root of the number of items."""

HEAD: Final = 0.02
"""Share of the items, the most popular ones, that are always looked at."""

WIDTH: Final = 1.5

_LEARNT_FROM, _PASSES = 40, 8
"""Of k-means: items for each cell, drawn, and passes over them."""

_AT_ONCE = 8192
_BLOCK = 16_384


@dataclass(frozen=True, eq=False)
class Cells:
    """A catalogue divided.

    Parameters
    ----------
    centres:
        float32 ``(n_cells, dim)``.
    order:
        int32 ``(n_items,)``: positions, first the popular ones, then cell by cell.
    starts:
        int64 ``(n_cells + 1,)``: where in ``order`` each cell begins, and the end; what is before the first is popular.
    promise:
        float32 ``(2, n_cells)``: of each cell the mean bias, and what a query's length is multiplied with.
    """

    centres: Floats
    order: NDArray[np.int32]
    starts: NDArray[np.int64]
    promise: Floats

    def __len__(self) -> int:
        return len(self.centres)

    @classmethod
    def of(cls, items: ItemTable, tell: Progress) -> Cells:
        """Divide a catalogue; the same one is always divided alike."""
        n = len(items)
        n_head = round(HEAD * n)
        by_popularity = np.argsort(-items.biases, kind="stable")
        head, rest = np.sort(by_popularity[:n_head]), np.sort(by_popularity[n_head:])
        n_cells = max(1, min(len(rest), round(CELLS_PER_ROOT * math.sqrt(n))))
        centres = _k_means(items, rest, n_cells, tell)
        cell, distance = np.empty(len(rest), dtype=np.int32), np.empty(len(rest), dtype=np.float32)
        for first in range(0, len(rest), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            cell[part], distance[part] = _nearest(items.rows(rest[part]), centres)
            tell("building the index", 0.5 + 0.5 * min(1.0, (first + _AT_ONCE) / len(rest)))
        by_cell = np.argsort(cell, kind="stable")
        sizes = np.bincount(cell, minlength=n_cells)
        many = np.maximum(sizes, 1)
        spread = np.sqrt(np.bincount(cell, weights=distance, minlength=n_cells) / many)
        biases = np.where(sizes > 0, np.bincount(cell, weights=items.biases[rest], minlength=n_cells) / many, -np.inf)
        widths = WIDTH * spread * np.sqrt(2 * np.log(np.maximum(sizes, 2)) / items.dim)
        starts = n_head + np.concatenate([[0], np.cumsum(sizes)])
        order = np.concatenate([head, rest[by_cell]]).astype(np.int32)
        return cls(centres, order, starts.astype(np.int64), np.stack([biases, widths]).astype(np.float32))

    def promising(self, query: Floats, count: int) -> NDArray[np.intp]:
        """The ``count`` cells that promise most to a query ``(dim,)``, in order of the file."""
        promise = self.centres @ query + self.promise[0] + np.linalg.norm(query) * self.promise[1]
        if count >= len(promise):
            return np.arange(len(promise))
        return np.sort(np.argpartition(promise, len(promise) - count)[len(promise) - count :])


def _k_means(items: ItemTable, of: NDArray[np.integer], n_cells: int, tell: Progress) -> Floats:
    random = np.random.default_rng(0)
    drawn = items.rows(np.sort(random.choice(of, min(len(of), _LEARNT_FROM * n_cells), replace=False)))
    centres = drawn[np.sort(random.choice(len(drawn), n_cells, replace=False))].copy()
    for done in range(_PASSES):
        cell = np.concatenate([_nearest(drawn[first : first + _AT_ONCE], centres)[0] for first in range(0, len(drawn), _AT_ONCE)])
        by_cell, sizes = np.argsort(cell, kind="stable"), np.bincount(cell, minlength=n_cells)
        filled = np.flatnonzero(sizes)  # an empty cell keeps its centre
        begins = (np.cumsum(sizes) - sizes)[filled]
        centres[filled] = np.add.reduceat(drawn[by_cell], begins, axis=0) / sizes[filled, None]
        tell("building the index", 0.5 * (done + 1) / _PASSES)
    return centres


def _nearest(rows: Floats, centres: Floats) -> tuple[NDArray[np.int32], Floats]:
    """Of each row the nearest centre, and the square of its distance."""
    half = (centres * centres).sum(1) / 2
    products = rows @ centres.T - half
    cell = products.argmax(axis=1)
    squares = (rows * rows).sum(1) - 2 * products[np.arange(len(rows)), cell]
    return cell.astype(np.int32), np.maximum(squares, 0.0)


@dataclass(frozen=True)
class Depth:
    """For answers of up to ``count`` items: how many cells, and the recall measured with them, that of the worse kind."""

    count: int
    cells: int
    recall: float


@dataclass(frozen=True)
class Facts:
    """What an index is, for its file and for people."""

    digest: str
    n_cells: int
    depths: tuple[Depth, ...]
    queries: int
    build_seconds: float


class Searcher:
    """Looks into cells. Safe to call from many threads at once."""

    def __init__(self, cells: Cells, items: ItemTable) -> None:
        self.cells = cells
        self._vectors, self._scales, self._biases = (
            column[cells.order] for column in (items.vectors, items.scales, items.biases)
        )
        self._popular = np.argsort(-items.biases, kind="stable")[: 2 * max(DEPTHS)].astype(np.int32)

    @property
    def nbytes(self) -> int:
        """Memory of the index: vectors lie in its order once more."""
        arrays = (self._vectors, self._scales, self._biases, self.cells.centres, self.cells.order, self.cells.starts)
        return sum(array.nbytes for array in arrays)

    def best(self, query: Floats, count: int, cells: int) -> NDArray[np.int32]:
        """The best positions, at most ``count``, that ``cells`` cells and the popular items hold; in no order."""
        if not query.any():  # nothing is known: the order of biases is
            return self._popular[:count]
        starts = self.cells.starts
        chosen = self.cells.promising(query, cells)
        begins = np.concatenate([[0], starts[chosen]])
        ends = np.concatenate([starts[:1], starts[chosen + 1]])
        offsets = np.concatenate([[0], np.cumsum(ends - begins)])
        scores, at = np.empty(offsets[-1], dtype=np.float32), np.empty(offsets[-1], dtype=np.int64)
        for begin, end, offset in zip(begins.tolist(), ends.tolist(), offsets.tolist(), strict=False):
            for first in range(begin, end, _BLOCK):
                last = min(first + _BLOCK, end)
                part = slice(offset + first - begin, offset + last - begin)
                np.dot(self._vectors[first:last].astype(np.float32), query, out=scores[part])
                at[part] = np.arange(first, last)
        scores *= self._scales[at]
        scores += self._biases[at]
        return self.cells.order[at[top_of(scores, count)]]


class ApproximateIndex:
    """An index that was measured. Many threads may ask at once."""

    def __init__(self, facts: Facts, cells: Cells, exact: ExactSearch) -> None:
        self.facts = facts
        self._exact = exact
        self._searcher = Searcher(cells, exact.items)

    @property
    def most(self) -> int:
        """Largest answer that it gives."""
        return self.facts.depths[-1].count

    @property
    def recall(self) -> float:
        """Recall@10 as measured when it was built."""
        return self.facts.depths[0].recall

    @property
    def nbytes(self) -> int:
        """Memory of the index."""
        return self._searcher.nbytes

    def top(self, queries: Floats, k: int) -> tuple[NDArray[np.int32], Floats]:
        """As :meth:`ExactSearch.top`; exact for ``k`` above :attr:`most`."""
        if k > self.most:
            return self._exact.top(queries, k)
        return best_of(self._exact, queries, self.candidates(queries, k), k)

    def candidates(self, queries: Floats, count: int) -> NDArray[np.int64]:
        """Positions ``(B, count)``, the best that were found for each query, in no order; -1 where fewer."""
        depth = next(depth for depth in self.facts.depths if depth.count >= count)
        return candidates(self._searcher, queries, count, depth.cells)


def candidates(searcher: Searcher, queries: Floats, count: int, cells: int) -> NDArray[np.int64]:
    """As :meth:`ApproximateIndex.candidates`, with this effort."""
    found = np.full((len(queries), count), -1, dtype=np.int64)
    for row, query in enumerate(queries):
        best = searcher.best(query, count, cells)
        found[row, : len(best)] = best
    return found


def best_of(exact: ExactSearch, queries: Floats, near: NDArray[np.int64], k: int) -> tuple[NDArray[np.int32], Floats]:
    """The best ``(B, k)`` among candidates ``(B, m)``, -1 where there is none, scored exactly."""
    near = np.sort(near, axis=1)  # equal scores come in the order of the catalogue
    scores = exact.scores_at(queries, np.maximum(near, 0))
    scores[near < 0] = -np.inf
    positions = np.full((len(queries), k), -1, dtype=np.int32)
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for row, (places, values) in enumerate(zip(near, scores, strict=True)):
        found = top_of(values, k)
        positions[row, : len(found)], best[row, : len(found)] = places[found], values[found]
    return positions, best


def index_of(
    scoring: Scoring, model: QueryModel, exact: ExactSearch, *, folder: Path | None = None, progress: Progress | None = None
) -> ApproximateIndex | None:
    """The index of a bundle: from its file in ``folder`` if that is there and whole, else built, and kept there.

    None where measured recall does not reach :data:`RECALL`: then exact search is what there is.
    """
    from common.engine.index_file import load_index, save_index

    tell = progress or (lambda what, share: None)
    if folder is not None and (kept := load_index(folder, scoring.digest, len(scoring.items))) is not None:
        return ApproximateIndex(*kept, exact)
    made = _build(scoring, model, exact, tell)
    if made is None:
        log.warning("no approximate index: recall stays below %g; search is exact", RECALL)
        return None
    if folder is not None:
        save_index(folder, *made)
    return ApproximateIndex(*made, exact)


def _build(scoring: Scoring, model: QueryModel, exact: ExactSearch, tell: Progress) -> tuple[Facts, Cells] | None:
    began = time.perf_counter()
    tell("drawing histories", 0.0)
    drawn = (walks(model, QUERIES), tastes(model, exact, QUERIES))
    kinds = [model.queries(*model.padded(histories)) for histories in drawn]
    cells = Cells.of(scoring.items, tell)
    tell("measuring recall", 0.0)
    depths = measured_depths(Searcher(cells, scoring.items), exact, kinds, tell)
    if not depths:
        return None
    return Facts(scoring.digest, len(cells), depths, sum(map(len, kinds)), time.perf_counter() - began), cells


def measured_depths(searcher: Searcher, exact: ExactSearch, kinds: Sequence[Floats], tell: Progress) -> tuple[Depth, ...]:
    """The least effort that is enough for each of :data:`DEPTHS` and each kind of queries, as far as there is one."""
    queries = np.concatenate(kinds)
    ends = np.cumsum([len(kind) for kind in kinds])[:-1]
    true = exact.top(queries, min(max(DEPTHS), len(exact.items)))[0]
    most = MOST_CELLS * len(searcher.cells)
    depths: list[Depth] = []
    for place, count in enumerate(DEPTHS):
        least = depths[-1].cells if depths else 0
        for effort in (effort for effort in EFFORTS if least <= effort <= most):
            near = candidates(searcher, queries, count, effort)
            recalls = np.split(recall(near, true[:, :count]), ends)
            if all(part.mean() - 2 * part.std() / math.sqrt(len(part)) >= RECALL for part in recalls):
                depths.append(Depth(count, effort, float(min(part.mean() for part in recalls))))
                break
        else:
            break
        tell("measuring recall", (place + 1) / len(DEPTHS))
    return tuple(depths)


def recall(found: NDArray[np.integer], true: NDArray[np.integer]) -> NDArray[np.float64]:
    """Share of the true best ``(B, k)`` that was found, ``(B,)``; -1 is nothing."""
    return np.array(
        [len(set(a) & set(b) - {-1}) / max(1, len(set(b) - {-1})) for a, b in zip(found.tolist(), true.tolist(), strict=True)]
    )
