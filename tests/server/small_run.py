"""A run's folder as a coordinator has it, without training: the settings, the catalogue and a made-up adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.config import Config, load, to_toml
from common.data.catalogue import Catalogue
from common.data.catalogue_file import write_catalogue
from common.model.adapter import manifest_of, save_adapter, to_vector
from common.model.finished import ADAPTER, CATALOGUE, CONFIG
from tests.common.model import small_model

SETTINGS: dict[str, Any] = {
    **small_model.SETTINGS,
    "name": "small",
    "run": {"device": "cpu", "threads": 1},
    "data": {"source": "/nowhere/shop.csv"},
    "partition": {"silos": 2},
    "federation": {"declared_users": [30, 40], "rounds": 3},
    "distillation": {"histories": 60, "epochs": 3, "width": 16, "heads": 2, "feed_forward": 32, "item_dim": 4, "top_k": 8},
}


def config(**settings: Any) -> Config:
    """:data:`SETTINGS` with dotted ``section__key`` settings over them."""
    return load(SETTINGS, {key.replace("__", "."): value for key, value in settings.items()})


def write(folder: Path, catalogue: Catalogue, *, seed: int = 3, **settings: Any) -> Path:
    """A folder that :func:`common.model.finished.load_finished` reads, and nothing else in it."""
    folder.mkdir(parents=True)
    settled = config(**settings)
    (folder / CONFIG).write_text(to_toml(settled))
    write_catalogue(folder / CATALOGUE, catalogue)
    model = small_model.moved(small_model.build_recommender(settled, catalogue), seed=seed, by=0.3)
    save_adapter(folder / ADAPTER, to_vector(model), manifest_of(model))
    return folder
