"""One attribute of each user, read from the source: what names the silo where a data set is dealt out by a column.

The first value that a user has counts. It is read beside :mod:`common.data.load`, because an attribute is no interaction and
no model ever sees it.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from common.data.readers.columns import ColumnMapping
from common.errors import ConfigError

_ML_100K = ("user_id", "age", "gender", "occupation", "zip_code")


def user_attribute(path: Path, column: str, columns: Mapping[str, str] | None = None) -> dict[str, str]:
    """User id to the value of ``column``.

    Parameters
    ----------
    path:
        CSV, TSV (plain or gzip), Parquet, a folder of Parquet files, or a folder with ``NAME.user`` (RecBole) or ``u.user``.
    columns:
        Our names to the file's, as for the readers.

    Raises
    ------
    ConfigError
        If the source has no such column; names those that it has.
    """
    header, rows = _table(path)
    user = ColumnMapping(columns or {}).find("user", header, path, required=True)
    if column not in header or user is None:
        raise ConfigError(f"partition.column = {column!r}: {path} has no such column of users (it has: {', '.join(header)})")
    out: dict[str, str] = {}
    at_user, at_value = header.index(user), header.index(column)
    for row in rows:
        if len(row) > max(at_user, at_value) and row[at_value] and row[at_user] not in out:
            out[row[at_user]] = row[at_value]
    return out


def _table(path: Path) -> tuple[list[str], Iterable[list[str]]]:
    if path.is_dir():
        if (path / "u.user").is_file():
            return list(_ML_100K), _delimited(path / "u.user", "|", "latin-1")
        for file in sorted(path.glob("*.user")):
            rows = _delimited(file, "\t", "utf-8")
            return [name.partition(":")[0] for name in next(rows)], rows
        if files := sorted(path.glob("*.parquet")):
            return _parquet(files)
    elif path.suffix == ".parquet":
        return _parquet([path])
    elif path.name.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
        rows = _delimited(path, "\t" if ".tsv" in path.name else ",", "utf-8-sig")
        return next(rows, []), rows
    raise ConfigError(f"partition.by = 'column': {path} is no format whose users have attributes; use another partition.by")


def _delimited(path: Path, separator: str, encoding: str) -> Iterator[list[str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding=encoding, newline="") as file:
        yield from csv.reader(file, delimiter=separator)


def _parquet(files: list[Path]) -> tuple[list[str], Iterable[list[str]]]:
    from pyarrow import parquet

    header = list(parquet.ParquetFile(files[0]).schema_arrow.names)

    def rows() -> Iterator[list[str]]:
        for file in files:
            for batch in parquet.ParquetFile(file).iter_batches():
                columns = [batch.column(name).to_pylist() for name in header]
                for values in zip(*columns, strict=True):
                    yield ["" if value is None else str(value) for value in values]

    return header, rows()
