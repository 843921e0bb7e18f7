"""Blocks of rows become one set of integer columns; ids are numbered in the order of their first appearance.

At no time are the rows of a file held as Python objects: of each block only its distinct ids are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.catalogue import Catalogue
from common.data.interactions import Interactions
from common.data.readers.items import CatalogueBuilder
from common.data.readers.reading import Reading
from common.errors import DataError


@dataclass(frozen=True)
class Coded:
    """A column of ids: the distinct ones in order of first appearance, and for each row the position among them."""

    names: list[str]
    codes: NDArray[np.int32]

    @staticmethod
    def of(values: Sequence[str]) -> Coded:
        """Code a plain list of ids."""
        index: dict[str, int] = {}
        codes = np.fromiter((index.setdefault(v, len(index)) for v in values), dtype=np.int32, count=len(values))
        return Coded(list(index), codes)

    def first_rows(self) -> NDArray[np.int64]:
        """The row in which each distinct id appears first."""
        first = np.empty(len(self.names), dtype=np.int64)
        first[self.codes[::-1]] = np.arange(len(self.codes) - 1, -1, -1)
        return first


@dataclass(frozen=True)
class Rows:
    """Some consecutive rows as columns; ``titles`` and ``categories`` are aligned with ``item.names``, not with rows.

    ``time`` is in seconds, None where the order of the source is all there is.
    """

    user: Coded
    item: Coded
    time: NDArray[np.int64] | None
    value: NDArray[np.float32] | None = None
    text: list[str] | None = None
    titles: list[str] | None = None
    categories: list[tuple[str, ...]] | None = None


class Accumulator:
    """Collects rows and turns them into :class:`Interactions`.

    Parameters
    ----------
    reading:
        Says which values to keep and counts what is dropped.
    catalogue:
        The items that may occur. None builds a catalogue from the rows themselves.
    """

    def __init__(self, reading: Reading, catalogue: Catalogue | None = None, name: str = "catalogue") -> None:
        self._reading = reading
        self._catalogue = catalogue
        self._name = name
        self._users: dict[str, int] = {}
        self._items: dict[str, int] = {} if catalogue is None else catalogue.index
        self._new_items = CatalogueBuilder(reading, name=name)
        self._parts: dict[str, list[NDArray[np.generic]]] = {"user": [], "item": [], "time": [], "value": []}
        self._text: list[str] | None = None
        self._n_seen = 0

    def knows(self, item_id: str) -> bool:
        """Whether an interaction may name this item."""
        return self._catalogue is None or item_id in self._items

    def append(self, rows: Rows) -> None:
        """Take rows over; every item must be known and every number finite."""
        n = len(rows.user.codes)
        user = np.fromiter((self._users.setdefault(u, len(self._users)) for u in rows.user.names), dtype=np.int32)[
            rows.user.codes
        ]
        item = np.fromiter(self._item_codes(rows), dtype=np.int32)[rows.item.codes]
        time = rows.time if rows.time is not None else np.arange(self._n_seen, self._n_seen + n, dtype=np.int64)
        self._n_seen += n
        columns: dict[str, NDArray[np.generic]] = {"user": user, "item": item, "time": time}
        if rows.value is not None:
            columns["value"] = rows.value
        text = rows.text
        if self._reading.min_value is not None and rows.value is not None:
            keep = rows.value >= np.float32(self._reading.min_value)
            lost = int(n - keep.sum())
            if lost:
                lowest = float(rows.value.min())
                self._reading.drop(f"value below {self._reading.min_value:g}", lost, f"a value of {lowest:g}")
                columns = {name: column[keep] for name, column in columns.items()}
                text = None if text is None else [t for t, k in zip(text, keep, strict=True) if k]
        for name, column in columns.items():
            self._parts[name].append(column)
        if text is not None:
            self._text = text if self._text is None else self._text
            if self._text is not text:
                self._text.extend(text)

    def finish(self, source: Path) -> tuple[Interactions, Catalogue]:
        """All rows as interactions without repeated rows, and the catalogue that they refer to.

        Users are numbered in order of first appearance, or of their ids if the reading is ordered; those of whom no row is left
        are left out. Of rows that repeat each other the first counts.

        Raises
        ------
        DataError
            If nothing is left, or values are asked to be at least ``min_value`` and there are none.
        """
        has_value = bool(self._parts["value"])
        if self._reading.min_value is not None and not has_value:
            raise DataError("min_value is set, but these data have no values (ratings)", source)
        if not sum(len(part) for part in self._parts["user"]):
            counts = self._reading.dropped().counts
            why = "; dropped: " + ", ".join(f"{n} x {reason}" for reason, n in counts.items()) if counts else ""
            raise DataError(f"no interaction is left{why}", source)
        interactions = Interactions(
            user=self._column("user", np.int32),
            item=self._column("item", np.int32),
            time=self._column("time", np.int64),
            value=self._column("value", np.float32) if has_value else None,
            text=self._text,
            user_ids=tuple(self._users),
        )
        catalogue = self._catalogue if self._catalogue is not None else self._new_items.build(source)
        if self._reading.ordered:
            interactions = in_order(interactions, catalogue.ids)
        interactions = self._without_repeats(interactions, catalogue)
        return _without_idle_users(interactions), catalogue

    def _item_codes(self, rows: Rows) -> list[int]:
        if self._catalogue is not None:
            return [self._items[i] for i in rows.item.names]
        for k, item_id in enumerate(rows.item.names):
            if item_id not in self._items:
                self._items[item_id] = len(self._items)
                title = rows.titles[k] if rows.titles else ""
                self._new_items.put(item_id, title, rows.categories[k] if rows.categories else ())
        return [self._items[i] for i in rows.item.names]

    def _column(self, name: str, dtype: type[np.generic]) -> NDArray:
        parts = self._parts.pop(name)
        column = np.concatenate(parts).astype(dtype, copy=False)
        parts.clear()
        return column

    def _without_repeats(self, data: Interactions, catalogue: Catalogue) -> Interactions:
        repeated = repeats(data.user, data.item, data.time)
        if not len(repeated):
            return data
        first = int(repeated[0])
        example = f"item {catalogue.ids[int(data.item[first])]!r} again at time {int(data.time[first])}"
        self._reading.drop("same user, item and time as an earlier row", len(repeated), example)
        keep = np.ones(len(data), dtype=np.bool_)
        keep[repeated] = False
        return data.rows(keep)


def in_order(data: Interactions, item_ids: Sequence[str]) -> Interactions:
    """The same rows by user id, time, item id, value and text, users numbered by their ids: for sources without an order.

    Ids are compared as texts, character by character.
    """
    by_id = sorted(range(data.n_users), key=data.user_ids.__getitem__)
    user = _ranks(by_id)[data.user]
    item = _ranks(sorted(range(len(item_ids)), key=item_ids.__getitem__))[data.item]
    keys: tuple[NDArray[Any], ...] = (user, data.time, item) if data.value is None else (user, data.time, item, data.value)
    order = np.lexsort(keys[::-1])
    text = data.text
    if text is not None and len(order):
        same = np.ones(len(order) - 1, dtype=np.bool_)
        for key in keys:
            same &= key[order[1:]] == key[order[:-1]]
        bounds = np.flatnonzero(np.diff(same, prepend=False, append=False))
        for first, last in zip(bounds[::2], bounds[1::2], strict=True):
            order[first : last + 1] = sorted(order[first : last + 1], key=lambda row: text[int(row)])
    return replace(data.rows(order), user=user[order], user_ids=tuple(data.user_ids[code] for code in by_id))


def _ranks(order: list[int]) -> NDArray[np.int32]:
    ranks = np.empty(len(order), dtype=np.int32)
    ranks[order] = np.arange(len(order), dtype=np.int32)
    return ranks


def repeats(user: NDArray[np.int32], item: NDArray[np.int32], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions, ascending, of the rows that equal an earlier row in user, item and time.

    Rows are compared by a 64-bit hash first, which needs 16 bytes a row; only rows whose hash occurs again are compared
    in full.
    """
    hashed = user.astype(np.uint64)
    hashed <<= np.uint64(32)
    hashed |= item.astype(np.uint64)
    _mix(hashed)
    hashed += time.view(np.uint64) if time.flags.c_contiguous else time.astype(np.uint64)
    _mix(hashed)
    ordered = np.sort(hashed)
    again = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if not len(again):
        return np.empty(0, dtype=np.int64)
    rows = np.flatnonzero(np.isin(hashed, again))
    rows = rows[np.lexsort((rows, time[rows], item[rows], user[rows]))]
    a, b = rows[:-1], rows[1:]
    same = (user[a] == user[b]) & (item[a] == item[b]) & (time[a] == time[b])
    return np.sort(b[same]).astype(np.int64)


def _mix(x: NDArray[np.uint64]) -> None:
    """The finaliser of SplitMix64, in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)


def _without_idle_users(data: Interactions) -> Interactions:
    present = np.bincount(data.user, minlength=data.n_users) > 0
    if present.all():
        return data
    renumber = np.cumsum(present, dtype=np.int32) - np.int32(1)
    ids = tuple(u for u, p in zip(data.user_ids, present, strict=True) if p)
    return replace(data, user=renumber[data.user].astype(np.int32), user_ids=ids)
