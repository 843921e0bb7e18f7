"""The student model of a bundle, run by ONNX Runtime: item vectors of histories in, query vectors out.

Nothing of one call is kept for the next, and memory does not grow with the shapes that were seen: the arena and the memory plans
that ONNX Runtime keeps by shape are off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.bundle.contents import HISTORY, LENGTH, POOLED, QUERY, Scoring
from common.errors import BundleError, ServingError

Floats = NDArray[np.float32]


class QueryModel:
    """Histories to queries; safe to call from many threads at once.

    Parameters
    ----------
    threads:
        That one call may compute on.

    Raises
    ------
    BundleError
        If ONNX Runtime cannot load the model, or it is not what :mod:`common.bundle.contents` describes.
    """

    def __init__(self, scoring: Scoring, threads: int = 1) -> None:
        self.items, self.window = scoring.items, scoring.window
        self._session = _session(scoring.model, threads)
        self._check()

    def padded(self, histories: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The ends of histories that the model reads.

        Returns
        -------
        ``(B, T)`` int64 positions, oldest first, 0 after the end, ``T`` the longest; and ``(B,)`` int64 lengths, 0 where empty.

        Raises
        ------
        ServingError
            If an entry that would be read is no item's position.
        """
        ends = [history[-self.window :] for history in histories]
        n_items = len(self.items)
        try:
            if len(ends) == 1:
                positions = np.array(ends, dtype=np.int64)
                lengths = np.array([len(ends[0])], dtype=np.int64)
            else:
                lengths = np.fromiter(map(len, ends), dtype=np.int64, count=len(ends))
                positions = np.zeros((len(ends), int(lengths.max(initial=0))), dtype=np.int64)
                for row, end in zip(positions, ends, strict=True):
                    row[: len(end)] = end
            known = not positions.size or (positions.min() >= 0 and positions.max() < n_items)
        except OverflowError:  # a number of more than 64 bits
            known = False
        if not known:
            refuse_unknown(next(int(i) for end in ends for i in end if not 0 <= i < n_items), n_items)
        return positions, lengths

    def queries(self, positions: NDArray[np.int64], lengths: NDArray[np.int64]) -> Floats:
        """Queries ``(B, dim)`` of what :meth:`padded` gave; zero for empty histories, of which the model is not asked."""
        return self._run([QUERY], positions, lengths)[0]

    def queries_and_pools(self, positions: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Queries ``(B, dim)``, and the shares ``(B, T)`` by which each history item's text vector is in them."""
        query, pooled = self._run([QUERY, POOLED], positions, lengths)
        return query, pooled

    def _run(self, outputs: list[str], positions: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[Floats]:
        known = lengths > 0
        if known.all():
            return self._call(outputs, positions, lengths)
        widths = {QUERY: self.items.dim, POOLED: positions.shape[1]}
        results = [np.zeros((len(lengths), widths[name]), dtype=np.float32) for name in outputs]
        if known.any():
            for result, part in zip(results, self._call(outputs, positions[known], lengths[known]), strict=True):
                result[known] = part
        return results

    def _call(self, outputs: list[str], positions: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[Floats]:
        vectors = self.items.rows(positions)
        if len(lengths) > 1:
            vectors[np.arange(positions.shape[1]) >= lengths[:, None]] = 0
        results: list[Floats] = self._session.run(outputs, {HISTORY: vectors, LENGTH: lengths})
        if not np.isfinite(results[0]).all():
            raise BundleError("the bundle's model gave a query that is not finite; take another bundle")
        return results

    def _check(self) -> None:
        """Names and types, then one run: shapes as they come out, not as the file declares them."""
        ends = (
            (self._session.get_inputs(), {HISTORY: "tensor(float)", LENGTH: "tensor(int64)"}),
            (
                self._session.get_outputs(),
                {QUERY: "tensor(float)", POOLED: "tensor(float)"},
            ),
        )
        for found, wanted in ends:
            if (have := {node.name: node.type for node in found}) != wanted:
                raise BundleError(f"the bundle's model has {have}, expected {wanted}")
        steps = min(2, self.window)
        positions = np.zeros((3, steps), dtype=np.int64)
        try:
            query, pooled = self._call([QUERY, POOLED], positions, np.array([1, steps, steps], dtype=np.int64))
        except BundleError:
            raise
        except Exception as error:  # whatever ONNX Runtime throws: its classes share no useful base
            raise BundleError(f"the bundle's model does not run: {_first_line(error)}") from None
        if query.shape != (3, self.items.dim) or pooled.shape != (3, steps):
            raise BundleError(
                f"the bundle's model gives queries {query.shape} and shares {pooled.shape}, "
                f"expected {(3, self.items.dim)} and {(3, steps)}"
            )


def refuse_unknown(position: int, n_items: int, what: str = "history") -> None:
    """Raise what is to be said of a position that no item has."""
    raise ServingError(f"{what}: no item has position {position}; the catalogue has {n_items} items, counted from 0")


def _session(model: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(f"the bundle's model cannot be loaded: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
