"""The engine: one bundle, ready to answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from common.bundle.contents import Bundle
from common.engine.explanation import Asked, Explainer
from common.engine.ranking import Filters, boosted, diversified, pool_size, refused
from common.engine.requests import Recommended, Request
from common.engine.retrieval import Retrieval, SearchChoice
from common.engine.search import top_of

if TYPE_CHECKING:
    from common.engine.approximate import Progress

Floats = NDArray[np.float32]
_FEW = 16
"""Where filters leave less than this part of an indexed catalogue, those items are scored one and all."""


class Engine:
    """Answers requests from one bundle. It keeps nothing of them, and many threads may ask at once.

    Parameters
    ----------
    bundle:
        Opened and verified, see :mod:`common.bundle`.
    search:
        ``exact`` scores every item. ``approximate`` asks an index whose recall was measured, see
        :mod:`common.engine.approximate`; where no setting of it is good enough, search stays exact. ``auto`` is exact below
        :data:`~common.engine.retrieval.APPROXIMATE_FROM` items.
    threads:
        That one call of the model may compute on. NumPy's own threads are set where the process starts
        (``OMP_NUM_THREADS=1`` where many requests run side by side).
    index_folder:
        Where the index of a bundle is kept between starts; without one it is built anew each time.
    progress:
        Told of the index's building: what is done, and the share of it.

    Raises
    ------
    BundleError
        If the bundle's model cannot be run or does not fit its items.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        search: SearchChoice = "auto",
        threads: int = 1,
        index_folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.bundle = bundle
        self._retrieval = Retrieval(bundle.scoring, search=search, threads=threads, index_folder=index_folder, progress=progress)
        self._model, self._exact, self.index = self._retrieval.model, self._retrieval.exact, self._retrieval.index
        self._filters = Filters(bundle.catalogue)
        self._explainer = Explainer(bundle, self._model)

    @property
    def search(self) -> Literal["exact", "approximate"]:
        """How items are found."""
        return "exact" if self.index is None else "approximate"

    @property
    def categories(self) -> tuple[str, ...]:
        """What :attr:`Request.categories` may name, sorted."""
        return self._filters.categories

    def recommend(self, request: Request) -> list[Recommended]:
        """The best items for a request, best first; see :meth:`recommend_many`."""
        return self.recommend_many([request])[0]

    def recommend_many(self, requests: Sequence[Request]) -> list[list[Recommended]]:
        """The best items for each of ``requests``, best first; the model is run once for all.

        Where filters leave fewer items than were asked for, fewer come back.

        Raises
        ------
        ServingError
            If one of them speaks of an item or a category that the catalogue lacks; none is answered then.
        """
        for request in requests:
            self._filters.check(request)
        if not requests:
            return []
        positions, lengths = self._model.padded([request.history for request in requests])
        queries, pooled = self._model.queries_and_pools(positions, lengths)
        answers = []
        for row, (request, found) in enumerate(zip(requests, self._found(requests, queries), strict=True)):
            asked = Asked(positions[row, : lengths[row]], queries[row], pooled[row, : lengths[row]])
            answers.append(self._answer(request, asked, *found))
        return answers

    def top(self, histories: Sequence[Sequence[int]], k: int) -> tuple[NDArray[np.int32], Floats]:
        """The best items for each history by score alone, without filters: what was seen is among them.

        Returns
        -------
        Positions, int32 ``(B, k)``, best first, and scores, float32 ``(B, k)``. Where the catalogue has fewer items, rows end
        with -1 and -inf.

        Raises
        ------
        ServingError
            If an entry that the model would read is no item's position, or ``k`` is below 1.
        """
        return self._retrieval.top(histories, k)

    def scores(self, histories: Sequence[Sequence[int]]) -> Floats:
        """Scores of all items ``(B, n_items)``, exact, in nats."""
        return self._exact.scores(self._model.queries(*self._model.padded(histories)))

    def _found(self, requests: Sequence[Request], queries: Floats) -> list[tuple[NDArray[np.intp], Floats]]:
        """For each request the positions and scores of its candidates, best first."""
        if self.index is not None:
            return [self._found_by_index(request, query[None]) for request, query in zip(requests, queries, strict=True)]
        found = []
        for first, part in self._exact.in_parts(queries):
            for request, scores in zip(requests[first:], part, strict=False):
                found.append(self._best_of_all(request, scores))
        return found

    def _best_of_all(self, request: Request, scores: Floats) -> tuple[NDArray[np.intp], Floats]:
        """The candidates of a request by the scores of all items, which are altered."""
        boosted(scores, request)
        mask = self._filters.mask(request)
        if mask is not None:
            scores[~mask] = -np.inf
        best = top_of(scores, pool_size(request))
        return best, scores[best]

    def _found_by_index(self, request: Request, query: Floats) -> tuple[NDArray[np.intp], Floats]:
        """As :meth:`_best_of_all`: from the index where it can give enough, else exactly; ``query`` is ``(1, dim)``."""
        assert self.index is not None
        n_items, wanted = len(self.bundle.items), pool_size(request)
        mask = self._filters.mask(request) if request.allow is not None or request.categories else None
        fetch = wanted + len(request.boost)
        if mask is None:
            fetch += len(refused(request))
        else:
            allowed = np.flatnonzero(mask)
            if len(allowed) <= n_items // _FEW:
                return self._best_of(request, query, allowed)
            fetch = fetch * n_items // len(allowed) * 3 // 2  # half as many again, as the best need not be spread evenly
        if fetch > self.index.most:
            return self._best_of_all(request, self._exact.scores(query)[0])
        near = self.index.candidates(query, fetch)[0]
        near = np.union1d(near[near >= 0], _array(request.boost))
        near = near[mask[near]] if mask is not None else np.setdiff1d(near, _array(refused(request)))
        if len(near) < min(wanted, n_items):
            return self._best_of_all(request, self._exact.scores(query)[0])
        return self._best_of(request, query, near)

    def _best_of(self, request: Request, query: Floats, positions: NDArray[np.intp]) -> tuple[NDArray[np.intp], Floats]:
        """The candidates of a request among rising ``positions``, which all may be recommended."""
        scores = self._exact.scores_at(query, positions)[0]
        for position, nats in request.boost.items():
            scores[positions == position] += np.float32(nats)
        best = top_of(scores, pool_size(request))
        return positions[best], scores[best]

    def _answer(self, request: Request, asked: Asked, candidates: NDArray[np.intp], scores: Floats) -> list[Recommended]:
        """Candidates, best first, to the items of the answer with the parts of their scores."""
        items, catalogue = self.bundle.items, self.bundle.catalogue
        chosen = diversified(items, candidates, scores, request.k, request.diversity)
        positions = candidates[chosen]
        rows, pool = items.rows(positions), asked.pool_vector(self.bundle)
        by_pool, by_sequence = rows @ pool, rows @ (asked.query - pool)
        reasons = self._explainer.reasons(asked, positions) if request.explain else [()] * len(positions)
        return [
            Recommended(
                position=position,
                id=catalogue.ids[position],
                title=catalogue.titles[position],
                score=float(scores[chosen[place]]),
                reasons=reasons[place],
                popularity=float(items.biases[position]),
                sequence=float(by_sequence[place]),
                pool=float(by_pool[place]),
                boost=float(request.boost.get(position, 0.0)),
            )
            for place, position in enumerate(positions.tolist())
        ]


def _array(positions: Collection[int]) -> NDArray[np.intp]:
    return np.fromiter(positions, dtype=np.intp, count=len(positions))
