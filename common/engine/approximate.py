"""Approximate search for large catalogues: a graph of items (HNSW, Malkov & Yashunin 2016) whose recall is measured, not assumed.

``usearch`` walks the graph by inner product over int8 codes; what it finds is scored again exactly, so an answer can lack an item
but never has a wrong score. Biases are columns of the codes::

    <q, v_i> + b_i = <[q, β/√m, …], [v_i, b_i/(β√m), …]>        m columns, β the norm of a typical query

``m`` is such that biases do not take the int8 range from the vectors. The graph is built on inner products as they are (as in
ip-NSW, Morozov & Babenko 2018). Bringing all items to one norm with a further column (Bachrach et al. 2014) was measured as well:
it found fewer of the best for the same work, since popularity sets a few items far apart from the others.

How much of the graph is walked is set where the index is built: histories of two kinds are drawn from the public catalogue
(:mod:`common.engine.walks`), their best items found exactly, and the effort raised until recall is :data:`RECALL` for each kind
with a margin of two standard errors. Where no effort is enough there is no index, and search stays exact.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.bundle.contents import ItemTable, Scoring
from common.engine.queries import QueryModel
from common.engine.search import ExactSearch, top_of
from common.engine.walks import tastes, walks

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]
Progress = Callable[[str, float], None]
"""Told what is being done and the share of it that is, 0 … 1."""

RECALL: Final = 0.99
DEPTHS: Final = (10, 100, 400)
"""Answer sizes for which the effort is set; a larger answer is searched exactly."""

QUERIES: Final = 300
"""Drawn histories of each kind that recall is measured on."""

EXPANSIONS: Final = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Efforts that are tried: candidates that the walk keeps."""

CONNECTIVITY: Final = 32
EXPANSION_ADD: Final = 128
"""Neighbours of an item, and candidates when it is added. Half of each halves the time to build and doubles that of a search."""

_AT_ONCE = 20_000
_BY_ONE = 4_000
"""First items, which one thread adds: where several begin a graph together, some items may stay out of reach."""

_BIAS_COLUMNS = 16


@dataclass(frozen=True)
class Geometry:
    """How items and queries become codes whose inner products rank like scores."""

    beta: float
    bias_columns: int
    step: float

    @classmethod
    def of(cls, items: ItemTable, queries: Floats) -> Geometry:
        """For queries ``(B, dim)`` like these."""
        beta = float(np.median(np.linalg.norm(queries, axis=1))) or 1.0
        largest = float((np.abs(items.vectors).max(axis=1) * items.scales).max())
        bias = float(np.abs(items.biases).max()) / beta
        columns = min(_BIAS_COLUMNS, max(1, math.ceil((bias / largest) ** 2))) if largest > 0 else 1
        step = max(largest, bias / math.sqrt(columns)) / 127
        return cls(beta, columns, step or 1.0)

    def of_items(self, items: ItemTable, first: int, last: int) -> Codes:
        """Codes ``(last - first, dim + bias_columns)``, all with the same step."""
        rows = items.rows(np.arange(first, last))
        bias = items.biases[first:last, None] / (self.beta * math.sqrt(self.bias_columns))
        wide = np.concatenate([rows, np.repeat(bias, self.bias_columns, axis=1)], axis=1)
        return np.rint(wide / self.step).astype(np.int8)

    def of_queries(self, queries: Floats) -> Codes:
        """Codes ``(B, dim + bias_columns)``, each with a step of its own: the length of a query does not change its ranking."""
        bias = np.full((len(queries), self.bias_columns), self.beta / math.sqrt(self.bias_columns), dtype=np.float32)
        wide = np.concatenate([queries, bias], axis=1)
        return np.rint(wide * (127 / np.abs(wide).max(axis=1, keepdims=True))).astype(np.int8)


@dataclass(frozen=True)
class Depth:
    """For answers of up to ``count`` items: the effort, and the recall that was measured with it, that of the worse kind."""

    count: int
    expansion: int
    recall: float

    @property
    def fetched(self) -> int:
        """Candidates that are scored again: codes are coarser than scores."""
        return max(32, 2 * self.count)


@dataclass(frozen=True)
class Facts:
    """What an index is, for its file and for people."""

    digest: str
    geometry: Geometry
    depths: tuple[Depth, ...]
    queries: int
    build_seconds: float


class ApproximateIndex:
    """An index that was measured. Many threads may ask at once; one of them walks the graph at a time.

    Parameters
    ----------
    graph:
        A ``usearch`` index over the codes of ``exact.items``, keys their positions.
    """

    def __init__(self, facts: Facts, graph: Any, exact: ExactSearch) -> None:
        self.facts = facts
        self._graph, self._exact = graph, exact
        self._turn = threading.Lock()  # the effort is a setting of the graph, and older versions of usearch share scratch space
        self._popular = top_of(exact.items.biases, 2 * max(DEPTHS))

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
        """Memory of the graph and its codes."""
        return int(self._graph.memory_usage)

    def top(self, queries: Floats, k: int) -> tuple[NDArray[np.int32], Floats]:
        """As :meth:`ExactSearch.top`; exact for ``k`` above :attr:`most`."""
        if k > self.most:
            return self._exact.top(queries, k)
        return best_of(self._exact, queries, self.candidates(queries, k), k)

    def candidates(self, queries: Floats, count: int) -> NDArray[np.int64]:
        """Positions ``(B, m)`` among which the ``count`` best of each query are, in no order, ``m >= count``; -1 where fewer."""
        depth = next(depth for depth in self.facts.depths if depth.count >= count)
        found = self._searched(queries, depth.fetched, depth.expansion, threads=1)
        for row in np.flatnonzero(~queries.any(axis=1)):  # nothing is known: the order of biases is
            found[row] = -1
            popular = self._popular[: found.shape[1]]
            found[row, : len(popular)] = popular
        return found

    def _searched(self, queries: Floats, count: int, expansion: int, threads: int) -> NDArray[np.int64]:
        return search_graph(self._graph, self.facts.geometry.of_queries(queries), count, expansion, threads, self._turn)


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


def search_graph(graph: Any, codes: Codes, count: int, expansion: int, threads: int, turn: threading.Lock) -> NDArray[np.int64]:
    """What the graph finds, ``(B, min(count, n_items))`` positions, -1 where it finds fewer."""
    with turn:
        graph.expansion_search = expansion
        matches = graph.search(codes, min(count, len(graph)), threads=threads)
    if len(codes) == 1:  # usearch then gives what it found and nothing else
        found = np.full((1, min(count, len(graph))), -1, dtype=np.int64)
        found[0, : len(matches.keys)] = matches.keys
        return found
    keys = matches.keys.astype(np.int64)
    return np.where(np.arange(keys.shape[1]) < np.asarray(matches.counts)[:, None], keys, -1)


def index_of(
    scoring: Scoring, model: QueryModel, exact: ExactSearch, *, folder: Path | None = None, progress: Progress | None = None
) -> ApproximateIndex | None:
    """The index of a bundle: from its file in ``folder`` if that is there and whole, else built, and kept there.

    None where measured recall does not reach :data:`RECALL`: then exact search is what there is.
    """
    from common.engine.index_file import load_index, save_index

    tell = progress or (lambda what, share: None)
    if folder is not None and (kept := load_index(folder, scoring.digest)) is not None:
        return ApproximateIndex(*kept, exact)
    made = _build(scoring, model, exact, tell)
    if made is None:
        log.warning("no approximate index: recall stays below %g; search is exact", RECALL)
        return None
    if folder is not None:
        save_index(folder, *made)
    return ApproximateIndex(*made, exact)


def _build(scoring: Scoring, model: QueryModel, exact: ExactSearch, tell: Progress) -> tuple[Facts, Any] | None:
    from usearch.index import Index

    began, cores = time.perf_counter(), len(os.sched_getaffinity(0))
    tell("drawing histories", 0.0)
    drawn = (walks(model, QUERIES), tastes(model, exact, QUERIES))
    kinds = [model.queries(*model.padded(histories)) for histories in drawn]
    geometry, items = Geometry.of(scoring.items, np.concatenate(kinds)), scoring.items
    graph = Index(
        ndim=items.dim + geometry.bias_columns,
        metric="ip",
        dtype="i8",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        enable_key_lookups=False,
    )
    ends = [min(_BY_ONE, len(items)), *range(_BY_ONE + _AT_ONCE, len(items), _AT_ONCE), len(items)]
    for first, last in pairwise([0, *sorted(set(ends))]):
        threads = cores if first else 1
        graph.add(np.arange(first, last, dtype=np.uint64), geometry.of_items(items, first, last), threads=threads)
        tell("building the index", last / len(items))
    tell("measuring recall", 0.0)
    depths = measured_depths(graph, geometry, exact, kinds, cores, tell)
    if not depths:
        return None
    return Facts(scoring.digest, geometry, depths, sum(map(len, kinds)), time.perf_counter() - began), graph


def measured_depths(
    graph: Any, geometry: Geometry, exact: ExactSearch, kinds: Sequence[Floats], threads: int, tell: Progress
) -> tuple[Depth, ...]:
    """The least effort that is enough for each of :data:`DEPTHS` and each kind of queries, as far as there is one."""
    queries = np.concatenate(kinds)
    ends = np.cumsum([len(kind) for kind in kinds])[:-1]
    true = exact.top(queries, min(max(DEPTHS), len(exact.items)))[0]
    codes, turn = geometry.of_queries(queries), threading.Lock()
    depths: list[Depth] = []
    for place, count in enumerate(DEPTHS):
        least = max(Depth(count, 0, 0.0).fetched, depths[-1].expansion if depths else 0)
        for expansion in (effort for effort in EXPANSIONS if effort >= least):
            trial = Depth(count, expansion, 0.0)
            near = search_graph(graph, codes, trial.fetched, expansion, threads, turn)
            recalls = np.split(recall(best_of(exact, queries, near, count)[0], true[:, :count]), ends)
            if all(part.mean() - 2 * part.std() / math.sqrt(len(part)) >= RECALL for part in recalls):
                depths.append(Depth(count, expansion, float(min(part.mean() for part in recalls))))
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
