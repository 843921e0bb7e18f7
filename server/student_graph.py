"""The student's forward pass as an ONNX graph, written operator by operator.

It says what :meth:`common.model.student.Student.last_query` says, and a test compares the two. PyTorch's own exporter gives the
same numbers, but takes long, fixes a dimension wherever the example has size one, and writes names of files into the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from common.bundle.contents import HISTORY, LENGTH, POOLED, QUERY
from common.model.student import NEVER, Layer, Student

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 20, 9
"""Version of ONNX's operators, the first with GELU, and of the file format that goes with it."""


def graph_of(student: Student) -> onnx.ModelProto:
    """A float32 model with inputs and outputs as in :mod:`common.bundle.contents`; batch and length are free."""
    return _Writer(student).model()


class _Writer:
    """Nodes and constants so far; every method adds some and returns the name of its result."""

    def __init__(self, student: Student) -> None:
        self.student, self.shape = student, student.shape
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def model(self) -> onnx.ModelProto:
        from onnx import TensorProto, checker, helper, numpy_helper

        self._write()
        dim, free = self.shape.dim, ["batch", "steps"]
        graph = helper.make_graph(
            self.nodes,
            "student",
            [
                helper.make_tensor_value_info(HISTORY, TensorProto.FLOAT, [*free, dim]),
                helper.make_tensor_value_info(LENGTH, TensorProto.INT64, free[:1]),
            ],
            [
                helper.make_tensor_value_info(QUERY, TensorProto.FLOAT, [free[0], dim]),
                helper.make_tensor_value_info(POOLED, TensorProto.FLOAT, free),
            ],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="silorec"
        )
        checker.check_model(model, full_check=True)
        return model

    def _write(self) -> None:
        student, one = self.student, self._constant([1], np.int64)
        steps = self._node("Shape", HISTORY, start=1, end=2)
        ages = self._node("Range", self._constant(0, np.int64), self._node("Squeeze", steps), self._constant(1, np.int64))
        last = self._node("Sub", LENGTH, one)
        places = self._node("Slice", self._weight(student.place), self._constant([0], np.int64), steps)
        hidden = self._node("Add", self._linear(HISTORY, student.token), places)
        later = self._node("Less", self._node("Unsqueeze", ages, one), ages)
        after = self._node("Less", self._node("Unsqueeze", last, one), ages)  # (B, T)
        for number, layer in enumerate(student.layers):
            assert isinstance(layer, Layer)
            final = number + 1 == len(student.layers)
            hidden = self._layer(hidden, layer, after if final else later, last if final else None)
        hidden = self._norm(hidden, student.norm)
        shares = self._shares(ages, last, after)
        text = self._node(
            "Slice",
            HISTORY,
            self._constant([0], np.int64),
            self._constant([self.shape.text_dim], np.int64),
            self._constant([2], np.int64),
        )
        pooled = self._node("Mul", self._node("MatMul", shares, text), self._weight(student.pool_weight.weight))
        query = self._node("Add", pooled, self._linear(hidden, student.correction))
        strength = self._node("Mul", self._weight(student.scale.weight), self._weight(student.pool_weight.weight))
        if self.shape.normalise_query:
            length = self._node("ReduceL2", query, self._constant([2], np.int64), keepdims=1)
            length = self._node("Max", length, self._constant(1e-12, np.float32))
            query, strength = self._node("Div", query, length), self._node("Div", strength, length)
        query = self._node("Mul", query, self._weight(student.scale.weight))
        if student.factor_out is not None:
            query = self._node("Concat", query, self._linear(hidden, student.factor_out), axis=2)
        self._node("Squeeze", query, one, result=QUERY)
        self._node("Squeeze", self._node("Mul", shares, strength), one, result=POOLED)

    def _layer(self, x: str, layer: Layer, later: str, last: str | None) -> str:
        """``(B, T, width)``, or ``(B, 1, width)`` of the position ``last``; ``later`` says what is not to be looked at."""
        normal = self._norm(x, layer.norm_attention)
        key_value = self._linear(normal, layer.key_value)
        key, value = self._node("Split", key_value, results=2, axis=2, num_outputs=2)
        asking = normal
        if last is not None:
            x, asking = self._take(x, last), self._take(normal, last)
            later = self._node("Unsqueeze", later, self._constant([1, 2], np.int64))  # (B, 1, 1, T)
        width = self.shape.width // self.shape.heads
        query = self._node("Mul", self._by_head(self._linear(asking, layer.query), (0, 2, 1, 3)), self._constant(width**-0.5))
        scores = self._node("MatMul", query, self._by_head(key, (0, 2, 3, 1)))
        weights = self._node("Softmax", self._node("Where", later, self._constant(NEVER), scores), axis=-1)
        mixed = self._node("MatMul", weights, self._by_head(value, (0, 2, 1, 3)))
        mixed = self._node("Transpose", mixed, perm=(0, 2, 1, 3))
        mixed = self._node("Reshape", mixed, self._constant([0, -1, self.shape.width], np.int64))
        x = self._node("Add", x, self._linear(mixed, layer.out))
        inner = self._node("Gelu", self._linear(self._norm(x, layer.norm_forward), layer.up))
        return self._node("Add", x, self._linear(inner, layer.down))

    def _shares(self, ages: str, last: str, after: str) -> str:
        """Weights of the pool ``(B, 1, T)``, which sum to one."""
        one = self._constant([1], np.int64)
        age = self._node("Max", self._node("Sub", self._node("Unsqueeze", last, one), ages), self._constant(0, np.int64))
        powers = self._node("Pow", self._constant(self.shape.pooling_decay), self._node("Cast", age, to=1))
        weights = self._node("Where", after, self._constant(0.0), powers)
        shares = self._node("Div", weights, self._node("ReduceSum", weights, one, keepdims=1))
        return self._node("Unsqueeze", shares, one)

    def _by_head(self, x: str, order: Sequence[int]) -> str:
        shape = self._constant([0, -1, self.shape.heads, self.shape.width // self.shape.heads], np.int64)
        return self._node("Transpose", self._node("Reshape", x, shape), perm=tuple(order))

    def _take(self, x: str, last: str) -> str:
        one = self._constant([1], np.int64)
        return self._node("Unsqueeze", self._node("GatherND", x, self._node("Unsqueeze", last, one), batch_dims=1), one)

    def _linear(self, x: str, layer: nn.Linear) -> str:
        product = self._node("MatMul", x, self._weight(layer.weight.T))
        return product if layer.bias is None else self._node("Add", product, self._weight(layer.bias))

    def _norm(self, x: str, layer: nn.LayerNorm) -> str:
        return self._node(
            "LayerNormalization", x, self._weight(layer.weight), self._weight(layer.bias), axis=-1, epsilon=layer.eps
        )

    def _weight(self, tensor: Tensor) -> str:
        return self._constant(np.ascontiguousarray(tensor.detach().cpu().numpy()))

    def _constant(self, value: Any, dtype: type = np.float32) -> str:
        """Equal small constants are kept once."""
        array: NDArray[Any] = np.asarray(value, dtype=dtype)
        for name, other in self.constants.items():
            if other.size < 9 and other.dtype == array.dtype and other.shape == array.shape and np.array_equal(other, array):
                return name
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def _node(self, operator: str, *inputs: str, result: str = "", results: int = 0, **attributes: Any) -> Any:
        """The name of the result, or a list of names where ``results`` says how many there are."""
        from onnx import helper

        first = result or f"{operator}_{len(self.nodes)}"
        names = [f"{first}_{part}" for part in range(results)] if results else [first]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=first, **attributes))
        return names if results else first
