"""BPR: matrix factorisation that ranks what a user met above what they did not (Rendle et al., UAI 2009), by ``implicit``."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.data.catalogue import Catalogue
from simulations.baselines import Histories, Progress, register
from simulations.baselines._matrix import binary, dense

# Users that are folded in together; bounds memory, changes no result.
_USERS = 512
# Pairs of a met and an unmet item per step of the fold-in.
_PAIRS = 64


@register("bpr")
@dataclass
class BPR:
    """Item factors and biases from BPR; a user is fitted to their history by BPR's own loss, the items held fixed.

    A user of the training part is scored in the same way as one who is not: the user factors of the fit are thrown away. That
    is no loss (ML-100K, validation item: NDCG@10 0.053 with the user factors of the fit, 0.067 folded in).

    Parameters
    ----------
    factors, learning_rate, regularization, iterations:
        As in ``implicit``'s ``BayesianPersonalizedRanking``; an iteration is one sampled pair per interaction.
    fold_in_steps, fold_in_rate, fold_in_regularization:
        AdaGrad steps of the fold-in, their size, and its L2 penalty.
    """

    factors: int = 64
    learning_rate: float = 0.02
    regularization: float = 0.02
    iterations: int = 200
    fold_in_steps: int = 100
    fold_in_rate: float = 0.3
    fold_in_regularization: float = 0.01
    _items: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32), init=False, repr=False)
    _seed: int = field(default=0, init=False, repr=False)

    def fit(
        self,
        train: Histories,
        catalogue: Catalogue,
        item_vectors: NDArray[np.float32] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        from implicit.cpu.bpr import BayesianPersonalizedRanking
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        # One thread: more would race for the same factors, and a seed would not give the same model twice.
        with threadpool_limits(1, "blas"):
            model = BayesianPersonalizedRanking(
                factors=self.factors,
                learning_rate=self.learning_rate,
                regularization=self.regularization,
                iterations=self.iterations,
                num_threads=1,
                random_state=seed,
            )
            model.fit(binary(train, len(catalogue)), show_progress=False)
        # implicit keeps the item bias as one more factor, the last.
        self._items = np.asarray(model.item_factors, dtype=np.float32)
        self._seed = seed

    def score(self, histories: Histories) -> NDArray[np.float32]:
        blocks = [self._fold_in(histories[start : start + _USERS]) for start in range(0, len(histories), _USERS)]
        users = np.concatenate([*blocks, np.zeros((0, self._items.shape[1] - 1), dtype=np.float32)])
        return users @ self._items[:, :-1].T + self._items[:, -1]

    def _fold_in(self, histories: Histories) -> NDArray[np.float32]:
        """User factors ``(len(histories), factors)``; the draws are the same for every user, so company does not matter."""
        factors, bias = self._items[:, :-1], self._items[:, -1]
        lengths = np.array([len(h) for h in histories])
        history = np.zeros((len(histories), max(1, lengths.max())), dtype=np.int64)
        for row, items in zip(history, histories, strict=True):
            row[: len(items)] = items
        unmet = dense(histories, len(factors)) == 0
        some = (lengths > 0)[:, None]
        users = np.zeros((len(histories), factors.shape[1]), dtype=np.float32)
        squares = np.full_like(users, 1e-8)
        rng = np.random.default_rng(self._seed)
        for _ in range(self.fold_in_steps):
            place = (rng.random(_PAIRS) * lengths[:, None]).astype(np.int64)
            better = np.take_along_axis(history, place, axis=1)
            worse = rng.integers(len(factors), size=_PAIRS)
            ahead = np.einsum("uf,upf->up", users, factors[better]) + bias[better] - (users @ factors[worse].T + bias[worse])
            pull = unmet[:, worse] * some / (1.0 + np.exp(ahead)) / _PAIRS
            gradient = np.einsum("up,upf->uf", pull, factors[better]) - pull @ factors[worse]
            gradient -= self.fold_in_regularization * users
            squares += gradient * gradient
            users += (self.fold_in_rate * gradient / np.sqrt(squares)).astype(np.float32)
        return users
