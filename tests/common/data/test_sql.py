"""Data in SQLite and DuckDB, and in Parquet through it: the same data set as from a file, and nothing is written."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import sys
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from common.config import Config, load
from common.data.cli import data_app
from common.data.interactions import Dataset
from common.data.load import read_dataset
from common.data.own import OwnSource, own_data
from common.data.readers.accumulate import Accumulator
from common.data.readers.columns import ColumnMapping
from common.data.readers.reading import Reading
from common.data.sql import read_sql
from common.data.sql_rows import Layout, rows_of
from common.data.summary import summary
from common.errors import ConfigError, DataError

QUERY = "SELECT customer, sku, bought_at, stars, said FROM sales"
COLUMNS = {"user": "customer", "item": "sku", "time": "bought_at", "value": "stars", "text": "said"}
ROWS = [
    ("u2", "b", 1_600_000_000, 4.0, "good"),
    ("u1", "a", 1_600_000_100, 3.5, ""),
    ("u2", "a", 1_600_000_000, 1.0, "a, b and \"c\""),
    ("u10", "c", 1_600_000_050, 5.0, "é"),
    ("u1", "b", 1_600_000_100, 2.0, "x"),
]  # fmt: skip


def sqlite(path: Path, rows: Sequence[Sequence[Any]] = ROWS, columns: str = "customer, sku, bought_at, stars, said") -> str:
    """A database with a table ``sales``, and its URL."""
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE IF EXISTS sales")
        connection.execute(f"CREATE TABLE sales ({columns})")
        connection.executemany(f"INSERT INTO sales VALUES ({', '.join('?' * len(columns.split(',')))})", rows)
    connection.close()
    return f"sqlite:///{path}"


def duckdb(path: Path, rows: Sequence[Sequence[Any]] = ROWS) -> str:
    import duckdb

    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE sales (customer VARCHAR, sku VARCHAR, bought_at BIGINT, stars DOUBLE, said VARCHAR)")
        connection.executemany("INSERT INTO sales VALUES (?, ?, ?, ?, ?)", [list(row) for row in rows])
        connection.execute(f"COPY sales TO '{path.with_suffix('.parquet')}'")
    return f"duckdb:///{path}"


def csv(path: Path, rows: Sequence[Sequence[Any]] = ROWS) -> Path:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("customer", "sku", "bought_at", "stars", "said"), *rows])
    return path


def same(a: Dataset, b: Dataset) -> None:
    """Every column, the order of rows, users and items, and what was dropped."""
    one, other = a.interactions, b.interactions
    for name in ("user", "item", "time", "value"):
        x, y = getattr(one, name), getattr(other, name)
        assert (x is None) == (y is None)
        if x is not None:
            np.testing.assert_array_equal(x, y, err_msg=name)
            assert x.dtype == y.dtype
    assert one.user_ids == other.user_ids
    assert one.text == other.text
    assert (a.catalogue.ids, a.catalogue.titles, a.catalogue.categories) == (
        b.catalogue.ids,
        b.catalogue.titles,
        b.catalogue.categories,
    )
    assert a.dropped.counts == b.dropped.counts


def of_rows(rows: Sequence[Sequence[Any]], columns: Sequence[str], malformed: str = "strict", **mapping: str) -> Dataset:
    """What a driver gave, without a database."""
    from common.data.sql_rows import QUERY as where

    reading, kinds = Reading(strict=malformed == "strict"), ColumnMapping(mapping, "query")
    collected = Accumulator(reading)
    roles: Any = {name: at for at, name in enumerate(columns)}
    block = rows_of(rows, Layout(tuple(columns), roles, kinds), 1, reading, collected)
    if block is not None:
        collected.append(block)
    interactions, catalogue = collected.finish(where)
    return Dataset(catalogue, interactions, dropped=reading.dropped())


def config(tmp_path: Path) -> Config:
    public = tmp_path / "public.csv"
    public.write_text("user,item,time\n" + "".join(f"p,{item},{time}\n" for time, item in enumerate("abcdef")))
    return load({"data.source": str(public), "data.malformed": "skip"})


# --- the same as from a file


@pytest.mark.parametrize("kind", ["sqlite", "duckdb", "parquet"])
def test_a_database_gives_the_same_data_set_as_a_file_of_the_same_rows(tmp_path: Path, kind: str) -> None:
    file = read_dataset(csv(tmp_path / "shop.csv"), columns=COLUMNS)
    url, query = sqlite(tmp_path / "shop.db"), QUERY
    if kind != "sqlite":
        url = duckdb(tmp_path / "shop.duckdb")
    if kind == "parquet":
        url, query = "duckdb:///:memory:", QUERY.replace("sales", f"'{tmp_path / 'shop.parquet'}'")
    same(read_sql(url, query, columns=COLUMNS), file)
    same(read_sql(url, query, columns=COLUMNS, block_rows=2), file)
    same(read_sql(url, query, columns=COLUMNS, min_value=3), read_dataset(tmp_path / "shop.csv", columns=COLUMNS, min_value=3))


_IDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["u1", "u2", "ü", "u10"]),
            _IDS,
            st.integers(-5, 5),
            st.sampled_from([1.0, 2.5]),
            st.sampled_from(["", "x"]),
        ),
        min_size=1,
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_own_data_do_not_depend_on_the_order_of_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]], random: Any
) -> None:
    """Ties in time and repeated rows included, whose texts and values differ."""
    folder = tmp_path_factory.mktemp("order")
    public = folder / "public.csv"
    names = ["more", "and", "more yet", *sorted({row[1].replace('"', '""') for row in rows})]
    public.write_text("user,item,time\n" + "".join(f'p,"{name}",1\n' for name in names), encoding="utf-8")
    run = load({"data.source": str(public), "data.format": "csv"})
    shuffled = list(rows)
    random.shuffle(shuffled)
    url = sqlite(folder / "shop.db", shuffled)
    mine, sold = own_data(run, OwnSource(url=url, query=QUERY, columns=COLUMNS))
    filed, sells = own_data(run, OwnSource(path=csv(folder / "shop.csv", rows), columns=COLUMNS))
    same(mine, filed)
    np.testing.assert_array_equal(sold, sells)
    # An independent account of the order: Python's own sort of whole rows, the first of each user, item and time kept.
    expected = {(user, time, item): (value, text) for user, item, time, value, text in sorted(rows, key=_by_all, reverse=True)}
    data = mine.interactions
    found = [(data.user_ids[u], int(t), mine.catalogue.ids[i]) for u, t, i in zip(data.user, data.time, data.item, strict=True)]
    assert found == sorted(expected)
    assert data.value is not None
    assert data.text is not None
    assert list(zip(data.value.tolist(), data.text, strict=True)) == [expected[key] for key in sorted(expected)]


def _by_all(row: tuple[Any, ...]) -> tuple[Any, ...]:
    user, item, time, value, text = row
    return user, time, item, value, text


def test_ids_times_and_values_of_every_type_that_drivers_give() -> None:
    berlin = timezone(timedelta(hours=2))
    rows = [
        ("7", "a", 5, 1),
        (7, "a", 6.9, 2.5),
        (Decimal("7"), "a", Decimal("-0.5"), Decimal("3.25")),
        (UUID(int=1), "b", datetime(2020, 1, 1), "4"),
        ("x", "b", datetime(2020, 1, 1, 2, tzinfo=berlin), 5),
        ("y", "b", date(2020, 1, 2), 6),
        ("z", "b", "2020-01-01T00:00:00.9", 7),
        ("z", "c", "2020-01-01 03:00:00+02:00", 8),
        ("z", "d", "1577836801", 9),
        ("w", "d", datetime(1969, 12, 31, 23, 59, 59, 500_000), 10),
    ]
    data = of_rows(rows, ("user", "item", "time", "value")).interactions
    assert data.user_ids == ("7", str(UUID(int=1)), "x", "y", "z", "w")
    new_year = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp())
    later = [new_year, new_year, new_year + 86_400, new_year, new_year + 3600, new_year + 1, -1]
    assert data.time.tolist() == [5, 6, -1, *later]
    assert data.value is not None
    assert data.value.tolist() == [1, 2.5, 3.25, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(("unit", "expected"), [("s", 1_500_000), ("ms", 1500), ("us", 1), ("ns", 0)])
def test_numeric_times_have_a_unit(unit: str, expected: int) -> None:
    rows = [(f"u{at}", "i", time) for at, time in enumerate([1_500_000, 1_500_000.0, Decimal(1_500_000), "1500000"])]
    for some in (rows, rows[:1]):  # the slow way, and that of a column of whole numbers
        assert set(of_rows(some, ("user", "item", "time"), time_unit=unit).interactions.time.tolist()) == {expected}


def test_categories_may_be_arrays_and_an_items_first_row_counts() -> None:
    rows = [("u", 1, 1, "One", ["x", "y", None]), ("u", 1, 2, "Uno", ["z"]), ("u", 2, 3, None, "p|q"), ("u", 3, 4, "Three", None)]
    found = of_rows(rows, ("user", "item", "time", "title", "categories")).catalogue
    assert found.titles == ("One", "2", "Three")
    assert found.categories == (("x", "y"), ("p", "q"), ())


# --- malformed rows

GOOD = ("u", "i", 1, 1.0, "t")


@pytest.mark.parametrize(
    ("column", "value", "reason", "detail"),
    [
        (0, None, "empty user id", "column user"),
        (0, "", "empty user id", "column user"),
        (1, None, "empty item id", "column item"),
        (0, 1.5, "user id is neither text nor a whole number", "user is 1.5; let the query cast it"),
        (0, True, "user id is neither text nor a whole number", "user is True"),
        (1, b"\xff", "item id is neither text nor a whole number", r"item is b'\xff'"),
        (1, Decimal("1.5"), "item id is neither text nor a whole number", "item is Decimal('1.5')"),
        (2, None, "time is missing", "column time"),
        (2, "soon", "time is neither a number nor a date", "time is 'soon'"),
        (2, math.nan, "time is neither a number nor a date", "time is nan"),
        (2, 2**62, "time is neither a number nor a date", "time is 4611686018427387904"),
        (2, 10**400, "time is neither a number nor a date", "time is 1000"),
        (2, Decimal("Infinity"), "time is neither a number nor a date", "time is Decimal('Infinity')"),
        (2, timedelta(1), "time is neither a number nor a date", "time is datetime.timedelta(days=1)"),
        (2, False, "time is neither a number nor a date", "time is False"),
        (3, None, "value is not a number", "value is NULL"),
        (3, "many", "value is not a number", "value is 'many'"),
        (3, Decimal("NaN"), "value is not a number", "value is Decimal('NaN')"),
        (3, 1e39, "value is not a number", "value is 1e+39"),
        (3, 10**400, "value is not a number", "value is 1000"),
        (4, b"\xff", "text is not text", "text is b'"),
    ],
)
def test_a_malformed_row_is_named_by_number_and_column_or_counted(column: int, value: Any, reason: str, detail: str) -> None:
    bad = (*GOOD[:column], value, *GOOD[column + 1 :])
    rows, columns = [GOOD, ("u", "j", 2, 2, None), bad, ("v", "i", 3, 3.0, "t")], ("user", "item", "time", "value", "text")
    with pytest.raises(DataError) as refused:
        of_rows(rows, columns)
    assert str(refused.value).startswith(f"query:3: {reason}: {detail}")
    assert len(str(refused.value)) < 250
    found = of_rows(rows, columns, malformed="skip")
    assert found.dropped.counts == {reason: 1}
    assert found.dropped.examples[reason].startswith(f"query:3: {detail}")
    assert found.interactions.user_ids == ("u", "v")
    assert found.interactions.time.tolist() == [1, 2, 3]
    assert found.interactions.text == ["t", "", "t"]


def test_the_first_malformed_row_is_the_one_that_is_named(tmp_path: Path) -> None:
    """In whichever column, and in whichever block."""
    url = sqlite(tmp_path / "shop.db", [*ROWS, ("u", "a", 1, "bad", ""), (None, "a", 1, 1, "")])
    for size in (1, 3, 100):
        with pytest.raises(DataError, match=r"query:6: value is not a number: stars is 'bad'"):
            read_sql(url, QUERY, columns=COLUMNS, block_rows=size)


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_rows_are_read_as_they_come(tmp_path: Path, kind: str) -> None:
    """A billion rows are left when the first is refused."""
    url, query = "duckdb://", "SELECT '' AS user, n AS item, n AS time FROM range(1000000000) AS t(n)"
    if kind == "sqlite":
        numbers = "WITH RECURSIVE t(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM t WHERE n < 1000000000)"
        url, query = sqlite(tmp_path / "shop.db"), f"{numbers} SELECT '' AS user, n AS item, n AS time FROM t"
    start = time.monotonic()
    with pytest.raises(DataError, match="query:1: empty user id"):
        read_sql(url, query)
    assert time.monotonic() - start < 5


def test_text_that_is_not_utf_8_is_a_malformed_row_of_sqlite(tmp_path: Path) -> None:
    url = sqlite(tmp_path / "shop.db")
    query = "SELECT customer, sku, bought_at, CAST(x'ff41' AS TEXT) AS said FROM sales"
    with pytest.raises(DataError, match=r"query:1: text is not text: said is b'\\xffA'"):
        read_sql(url, query, columns={k: v for k, v in COLUMNS.items() if k != "value"})


# --- items


def test_a_second_query_gives_the_items_that_may_occur(tmp_path: Path) -> None:
    url = sqlite(tmp_path / "shop.db", [(1, 10, 5), (1, 30, 6), (2, 20, 7)], "user, item, time")
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("CREATE TABLE products (id, name, genres, description)")
        rows = [(10, "Ten (1999)", "x|y", "d"), (20, None, None, None), (40, "Forty", "z", None)]
        connection.executemany("INSERT INTO products VALUES (?, ?, ?, ?)", rows)
    query, items = "SELECT * FROM sales", "SELECT * FROM products"
    found = read_sql(url, query, items_query=items, malformed="skip")
    assert found.catalogue.ids == ("10", "20", "40")
    assert found.catalogue.titles == ("Ten", "20", "Forty")
    assert found.catalogue.categories == (("x", "y"), (), ("z",))
    assert found.catalogue.fields["year"] == ("1999", "", "")
    assert found.catalogue.fields["description"] == ("d", "", "")
    assert found.dropped.counts == {"unknown item": 1}
    with pytest.raises(DataError, match=r"query:2: unknown item: '30' is not in the catalogue"):
        read_sql(url, query, items_query=items)
    with pytest.raises(DataError, match=r"items_query:1: item id is neither text nor a whole number: id is 1\.5"):
        read_sql(url, query, items_query="SELECT 1.5 AS id")
    with pytest.raises(DataError, match=r"items_query:2: item id appears twice: '7'"):
        read_sql(url, query, items_query="SELECT 7 AS id UNION ALL SELECT '7'")


def test_what_a_silo_sells_is_what_its_items_query_names(tmp_path: Path) -> None:
    """As a file of items does; without one, it is what was met."""
    url, run = sqlite(tmp_path / "shop.db", [("u", "a", 1), ("u", "c", 2), ("u", "zz", 3)], "user, item, time"), config(tmp_path)
    source = OwnSource(url=url, query="SELECT * FROM sales")
    dataset, sold = own_data(run, source)
    assert [dataset.catalogue.ids[i] for i in dataset.interactions.item] == ["a", "c"]
    assert sold is not None
    assert np.flatnonzero(sold).tolist() == [0, 2]
    items = "SELECT 'a' AS item UNION SELECT 'c' UNION SELECT 'e'"
    _, sold = own_data(run, OwnSource(url=url, query="SELECT * FROM sales", items_query=items))
    assert sold is not None
    assert np.flatnonzero(sold).tolist() == [0, 2, 4]
    with pytest.raises(DataError, match=r"sqlite:///.*shop\.db: no item of these data is in the run's catalogue"):
        own_data(run, OwnSource(url=url, query="SELECT * FROM sales WHERE item = 'zz'"))


# --- read only


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM sales",
        "DELETE FROM sales RETURNING customer AS user, sku AS item, bought_at AS time",
        "INSERT INTO sales SELECT * FROM sales",
        "UPDATE sales SET stars = 1",
        "DROP TABLE sales",
        "CREATE TABLE more (x)",
        "CREATE TEMP TABLE more (x)",
        "PRAGMA user_version = 7",
        "PRAGMA query_only = OFF",
        "COMMIT",
        "VACUUM",
    ],
)
@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_a_query_that_writes_is_refused_and_nothing_changes(tmp_path: Path, kind: str, query: str) -> None:
    url = {"sqlite": sqlite, "duckdb": duckdb}[kind](tmp_path / "shop.db")
    before = contents(tmp_path)
    with pytest.raises(DataError, match="one SELECT"):
        read_sql(url, query)
    assert contents(tmp_path) == before


def test_sqlite_attaches_no_other_file(tmp_path: Path) -> None:
    url = sqlite(tmp_path / "shop.db")
    for query in (f"ATTACH '{tmp_path / 'new.db'}' AS new", f"VACUUM INTO '{tmp_path / 'new.db'}'"):
        with pytest.raises(DataError, match="refuses the query"):
            read_sql(url, query)
    assert [path.name for path in tmp_path.iterdir()] == ["shop.db"]


def test_sqlite_itself_holds_back_what_the_check_of_statements_would_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two locks: without the list of allowed actions the file is still opened read only."""
    from common.data import sql_databases

    monkeypatch.setattr(sql_databases, "_READING", frozenset(range(100)))
    url = sqlite(tmp_path / "shop.db")
    before = contents(tmp_path)
    with pytest.raises(DataError, match="attempt to write a readonly database"):
        read_sql(url, "DELETE FROM sales")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "query", ["COPY ({0}) TO '{1}'", "{0}; COPY ({0}) TO '{1}'", "ATTACH '{1}' AS new", "EXPORT DATABASE '{1}'"]
)
@pytest.mark.parametrize("database", ["shop.duckdb", ":memory:"])
def test_duckdb_writes_no_file(tmp_path: Path, database: str, query: str) -> None:
    """A read-only transaction alone would not hold it back."""
    duckdb(tmp_path / "shop.duckdb")
    before = contents(tmp_path)
    url = f"duckdb:///{tmp_path / database}" if database != ":memory:" else "duckdb:///:memory:"
    with pytest.raises(DataError, match="the query must be one SELECT: it is run read only"):
        read_sql(url, query.format("SELECT 1", tmp_path / "new.csv"))
    assert contents(tmp_path) == before


def test_duckdb_opens_its_file_read_only_fetches_no_code_and_lets_no_query_change_that(tmp_path: Path) -> None:
    from common.data.sql_databases import open_database

    names = ("access_mode", "autoinstall_known_extensions", "lock_configuration", "TimeZone", "temp_directory")
    query = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    with open_database(duckdb(tmp_path / "shop.duckdb")) as ask:
        assert next(ask(query).blocks) == [("read_only", False, True, "UTC", "")]


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_a_file_that_is_not_there_is_an_error_and_is_not_made(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=r"nope\.db: there is no such file of a database"):
        read_sql(f"{kind}:///{tmp_path}/nope.db", QUERY)
    with pytest.raises(DataError, match=r"nope\.db: there is no such file of a database"):
        read_sql(f"{kind}:///nope.db", QUERY, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"names no file; it looks like sqlite:///path/to/file"):
        read_sql("sqlite://", QUERY)


def test_a_database_that_a_shop_is_writing_to_is_read_as_it_was_last_committed(tmp_path: Path) -> None:
    """With SQLite's write-ahead log, which a reader does not wait for."""
    url = sqlite(tmp_path / "shop.db")
    shop = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    shop.execute("PRAGMA journal_mode = WAL")
    shop.execute("INSERT INTO sales VALUES ('u3', 'a', 1, 1, '')")
    shop.execute("BEGIN IMMEDIATE")
    shop.execute("INSERT INTO sales VALUES ('u4', 'a', 1, 1, '')")
    assert read_sql(url, QUERY, columns=COLUMNS).interactions.user_ids == ("u2", "u1", "u10", "u3")
    shop.execute("COMMIT")
    assert read_sql(url, QUERY, columns=COLUMNS).interactions.user_ids[-1] == "u4"
    shop.close()


def test_relative_names_are_looked_up_in_the_silos_folder(tmp_path: Path) -> None:
    sqlite(tmp_path / "shop.db")
    duckdb(tmp_path / "shop.duckdb")
    parquet = QUERY.replace("sales", "'shop.parquet'")
    for url, query in (("sqlite:///shop.db", QUERY), ("duckdb:///shop.duckdb", QUERY), ("duckdb:///:memory:", parquet)):
        source = OwnSource(url=url, query=query, columns=COLUMNS, folder=tmp_path)
        assert len(source.read().interactions) == len(ROWS)
    csv(tmp_path / "shop.csv")
    assert len(OwnSource(path=Path("shop.csv"), columns=COLUMNS, folder=tmp_path).read().interactions) == len(ROWS)


# --- sentences


@pytest.mark.parametrize(
    ("query", "columns", "sentence"),
    [
        ("SELECT * FROM nowhere", {}, r"the database refuses the query: no such table: nowhere\. Check the names in it"),
        ("SELECT sku FROM sales", {}, r"query:1: missing column for 'user'; the query has: sku\. Name it in the column mapping$"),
        (QUERY, {**COLUMNS, "item": "nope"}, r"query:1: missing column 'nope' \(for item\); the query has: customer, sku"),
        (QUERY + " WHERE 0", COLUMNS, r"query: no interaction is left$"),
        (
            "SELECT 1 AS user, 1 AS item, 2 AS item, 3 AS time",
            {},
            r"query: the result has column 'item' twice: rename one of them",
        ),
        (QUERY, {**COLUMNS, "items": "products.csv"}, r"items in the column mapping names a file; of a database, an items_query"),
        (QUERY, {**COLUMNS, "time": ""}, r"time cannot be left out: rows of a database have no order of their own"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, query: str, columns: dict[str, str], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_sql(sqlite(tmp_path / "shop.db"), query, columns=columns)


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path, kind: str) -> None:
    (tmp_path / "shop.db").write_text("not a database\n" * 2000)
    with pytest.raises(DataError, match=r"shop\.db: the database (refuses|cannot be opened).*not a (valid DuckDB )?database"):
        read_sql(f"{kind}:///{tmp_path}/shop.db", QUERY)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("oracle://silo:hunter2@h/d", "a database of kind 'oracle' is not known; known are: postgresql://, mysql://"),
        ("postgresql+psycopg2://silo:hunter2@h/d", "the driver 'psycopg2' is not known; write postgresql:// without a driver"),
        ("postgresql://silo:hunter2@h", "the URL names no database; it looks like postgresql://user@host/name"),
        ("postgresql://silo:hunter2@@h/d", "the database's URL cannot be read; it looks like postgresql://user@host:5432/name"),
        ("postgresql://silo:x@hunter2/@h/d", "the database's URL cannot be read"),
        ("postgresql://silo/hunter2@h/d", "the database's URL cannot be read"),
        ("postgresql://silo:5a@h:hunter2/d", "the database's URL cannot be read"),
        ("sqlite:///shop.db?mode=rwc&password=hunter2", "a URL of sqlite names a file and nothing else"),
        ("duckdb://silo:hunter2@h/d", "a URL of duckdb names a file and nothing else"),
        ("hunter2", "the database's URL cannot be read"),
    ],
)
def test_a_url_that_cannot_be_used_is_not_repeated(url: str, sentence: str) -> None:
    with pytest.raises(DataError) as refused:
        read_sql(url, QUERY)
    assert sentence in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert "silo" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "module"), [("postgresql://u@h/d", "psycopg"), ("mysql://u@h/d", "pymysql"), ("duckdb://", "duckdb")]
)
def test_a_missing_driver_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch, url: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"its driver is not installed \({module}\): pip install 'silorec\[sql\]'"):
        read_sql(url, QUERY)


def test_without_sqlalchemy_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy.engine", None)
    with pytest.raises(DataError, match=r"SQLAlchemy, which is not installed: pip install 'silorec\[sql\]'"):
        read_sql("sqlite:///x.db", QUERY)


def test_a_source_is_a_path_or_a_database_and_shows_no_secret() -> None:
    secret = OwnSource(
        url="postgresql://silo:hunter2@db.example:5432/shop?sslpassword=hunter3", query="SELECT 'hunter4'", items_query="hunter5"
    )
    assert "hunter" not in repr(secret)
    assert secret.place == "postgresql://db.example:5432/shop"
    assert hash(secret) == hash(OwnSource(url=secret.url, query=secret.query, items_query=secret.items_query))
    assert hash(OwnSource(path=Path("x.csv"), columns={"b": "2", "user": "1"})) == hash(
        OwnSource(path=Path("x.csv"), columns={"user": "1", "b": "2"})
    )
    assert OwnSource.of({"data": "shop.csv", "silo": 3}) == OwnSource(path=Path("shop.csv"))
    named = {"data": "sqlite:///shop.db", "query": QUERY, "items_query": "", "password_file": "pw"}
    assert OwnSource.of(named) == OwnSource(url="sqlite:///shop.db", query=QUERY, password_file=Path("pw"))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "either a path"),
        ({"path": Path("x"), "url": "sqlite:///x", "query": QUERY}, "either a path"),
        ({"url": "postgresql://silo:hunter2@h/d"}, "give the query, a SELECT"),
        ({"url": "sqlite:///x", "query": " "}, "give the query"),
        ({"path": Path("x"), "query": QUERY}, "query goes with the url of a database"),
        ({"url": "sqlite:///x", "query": QUERY, "format": "csv"}, "format = 'csv' is for files"),
    ]
    for arguments, sentence in wrong:
        with pytest.raises(ConfigError, match=sentence) as refused:
            OwnSource(**arguments)
        assert "hunter" not in str(refused.value)


def test_a_file_of_a_password_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pw"
    url = "postgresql://silo@127.0.0.1:1/shop"
    with pytest.raises(DataError, match=r"pw: the password cannot be read: No such file"):
        read_sql(url, QUERY, password_file=file)
    file.write_text("hunter2\n")
    for mode in (0o640, 0o604, 0o622):
        os.chmod(file, mode)
        with pytest.raises(DataError, match=rf"pw: others than its owner .*\(mode {mode:04o}\); run: chmod 600 .*pw"):
            read_sql(url, QUERY, password_file=file)
    file.chmod(0o600)
    with pytest.raises(DataError, match="there is a password in the URL and a password_file: give one of them") as refused:
        read_sql(url.replace("silo@", "silo:hunter3@"), QUERY, password_file=file)
    assert "hunter" not in str(refused.value)
    with pytest.raises(DataError, match=r"cannot be reached: .*Connection refused.* Check host, port, name, user and password"):
        read_sql(url, QUERY, password_file=Path("pw"), folder=tmp_path)
    file.write_text("\n")
    with pytest.raises(DataError, match="pw: the file of the password is empty"):
        read_sql(url, QUERY, password_file=file)
    monkeypatch.delenv("SHOP_PASSWORD", raising=False)
    with pytest.raises(DataError, match=r"the URL names \$\{SHOP_PASSWORD\}, but there is no environment variable of that name"):
        read_sql("postgresql://silo:${SHOP_PASSWORD}@127.0.0.1:1/shop", QUERY)


# --- the command line


def inspect(*arguments: str) -> str:
    result = CliRunner().invoke(data_app, ["inspect", *arguments], catch_exceptions=False, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_an_operator_tries_the_query_before_joining(tmp_path: Path) -> None:
    url = sqlite(tmp_path / "shop.db", [*ROWS, (None, "a", 1, 1, "")])
    mapped = [f"--column={ours}={theirs}" for ours, theirs in COLUMNS.items()]
    found = json.loads(inspect(url, "--query", QUERY, *mapped, "--malformed", "skip", "--json"))
    expected = summary(read_sql(url, QUERY, columns=COLUMNS, malformed="skip"))
    assert found == {"path": url, "format": "sql", **expected}
    assert found["interactions"] == len(ROWS)
    assert found["dropped"] == {"empty user id": {"count": 1, "example": "query:6: column customer"}}
    out = inspect(
        url, "--query", QUERY, *mapped, "--malformed", "skip", "--items-query", "SELECT DISTINCT sku AS item FROM sales"
    )
    for piece in ("query (sql)", "3, of which 3 touched", "query:6: column customer"):
        assert piece in out
    with pytest.raises(ConfigError, match="query goes with the url of a database, not with a path"):
        inspect(str(csv(tmp_path / "shop.csv")), "--query", QUERY)
    with pytest.raises(ConfigError, match="give the query, a SELECT"):
        inspect(url)
