"""Which column of a file, or a query, is the user, the item, the time: from a mapping that a person wrote, else from its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.data.readers.delimited import UNITS_PER_SECOND
from common.errors import DataError

# Names as they are found in public data sets, the likelier first; compared without case, "_", "-" and blanks.
KNOWN_NAMES: Mapping[str, tuple[str, ...]] = {
    "user": ("user", "user_id", "uid", "reviewer_id", "customer_id", "session_id"),
    "item": ("item", "item_id", "iid", "movie_id", "parent_asin", "asin", "product_id", "news_id", "article_id", "business_id"),
    "time": ("time", "timestamp", "ts", "date", "datetime", "unix_review_time"),
    "value": ("value", "rating", "score", "stars", "overall", "count", "weight"),
    "text": ("text", "review", "review_text", "comment"),
    "title": ("title", "movie_title", "item_name", "product_name", "name"),
    "categories": ("categories", "category", "genres", "genre", "class"),
    "year": ("year", "release_year"),
    "description": ("description", "abstract"),
}
OPTIONS = ("items", "time_unit", "category_separator")


class ColumnMapping:
    """Our names to a file's; ``source`` is the word for it in messages.

    ``items`` names a separate file of items (relative to the interactions), ``time_unit`` the unit of numeric times (s, ms,
    us, ns), ``category_separator`` what stands between the categories of one item. An empty name says that there is no such
    column; an empty ``time`` takes the order of the file.

    Raises
    ------
    DataError
        For a name that is not ours, or an unknown unit.
    """

    def __init__(self, mapping: Mapping[str, str], source: str = "file") -> None:
        self._source = source
        allowed = (*KNOWN_NAMES, *OPTIONS)
        for ours in mapping:
            if ours not in allowed:
                raise DataError(f"unknown column {ours!r} in the column mapping; allowed are: {', '.join(allowed)}")
        self._mapping = dict(mapping)
        self.time_unit = mapping.get("time_unit", "s")
        if self.time_unit not in UNITS_PER_SECOND:
            raise DataError(f"time_unit is {self.time_unit!r}; allowed are: {', '.join(UNITS_PER_SECOND)}")
        self.category_separator = mapping.get("category_separator") or None

    def items_file(self, beside: Path) -> Path | None:
        """The separate file of items, if one is named."""
        name = self._mapping.get("items")
        if not name:
            return None
        folder = beside if beside.is_dir() else beside.parent
        path = folder / name
        if not path.is_file():
            raise DataError(f"the file of items, {name!r}, does not exist there", folder)
        return path

    def find(self, ours: str, header: Sequence[str], path: Path, *, required: bool = False, key: bool = False) -> str | None:
        """The file's name of a column; None if it has none and none is required.

        ``key`` is for files of items or users, which may call their id otherwise than the interactions do: there a mapped name
        that is missing is no error, and plain ``id`` is known too.

        Raises
        ------
        DataError
            If the column is required, or named in the mapping, and the file does not have it.
        """
        if ours in self._mapping and not (key and self._mapping[ours] not in header):
            name = self._mapping[ours]
            if name in header:
                return name
            if name:
                raise DataError(f"missing column {name!r} (for {ours}); the {self._source} has: {', '.join(header)}", path, 1)
            if ours != "time" and required:
                raise DataError(f"the column for {ours} cannot be left out", path)
            return None
        plain = {_plain(name): name for name in reversed(header)}
        for known in (*KNOWN_NAMES[ours], "id") if key else KNOWN_NAMES[ours]:
            if _plain(known) in plain:
                return plain[_plain(known)]
        if required:
            hint = "; an empty name takes the order of the file" if ours == "time" and self._source == "file" else ""
            message = (
                f"missing column for {ours!r}; the {self._source} has: {', '.join(header)}. Name it in the column mapping{hint}"
            )
            raise DataError(message, path, 1)
        return None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()
