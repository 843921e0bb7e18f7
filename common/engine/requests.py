"""What the engine is asked and what it answers, as values that check themselves.

Nothing here says who asks: a request is a list of items and some wishes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import index
from types import MappingProxyType
from typing import Any, Final, Literal

from common.errors import ServingError

K_MOST: Final = 1000
"""Items in an answer, at most."""


@dataclass(frozen=True)
class Request:
    """One question to :meth:`common.engine.Engine.recommend`.

    Parameters
    ----------
    history:
        Positions in the catalogue, oldest first. The model reads the newest of them, as many as its window holds; all of them
        count as seen. Empty for somebody of whom nothing is known: the answer is then what is popular.
    k:
        Items wanted, 1 … :data:`K_MOST`; fewer come back where filters leave fewer.
    exclude_seen:
        Leave out what is in ``history``.
    allow:
        Positions that may be recommended; None for all, the empty set for none.
    deny:
        Positions that may not.
    categories:
        Only items of any of these categories; empty for all.
    diversity:
        0 … 1: how much an item's unlikeness to those before it counts beside its score, see
        :func:`common.engine.ranking.diversified`. 0 ranks by score alone.
    boost:
        Nats to add to the scores of items, by position: with 0.69 an item counts as twice as likely as the model says.
    explain:
        Give reasons; see :mod:`common.engine.explanation`.

    Raises
    ------
    ServingError
        If a value is out of its range or not of its type. Whether positions and categories exist is for the engine to say, which
        knows the catalogue.
    """

    history: tuple[int, ...] = ()
    k: int = 10
    exclude_seen: bool = True
    allow: frozenset[int] | None = None
    deny: frozenset[int] = frozenset()
    categories: frozenset[str] = frozenset()
    diversity: float = 0.0
    boost: Mapping[int, float] = field(default_factory=dict)
    explain: bool = False

    def __post_init__(self) -> None:
        keep = object.__setattr__  # a frozen value is normalised once, here
        keep(self, "history", _positions("history", self.history))
        keep(self, "k", _integer("k", self.k))
        if not 1 <= self.k <= K_MOST:
            raise ServingError(f"k = {self.k}: between 1 and {K_MOST} items can be asked for")
        if self.allow is not None:
            keep(self, "allow", frozenset(_positions("allow", self.allow)))
        keep(self, "deny", frozenset(_positions("deny", self.deny)))
        if isinstance(self.categories, str) or not all(isinstance(name, str) for name in self.categories):
            raise ServingError("categories: a set of names is expected")
        keep(self, "categories", frozenset(self.categories))
        keep(self, "diversity", _number("diversity", self.diversity))
        if not 0 <= self.diversity <= 1:
            raise ServingError(f"diversity = {self.diversity:g}: it goes from 0, by score alone, to 1, by novelty alone")
        if not isinstance(self.boost, Mapping):
            raise ServingError("boost: a mapping from an item's position to nats is expected")
        nats = [_number("boost", value) for value in self.boost.values()]
        boost = dict(zip(_positions("boost", self.boost), nats, strict=True))
        keep(self, "boost", MappingProxyType(boost))


ReasonKind = Literal["pool", "left out"]
"""How a :class:`Reason` was computed: an exact share of the score, or the change when the item is left out."""


@dataclass(frozen=True)
class Reason:
    """What one item of the history did to the score of a recommended one.

    ``kind`` says what ``contribution`` (nats) is. ``pool``: the item's exact share of the score by way of the pooled text
    vectors; these add up to :attr:`Recommended.pool`. ``left out``: the score less what it would be had the item not been in the
    history; these count what the sequence model makes of the item as well, and need not add up to anything.
    """

    position: int
    id: str
    title: str
    contribution: float
    kind: ReasonKind


@dataclass(frozen=True)
class Recommended:
    """One item of an answer: ``score = popularity + pool + sequence + boost``, all in nats.

    Parameters
    ----------
    position, id, title:
        In the catalogue.
    score:
        What it was ranked by, except where the request asked for diversity.
    reasons:
        One for each different item that the model read of the history, the largest contribution first; empty unless the request
        asked to explain.
    popularity:
        The item's bias: what it would score for somebody of whom nothing is known.
    sequence:
        What the sequence model adds beside the pool.
    pool:
        What likeness to the text of the history adds.
    boost:
        What the request added.
    """

    position: int
    id: str
    title: str
    score: float
    reasons: tuple[Reason, ...]
    popularity: float
    sequence: float
    pool: float = 0.0
    boost: float = 0.0


def _positions(what: str, values: Iterable[Any]) -> tuple[int, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ServingError(f"{what}: positions in the catalogue are expected, whole numbers from 0")
    return tuple(_integer(what, value) for value in values)


def _integer(what: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return index(value)  # NumPy's integers as well
    except TypeError:
        raise ServingError(f"{what}: a whole number is expected, not a {type(value).__name__}") from None


def _number(what: str, value: Any) -> float:
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ServingError(f"{what}: a number is expected, not a {type(value).__name__}") from None
    if not math.isfinite(number):
        raise ServingError(f"{what}: a finite number is expected, not {number}")
    return number
