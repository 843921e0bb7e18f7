"""Rows from a database, as Python objects, become columns; what a file's reader would refuse is refused here too.

Ids may be texts, whole numbers or UUIDs; times numbers, timestamps, dates or ISO 8601 texts, UTC unless they name a zone. A
malformed row is named by its number in the result, from 1, and by its column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from common.data.readers import items
from common.data.readers.accumulate import Coded, Rows
from common.data.readers.columns import ColumnMapping
from common.data.readers.delimited import UNITS_PER_SECOND, Role, Sink, clock_of, number, seconds
from common.data.readers.reading import Reading

QUERY = Path("query")
"""Stands where a message names a file: ``query:17`` is the result's row 17."""

_LATEST = 2**62
_LARGEST = float(np.finfo(np.float32).max)
_SECOND = timedelta(seconds=1)
_EPOCH, _EPOCH_UTC = datetime(1970, 1, 1), datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_VALUE = 80

Refuse = Callable[[int, str, str], None]


@dataclass(frozen=True)
class Layout:
    """How rows are to be understood: the columns' names, and the roles of some of them by position."""

    columns: tuple[str, ...]
    roles: Mapping[Role, int]
    mapping: ColumnMapping

    def name(self, role: Role) -> str:
        """The query's name of a column."""
        return self.columns[self.roles[role]]


def rows_of(block: Sequence[Sequence[Any]], layout: Layout, first: int, reading: Reading, into: Sink) -> Rows | None:
    """A block's well-formed rows, malformed ones refused; None if none is left.

    ``first`` is the number of the block's first row.
    """
    columns = list(zip(*block, strict=True))
    faults: dict[int, tuple[str, str]] = {}

    def refuse(row: int, reason: str, detail: str) -> None:
        faults.setdefault(row, (reason, detail))

    def column(role: Role) -> Sequence[Any]:
        return columns[layout.roles[role]]

    user = _ids(column("user"), "user", layout, refuse)
    item = _ids(column("item"), "item", layout, refuse)
    unknown = np.array([bool(name) and not into.knows(name) for name in item.names], dtype=np.bool_)
    if unknown.any():
        for row in np.flatnonzero(unknown[item.codes]).tolist():
            refuse(row, "unknown item", f"{item.names[item.codes[row]]!r} is not in the catalogue")
    value = _values(column("value"), layout, refuse) if "value" in layout.roles else None
    moments = _times(column("time"), layout, refuse)
    text = _texts(column("text"), layout, refuse) if "text" in layout.roles else None
    if faults:
        for row in sorted(faults):
            reason, detail = faults[row]
            reading.refuse(reason, QUERY, first + row, detail)
        kept = [fields for row, fields in enumerate(block) if row not in faults]
        return rows_of(kept, layout, first, reading, into) if kept else None
    described = item.first_rows()
    titles = categories = None
    if "title" in layout.roles:
        titles = [word(column("title")[row]) for row in described]
    if "categories" in layout.roles:
        categories = [names_of(column("categories")[row], layout.mapping) for row in described]
    return Rows(user, item, moments, value, text, titles, categories)


def id_of(value: object) -> str | None:
    """An id as text, ``""`` where it is NULL; None if it is of a type that is no id."""
    if value is None or type(value) is str:
        return value or ""
    if type(value) is int or isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return str(int(value))
    return None


def word(value: object) -> str:
    """A description's text; ``""`` where it is NULL."""
    return "" if value is None else value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def names_of(value: object, mapping: ColumnMapping) -> tuple[str, ...]:
    """Category names from an array, or from a text as in files."""
    if isinstance(value, list):
        return items.unique([str(name) for name in value if name is not None])
    return items.categories(word(value), mapping.category_separator)


def shown(value: object) -> str:
    """A value in a message, cut where it is long."""
    text = "NULL" if value is None else repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _ids(values: Sequence[Any], role: Role, layout: Layout, refuse: Refuse) -> Coded:
    kinds = set(map(type, values))
    if kinds == {str}:
        coded = Coded.of(values)
    elif kinds == {int}:
        numbers = Coded.of(values)
        return Coded([str(name) for name in numbers.names], numbers.codes)
    else:
        texts = [id_of(value) for value in values]
        for row, text in enumerate(texts):
            if text is None:
                what = f"{layout.name(role)} is {shown(values[row])}; let the query cast it"
                refuse(row, f"{role} id is neither text nor a whole number", what)
        coded = Coded.of([text or "" for text in texts])
    if "" in coded.names:
        for row in np.flatnonzero(coded.codes == coded.names.index("")).tolist():
            refuse(row, f"empty {role} id", f"column {layout.name(role)}")
    return coded


def _times(values: Sequence[Any], layout: Layout, refuse: Refuse) -> NDArray[np.int64]:
    """Whole seconds since 1970, rounded down."""
    unit = layout.mapping.time_unit
    if set(map(type, values)) == {int} and max(values) < _LATEST and min(values) > -_LATEST:
        return np.floor_divide(np.array(values, dtype=np.int64), UNITS_PER_SECOND[unit])
    name, out = layout.name("time"), np.zeros(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        moment = _moment(value, unit)
        if moment is not None:
            out[row] = moment
        elif value is None:
            refuse(row, "time is missing", f"column {name}")
        else:
            refuse(row, "time is neither a number nor a date", f"{name} is {shown(value)}")
    return out


def _moment(value: object, unit: str) -> int | None:
    if isinstance(value, datetime):
        return (value - (_EPOCH_UTC if value.tzinfo else _EPOCH)) // _SECOND
    if isinstance(value, date):
        return (datetime.combine(value, time()) - _EPOCH) // _SECOND
    if isinstance(value, str):
        return seconds(value, clock_of(value), unit)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    if isinstance(value, int):
        return value // UNITS_PER_SECOND[unit] if abs(value) < _LATEST else None
    return math.floor(value / UNITS_PER_SECOND[unit]) if math.isfinite(value) and -_LATEST < value < _LATEST else None


def _values(values: Sequence[Any], layout: Layout, refuse: Refuse) -> NDArray[np.float32]:
    plain = set(map(type, values)) <= {float, Decimal}
    out = np.fromiter(map(float if plain else _number, values), dtype=np.float64, count=len(values))
    bad = np.flatnonzero(~(np.abs(out) <= _LARGEST))
    for row in bad.tolist():
        refuse(row, "value is not a number", f"{layout.name('value')} is {shown(values[row])}")
    out[bad] = 0
    return out.astype(np.float32)


def _number(value: object) -> float:
    """NaN for what is none."""
    if isinstance(value, str):
        found = number(value)
        return math.nan if found is None else found
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # a whole number beyond any float
        return math.inf


def _texts(values: Sequence[Any], layout: Layout, refuse: Refuse) -> list[str]:
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            refuse(row, "text is not text", f"{layout.name('text')} is {shown(value)}; let the query cast it")
    return [value if isinstance(value, str) else "" for value in values]
