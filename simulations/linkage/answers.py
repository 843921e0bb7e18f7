"""What protection costs: the model is asked with protected histories, and the silo takes out what the person has met.

Quality is measured as everywhere (leave-one-out, full ranking, items met before removed, common/metrics.py), in two ways: over
the whole ranking, and over the :data:`~common.recommending.ANSWERS` items that the service sends, of which only those count that
are left when the silo has taken out the whole history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray

from client.private_history import Protection
from common.data.population import Population, load_population
from common.data.split import Held
from common.metrics import evaluate
from common.model.finished import load_finished
from common.model.recommender import Batch, autocast
from common.recommending import ANSWERS
from simulations.linkage.recorded import ask
from simulations.linkage.visits import Visits

BATCH = 128

Model = Callable[[Sequence[NDArray[np.integer]]], NDArray[np.float32]]
"""From histories, oldest first, to scores ``(len(histories), n_items)``."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A model, and the people to measure it with.

    Parameters
    ----------
    model:
        Answers histories.
    population:
        Data and split.
    vectors:
        float32 ``(n_items, dim)`` public item vectors.
    k:
        Length of the list that is judged.
    """

    model: Model
    population: Population
    vectors: NDArray[np.float32]
    k: int

    @property
    def n_items(self) -> int:
        return len(self.population.dataset.catalogue)

    def people(self) -> NDArray[np.int64]:
        """Users with a held-out item."""
        return np.flatnonzero(self.population.split.test_target >= 0)

    def histories(self, held: Held) -> list[NDArray[np.int32]]:
        """What is known of :meth:`people` when ``held`` is asked."""
        everyone = self.population.split.histories(held)
        return [everyone[int(user)] for user in self.people()]

    def quality(self, scores: NDArray[np.float32], held: Held) -> tuple[float, float]:
        """Mean NDCG@k of scores of all :meth:`people`: over the whole ranking, and within one answer of the service."""
        targets = self.population.split.targets(held)[self.people()]
        ndcg = evaluate(scores, targets, self.histories(held), depth=self.k).ndcg(self.k)
        right = scores[np.arange(len(targets)), targets]
        sent = (scores > right[:, None]).sum(axis=1) < ANSWERS
        return float(ndcg.mean()), float((ndcg * sent).mean())


def asked_of_run(run: str | Path) -> Asked:
    """The model of a run's folder, on the data that it was trained with."""
    finished = load_finished(run)
    window = finished.config.model.window

    def model(histories: Sequence[NDArray[np.integer]]) -> NDArray[np.float32]:
        # Histories of equal length side by side: a short one costs little.
        order = np.argsort([len(history) for history in histories], kind="stable")
        out = np.empty((len(histories), finished.model.n_items), dtype=np.float32)
        for start in range(0, len(order), BATCH):
            block = order[start : start + BATCH]
            rows = [histories[i] for i in block]
            width = min(window, max(1, *(len(row) for row in rows)))
            batch = Batch.of_histories(rows, width).to(finished.model.device)
            with torch.inference_mode(), autocast(finished.config, finished.model.device):
                out[block] = finished.model(batch, last_only=True).float().cpu().numpy()
        return out

    vectors = finished.model.item_vectors.cpu().numpy()
    return Asked(model, load_population(finished.config), vectors, finished.config.evaluation.k)


def short_quality(asked: Asked, short: Visits, protection: Protection, seed: int) -> float:
    """Mean NDCG@k of the item that followed the second visit, when histories end there.

    That item may have been trained on: only differences between two protections of the same people mean something.
    """
    everyone = asked.histories("test")
    targets = np.array([full[len(known)] for full, known in zip(everyone, short.second, strict=True)])
    scores = asked.model(ask(short.second, asked.n_items, protection, Random(seed)).histories())
    return float(evaluate(scores, targets, list(short.second), depth=asked.k).ndcg(asked.k).mean())
