"""How good an adapter is, for everybody at once: only a simulation may ask this.

It looks at all users' validation and test items without protection, so it lives here, where the apps cannot reach it, and its
figures are never part of what a silo or the coordinator knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from common.config import Config
from common.data.population import Population
from common.data.split import Held
from common.errors import DataError
from common.metrics import Evaluation, evaluate
from common.model.adapter import Manifest, from_vector
from common.model.recommender import Batch, Recommender, autocast

BATCH = 128


@dataclass(frozen=True, eq=False)
class Judged:
    """An evaluation, and the mean cross-entropy of the held-out items in nats."""

    evaluation: Evaluation
    loss: float


class Evaluator:
    """Scores adapters and reference recommenders on one population under one protocol.

    Leave-one-out by time, full ranking of what the user's silo sells, items met before removed.

    Raises
    ------
    DataError
        If no user has enough interactions to be measured.
    """

    def __init__(self, config: Config, population: Population, model: Recommender, manifest: Manifest) -> None:
        self.config, self.population, self.model, self.manifest = config, population, model, manifest
        split = population.split
        self.users = np.flatnonzero(split.test_target >= 0)
        if not len(self.users):
            raise DataError(f"{population.dataset.name}: no user has the three interactions that leave-one-out needs")
        self.silo = population.partition.silo_of_user()[self.users]
        self.item_counts = _users_per_item(split.train.histories(), len(population.dataset.catalogue))
        masks = np.stack([silo.items for silo in population.partition.silos])
        self._assortments = None if masks.all() else masks
        matrix, names = population.dataset.catalogue.category_matrix()
        self._features = matrix if names else model.item_vectors.cpu().numpy()
        self._text = self._user_text()

    def histories(self, held: Held) -> list[NDArray[np.int32]]:
        """What is known of each measured user when ``held`` is asked."""
        everyone = self.population.split.histories(held)
        return [everyone[int(u)] for u in self.users]

    def targets(self, held: Held) -> NDArray[np.int32]:
        """The held-out item of each measured user."""
        return self.population.split.targets(held)[self.users]

    def judge(self, vector: NDArray[np.float32], held: Held) -> Judged:
        """Quality of an adapter on the validation or the test items."""
        scores = self.scores(vector, self.histories(held))
        targets = self.targets(held)
        shifted = scores - scores.max(axis=1, keepdims=True)
        log_total = np.log(np.exp(shifted).sum(axis=1))
        loss = float((log_total - shifted[np.arange(len(targets)), targets]).mean())
        return Judged(self.rank(scores, held), loss)

    def scores(self, vector: NDArray[np.float32], histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """``(len(histories), n_items)`` float32, of all measured users in their order."""
        return self.scores_of(histories, vector, np.arange(len(histories)))

    def scores_of(
        self, histories: Sequence[NDArray[np.int32]], vector: NDArray[np.float32], users: NDArray[np.integer] | None = None
    ) -> NDArray[np.float32]:
        """``(len(histories), n_items)`` float32, of some measured users, or of people without text when ``users`` is None."""
        from_vector(self.model, vector, self.manifest)
        self.model.eval()
        window = self.config.model.window
        text = [()] * len(histories) if users is None else [self._text[int(u)] for u in users]
        out = np.empty((len(histories), self.model.n_items), dtype=np.float32)
        for start in range(0, len(histories), BATCH):
            block = slice(start, start + BATCH)
            batch = Batch.of_histories(histories[block], window, text[block]).to(self.model.device)
            with torch.inference_mode(), autocast(self.config, self.model.device):
                out[block] = self.model(batch, last_only=True).float().cpu().numpy()
        return out

    def rank(self, scores: NDArray[np.float32], held: Held) -> Evaluation:
        """Any recommender's scores under the protocol."""
        return evaluate(
            scores,
            self.targets(held),
            self.histories(held),
            depth=self.config.evaluation.k,
            assortments=self._assortments,
            assortment_of=None if self._assortments is None else self.silo,
            item_counts=self.item_counts,
            count_users=self.population.dataset.interactions.n_users,
            features=self._features,
        )

    def _user_text(self) -> list[tuple[int, ...]]:
        if not self.config.model.user_text:
            return [()] * len(self.users)
        from client.silo_data import tokenise, user_texts

        # What a user wrote about held-out items is not known when they are asked: texts come from the training rows.
        known = replace(self.population.dataset, interactions=self.population.split.train)
        lines = list(user_texts(known))
        return [tokenise(lines[int(u)], self.model.tokenizer, self.config.model.text_tokens) for u in self.users]


def _users_per_item(histories: Sequence[NDArray[np.int32]], n_items: int) -> NDArray[np.int64]:
    counts = np.zeros(n_items, dtype=np.int64)
    for history in histories:
        counts[np.unique(history)] += 1
    return counts
