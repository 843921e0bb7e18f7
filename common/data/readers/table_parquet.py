"""Interactions in Parquet: one file or a folder of them; columns by name or mapping, as in CSV.

Ids may be strings or integers, times may be numbers, timestamps or dates. A malformed row is named by its number in the file,
from 1.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.interactions import Dataset
from common.data.readers import items
from common.data.readers.accumulate import Accumulator, Coded, Rows
from common.data.readers.columns import ColumnMapping
from common.data.readers.delimited import UNITS_PER_SECOND
from common.data.readers.reading import Reading
from common.data.readers.registry import reader
from common.data.readers.table_items import read_items
from common.errors import DataError

_BATCH_ROWS = 1 << 18


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() and path.suffix == ".parquet" else sorted(path.glob("*.parquet"))


@reader(
    "parquet", about="NAME.parquet or a folder of such files; columns can be mapped",
    detect=lambda path: bool(_files(path)), takes_columns=True,
)  # fmt: skip
def read(path: Path, reading: Reading) -> Dataset:
    """Interactions, and items from a separate file or from the same rows."""
    mapping = ColumnMapping(reading.columns)
    items_file = mapping.items_file(path)
    files = [file for file in _files(path) if items_file is None or file.resolve() != items_file.resolve()]
    if not files:
        raise DataError("there is no .parquet file", path)
    reading.expect(*(file for file in (items_file, *files) if file))
    catalogue = read_items(items_file, mapping, reading) if items_file else None
    collected = Accumulator(reading, catalogue, path.stem)
    for file in files:
        _read_file(file, mapping, reading, collected, with_items=items_file is None)
    interactions, catalogue = collected.finish(path)
    return Dataset(catalogue, interactions, dropped=reading.dropped(), name=path.stem)


def _read_file(file: Path, mapping: ColumnMapping, reading: Reading, into: Accumulator, *, with_items: bool) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    if not file.stat().st_size:
        raise DataError("the file is empty", file)
    try:
        source = parquet.ParquetFile(file)
        columns = _columns(source.schema_arrow, mapping, file, with_items=with_items)
        first, total = 1, max(1, source.metadata.num_rows)
        for batch in source.iter_batches(_BATCH_ROWS, columns=list(dict.fromkeys(columns.values()))):
            rows = _rows(batch, columns, mapping, first, file, reading, into)
            if rows is not None:
                into.append(rows)
            first += batch.num_rows
            reading.advance(file.stat().st_size * batch.num_rows // total)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"not a Parquet file, or a damaged one: {error}", file) from None


def _columns(schema: Any, mapping: ColumnMapping, file: Path, *, with_items: bool) -> dict[str, str]:
    """Our names to the file's, with types that can be read."""
    import pyarrow.types as kinds

    text = (kinds.is_string, kinds.is_large_string, kinds.is_dictionary)
    allowed: dict[str, tuple[Callable[[Any], bool], ...]] = {
        "user": (*text, kinds.is_integer),
        "item": (*text, kinds.is_integer),
        "time": (kinds.is_integer, kinds.is_floating, kinds.is_timestamp, kinds.is_date),
        "value": (kinds.is_integer, kinds.is_floating),
        "text": text,
        "title": text,
        "categories": (*text, kinds.is_list, kinds.is_large_list),
    }
    found = {}
    for ours in allowed if with_items else ("user", "item", "time", "value", "text"):
        name = mapping.find(ours, schema.names, file, required=ours in ("user", "item", "time"))
        if name is None:
            continue
        kind = schema.field(name).type
        if not any(test(kind) for test in allowed[ours]):
            raise DataError(f"column {name!r} (for {ours}) has type {kind}, which cannot be read as that", file)
        found[ours] = name
    return found


def _rows(
    batch: Any, columns: dict[str, str], mapping: ColumnMapping, first: int, file: Path, reading: Reading, into: Accumulator
) -> Rows | None:
    import pyarrow as pa
    from pyarrow import compute

    good = np.ones(batch.num_rows, dtype=np.bool_)

    def refuse(bad: NDArray[np.bool_], reason: str, detail: Callable[[int], str]) -> None:
        for row in np.flatnonzero(bad & good):
            reading.refuse(reason, file, first + int(row), detail(int(row)))
        good[bad] = False

    for ours in ("user", "item"):
        ids = batch.column(columns[ours]).cast(pa.string())
        bad = compute.equal(ids, "").fill_null(True).to_numpy(zero_copy_only=False)
        refuse(bad, f"empty {ours} id", lambda _row, ours=ours: f"column {columns[ours]}")  # type: ignore[misc]
    time = value = None
    if "time" in columns:
        time, bad = _seconds(batch.column(columns["time"]), mapping.time_unit)
        refuse(bad, "time is missing", lambda _row: f"column {columns['time']}")
    if "value" in columns:
        numbers = batch.column(columns["value"]).cast(pa.float64()).to_numpy(zero_copy_only=False)
        bad = ~(np.abs(numbers) <= np.finfo(np.float32).max)
        refuse(bad, "value is not a number", lambda row: f"{columns['value']} is {numbers[row]}")
        value = np.where(bad, 0, numbers).astype(np.float32)
    item = _coded(batch.column(columns["item"]))
    unknown = np.array([not into.knows(name) for name in item.names], dtype=np.bool_)
    if unknown.any():
        refuse(unknown[item.codes], "unknown item", lambda row: f"{item.names[item.codes[row]]!r} is not in the catalogue")
    if not good.any():
        return None
    if not good.all():
        batch = batch.filter(pa.array(good))
        item = _coded(batch.column(columns["item"]))
        time = None if time is None else time[good]
        value = None if value is None else value[good]
    texts = _strings(batch.column(columns["text"])) if "text" in columns else None
    described = batch.take(pa.array(item.first_rows()))
    return Rows(
        user=_coded(batch.column(columns["user"])),
        item=item,
        time=time,
        value=value,
        text=texts,
        titles=_strings(described.column(columns["title"])) if "title" in columns else None,
        categories=_categories(described.column(columns["categories"]), mapping) if "categories" in columns else None,
    )


def _coded(column: Any) -> Coded:
    import pyarrow as pa

    coded = column.cast(pa.string()).dictionary_encode(null_encoding="encode")
    names = [name or "" for name in coded.dictionary.to_pylist()]
    return Coded(names, coded.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False))


def _strings(column: Any) -> list[str]:
    return [text or "" for text in column.to_pylist()]


def _categories(column: Any, mapping: ColumnMapping) -> list[tuple[str, ...]]:
    found = []
    for entry in column.to_pylist():
        if isinstance(entry, list):
            found.append(items.unique([str(name) for name in entry if name is not None]))
        else:
            found.append(items.categories(entry or "", mapping.category_separator))
    return found


def _seconds(column: Any, time_unit: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Whole seconds, and which rows have none."""
    import pyarrow as pa
    import pyarrow.types as kinds

    missing = column.is_null().to_numpy(zero_copy_only=False)
    if kinds.is_timestamp(column.type) or kinds.is_date(column.type):
        unit = column.type.unit if kinds.is_timestamp(column.type) else "ms"
        if kinds.is_date(column.type):
            column = column.cast(pa.timestamp("ms"))
        ticks = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        return np.floor_divide(ticks, UNITS_PER_SECOND[unit]), missing
    if kinds.is_integer(column.type):
        ticks = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        return np.floor_divide(ticks, UNITS_PER_SECOND[time_unit]), missing
    numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    missing = ~(np.abs(numbers) < 2.0**62)
    return np.floor(np.where(missing, 0, numbers) / UNITS_PER_SECOND[time_unit]).astype(np.int64), missing
