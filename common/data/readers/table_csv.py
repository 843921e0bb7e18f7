"""Interactions in CSV: one header line, UTF-8, fields quoted with ``"`` where needed, plain or gzip.

Columns are found by their names or by a mapping. Items are described by a separate file (``items`` in the mapping), or by title
and categories in the interactions themselves, where an item's first row counts; else an item's id is its title.
"""

from __future__ import annotations

from pathlib import Path

from common.data.interactions import Dataset
from common.data.readers.accumulate import Accumulator
from common.data.readers.blocks import rows
from common.data.readers.columns import ColumnMapping
from common.data.readers.delimited import Clock, Layout, Role, clock_of, read_delimited, read_header
from common.data.readers.reading import Reading
from common.data.readers.registry import reader
from common.data.readers.table_items import read_items, separator_of

_ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


@reader(
    "csv", about="one file NAME.csv or .tsv[.gz] with a header; columns can be mapped",
    detect=lambda path: path.is_file() and path.name.endswith(_ENDINGS), takes_columns=True,
)  # fmt: skip
def read(path: Path, reading: Reading) -> Dataset:
    """Interactions, and items from a separate file or from the same rows."""
    mapping = ColumnMapping(reading.columns)
    items_file = mapping.items_file(path)
    reading.expect(*(file for file in (items_file, path) if file))
    layout = _layout(path, mapping, reading, with_items=items_file is None)
    catalogue = read_items(items_file, mapping, reading) if items_file else None
    name = path.name.split(".")[0]
    collected = Accumulator(reading, catalogue, name)
    read_delimited(path, layout, reading, collected)
    interactions, catalogue = collected.finish(path)
    return Dataset(catalogue, interactions, dropped=reading.dropped(), name=name)


def _layout(path: Path, mapping: ColumnMapping, reading: Reading, *, with_items: bool) -> Layout:
    separator = separator_of(path)
    header = read_header(path, separator, reading)
    roles: dict[Role, int] = {}
    required: tuple[Role, ...] = ("user", "item", "time")
    optional: tuple[Role, ...] = ("value", "text", "title", "categories") if with_items else ("value", "text")
    for role in (*required, *optional):
        name = mapping.find(role, header, path, required=role in required)
        if name is not None:
            roles[role] = header.index(name)
    return Layout(
        header,
        roles,
        separator=separator,
        quoted=True,
        header=True,
        clock=_clock(path, separator, roles["time"]) if "time" in roles else "number",
        time_unit=mapping.time_unit,
        category_separator=mapping.category_separator,
    )


def _clock(path: Path, separator: str, at: int) -> Clock:
    """Numbers or dates: whatever the first row that has a time shows."""
    for line, fields in rows(path, Reading(strict=False, block_bytes=64 << 10), separator):
        if line > 1 and len(fields) > at:
            return clock_of(fields[at])
    return "number"
