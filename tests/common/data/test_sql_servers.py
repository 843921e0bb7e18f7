"""Data in PostgreSQL and in MariaDB, both really running: the same data set as from a file, and nothing is written."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.data.load import read_dataset
from common.data.own import OwnSource
from common.data.sql import read_sql
from common.data.sql_databases import open_database
from common.errors import DataError
from tests import databases
from tests.common.data.test_sql import COLUMNS, QUERY, ROWS, csv, same

TYPES = "customer varchar(20), sku varchar(20), bought_at bigint, stars double precision, said text"


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Iterator[databases.Server]:
    with getattr(databases, request.param)() as running:
        yield running


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "pw"
    file.write_text(databases.PASSWORD + "\n", encoding="utf-8")
    file.chmod(0o600)
    return file


def test_a_server_gives_the_same_data_set_as_a_file_of_the_same_rows(
    server: databases.Server, password: Path, tmp_path: Path
) -> None:
    rows = [*ROWS, *((f"u{at % 7}", f"i{at % 3}", 1_600_000_000 + at % 5, at % 5, f"said {at}") for at in range(400))]
    server.fill("sales", TYPES, rows)
    file = csv(tmp_path / "shop.csv", rows)
    mine = OwnSource(url=server.url, query=QUERY, columns=COLUMNS, password_file=password).read()
    same(mine, OwnSource(path=file, columns=COLUMNS).read())
    assert mine.dropped.counts["same user, item and time as an earlier row"] > 100
    # Where the query orders the rows, nothing else needs to.
    server.run("ALTER TABLE sales ADD at_line int", "UPDATE sales SET at_line = 0")
    for line, row in enumerate(ROWS):
        text = row[4].replace("'", "''")
        server.run(f"UPDATE sales SET at_line = {line + 1} WHERE said = '{text}' AND stars = {row[3]}")
    query = f"{QUERY} WHERE at_line > 0 ORDER BY at_line"
    for size in (2, 1000):
        found = read_sql(server.url, query, columns=COLUMNS, password_file=password, block_rows=size)
        same(found, read_dataset(csv(file), columns=COLUMNS))


def test_times_ids_and_values_of_the_servers_own_types(server: databases.Server, password: Path) -> None:
    """2021-03-28 01:30 UTC is in the hour that Berlin's clocks leave out: no time zone but UTC gives it back."""
    moment = "2021-03-28 01:30:00"
    zoned, plain = {"postgresql": ("timestamptz", "timestamp"), "mysql": ("timestamp NULL", "datetime")}[server.backend]
    cast = f"CAST(zoned AS {plain})"
    server.run(
        "DROP TABLE IF EXISTS kinds",
        f"CREATE TABLE kinds (customer numeric(12), sku integer, zoned {zoned}, plain {plain}, day date, stars numeric(3, 1))",
        "SET time_zone = '+00:00'" if server.backend == "mysql" else "SET TIME ZONE 'UTC'",
        f"INSERT INTO kinds VALUES (123456789012, 7, '{moment}', '{moment}', '2021-03-28', 4.5)",
    )
    if server.backend == "postgresql":
        server.run("ALTER DATABASE shop SET timezone = 'Europe/Berlin'")
    else:
        server.run("SET GLOBAL time_zone = '+02:00'")
    expected = int(datetime(2021, 3, 28, 1, 30, tzinfo=UTC).timestamp())
    for column, seconds in {"zoned": expected, "plain": expected, "day": expected - 5400, cast: expected}.items():
        query = f"SELECT customer, sku, {column} AS time, stars FROM kinds"
        found = read_sql(server.url, query, columns={"user": "customer", "item": "sku"}, password_file=password)
        assert found.interactions.time.tolist() == [seconds], column
        assert found.interactions.user_ids == ("123456789012",)
        assert found.catalogue.ids == ("7",)
        assert found.interactions.value is not None
        assert found.interactions.value.tolist() == [4.5]


def test_a_query_is_taken_word_for_word(server: databases.Server, password: Path) -> None:
    server.fill("sales", TYPES, ROWS)
    query = f"{QUERY} WHERE said LIKE '%b%' AND ':x' = ':x' AND '%s' <> '%(x)s' -- 100 %"
    found = read_sql(server.url, query, columns=COLUMNS, password_file=password)
    assert found.interactions.text == [ROWS[2][4]]
    assert len(read_sql(server.url, QUERY + ";\n", columns=COLUMNS, password_file=password).interactions) == len(ROWS)


def test_malformed_rows_are_named_or_counted(server: databases.Server, password: Path) -> None:
    server.fill("sales", TYPES, [*ROWS, (None, "a", 1, 1, ""), ("u", "a", None, 1, ""), ("u", "a", 1, None, "")])
    query = f"{QUERY} WHERE customer IS NULL OR bought_at IS NULL OR stars IS NULL OR said = 'good' ORDER BY said DESC"
    with pytest.raises(DataError, match=r"query:2: (empty user id|time is missing|value is not a number): "):
        read_sql(server.url, query, columns=COLUMNS, password_file=password)
    found = read_sql(server.url, query, columns=COLUMNS, password_file=password, malformed="skip")
    assert found.dropped.counts == {"empty user id": 1, "time is missing": 1, "value is not a number": 1}
    assert found.interactions.text == ["good"]


WRITES = {
    "delete": "DELETE FROM sales",
    "insert": "INSERT INTO sales VALUES ('x', 'x', 1, 1, '')",
    "update": "UPDATE sales SET stars = 0",
    "truncate": "TRUNCATE TABLE sales",
    "drop": "DROP TABLE sales",
    "create": "CREATE TABLE more (x int)",
    "lock": f"{QUERY} FOR UPDATE",
    "two": f"{QUERY}; DELETE FROM sales",
    "commit": "COMMIT; DELETE FROM sales",
    "function": "SELECT writes() AS customer, 'a' AS sku, 1 AS bought_at, 1 AS stars, '' AS said",
    "with": f"WITH gone AS (DELETE FROM sales RETURNING *) {QUERY.replace('sales', 'gone')}",
    "outfile": f"{QUERY} INTO OUTFILE '/tmp/silorec-outfile.csv'",
    "copy": "COPY sales TO '/tmp/silorec-outfile.csv'",
    "mode": "SET SESSION TRANSACTION READ WRITE",
}


def a_function_that_writes(server: databases.Server) -> None:
    made = {
        "postgresql": "CREATE FUNCTION writes() RETURNS int LANGUAGE plpgsql AS $$ BEGIN DELETE FROM sales; RETURN 1; END $$",
        "mysql": "CREATE FUNCTION writes() RETURNS int MODIFIES SQL DATA BEGIN DELETE FROM sales; RETURN 1; END",
    }[server.backend]
    server.run("DROP FUNCTION IF EXISTS writes", made)


@pytest.mark.parametrize("how", WRITES)
def test_the_server_refuses_a_query_that_writes_and_nothing_changes(server: databases.Server, password: Path, how: str) -> None:
    """Though the user may write: the transaction may not."""
    server.fill("sales", TYPES, ROWS)
    a_function_that_writes(server)
    with pytest.raises(DataError, match=r"one SELECT|must not write a file"):
        read_sql(server.url, WRITES[how], columns=COLUMNS, password_file=password)
    assert server.run("SELECT count(*), sum(stars) FROM sales") == [(len(ROWS), sum(row[3] for row in ROWS))]
    assert not server.run("SELECT 1 FROM information_schema.tables WHERE table_name = 'more'")
    assert not Path("/tmp/silorec-outfile.csv").exists()


def test_it_is_the_transaction_that_cannot_write(server: databases.Server, password: Path) -> None:
    """The function is a SELECT to every parser; the same user may call it in a transaction of their own."""
    server.fill("sales", TYPES, ROWS)
    a_function_that_writes(server)
    with pytest.raises(DataError, match=r"(?i)cannot execute .* in a read.only transaction"):
        read_sql(server.url, WRITES["function"], columns=COLUMNS, password_file=password)
    server.run("SELECT writes()")
    assert server.run("SELECT count(*) FROM sales") == [(0,)]


def test_both_queries_see_the_same_moment(server: databases.Server, password: Path) -> None:
    server.fill("sales", TYPES, ROWS)
    with open_database(server.url, password_file=password) as ask:
        count = "SELECT count(*) FROM sales"
        before = [tuple(row) for block in ask(count).blocks for row in block]
        server.run("INSERT INTO sales VALUES ('new', 'a', 1, 1, '')")
        assert [tuple(row) for block in ask(count).blocks for row in block] == before == [(len(ROWS),)]
    assert server.run(count) == [(len(ROWS) + 1,)]


def test_a_reading_that_is_given_up_does_not_wait_for_the_rest(server: databases.Server, password: Path) -> None:
    """Eight million rows are left when the first is refused."""
    query = {
        # A function in FROM would be evaluated whole first, one in SELECT is not.
        "postgresql": "SELECT '' AS user_id, generate_series(1, 8000000) AS item_id, 1 AS time",
        "mysql": "SELECT '' AS user_id, seq AS item_id, 1 AS time FROM seq_1_to_8000000",
    }[server.backend]
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pytest warns of what a destructor raises
        with pytest.raises(DataError, match="query:1: empty user id"):
            read_sql(server.url, query, password_file=password)
        gc.collect()
    assert time.monotonic() - start < 5
    assert server.run("SELECT 1") == [(1,)]


def test_no_password_is_in_a_message_a_log_or_a_traceback(
    server: databases.Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given in each of the three ways, and wrong in each."""
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "pw"
    file.write_text("hunter2-%/@:", encoding="utf-8")
    file.chmod(0o600)
    monkeypatch.setenv("SHOP_PASSWORD", "hunter2-%/@:")
    sources = [
        OwnSource(url=server.url, query=QUERY, password_file=file),
        OwnSource(url=server.url.replace("owner@", "owner:${SHOP_PASSWORD}@"), query=QUERY),
        OwnSource(url=server.url.replace("owner@", "owner:hunter2-%25%2F%40%3A@"), query=QUERY),
        OwnSource(url=server.url.replace("owner@", "owner:hunter2@") + "?passfile=hunter2&password=hunter2", query=QUERY),
    ]
    for source in sources:
        with pytest.raises(DataError) as refused:
            source.read()
        told = "".join(traceback.format_exception(refused.value))
        assert f"127.0.0.1:{server.port}/shop: the database cannot be reached: " in told
        assert "Check host, port, name, user and password" in told
        assert "hunter2" not in told + caplog.text + repr(source) + repr(refused.value)


def test_the_password_may_come_from_the_environment_or_stand_in_the_url(
    server: databases.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.parse import quote

    server.fill("sales", TYPES, ROWS)
    monkeypatch.setenv("SHOP_PASSWORD", databases.PASSWORD)
    monkeypatch.setenv("SHOP_NAME", "shop")
    named = server.url.replace("owner@", "owner:${SHOP_PASSWORD}@").replace("/shop", "/${SHOP_NAME}")
    written = server.url.replace("owner@", f"owner:{quote(databases.PASSWORD, safe='')}@")
    for url in (named, written):
        assert len(read_sql(url, QUERY, columns=COLUMNS).interactions) == len(ROWS)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("/shop", "/nope"), r"/nope: the database cannot be reached: .*nope"),
        (("owner@", "nobody@"), r"/shop: the database cannot be reached: .*nobody"),
        (("127.0.0.1", "nowhere.invalid"), r"://nowhere\.invalid:\d+/shop: the database cannot be reached: .*nowhere\.invalid"),
        (("/shop", "/shop?colour=red"), r"/shop: the database cannot be reached: .*colour"),
    ],
)
def test_a_server_that_cannot_be_reached_is_named(
    server: databases.Server, password: Path, change: tuple[str, str], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        read_sql(server.url.replace(*change), QUERY, password_file=password)


def test_an_unknown_table_and_a_value_that_python_cannot_hold_are_said(server: databases.Server, password: Path) -> None:
    with pytest.raises(DataError, match=r"refuses the query: .*nowhere.*exist\. Check the names in it"):
        read_sql(server.url, "SELECT * FROM nowhere", password_file=password)
    if server.backend == "postgresql":
        query = "SELECT 'u' AS user_id, 'i' AS item_id, 'infinity'::timestamp AS time"
        with pytest.raises(DataError, match=r"the database .*: timestamp too large"):
            read_sql(server.url, query, password_file=password)


# --- large tables

READ_AND_MEASURE = """
import json, sys
from pathlib import Path
from common.data.sql import read_sql
from common.data.sql_databases import open_database

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

url, query, password = sys.argv[1], sys.argv[2], Path(sys.argv[3])
with open_database(url, password_file=password) as ask:
    list(ask("SELECT 1").blocks)  # all modules are loaded
before = peak()
data = read_sql(url, query, password_file=password, ordered=True)
print(json.dumps([len(data.interactions), peak() - before]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_million_rows_need_less_than_200_mib(server: databases.Server, password: Path) -> None:
    """Some 100 are measured; the rows as Python objects would be more than 500."""
    numbers = (
        "generate_series(0::bigint, 999999) AS t(n)"
        if server.backend == "postgresql"
        else "(SELECT seq AS n FROM seq_0_to_999999) AS t"
    )
    item = "concat('item-', n * 7919 % 10000)"
    query = f"SELECT n % 50000 AS user_id, {item} AS item_id, 1600000000 + n AS time, 1.0 + n % 5 AS rating FROM {numbers}"
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", READ_AND_MEASURE, server.url, query, str(password)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=300)
    rows, mib = json.loads(done.stdout)
    assert rows == 1_000_000
    assert mib < 200
