"""A separate file of items beside interactions in CSV or Parquet: id, and title, categories, year, description if there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.data.catalogue import Catalogue
from common.data.readers import items
from common.data.readers.blocks import rows
from common.data.readers.columns import ColumnMapping
from common.data.readers.delimited import read_header
from common.data.readers.reading import Reading
from common.errors import DataError

_TEXTS = ("title", "categories", "year", "description")


def read_items(file: Path, mapping: ColumnMapping, reading: Reading) -> Catalogue:
    """The catalogue of a ``.parquet`` file, or of delimited text otherwise."""
    builder = items.CatalogueBuilder(reading, file.name.split(".")[0])
    table = _parquet(file, reading) if file.suffix == ".parquet" else _delimited(file, reading)
    header = next(table)[1]
    item = header.index(mapping.find("item", header, file, required=True, key=True))
    at = {ours: header.index(name) for ours in _TEXTS if (name := mapping.find(ours, header, file)) is not None}
    for line, fields in table:
        if len(fields) != len(header):
            reading.refuse("wrong number of fields", file, line, f"{len(fields)} instead of {len(header)} ({', '.join(header)})")
            continue
        found = {ours: fields[position] for ours, position in at.items()}
        names = found.get("categories", "")
        title, year = items.title_and_year(_word(found.get("title")))
        builder.add(
            file,
            line,
            _word(fields[item]),
            title,
            items.unique(names) if isinstance(names, list) else items.categories(_word(names), mapping.category_separator),
            year=items.year(_word(found.get("year"))) or year,
            description=items.clip(_word(found.get("description"))),
        )
    return builder.build(file)


def separator_of(file: Path) -> str:
    """What separates the columns of a text file: of ``, ; tab |`` the one that is most frequent in the first line."""
    from common.data.readers.blocks import blocks

    first = next(blocks(file, Reading(block_bytes=64 << 10))).data.split(b"\n", 1)[0]
    counts = {candidate: first.count(candidate.encode()) for candidate in (",", ";", "\t", "|")}
    return max(counts, key=lambda candidate: counts[candidate])


def _word(value: object) -> str:
    return "" if value is None else str(value)


def _delimited(file: Path, reading: Reading) -> Iterator[tuple[int, list[Any]]]:
    separator = separator_of(file)
    yield 1, list(read_header(file, separator, reading))
    for line, fields in rows(file, reading, separator):
        if line > 1:
            yield line, fields


def _parquet(file: Path, reading: Reading) -> Iterator[tuple[int, list[Any]]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"not a Parquet file: {error}", file) from None
    reading.advance(file.stat().st_size)
    yield 0, table.column_names
    for line, row in enumerate(zip(*(table.column(i).to_pylist() for i in range(table.num_columns)), strict=True), start=1):
        yield line, list(row)
