"""From scores to a list: what may be recommended, what a shop adds to a score, and how much the items of a list may be alike."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from common.bundle.contents import ItemTable
from common.data.catalogue import Catalogue
from common.engine.queries import refuse_unknown
from common.engine.requests import Request
from common.errors import ServingError

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

POOL = 5
"""Diversity chooses among this many times k items, :data:`POOL_LEAST` at least."""

POOL_LEAST = 100


class Filters:
    """Which items of a catalogue a request leaves."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.n_items = len(catalogue)
        members: dict[str, list[int]] = {}
        for position, names in enumerate(catalogue.categories):
            for name in names:
                members.setdefault(name, []).append(position)
        self._members = {name: np.array(rows, dtype=np.int32) for name, rows in members.items()}

    @property
    def categories(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._members))

    def check(self, request: Request) -> None:
        """Raise :class:`ServingError` if the request speaks of items or categories that the catalogue lacks."""
        groups: tuple[tuple[str, Collection[int]], ...] = (
            ("history", request.history),
            ("allow", request.allow or ()),
            ("deny", request.deny),
            ("boost", request.boost),
        )
        for what, positions in groups:
            if positions and not (min(positions) >= 0 and max(positions) < self.n_items):
                refuse_unknown(next(i for i in positions if not 0 <= i < self.n_items), self.n_items, what)
        for name in sorted(request.categories - self._members.keys()):
            near = get_close_matches(name, self._members, n=3)
            hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"the first are {list(self.categories[:5])}"
            raise ServingError(f"categories: no item is of {name!r}; {hint}")

    def mask(self, request: Request) -> Mask | None:
        """``(n_items,)`` true where an item may be recommended; None if all may."""
        chosen: Mask | None = None
        if request.allow is not None:
            chosen = np.zeros(self.n_items, dtype=np.bool_)
            chosen[list(request.allow)] = True
        if request.categories:
            of_them = np.zeros(self.n_items, dtype=np.bool_)
            for name in request.categories:
                of_them[self._members[name]] = True
            chosen = of_them if chosen is None else chosen & of_them
        if without := refused(request):
            chosen = np.ones(self.n_items, dtype=np.bool_) if chosen is None else chosen
            chosen[list(without)] = False
        return chosen


def refused(request: Request) -> frozenset[int]:
    """Items that are left out by name: denied, or seen."""
    return request.deny | frozenset(request.history) if request.exclude_seen else request.deny


def boosted(scores: Floats, request: Request) -> Floats:
    """``scores`` ``(n_items,)`` with the request's nats, in place."""
    if request.boost:
        scores[list(request.boost)] += np.fromiter(request.boost.values(), dtype=np.float32, count=len(request.boost))
    return scores


def pool_size(request: Request) -> int:
    """How many of the best items are needed to answer a request."""
    return request.k if request.diversity == 0 else max(POOL_LEAST, POOL * request.k)


def diversified(items: ItemTable, candidates: NDArray[np.integer], scores: Floats, k: int, diversity: float) -> NDArray[np.intp]:
    """Maximal marginal relevance (Carbonell & Goldstein 1998): ``k`` items one by one, each by its score and its novelty.

    The next item is that with the largest ``(1 - diversity) · r_i - diversity · max_j cos(x_i, x_j)``, ``j`` over those already
    chosen, ``x`` the text columns of the item vectors. ``r`` are the scores of the candidates brought to 0 … 1, so that both
    terms are on one scale whatever the model's: 1 is the best candidate, 0 the last. The first item is the best.

    Parameters
    ----------
    candidates, scores:
        ``(m,)`` positions and their scores, best first.

    Returns
    -------
    Places in ``candidates``, ``min(k, m)`` of them, in the order of choice; ties go to the better score.
    """
    count = min(k, len(candidates))
    if diversity == 0 or count == 0:
        return np.arange(count)
    text = items.rows(candidates)[:, : items.text_dim]
    norms = np.linalg.norm(text, axis=1, keepdims=True)
    text = np.divide(text, norms, out=np.zeros_like(text), where=norms > 0)
    spread = float(scores[0] - scores[-1])
    relevance = (scores - scores[-1]) / spread if spread > 0 else np.zeros_like(scores)
    chosen = np.zeros(count, dtype=np.intp)
    nearest = text @ text[0]
    left = np.ones(len(candidates), dtype=np.bool_)
    left[0] = False
    for place in range(1, count):
        gain = np.where(left, (1 - diversity) * relevance - diversity * nearest, -np.inf)
        best = int(np.argmax(gain))
        chosen[place], left[best] = best, False
        np.maximum(nearest, text @ text[best], out=nearest)
    return chosen
