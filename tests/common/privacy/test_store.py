"""The ledger's file is only added to, and a file that is not whole, not a ledger, or not all there is not used."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import common.privacy.store as store_module
from common.errors import LedgerError
from common.privacy.entries import read_export
from common.privacy.ledger import Ledger, read_ledger
from common.privacy.store import _SCHEMA, Store
from tests.common.privacy.ledgers import COUNT, SILO, Clock, asks, digest, full_ledger, policy, steps


@pytest.fixture
def ledger(folder: Path) -> Ledger:
    """Three reservations, of which two were answered."""
    made = Ledger.create(folder / "ledger.sqlite", policy(), SILO, clock=Clock())
    for number in range(1, 4):
        entry = made.reserve(asks(steps(number)), digest(str(number)))
        if number < 3:
            made.commit(entry.seq, digest("answer"))
    return made


def uses(ledger: Ledger) -> list[Callable[[], object]]:
    """Every way to go on with a ledger: a process that has it open, one that opens it, and one that only looks."""
    return [
        lambda: ledger.reserve(asks(COUNT), digest("q")),
        lambda: ledger.commit(5, digest("answer")),
        lambda: Ledger.open(ledger.path, SILO),
        lambda: read_ledger(ledger.path),
    ]


def refused(ledger: Ledger, said: str) -> None:
    for use in uses(ledger):
        with pytest.raises(LedgerError, match=said):
            use()


ALTERATIONS = [
    "UPDATE entries SET line = x'00' WHERE seq = 1",
    "UPDATE entries SET rowid = 99 WHERE seq = 5",
    "UPDATE OR REPLACE entries SET seq = 1 WHERE seq = 2",
    "UPDATE OR IGNORE entries SET hash = 'x'",
    "DELETE FROM entries",
    "DELETE FROM entries WHERE seq = 5",
    "REPLACE INTO entries SELECT * FROM entries WHERE seq = 5",
    "REPLACE INTO entries SELECT 1, previous, hash, line FROM entries WHERE seq = 2",
    "INSERT OR REPLACE INTO entries SELECT seq, previous, 'x', line FROM entries WHERE seq = 3",
    "INSERT OR IGNORE INTO entries SELECT seq, previous, 'x', line FROM entries WHERE seq = 3",
    "INSERT INTO entries SELECT * FROM entries WHERE seq = 0 ON CONFLICT DO UPDATE SET line = x'00'",
    "INSERT INTO entries SELECT 7, hash, 'x', line FROM entries WHERE seq = 5",
    "INSERT INTO entries SELECT 5, hash, 'x', line FROM entries WHERE seq = 4",
    "INSERT INTO entries SELECT 6, previous, 'x', line FROM entries WHERE seq = 5",
    "INSERT INTO entries SELECT -1, hash, 'x', line FROM entries WHERE seq = 5",
    "INSERT INTO entries (previous, hash, line) SELECT hash, 'x', line FROM entries WHERE seq = 5",
    "INSERT INTO entries VALUES (NULL, 'x', 'y', x'00')",
]


@pytest.mark.parametrize("recursive", ["OFF", "ON"])
@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_another_connection_cannot_change_remove_or_put_in_a_line(ledger: Ledger, alteration: str, recursive: str) -> None:
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA recursive_triggers = {recursive}")
        before = connection.execute("SELECT * FROM entries").fetchall()
        assert len(before) == 6
        with pytest.raises(
            sqlite3.IntegrityError, match=r"a ledger is only added to|not the next entry|not after the last entry"
        ):
            connection.execute(alteration)
        assert connection.execute("SELECT * FROM entries").fetchall() == before
    ledger.commit(5, digest("answer"))


def test_a_line_that_the_triggers_let_in_does_not_pass_the_signature(ledger: Ledger) -> None:
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO entries SELECT 6, hash, 'x', line FROM entries WHERE seq = 5")
    refused(ledger, "entry 6: its seq is 5")


def tampered(path: Path, statement: str) -> None:
    """Change lines as somebody would who knows the triggers, and put the triggers back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for trigger in ("no_update", "no_delete", "next_seq", "right_previous"):
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute(statement)
        for create in _SCHEMA[1:]:
            connection.execute(create)


def test_lines_that_were_altered_behind_the_triggers_are_found_with_their_entry(ledger: Ledger) -> None:
    tampered(ledger.path, "UPDATE entries SET line = replace(line, 'north', 'south') WHERE seq = 0")
    for use in (lambda: Ledger.open(ledger.path, SILO), lambda: read_ledger(ledger.path)):
        with pytest.raises(LedgerError, match=r"ledger\.sqlite: entry 0: the hash is not that of the entry"):
            use()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM entries WHERE seq = 3", "entry 3: its seq is 4"),
        ("DELETE FROM entries WHERE seq >= 4", "6 entries were written, but only 4 are there"),
        ("DELETE FROM entries WHERE seq > 0", "6 entries were written, but only 1 are there"),
        ("DELETE FROM entries", "6 entries were written, but only 0 are there"),
        ("UPDATE entries SET hash = 'x' WHERE seq = 2", "entry 2: its row does not say what its line says"),
        ("UPDATE entries SET previous = 'x' WHERE seq = 2", "entry 2: its row does not say what its line says"),
        ("UPDATE entries SET line = 'text' WHERE seq = 5", "entry 5: not a line of a ledger"),
        ("UPDATE entries SET line = x'' WHERE seq = 5", "entry 5: not a line of a ledger"),
    ],
)
def test_what_was_taken_out_behind_the_triggers_is_found(ledger: Ledger, statement: str, said: str) -> None:
    tampered(ledger.path, statement)
    for use in (lambda: Ledger.open(ledger.path, SILO), lambda: read_ledger(ledger.path)):
        with pytest.raises(LedgerError, match=said):
            use()
    if not statement.endswith(("seq = 3", "seq = 2")):  # what comes before its own last entry, an open ledger has read
        with pytest.raises(LedgerError, match=r"entry 5 is not there any more|entry 5: "):
            ledger.reserve(asks(COUNT), digest("q"))


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TRIGGER no_update",
        "DROP TRIGGER next_seq",
        "DROP TABLE entries",
        "ALTER TABLE entries ADD COLUMN note TEXT",
        "ALTER TABLE entries RENAME TO others",
        "CREATE TRIGGER sly AFTER INSERT ON entries BEGIN SELECT 1; END",
        "CREATE VIEW more AS SELECT * FROM entries",
        "CREATE TABLE more (x)",
        "PRAGMA user_version = 2",
        "PRAGMA application_id = 7",
    ],
)
def test_a_file_with_other_tables_or_triggers_is_not_used(ledger: Ledger, statement: str) -> None:
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as connection:
        connection.execute(statement)
    refused(ledger, "not a ledger of this version of silorec, or its tables were altered")


def test_a_foreign_file_is_not_a_ledger(folder: Path, ledger: Ledger) -> None:
    with closing(sqlite3.connect(folder / "shop.sqlite")) as connection:
        connection.execute("CREATE TABLE entries (seq, previous, hash, line)")
        connection.commit()
    (folder / "text.sqlite").write_text("a letter, long enough to be more than the header of a database" * 20)
    (folder / "empty.sqlite").write_bytes(b"")
    (folder / "folder.sqlite").mkdir()
    for name in ("shop", "text", "empty", "folder"):
        path = folder / f"{name}.sqlite"
        shutil.copy(folder / "ledger.sqlite.head", folder / f"{name}.sqlite.head")
        for use in (lambda path=path: Ledger.open(path, SILO), lambda path=path: read_ledger(path)):
            with pytest.raises(LedgerError, match=rf"{name}\.sqlite: (not a ledger|there is no ledger)"):
                use()


def test_what_is_missing_is_said(folder: Path) -> None:
    for use in (lambda: Ledger.open(folder / "ledger.sqlite", SILO), lambda: read_ledger(folder / "ledger.sqlite")):
        with pytest.raises(LedgerError, match=f"there is no ledger; make one with: silorec ledger init {folder}"):
            use()
    assert [*folder.iterdir()] == []


def test_a_ledger_that_vanishes_while_it_is_in_use_is_not_made_again(ledger: Ledger) -> None:
    ledger.path.unlink()
    refused(ledger, "there is no ledger")
    with pytest.raises(LedgerError, match="a ledger of 6 entries was here and is gone; a new one would forget what was spent"):
        Ledger.create(ledger.path, policy(), SILO)
    assert not ledger.path.exists()


def test_a_ledger_cut_off_at_any_length_is_not_used(ledger: Ledger) -> None:
    """Except for the last bytes of a page: a process that read them before goes by what it read, and no other opens the file."""
    whole = ledger.path.read_bytes()
    for size in {0, 1, 99, 100, 512, 4095, *range(4096, len(whole), 4096), *range(1000, len(whole), 7777), len(whole) - 1}:
        ledger.path.write_bytes(whole[:size])
        for use in uses(ledger)[2 if size == len(whole) - 1 else 0 :]:
            with pytest.raises(LedgerError):
                use()
        for left in ("-wal", "-shm"):
            ledger.path.with_name(ledger.path.name + left).unlink(missing_ok=True)
    ledger.path.write_bytes(whole)
    ledger.commit(5, digest("answer"))


def test_a_damaged_page_never_gives_another_ledger(ledger: Ledger) -> None:
    """Every 64 bytes a byte is turned round: the ledger is refused, or every entry in it is what it was."""
    whole = ledger.path.read_bytes()
    right = ledger.entries
    refusals = 0
    for place in range(0, len(whole), 64):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        ledger.path.write_bytes(bytes(damaged))
        try:
            assert read_ledger(ledger.path).entries == right
        except LedgerError:
            refusals += 1
        for left in ("-wal", "-shm"):
            ledger.path.with_name(ledger.path.name + left).unlink(missing_ok=True)
    assert refusals > len(whole) / 64 / 10


def leave_wal(ledger: Ledger) -> None:
    """One more reservation, of which a crash leaves the write-ahead log behind: its line is in no other file."""
    folder, copies = ledger.path.parent, {}
    with closing(sqlite3.connect(ledger.path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries").fetchone()
        ledger.reserve(asks(COUNT), digest("the last before the crash"))
        copies = {path: path.read_bytes() for path in folder.iterdir() if path.name.startswith("ledger.sqlite")}
    for path, content in copies.items():
        if not path.name.endswith("-shm"):
            path.write_bytes(content)
    (folder / "ledger.sqlite-shm").unlink(missing_ok=True)


def test_what_a_crash_left_in_the_write_ahead_log_is_there(ledger: Ledger) -> None:
    leave_wal(ledger)
    assert len(read_ledger(ledger.path).entries) == 7
    leave = Ledger.open(ledger.path, SILO, clock=Clock())
    assert leave.spent().reservations == 4
    leave.commit(6, digest("answer"))


def test_a_write_ahead_log_that_was_lost_is_noticed(ledger: Ledger) -> None:
    leave_wal(ledger)
    (ledger.path.parent / "ledger.sqlite-wal").unlink()
    with pytest.raises(LedgerError, match=r"7 entries were written, but only 6 are there: its -wal file was lost"):
        Ledger.open(ledger.path, SILO)
    with pytest.raises(LedgerError, match="7 entries were written, but only 6 are there"):
        read_ledger(ledger.path)
    with pytest.raises(LedgerError, match="entry 6 is not there any more"):
        ledger.reserve(asks(COUNT), digest("q"))


def test_a_missing_or_damaged_head_is_noticed(ledger: Ledger) -> None:
    head = ledger.path.with_name("ledger.sqlite.head")
    right = head.read_bytes()
    for wrong in (b"", b"6\n", right[:-1], right + b"\n", right.upper(), b"x" + right):
        head.write_bytes(wrong)
        refused(ledger, "it is damaged")
    head.write_bytes(right.replace(right[2:4], b"00", 1) if right[2:4] != b"00" else right.replace(right[2:4], b"11", 1))
    refused(ledger, "entry 5 is not the one that was written")
    head.unlink()
    refused(ledger, "it is missing: the files of a ledger belong together")
    head.write_bytes(right)
    ledger.commit(5, digest("answer"))


def test_an_older_copy_of_the_file_alone_is_noticed(ledger: Ledger, folder: Path) -> None:
    old = ledger.path.read_bytes()
    ledger.reserve(asks(COUNT), digest("q"))
    ledger.path.write_bytes(old)
    with pytest.raises(LedgerError, match="7 entries were written, but only 6 are there"):
        Ledger.open(ledger.path, SILO)
    with pytest.raises(LedgerError, match="entry 6 is not there any more: the file was put back from an older copy"):
        ledger.reserve(asks(COUNT), digest("q"))


def test_an_older_copy_of_all_files_passes_and_an_export_from_before_shows_it(ledger: Ledger, folder: Path) -> None:
    """What cannot be noticed alone, and who can."""
    shutil.copytree(folder, folder.with_name(folder.name + "-copy"))
    copy = folder.with_name(folder.name + "-copy")
    try:
        ledger.reserve(asks(COUNT), digest("q"))
        seen_by_the_auditor = read_export(ledger.export())
        back = Ledger.open(copy / "ledger.sqlite", SILO, clock=Clock())
        back.reserve(asks(GaussianCountOfOthers), digest("another question"))
        now = read_export(back.export())
        assert now.findings == ()
        assert not now.extends(seen_by_the_auditor)
        assert read_export(ledger.export()).extends(seen_by_the_auditor)
    finally:
        shutil.rmtree(copy)


GaussianCountOfOthers = steps(3)


def test_a_file_that_is_exchanged_while_it_is_open_is_noticed(ledger: Ledger, folder: Path) -> None:
    full_ledger(folder / "other")
    for name in ("ledger.sqlite", "ledger.sqlite.head"):
        shutil.copy(folder / "other" / name, folder / name)
    with pytest.raises(LedgerError, match="entry 5 is not there any more"):
        ledger.reserve(asks(COUNT), digest("q"))


def test_a_ledger_whose_making_was_interrupted_can_be_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    steps_of_making = ["connect", "write_head", "replace", "sync_folder"]
    for broken in steps_of_making:
        with monkeypatch.context() as interrupted:

            def stop(*_: object, **__: object) -> None:
                raise OSError(5, "Input/output error")

            target = {"connect": sqlite3, "write_head": Store, "replace": os, "sync_folder": store_module}[broken]
            interrupted.setattr(target, broken, stop)
            with pytest.raises(LedgerError, match="Input/output error; nothing was released"):
                Ledger.create(folder / "ledger.sqlite", policy(), SILO)
        assert not (folder / "ledger.sqlite").exists()
    Ledger.create(folder / "ledger.sqlite", policy(), SILO, clock=Clock()).reserve(asks(COUNT), digest("q"))
    assert sorted(path.name for path in folder.iterdir()) == ["ledger.sqlite", "ledger.sqlite.head", "ledger.sqlite.lock"]


def test_a_lock_that_another_holds_is_waited_for_and_then_named(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PATIENCE", 0.3)
    other = Store(ledger.path)
    with other.turn():
        start = time.monotonic()
        with pytest.raises(LedgerError, match=r"another process has been writing this ledger for 0\.3 s; nothing was released"):
            ledger.reserve(asks(COUNT), digest("q"))
        assert 0.3 <= time.monotonic() - start < 5
        assert len(read_ledger(ledger.path).entries) == 6  # looking needs no lock
    ledger.reserve(asks(COUNT), digest("q"))


def test_a_line_is_on_the_disk_before_its_head_and_both_before_append_returns(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pragmas that make SQLite sync its log with every commit, and the order of what comes after."""
    seen: list[str] = []
    real = Store.write_head

    def watched(store: Store, entries: int, last: str) -> None:
        with closing(sqlite3.connect(ledger.path)) as other:
            seen.append(f"{other.execute('SELECT count(*) FROM entries').fetchone()[0]} of {entries}")
        real(store, entries, last)
        seen.append(f"head {store.read_head()[0]}")

    connect = Store._connect

    def asked(store: Store, *, write: bool) -> sqlite3.Connection:
        connection = connect(store, write=write)
        if write:
            names = ("journal_mode", "synchronous", "trusted_schema")
            seen.append(str([connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]))
        return connection

    monkeypatch.setattr(Store, "write_head", watched)
    monkeypatch.setattr(Store, "_connect", asked)
    ledger.reserve(asks(COUNT), digest("q"))
    assert seen == ["['wal', 2, 0]", "7 of 7", "head 7"]
