"""A query's result becomes a :class:`~common.data.interactions.Dataset`, as a file of the same rows would.

Columns are found by their names or by a mapping, as in CSV. A second query may describe the items; else title and categories may
stand in the interactions. Nothing is written, neither to the database nor to a copy of it: see :mod:`common.data.sql_databases`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common.data.catalogue import Catalogue
from common.data.interactions import Dataset
from common.data.load import Malformed
from common.data.readers import items
from common.data.readers.accumulate import Accumulator
from common.data.readers.columns import ColumnMapping
from common.data.readers.delimited import Role
from common.data.readers.reading import Reading
from common.data.sql_databases import BLOCK_ROWS, Answer, open_database
from common.data.sql_rows import QUERY, Layout, id_of, names_of, rows_of, shown, word
from common.errors import DataError

ITEMS_QUERY = Path("items_query")
"""Stands where a message names a file, for rows of the query that describes items."""

_REQUIRED: tuple[Role, ...] = ("user", "item", "time")


def read_sql(
    url: str,
    query: str,
    *,
    items_query: str | None = None,
    password_file: Path | None = None,
    columns: Mapping[str, str] | None = None,
    folder: Path | None = None,
    malformed: Malformed = "strict",
    min_value: float | None = None,
    ordered: bool = False,
    block_rows: int = BLOCK_ROWS,
) -> Dataset:
    """Read interactions, and their catalogue, from a database that is not written to.

    Parameters
    ----------
    url, password_file, folder, block_rows:
        See :func:`common.data.sql_databases.open_database`.
    query:
        One SELECT whose rows are interactions. Nothing in it is replaced: ``%`` and ``:`` are themselves.
    items_query:
        One SELECT whose rows are the items that may occur, with their id, and title, categories, year and description where they
        are.
    columns:
        Our column names to the query's; see :class:`common.data.readers.columns.ColumnMapping`.
    malformed, min_value, ordered:
        See :func:`common.data.load.read_dataset`.

    Raises
    ------
    DataError
        Naming the database and the reason, or ``query:ROW`` and the column of a malformed row.
    """
    mapping = ColumnMapping(columns or {}, "query")
    if columns and "items" in columns:
        raise DataError("items in the column mapping names a file; of a database, an items_query gives the items")
    if columns and columns.get("time") == "":
        raise DataError("time cannot be left out: rows of a database have no order of their own")
    if malformed not in ("strict", "skip"):
        raise DataError(f"malformed is {malformed!r}; allowed are 'strict' and 'skip'")
    reading = Reading(strict=malformed == "strict", columns=columns, min_value=min_value, ordered=ordered)
    with open_database(url, password_file=password_file, folder=folder, block_rows=block_rows) as ask:
        catalogue = _read_items(ask(items_query), mapping, reading) if items_query else None
        collected = Accumulator(reading, catalogue, "query")
        answer = ask(query)
        layout = Layout(answer.columns, _roles(answer, mapping, with_items=catalogue is None), mapping)
        first = 1
        for block in answer.blocks:
            rows = rows_of(block, layout, first, reading, collected)
            if rows is not None:
                collected.append(rows)
            first += len(block)
    interactions, catalogue = collected.finish(QUERY)
    return Dataset(catalogue, interactions, dropped=reading.dropped(), name="query")


def _roles(answer: Answer, mapping: ColumnMapping, *, with_items: bool) -> dict[Role, int]:
    optional: tuple[Role, ...] = ("value", "text", "title", "categories") if with_items else ("value", "text")
    roles: dict[Role, int] = {}
    for role in (*_REQUIRED, *optional):
        name = mapping.find(role, answer.columns, QUERY, required=role in _REQUIRED)
        if name is not None:
            roles[role] = _only(name, answer, QUERY)
    return roles


def _only(name: str, answer: Answer, query: Path) -> int:
    if answer.columns.count(name) > 1:
        raise DataError(f"the result has column {name!r} twice: rename one of them with AS", query)
    return answer.columns.index(name)


def _read_items(answer: Answer, mapping: ColumnMapping, reading: Reading) -> Catalogue:
    builder = items.CatalogueBuilder(reading, ITEMS_QUERY.name)

    def find(ours: str, *, key: bool = False) -> int | None:
        name = mapping.find(ours, answer.columns, ITEMS_QUERY, required=key, key=key)
        return None if name is None else _only(name, answer, ITEMS_QUERY)

    at = {ours: find(ours, key=ours == "item") for ours in ("item", "title", "categories", "year", "description")}
    line = 0
    for block in answer.blocks:
        for fields in block:
            line += 1
            found = {ours: fields[position] for ours, position in at.items() if position is not None}
            item = id_of(found["item"])
            if item is None:
                what = f"{answer.columns[at['item'] or 0]} is {shown(found['item'])}; let the query cast it"
                reading.refuse("item id is neither text nor a whole number", ITEMS_QUERY, line, what)
                continue
            title, year = items.title_and_year(word(found.get("title")))
            builder.add(
                ITEMS_QUERY,
                line,
                item,
                title,
                names_of(found.get("categories"), mapping),
                year=items.year(word(found.get("year"))) or year,
                description=items.clip(word(found.get("description"))),
            )
    return builder.build(ITEMS_QUERY)
