"""The silo's ledger: every release is paid for here before it is computed, and the silo's own policy decides.

    ledger = Ledger.open(path, key)
    entry = ledger.reserve(proposal, question)      # on the disk, or an exception and no release
    answer = compute()
    ledger.commit(entry.seq, digest_of(answer))     # on the disk; now the answer may leave

A reservation counts as spent whether or not a commitment follows: a crash can make the ledger count more than was released, never
less. Each operation reads what other processes have added before it decides, and holds the lock of the ledger until its entry is
on the disk. Nothing is decided on a sum that is out of date.

What this cannot do: notice that all its files were put back from an older copy, or that the operator, who has the key, made
another ledger. An auditor who countersigned a head, an earlier export, and the coordinator's transcript show both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from common.errors import BudgetExhausted, ConfigError, LedgerError
from common.privacy.entries import Chain, Verifier, charge_of, export
from common.privacy.entry import (
    NOTHING,
    Amendment,
    Closing,
    Commitment,
    Countersignature,
    Entry,
    Opening,
    Reservation,
    What,
    countersign,
)
from common.privacy.events import NEIGHBOURS, UNIT, event_to_dict
from common.privacy.filter import Charge, Spending
from common.privacy.policy import Policy, Proposal
from common.privacy.signing import SigningKey
from common.privacy.spent import Spent, spent_by
from common.privacy.store import Row, Store, Turn

#: Seconds by which the clock may go back (it is being set right): the last entry's time is taken then.
CLOCK_SLACK = 1.0

_LAST_SECOND = 253_402_300_800  # of the year 9999

Clock = Callable[[], float]


class Ledger:
    """An open ledger; :meth:`create` or :meth:`open` make it. Threads and forked processes may share one."""

    def __init__(self, store: Store, key: SigningKey, clock: Clock) -> None:
        self._store, self._key, self._clock = store, key, clock
        self._verifier = Verifier(key.public_key)
        self._spending = Spending()

    @classmethod
    def create(cls, path: Path, policy: Policy, key: SigningKey, *, clock: Clock = time.time) -> Ledger:
        """Make a ledger for ``policy``, whose orders are fixed now.

        Raises
        ------
        ConfigError
            If the policy leaves no room for any release.
        LedgerError
            If there is a ledger already, or it cannot be written.
        """
        policy = policy.resolved()
        opening = Opening(policy.silo, key.public_key, policy.to_dict(), UNIT, NEIGHBOURS, f"silorec {_version()}")
        entry = Entry.signed(0, int(_now(clock)), NOTHING, opening, key)
        Verifier(key.public_key).check(entry.line)
        return cls(Store.create(path, _row(entry)), key, clock)._verified()

    @classmethod
    def open(cls, path: Path, key: SigningKey, *, clock: Clock = time.time) -> Ledger:
        """Open the ledger at ``path`` and check every entry in it, signatures included.

        Raises
        ------
        LedgerError
            If it is missing, damaged, of another key, or cannot be written.
        """
        ledger = cls(Store(path), key, clock)._verified()
        ledger._store.check_writable()
        return ledger

    @property
    def path(self) -> Path:
        return self._store.path

    @property
    def chain(self) -> Chain:
        """What the ledger says, as last read."""
        return self._verifier.chain()

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._verifier.entries)

    @property
    def policy(self) -> Policy:
        """The policy in force, as last read."""
        policy = self._verifier.policy
        if policy is None:
            raise LedgerError(f"{self.path}: the ledger is empty")
        return policy

    def reserve(self, proposal: Proposal, question: str) -> Entry:
        """Pay for a release; it counts as spent and is on the disk when this returns. Only then may anything be computed.

        Parameters
        ----------
        question:
            SHA-256 (hex) of the question.

        Raises
        ------
        PolicyRefused
            If the policy does not allow the question's parameters.
        BudgetExhausted
            If a limit has no room for what it costs.
        LedgerError
            If the ledger is closed or in use, was altered, or cannot be written.
        """
        with self._turn() as turn:
            policy, now = self.policy, self._time()
            self._check_not_closed()
            policy.check(proposal)
            charge = Charge(proposal.run, now, proposal.event)
            try:
                self._spending.check(policy.limits, charge)
            except BudgetExhausted as error:
                raise BudgetExhausted(f"silo {policy.silo}: {error}; nothing was released ({self.path})") from None
            epsilon = self._spending.epsilon_after(charge, policy.order or 0.0, policy.delta)
            reservation = Reservation(
                run=proposal.run,
                coordinator=proposal.coordinator,
                mode=proposal.mode,
                declared_users=proposal.declared_users,
                action=proposal.action,
                round=proposal.round,
                question=question,
                event=event_to_dict(proposal.event),
                epsilon=None if math.isinf(epsilon) else epsilon,
            )
            return self._append(turn, reservation, now)

    def commit(self, reservation: int, answer: str) -> Entry:
        """Note what is released under a reservation; on the disk when this returns, and only then may the answer leave.

        Parameters
        ----------
        reservation:
            The ``seq`` of the entry that :meth:`reserve` returned.
        answer:
            SHA-256 (hex) of the answer.

        Raises
        ------
        LedgerError
            If that is no open reservation, or as :meth:`reserve`.
        """
        with self._turn() as turn:
            self._check_not_closed()
            return self._append(turn, Commitment(reservation, answer), self._time())

    def amend(self, policy: Policy, reason: str) -> Entry:
        """Put another policy in force. The silo's name and the orders stay.

        Raises
        ------
        LedgerError
            If what must stay would change, the reason is missing, or as :meth:`reserve`.
        """
        with self._turn() as turn:
            self._check_not_closed()
            try:
                new = policy.resolved(before=self.policy)
            except ConfigError as error:
                raise LedgerError(f"{self.path}: the policy cannot be put in force: {error}") from None
            return self._append(turn, Amendment(new.to_dict(), reason), self._time())

    def close(self, reason: str) -> Entry:
        """Release nothing any more, for good."""
        with self._turn() as turn:
            self._check_not_closed()
            return self._append(turn, Closing(reason), self._time())

    def countersign(self, key: SigningKey) -> Entry:
        """Let the holder of another key sign that the ledger has come as far as it has."""
        with self._turn() as turn:
            head = self._verifier.head
            return self._append(turn, Countersignature(head, key.public_key, countersign(head, key)), self._time())

    def add_countersignature(self, by: str, signature: str, head: str | None = None) -> Entry:
        """Take in a signature that was made elsewhere, with ``common.privacy.entry.countersign``.

        Parameters
        ----------
        head:
            The hash of the entry up to which it speaks; None for the last one.
        """
        with self._turn() as turn:
            return self._append(turn, Countersignature(head or self._verifier.head, by, signature), self._time())

    def export(self) -> bytes:
        """All entries as signed lines of JSON, for auditors; ``common.privacy.entries.read_export`` checks them."""
        with self._turn():
            return export(self.chain, self._key)

    def refresh(self) -> Chain:
        """Read what other processes have added."""
        with self._turn():
            return self.chain

    def spent(self, *, tighter: bool = False) -> Spent:
        """What all reservations come to, as last read; see :func:`common.privacy.spent.spent_by`."""
        return spent_by(self.chain, tighter=tighter)

    @contextmanager
    def _turn(self) -> Iterator[Turn]:
        """The lock, with everything read that is there."""
        with self._store.turn() as turn:  # one thread of one process at a time
            self._catch_up(turn)
            yield turn

    def _catch_up(self, turn: Turn) -> None:
        entries = self._verifier.entries
        known = len(entries)
        rows = turn.rows(known - 1)
        if not rows or rows[0] != _row(entries[-1]):
            raise LedgerError(
                f"{self.path}: entry {known - 1} is not there any more: the file was put back from an older copy while it was in "
                "use. Nothing was released"
            )
        for row in rows[1:]:
            self._take(self._checked(row))
        self._store.check_head(self._store.read_head(), len(entries), lambda seq: entries[seq].hash)

    def _verified(self) -> Ledger:
        for entry in _read(self._store, self._verifier):
            self._take(entry)
        return self

    def _checked(self, row: Row) -> Entry:
        return _checked(self._verifier, row, self.path)

    def _take(self, entry: Entry) -> None:
        self._verifier.accept(entry)
        if isinstance(entry.what, Reservation):
            self._spending.add(charge_of(entry, entry.what))

    def _append(self, turn: Turn, what: What, now: int) -> Entry:
        entry = Entry.signed(len(self._verifier.entries), now, self._verifier.head, what, self._key)
        self._verifier.check(entry.line)
        turn.append(_row(entry))
        self._take(entry)
        return entry

    def _time(self) -> int:
        """Now, or the last entry's time if the clock is a little behind it."""
        now, last = _now(self._clock), self._verifier.entries[-1].time
        if now < last - CLOCK_SLACK:
            raise LedgerError(
                f"{self.path}: the clock has gone back: it shows {_utc(now)}, the last entry is of {_utc(last)}. Set the clock "
                "right, or wait. Nothing was released"
            )
        return max(int(now), last)

    def _check_not_closed(self) -> None:
        if self._verifier.closed:
            raise LedgerError(f"{self.path}: the ledger is closed; nothing is released under it any more")


def read_ledger(path: Path) -> Chain:
    """What the ledger at ``path`` says, checked as by :meth:`Ledger.open`; needs no key and changes nothing.

    Raises
    ------
    LedgerError
        If it is missing or damaged.
    """
    store, verifier = Store(path), Verifier()
    for entry in _read(store, verifier):
        verifier.accept(entry)
    return verifier.chain()


def _read(store: Store, verifier: Verifier) -> Iterator[Entry]:
    """All entries, each checked when the one before was taken, and at the end whether these are all."""
    rows, head = store.rows()
    for row in rows:
        yield _checked(verifier, row, store.path)
    store.check_head(head, len(rows), lambda seq: rows[seq].hash)


def _checked(verifier: Verifier, row: Row, path: Path) -> Entry:
    try:
        entry = verifier.check(row.line)
    except LedgerError as error:
        raise LedgerError(f"{path}: {error}. Nothing was released") from None
    if (row.seq, row.previous, row.hash) != (entry.seq, entry.previous, entry.hash):
        raise LedgerError(f"{path}: entry {entry.seq}: its row does not say what its line says. Nothing was released")
    return entry


def _row(entry: Entry) -> Row:
    return Row(entry.seq, entry.previous, entry.hash, entry.line)


def _now(clock: Clock) -> float:
    now = clock()
    if not 0 <= now < _LAST_SECOND:
        raise LedgerError(f"the clock shows {now} s since 1970, which cannot be; set it right. Nothing was released")
    return now


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@cache
def _version() -> str:
    try:
        return metadata.version("silorec")
    except metadata.PackageNotFoundError:
        return "unknown"
