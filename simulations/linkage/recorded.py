"""What an adversary sees of a question, and how two questions compare.

The adversary is the service itself, or whoever reads along there: it knows the catalogue with its public item vectors, the
protection that clients use (so also which slots are of which recency bucket), all questions of both days, and how the model
answers. It does not know who asks. Everything here is a function of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from client.private_history import Protection, protect
from common.recommending import PAD

AGES: Final = (0.5, 3.5, 9.5)
"""Borders between very new, new, middle and old items, in places from the newest: what can be told apart of recency."""


@dataclass(frozen=True, eq=False)
class Day:
    """Questions of one day, one row a person: what they show.

    Parameters
    ----------
    items:
        int64 ``(n, SLOTS)``, :data:`PAD` where nothing is.
    ages:
        float64 of the same shape: the mean place from the newest (0) that an item in this slot had before it was shuffled.
    n_items:
        Items in the catalogue.
    """

    items: NDArray[np.int64]
    ages: NDArray[np.float64]
    n_items: int

    def __len__(self) -> int:
        return len(self.items)

    @property
    def shown(self) -> NDArray[np.bool_]:
        """Slots that hold an item."""
        return self.items != PAD

    def matrix(self, values: NDArray[np.floating] | None = None, where: NDArray[np.bool_] | None = None) -> csr_matrix:
        """``(n, n_items)``: values of slots (1 if None) by item, summed where one occurs twice; only slots ``where`` given."""
        mask = self.shown if where is None else self.shown & where
        rows, slots = np.nonzero(mask)
        data = np.ones(len(rows)) if values is None else values[rows, slots]
        return csr_matrix((data, (rows, self.items[rows, slots])), shape=(len(self), self.n_items))

    def histories(self) -> list[NDArray[np.int64]]:
        """What is shown of each, oldest first, as the model reads it."""
        return [row[row != PAD] for row in self.items]


def ask(
    histories: Sequence[Sequence[int] | NDArray[np.integer]],
    n_items: int,
    protection: Protection,
    rng: Random,
    secrets: Sequence[bytes] | None = None,
) -> Day:
    """Everybody asks once; ``secrets`` make replacements permanent."""
    known: Sequence[bytes | None] = [None] * len(histories) if secrets is None else secrets
    rows = [
        protect([int(i) for i in h[-protection.cap :]], n_items, protection, rng, secret=s)
        for h, s in zip(histories, known, strict=True)
    ]
    items = np.array(rows, dtype=np.int64).reshape(len(rows), -1)
    lengths = (items != PAD).sum(axis=1)
    by_length = {int(length): _mean_ages(int(length), protection.buckets, items.shape[1]) for length in np.unique(lengths)}
    return Day(items, np.array([by_length[int(length)] for length in lengths]).reshape(items.shape), n_items)


def _mean_ages(length: int, sizes: Sequence[int], slots: int) -> NDArray[np.float64]:
    """What the buckets tell of the age of each slot of a question with ``length`` items."""
    ages, newest = np.zeros(slots), 0
    for size in (*sizes, length):
        oldest = min(length, newest + size)
        ages[length - oldest : length - newest] = (newest + oldest - 1) / 2
        newest = oldest
    return ages


@dataclass(frozen=True, eq=False)
class Compared:
    """All pairs of a first and a second day's question.

    Parameters
    ----------
    features:
        float32 ``(n, n, f)``: ``[a, b]`` compares question ``a`` of the first day with ``b`` of the second.
    names:
        What each feature is.
    nearest:
        float64 ``(n, n)``, the similarity by which a nearest neighbour is sought.
    """

    features: NDArray[np.float32]
    names: tuple[str, ...]
    nearest: NDArray[np.float64]


def compare(
    first: Day,
    second: Day,
    vectors: NDArray[np.float32] | None = None,
    answers: NDArray[np.float32] | None = None,
) -> Compared:
    """How alike two questions are, for all pairs.

    Rare items count for more: an item that ``f`` of the ``m`` recorded questions show weighs ``log((m + 1) / f)`` nats, about the
    log-likelihood ratio of "the same person" against "two people" when both show it.

    Parameters
    ----------
    vectors:
        float32 ``(n_items, dim)`` public vectors of items of unit length: how alike two tastes are without a shared item.
    answers:
        float32 ``(n, n_items)`` the model's scores for the second day's questions: how well they foresee the first day's items.
    """
    seen_a, seen_b = first.matrix().minimum(1), second.matrix().minimum(1)
    frequency = np.asarray((seen_a + seen_b).sum(axis=0)).ravel()
    weight = np.log((len(first) + len(second) + 1) / np.maximum(frequency, 1.0))
    by_weight_a, by_weight_b = seen_a.multiply(weight).tocsr(), seen_b.multiply(weight).tocsr()
    shared = (by_weight_a @ seen_b.T).toarray()
    norm_a, norm_b = (np.sqrt(np.asarray(m.multiply(m).sum(axis=1))).ravel() for m in (by_weight_a, by_weight_b))
    cosine = (by_weight_a @ by_weight_b.T).toarray() / np.maximum(np.outer(norm_a, norm_b), 1e-12)
    count = (seen_a @ seen_b.T).toarray()
    length_a, length_b = first.shown.sum(axis=1), second.shown.sum(axis=1)
    columns: dict[str, NDArray] = {
        "weight of shared items": shared,
        "cosine": cosine,
        "shared items": count,
        "Jaccard": count / np.maximum(length_a[:, None] + length_b[None] - count, 1.0),
        "length on the first day": np.broadcast_to(length_a[:, None], shared.shape),
        "length on the second day": np.broadcast_to(length_b[None], shared.shape),
    }
    columns |= _by_age(first, second, weight)
    if vectors is not None:
        columns["taste"] = _taste(by_weight_a, vectors) @ _taste(by_weight_b, vectors).T
    if answers is not None:
        columns["foreseen"] = _foreseen(seen_a, seen_b, answers)
    features = np.stack([column.astype(np.float32) for column in columns.values()], axis=-1)
    # A hint of taste decides between those who share nothing, and never against a shared item.
    taste = columns.get("taste")
    return Compared(features, tuple(columns), cosine if taste is None else cosine + 1e-3 * taste)


def _by_age(first: Day, second: Day, weight: NDArray[np.float64]) -> dict[str, NDArray]:
    """Weight of shared items by how old they were on either day, and how evenly they have aged in between."""
    columns: dict[str, NDArray] = {}
    bins_a, bins_b = np.digitize(first.ages, AGES), np.digitize(second.ages, AGES)
    for i in np.unique(bins_a[first.shown]):
        left = first.matrix(where=bins_a == i).multiply(weight).tocsr()
        for j in np.unique(bins_b[second.shown]):
            columns[f"shared of ages {i} and {j}"] = (left @ second.matrix(where=bins_b == j).T).toarray()

    def total(power_a: int, power_b: int) -> NDArray[np.float64]:
        left = first.matrix(first.ages**power_a).multiply(weight).tocsr()
        return (left @ second.matrix(second.ages**power_b).T).toarray()

    everything = np.maximum(total(0, 0), 1e-12)
    shift = (total(0, 1) - total(1, 0)) / everything
    squared = (total(0, 2) - 2 * total(1, 1) + total(2, 0)) / everything
    columns["ageing"] = shift
    columns["uneven ageing"] = np.maximum(squared - shift**2, 0.0)
    return columns


def _taste(by_weight: csr_matrix, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    mean = by_weight @ (vectors - vectors.mean(axis=0))
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def _foreseen(seen_a: csr_matrix, seen_b: csr_matrix, answers: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean of log p(item | second question) - log p(item) over the first day's items that the second does not show, nats."""
    top = answers.max(axis=1, keepdims=True)
    log_p = answers - top - np.log(np.exp(answers - top).sum(axis=1, keepdims=True))
    log_p = log_p - log_p.mean(axis=0)
    everything = seen_a @ log_p.T
    again = seen_a @ seen_b.multiply(log_p).tocsr().T
    again = again.toarray()
    fresh = np.asarray(seen_a.sum(axis=1)).ravel()[:, None] - (seen_a @ seen_b.T).toarray()
    return (everything - again) / np.maximum(fresh, 1.0)
