"""The public catalogue: what can be recommended, and the words that describe it.

A catalogue is public by definition (see the privacy model in the docs): it may be shipped, cached and shown. It holds no
counts, no popularity and nothing else derived from users.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items in a fixed order; position ``i`` is the item's index everywhere else.

    Parameters
    ----------
    ids:
        Unique, non-empty item ids, length ``n_items``.
    titles:
        One non-empty title per item.
    categories:
        Genres, topics or product categories per item, broadest or first-named first; may be empty tuples.
    fields:
        Further text columns by name (``year``, ``description``, ``store``), each of length ``n_items``, ``""`` where unknown.
    name:
        What to call this catalogue in reports.

    Raises
    ------
    DataError
        If lengths differ, an id repeats, or an id or title is empty.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    name: str = "catalogue"

    def __post_init__(self) -> None:
        n = len(self.ids)
        for what, column in {"titles": self.titles, "categories": self.categories, **self.fields}.items():
            if len(column) != n:
                raise DataError(f"catalogue {self.name}: {len(column)} {what} for {n} items")
        if len(self.index) != n:
            seen: set[str] = set()
            again = next(i for i in self.ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise DataError(f"catalogue {self.name}: item id {again!r} appears twice")
        for item_id, title in zip(self.ids, self.titles, strict=True):
            if not item_id or not title:
                raise DataError(f"catalogue {self.name}: item {item_id!r} has an empty id or title")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """Item id to position."""
        return {item_id: i for i, item_id in enumerate(self.ids)}

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """One description per item, the input of the text encoder: title, year, categories, then other fields."""
        out = []
        years = self.fields.get("year", ("",) * len(self))
        for i, (title, year) in enumerate(zip(self.titles, years, strict=True)):
            parts = [f"{title} ({year})" if year and year not in title else title]
            if self.categories[i]:
                parts.append(", ".join(self.categories[i]))
            parts += [column[i] for name, column in self.fields.items() if name != "year" and column[i]]
            out.append(". ".join(parts))
        return tuple(out)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over ids and texts in order: what has to agree for item parameters to mean the same."""
        digest, encode = hashlib.sha256(), json.JSONEncoder(ensure_ascii=False).encode
        for item_id, text in zip(self.ids, self.texts, strict=True):
            digest.update(encode([item_id, text]).encode())
        return digest.hexdigest()

    def category_matrix(self) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
        """Multi-hot categories ``(n_items, n_categories)`` and the sorted category names."""
        names = tuple(sorted({c for row in self.categories for c in row}))
        column = {c: j for j, c in enumerate(names)}
        out = np.zeros((len(self), len(names)), dtype=np.bool_)
        for i, row in enumerate(self.categories):
            out[i, [column[c] for c in row]] = True
        return out, names

    def select(self, positions: Sequence[int] | NDArray[np.integer]) -> Catalogue:
        """The items at ``positions``, in that order."""
        rows = [int(i) for i in positions]
        return Catalogue(
            ids=tuple(self.ids[i] for i in rows),
            titles=tuple(self.titles[i] for i in rows),
            categories=tuple(self.categories[i] for i in rows),
            fields={name: tuple(column[i] for i in rows) for name, column in self.fields.items()},
            name=self.name,
        )
