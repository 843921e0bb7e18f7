"""The models that a student learns from: a run's own, others beside it, and histories that anybody may see."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.data.catalogue import Catalogue
from common.errors import DataError, ModelError
from common.model.adapter import from_vector, load_adapter, manifest_of
from common.model.finished import ADAPTER, load_finished
from common.model.recommender import Recommender


@dataclass(frozen=True, eq=False)
class Teachers:
    """Models in evaluation mode over one catalogue, the first that of the run; ``digests``: SHA-256 (hex) of the files."""

    config: Config
    catalogue: Catalogue
    models: tuple[Recommender, ...]
    digests: tuple[str, ...]


def load_teachers(run: Path, others: Sequence[Path] = ()) -> Teachers:
    """The model of a run's folder, and of ``others``: folders of runs, or adapters and checkpoints of this run's model.

    Raises
    ------
    DataError, ModelError
        If one of them is no model, or does not go with the first.
    """
    first = load_finished(run)
    models, files = [first.model], [run / ADAPTER]
    for path in others:
        if path.is_dir():
            model, file = load_finished(path).model, path / ADAPTER
        else:
            model, file = load_finished(run).model, path
            _put(path, model)
        if model.catalogue_fingerprint != first.model.catalogue_fingerprint or model.encoder_name != first.model.encoder_name:
            raise ModelError(f"{path}: its catalogue or text encoder is not that of {run}; teachers must share both")
        models.append(model)
        files.append(file)
    digests = tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return Teachers(first.config, first.catalogue, tuple(models), digests)


def _put(path: Path, model: Recommender) -> None:
    """Put an adapter into ``model``, from its own file or from a checkpoint's, which knows the manifest by its hash only."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
            vector = file.get_tensor("vector") if "manifest" not in facts else None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: neither a run's folder nor an adapter ({error})") from None
    if vector is None:
        from_vector(model, *load_adapter(path))
        return
    manifest = manifest_of(model)
    known = facts.get("manifest_hash") or json.loads(facts.get("silorec", "{}")).get("manifest_hash")
    if known != manifest.hash:
        raise ModelError(f"{path}: it was written with another model than that of the run")
    from_vector(model, vector, manifest)


def read_public_histories(path: Path, catalogue: Catalogue) -> tuple[NDArray[np.int32], ...]:
    """Histories that anybody may see: one a line, ids of items separated by commas (CSV), oldest first.

    Raises
    ------
    DataError
        With the line, if an id is not in the catalogue or the file cannot be read.
    """
    histories = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line, row in enumerate(csv.reader(file), start=1):
                if unknown := [name for name in row if name not in catalogue.index]:
                    raise DataError(f"item {unknown[0]!r} is not in the catalogue", path, line)
                if row:
                    histories.append(np.array([catalogue.index[name] for name in row], dtype=np.int32))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"not a file of histories, one a line with ids separated by commas ({error})", path) from None
    return tuple(histories)
