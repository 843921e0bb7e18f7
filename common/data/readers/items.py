"""Rows of item files become a :class:`Catalogue`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from common.data.catalogue import Catalogue
from common.data.readers.reading import Reading
from common.errors import DataError

MAX_FIELD_CHARACTERS = 1000
"""Longer descriptions are cut here: text encoders read fewer words, and catalogues of millions stay in memory."""

NO_CATEGORY = frozenset({"", "unknown", "(no genres listed)"})
_TITLE_YEAR = re.compile(r"(?P<title>.*\S)\s*\((?P<year>\d{4})\)\s*", re.DOTALL)


class CatalogueBuilder:
    """Collects items one by one.

    An item without a title is called by its id, so that it can still be recommended.
    """

    def __init__(self, reading: Reading, name: str = "catalogue") -> None:
        self._reading = reading
        self._name = name
        self._titles: dict[str, str] = {}
        self._categories: list[tuple[str, ...]] = []
        self._fields: dict[str, dict[int, str]] = {}

    def add(self, path: Path, line: int, item_id: str, title: str, categories: tuple[str, ...] = (), **fields: str) -> None:
        """An item from a row of a file; refused if its id is empty or was there before."""
        if not item_id:
            self._reading.refuse("empty item id", path, line)
        elif item_id in self._titles:
            self._reading.refuse("item id appears twice", path, line, repr(item_id))
        else:
            self.put(item_id, title, categories, **fields)

    def put(self, item_id: str, title: str, categories: tuple[str, ...] = (), **fields: str) -> None:
        """An item whose id is known to be new."""
        for name, text in fields.items():
            if text:
                self._fields.setdefault(name, {})[len(self._titles)] = text
        self._titles[item_id] = title.strip() or item_id
        self._categories.append(categories)

    def build(self, source: Path) -> Catalogue:
        """The catalogue, items in the order of the source.

        Raises
        ------
        DataError
            If there is no item.
        """
        n = len(self._titles)
        if not n:
            raise DataError("no item is left", source)
        return Catalogue(
            ids=tuple(self._titles),
            titles=tuple(self._titles.values()),
            categories=tuple(self._categories),
            fields={name: tuple(column.get(i, "") for i in range(n)) for name, column in self._fields.items()},
            name=self._name,
        )


def title_and_year(title: str) -> tuple[str, str]:
    """``"Toy Story (1995)"`` as ``("Toy Story", "1995")``; without a year the second is empty."""
    match = _TITLE_YEAR.fullmatch(title)
    return (match["title"], match["year"]) if match else (title.strip(), "")


def year(text: str) -> str:
    """Four digits, possibly written as a float; anything else is no year."""
    text = text.strip().removesuffix(".0")
    return text if re.fullmatch(r"\d{4}", text, re.ASCII) else ""


def categories(text: str, separator: str | None = None) -> tuple[str, ...]:
    """Category names from one field: a JSON list, or names between separators (default ``|`` or ``;``).

    Repeats and the ways to say "none" are left out.
    """
    text = text.strip()
    parts: list[str]
    if separator is None and text.startswith("["):
        try:
            parts = [str(part) for part in json.loads(text)]
        except json.JSONDecodeError:
            parts = [text]
    else:
        parts = text.split(separator) if separator else re.split(r"[|;]", text)
    return unique(parts)


def unique(parts: list[str]) -> tuple[str, ...]:
    """Stripped names in order, without repeats and without the ways to say "none"."""
    return tuple(dict.fromkeys(name for part in parts if (name := part.strip()).lower() not in NO_CATEGORY))


def clip(text: str) -> str:
    """White space made single, cut to ``MAX_FIELD_CHARACTERS`` at a word's end."""
    text = " ".join(text.split())
    if len(text) <= MAX_FIELD_CHARACTERS:
        return text
    return text[:MAX_FIELD_CHARACTERS].rsplit(" ", 1)[0]
