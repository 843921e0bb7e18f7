"""The model that a run left behind in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.config import Config, load
from common.data.catalogue import Catalogue
from common.data.catalogue_file import read_catalogue
from common.errors import DataError
from common.model.adapter import from_vector, load_adapter
from common.model.files import ADAPTER, CATALOGUE, CONFIG
from common.model.recommender import Recommender, build_recommender

__all__ = ["ADAPTER", "CATALOGUE", "CONFIG", "FinishedModel", "load_finished"]


@dataclass(frozen=True, eq=False)
class FinishedModel:
    """A run's settings, its public catalogue, and its model in evaluation mode with the selected adapter in it."""

    config: Config
    catalogue: Catalogue
    model: Recommender


def load_finished(run: str | Path) -> FinishedModel:
    """The model of a run's folder, which needs nothing but the folder and the backbone's public weights.

    Raises
    ------
    DataError, ModelError
        If the folder is not a run, or its adapter does not fit.
    """
    folder = Path(run)
    for name in (CONFIG, CATALOGUE, ADAPTER):
        if not (folder / name).is_file():
            raise DataError(f"{name} is missing: not the folder of a run, or it has not finished a round", folder)
    config, catalogue = load(folder / CONFIG), read_catalogue(folder / CATALOGUE)
    model = build_recommender(config, catalogue)
    vector, manifest = load_adapter(folder / ADAPTER)
    from_vector(model, vector, manifest)
    return FinishedModel(config, catalogue, model.eval())
