"""The smallest bundle with all real parts: made-up items, an ONNX model whose scores a few loops can compute again.

The model pools the text of the history by recency and adds a linear map of the last item's vector::

    pooled_t = STRENGTH · DECAY^(T-1-t) / Σ DECAY^(T-1-s)        query = Σ pooled_t · [text of v_t, 0] + M v_T
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.bundle.card import Card, DataFacts, Measured, ModelFacts, PrivacyFacts, TrainingFacts
from common.bundle.contents import HISTORY, LENGTH, POOLED, QUERY, Bundle, ItemTable
from common.data.catalogue import Catalogue

if TYPE_CHECKING:
    from common.privacy.signing import SigningKey

STRENGTH, DECAY = 3.0, 0.7
WORDS = ("harbour", "meadow", "lantern", "orchard", "signal", "winter", "compass")
CATEGORIES = ("comedy", "drama", "western", "mystery")


def tiny_bundle(
    n_items: int = 40, *, dim: int = 12, text_dim: int = 8, window: int = 6, seed: int = 0, name: str = "tiny", prefix: str = "i"
) -> Bundle:
    """A bundle in memory. Equal arguments give equal bundles, other ones another digest.

    Items have the ids ``i0``, ``i1``, … (``prefix`` changes the letter); item ``i`` is of category ``CATEGORIES[i % 4]``, every
    third one of the next as well.
    """
    random = np.random.default_rng([seed, n_items, dim])
    vectors = random.standard_normal((n_items, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    biases = random.normal(0.0, 0.3, n_items).astype(np.float32)
    items = ItemTable.quantised(vectors, biases, text_dim)
    model = tiny_model(dim, text_dim, seed)
    catalogue = tiny_catalogue(n_items, name, prefix)
    card = tiny_card(n_items, window, name)
    parts = (items.vectors.tobytes(), items.scales.tobytes(), items.biases.tobytes(), model, card.to_json())
    digest = hashlib.sha256(b"".join(parts) + catalogue.fingerprint.encode()).hexdigest()
    return Bundle(digest, "ab" * 32, card, catalogue, items, model)


def tiny_catalogue(n_items: int, name: str = "tiny", prefix: str = "i") -> Catalogue:
    """Made-up titles, all different; a year for each."""
    n = len(WORDS)
    return Catalogue(
        ids=tuple(f"{prefix}{i}" for i in range(n_items)),
        titles=tuple(f"The {WORDS[i % n]} of {WORDS[(3 * i + i // n) % n]} {i}" for i in range(n_items)),
        categories=tuple((CATEGORIES[i % 4],) + ((CATEGORIES[(i + 1) % 4],) if i % 3 == 0 else ()) for i in range(n_items)),
        fields={"year": tuple(str(1960 + i % 60) for i in range(n_items))},
        name=name,
    )


def tiny_card(n_items: int, window: int = 6, name: str = "tiny") -> Card:
    """A card whose figures nobody measured: it is for tests of what carries and shows it."""
    return Card(
        name=name,
        created="2024-05-01T12:00:00+00:00",
        data=DataFacts(name=name, items=n_items, silos=4, declared_users=200),
        training=TrainingFacts(rounds=3, backbone="tiny-bert", encoder="hashing", licence="Apache-2.0"),
        privacy=PrivacyFacts(
            mode="silo",
            epsilon=8.0,
            delta=1e-5,
            unit="one user of one silo, add/remove",
            statement="epsilon 8 at delta 1e-05 for one user of one silo",
            trust="nobody beside the silo itself",
        ),
        model=ModelFacts(window=window, layers=1, width=12, parameters=144, precision="float32"),
        quality=(Measured(name="ndcg@10", value=0.08, low=0.07, high=0.09, note="made up"),),
    )


@cache
def tiny_model(dim: int, text_dim: int, seed: int = 0) -> bytes:
    """The ONNX file of the module's text, with the inputs and outputs of :mod:`common.bundle.contents`."""
    from onnx import TensorProto, checker, helper, numpy_helper

    constants = {
        "text_columns": (np.arange(dim) < text_dim).astype(np.float32),
        "map": last_item_map(dim, seed),
        "decay": np.float32(DECAY),
        "strength": np.float32(STRENGTH),
        "zero": np.int64(0),
        "one": np.int64(1),
        "none": np.float32(0),
        "first": np.array([1], dtype=np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Shape", [HISTORY], ["steps"], start=1, end=2),
        node("Squeeze", ["steps"], ["n_steps"]),
        node("Range", ["zero", "n_steps", "one"], ["place"]),
        node("Sub", [LENGTH, "one"], ["last_place"]),
        node("Unsqueeze", ["last_place", "first"], ["last_column"]),
        node("Sub", ["last_column", "place"], ["age"]),  # (B, T), negative after the end
        node("GreaterOrEqual", ["age", "zero"], ["known"]),
        node("Equal", ["age", "zero"], ["is_last"]),
        node("Cast", ["age"], ["age_float"], to=TensorProto.FLOAT),
        node("Pow", ["decay", "age_float"], ["powers"]),
        node("Where", ["known", "powers", "none"], ["weights"]),
        node("ReduceSum", ["weights", "first"], ["total"], keepdims=1),
        node("Div", ["weights", "total"], ["shares"]),
        node("Mul", ["shares", "strength"], [POOLED]),
        node("Unsqueeze", [POOLED, "first"], ["pooled_row"]),
        node("MatMul", ["pooled_row", HISTORY], ["pool_row"]),
        node("Squeeze", ["pool_row", "first"], ["pool_all"]),
        node("Mul", ["pool_all", "text_columns"], ["pool"]),
        node("Cast", ["is_last"], ["last_mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["last_mask", "first"], ["last_row"]),
        node("MatMul", ["last_row", HISTORY], ["last_vector_row"]),
        node("Squeeze", ["last_vector_row", "first"], ["last_vector"]),
        node("MatMul", ["last_vector", "map"], ["sequence"]),
        node("Add", ["pool", "sequence"], [QUERY]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(HISTORY, TensorProto.FLOAT, ["B", "T", dim]),
            helper.make_tensor_value_info(LENGTH, TensorProto.INT64, ["B"]),
        ],
        [
            helper.make_tensor_value_info(QUERY, TensorProto.FLOAT, ["B", dim]),
            helper.make_tensor_value_info(POOLED, TensorProto.FLOAT, ["B", "T"]),
        ],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def last_item_map(dim: int, seed: int = 0) -> NDArray[np.float32]:
    """``M`` transposed, float32 ``(dim, dim)``."""
    return np.random.default_rng([seed, dim, 7]).normal(0.0, 0.8 / np.sqrt(dim), (dim, dim)).astype(np.float32)


def reference_scores(bundle: Bundle, history: Sequence[int], *, seed: int = 0) -> NDArray[np.float64]:
    """Scores of all items ``(n_items,)`` in float64, by loops, for a bundle of :func:`tiny_bundle` made with ``seed``."""
    items = bundle.items
    n, dim = items.vectors.shape
    rows = [[float(items.vectors[i, d]) * float(items.scales[i]) for d in range(dim)] for i in range(n)]
    recent = list(history)[-bundle.card.model.window :]
    query = [0.0] * dim
    if recent:
        matrix = last_item_map(dim, seed)
        total = sum(DECAY ** (len(recent) - 1 - s) for s in range(len(recent)))
        for t, item in enumerate(recent):
            share = STRENGTH * DECAY ** (len(recent) - 1 - t) / total
            for d in range(items.text_dim):
                query[d] += share * rows[item][d]
        for d in range(dim):
            query[d] += sum(rows[recent[-1]][e] * float(matrix[e, d]) for e in range(dim))
    return np.array(
        [sum(q * v for q, v in zip(query, row, strict=True)) + float(b) for row, b in zip(rows, items.biases, strict=True)]
    )


def write_tiny(path: Path, key: SigningKey, **changes: Any) -> Bundle:
    """A tiny bundle, signed with ``key``, as the file ``path``; ``changes`` are arguments of :func:`tiny_bundle`.

    What comes back is what was read again from the file, so its digest and signer are the real ones.
    """
    from common.bundle.files import read_bundle, write_bundle

    made = tiny_bundle(**changes)
    write_bundle(path, card=made.card, catalogue=made.catalogue, items=made.items, model=made.model, key=key)
    return read_bundle(path, {key.public_key})
