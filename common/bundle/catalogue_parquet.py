"""``catalogue.parquet``: the items' ids, titles, categories and further text fields, in order.

Any program that reads Parquet reads it. Columns are ``id``, ``title`` (string), ``categories`` (list of string) and one
``field:NAME`` (string) for each further field; the catalogue's name is in the file's metadata. Values are plain and compressed by
Zstandard. Equal catalogues give equal bytes with equal versions of pyarrow.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

from common.bundle.manifest import CATALOGUE
from common.data.catalogue import Catalogue
from common.errors import BundleError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_FIELDS: Final = 64
"""Further text columns; a shop's export has a dozen."""

BYTES_PER_ITEM: Final = 4096
"""Text of one item on average, uncompressed: some 700 words. With it a million items take at most 4 GB of memory."""

SPARE_BYTES: Final = 1 << 20
"""What a small catalogue may have beside that."""

_NAME, _FIELD = b"silorec.catalogue", "field:"
_GROUP = 1 << 16  # rows
_BATCH = 1 << 10  # rows read at a time, and then counted
_PAGE = 1 << 20


def catalogue_to_bytes(catalogue: Catalogue) -> bytes:
    """The file.

    Raises
    ------
    BundleError
        If a text is not Unicode, or there are too many fields.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if len(catalogue.fields) > MAX_FIELDS:
        raise BundleError(f"catalogue {catalogue.name}: {len(catalogue.fields)} fields, a bundle has at most {MAX_FIELDS}")
    columns: dict[str, Any] = {"id": catalogue.ids, "title": catalogue.titles, "categories": catalogue.categories}
    columns |= {_FIELD + name: column for name, column in catalogue.fields.items()}
    out = io.BytesIO()
    try:
        schema = _schema(pa, [*catalogue.fields])
        table = pa.table([pa.array(columns[one.name], one.type) for one in schema], schema=schema)
        with pq.ParquetWriter(
            out, schema, version="2.6", compression="zstd", compression_level=12, use_dictionary=False, store_schema=False,
            write_statistics=False, data_page_size=_PAGE,
        ) as writer:  # fmt: skip
            writer.write_table(table, row_group_size=_GROUP)
            writer.add_key_value_metadata({_NAME.decode(): catalogue.name})
    except (pa.ArrowException, TypeError, UnicodeError) as error:
        raise BundleError(f"catalogue {catalogue.name}: it cannot be written as Parquet ({_first_line(error)})") from None
    return out.getvalue()


def catalogue_from_bytes(content: bytes | memoryview, max_items: int) -> Catalogue:
    """What :func:`catalogue_to_bytes` wrote.

    Raises
    ------
    BundleError
        If it is no such file, has more than ``max_items`` rows, or more text than ``BYTES_PER_ITEM`` for each of them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(pa.BufferReader(pa.py_buffer(content)), pre_buffer=False) as file:
            names = _check_directory(pa, file, max_items)
            columns = _read_columns(pa, file)
            name = (file.schema_arrow.metadata or {})[_NAME].decode()
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError) as error:
        raise BundleError(f"{CATALOGUE} is not a catalogue as Parquet ({_first_line(error)})") from None
    try:
        fields = {one.removeprefix(_FIELD): tuple(columns[one]) for one in names}
        categories = tuple(tuple(row) for row in columns["categories"])
        return Catalogue(tuple(columns["id"]), tuple(columns["title"]), categories, fields, name)
    except DataError as error:
        raise BundleError(f"{CATALOGUE}: {error}") from None


def _schema(pa: Any, fields: list[str]) -> pa.Schema:
    text = pa.string()
    categories = pa.list_(pa.field("element", text, nullable=False))
    types = {"id": text, "title": text, "categories": categories, **{_FIELD + name: text for name in fields}}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])


def _check_directory(pa: Any, file: Any, max_items: int) -> list[str]:
    """Names of the further columns, after a look at what the file says of itself; no value was read yet."""
    facts = file.metadata
    if not 1 <= facts.num_rows <= max_items:
        raise BundleError(f"{CATALOGUE}: {facts.num_rows:,} items, 1 to {max_items:,} are allowed")
    names = [name for name in file.schema_arrow.names if name.startswith(_FIELD)]
    if len(names) > MAX_FIELDS:
        raise BundleError(f"{CATALOGUE}: {len(names)} fields, at most {MAX_FIELDS} are allowed")
    if not file.schema_arrow.remove_metadata().equals(_schema(pa, [name.removeprefix(_FIELD) for name in names])):
        raise BundleError(f"{CATALOGUE}: its columns are not id, title, categories and fields, all of text")
    # Not the chunks' own entries: where those are damaged, pyarrow 26 ends the process instead of raising.
    size = sum(facts.row_group(group).total_byte_size for group in range(facts.num_row_groups))
    if size > (limit := _text_limit(facts.num_rows)):
        raise BundleError(f"{CATALOGUE}: {size:,} bytes of text, at most {limit:,} are allowed")
    return names


def _read_columns(pa: Any, file: Any) -> dict[str, list[Any]]:
    """All values; counted while reading, since the directory may lie and a dictionary may blow up what it says."""
    columns: dict[str, list[Any]] = {name: [] for name in file.schema_arrow.names}
    size, rows, claimed = 0, 0, file.metadata.num_rows
    for batch in file.iter_batches(batch_size=_BATCH, use_threads=False):
        batch.validate(full=True)  # offsets, lengths and UTF-8
        size, rows = size + batch.nbytes, rows + batch.num_rows
        if rows > claimed or size > _text_limit(claimed):
            raise BundleError(f"{CATALOGUE} holds more than its directory says")
        for name, column in zip(columns, batch.columns, strict=True):
            if column.null_count or (pa.types.is_list(column.type) and column.flatten().null_count):
                raise BundleError(f"{CATALOGUE}: an item's {name} is missing")
            columns[name] += column.to_pylist()
    return columns


def _text_limit(rows: int) -> int:
    return rows * BYTES_PER_ITEM + SPARE_BYTES


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
