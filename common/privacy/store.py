"""Where a ledger lies: lines in an SQLite file that can be added to and nothing else.

SQLite runs with a write-ahead log and ``synchronous = FULL``: a line is on the disk when :meth:`Turn.append` returns, and a crash
leaves either all of it or none. Triggers refuse every change of a line that is there, and every line that does not follow on the
last one. They guard against accidents; against somebody who can write the file, the signatures and hashes in the lines do
(``common.privacy.entries``).

Beside ``ledger.sqlite`` lie two small files. ``ledger.sqlite.lock`` is held while a line is decided on and added, so that only
one process at a time does so, on what is there then. ``ledger.sqlite.head`` holds number and hash of the last line; it is
replaced before :meth:`Turn.append` returns. A store that has less than its head says has lost lines (its write-ahead log was
deleted, or the file was put back from an older copy), and is not used. Where all files together are put back from an older copy,
nothing here can tell: only somebody else who saw the newer lines can.

Every operation opens the file anew: an open connection would not survive a fork, and would go on writing to a file that was
replaced meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.durable import sync_folder
from common.errors import LedgerError

#: "silL" and the version of the tables, in the file's header.
_APPLICATION, _VERSION = 0x73696C4C, 1

#: Seconds that an operation waits for another process to finish its own.
PATIENCE = 10.0

NOTHING = "0" * 64

_SCHEMA = (
    "CREATE TABLE entries (seq INTEGER PRIMARY KEY, previous TEXT NOT NULL, hash TEXT NOT NULL UNIQUE, line BLOB NOT NULL)",
    "CREATE TRIGGER no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'a ledger is only added to'); END",
    "CREATE TRIGGER no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'a ledger is only added to'); END",
    "CREATE TRIGGER next_seq BEFORE INSERT ON entries WHEN NEW.seq IS NOT (SELECT coalesce(max(seq) + 1, 0) FROM entries) "
    "BEGIN SELECT RAISE(ABORT, 'not the next entry of the ledger'); END",
    "CREATE TRIGGER right_previous BEFORE INSERT ON entries "
    f"WHEN NEW.previous IS NOT coalesce((SELECT hash FROM entries WHERE seq = NEW.seq - 1), '{NOTHING}') "
    "BEGIN SELECT RAISE(ABORT, 'not after the last entry of the ledger'); END",
)

_HEAD = re.compile(rb"([0-9]{1,18}) ([0-9a-f]{64})\n")


@dataclass(frozen=True)
class Row:
    """One line with what the triggers look at."""

    seq: int
    previous: str
    hash: str
    line: bytes


class Turn:
    """The right to add lines, while the lock is held; see :meth:`Store.turn`."""

    def __init__(self, store: Store, connection: sqlite3.Connection) -> None:
        self._store, self._connection = store, connection

    def rows(self, start: int) -> list[Row]:
        """The lines from number ``start`` on."""
        with _in_words(self._store.path):
            return _rows(self._connection, start)

    def append(self, row: Row) -> None:
        """Add a line; it and its number are on the disk when this returns.

        Raises
        ------
        LedgerError
            If it could not be written. It may be there nevertheless after a crash of the disk: look again.
        """
        with _in_words(self._store.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.execute(
                    "INSERT INTO entries (seq, previous, hash, line) VALUES (?, ?, ?, ?)",
                    (row.seq, row.previous, row.hash, row.line),
                )
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
            self._store.write_head(row.seq + 1, row.hash)


class Store:
    """The lines at ``path``; the file is there already."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @classmethod
    def create(cls, path: Path, first: Row) -> Store:
        """Make a store with one line. It appears at once and whole, or not at all.

        Raises
        ------
        LedgerError
            If one is there, or was there and has lost its file, or it cannot be written.
        """
        store = cls(path)
        partial = store._beside(".partial")
        with _in_words(store.path):
            make_folder(store.path.parent)
            with store._locked():
                store._check_vacant()
                for left in (partial, Path(f"{partial}-journal"), store._beside("-wal"), store._beside("-shm")):
                    left.unlink(missing_ok=True)
                os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                with contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as connection:
                    for pragma in ("synchronous = EXTRA", f"application_id = {_APPLICATION}", f"user_version = {_VERSION}"):
                        connection.execute(f"PRAGMA {pragma}")
                    connection.execute("BEGIN")
                    for statement in _SCHEMA:
                        connection.execute(statement)
                    connection.execute(
                        "INSERT INTO entries VALUES (?, ?, ?, ?)", (first.seq, first.previous, first.hash, first.line)
                    )
                    connection.execute("COMMIT")
                    store._make_durable(connection)  # as it will be used, so that no later connection has to change it
                store.write_head(first.seq + 1, first.hash)
                os.replace(partial, store.path)
                sync_folder(store.path.parent)
        return store

    @contextlib.contextmanager
    def turn(self) -> Iterator[Turn]:
        """Hold the lock, so that what is read stays true until a line is added.

        Raises
        ------
        LedgerError
            If another process holds it for long, or the file is missing, damaged, not a ledger, or not writable.
        """
        self._check_there()
        with _in_words(self.path), self._locked(), contextlib.closing(self._connect(write=True)) as connection:
            yield Turn(self, connection)

    def rows(self) -> tuple[list[Row], tuple[int, str]]:
        """All lines, and the head to hold them against; read without a lock and without changing anything.

        Raises
        ------
        LedgerError
            If the file is missing, damaged or not a ledger.
        """
        self._check_there()
        with _in_words(self.path):
            head = self.read_head()  # before the lines: others may add some in between
            with contextlib.closing(self._connect(write=False)) as connection:
                return _rows(connection, 0), head

    def check_writable(self) -> None:
        """Whether lines can be added.

        Raises
        ------
        LedgerError
            If file or folder is write-protected.
        """
        for place in (self.path, self.path.parent):
            if not _may_write(place):
                raise LedgerError(f"{place}: cannot be written by this user, so nothing can be charged; nothing is released")

    def read_head(self) -> tuple[int, str]:
        """Number of lines, and the hash of the last, as they were when the last one was added."""
        path = self._beside(".head")
        try:
            found = _HEAD.fullmatch(path.read_bytes())
        except FileNotFoundError:
            raise LedgerError(f"{path}: it is missing: the files of a ledger belong together; {_COPY}") from None
        if not found:
            raise LedgerError(f"{path}: it is damaged; {_COPY}")
        return int(found[1]), found[2].decode()

    def check_head(self, head: tuple[int, str], have: int, hash_of: Callable[[int], str]) -> None:
        """Whether the ``have`` lines that are there, with hash ``hash_of(seq)``, reach as far as ``head`` says."""
        entries, last = head
        if have < entries:
            raise LedgerError(
                f"{self.path}: {entries} entries were written, but only {have} are there: its -wal file was lost, or an older "
                f"copy was put back without its .head file. What is missing was spent; {_COPY}"
            )
        if entries and hash_of(entries - 1) != last:
            raise LedgerError(f"{self.path}: entry {entries - 1} is not the one that was written; {_COPY}")

    def write_head(self, entries: int, last: str) -> None:
        """Replace the head, on the disk."""
        partial = self._beside(".head.partial")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(b"%d %s\n" % (entries, last.encode()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._beside(".head"))
        sync_folder(self.path.parent)

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(self.path.name + ending)

    def _check_vacant(self) -> None:
        if self.path.exists():
            raise LedgerError(f"{self.path}: there is a file already, and a ledger is never overwritten; choose another place")
        try:
            entries, _ = self.read_head()
        except LedgerError:
            if self._beside(".head").exists():
                raise
            return
        if entries > 1:  # with one, nothing was spent: the making of a ledger was interrupted
            raise LedgerError(
                f"{self.path}: a ledger of {entries} entries was here and is gone; a new one would forget what was spent. {_COPY}"
            )

    def _check_there(self) -> None:
        with _in_words(self.path):
            there = self.path.is_file()
        if not there:
            raise LedgerError(f"{self.path}: there is no ledger; make one with: silorec ledger init {self.path.parent}")

    def _connect(self, *, write: bool) -> sqlite3.Connection:
        """A new connection, checked to lead to a ledger."""
        mode = "mode=rw"  # also to read: it puts the log's files away afterwards, where a connection that only reads leaves them
        if not write and not (_may_write(self.path) and _may_write(self.path.parent)):
            mode = "mode=ro" if self._beside("-wal").exists() else "mode=ro&immutable=1"
        connection = sqlite3.connect(f"{self.path.as_uri()}?{mode}", uri=True, isolation_level=None, timeout=PATIENCE)
        try:
            connection.text_factory = _text
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            marks = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
            schema = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
            if marks != [_APPLICATION, _VERSION] or schema != set(_SCHEMA):
                raise LedgerError(f"{self.path}: not a ledger of this version of silorec, or its tables were altered; {_COPY}")
            if write:
                self._make_durable(connection)
            else:
                connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_durable(self, connection: sqlite3.Connection) -> None:
        if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise LedgerError(f"{self.path}: this file system takes no write-ahead log; keep the ledger on a local disk")
        for pragma in ("synchronous = FULL", "fullfsync = ON", "checkpoint_fullfsync = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer. The lock goes with the process that holds it, so a crash leaves none behind."""
        path = self._beside(".lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            give_up = time.monotonic() + PATIENCE
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                        raise
                if time.monotonic() > give_up:
                    raise LedgerError(
                        f"{self.path}: another process has been writing this ledger for {PATIENCE:g} s; nothing was released. "
                        f"If it hangs, end it: it is the one that 'fuser {path}' shows. Do not delete the file"
                    )
                time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)


_MEND = "Make room, or mend the rights of file and folder, and go on"
_COPY = "restore all files of the ledger from the same copy, and compare it with the last export that somebody else has"


def _may_write(place: Path) -> bool:
    return os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def make_folder(folder: Path) -> None:
    """Make ``folder`` (for its owner only) and what it lies in, each on the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)


def _rows(connection: sqlite3.Connection, start: int) -> list[Row]:
    found = connection.execute("SELECT seq, previous, hash, line FROM entries WHERE seq >= ? ORDER BY seq", (start,))
    return [
        Row(seq, previous, digest, line if isinstance(line, bytes) else str(line).encode())
        for seq, previous, digest, line in found
    ]


def _text(raw: bytes) -> str:
    """A damaged page may hold anything."""
    return raw.decode("utf-8", "replace")


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """What SQLite and the operating system say, as a :class:`LedgerError`."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise LedgerError(f"{path}: not a ledger, or a damaged one ({error}); nothing was released; {_COPY}") from None
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise LedgerError(f"{path}: {error}; nothing was released. Another program is writing the file: end it") from None
        raise LedgerError(f"{path}: {error}; nothing was released. {_MEND}") from None
    except UnicodeDecodeError:  # SQLite quotes what it found in a damaged file
        raise LedgerError(f"{path}: not a ledger, or a damaged one; nothing was released; {_COPY}") from None
    except OSError as error:
        raise LedgerError(f"{error.filename or path}: {error.strerror}; nothing was released. {_MEND}") from None
