"""Interactions from delimited text, fast where it is clean and exact where it is not.

Each block is parsed by pyarrow. A block that does not parse cleanly, or that names an unknown item, is read again row by row
in Python, which is some twenty times slower and finds the line and the reason. So the row-wise parser is the authority on what
is well formed, and the fast one must accept nothing that it refuses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from common.data.readers import items
from common.data.readers.accumulate import Coded, Rows
from common.data.readers.blocks import Block, Record, blocks, decode, has_unclosed_quote, split_quoted, split_records
from common.data.readers.reading import Reading
from common.errors import DataError

Role = Literal["user", "item", "time", "value", "text", "title", "categories"]
Clock = Literal["number", "iso", "iso-zone"]
UNITS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}

_NUMBER = re.compile(r"[ \t]*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?[ \t]*", re.ASCII)
_LATEST = 2.0**62
_LARGEST = float(np.finfo(np.float32).max)
_LONE_CR = re.compile(rb"\r(?!\n)")


class Sink(Protocol):
    """Where rows go, an :class:`~common.data.readers.accumulate.Accumulator` as a rule."""

    def knows(self, item_id: str) -> bool:
        """Whether a row may name this item."""

    def append(self, rows: Rows) -> None:
        """Take well-formed rows."""


@dataclass(frozen=True)
class Layout:
    """How rows of a file are to be understood.

    Parameters
    ----------
    columns:
        Names of all columns, in order; a row has exactly as many fields.
    roles:
        What some of the columns are to us, by position. Without ``time`` the order of the file is the clock.
    separator:
        Between fields; several characters are allowed if nothing is quoted.
    quoted:
        Whether fields may be quoted with ``"`` (RFC 4180).
    header:
        Whether the first line names the columns.
    clock:
        Whether times are numbers or ISO 8601 (UTC unless they name a zone).
    time_unit:
        Unit of numeric times.
    category_separator:
        See :func:`common.data.readers.items.categories`.
    """

    columns: tuple[str, ...]
    roles: Mapping[Role, int]
    separator: str = ","
    quoted: bool = False
    header: bool = False
    clock: Clock = "number"
    time_unit: str = "s"
    category_separator: str | None = None

    @property
    def quotes(self) -> str | None:
        return self.separator if self.quoted else None

    def name(self, role: Role) -> str:
        """The file's name of a column."""
        return self.columns[self.roles[role]]


def read_delimited(path: Path, layout: Layout, reading: Reading, into: Sink) -> None:
    """Read all rows of a file into a sink.

    Raises
    ------
    DataError
        For a file that is empty or damaged, and, if the reading is strict, for the first malformed row.
    """
    header = layout.header
    for block in blocks(path, reading, quoted=layout.quotes):
        if header:
            cut = block.data.find(b"\n") + 1 or len(block.data)
            block, header = Block(block.data[cut:], block.first_line + 1), False
        rows = _parse_block(block, layout, into)
        if rows is None:
            rows = _parse_rows(block, layout, path, reading, into)
        if rows is not None:
            into.append(rows)


def clock_of(value: str) -> Clock:
    """Whether times that look like ``value`` are numbers or dates."""
    if _NUMBER.fullmatch(value):
        return "number"
    try:
        return "iso" if datetime.fromisoformat(value.strip()).tzinfo is None else "iso-zone"
    except ValueError:
        return "number"


def number(text: str) -> float | None:
    """A decimal number that fits float32's range, else None."""
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    return value if abs(value) <= _LARGEST else None


def seconds(text: str, clock: Clock, time_unit: str = "s") -> int | None:
    """Whole seconds since 1970 (rounded down), else None."""
    if clock == "number":
        value = number(text)
        if value is None or abs(value) >= _LATEST:
            return None
        return math.floor(value / UNITS_PER_SECOND[time_unit])
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return math.floor((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _parse_block(block: Block, layout: Layout, into: Sink) -> Rows | None:
    """The block's rows, or None unless all of it is clean."""
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    data, separator = block.data, layout.separator
    quotes = layout.quoted and b'"' in data
    if not data.strip() or (quotes and has_unclosed_quote(block, layout.quotes)):
        return None
    if b"\r" in data and _LONE_CR.search(data):
        return None
    if len(separator) > 1:
        if b"\t" in data:
            return None
        data, separator = data.replace(separator.encode(), b"\t"), "\t"
    if not data.isascii():
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            return None
    kinds: dict[Role, Any] = {
        "user": pa.dictionary(pa.int32(), pa.string()),
        "item": pa.dictionary(pa.int32(), pa.string()),
        "time": {"number": pa.float64(), "iso": pa.timestamp("us"), "iso-zone": pa.timestamp("us", "UTC")}[layout.clock],
        "value": pa.float64(),
    }
    names = [str(i) for i in range(len(layout.columns))]
    try:
        table = pa_csv.read_csv(
            pa.py_buffer(data),
            read_options=pa_csv.ReadOptions(column_names=names, block_size=len(data) + 1),
            parse_options=pa_csv.ParseOptions(
                delimiter=separator, quote_char='"' if quotes else False, newlines_in_values=quotes
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types={str(at): kinds.get(role, pa.string()) for role, at in layout.roles.items()},
                include_columns=[str(at) for at in dict.fromkeys(layout.roles.values())],
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    return _rows_of_table(table, layout, into)


def _rows_of_table(table: Any, layout: Layout, into: Sink) -> Rows | None:
    def column(role: Role) -> Any:
        return table.column(str(layout.roles[role]))

    user, item = (_coded(column(role)) for role in ("user", "item"))
    if "" in user.names or not all(name and into.knows(name) for name in item.names):
        return None
    time = value = text = titles = names = None
    if "time" in layout.roles:
        time = _seconds_of(column("time"), layout)
        if time is None:
            return None
    if "value" in layout.roles:
        value = column("value").to_numpy()
        if not (np.abs(value) <= _LARGEST).all():  # also false for NaN
            return None
        value = value.astype(np.float32)
    if "text" in layout.roles:
        text = column("text").to_pylist()
    if "title" in layout.roles:
        titles = column("title").take(item.first_rows()).to_pylist()
    if "categories" in layout.roles:
        fields = column("categories").take(item.first_rows()).to_pylist()
        names = [items.categories(field, layout.category_separator) for field in fields]
    return Rows(user, item, time, value, text, titles, names)


def _coded(column: Any) -> Coded:
    chunk = column.combine_chunks()
    if hasattr(chunk, "chunks"):  # a chunked array of one or no chunk, in older versions
        chunk = chunk.chunk(0)
    return Coded(chunk.dictionary.to_pylist(), chunk.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False))


def _seconds_of(column: Any, layout: Layout) -> NDArray[np.int64] | None:
    import pyarrow as pa

    if layout.clock != "number":
        micros = column.cast(pa.int64()).to_numpy()
        return np.floor_divide(micros, 1_000_000)
    numbers = column.to_numpy()
    if not (np.abs(numbers) < _LATEST).all():  # also false for NaN
        return None
    return np.floor(numbers / UNITS_PER_SECOND[layout.time_unit]).astype(np.int64)


def _parse_rows(block: Block, layout: Layout, path: Path, reading: Reading, into: Sink) -> Rows | None:
    """The block's rows one by one, malformed ones refused; None if none is left."""
    users: list[str] = []
    item_ids: list[str] = []
    times: list[int] = []
    values: list[float] = []
    more: dict[Role, list[str]] = {role: [] for role in ("text", "title", "categories") if role in layout.roles}
    for record in split_records(block, layout.quotes):
        fields = _fields(record, layout, path, reading)
        if fields is None:
            continue
        user, item = fields[layout.roles["user"]], fields[layout.roles["item"]]
        fault, time, value = _check(fields, layout, into)
        if fault:
            reason, detail = fault
            reading.refuse(reason, path, record.line, detail)
            continue
        users.append(user)
        item_ids.append(item)
        times.append(time)
        values.append(value)
        for role, column in more.items():
            column.append(fields[layout.roles[role]])
    if not users:
        return None
    item_codes = Coded.of(item_ids)
    first = item_codes.first_rows()
    titles = [more["title"][i] for i in first] if "title" in more else None
    names = [items.categories(more["categories"][i], layout.category_separator) for i in first] if "categories" in more else None
    return Rows(
        user=Coded.of(users),
        item=item_codes,
        time=np.array(times, dtype=np.int64) if "time" in layout.roles else None,
        value=np.array(values, dtype=np.float32) if "value" in layout.roles else None,
        text=more.get("text"),
        titles=titles,
        categories=names,
    )


def _fields(record: Record, layout: Layout, path: Path, reading: Reading) -> list[str] | None:
    if layout.quoted:
        fields = split_quoted(record, layout.separator, path, reading)
    else:
        text = decode(record, path, reading)
        fields = None if text is None else text.split(layout.separator)
    if fields is not None and len(fields) != len(layout.columns):
        what = f"{len(fields)} instead of {len(layout.columns)} ({', '.join(layout.columns)})"
        reading.refuse("wrong number of fields", path, record.line, what)
        return None
    return fields


def _check(fields: list[str], layout: Layout, into: Sink) -> tuple[tuple[str, str] | None, int, float]:
    """``(fault, time, value)``: the reason and the offending value, or None and the numbers."""
    time, value = 0, 0.0
    for role in ("user", "item"):
        if not fields[layout.roles[role]]:
            return (f"empty {role} id", f"column {layout.name(role)}"), time, value
    item = fields[layout.roles["item"]]
    if not into.knows(item):
        return ("unknown item", f"{item!r} is not in the catalogue"), time, value
    if "value" in layout.roles:
        text = fields[layout.roles["value"]]
        found = number(text)
        if found is None:
            return ("value is not a number", f"{layout.name('value')} is {text!r}"), time, value
        value = found
    if "time" in layout.roles:
        text = fields[layout.roles["time"]]
        moment = seconds(text, layout.clock, layout.time_unit)
        if moment is None:
            expected = "not a number" if layout.clock == "number" else "not an ISO 8601 date"
            return (f"time is {expected}", f"{layout.name('time')} is {text!r}"), time, value
        time = moment
    return None, time, value


def read_header(path: Path, separator: str, reading: Reading, *, quoted: bool = True) -> tuple[str, ...]:
    """Column names from a file's first line.

    Raises
    ------
    DataError
        If the file is empty, its first line is blank or no text, or a name appears twice.
    """
    # the header is read again with the rows: report no progress for it, and read no more than a little of the file
    quiet = Reading(block_bytes=min(reading.block_bytes, 64 << 10))
    block = next(blocks(path, quiet))
    first = block.data.split(b"\n", 1)[0].removesuffix(b"\r")
    fields = None
    if quoted:
        start = Block(first, 1)
        record = Record(first, 1, unclosed=has_unclosed_quote(start, separator))
        fields = split_quoted(record, separator, path, quiet)
    else:
        text = decode(Record(first, 1), path, quiet)
        fields = None if text is None else text.split(separator)
    names = tuple(field.strip() for field in fields or ())
    if not any(names):
        raise DataError("the first line must name the columns, but is blank", path, 1)
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"the header names column {name!r} twice", path, 1)
    return names
