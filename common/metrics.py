"""How good recommendations are: ranking metrics for one held-out item per user, and what lies beyond accuracy.

The protocol is full ranking: for every user all items that they could still be shown are candidates, that is the user's
assortment without what they have already met; the held-out item is always one. No negatives are sampled.

**Ties** are broken at random, and every figure is the exact expectation over that: a model that gives all items the same
score gets what a random ranking gets, on every metric, so nothing is won by scores that do not distinguish. (This is also
what ``sklearn.metrics.ndcg_score`` and ``roc_auc_score`` do.) Scores that are not a number are refused, as they would
compare as best or worst by accident.

All figures are kept per user, so a breakdown by silo is a groupby and two models are compared user by user. They describe
private data: whoever publishes them has to protect them first. Nothing here charges a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import DataError, ModelError

Scorer = Callable[[NDArray[np.int64]], NDArray[np.floating]]
"""From positions of users to their scores, ``(len(users), n_items)``."""

Features = NDArray[np.floating] | NDArray[np.bool_]

# Cells of a block of scores that are looked at together: keeps temporary arrays near 64 MB at any size of catalogue.
_BLOCK_CELLS = 4_000_000


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Where each user's held-out item came out, and what was recommended instead.

    Parameters
    ----------
    above, tied:
        int64 ``(n_users,)``, how many other candidates score higher than the held-out item, and how many the same.
    candidates:
        int64 ``(n_users,)``, how many items were ranked for the user, the held-out one included.
    lists:
        int32 ``(n_users, depth)``, the best candidates, best first, equal scores by position in the catalogue; -1 where there
        were fewer candidates than ``depth``.
    n_items:
        Items in the catalogue.
    assortments, assortment_of:
        bool ``(n_assortments, n_items)`` and int64 ``(n_users,)``: what could be shown to whom; None is everything to everybody.
    information:
        float64 ``(n_items,)``, self-information of an item in bits, or None; see :func:`self_information`.
    features:
        ``(n_items, dim)`` public item vectors, or multi-hot categories (bool), or None; see :func:`intra_list_diversity`.
    """

    above: NDArray[np.int64]
    tied: NDArray[np.int64]
    candidates: NDArray[np.int64]
    lists: NDArray[np.int32]
    n_items: int
    assortments: NDArray[np.bool_] | None = None
    assortment_of: NDArray[np.int64] | None = None
    information: NDArray[np.float64] | None = None
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.above)

    @property
    def rank(self) -> NDArray[np.float64]:
        """Expected rank of the held-out item, from 1."""
        return 1.0 + self.above + self.tied / 2.0

    def ndcg(self, k: int) -> NDArray[np.float64]:
        """``1 / log2(1 + rank)`` where the rank is at most ``k``, else 0, per user. One relevant item: the ideal is 1."""
        return self._expected(1.0 / np.log2(np.arange(2, k + 2)))

    def hit_rate(self, k: int) -> NDArray[np.float64]:
        """1 where the held-out item is among the first ``k``, per user; with one relevant item this is recall as well."""
        return self._expected(np.ones(k))

    def reciprocal_rank(self) -> NDArray[np.float64]:
        """``1 / rank`` without a cut-off, per user; its mean is MRR."""
        return self._expected(1.0 / np.arange(1, self.n_items + 1))

    def auc(self) -> NDArray[np.float64]:
        """Share of the other candidates that rank below the held-out item, ties half, per user; 0.5 where there is no other."""
        others = self.candidates - 1
        below = others - self.above - self.tied / 2.0
        return np.divide(below, others, out=np.full(len(self), 0.5), where=others > 0)

    def novelty(self, k: int) -> NDArray[np.float64]:
        """Mean self-information of the first ``k`` recommendations, bits, per user (Vargas and Castells, RecSys 2011)."""
        if self.information is None:
            raise DataError("novelty needs item counts: pass item_counts and count_users to evaluate()")
        lists = self._top(k)
        shown = lists >= 0
        bits = np.where(shown, self.information[lists], 0.0).sum(axis=1)
        return bits / np.maximum(shown.sum(axis=1), 1)

    def diversity(self, k: int) -> NDArray[np.float64]:
        """:func:`intra_list_diversity` of the first ``k`` recommendations, per user."""
        if self.features is None:
            raise DataError("diversity needs item vectors or categories: pass features to evaluate()")
        return intra_list_diversity(self._top(k), self.features)

    def coverage(self, k: int) -> float:
        """Share of the items that could be shown to these users that are among somebody's first ``k``."""
        lists = self._top(k)
        shown = len(np.unique(lists[lists >= 0]))
        if self.assortments is None or self.assortment_of is None:
            return shown / self.n_items
        sold = int(self.assortments[np.unique(self.assortment_of)].any(axis=0).sum())
        return shown / max(sold, 1)

    def per_user(self, k: int = 10) -> dict[str, NDArray[np.float64]]:
        """Every per-user metric that is known, by its name in reports."""
        out = {f"ndcg@{k}": self.ndcg(k), f"hr@{k}": self.hit_rate(k), "mrr": self.reciprocal_rank(), "auc": self.auc()}
        if self.information is not None:
            out[f"novelty@{k}"] = self.novelty(k)
        if self.features is not None:
            out[f"diversity@{k}"] = self.diversity(k)
        return out

    def summary(self, k: int = 10) -> dict[str, float]:
        """Means over users, ``coverage@k``, and the number of ``users``.

        Raises
        ------
        DataError
            If there are no users, or ``k`` is more than the depth of the lists.
        """
        if not len(self):
            raise DataError("there are no users to evaluate")
        means = {name: float(values.mean()) for name, values in self.per_user(k).items()}
        return {**means, f"coverage@{k}": self.coverage(k), "users": len(self)}

    def intervals(
        self, k: int = 10, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Percentile-bootstrap intervals of the means in :meth:`summary`; the same resamples serve all metrics."""
        columns = self.per_user(k)
        low, high = bootstrap_interval(
            np.stack(list(columns.values()), axis=1), resamples=resamples, confidence=confidence, seed=seed
        )
        return {name: (float(low[j]), float(high[j])) for j, name in enumerate(columns)}

    def users(self, positions: NDArray[np.integer] | NDArray[np.bool_]) -> Evaluation:
        """The evaluation of some users only."""
        return replace(
            self,
            above=self.above[positions],
            tied=self.tied[positions],
            candidates=self.candidates[positions],
            lists=self.lists[positions],
            assortment_of=None if self.assortment_of is None else self.assortment_of[positions],
        )

    def by_group(self, labels: ArrayLike) -> dict[Hashable, Evaluation]:
        """One evaluation per distinct label, sorted by label; ``labels`` is ``(n_users,)``, the silo for instance."""
        column = np.asarray(labels)
        if column.shape != (len(self),):
            raise DataError(f"labels have shape {column.shape}, expected ({len(self)},): one per user")
        values, group = np.unique(column, return_inverse=True)
        return {value: self.users(group == g) for g, value in enumerate(values.tolist())}

    def _expected(self, gain: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean of ``gain[rank - 1]`` (0 beyond its end) over the ranks that the tied candidates share."""
        cumulative = np.concatenate([[0.0], np.cumsum(gain)])
        first = np.minimum(self.above, len(gain))
        last = np.minimum(self.above + self.tied + 1, len(gain))
        return (cumulative[last] - cumulative[first]) / (self.tied + 1)

    def _top(self, k: int) -> NDArray[np.int32]:
        if not 1 <= k <= self.lists.shape[1]:
            raise DataError(f"k = {k}, but lists were kept to depth {self.lists.shape[1]}: pass depth to evaluate()")
        return self.lists[:, :k]


def evaluate(
    scores: NDArray[np.floating] | Scorer,
    target: NDArray[np.integer],
    seen: Sequence[NDArray[np.integer]],
    *,
    depth: int = 10,
    assortments: NDArray[np.bool_] | None = None,
    assortment_of: NDArray[np.integer] | None = None,
    item_counts: NDArray[np.integer] | None = None,
    count_users: int | None = None,
    features: Features | None = None,
    block: int = 1024,
) -> Evaluation:
    """Rank every user's candidates and find the held-out item among them.

    Parameters
    ----------
    scores:
        ``(n_users, n_items)``, higher is better, or a :data:`Scorer` that is asked for at most ``block`` users at a time.
    target:
        ``(n_users,)``, the held-out item of each user. It stays a candidate even if the user has met it before.
    seen:
        Per user the items that are not to be recommended again, in any order, repeats allowed.
    depth:
        How long the kept lists are; the largest ``k`` of metrics that need them.
    assortments, assortment_of:
        bool ``(n_assortments, n_items)`` and ``(n_users,)``: which items the user's silo sells. Others are never ranked.
    item_counts, count_users:
        ``(n_items,)``, how many of ``count_users`` training users met each item, for novelty.
    features:
        ``(n_items, dim)`` float item vectors or bool categories, for diversity.

    Raises
    ------
    DataError
        If shapes do not fit, or a held-out item is not in its user's assortment.
    ModelError
        If a score of a candidate is not a number.
    """
    targets = np.asarray(target, dtype=np.int64)
    n_users = len(targets)
    if len(seen) != n_users:
        raise DataError(f"{len(seen)} lists of seen items for {n_users} held-out items")
    if (assortments is None) != (assortment_of is None):
        raise DataError("assortments and assortment_of belong together: pass both or neither")
    silo = None if assortment_of is None else np.asarray(assortment_of, dtype=np.int64)
    if silo is not None and silo.shape != (n_users,):
        raise DataError(f"assortment_of has shape {silo.shape}, expected ({n_users},): one per user")

    above, tied, candidates = (np.zeros(n_users, dtype=np.int64) for _ in range(3))
    lists = np.full((n_users, depth), -1, dtype=np.int32)
    n_items = 0
    for users, values in _blocks(scores, n_users, block):
        n_items = values.shape[1]
        held_out, rows = targets[users], np.arange(len(users))
        _within("held-out item", held_out, n_items)
        if assortments is None or silo is None:
            open_ = np.ones(values.shape, dtype=np.bool_)
        else:
            open_ = _sold(assortments, silo[users], held_out, n_items)
        met = np.concatenate([np.asarray(seen[u], dtype=np.int64) for u in users])
        _within("seen item", met, n_items)
        open_[np.repeat(rows, [len(seen[u]) for u in users]), met] = False
        open_[rows, held_out] = True
        if np.isnan(values[open_]).any():
            raise ModelError("scores hold NaN: the model has diverged; lower the learning rate or clip gradients more")
        threshold = values[rows, held_out][:, None]
        above[users] = ((values > threshold) & open_).sum(axis=1)
        tied[users] = ((values == threshold) & open_).sum(axis=1) - 1
        candidates[users] = open_.sum(axis=1)
        lists[users] = top_k(values, depth, open_)
    return Evaluation(
        above=above,
        tied=tied,
        candidates=candidates,
        lists=lists,
        n_items=n_items,
        assortments=assortments,
        assortment_of=silo,
        information=None if item_counts is None else self_information(item_counts, count_users or n_users),
        features=features,
    )


def top_k(scores: NDArray[np.floating], k: int, allowed: NDArray[np.bool_] | None = None) -> NDArray[np.int32]:
    """The best ``k`` items per row, best first.

    Parameters
    ----------
    scores:
        ``(n_users, n_items)`` without NaN.
    allowed:
        bool, same shape; items that may be listed. None is all.

    Returns
    -------
    int32 ``(n_users, k)``; equal scores in the order of the catalogue, -1 where fewer than ``k`` items are allowed.
    """
    n_users, n_items = scores.shape
    width = min(k, n_items)
    out = np.full((n_users, k), -1, dtype=np.int32)
    if not n_users or not width:
        return out
    values = scores if allowed is None else np.where(allowed, scores, -np.inf)
    cut = np.partition(values, n_items - width, axis=1)[:, n_items - width, None]
    keep = values >= cut
    if allowed is not None:
        keep &= allowed
    row, item = np.nonzero(keep)
    order = np.lexsort((item, -values[row, item], row))
    row, item = row[order], item[order]
    place = np.arange(len(row)) - np.searchsorted(row, np.arange(n_users))[row]
    first = place < width
    out[row[first], place[first]] = item[first]
    return out


def self_information(item_counts: NDArray[np.integer], n_users: int) -> NDArray[np.float64]:
    """``-log2`` of the share of users who met an item, bits, ``(n_items,)``.

    One imaginary user who met everything is added, so that an item nobody met has ``log2(n_users + 1)`` bits, not infinity,
    and an item everybody met has 0.
    """
    met = np.minimum(np.asarray(item_counts, dtype=np.float64), n_users)
    return -np.log2((met + 1.0) / (n_users + 1.0))


def intra_list_diversity(lists: NDArray[np.integer], features: Features) -> NDArray[np.float64]:
    """One minus the mean similarity of the pairs in each list, ``(n_users,)`` (Ziegler et al., WWW 2005).

    Parameters
    ----------
    lists:
        ``(n_users, k)`` item positions, -1 for no item. A list of fewer than two items has diversity 0.
    features:
        ``(n_items, dim)``: bool is compared by Jaccard, anything else by cosine. An item without any feature is similar to
        nothing.
    """
    step = max(1, _BLOCK_CELLS // max(1, lists.shape[1] * features.shape[1]))
    parts = [_diversity(lists[start : start + step], features) for start in range(0, len(lists), step)]
    return np.concatenate([*parts, np.zeros(0)])


def _diversity(lists: NDArray[np.integer], features: Features) -> NDArray[np.float64]:
    shown = lists >= 0
    vectors = features[lists].astype(np.float32) * shown[..., None]
    products = vectors @ vectors.transpose(0, 2, 1)
    own = np.diagonal(products, axis1=1, axis2=2)
    if features.dtype == np.bool_:
        scale = own[:, :, None] + own[:, None, :] - products
    else:
        scale = np.sqrt(own[:, :, None] * own[:, None, :])
    similarity = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0).astype(np.float64)
    of_pairs = similarity.sum(axis=(1, 2)) - np.trace(similarity, axis1=1, axis2=2)
    n = shown.sum(axis=1)
    pairs = n * (n - 1)
    return np.where(pairs > 0, 1.0 - of_pairs / np.maximum(pairs, 1), 0.0)


def bootstrap_interval(
    values: ArrayLike, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile-bootstrap interval of the mean over users (Efron 1979).

    Parameters
    ----------
    values:
        ``(n_users,)`` or ``(n_users, n_metrics)``; rows are resampled, so metrics stay paired. To compare two models on the
        same users pass the difference of their columns.
    resamples, confidence, seed:
        Number of resamples, nominal coverage, and the seed of the resampling.

    Returns
    -------
    ``(low, high)``, each of shape ``values.shape[1:]``.
    """
    columns = np.asarray(values, dtype=np.float64)
    n = len(columns)
    if not n:
        raise DataError("there are no users to resample")
    if resamples < 1 or not 0 < confidence < 1:
        raise DataError(f"bootstrap: resamples = {resamples} must be at least 1, confidence = {confidence} within (0, 1)")
    rng = np.random.default_rng(seed)
    flat = columns.reshape(n, -1)
    means = np.empty((resamples, flat.shape[1]))
    chunk = max(1, _BLOCK_CELLS // n)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        times_drawn = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means[start : start + size] = times_drawn @ flat / n
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    return low.reshape(columns.shape[1:]), high.reshape(columns.shape[1:])


def _blocks(scores: Any, n_users: int, block: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.floating]]]:
    """Users and their scores, few enough at a time."""
    size = max(1, block)
    if not callable(scores):
        if scores.ndim != 2 or len(scores) != n_users:
            raise DataError(f"scores have shape {scores.shape}, expected ({n_users}, n_items): one row per held-out item")
        size = max(1, _BLOCK_CELLS // max(1, scores.shape[1]))
    for start in range(0, n_users, size):
        users = np.arange(start, min(start + size, n_users), dtype=np.int64)
        values = scores(users) if callable(scores) else scores[start : start + size]
        if values.ndim != 2 or len(values) != len(users):
            raise DataError(f"the scorer answered with shape {values.shape} for {len(users)} users")
        yield users, values


def _sold(
    assortments: NDArray[np.bool_], silo: NDArray[np.int64], held_out: NDArray[np.int64], n_items: int
) -> NDArray[np.bool_]:
    """A fresh mask ``(len(silo), n_items)`` of what each user's silo sells."""
    if assortments.shape[1] != n_items:
        raise DataError(f"assortments are over {assortments.shape[1]} items, scores over {n_items}")
    sold = assortments[silo]
    outside = np.flatnonzero(~sold[np.arange(len(silo)), held_out])
    if len(outside):
        item, at = int(held_out[outside[0]]), int(silo[outside[0]])
        raise DataError(f"held-out item {item} is not in assortment {at} of its user, so it cannot be ranked")
    return sold


def _within(what: str, items: NDArray[np.int64], n_items: int) -> None:
    if len(items) and (items.min() < 0 or items.max() >= n_items):
        raise DataError(f"a {what} lies outside the {n_items} items that were scored")
