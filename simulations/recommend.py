"""Recommendations for somebody the model has never seen, from a finished run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.config import Config
from common.data.catalogue import Catalogue
from common.data.lookup import find_item
from common.errors import DataError
from common.metrics import top_k
from common.model.finished import load_finished
from common.model.recommender import Batch, Recommender, autocast


@dataclass(frozen=True)
class Recommendation:
    """One recommended item; ``score`` is the model's, in nats up to a constant."""

    item: str
    title: str
    score: float


@dataclass(frozen=True)
class Answer:
    """What was understood of the history, and what is recommended, best first."""

    history: tuple[str, ...]
    recommendations: tuple[Recommendation, ...]


class RunModel:
    """The model of a run, for many requests.

    Raises
    ------
    DataError, ModelError
        If the folder is not a run, or its adapter does not fit.
    """

    def __init__(self, run: str | Path) -> None:
        finished = load_finished(run)
        self.config: Config = finished.config
        self.catalogue: Catalogue = finished.catalogue
        self.model: Recommender = finished.model

    def recommend(self, history: Sequence[str], k: int = 10) -> Answer:
        """``k`` items for somebody who met ``history`` (item ids or titles, oldest first); items of the history are left out.

        Raises
        ------
        DataError
            If an entry is neither an id nor a title that can be told apart, with the nearest titles.
        """
        if k < 1:
            raise DataError(f"k = {k}, must be at least 1")
        items = np.array([find_item(self.catalogue, text) for text in history], dtype=np.int32)
        batch = Batch.of_histories([items], self.config.model.window).to(self.model.device)
        with torch.inference_mode(), autocast(self.config, self.model.device):
            scores = self.model(batch, last_only=True).float().cpu().numpy()
        allowed = np.ones((1, len(self.catalogue)), dtype=np.bool_)
        allowed[0, items] = False
        best = [int(i) for i in top_k(scores, min(k, len(self.catalogue)), allowed)[0] if i >= 0]
        return Answer(
            tuple(self.catalogue.titles[int(i)] for i in items),
            tuple(Recommendation(self.catalogue.ids[i], self.catalogue.titles[i], float(scores[0, i])) for i in best),
        )


def recommend(run: str | Path, history: Sequence[str], k: int = 10) -> Answer:
    """``RunModel(run).recommend(history, k)``, for a single request."""
    return RunModel(run).recommend(history, k)
