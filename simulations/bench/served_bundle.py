"""A bundle of a student's size with random numbers in it, for measuring how fast one is served, not how well it recommends.

The ONNX file is made without PyTorch: a recency pool and, beside it, causal transformer layers over the item vectors, as in a
distilled student. What it computes costs what a trained one costs; its recommendations mean nothing, and its card says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.bundle.card import Card, DataFacts, ModelFacts, PrivacyFacts, TrainingFacts
from common.bundle.contents import HISTORY, LENGTH, POOLED, QUERY, ItemTable
from common.data.catalogue import Catalogue

DECAY = 0.9


@dataclass(frozen=True)
class Size:
    """What decides the cost of an answer. Defaults: MovieLens-100K, MiniLM's vectors and 64 columns of the items' own."""

    items: int = 1_682
    text_dim: int = 384
    own_dim: int = 64
    window: int = 32
    layers: int = 2
    width: int = 64
    heads: int = 2

    @property
    def dim(self) -> int:
        return self.text_dim + self.own_dim


def random_parts(size: Size, seed: int = 0) -> tuple[Card, Catalogue, ItemTable, bytes]:
    """Card, catalogue, items and model of a bundle; equal arguments give equal parts."""
    random = np.random.default_rng([seed, size.items, size.dim])
    vectors = random.standard_normal((size.items, size.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = ItemTable.quantised(vectors, random.normal(0.0, 1.0, size.items).astype(np.float32), size.text_dim)
    catalogue = Catalogue(
        ids=tuple(str(i) for i in range(size.items)),
        titles=tuple(f"Item {i}" for i in range(size.items)),
        categories=((),) * size.items,
        name="random",
    )
    model, parameters = random_student(size, seed)
    card = Card(
        name="random",
        created="2024-01-01T00:00:00+00:00",
        data=DataFacts(name="random", items=size.items, silos=1, declared_users=1),
        training=TrainingFacts(rounds=0, backbone="none", encoder="none", licence="none"),
        privacy=PrivacyFacts(mode="none", unit="nobody", statement="random numbers, no data", trust="nobody"),
        model=ModelFacts(window=size.window, layers=size.layers, width=size.width, parameters=parameters, precision="float32"),
        notes=("Random numbers of a student's size, to measure speed with.",),
    )
    return card, catalogue, items, model


class _Graph:
    """ONNX nodes and weights as they are added; every method gives the name of what it computes."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self._names: Iterator[int] = count()
        self._random = np.random.default_rng([seed, 1])

    def constant(self, value: Any) -> str:
        name = f"c{next(self._names)}"
        self.weights[name] = np.asarray(value)
        return name

    def random(self, *shape: int) -> str:
        return self.constant(self._random.normal(0.0, shape[0] ** -0.5, shape).astype(np.float32))

    def __call__(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = name or f"n{next(self._names)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def linear(self, x: str, inside: int, outside: int) -> str:
        return self("Add", self("MatMul", x, self.random(inside, outside)), self.constant(np.zeros(outside, np.float32)))

    def norm(self, x: str, width: int) -> str:
        ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
        return self("LayerNormalization", x, self.constant(ones), self.constant(zeros), axis=-1)


def random_student(size: Size, seed: int = 0) -> tuple[bytes, int]:
    """The ONNX file with the inputs and outputs of :mod:`common.bundle.contents`, and how many numbers it holds."""
    from onnx import TensorProto, checker, helper, numpy_helper

    add = _Graph(seed)
    zero, one, first = (add.constant(np.int64(0)), add.constant(np.int64(1)), add.constant(np.array([1], np.int64)))
    steps = add("Squeeze", add("Shape", HISTORY, start=1, end=2))
    place = add("Range", zero, steps, one)
    age = add("Sub", add("Unsqueeze", add("Sub", LENGTH, one), first), place)  # (B, T), negative after the end
    is_last = add("Cast", add("Equal", age, zero), to=TensorProto.FLOAT)
    query = add("Add", _pool(add, size, age, zero, first), _sequence(add, size, place, is_last, first), name=QUERY)
    assert query == QUERY
    graph = helper.make_graph(
        add.nodes,
        "random student",
        [
            helper.make_tensor_value_info(HISTORY, TensorProto.FLOAT, ["B", "T", size.dim]),
            helper.make_tensor_value_info(LENGTH, TensorProto.INT64, ["B"]),
        ],
        [
            helper.make_tensor_value_info(QUERY, TensorProto.FLOAT, ["B", size.dim]),
            helper.make_tensor_value_info(POOLED, TensorProto.FLOAT, ["B", "T"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in add.weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return bytes(model.SerializeToString()), sum(value.size for value in add.weights.values())


def _pool(add: _Graph, size: Size, age: str, zero: str, first: str) -> str:
    """Recency-weighted mean of the text columns, ``(B, dim)``; its shares become the output ``pooled``."""
    powers = add("Pow", add.constant(np.float32(DECAY)), add("Cast", age, to=1))
    weights = add("Where", add("GreaterOrEqual", age, zero), powers, add.constant(np.float32(0)))
    pooled = add("Div", weights, add("ReduceSum", weights, first, keepdims=1), name=POOLED)
    mean = add("Squeeze", add("MatMul", add("Unsqueeze", pooled, first), HISTORY), first)
    return add("Mul", mean, add.constant((np.arange(size.dim) < size.text_dim).astype(np.float32)))


def _sequence(add: _Graph, size: Size, place: str, is_last: str, first: str) -> str:
    """Causal layers over the history, read after its last item, ``(B, dim)``."""
    width, heads = size.width, size.heads
    x = add("Add", add.linear(HISTORY, size.dim, width), add("Gather", add.random(size.window, width), place))
    column = add("Unsqueeze", place, first)
    later = add("Cast", add("Less", column, add("Transpose", column)), to=1)  # (T, T), 1 where the key comes after the query
    mask = add("Mul", later, add.constant(np.float32(-1e9)))
    split, joined = add.constant(np.array([0, 0, heads, width // heads])), add.constant(np.array([0, 0, width]))
    for _ in range(size.layers):
        inside = add.norm(x, width)
        q, k, v = (
            add("Transpose", add("Reshape", add.linear(inside, width, width), split), perm=perm)
            for perm in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
        )
        scaled = add("Mul", add("MatMul", q, k), add.constant(np.float32((width // heads) ** -0.5)))
        attended = add("MatMul", add("Softmax", add("Add", scaled, mask), axis=-1), v)
        x = add("Add", x, add.linear(add("Reshape", add("Transpose", attended, perm=(0, 2, 1, 3)), joined), width, width))
        wide = add("Relu", add.linear(add.norm(x, width), width, 4 * width))
        x = add("Add", x, add.linear(wide, 4 * width, width))
    last = add("Squeeze", add("MatMul", add("Unsqueeze", is_last, first), add.norm(x, width)), first)
    return add("MatMul", last, add.random(width, size.dim))
