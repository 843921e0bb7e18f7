"""The one model of a process.

A process may play many silos, or the coordinator and all silos at once. They share one backbone and one set of item vectors;
each silo puts the coordinator's adapter into it before it trains (``common.model.adapter.from_vector``), which overwrites all
that is trainable, so nothing passes from one silo to the next through the model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from common.config import Config, load, to_dict
from common.data.population import load_catalogue
from common.model.adapter import Manifest, manifest_of, to_vector
from common.model.recommender import Recommender, build_recommender


@dataclass(frozen=True, eq=False)
class Resident:
    """A model, the layout of its adapter, and the adapter that it was built with, float32 ``(n_parameters,)``, read-only."""

    model: Recommender
    manifest: Manifest
    start: NDArray[np.float32]


def resident(config: Config) -> Resident:
    """The process's model for this configuration, built on first use; the one before it is let go.

    Also sets PyTorch's threads to ``run.threads``, where that is not 0.
    """
    tree = to_dict(config)
    return _resident(json.dumps({section: tree[section] for section in ("run", "data", "model")}, sort_keys=True))


@lru_cache(maxsize=1)
def _resident(key: str) -> Resident:
    import torch

    config = load(json.loads(key))
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    model = build_recommender(config, load_catalogue(config))
    model.eval()
    start = to_vector(model)
    start.flags.writeable = False
    return Resident(model, manifest_of(model), start)
