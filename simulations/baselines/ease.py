"""EASE: the linear item-item model with a closed form (Steck, WWW 2019, arXiv 1905.03375)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.data.catalogue import Catalogue
from simulations.baselines import Histories, Progress, register
from simulations.baselines._matrix import binary


@register("ease")
@dataclass
class EASE:
    """``min ||X - XB||^2 + regularization ||B||^2`` subject to ``diag(B) = 0``, X binary: ``B = I - P / diag(P)`` (eq. 8).

    Memory and time are those of one dense inverse of order ``n_items``, in float64.
    """

    regularization: float = 100.0
    _weights: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32), init=False, repr=False)

    def fit(
        self,
        train: Histories,
        catalogue: Catalogue,
        item_vectors: NDArray[np.float32] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        met = binary(train, len(catalogue))
        gram = (met.T @ met).toarray().astype(np.float64)
        gram[np.diag_indices_from(gram)] += self.regularization
        inverse = np.linalg.inv(gram)
        weights = inverse / -np.diag(inverse)
        np.fill_diagonal(weights, 0.0)
        self._weights = weights.astype(np.float32)

    def score(self, histories: Histories) -> NDArray[np.float32]:
        return np.asarray(binary(histories, len(self._weights)) @ self._weights, dtype=np.float32)
