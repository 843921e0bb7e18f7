"""A made-up silo that is small enough to be attacked in a test, with all real parts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.silo_data import SiloData
from common.config import Config, load
from common.data.population import load_population
from common.model.resident import resident
from common.privacy.plan import PrivacyPlan, plan_for
from tests import tiny

SETTINGS: dict[str, Any] = {
    **tiny.SETTINGS,
    "data": {"source": "synthetic", "synthetic": {"users": 120, "items": 60, "interactions_per_user": 9.0}},
    "partition": {"silos": 1},
    "model": {"encoder": "hashing", "backbone": "tiny-bert", "window": 8, "lora_rank": 2, "item_dim": 8},
    "federation": {"rounds": 1},
}


def config(**settings: Any) -> Config:
    """:data:`SETTINGS` with dotted ``section__key`` settings over them."""
    return load(SETTINGS, {key.replace("__", "."): value for key, value in settings.items()})


def data(settings: Config) -> SiloData:
    """Everybody's whole histories."""
    return SiloData.from_dataset(load_population(settings).dataset, settings)


def plan(settings: Config, users: int = 60) -> PrivacyPlan:
    return plan_for(settings, users, users)


def moved_start(settings: Config, by: float = 0.05) -> NDArray[np.float32]:
    """An adapter away from the start, where half of all gradients are zero."""
    start = resident(settings).start
    return (start + by * np.random.default_rng(3).standard_normal(len(start))).astype(np.float32)
