"""What is in a bundle, as values.

A history of item positions becomes a list of scores in two steps that need no PyTorch::

    query  = model(history = v[h_1] … v[h_T], length = T)        float32 (dim,), by ONNX
    score(i) = <query, v_i> + b_i                                v_i = scales_i · vectors_i

The first ``text_dim`` columns of ``v_i`` come from the item's text, the rest is what training knows of the item itself, zero for
an item that was added later and of which nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.errors import BundleError

if TYPE_CHECKING:
    from common.bundle.card import Card
    from common.data.catalogue import Catalogue

HISTORY, LENGTH = "history", "length"
"""Inputs of the ONNX model: float32 ``(B, T, dim)`` item vectors, oldest first, zeros after the end; int64 ``(B,)`` in 1 … T."""

QUERY, POOLED = "query", "pooled"
"""Outputs: float32 ``(B, dim)`` after the last item, and ``(B, T)``, the share of each item's text vector that the query holds.

``query = Σ_t pooled_t · [text part of v_t, 0] + the sequence model's own part``: so ``pooled_t · <text of v_t, text of v_i>`` is
exactly what item t of the history adds to the score of item i by way of the pool.
"""


@dataclass(frozen=True, eq=False)
class ItemTable:
    """Vectors and biases of all items, in the catalogue's order.

    Parameters
    ----------
    vectors:
        int8 ``(n_items, dim)``, in -127 … 127.
    scales:
        float32 ``(n_items,)``, positive.
    biases:
        float32 ``(n_items,)``, nats.
    text_dim:
        How many of the columns come from the text, at most ``dim``.

    Raises
    ------
    BundleError
        If shapes, dtypes or values do not fit.
    """

    vectors: NDArray[np.int8]
    scales: NDArray[np.float32]
    biases: NDArray[np.float32]
    text_dim: int

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype != np.int8 or not self.vectors.size:
            raise BundleError(f"item vectors are {self.vectors.dtype}{self.vectors.shape}, expected int8 (n_items, dim)")
        if self.vectors.min() < -127:
            raise BundleError("an item vector holds -128, which the symmetric code does not use")
        n = len(self.vectors)
        for name, column in (("scales", self.scales), ("biases", self.biases)):
            if column.shape != (n,) or column.dtype != np.float32 or not np.isfinite(column).all():
                raise BundleError(f"item {name} are {column.dtype}{column.shape}, expected {n} finite float32")
        if not (self.scales > 0).all() or self.scales.max() > np.finfo(np.float32).max / 127:
            raise BundleError("an item's scale is not positive, or its vector would not be finite")
        if not 1 <= self.text_dim <= self.dim:
            raise BundleError(f"text_dim = {self.text_dim} with vectors of {self.dim}")

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def rows(self, positions: NDArray[np.integer]) -> NDArray[np.float32]:
        """Vectors ``(..., dim)`` of the items at ``positions``."""
        return self.vectors[positions].astype(np.float32) * self.scales[positions][..., None]

    @classmethod
    def quantised(cls, vectors: NDArray[np.float32], biases: NDArray[np.float32], text_dim: int) -> ItemTable:
        """Symmetric int8 with one scale a vector: the largest entry becomes ±127; off by at most half a scale each."""
        largest = np.abs(vectors).max(axis=1)
        scales = (np.where(largest > 0, largest, 1.0) / 127).astype(np.float32)
        codes = np.rint(vectors / scales[:, None]).clip(-127, 127).astype(np.int8)
        return cls(codes, scales, np.ascontiguousarray(biases, dtype=np.float32), text_dim)


@dataclass(frozen=True, eq=False)
class Scoring:
    """What of a bundle makes scores, without names; ``window`` is how many of the newest items the model reads."""

    digest: str
    items: ItemTable
    model: bytes
    window: int


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened and verified bundle.

    ``digest`` is the SHA-256 (hex) of its manifest and names it; ``signer`` the Ed25519 public key (hex) that signed it, and
    that whoever opened it trusts; ``model`` the bytes of the ONNX file.
    """

    digest: str
    signer: str
    card: Card
    catalogue: Catalogue
    items: ItemTable
    model: bytes

    def __post_init__(self) -> None:
        if len(self.catalogue) != len(self.items):
            raise BundleError(f"{len(self.items)} item vectors for a catalogue of {len(self.catalogue)}")

    @cached_property
    def catalogue_fingerprint(self) -> str:
        """What two sides must share for item positions to mean the same."""
        return self.catalogue.fingerprint

    @property
    def scoring(self) -> Scoring:
        """The part that scores."""
        return Scoring(self.digest, self.items, self.model, self.card.model.window)
