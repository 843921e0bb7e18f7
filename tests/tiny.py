"""The smallest federation with all real parts: made-up users, hashed item texts, a random transformer of two layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from common.config import Config, load, to_run_config
from common.data.population import enrolled
from simulations.grid import Faults, InProcessGrid

SETTINGS: dict[str, Any] = {
    "run": {"threads": 1, "device": "cpu"},
    "data": {"source": "synthetic", "synthetic": {"users": 40, "items": 24, "categories": 3, "interactions_per_user": 8.0}},
    "partition": {"silos": 2},
    "model": {"encoder": "hashing", "backbone": "tiny-bert", "window": 6, "lora_rank": 2, "item_dim": 4},
    "privacy": {"mode": "none"},
    "training": {"batch_size": 8, "local_steps": 2, "sampling_probability": 1.0, "learning_rate": 0.01},
    "federation": {"rounds": 2, "round_pause": 0.0},
}


def config(**settings: Any) -> Config:
    """:data:`SETTINGS` with dotted ``section__key`` settings over them, and what the silos declare."""
    return enrolled(load(SETTINGS, {key.replace("__", "."): value for key, value in settings.items()}))


def grid(config: Config, out: Path | None = None, *, faults: Faults | None = None, **node: Any) -> InProcessGrid:
    """All silos of ``config`` in this process; ``node`` are settings of every node's operator.

    Where ``config`` is secure they have keys and a roster in ``out``, as in any simulation.
    """
    from client.app import app
    from client.place import make_simulated_roster

    run_config = to_run_config(config) | ({"app.out": str(out)} if out else {})
    nodes = dict.fromkeys(range(config.partition.silos), node)
    if out and config.is_secure:
        make_simulated_roster(out, config.partition.silos)
    return InProcessGrid(app, config.partition.silos, run_config, faults=faults, node_configs=nodes)


def server_context(config: Config, out: Path | None = None) -> Context:
    """What Flower would hand to the server app."""
    run_config = to_run_config(config) | ({"app.out": str(out)} if out else {})
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config))
