"""Popularity: the same list for everybody, items by how often they were met."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.data.catalogue import Catalogue
from simulations.baselines import Histories, Progress, register
from simulations.baselines._matrix import counts


@register("popularity")
@dataclass
class Popularity:
    """Scores are counts of interactions in the training part."""

    _counts: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32), init=False, repr=False)

    def fit(
        self,
        train: Histories,
        catalogue: Catalogue,
        item_vectors: NDArray[np.float32] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self._counts = counts(train, len(catalogue)).astype(np.float32)

    def score(self, histories: Histories) -> NDArray[np.float32]:
        return np.broadcast_to(self._counts, (len(histories), len(self._counts)))
