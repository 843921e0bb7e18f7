"""What a question to the coordinator's service may hold of a person's history: few items, in coarse order, some of them false.

A history is capped to its newest items, cut into buckets by recency, shuffled within each, and padded to a fixed number of slots.
The order between buckets stays, because a sequence model answers by what is recent. Each item can be replaced by a random one
(k-ary randomised response: Warner 1965; Kairouz, Bonawitz, Ramage 2016).

This does not make a person anonymous. Two questions of one person share items, and items that few people met link them:
``silorec bench linkage`` measures how often, docs/serving.md says what is left. Whoever cannot bear that ranks locally.
"""

from __future__ import annotations

import hmac
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from typing import Final

from common.errors import ServingError
from common.recommending import PAD, SLOTS

__all__ = ["PAD", "SECRET_BYTES", "SLOTS", "Protection", "protect", "secret_of"]

SECRET_BYTES: Final = 32
"""Length of a secret for permanent replacement; a silo's key has at least as many bytes."""

_COIN, _FILL = b"silorec replacement 1", b"silorec filling 1"
_UNIT: Final = 2.0**-53


@dataclass(frozen=True)
class Protection:
    """How much of a history a question shows.

    Parameters
    ----------
    cap:
        Newest items that are shown, 1 to :data:`SLOTS`.
    buckets:
        Sizes of the recency buckets from the newest on; what is left of the capped history is one more bucket, the oldest.
        ``()`` shuffles everything, ``(1,) * cap`` keeps the whole order.
    replacement:
        Probability with which each item is replaced by one drawn uniformly from the catalogue (which may be the same item).
    fill:
        Whether a shorter history is filled up to ``cap`` with random items, as its oldest, so that its length does not show. An
        empty one stays empty: it says only that the person is new.

    Raises
    ------
    ServingError
        If a value is impossible.
    """

    # The knee between people linked and validation NDCG@10 on MovieLens-100K: silorec bench linkage --run runs/ml-100k-reference.
    # The cap is clear (the best settings all show 3 items), the probability is not: other draws put the knee at another one.
    cap: int = 3
    buckets: tuple[int, ...] = (1, 3)
    replacement: float = 0.05
    fill: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.cap <= SLOTS:
            raise ServingError(f"a question shows 1 to {SLOTS} items of a history, not {self.cap}: choose another cap")
        if any(size < 1 for size in self.buckets):
            raise ServingError(f"recency buckets of sizes {self.buckets}: each holds at least one item")
        if not 0.0 <= self.replacement <= 1.0:
            raise ServingError(f"items are replaced with a probability between 0 and 1, not {self.replacement}")

    def epsilon_per_item(self, n_items: int) -> float:
        """ε of local differential privacy of one shown item, in nats, ``inf`` without replacement.

        An item stays with probability 1 - p + p/n and becomes any given other one with p/n, hence ε = ln(1 + n (1 - p) / p). It
        adds up over the items of a question and, unless replacement is permanent, over questions: a weak promise.
        """
        if self.replacement == 0.0:
            return math.inf
        return math.log1p(n_items * (1.0 - self.replacement) / self.replacement)


def secret_of(silo_key: bytes, user: str) -> bytes:
    """A user's secret for permanent replacement, 32 bytes, derived from a key that never leaves the silo (HMAC-SHA-256)."""
    if len(silo_key) < SECRET_BYTES:
        raise ServingError(f"a silo's key for replacements has at least {SECRET_BYTES} bytes, not {len(silo_key)}")
    return hmac.digest(silo_key, b"silorec user 1\x00" + user.encode(), "sha256")


def protect(
    history: Sequence[int],
    n_items: int,
    protection: Protection | None = None,
    rng: Random | None = None,
    *,
    secret: bytes | None = None,
) -> tuple[int, ...]:
    """The slots of one question.

    Parameters
    ----------
    history:
        Positions in the catalogue, oldest first; an item may occur more than once.
    n_items:
        Items in the catalogue.
    protection:
        What is shown; the measured default if None.
    rng:
        Source of randomness; the operating system's if None, as in production. Tests and simulations pass ``Random(seed)``.
    secret:
        A user's secret (:func:`secret_of`) makes replacement *permanent* (memoised, Erlingsson, Pihur, Korolova 2014, section 3):
        the same item is replaced by the same item in every question, so that many questions do not average the replacements
        out. The false items then recur like true ones and link questions. Shuffles stay fresh.

    Returns
    -------
    tuple of :data:`SLOTS` int
        Oldest bucket first, :data:`PAD` only at the end. Replacement can make an item occur twice: drawing again until all differ
        would make the false items depend on the true ones.

    Raises
    ------
    ServingError
        If an item lies outside the catalogue. The message does not name it.
    """
    protection = protection or Protection()
    rng = rng or secrets.SystemRandom()
    if not 1 <= n_items < PAD:
        raise ServingError(f"a catalogue of {n_items} items cannot be asked for: it has 1 to {PAD - 1}")
    if secret is not None and len(secret) != SECRET_BYTES:
        raise ServingError(f"a secret for permanent replacement has {SECRET_BYTES} bytes, not {len(secret)}")
    newest = [int(item) for item in history[-protection.cap :]]
    if any(not 0 <= item < n_items for item in newest):
        raise ServingError(f"an item of the history is not in the catalogue of {n_items} items: send positions in this catalogue")
    if protection.replacement > 0.0:
        newest = [_replaced(item, n_items, protection.replacement, rng, secret) for item in newest]
    if protection.fill and newest:
        missing = range(protection.cap - len(newest))
        newest = [
            _drawn(n_items, rng) if secret is None else _derived(secret, _FILL, place, n_items)[1] for place in missing
        ] + newest
    shown = [item for bucket in _buckets(newest, protection.buckets) for item in _shuffled(bucket, rng)]
    return (*shown, *[PAD] * (SLOTS - len(shown)))


def _replaced(item: int, n_items: int, probability: float, rng: Random, secret: bytes | None) -> int:
    """The item, or with that probability a uniformly random one."""
    if secret is None:
        return _drawn(n_items, rng) if rng.random() < probability else item
    coin, other = _derived(secret, _COIN, item, n_items)
    return other if coin < probability else item


def _derived(secret: bytes, purpose: bytes, number: int, n_items: int) -> tuple[float, int]:
    """A coin in [0, 1) and an item, both functions of the secret; the item's bias is below ``n_items`` / 2**128."""
    digest = hmac.digest(secret, purpose + number.to_bytes(8, "big") + n_items.to_bytes(8, "big"), sha256)
    return (int.from_bytes(digest[:8], "big") >> 11) * _UNIT, int.from_bytes(digest[8:24], "big") % n_items


def _drawn(n_items: int, rng: Random) -> int:
    return rng.randrange(n_items)


def _buckets(items: list[int], sizes: Sequence[int]) -> list[list[int]]:
    """The items cut from the newest on, oldest bucket first."""
    out, end = [], len(items)
    for size in sizes:
        out.append(items[max(0, end - size) : end])
        end = max(0, end - size)
    out.append(items[:end])
    return out[::-1]


def _shuffled(items: list[int], rng: Random) -> list[int]:
    rng.shuffle(items)
    return items
