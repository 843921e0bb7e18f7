"""Item-kNN: an item is scored by how similar it is to the items of a history (Sarwar et al., WWW 2001)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.catalogue import Catalogue
from simulations.baselines import Histories, Progress, register
from simulations.baselines._matrix import binary

# Rows of similarities that are held densely at a time: 1,000 x 100,000 items are 400 MB.
_ROWS = 1000


@register("item-knn")
@dataclass
class ItemKNN:
    """Cosine between columns of the binary user-item matrix, shrunk where few users met both items.

    Parameters
    ----------
    neighbours:
        Every item keeps its most similar others, at most so many.
    shrinkage:
        Added to the product of the norms: ``s_ij = c_ij / (sqrt(c_i c_j) + shrinkage)``.
    """

    neighbours: int = 200
    shrinkage: float = 0.0
    _similarity: Any = field(default=None, init=False, repr=False)

    def fit(
        self,
        train: Histories,
        catalogue: Catalogue,
        item_vectors: NDArray[np.float32] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        from scipy.sparse import csr_matrix, vstack

        n_items = len(catalogue)
        met = binary(train, n_items)
        norm = np.sqrt(np.asarray(met.sum(axis=0), dtype=np.float32).ravel())
        by_item = met.T.tocsr()
        k = min(self.neighbours, n_items - 1)
        kept = []
        for start in range(0, n_items, _ROWS):
            together = (by_item[start : start + _ROWS] @ met).toarray()
            rows = np.arange(len(together))
            together[rows, start + rows] = 0.0
            scale = norm[start : start + _ROWS, None] * norm + self.shrinkage
            similarity = np.divide(together, scale, out=np.zeros_like(together), where=scale > 0)
            # Stable: equally similar neighbours are kept in the order of the catalogue.
            near = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
            values = np.take_along_axis(similarity, near, axis=1)
            starts = np.arange(len(rows) + 1) * k
            kept.append(csr_matrix((values.ravel(), near.ravel(), starts), shape=(len(rows), n_items)))
        # Row i holds the neighbours of i: a candidate is scored by those of its neighbours that are in the history.
        self._similarity = vstack(kept).T.tocsr()

    def score(self, histories: Histories) -> NDArray[np.float32]:
        return np.asarray((binary(histories, self._similarity.shape[0]) @ self._similarity).toarray(), dtype=np.float32)
