"""Histories made up by the model itself, with what it says after every item of them: all that a student learns from.

A history starts with an item drawn from the softmax of the adapter's biases, which began as noised counts, and goes on with items
drawn from the model's own distribution over the public catalogue. No private record is read: all of it is post-processing of an
adapter that was released already, and costs no budget (Dwork & Roth 2014, proposition 2.1).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import ModelError
from common.model.recommender import Read, Recommender

BATCH = 512
"""Histories that are made up side by side: enough to keep a core busy, with keys and values that stay small."""

Done = Callable[[int], None]
"""Told how many histories are finished."""


@dataclass(frozen=True, eq=False)
class Histories:
    """Made-up histories, labelled by the teacher.

    Parameters
    ----------
    items:
        int32 ``(n, length)`` positions in the catalogue, oldest first.
    best:
        int32 ``(n, length, k)``, the teacher's first items to come next, best first.
    log_shares:
        float16 ``(n, length, k)``, logarithms of their probabilities, nats.
    tail:
        float16 ``(n, length)``, logarithm of the probability of all other items together.
    queries:
        float16 ``(n, length, text_dim)``, what the teacher compares with the items' text vectors, scale included.
    """

    items: NDArray[np.int32]
    best: NDArray[np.int32]
    log_shares: NDArray[np.float16]
    tail: NDArray[np.float16]
    queries: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.items)

    def part(self, rows: slice | NDArray[np.integer]) -> Histories:
        """Some of the histories."""
        return Histories(self.items[rows], self.best[rows], self.log_shares[rows], self.tail[rows], self.queries[rows])


def sample_histories(
    teachers: Sequence[Recommender],
    n: int,
    length: int,
    *,
    top_k: int,
    seed: int,
    temperature: float = 1.0,
    exploration: float = 0.0,
    starts: Sequence[NDArray[np.integer]] = (),
    done: Done | None = None,
) -> Histories:
    """``n`` histories of ``length`` items, none of which holds an item twice.

    Parameters
    ----------
    teachers:
        One model or several over one catalogue; of several, the probabilities are averaged (FedDF, Lin et al. 2020).
    top_k:
        How many of the teacher's first items are kept at each position.
    temperature:
        Divides the logarithms of the probabilities that items are drawn from, not those that are kept; at most the share
        ``exploration`` of the items is drawn like a history's first one instead.
    starts:
        Public histories. The first ``len(starts)`` histories begin with the ends of these, and are continued by the teacher.

    Raises
    ------
    ModelError
        If the teachers do not fit together, or the catalogue has too few items for such histories.
    """
    first = _check(teachers, length)
    n, top_k = max(n, len(starts)), min(top_k, first.n_items)
    dim = int(first.item_vectors.shape[1])
    out = Histories(
        np.empty((n, length), dtype=np.int32),
        np.empty((n, length, top_k), dtype=np.int32),
        np.empty((n, length, top_k), dtype=np.float16),
        np.empty((n, length), dtype=np.float16),
        np.empty((n, length, dim), dtype=np.float16),
    )
    given = _given(starts, n, length)
    generator = torch.Generator().manual_seed(seed)
    popular = torch.stack([teacher.bias.weight.detach().cpu().softmax(0) for teacher in teachers]).mean(0)
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        for teacher in teachers:
            stack.enter_context(merged(teacher))
        for start in range(0, n, BATCH):
            rows = slice(start, min(start + BATCH, n))
            _walk(teachers, out.part(rows), given[rows], popular, temperature, exploration, generator)
            if done is not None:
                done(rows.stop)
    return out


@contextlib.contextmanager
def merged(model: Recommender) -> Iterator[None]:
    """LoRA's changes added to the weights that they change, which saves their own arithmetic; undone on leaving, to the bit."""
    layers: list[Any] = [module for module in model.backbone.modules() if hasattr(module, "merge") and hasattr(module, "unmerge")]
    before = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    for layer in layers:
        layer.merge()
    try:
        yield
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.unmerge()
            layer.get_base_layer().weight.data.copy_(weight)


def _walk(
    teachers: Sequence[Recommender],
    out: Histories,
    given: NDArray[np.int32],
    popular: Tensor,
    temperature: float,
    exploration: float,
    generator: torch.Generator,
) -> None:
    """Fill ``out``, views of the whole, item by item."""
    n, length = out.items.shape
    met = torch.zeros(n, len(popular), dtype=torch.bool)
    read: list[Read | None] = [None] * len(teachers)
    log_shares = popular.log().expand(n, -1)
    for position in range(length):
        chances = (log_shares if position == 0 else log_shares / temperature).masked_fill(met, -torch.inf).softmax(1)
        if exploration and position:
            random = torch.rand(n, 1, generator=generator) < exploration
            chances = torch.where(random, popular.log().masked_fill(met, -torch.inf).softmax(1), chances)
        drawn = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        known = torch.from_numpy(given[:, position].astype(np.int64))
        items = torch.where(known >= 0, known, drawn)
        met[torch.arange(n), items] = True
        log_shares, queries = _ask(teachers, items, read)
        best, which = log_shares.topk(out.best.shape[2], dim=1)
        out.items[:, position] = items.numpy()
        out.best[:, position] = which.numpy()
        out.log_shares[:, position] = best.numpy()
        out.tail[:, position] = torch.log1p(-best.exp().sum(1).clamp(max=1 - 1e-6)).numpy()
        out.queries[:, position] = queries.numpy()


def _ask(teachers: Sequence[Recommender], items: Tensor, read: list[Read | None]) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``(B, n_items)`` and queries ``(B, dim)`` after one more item; ``read`` moves on."""
    answers, queries = [], []
    for number, teacher in enumerate(teachers):
        query, hidden, read[number] = teacher.read(items.to(teacher.device), read[number])
        answers.append(teacher.score(query, hidden).squeeze(1).log_softmax(1).cpu())
        queries.append(teacher.scale(query).squeeze(1).cpu())
    if len(answers) == 1:
        return answers[0], queries[0]
    return torch.stack(answers).logsumexp(0) - np.log(len(answers)), torch.stack(queries).mean(0)


def _given(starts: Sequence[NDArray[np.integer]], n: int, length: int) -> NDArray[np.int32]:
    """``(n, length)``, what histories begin with, -1 where the teacher goes on."""
    out = np.full((n, length), -1, dtype=np.int32)
    for row, history in enumerate(starts):
        _, first = np.unique(history, return_index=True)
        once = np.asarray(history)[np.sort(first)][-length:]
        out[row, : len(once)] = once
    return out


def _check(teachers: Sequence[Recommender], length: int) -> Recommender:
    if not teachers:
        raise ModelError("there is no teacher to distil")
    first = teachers[0]
    for other in teachers[1:]:
        if other.catalogue_fingerprint != first.catalogue_fingerprint or other.encoder_name != first.encoder_name:
            raise ModelError("the teachers of an ensemble must share one catalogue and one text encoder")
    if not 1 <= length <= first.n_items:
        raise ModelError(f"histories of {length} different items cannot be made from a catalogue of {first.n_items}")
    return first
