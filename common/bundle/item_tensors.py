"""``items.safetensors``: vectors, scales and biases of all items.

The file is an ordinary safetensors file, and there is one for each table: a header that the number of items and columns
settles, then the arrays. So it is checked by writing the header anew, and the arrays are used where they lie: nothing is
copied, which for millions of items is gigabytes.
"""

from __future__ import annotations

import json
import re
import struct
from typing import Final

import numpy as np

from common.bundle.contents import ItemTable
from common.bundle.manifest import ITEMS
from common.errors import BundleError

HEADER_LIMIT: Final = 1024  # bytes; four names with types, shapes and offsets take about 300

MAX_DIM: Final = 4096
"""Columns of a vector; the largest text encoders in use have as many."""

_SHAPE = re.compile(rb'"vectors":\{"dtype":"I8","shape":\[([1-9][0-9]{0,9}),([1-9][0-9]{0,3})\]')


def items_size(n_items: int, dim: int) -> int:
    """Bytes of the file."""
    header, layout = _layout(n_items, dim)
    return len(header) + layout[-1][-1]


def items_to_bytes(items: ItemTable) -> bytes:
    """The file; equal tables give equal bytes."""
    header, layout = _layout(len(items), items.dim)
    arrays = {
        "text_dim": np.array([items.text_dim], dtype="<i8"),
        "biases": items.biases.astype("<f4", copy=False),
        "scales": items.scales.astype("<f4", copy=False),
        "vectors": items.vectors,
    }
    return b"".join((header, *(np.ascontiguousarray(arrays[name]).data.cast("B") for name, *_ in layout)))


def items_from_bytes(content: bytes | memoryview, max_items: int) -> ItemTable:
    """What :func:`items_to_bytes` wrote; its arrays are read-only and lie in ``content``.

    Raises
    ------
    BundleError
        If it did not write this, or there are more than ``max_items``.
    """
    head = bytes(content[: 8 + HEADER_LIMIT])
    found = _SHAPE.search(head)
    if found is None:
        raise BundleError(f"{ITEMS} does not begin with the header of a table of items")
    n_items, dim = int(found[1]), int(found[2])
    if n_items > max_items or dim > MAX_DIM:
        raise BundleError(f"{ITEMS}: {n_items:,} items of {dim} columns, at most {max_items:,} of {MAX_DIM} are allowed")
    header, layout = _layout(n_items, dim)
    if not head.startswith(header) or len(content) != items_size(n_items, dim):
        raise BundleError(f"{ITEMS}: header, shapes and size do not fit together")
    arrays = {
        name: np.frombuffer(content, dtype, int(np.prod(shape)), len(header) + start).reshape(shape)
        for name, dtype, shape, start, _ in layout
    }
    text_dim = int(arrays.pop("text_dim")[0])
    arrays["vectors"].flags.writeable = False
    try:
        return ItemTable(**arrays, text_dim=text_dim)
    except BundleError as error:
        raise BundleError(f"{ITEMS}: {error}") from None


_Tensor = tuple[str, str, tuple[int, ...], int, int]


def _layout(n_items: int, dim: int) -> tuple[bytes, tuple[_Tensor, ...]]:
    """The header with its length before it, and name, dtype, shape, start and end of each tensor after it.

    Widest type first, as safetensors itself writes: so each tensor lies at a multiple of its own width.
    """
    shapes = {"text_dim": ("I64", "<i8", (1,)), "biases": ("F32", "<f4", (n_items,)), "scales": ("F32", "<f4", (n_items,))}
    tensors, entries, end = [], {}, 0
    for name, (code, dtype, shape) in {**shapes, "vectors": ("I8", "i1", (n_items, dim))}.items():
        start, end = end, end + int(np.prod(shape)) * np.dtype(dtype).itemsize
        tensors.append((name, dtype, shape, start, end))
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, tuple(tensors)
