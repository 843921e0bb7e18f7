"""The coordinator's memory: after each round, everything that the next one needs, in one file.

A checkpoint is one safetensors file: the adapter and the optimiser's vectors, and as JSON in its header the round, the history
with who took part in each, the hash of the configuration, the seed, and how far the transcript had come. It is written beside
the old one, flushed to the disk, and renamed: after a kill there is either the old state or the new one. It holds nothing that
did not leave a silo protected.

There is no other random state to keep. What a coordinator draws in a run are the names of attempts at secure sums, fresh from the
operating system; what follows from the seed is drawn by the silos, for each round anew (``common.protocol.silo_seed``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.durable import write_durably
from common.errors import FederationError
from common.privacy.transcript import Mark

FORMAT = 2
FILE = "checkpoint.safetensors"
FINAL = "final.safetensors"
START = "start.safetensors"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a federation between two rounds.

    ``round`` is the last one that is finished: -1 before the count, 0 after it. ``vector`` is the adapter, float32;
    ``optimiser`` the server optimiser's vectors, float64; ``history`` one JSON table per round. ``seed`` is the run's, and
    ``transcript`` says how far the transcript had come; both are None in a checkpoint of format 1.
    """

    config_hash: str
    manifest_hash: str
    vector: NDArray[np.float32]
    round: int = -1
    optimiser: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    seed: int | None = None
    transcript: Mark | None = None


def save(folder: Path, state: Checkpoint) -> Path:
    """Write ``folder/checkpoint.safetensors``, atomically and durably; returns its path.

    Raises
    ------
    FederationError
        If the disk does not take it; the checkpoint that was there is as it was.
    """
    from safetensors.numpy import save as to_bytes

    tensors = {"vector": state.vector} | {f"optimiser.{name}": value for name, value in state.optimiser.items()}
    facts = {
        "format": FORMAT,
        "round": state.round,
        "config_hash": state.config_hash,
        "manifest_hash": state.manifest_hash,
        "history": [dict(entry) for entry in state.history],
        "seed": state.seed,
        "transcript": None if state.transcript is None else vars(state.transcript),
    }
    content = to_bytes({name: np.ascontiguousarray(value) for name, value in tensors.items()}, {"silorec": json.dumps(facts)})
    return _written(folder / FILE, content, f"round {state.round}")


def load(folder: Path, *, config_hash: str, manifest_hash: str | None = None) -> Checkpoint | None:
    """The checkpoint of ``folder``, or None where there is none; without ``manifest_hash`` that of any model.

    Raises
    ------
    FederationError
        If it is damaged, was written by another version, or belongs to another configuration or model.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("silorec", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise FederationError(f"{path}: damaged checkpoint ({type(error).__name__}): remove it to start again") from None
    if not isinstance(facts, dict) or facts.get("format") not in (1, FORMAT) or "vector" not in tensors:
        raise FederationError(
            f"{path}: not a checkpoint of format 1 to {FORMAT}: remove it, or resume with the silorec that wrote it"
        )
    for what, ours in (("config_hash", config_hash), ("manifest_hash", manifest_hash)):
        if ours is not None and facts[what] != ours:
            thing = "configuration" if what == "config_hash" else "model"
            raise FederationError(f"{path}: was written with another {thing}: restore that, or choose another folder")
    return Checkpoint(
        config_hash=config_hash,
        manifest_hash=facts["manifest_hash"],
        vector=tensors.pop("vector"),
        round=int(facts["round"]),
        optimiser={name.removeprefix("optimiser."): value for name, value in tensors.items()},
        history=tuple(facts["history"]),
        seed=facts.get("seed"),
        transcript=Mark(**facts["transcript"]) if facts.get("transcript") else None,
    )


def save_final(folder: Path, state: Checkpoint, metrics: Mapping[str, float] | None = None) -> Path:
    """Write ``folder/final.safetensors``: the adapter of the last round, the sign that the federation has finished.

    ``metrics`` are the protected figures of quality, where the silos told them; :func:`read_metrics` reads them back.
    """
    from safetensors.numpy import save as to_bytes

    facts = {"manifest_hash": state.manifest_hash, "config_hash": state.config_hash, "round": str(state.round)}
    facts["metrics"] = json.dumps(dict(metrics or {}))
    return _written(folder / FINAL, to_bytes({"vector": state.vector}, facts), "the last adapter")


def _written(path: Path, content: bytes, what: str) -> Path:
    try:
        return write_durably(path, content)
    except OSError as error:
        raise FederationError(
            f"{path}: {what} cannot be written ({error.strerror}); what was there before is whole: mend that and start again"
        ) from None


def read_final(folder: Path) -> NDArray[np.float32]:
    """The adapter that :func:`save_final` wrote; :class:`FederationError` if it is not there or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / FINAL
    try:
        return load_file(path)["vector"]
    except FileNotFoundError:
        raise FederationError(f"{path}: the federation has not finished") from None
    except (SafetensorError, KeyError) as error:
        raise FederationError(f"{path}: damaged ({type(error).__name__})") from None


def read_metrics(folder: Path) -> dict[str, float]:
    """The protected figures of quality that :func:`save_final` wrote, ``{}`` where there are none."""
    from safetensors import SafetensorError, safe_open

    path = folder / FINAL
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(json.loads((file.metadata() or {}).get("metrics", "{}")))
    except (SafetensorError, OSError, ValueError):
        return {}
