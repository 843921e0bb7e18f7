"""What can be said of ``model.onnx`` without running it.

A walk over the file's protocol-buffer fields (onnx.proto3 of ONNX 1.23), by a table of the few that matter. It refuses what
would make a run-time read other files (tensors with external data, compiled contexts), need code from elsewhere (operators
outside the standard domains, functions of the model's own) or run without end (loops), and checks names, types and ranks of
inputs and outputs. It needs no library that a silo does not have, and nothing is computed. It does not say that the model is
any good, nor how much memory it takes: that the signer answers for.

A field that appears twice is read twice here, while a parser may let the last one count; so what is allowed once may appear once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from common.bundle.contents import HISTORY, LENGTH, POOLED, QUERY
from common.bundle.manifest import MODEL
from common.errors import BundleError

MAX_FIELDS: Final = 1_000_000
"""Fields in all messages together: a student has some thousands, and so reading ends within seconds."""

MAX_DEPTH: Final = 32
"""Messages within messages; subgraphs of a student go about eight deep."""

DOMAINS: Final = frozenset({"", "ai.onnx", "com.microsoft"})
"""ONNX's own operators, and onnxruntime's, among which the quantised ones are."""

REFUSED_OPERATORS: Final = {
    "EPContext": "reads compiled code, from another file if it likes",
    "Loop": "can run without end",
    "Scan": "can run without end",
    "BeamSearch": "can run without end",
    "GreedySearch": "can run without end",
    "Sampling": "can run without end",
}

_FLOAT, _INT64 = 1, 7
_INPUTS = {HISTORY: (_FLOAT, 3), LENGTH: (_INT64, 1)}
_OUTPUTS = {QUERY: (_FLOAT, 2), POOLED: (_FLOAT, 2)}
_TYPES = {_FLOAT: "float32", _INT64: "int64"}

# Message -> number of a field -> the message that it holds.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 8: "opset"},
    "graph": {1: "node", 5: "tensor", 11: "input", 12: "output", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "subgraph", 10: "tensor", 11: "subgraph", 22: "sparse", 23: "sparse"},
    "subgraph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
    "opset": {},
}
_BYTES, _VARINT = 2, 0
_Value = int | memoryview


@dataclass
class _Walk:
    """What was met so far."""

    dim: int
    fields: int = 0
    ends: dict[str, list[str]] = field(default_factory=lambda: {"input": [], "output": []})


def check_model(content: bytes, dim: int) -> None:
    """Refuse a model that is not what :mod:`common.bundle.contents` says, for item vectors of ``dim`` columns.

    Raises
    ------
    BundleError
        With the first reason found.
    """
    walk = _Walk(dim)
    try:
        _message(walk, "model", memoryview(content), 0)
    except _Malformed:
        raise BundleError(f"{MODEL} is not an ONNX model, or was cut off") from None
    for which, wanted in (("input", _INPUTS), ("output", _OUTPUTS)):
        if sorted(walk.ends[which]) != sorted(wanted):
            names = ", ".join(walk.ends[which]) or "none"
            raise BundleError(f"{MODEL}: its {which}s must be {' and '.join(wanted)}, they are {names}")


class _Malformed(Exception):
    """Not a protocol buffer."""


def _message(walk: _Walk, kind: str, content: memoryview, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BundleError(f"{MODEL}: messages within messages, more than {MAX_DEPTH} deep")
    inner = _MESSAGES[kind]
    check = _CHECKS.get(kind)
    seen: set[int] = set()
    for number, wire, value in _fields(walk, content):
        if check is not None:
            check(walk, number, value)
        if (kind, number) in _ONCE:
            _first(seen, number)
        if number in inner and wire == _BYTES:
            assert isinstance(value, memoryview)
            if inner[number] in walk.ends:
                _check_end(walk, inner[number], value)
            else:
                _message(walk, inner[number], value, depth + 1)


_ONCE = {("model", 7), ("node", 4), ("node", 7), ("opset", 1)}


def _check_model_field(_: _Walk, number: int, value: _Value) -> None:
    if number == 20:
        raise BundleError(f"{MODEL} holds instructions for training")
    if number in (25, 26):
        raise BundleError(f"{MODEL} holds functions or configurations of its own; export it with standard operators")


def _check_node_field(_: _Walk, number: int, value: _Value) -> None:
    if number == 4 and (name := _text(value)) in REFUSED_OPERATORS:
        raise BundleError(f"{MODEL}: operator {name} {REFUSED_OPERATORS[name]}, and is not allowed")
    if number == 7 and (name := _text(value)) not in DOMAINS:
        raise BundleError(f"{MODEL}: an operator is of domain {name!r}, which needs code from elsewhere")


def _check_opset_field(_: _Walk, number: int, value: _Value) -> None:
    if number == 1 and (name := _text(value)) not in DOMAINS:
        raise BundleError(f"{MODEL}: it asks for operators of domain {name!r}, which need code from elsewhere")


def _check_tensor_field(_: _Walk, number: int, value: _Value) -> None:
    if number == 13 or (number == 14 and value != 0):
        raise BundleError(f"{MODEL}: a tensor's values lie in another file; export it as one file")


_CHECKS: Mapping[str, Callable[[_Walk, int, _Value], None]] = {
    "model": _check_model_field,
    "node": _check_node_field,
    "opset": _check_opset_field,
    "tensor": _check_tensor_field,
}


def _check_end(walk: _Walk, which: str, content: memoryview) -> None:
    """An input or output of the model: ``ValueInfoProto``."""
    name = _text(_only(walk, content, 1))
    walk.ends[which].append(name)
    wanted = (_INPUTS if which == "input" else _OUTPUTS).get(name)
    if wanted is None:
        return  # named by the caller, who knows all of them
    tensor = _bytes(_only(walk, _bytes(_only(walk, content, 2)), 1))
    element = _only(walk, tensor, 1)
    dimensions = [_bytes(value) for number, _, value in _fields(walk, _bytes(_only(walk, tensor, 2))) if number == 1]
    if (element, len(dimensions)) != wanted:
        raise BundleError(f"{MODEL}: {which} {name} must be {_TYPES[wanted[0]]} of {wanted[1]} dimensions")
    fixed = [[value for number, _, value in _fields(walk, one) if number == 1] for one in dimensions]
    free = fixed[:-1] if name in (HISTORY, QUERY) else fixed
    if any(free) or (name in (HISTORY, QUERY) and fixed[-1] not in ([], [walk.dim])):
        raise BundleError(f"{MODEL}: {which} {name} must take any batch and length, and vectors of {walk.dim} columns")


def _fields(walk: _Walk, content: memoryview) -> Iterator[tuple[int, int, _Value]]:
    """Number, wire type and value of each field (protobuf.dev, "Encoding"); groups are not used by ONNX."""
    position, end = 0, len(content)
    while position < end:
        walk.fields += 1
        if walk.fields > MAX_FIELDS:
            raise BundleError(f"{MODEL} has more than {MAX_FIELDS:,} fields")
        tag, position = _varint(content, position)
        number, wire = tag >> 3, tag & 7
        if not 1 <= number < 1 << 29:
            raise _Malformed
        if wire == _VARINT:
            value, position = _varint(content, position)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, position = _varint(content, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _Malformed
        if size > end - position:
            raise _Malformed
        yield number, wire, content[position : position + size]
        position += size


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            raise _Malformed
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                raise _Malformed
            return value, position
    raise _Malformed


def _only(walk: _Walk, content: memoryview, wanted: int) -> _Value:
    """The value of a field that must be there once."""
    values = [value for number, _, value in _fields(walk, content) if number == wanted]
    if len(values) != 1:
        raise _Malformed
    return values[0]


def _first(seen: set[int], number: int) -> None:
    if number in seen:
        raise _Malformed
    seen.add(number)


def _bytes(value: _Value) -> memoryview:
    if isinstance(value, int):
        raise _Malformed
    return value


def _text(value: _Value) -> str:
    try:
        return str(_bytes(value), "utf-8")
    except UnicodeDecodeError:
        raise _Malformed from None
