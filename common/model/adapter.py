"""Trainable parameters as one flat float32 vector, with a manifest that says what is where.

The vector is all that a federation exchanges. Its manifest names every parameter with its shape and ties them to the
backbone, the encoder and the catalogue; a vector is only ever loaded into a model whose manifest is the same.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from common.errors import ModelError
from common.model.recommender import Recommender


@dataclass(frozen=True)
class Manifest:
    """Names and shapes of the trainable parameters in the vector's order, and what they belong to.

    ``dtype`` is that of the vector. ``weights`` is the fingerprint of the backbone's own, frozen weights: LoRA's changes mean
    nothing on others, and one name or folder may hold different ones on two machines. Item parameters mean nothing without
    the catalogue, hence its fingerprint.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    backbone: str
    weights: str
    encoder: str
    catalogue: str
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if len(self.names) != len(self.shapes) or len(set(self.names)) != len(self.names):
            raise ModelError(
                f"a manifest needs one shape for each name, got {len(set(self.names))} names and {len(self.shapes)} shapes"
            )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def n_parameters(self) -> int:
        return sum(self.sizes)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the manifest."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def slice(self, name: str) -> slice:
        """Where parameter ``name`` lies in the vector."""
        if name not in self.names:
            raise ModelError(f"the adapter has no parameter {name!r}; it has {', '.join(self.names)}")
        i = self.names.index(name)
        start = sum(self.sizes[:i])
        return slice(start, start + self.sizes[i])

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        raw = json.loads(text)
        raw["names"] = tuple(raw["names"])
        raw["shapes"] = tuple(tuple(shape) for shape in raw["shapes"])
        return cls(**raw)

    def difference(self, other: Manifest) -> str | None:
        """The first thing in which ``other`` differs, in words, or None."""
        for what in ("backbone", "weights", "encoder", "catalogue", "dtype"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                return f"{what} is {theirs!r} instead of {mine!r}"
        mine_shapes, their_shapes = (
            dict(zip(self.names, self.shapes, strict=True)),
            dict(zip(other.names, other.shapes, strict=True)),
        )
        for name, shape in mine_shapes.items():
            if name not in their_shapes:
                return f"parameter {name!r} is missing"
            if their_shapes[name] != shape:
                return f"parameter {name!r} has shape {their_shapes[name]} instead of {shape}"
        for name in their_shapes:
            if name not in mine_shapes:
                return f"there is an unknown parameter {name!r}"
        return None if self.names == other.names else "the parameters are in another order"


def manifest_of(model: Recommender) -> Manifest:
    """The manifest of a model's trainable parameters."""
    trainable = [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad or name == "bias.weight"]
    trainable.sort()
    return Manifest(
        names=tuple(name for name, _ in trainable),
        shapes=tuple(shape for _, shape in trainable),
        backbone=model.name,
        weights=model.weights,
        encoder=model.encoder_name,
        catalogue=model.catalogue_fingerprint,
    )


def to_vector(model: Recommender) -> NDArray[np.float32]:
    """The adapter ``(n_parameters,)``, a copy."""
    parameters = dict(model.named_parameters())
    parts = [parameters[name].detach().to("cpu", torch.float32).reshape(-1) for name in manifest_of(model).names]
    return torch.cat(parts).numpy().copy() if parts else np.zeros(0, dtype=np.float32)


def from_vector(model: Recommender, vector: NDArray[np.float32], manifest: Manifest) -> None:
    """Put ``vector`` into ``model``.

    Raises
    ------
    ModelError
        Naming the first difference if ``manifest`` is not the model's own, or if the vector has another length or dtype.
    """
    own = manifest_of(model)
    difference = own.difference(manifest)
    if difference is not None:
        raise ModelError(f"the adapter does not fit this model: {difference}")
    if vector.shape != (own.n_parameters,) or vector.dtype != np.float32:
        raise ModelError(f"the adapter is {vector.dtype}{vector.shape}, expected float32({own.n_parameters},)")
    parameters = dict(model.named_parameters())
    flat = torch.from_numpy(np.array(vector, dtype=np.float32))
    with torch.no_grad():
        for name, part, shape in zip(own.names, flat.split(list(own.sizes)), own.shapes, strict=True):
            parameters[name].copy_(part.view(shape))


def save_adapter(path: Path, vector: NDArray[np.float32], manifest: Manifest) -> None:
    """Write vector and manifest as one safetensors file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    save_file({"adapter": np.ascontiguousarray(vector, dtype=np.float32)}, temporary, metadata={"manifest": manifest.to_json()})
    os.replace(temporary, path)


def load_adapter(path: Path) -> tuple[NDArray[np.float32], Manifest]:
    """Read what :func:`save_adapter` wrote.

    Raises
    ------
    ModelError
        If the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor("adapter"), Manifest.from_json((file.metadata() or {})["manifest"])
    except FileNotFoundError:
        raise ModelError(f"{path}: no such adapter") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: not an adapter, or damaged ({error})") from None
