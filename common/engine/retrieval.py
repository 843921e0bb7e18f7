"""From a history to the best items by score alone: what answering needs of a bundle, without its catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from common.bundle.contents import Scoring
from common.engine.queries import QueryModel
from common.engine.search import ExactSearch
from common.errors import BundleError, ServingError

if TYPE_CHECKING:
    from common.engine.approximate import ApproximateIndex, Progress

Floats = NDArray[np.float32]
SearchChoice = Literal["auto", "exact", "approximate"]

APPROXIMATE_FROM = 200_000
"""Items from which ``search="auto"`` builds an index."""

PROBES = 3
NOT_FINITE = "the model gives scores that are not finite; take another bundle"


class Retrieval:
    """The model of a bundle and the search for what it asks. Many threads may ask at once.

    Parameters are those of :class:`common.engine.Engine`.
    """

    def __init__(
        self,
        scoring: Scoring,
        *,
        search: SearchChoice = "auto",
        threads: int = 1,
        index_folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        if threads < 1:
            raise ServingError(f"threads = {threads}: the engine needs one at least")
        self.model = QueryModel(scoring, threads)
        self.exact = ExactSearch(scoring.items)
        self.index: ApproximateIndex | None = None
        if search == "approximate" or (search == "auto" and len(scoring.items) >= APPROXIMATE_FROM):
            from common.engine.approximate import index_of

            self.index = index_of(scoring, self.model, self.exact, folder=index_folder, progress=progress)

    def top(self, histories: Sequence[Sequence[int]], k: int) -> tuple[NDArray[np.int32], Floats]:
        """The best items ``(B, k)`` for each history and their scores, see :meth:`common.engine.Engine.top`."""
        if k < 1:
            raise ServingError(f"k = {k}: one item at least is to be asked for")
        if not histories:
            return np.empty((0, k), dtype=np.int32), np.empty((0, k), dtype=np.float32)
        queries = self.model.queries(*self.model.padded(histories))
        return self.exact.top(queries, k) if self.index is None else self.index.top(queries, k)

    def try_out(self) -> None:
        """Answer a few made-up histories: nobody waits for the first answer, and a model that cannot answer is not used.

        Raises
        ------
        BundleError
            If a query or a score is not finite.
        """
        n = len(self.exact.items)
        for history in probes(n):
            if not np.isfinite(self.top([history], min(n, 10))[1]).all():
                raise BundleError(NOT_FINITE)


def probes(n_items: int) -> list[tuple[int, ...]]:
    """Histories after each of which a new bundle must give finite scores: none, items spread over the catalogue, all of these."""
    spread = np.linspace(0, n_items - 1, min(n_items, PROBES)).astype(int).tolist()
    return [(), *((i,) for i in spread), tuple(spread)]
