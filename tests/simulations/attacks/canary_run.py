"""A small model with some 7,800 trained numbers, and the plan of a silo, for audits by canaries that take seconds."""

from __future__ import annotations

from typing import Any

from common.config import Config, load
from common.privacy.plan import PrivacyPlan, plan_for

SETTINGS: dict[str, Any] = {
    "run": {"device": "cpu", "threads": 1},
    "data": {"source": "synthetic", "synthetic": {"users": 40, "items": 60, "categories": 3}},
    "model": {"encoder": "hashing", "backbone": "tiny-bert", "window": 2, "lora_rank": 2, "item_dim": 16},
    "privacy": {"epsilon": 4.0, "delta": 1e-5},
    "training": {
        "optimizer": "sgd",
        "learning_rate": 1.0,
        "local_steps": 1,
        "sampling_probability": 1.0,
        "physical_batch_size": 512,
    },
    "federation": {"rounds": 6},
}

#: Four times as many steps on a quarter of the users each.
SAMPLED = {"training__sampling_probability": 0.25, "federation__rounds": 24}


def run(users: int = 1000, **settings: Any) -> tuple[Config, PrivacyPlan]:
    """:data:`SETTINGS` with dotted ``section__key`` settings over them, and the plan of a silo that declares so many users."""
    config = load(SETTINGS, {key.replace("__", "."): value for key, value in settings.items()})
    return config, plan_for(config, users, users)
