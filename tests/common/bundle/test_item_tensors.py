"""The table of items as a safetensors file; the safetensors library reads and writes it independently."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from common.bundle.contents import ItemTable
from common.bundle.item_tensors import items_from_bytes, items_size, items_to_bytes
from common.errors import BundleError


def table(n: int, dim: int, text_dim: int = 1, seed: int = 0) -> ItemTable:
    random = np.random.default_rng([seed, n, dim])
    vectors, biases = random.standard_normal((n, dim)), random.standard_normal(n)
    return ItemTable.quantised(vectors.astype(np.float32), biases.astype(np.float32), text_dim)


def by_the_library(items: ItemTable, **changes: np.ndarray) -> bytes:
    tensors = {
        "vectors": items.vectors,
        "scales": items.scales,
        "biases": items.biases,
        "text_dim": np.array([items.text_dim], np.int64),
    }
    return safetensors.numpy.save({**tensors, **changes})


@given(n=st.integers(1, 50), dim=st.integers(1, 40), seed=st.integers(0, 9), data=st.data())
@settings(max_examples=60, deadline=None)
def test_it_is_the_file_that_the_library_writes_and_comes_back(n: int, dim: int, seed: int, data: st.DataObject) -> None:
    items = table(n, dim, data.draw(st.integers(1, dim)), seed)
    content = items_to_bytes(items)
    assert content == by_the_library(items)
    assert len(content) == items_size(n, dim)
    back = items_from_bytes(memoryview(content), n)
    assert back.text_dim == items.text_dim
    for name in ("vectors", "scales", "biases"):
        assert np.array_equal(getattr(back, name), getattr(items, name))
        assert getattr(back, name).dtype == getattr(items, name).dtype
        assert np.shares_memory(getattr(back, name), np.frombuffer(content, np.uint8))


def test_arrays_lie_at_multiples_of_their_width() -> None:
    content = items_to_bytes(table(7, 5))
    back = items_from_bytes(content, 7)
    for name in ("scales", "biases"):
        assert getattr(back, name).flags.aligned


def test_quantised_vectors_are_off_by_half_a_scale_at_most() -> None:
    vectors = np.random.default_rng(1).standard_normal((100, 32)).astype(np.float32)
    items = ItemTable.quantised(vectors, np.zeros(100, np.float32), 32)
    off = np.abs(items.rows(np.arange(100)) - vectors)
    assert (off <= items.scales[:, None] * 0.5 * (1 + 1e-5)).all()
    assert (np.abs(items.vectors).max(axis=1) == 127).all()


def test_other_tables_that_the_library_writes_are_refused() -> None:
    items = table(6, 4)
    others = {
        "header of a table": [
            {"vectors": items.vectors.astype(np.float32)},
            {"vectors": items.vectors[0]},
            {"vectors": items.vectors[:0]},
        ],
        "do not fit together": [
            {"scales": items.scales[:5]},
            {"scales": items.scales.astype(np.float64)},
            {"biases": items.biases[:, None]},
            {"text_dim": np.array([1, 2], np.int64)},
            {"more": np.zeros(1)},
        ],
        "-128": [{"vectors": np.full((6, 4), -128, np.int8)}],
        "finite": [{"scales": np.full(6, value, np.float32)} for value in (np.inf, np.nan, 3e38)]
        + [{"biases": np.full(6, np.nan, np.float32)}],
        "not positive": [{"scales": np.zeros(6, np.float32)}, {"scales": -items.scales}],
        "text_dim": [{"text_dim": np.array([value], np.int64)} for value in (0, 5, -1, 2**62)],
    }
    for said, cases in others.items():
        for changes in cases:
            with pytest.raises(BundleError, match=said):
                items_from_bytes(by_the_library(items, **changes), 10)


def test_shapes_that_are_not_there_cost_no_memory() -> None:
    header = json.dumps({"vectors": {"dtype": "I8", "shape": [999_999, 4096], "data_offsets": [0, 8]}}, separators=(",", ":"))
    content = struct.pack("<Q", len(header)) + header.encode()
    with pytest.raises(BundleError, match="do not fit together"):
        items_from_bytes(content, 1_000_000)
    with pytest.raises(BundleError, match="999,999 items of 4096 columns, at most 1,000"):
        items_from_bytes(content, 1000)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_refused_or_another_table(data: st.DataObject) -> None:
    """Never another exception, and never a table that does not write the same bytes again."""
    content = bytearray(items_to_bytes(table(3, 4, 2)))
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(start + 9, len(content))))
    content[start:stop] = data.draw(st.binary(max_size=9))
    try:
        back = items_from_bytes(bytes(content), 10)
    except BundleError:
        return
    assert items_to_bytes(back) == content
