"""What goes wrong around a ledger: other processes, kills at every step, full disks, files that may not be written."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType

import pytest

from common.errors import BudgetExhausted, LedgerError
from common.privacy.entries import read_export
from common.privacy.events import GaussianCount
from common.privacy.filter import epsilon_at, rdp_at
from common.privacy.ledger import Ledger, read_ledger
from common.privacy.store import Store
from tests.common.privacy.ledgers import COUNT, SILO, Clock, asks, digest, policy, quick_folder

SMALL = GaussianCount(40.0, 1.0)  # hundreds of these fit
NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    place = quick_folder()
    yield place
    for path in [place, *place.rglob("*")]:
        path.chmod(0o700)
    shutil.rmtree(place)


@pytest.fixture
def ledger(folder: Path) -> Ledger:
    rdp_at(SMALL, 2.0)  # brings in dp_accounting here, and not in every child
    return Ledger.create(folder / "ledger.sqlite", policy(), SILO, clock=Clock())


Say = Callable[[str], None]


class Child:
    """A forked process that does ``work`` and says lines into a pipe."""

    def __init__(self, work: Callable[[Say], None]) -> None:
        self.out, into = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            status = 1
            try:
                os.close(self.out)
                work(lambda line: os.write(into, f"{line}\n".encode()) and None)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(into)

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)

    def end(self) -> tuple[int, list[str]]:
        """Its exit status (negative for a signal) and what it said."""
        with os.fdopen(self.out) as lines:
            said = lines.read().splitlines()
        _, status = os.waitpid(self.process, 0)
        return os.waitstatus_to_exitcode(status), said


def test_processes_that_race_spend_the_budget_once(ledger: Ledger) -> None:
    """Each opened the ledger before any of them charged, and goes on until it is refused."""
    event = GaussianCount(4.0, 1.0)
    ready, go = os.pipe(), os.pipe()

    def spend(say: Say) -> None:
        mine = Ledger.open(ledger.path, SILO, clock=Clock())
        os.write(ready[1], b".")
        os.read(go[0], 1)
        try:
            while True:
                entry = mine.reserve(asks(event), digest("q"))
                say(f"{entry.seq}")
                mine.commit(entry.seq, digest("a"))
        except BudgetExhausted:
            pass

    children = [Child(spend) for _ in range(3)]
    for _ in children:
        os.read(ready[0], 1)
    os.write(go[1], b"...")
    ends = [child.end() for child in children]
    assert [status for status, _ in ends] == [0, 0, 0]
    reserved = sorted(int(seq) for _, said in ends for seq in said)
    order = ledger.policy.order
    assert order is not None
    fits = next(n for n in range(1000) if epsilon_at((n + 1) * rdp_at(event, order), order, 1e-5) > 8.0)
    assert len(reserved) == len(set(reserved)) == fits
    chain = read_ledger(ledger.path)
    assert [entry.seq for entry, _ in chain.reservations] == reserved
    assert chain.findings == ()
    assert chain.open_reservations == ()


def test_the_lock_goes_with_a_process_that_is_killed_while_it_holds_it(ledger: Ledger) -> None:
    def hold(say: Say) -> None:
        with Store(ledger.path).turn():
            say("held")
            time.sleep(60)

    child = Child(hold)
    assert os.read(child.out, 5) == b"held\n"
    child.kill()
    assert child.end()[0] == -signal.SIGKILL
    ledger.reserve(asks(COUNT), digest("q"))


def open_and_release(path: Path, say: Say) -> None:
    mine = Ledger.open(path, SILO, clock=Clock())
    entry = mine.reserve(asks(SMALL), digest("q"))
    say(f"reserved {entry.seq}")
    mine.commit(entry.seq, digest("a"))
    say(f"committed {entry.seq}")


def killed_at(work: Callable[[Say], None], place: int | None) -> Child:
    """A process that kills itself at the n-th call that it makes, of Python or of C; or says how many it makes."""

    def counted(say: Say) -> None:
        count = 0

        def watch(frame: FrameType, event: str, argument: object) -> None:
            nonlocal count
            count += 1
            if count == place:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(watch)
        work(say)
        sys.setprofile(None)
        say(f"calls {count}")

    return Child(counted)


def calls_of(work: Callable[[Say], None]) -> int:
    return int(killed_at(work, None).end()[1][-1].split()[1])


def check_after_a_kill(path: Path, said: list[str], before: int) -> int:
    """All that was said is there, and at most one entry more; the ledger goes on. Returns how many entries were there."""
    mine = Ledger.open(path, SILO, clock=Clock())
    chain = mine.chain
    reserved = {entry.seq for entry, _ in chain.reservations}
    for line in said:
        what, seq = line.split()
        assert int(seq) in (reserved if what == "reserved" else chain.commitments)
    assert before + len(said) <= len(chain.entries) <= before + len(said) + 1
    assert chain.findings == ()
    mine.reserve(asks(SMALL), digest("after"))
    return len(chain.entries)


def test_a_kill_at_any_step_loses_nothing_that_was_promised(ledger: Ledger, folder: Path) -> None:
    """A process is killed at each of 120 places spread over all calls of opening, reserving and committing."""
    for number in range(5):
        ledger.reserve(asks(SMALL), digest(f"{number}"))
    copy = folder / "copy"

    def work(say: Say) -> None:
        open_and_release(copy / "ledger.sqlite", say)

    def fresh() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)

    fresh()
    total = calls_of(work)
    outcomes = set()
    for place in random.Random(0).sample(range(1, total), 120):
        fresh()
        status, said = killed_at(work, place).end()
        assert status == -signal.SIGKILL or place > 0.95 * total
        said = [line for line in said if not line.startswith("calls")]
        there = check_after_a_kill(copy / "ledger.sqlite", said, 6)
        outcomes.add((len(said), there - 6))
    assert outcomes >= {(0, 0), (0, 1), (1, 1), (1, 2)}  # before, and between writing and saying so, for both


def test_a_kill_at_any_time_loses_nothing_that_was_promised(ledger: Ledger) -> None:
    """Kills from outside, which also fall into SQLite's own work; 25 of them, within the first 40 ms of steady work."""
    times = random.Random(1)
    entries = len(ledger.entries)

    def work(say: Say) -> None:
        say("open 0")
        while True:
            open_and_release(ledger.path, say)

    for _ in range(25):
        child = Child(work)
        assert os.read(child.out, 7) == b"open 0\n"
        time.sleep(times.uniform(0, 0.04))
        child.kill()
        status, said = child.end()
        assert status == -signal.SIGKILL
        entries = check_after_a_kill(ledger.path, said, entries) + 1


def test_a_kill_while_a_ledger_is_made_leaves_all_of_it_or_none(folder: Path) -> None:
    Ledger.create(folder / "first" / "ledger.sqlite", policy(), SILO)  # what is looked up once is looked up now
    total = calls_of(lambda say: Ledger.create(folder / "whole" / "ledger.sqlite", policy(), SILO, clock=Clock()) and None)
    made = 0
    for place in random.Random(0).sample(range(1, total), 60):
        path = folder / str(place) / "ledger.sqlite"
        status, _ = killed_at(lambda say, path=path: Ledger.create(path, policy(), SILO, clock=Clock()) and None, place).end()
        assert status == -signal.SIGKILL or place > 0.95 * total  # a path in pieces takes a call more or less
        if path.exists():
            made += 1
            mine = Ledger.open(path, SILO, clock=Clock())
        else:
            mine = Ledger.create(path, policy(), SILO, clock=Clock())
        assert mine.reserve(asks(COUNT), digest("q")).seq == 1
    assert 0 < made < 60


def test_a_full_disk_releases_nothing_and_forgets_nothing(ledger: Ledger) -> None:
    """The kernel refuses every byte beyond a limit, at 40 limits from nothing to more than enough."""
    ledger.reserve(asks(SMALL), digest("q"))
    refused = granted = 0
    for limit in [0, 1, 60, 68, 69, *range(1000, 36000, 1000), 65536]:
        before = len(read_ledger(ledger.path).entries)

        def work(say: Say, limit: int = limit) -> None:
            mine = Ledger.open(ledger.path, SILO, clock=Clock())
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            for _ in range(2):
                try:
                    say(f"reserved {mine.reserve(asks(SMALL), digest('q')).seq}")
                except LedgerError as error:
                    say(f"refused {error}")

        status, said = Child(work).end()
        assert status == 0
        chain = Ledger.open(ledger.path, SILO, clock=Clock()).chain
        seqs = {entry.seq for entry, _ in chain.reservations}
        for line in said:
            what, number, *_ = line.split()
            if what == "reserved":
                granted += 1
                assert int(number) in seqs
            else:
                refused += 1
                assert "nothing was released" in line
        assert len(chain.entries) >= before + sum(line.startswith("reserved") for line in said)
        assert chain.findings == ()
    assert refused > 20
    assert granted > 5
    ledger.reserve(asks(SMALL), digest("q"))
    assert read_export(ledger.export()).findings == ()


def test_a_database_that_may_not_grow_releases_nothing_and_forgets_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own "database or disk is full", at every number of pages."""
    connect = Store._connect
    with monkeypatch.context() as full:

        def small(store: Store, *, write: bool) -> sqlite3.Connection:
            connection = connect(store, write=write)
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")
            return connection

        full.setattr(Store, "_connect", small)
        said = [sentence(lambda: ledger.reserve(asks(SMALL), digest("q"))) for _ in range(20)]
        assert said[-1] == (
            f"{ledger.path}: database or disk is full; nothing was released. "
            "Make room, or mend the rights of file and folder, and go on"
        )
    reserved = len(ledger.entries)
    assert len(read_ledger(ledger.path).entries) == reserved
    ledger.reserve(asks(SMALL), digest("q"))
    assert len(read_ledger(ledger.path).entries) == reserved + 1


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_disk_error_after_the_line_was_written_releases_nothing_and_counts_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The head could not be replaced: the reservation stays, as one that was not answered."""
    real = getattr(os, call)

    def broken(*arguments: object, **options: object) -> object:
        if call == "open" and not str(arguments[0]).endswith(".head.partial"):
            return real(*arguments, **options)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(os, call, broken)
        with pytest.raises(LedgerError, match="Input/output error; nothing was released"):
            ledger.reserve(asks(COUNT), digest("q"))
    chain = ledger.refresh()
    assert [entry.seq for entry in chain.open_reservations] == [1]
    assert Ledger.open(ledger.path, SILO, clock=Clock()).spent().reservations == 1
    assert ledger.reserve(asks(COUNT), digest("q")).seq == 2


def as_nobody(work: Callable[[Say], None]) -> list[str]:
    """What ``work`` says when it is done by a user who is not root."""

    def dropped(say: Say) -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        work(say)

    status, said = Child(dropped).end()
    assert status == 0
    return said


def sentence(act: Callable[[], object]) -> str:
    try:
        act()
    except LedgerError as error:
        return str(error)
    return "no error"


def test_a_ledger_that_may_only_be_read_is_read_and_releases_nothing(ledger: Ledger) -> None:
    ledger.reserve(asks(COUNT), digest("q"))
    folder = ledger.path.parent

    def work(say: Say) -> None:
        say(f"{len(read_ledger(ledger.path).entries)} entries")
        say(sentence(lambda: Ledger.open(ledger.path, SILO)))
        say(sentence(lambda: ledger.reserve(asks(COUNT), digest("q"))))
        say(sentence(lambda: ledger.commit(1, digest("q"))))

    def protect(place: int, files: int) -> None:
        for path in folder.iterdir():
            path.chmod(files)
            os.chown(path, NOBODY, NOBODY) if os.getuid() == 0 else None
        os.chown(folder, NOBODY, NOBODY) if os.getuid() == 0 else None
        folder.chmod(place)

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    protect(0o500, 0o400)  # the whole folder
    read, opened, reserved, committed = as_nobody(work)
    assert read == "2 entries"
    assert opened == f"{ledger.path}: cannot be written by this user, so nothing can be charged; nothing is released"
    assert "Permission denied; nothing was released" in reserved
    assert "Permission denied; nothing was released" in committed
    protect(0o500, 0o600)  # the folder only: no write-ahead log, no new head
    read, opened, reserved, committed = as_nobody(work)
    assert read == "2 entries"
    assert opened == f"{folder}: cannot be written by this user, so nothing can be charged; nothing is released"
    assert "nothing was released" in reserved
    assert "nothing was released" in committed
    protect(0o700, 0o600)
    ledger.path.chmod(0o400)  # the file only
    read, opened, reserved, committed = as_nobody(work)
    assert read == "2 entries"
    assert opened == f"{ledger.path}: cannot be written by this user, so nothing can be charged; nothing is released"
    assert "nothing was released" in reserved
    assert "nothing was released" in committed
    assert {name: (folder / name).read_bytes() for name in before} == before
    protect(0o700, 0o000)  # not even read
    read_nothing = as_nobody(lambda say: say(sentence(lambda: read_ledger(ledger.path))))
    assert "nothing was released" in read_nothing[0]
    protect(0o700, 0o600)
    assert as_nobody(lambda say: say(sentence(lambda: ledger.reserve(asks(COUNT), digest("q"))))) == ["no error"]


def test_a_place_where_no_ledger_can_be_made_is_a_sentence(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(LedgerError, match="nothing was released"):
        Ledger.create(folder / "file" / "ledger.sqlite", policy(), SILO)
    folder.chmod(0o555)

    def work(say: Say) -> None:
        say(sentence(lambda: Ledger.create(folder / "ledger.sqlite", policy(), SILO)))
        say(sentence(lambda: Ledger.create(folder / "new" / "ledger.sqlite", policy(), SILO)))

    said = as_nobody(work)
    assert len(said) == 2
    assert all("Permission denied; nothing was released" in line for line in said)
    folder.chmod(0o755)
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_reader_that_stays_does_not_stop_the_silo(ledger: Ledger) -> None:
    with closing(sqlite3.connect(ledger.path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries").fetchone()
        for _ in range(3):
            ledger.reserve(asks(COUNT), digest("q"))
        assert reader.execute("SELECT count(*) FROM entries").fetchone() == (1,)
    assert len(read_ledger(ledger.path).entries) == 4


def test_a_writer_that_stays_is_named_and_nothing_is_released(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody with a database shell holds SQLite's own lock."""
    import common.privacy.store as store

    monkeypatch.setattr(store, "PATIENCE", 0.2)
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="database is locked; nothing was released"):
            ledger.reserve(asks(COUNT), digest("q"))
    assert len(ledger.entries) == 1
    ledger.reserve(asks(COUNT), digest("q"))
