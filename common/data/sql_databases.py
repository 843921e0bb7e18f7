"""The databases that a silo may point at, each opened so that the database itself refuses to write.

PostgreSQL and MySQL run the query in a read-only transaction, SQLite opens the file read only and allows nothing but reading,
DuckDB opens its file read only and takes one SELECT. Rows come in blocks from a cursor on the server, so that a table larger than
the memory can be read. The session's time zone is UTC.

Messages name the kind of database, its host and its name; never the user, the password or the URL's options.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from common.data.sql_url import INSTALL, SERVERS, backend_of, parse, place_of, with_secrets
from common.errors import DataError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, CursorResult

BLOCK_ROWS = 1 << 14
"""Rows that are held as Python objects at a time."""

_CONNECT_SECONDS = 15
_WRITES_A_FILE = re.compile(r"\binto\s+(?:out|dump)file\b", re.IGNORECASE)
_LONGEST_MESSAGE = 400
_REFUSES, _UNREACHED = "refuses the query", "cannot be reached"
_HINTS = {
    _REFUSES: ". Check the names in it; it must be one SELECT, and is run read only",
    _UNREACHED: ". Check host, port, name, user and password",
}

Block = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Answer:
    """What a query gives: the columns' names, and the rows in blocks that are read as they are asked for."""

    columns: tuple[str, ...]
    blocks: Iterator[Block]


Ask = Callable[[str], Answer]
Secrets = tuple[str, ...]


@contextmanager
def open_database(
    url: str, *, password_file: Path | None = None, folder: Path | None = None, block_rows: int = BLOCK_ROWS
) -> Iterator[Ask]:
    """A function that asks the database, in one transaction that cannot write.

    Parameters
    ----------
    url:
        As SQLAlchemy writes it; ``${NAME}`` in it is the environment variable of that name.
    password_file:
        A file that holds the password and that only its owner can read.
    folder:
        Where relative names of files are looked up; None is the working folder.
    block_rows:
        Rows in a block.

    Raises
    ------
    DataError
        If the URL cannot be used, a driver is missing, or the database refuses.
    """
    parsed, folder = parse(url), folder or Path()
    place = place_of(parsed)
    whole = with_secrets(parsed, folder / password_file.expanduser() if password_file else None)
    secret = tuple(str(value) for value in (whole.password, *(v for k, v in whole.query.items() if "pass" in k.lower())) if value)
    with _explained(place, _UNREACHED if backend_of(parsed) in SERVERS else "cannot be opened", secret):
        database = _DATABASES[backend_of(parsed)](whole, folder, block_rows)
        ask = database.__enter__()

    def asked(query: str) -> Answer:
        with _explained(place, _REFUSES, secret):
            answer = ask(query)
        return Answer(answer.columns, _blocks(answer.blocks, place, secret))

    try:
        yield asked
    finally:
        database.__exit__(None, None, None)


def _blocks(blocks: Iterator[Block], place: str, secret: Secrets) -> Iterator[Block]:
    while True:
        with _explained(place, "stopped while it was read", secret):
            block = next(blocks, None)
        if not block:
            return
        yield block


@contextmanager
def _explained(place: str, what: str, secret: Secrets) -> Iterator[None]:
    """Turns what drivers raise into one sentence without the password and without the exception's own chain."""
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    duckdb = sys.modules.get("duckdb")  # loaded if a DuckDB was opened
    kinds: tuple[type[Exception], ...] = (SQLAlchemyError, sqlite3.Error, OSError, TypeError, ValueError, OverflowError)
    kinds += () if duckdb is None else (duckdb.Error,)
    try:
        yield
    except ImportError as error:
        raise DataError(f"its driver is not installed ({error.name or error}): {INSTALL}", place) from None
    except DBAPIError as error:
        raise DataError(_sentence(what, error.orig, secret), place) from None
    except kinds as error:
        raise DataError(_sentence(what, error, secret), place) from None


def _sentence(what: str, error: BaseException | None, secret: Secrets) -> str:
    numbered = error is not None and len(error.args) == 2 and isinstance(error.args[0], int)  # MySQL
    text = str(error.args[1] if error is not None and numbered else error)
    text = " ".join(re.split(r"\n+\s*LINE \d+:", text)[0].split())[:_LONGEST_MESSAGE]
    for hidden in secret:
        text = text.replace(hidden, "***").replace(quote(hidden, safe=""), "***")
    return f"the database {what}: {text.rstrip('.')}{_HINTS.get(what, '')}"


def _fetched(fetch: Callable[[int], Block], block_rows: int) -> Iterator[Block]:
    while block := fetch(block_rows):
        yield block


def _no_rows() -> DataError:
    return DataError("the query gives no rows; it must be one SELECT, and is run read only")


@contextmanager
def _sqlite(url: URL, folder: Path, block_rows: int) -> Iterator[Ask]:
    path = _existing(url, folder)
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=30, isolation_level=None)) as connection:
        connection.text_factory = _text_or_bytes
        connection.execute("PRAGMA query_only = ON")
        connection.execute("BEGIN")
        connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY)

        def ask(query: str) -> Answer:
            cursor = connection.execute(query)
            if cursor.description is None:
                raise _no_rows()
            return Answer(tuple(column[0] for column in cursor.description), _fetched(cursor.fetchmany, block_rows))

        yield ask


_NO_DOWNLOADS: dict[str, str | bool | int | float | list[str]] = {"autoinstall_known_extensions": False}
_READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})


def _text_or_bytes(raw: bytes) -> str | bytes:
    """What is not UTF-8 stays bytes, so that the row can be named that holds it."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


@contextmanager
def _duckdb(url: URL, folder: Path, block_rows: int) -> Iterator[Ask]:
    import duckdb
    import pytz  # noqa: F401  duckdb needs it for times with a zone

    in_memory = url.database in (None, "", ":memory:")
    settings = {
        "TimeZone": "UTC",
        "file_search_path": str(folder.absolute()),
        "temp_directory": "",  # it would write what it sorts beside the data
        "lock_configuration": "true",
    }
    path = ":memory:" if in_memory else str(_existing(url, folder))
    with closing(duckdb.connect(path, read_only=not in_memory, config=_NO_DOWNLOADS)) as connection:
        for name, value in settings.items():
            connection.execute(f"SET {name} = '{value.replace(chr(39), chr(39) * 2)}'")
        connection.execute("BEGIN TRANSACTION READ ONLY")

        def ask(query: str) -> Answer:
            # COPY writes files, read-only transaction or not: so its own parser says first what the query is.
            statements = connection.extract_statements(query)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                raise DataError("the query must be one SELECT: it is run read only")
            cursor = connection.execute(statements[0])
            return Answer(tuple(column[0] for column in cursor.description), _fetched(cursor.fetchmany, block_rows))

        yield ask


@contextmanager
def _postgresql(url: URL, folder: Path, block_rows: int) -> Iterator[Ask]:
    defaults = {"application_name": "silorec", "client_encoding": "utf8"}
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with _served(url, options, defaults, ["SET LOCAL TIME ZONE 'UTC'"], block_rows) as ask:
        yield ask


@contextmanager
def _mysql(url: URL, folder: Path, block_rows: int) -> Iterator[Ask]:
    begin = [
        "SET SESSION time_zone = '+00:00'",
        "SET SESSION TRANSACTION READ ONLY",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
    ]
    # PyMySQL would send a password that is a str in Latin-1.
    password = {} if url.password is None else {"password": str(url.password).encode()}
    with _served(url, {}, {"charset": "utf8mb4", **password}, begin, block_rows) as ask:

        def checked(query: str) -> Answer:
            if _WRITES_A_FILE.search(query):
                raise DataError("the query must not write a file (INTO OUTFILE): it is run read only")
            return ask(query)

        yield checked


@contextmanager
def _served(
    url: URL, options: Mapping[str, Any], defaults: Mapping[str, Any], begin: Sequence[str], block_rows: int
) -> Iterator[Ask]:
    """A database behind SQLAlchemy; ``begin`` are statements that open the transaction."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    backend = backend_of(url)
    arguments = {
        name: value for name, value in {"connect_timeout": _CONNECT_SECONDS, **defaults}.items() if name not in url.query
    }
    engine = create_engine(
        url.set(drivername=f"{backend}+{SERVERS[backend]}"), connect_args=arguments, poolclass=NullPool, hide_parameters=True
    )
    connection = engine.connect().execution_options(**options)
    given: list[CursorResult[Any]] = []
    try:
        for statement in begin:
            connection.exec_driver_sql(statement)

        def ask(query: str) -> Answer:
            # no_parameters: a % in the query is a %
            result = connection.exec_driver_sql(query, execution_options={"yield_per": block_rows, "no_parameters": True})
            if not result.returns_rows:
                raise _no_rows()
            given.append(result)
            return Answer(tuple(result.keys()), iter(result.partitions(block_rows)))

        yield ask
    finally:
        # The rest of the rows is not waited for, which PyMySQL would do.
        unread = getattr(connection.connection.driver_connection, "_result", None) if backend != "postgresql" else None
        if unread is not None:
            unread.unbuffered_active = False
        with suppress(DBAPIError):  # what was to be read was read, or its failure is told already
            for result in given:
                result.close()
        connection.invalidate()
        connection.close()
        engine.dispose()


def _existing(url: URL, folder: Path) -> Path:
    if not url.database or url.database == ":memory:":
        raise DataError(f"the URL names no file; it looks like {backend_of(url)}:///path/to/file")
    path = folder / Path(url.database).expanduser()
    if not path.is_file():
        raise DataError("there is no such file of a database", path)
    return path.absolute()


_DATABASES: dict[str, Callable[[URL, Path, int], AbstractContextManager[Ask]]] = {
    "postgresql": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
    "sqlite": _sqlite,
    "duckdb": _duckdb,
}
