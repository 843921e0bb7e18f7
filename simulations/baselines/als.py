"""ALS: weighted matrix factorisation for implicit feedback (Hu, Koren and Volinsky, ICDM 2008), by the library ``implicit``."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.data.catalogue import Catalogue
from simulations.baselines import Histories, Progress, register
from simulations.baselines._matrix import binary


@register("als")
@dataclass
class ALS:
    """Item factors from alternating least squares; a user is the exact solution for their history (eq. 4 of the paper).

    Parameters
    ----------
    factors, regularization, iterations:
        Width of the factors, their L2 penalty, and passes over users and items.
    alpha:
        Confidence in what a user met; in everything else it is 1.
    """

    factors: int = 64
    regularization: float = 10.0
    alpha: float = 1.0
    iterations: int = 15
    _items: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32), init=False, repr=False)

    def fit(
        self,
        train: Histories,
        catalogue: Catalogue,
        item_vectors: NDArray[np.float32] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        # implicit has threads of its own and warns of a slow-down where BLAS has some as well.
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                factors=self.factors,
                regularization=self.regularization,
                alpha=self.alpha,
                iterations=self.iterations,
                num_threads=1,
                random_state=seed,
            )
            report = None if progress is None else lambda iteration, seconds, loss: progress(iteration + 1, self.iterations)
            model.fit(binary(train, len(catalogue)), show_progress=False, callback=report)
        self._items = np.asarray(model.item_factors, dtype=np.float32)

    def score(self, histories: Histories) -> NDArray[np.float32]:
        items = self._items.astype(np.float64)
        penalty = items.T @ items + self.regularization * np.eye(self.factors)
        users = np.zeros((len(histories), self.factors))
        for u, history in enumerate(histories):
            met = items[np.unique(history)]
            users[u] = np.linalg.solve(penalty + (self.alpha - 1.0) * met.T @ met, self.alpha * met.sum(axis=0))
        return (users @ items.T).astype(np.float32)
