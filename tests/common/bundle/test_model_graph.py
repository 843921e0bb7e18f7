"""What is said of a model without running it, held against the onnx library's own reading of the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from common.bundle import model_graph
from common.bundle.contents import HISTORY, LENGTH, POOLED, QUERY
from common.bundle.model_graph import DOMAINS, check_model
from common.errors import BundleError
from tests.bundles import tiny_model

DIM = 6


def changed(change: Callable[[Any], object]) -> bytes:
    """The tiny model after ``change``."""
    model = onnx.load_from_string(tiny_model(DIM, 4))
    change(model)
    return bytes(model.SerializeToString())


def external(name: str = "w", location: str = "secret.bin") -> Any:
    tensor = TensorProto(name=name, dims=[4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def refused(content: bytes, said: str, dim: int = DIM) -> None:
    with pytest.raises(BundleError, match=said) as error:
        check_model(content, dim)
    assert "\n" not in str(error.value)


def test_a_real_model_and_its_quantised_form_are_accepted(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    plain, small = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    plain.write_bytes(tiny_model(DIM, 4))
    quantize_dynamic(plain, small)
    assert "MatMulInteger" in {node.op_type for node in onnx.load(small).graph.node}
    for path in (plain, small):
        check_model(path.read_bytes(), DIM)
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        assert {one.name for one in session.get_inputs()} == {HISTORY, LENGTH}


def test_values_in_other_files_are_refused_wherever_they_hide() -> None:
    def in_a_subgraph(model: Any) -> None:
        branch = helper.make_graph([helper.make_node("Identity", ["w"], ["o"])], "branch", [], [], [external()])
        model.graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch))

    def sparse(model: Any) -> None:
        model.graph.sparse_initializer.add(values=external(), indices=TensorProto(dims=[1], data_type=7), dims=[4])

    def in_lists(model: Any) -> None:
        node = model.graph.node.add(op_type="Constant")
        node.attribute.add(name="x", tensors=[external()])

    def half(model: Any) -> None:
        """Says where, but not that it is elsewhere: harmless today, and of no use."""
        model.graph.initializer.add(name="w").external_data.add(key="location", value="x")

    cases: tuple[Callable[[Any], object], ...] = (
        lambda model: model.graph.initializer.append(external()),
        lambda model: model.graph.node.append(helper.make_node("Constant", [], ["o"], value=external())),
        in_a_subgraph,
        sparse,
        in_lists,
        half,
    )
    for change in cases:
        refused(changed(change), "lie in another file")


def test_the_run_time_alone_would_read_such_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why this is checked here: from bytes, onnxruntime looks for external values in the process' working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "adds",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [external()],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, plain, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros(4, np.float32)})[0].tolist() == [0, 1, 2, 3]
    refused(content, "lie in another file")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.graph.node.append(helper.make_node("Run", ["a"], ["b"], domain="com.evil")), "domain 'com.evil'"),
        (lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1)), "domain 'ai.onnx.contrib'"),
        (lambda m: m.graph.node.append(helper.make_node("Loop", ["a"], ["b"])), "Loop can run without end"),
        (lambda m: m.graph.node.append(helper.make_node("Scan", ["a"], ["b"])), "Scan can run without end"),
        (lambda m: m.graph.node.append(helper.make_node("EPContext", [], [], domain="com.microsoft")), "reads compiled code"),
        (lambda m: m.functions.add(name="f", domain="x"), "functions"),
        (lambda m: m.training_info.add(), "training"),
        (lambda m: m.graph.ClearField("input"), "its inputs must be history and length, they are none"),
        (lambda m: m.graph.input.append(helper.make_tensor_value_info("user_id", 7, ["B"])), "they are history, length, user_id"),
        (lambda m: m.graph.input.append(m.graph.input[0]), "they are history, length, history"),
        (lambda m: setattr(m.graph.output[0], "name", "x"), "its outputs must be query and pooled, they are x, pooled"),
        (lambda m: m.graph.input[0].type.tensor_type.shape.dim.pop(), "history must be float32 of 3 dimensions"),
        (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "not an ONNX model"),
        (lambda m: m.graph.input[0].ClearField("type"), "not an ONNX model"),
        (lambda m: setattr(m.graph.input[1].type.tensor_type, "elem_type", 6), "length must be int64 of 1 dimensions"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1), "must take any batch and length"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 6), "must take any batch and length"),
        (lambda m: setattr(m.graph.output[1].type.tensor_type.shape.dim[1], "dim_value", 6), "must take any batch and length"),
        (lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 5), "vectors of 6 columns"),
        (lambda m: m.ClearField("graph"), "its inputs must be"),
    ],
)  # fmt: skip
def test_what_a_bundle_may_not_hold_is_refused(change: Callable[[Any], object], said: str) -> None:
    refused(changed(change), said)


def test_vectors_of_another_width_are_refused() -> None:
    refused(tiny_model(DIM, 4), "vectors of 7 columns", dim=7)


def test_what_is_allowed_once_may_appear_once() -> None:
    """Protocol buffers merge a message that appears twice: a graph could be told in two halves, each harmless."""
    model = tiny_model(DIM, 4)
    refused(model + bytes(onnx.ModelProto(graph=onnx.GraphProto(name="more")).SerializeToString()), "not an ONNX model")
    node = onnx.NodeProto(op_type="Add").SerializeToString() + onnx.NodeProto(op_type="Loop").SerializeToString()
    assert onnx.NodeProto.FromString(node).op_type == "Loop"
    graph = b"\x0a" + bytes([len(node)]) + node
    refused(b"\x3a" + bytes([len(graph)]) + graph, "Loop can run without end|not an ONNX model")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x3a\xff", b"\x3a" + b"\xff" * 9 + b"\x01", b"\xff" * 30, b"\x00\x00", b"\x0b\x0c", b"\x08" + b"\x80" * 11, b"PK"],
    ids=repr,
)
def test_what_is_no_protocol_buffer_is_refused(content: bytes) -> None:
    refused(content, "not an ONNX model|its inputs must be")


def test_depth_and_number_of_messages_are_limited() -> None:
    graph = onnx.GraphProto(name="innermost")
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["o"], then_branch=graph)], "outer", [], [])
    refused(changed(lambda model: model.graph.CopyFrom(graph)), "more than 32 deep")
    many = b"\x08\x01" * (model_graph.MAX_FIELDS + 1)
    refused(many, "more than 1,000,000 fields")


def tensors(graph: Any) -> Iterator[Any]:
    """All tensors and all domains of operators, as the library sees them."""
    yield from graph.initializer
    for one in graph.sparse_initializer:
        yield from (one.values, one.indices)
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from tensors(inner)


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_no_change_of_bytes_gets_past(data: st.DataObject) -> None:
    """Whatever is accepted, the library finds no file, no foreign operator and no other input in; nothing else is ever raised."""
    content = bytearray(SEED)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        check_model(bytes(content), DIM)
    except BundleError:
        return
    try:
        model = onnx.load_from_string(bytes(content))
    except Exception:  # the library knows texts and enumerations that this walk does not look at
        return
    assert sorted(one.name for one in model.graph.input) == sorted([HISTORY, LENGTH])
    assert sorted(one.name for one in model.graph.output) == sorted([QUERY, POOLED])
    assert not model.functions
    for one in tensors(model.graph):
        if isinstance(one, onnx.NodeProto):
            assert one.domain in DOMAINS
        else:
            assert not one.external_data
            assert one.data_location == TensorProto.DEFAULT


def _with_one_value_elsewhere() -> bytes:
    """One byte from being refused: the fuzzer begins where it matters."""

    def change(model: Any) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "w"))
        model.graph.initializer[-1].data_location = TensorProto.DEFAULT
        branch = helper.make_graph([helper.make_node("Identity", ["w"], ["o"])], "branch", [], [], [model.graph.initializer[-1]])
        model.graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch))

    return changed(change)


SEED = _with_one_value_elsewhere()
