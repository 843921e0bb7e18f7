"""Items that come after training: vectors from their texts, and a guess at what training would have found.

A new item's text vector is the encoder's. Its factor and its bias are predicted from that by ridge regression on the items that
the model knows (attribute-to-factor mapping, Gantner et al. 2010), so that it can be recommended at once.

A prediction is the middle of what an item could be, and the first places go to items that are far from the middle: left at that,
new items would never be seen. What counts is not the expected score but the expected probability, which is larger (Jensen), so
all new items get the same number of nats more: as many as known items need, each predicted from all others, to be as probable
together as they are (:func:`shortfall`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.bundle.contents import Bundle, ItemTable
from common.bundle.files import write_bundle
from common.data.catalogue import Catalogue
from common.engine.queries import QueryModel
from common.engine.walks import walks
from common.errors import BundleError
from common.model.encoder import item_vectors
from common.privacy.signing import SigningKey

Floats = NDArray[np.float64]

PENALTIES = tuple(float(10.0**power) for power in np.arange(-3.0, 5.5, 0.5))
"""Ridge penalties of which the best by leave-one-out is taken."""

_WALKS, _PICKED = 512, 20_000

ALIKE = 0.98
"""Least mean cosine between the bundle's text vectors and the encoder's, else it is another encoder."""


@dataclass(frozen=True, eq=False)
class Ridge:
    """Linear prediction ``mean + (x - centre) @ weights`` of several targets.

    ``left_out`` ``(n, m)`` is each row's prediction from all other rows, ``error`` the mean square of what that misses.
    """

    centre: Floats
    weights: Floats
    mean: Floats
    penalty: float
    error: float
    left_out: Floats

    def __call__(self, x: NDArray[np.floating]) -> Floats:
        return self.mean + (x - self.centre) @ self.weights


def fit_ridge(x: NDArray[np.floating], y: NDArray[np.floating], penalties: Sequence[float] = PENALTIES) -> Ridge:
    """Ridge regression with the penalty of least leave-one-out error.

    Parameters
    ----------
    x, y:
        ``(n, d)`` and ``(n, m)``; an intercept is fitted beside.

    Notes
    -----
    The error of predicting a row from all others is its residual over ``1 - h``, ``h`` its leverage (Allen 1974), so nothing is
    fitted twice; the intercept is not penalised, and its leverage is ``1/n``.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    centre, mean = x.mean(0), y.mean(0)
    left, singular, right = np.linalg.svd(x - centre, full_matrices=False)
    target = left.T @ (y - mean)
    best: Ridge | None = None
    for penalty in penalties:
        shrink = singular**2 / (singular**2 + penalty)
        residual = (y - mean) - left @ (shrink[:, None] * target)
        leverage = (left**2 @ shrink) + 1.0 / len(x)
        missed = residual / np.maximum(1.0 - leverage, 1e-9)[:, None]
        error = float((missed**2).mean())
        if best is None or error < best.error:
            inverse = np.divide(singular, singular**2 + penalty)
            best = Ridge(centre, right.T @ (inverse[:, None] * target), mean, penalty, error, y - missed)
    assert best is not None
    return best


def add_items(bundle: Bundle, new: Catalogue, path: Path, key: SigningKey, *, encoder: str | None = None) -> str:
    """Write ``bundle`` with the items of ``new`` after its own, signed with ``key``; returns the digest.

    Old items keep their positions, vectors and biases to the bit.

    Raises
    ------
    BundleError
        If an id is in the catalogue already, there is nothing to add, or the encoder is not the bundle's.
    """
    if not len(new):
        raise BundleError("there is no item to add")
    if known := [name for name in new.ids if name in bundle.catalogue.index]:
        raise BundleError(f"item {known[0]!r} is in the bundle already; {len(known)} of the new ones are")
    catalogue = joined(bundle.catalogue, new)
    n = len(bundle.catalogue)
    vectors = item_vectors(catalogue, encoder or bundle.card.training.encoder).astype(np.float64)
    table = bundle.items
    trained = slice(0, n - bundle.card.added_items)
    known_rows = table.rows(np.arange(n)).astype(np.float64)
    text = _in_bundle(vectors, known_rows[:, : table.text_dim], trained)
    factor = fit_ridge(text[trained], known_rows[trained, table.text_dim :])
    bias = fit_ridge(text[trained], table.biases[trained, None])
    rows = np.concatenate([text[n:], factor(text[n:])], axis=1).astype(np.float32)
    guessed = np.concatenate([known_rows[trained, : table.text_dim], factor.left_out], axis=1)
    more = shortfall(bundle, guessed, bias.left_out[:, 0])
    fresh = ItemTable.quantised(rows, (bias(text[n:])[:, 0] + more).astype(np.float32), table.text_dim)
    items = ItemTable(
        np.concatenate([table.vectors, fresh.vectors]),
        np.concatenate([table.scales, fresh.scales]),
        np.concatenate([table.biases, fresh.biases]),
        table.text_dim,
    )
    card = bundle.card.model_copy(update={"added_items": bundle.card.added_items + len(new)})
    return write_bundle(path, card=card, catalogue=catalogue, items=items, model=bundle.model, key=key)


def shortfall(bundle: Bundle, rows: Floats, biases: Floats) -> float:
    """By how many nats guessed scores of the first ``n`` items are too low for these items to be as probable as they are.

    The probabilities are the model's, on histories that it makes up itself (:func:`common.engine.walks.walks`).

    Parameters
    ----------
    rows, biases:
        ``(n, dim)`` and ``(n,)``, what would be guessed of each item if it were new.

    Returns
    -------
    ``-log`` of the guessed scores' share: positive where guesses are too low.
    """
    n, table = len(rows), bundle.items
    known_items = ItemTable(table.vectors[:n], table.scales[:n], table.biases[:n], table.text_dim)
    model = QueryModel(replace(bundle.scoring, items=known_items))
    picked = np.sort(np.random.default_rng(0).choice(n, min(n, _PICKED), replace=False))
    queries = model.queries(*model.padded(walks(model, _WALKS))).astype(np.float64)
    known = queries @ bundle.items.rows(picked).T.astype(np.float64) + bundle.items.biases[picked]
    guessed = queries @ rows[picked].T + biases[picked]
    highest = known.max(1, keepdims=True)
    shares = np.exp(guessed - highest).sum(1) / np.exp(known - highest).sum(1)
    return float(-np.log(shares.mean()))


def joined(old: Catalogue, new: Catalogue) -> Catalogue:
    """Both, one after the other; a text column that one lacks is empty there."""
    names = [*old.fields, *(name for name in new.fields if name not in old.fields)]
    return replace(
        old,
        ids=old.ids + new.ids,
        titles=old.titles + new.titles,
        categories=old.categories + new.categories,
        fields={
            name: tuple(old.fields.get(name, ("",) * len(old))) + tuple(new.fields.get(name, ("",) * len(new))) for name in names
        },
    )


def _in_bundle(encoded: Floats, known: Floats, trained: slice) -> Floats:
    """Text vectors of all items in the bundle's axes, which may be turned and cut; found from the items that it holds."""
    axes = np.linalg.lstsq(encoded[trained], known[trained], rcond=1e-6)[0] if known.shape[1] != encoded.shape[1] else None
    text = encoded if axes is None else encoded @ axes
    lengths = np.linalg.norm(text[trained], axis=1) * np.linalg.norm(known[trained], axis=1)
    alike = (text[trained] * known[trained]).sum(1) / np.maximum(lengths, 1e-12)
    if alike.mean() < ALIKE:
        raise BundleError(f"the text encoder does not give this bundle's vectors (mean cosine {alike.mean():.2f}): say --encoder")
    return text
