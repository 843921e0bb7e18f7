"""A large catalogue for measuring search: clustered vectors, popularity by Zipf's law, and people with a few tastes.

White noise would be the wrong stand-in: in it nothing is near anything, and neither is a cluster found nor missed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.bundle.card import Card, DataFacts, ModelFacts, PrivacyFacts, TrainingFacts
from common.bundle.contents import HISTORY, LENGTH, POOLED, QUERY, Bundle, ItemTable
from common.data.catalogue import Catalogue

Floats = NDArray[np.float32]

TEXT_DIM, DIM = 64, 96
"""Columns of text and all, as of a student whose text vectors were truncated to 64 and that has 32 of its own."""

PER_CLUSTER, SPREAD, OWN = 50, 0.6, 0.3
"""Items in a cluster on average; length of what sets an item off its cluster's centre, the centre's being 1; norm of the
columns that are not of the text, that of the text being 1."""

BIAS_WEIGHT = 0.3
"""Of the log of an item's share of interactions, which is that of its rank. With this weight the best ten of somebody are about
half popular items, half items of the person's clusters; the benchmark prints the share."""

POOL_WEIGHT, POOL_DECAY, MAP_WEIGHT, WINDOW = 10.0, 0.9, 3.0, 30
TASTES, AT_RANDOM = 3, 0.1
"""Clusters that a person's items are of, and the share of items that are any."""


@dataclass(frozen=True, eq=False)
class MadeUpShop:
    """A bundle that nobody trained, and which cluster each item is of, ``(n_items,)``."""

    bundle: Bundle
    clusters: NDArray[np.int32]

    @classmethod
    def of(cls, n_items: int, seed: int = 0) -> MadeUpShop:
        random = np.random.default_rng([seed, n_items])
        n_clusters = max(1, n_items // PER_CLUSTER)
        sizes = np.arange(1, n_clusters + 1) ** -0.5
        clusters = random.choice(n_clusters, n_items, p=sizes / sizes.sum()).astype(np.int32)
        vectors = np.empty((n_items, DIM), dtype=np.float32)
        for columns, norm in ((slice(0, TEXT_DIM), 1.0), (slice(TEXT_DIM, DIM), OWN)):
            width = columns.stop - columns.start
            centres = _on_the_sphere(random.standard_normal((n_clusters, width), dtype=np.float32))
            noise = random.standard_normal((n_items, width), dtype=np.float32) * np.float32(SPREAD / np.sqrt(width))
            vectors[:, columns] = norm * _on_the_sphere(centres[clusters] + noise)
        biases = -BIAS_WEIGHT * np.log(1.0 + random.permutation(n_items))
        items = ItemTable.quantised(vectors, (biases - biases.mean()).astype(np.float32), TEXT_DIM)
        model = stand_in_model(seed)
        digest = hashlib.sha256(items.vectors.tobytes() + items.biases.tobytes() + model).hexdigest()
        return cls(Bundle(digest, "00" * 32, _card(n_items), _catalogue(n_items), items, model), clusters)

    def histories(self, count: int, seed: int) -> list[list[int]]:
        """People's histories, oldest first, of 1 … :data:`WINDOW` items, most of them of a few clusters."""
        random = np.random.default_rng([seed, count])
        order = np.argsort(self.clusters, kind="stable")
        sorted_clusters = self.clusters[order]
        histories = []
        for length in random.integers(1, WINDOW + 1, count).tolist():
            tastes = self.clusters[random.integers(0, len(order), TASTES)]
            chosen = tastes[random.integers(0, TASTES, length)]
            first, last = np.searchsorted(sorted_clusters, chosen), np.searchsorted(sorted_clusters, chosen, side="right")
            of_taste = order[random.integers(first, last)]
            anything = random.integers(0, len(order), length)
            histories.append(np.where(random.random(length) < AT_RANDOM, anything, of_taste).tolist())
        return histories


def stand_in_model(seed: int) -> bytes:
    """ONNX with the inputs and outputs of a bundle's: a recency pool of the text, and a fixed map of the last item's vector."""
    from onnx import TensorProto, helper, numpy_helper

    turned = np.linalg.qr(np.random.default_rng(seed).standard_normal((DIM, DIM)))[0]
    constants = {
        "text": (np.arange(DIM) < TEXT_DIM).astype(np.float32),
        "map": (MAP_WEIGHT * turned).astype(np.float32),
        "decay": np.float32(POOL_DECAY),
        "weight": np.float32(POOL_WEIGHT),
        "nothing": np.float32(0),
        "zero": np.int64(0),
        "one": np.int64(1),
        "second": np.array([1], dtype=np.int64),
    }
    steps: list[tuple[str, list[str], str, dict[str, int]]] = [
        ("Shape", [HISTORY], "steps", {"start": 1, "end": 2}),
        ("Squeeze", ["steps"], "n_steps", {}),
        ("Range", ["zero", "n_steps", "one"], "place", {}),
        ("Sub", [LENGTH, "one"], "last", {}),
        ("Unsqueeze", ["last", "second"], "last_column", {}),
        ("Sub", ["last_column", "place"], "age", {}),
        ("GreaterOrEqual", ["age", "zero"], "known", {}),
        ("Cast", ["age"], "age_float", {"to": TensorProto.FLOAT}),
        ("Pow", ["decay", "age_float"], "powers", {}),
        ("Where", ["known", "powers", "nothing"], "kept", {}),
        ("ReduceSum", ["kept", "second"], "total", {"keepdims": 1}),
        ("Div", ["kept", "total"], "shares", {}),
        ("Mul", ["shares", "weight"], POOLED, {}),
        ("Unsqueeze", [POOLED, "second"], "pooled_row", {}),
        ("MatMul", ["pooled_row", HISTORY], "pool_row", {}),
        ("Squeeze", ["pool_row", "second"], "pool_all", {}),
        ("Mul", ["pool_all", "text"], "pool", {}),
        ("Equal", ["age", "zero"], "is_last", {}),
        ("Cast", ["is_last"], "last_mask", {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["last_mask", "second"], "last_row", {}),
        ("MatMul", ["last_row", HISTORY], "last_vector_row", {}),
        ("Squeeze", ["last_vector_row", "second"], "last_vector", {}),
        ("MatMul", ["last_vector", "map"], "mapped", {}),
        ("Add", ["pool", "mapped"], QUERY, {}),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], **settings) for kind, inputs, output, settings in steps],
        "stand-in",
        [
            helper.make_tensor_value_info(HISTORY, TensorProto.FLOAT, ["B", "T", DIM]),
            helper.make_tensor_value_info(LENGTH, TensorProto.INT64, ["B"]),
        ],
        [
            helper.make_tensor_value_info(QUERY, TensorProto.FLOAT, ["B", DIM]),
            helper.make_tensor_value_info(POOLED, TensorProto.FLOAT, ["B", "T"]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _on_the_sphere(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _catalogue(n_items: int) -> Catalogue:
    names = tuple(str(i) for i in range(n_items))
    return Catalogue(names, names, ((),) * n_items, name="made-up shop")


def _card(n_items: int) -> Card:
    return Card(
        name="made-up shop",
        created="1970-01-01T00:00:00+00:00",
        data=DataFacts(name="made up", items=n_items, silos=1, declared_users=1),
        training=TrainingFacts(rounds=0, backbone="none", encoder="none", licence="none"),
        privacy=PrivacyFacts(mode="none", unit="none", statement="made up; speaks of nobody", trust="nobody"),
        model=ModelFacts(window=WINDOW, layers=1, width=DIM, parameters=DIM * DIM, precision="float32"),
    )
