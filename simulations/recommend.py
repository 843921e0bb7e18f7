"""Recommendations for somebody the model has never seen, from a finished run's folder."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.config import Config, load
from common.data.catalogue import Catalogue
from common.errors import DataError
from common.metrics import top_k
from common.model.adapter import from_vector, load_adapter
from common.model.recommender import Batch, Recommender, autocast, build_recommender


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
        folder = Path(run)
        for name in ("config.toml", "catalogue.jsonl", "adapter.safetensors"):
            if not (folder / name).is_file():
                raise DataError(f"{name} is missing: not the folder of a run, or it has not finished a round", folder)
        self.config: Config = load(folder / "config.toml")
        self.catalogue = read_catalogue(folder / "catalogue.jsonl")
        self.model: Recommender = build_recommender(self.config, self.catalogue)
        vector, manifest = load_adapter(folder / "adapter.safetensors")
        from_vector(self.model, vector, manifest)
        self.model.eval()

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


def find_item(catalogue: Catalogue, text: str) -> int:
    """Position of an item by id, by title, or by the only title that holds ``text``; letter case is ignored in titles.

    Raises
    ------
    DataError
        With the nearest titles.
    """
    if text in catalogue.index:
        return catalogue.index[text]
    wanted = text.casefold().strip()
    folded = [title.casefold() for title in catalogue.titles]
    exact = [i for i, title in enumerate(folded) if title == wanted]
    if exact:
        return exact[0]
    holding = [i for i, title in enumerate(folded) if wanted and wanted in title]
    if len(holding) == 1:
        return holding[0]
    if holding:
        names = ", ".join(repr(catalogue.titles[i]) for i in holding[:5])
        raise DataError(f"{text!r} could be {len(holding)} items, among them {names}; give the whole title or the id")
    near = difflib.get_close_matches(wanted, folded, n=3, cutoff=0.5)
    hint = ", ".join(repr(catalogue.titles[folded.index(title)]) for title in near)
    raise DataError(f"no item is called {text!r}" + (f"; did you mean {hint}?" if hint else ""))


def read_catalogue(path: Path) -> Catalogue:
    """The catalogue that a run keeps, one JSON object a line."""
    try:
        # Not splitlines(): a title may hold characters that it takes for the end of a line.
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        names = list(rows[0]["fields"])
        return Catalogue(
            ids=tuple(row["id"] for row in rows),
            titles=tuple(row["title"] for row in rows),
            categories=tuple(tuple(row["categories"]) for row in rows),
            fields={name: tuple(row["fields"][name] for row in rows) for name in names},
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"not a run's catalogue, or damaged ({error})", path) from None
