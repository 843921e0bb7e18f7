"""A finished student made small: pruned, written as ONNX, its weights rounded to eight bits.

Each step is a function of its own, so that what it costs can be measured: :func:`prune` on the PyTorch model, :func:`export` from
PyTorch to a float32 ONNX file, :func:`quantise` from that to int8. Item vectors are rounded by
:meth:`common.bundle.contents.ItemTable.quantised`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from common.errors import ConfigError
from common.model.student import Layer, Student

BLOCK = 64
"""Weights of one column that share a scale."""


def prune(student: Student, share: float) -> dict[str, Tensor]:
    """Set the ``share`` of smallest weights of each feed-forward matrix to zero (Han et al. 2015).

    Returns
    -------
    Name of each such matrix to a mask of its shape, 1 where a weight is left, so that training can go on without the others.
    """
    masks: dict[str, Tensor] = {}
    for name, layer in student.named_modules():
        if not isinstance(layer, Layer) or share <= 0:
            continue
        for part in ("up", "down"):
            weight = getattr(layer, part).weight
            gone = int(share * weight.numel())
            mask = torch.ones_like(weight)
            mask.view(-1)[weight.detach().abs().view(-1).argsort()[:gone]] = 0.0
            masks[f"{name}.{part}.weight"] = mask
    keep(student, masks)
    return masks


def keep(student: Student, masks: dict[str, Tensor]) -> None:
    """Set what :func:`prune` took out to zero again, after a step of training."""
    with torch.no_grad():
        for name, mask in masks.items():
            student.get_parameter(name).mul_(mask)


def export(student: Student) -> bytes:
    """The student as a float32 ONNX file, with inputs and outputs as in :mod:`common.bundle.contents`.

    Batch and length are free. Item vectors and biases are not in it. It holds no names of files or functions of this machine.
    """
    from server.student_graph import graph_of

    content: bytes = graph_of(student).SerializeToString(deterministic=True)
    return content


def quantise(model: bytes) -> bytes:
    """The same with every matrix of weights in int8, in blocks of :data:`BLOCK`; what they are multiplied with is rounded too.

    Notes
    -----
    Activations are rounded row by row (``MatMulNBits`` of onnxruntime with ``accuracy_level=4``) and not, as by
    ``DynamicQuantizeLinear``, with one scale for all histories that are answered together: there a person's recommendations would
    depend on who else asks at that moment.

    Raises
    ------
    ConfigError
        If the installed onnxruntime cannot do that.
    """
    import onnx

    with _quiet():
        try:
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
        except ImportError:
            raise ConfigError(
                "int8 models need onnxruntime 1.22 or newer and onnxscript: pip install -U 'silorec[server]'"
            ) from None
        rounding = MatMulNBitsQuantizer(
            onnx.load_from_string(model), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4
        )
        rounding.process()
    content: bytes = rounding.model.model.SerializeToString(deterministic=True)
    return content


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of the quantiser, which takes over the root logger when it is imported."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:] = handlers
        root.setLevel(level)
