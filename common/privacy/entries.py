"""The entries of a silo's ledger as one chain: checked when it is read, with or without the silo's machine.

Two questions are kept apart. Is the chain whole: hashes, signatures, order, form? Where it is not, reading stops with a
:class:`LedgerError` that names the entry. And does what it says hold: was the policy in force kept, is the recorded epsilon
right? An auditor wants to see every breach, so these are :class:`Finding` values, and reading goes on.

A chain shows that nothing in it was altered, removed or put in. It cannot show that nothing was cut off at its end by who has the
silo's key: an older copy of a ledger is a sound ledger. A countersigned head, an earlier export (:meth:`Chain.extends`) or the
coordinator's transcript shows that.

SQLite is not needed here, nor is ``dp_accounting`` for the first question.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from common.errors import BudgetExhausted, ConfigError, LedgerError, PrivacyError
from common.privacy.entry import (
    NOTHING,
    Amendment,
    Closing,
    Commitment,
    Countersignature,
    Entry,
    Opening,
    Reservation,
    check_head_line,
    head_line,
)
from common.privacy.filter import Charge, Spending
from common.privacy.policy import Policy, Proposal, policy_from_dict
from common.privacy.signing import SigningKey

__all__ = ["Chain", "Entry", "Finding", "Verifier", "charge_of", "export", "read_export"]

#: Relative difference between a recorded and a recomputed epsilon that is put down to floating point.
SAME_EPSILON = 1e-9


@dataclass(frozen=True)
class Finding:
    """Entry ``seq`` is sound in form, but what it says should not have been."""

    seq: int
    what: str

    def __str__(self) -> str:
        return f"entry {self.seq}: {self.what}"


@dataclass(frozen=True)
class Chain:
    """Entries that follow on each other without a fault, from the opening on; :func:`read_export` makes it."""

    entries: tuple[Entry, ...]

    @property
    def opening(self) -> Opening:
        """Whose ledger it is."""
        opening: Any = self.entries[0].what  # the verifier saw to it
        return opening  # type: ignore[no-any-return]

    @property
    def public_key(self) -> str:
        return self.opening.public_key

    @property
    def silo(self) -> str:
        return self.opening.silo

    @property
    def head(self) -> str:
        """Hash of the last entry, which fixes all of them."""
        return self.entries[-1].hash

    @cached_property
    def policies(self) -> tuple[tuple[int, Policy], ...]:
        """Each policy with the ``seq`` of the entry that put it in force."""
        return tuple(
            (entry.seq, policy_from_dict(entry.what.policy))
            for entry in self.entries
            if isinstance(entry.what, Opening | Amendment)
        )

    @property
    def policy(self) -> Policy:
        """The policy in force at the end."""
        return self.policies[-1][1]

    @property
    def closed(self) -> bool:
        """Whether nothing can be released any more."""
        return any(isinstance(entry.what, Closing) for entry in self.entries)

    @cached_property
    def reservations(self) -> tuple[tuple[Entry, Reservation], ...]:
        """Everything that counts as spent, in order."""
        return tuple((entry, entry.what) for entry in self.entries if isinstance(entry.what, Reservation))

    @cached_property
    def commitments(self) -> dict[int, Entry]:
        """By the ``seq`` of the reservation: the entry that says what was released under it."""
        return {entry.what.reservation: entry for entry in self.entries if isinstance(entry.what, Commitment)}

    @property
    def open_reservations(self) -> tuple[Entry, ...]:
        """Reservations without a commitment: paid for, and either not released or lost in a crash. They stay spent."""
        return tuple(entry for entry, _ in self.reservations if entry.seq not in self.commitments)

    def spending(self) -> Spending:
        """All reservations as charges, for sums at any order; needs ``dp_accounting`` once a sum is asked for."""
        return Spending(charge_of(entry, what) for entry, what in self.reservations)

    def extends(self, earlier: Chain) -> bool:
        """Whether this ledger begins with all of ``earlier``; if not, one of them is a copy that went another way."""
        return len(self.entries) >= len(earlier.entries) and self.entries[len(earlier.entries) - 1].hash == earlier.head

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """Every breach of the policy in force at the time, and every recorded epsilon that is not the recomputed one.

        Raises
        ------
        LedgerError
            If ``dp_accounting`` is not installed; :meth:`check` goes without.
        """
        return self.check()

    def check(self, *, recompute: bool = True) -> tuple[Finding, ...]:
        """As :attr:`findings`; without ``recompute``, parameters are held against the policy, but no epsilon is computed."""
        return tuple(_findings(self, recompute=recompute))


class Verifier:
    """Takes entry after entry, and refuses the first that does not follow.

    Parameters
    ----------
    public_key:
        Whose ledger it must be; None takes the key that the opening names.
    """

    def __init__(self, public_key: str | None = None) -> None:
        self.entries: list[Entry] = []
        self.policy: Policy | None = None
        self.closed = False
        self._public_key = public_key
        self._hashes: set[str] = set()
        self._open: set[int] = set()

    @property
    def head(self) -> str:
        """Hash of the last entry that was taken."""
        return self.entries[-1].hash if self.entries else NOTHING

    def check(self, line: bytes) -> Entry:
        """The entry in ``line``, if it may come next; it is not taken yet.

        Raises
        ------
        LedgerError
            Naming the entry and what is wrong with it.
        """
        try:
            entry = Entry.parse(line)
            self._check_place(entry)
            self._check_meaning(entry)
        except LedgerError as error:
            raise LedgerError(f"entry {len(self.entries)}: {error}") from None
        return entry

    def accept(self, entry: Entry) -> None:
        """Take an entry that was checked."""
        what = entry.what
        if isinstance(what, Opening):
            self._public_key = what.public_key
        if isinstance(what, Opening | Amendment):
            self.policy = policy_from_dict(what.policy)
        elif isinstance(what, Reservation):
            self._open.add(entry.seq)
        elif isinstance(what, Commitment):
            self._open.discard(what.reservation)
        elif isinstance(what, Closing):
            self.closed = True
        self._hashes.add(entry.hash)
        self.entries.append(entry)

    def chain(self) -> Chain:
        """What was taken so far."""
        return Chain(tuple(self.entries))

    def _check_place(self, entry: Entry) -> None:
        last = self.entries[-1] if self.entries else None
        if entry.seq != len(self.entries):
            raise LedgerError(f"its seq is {entry.seq}: entries were removed, put in, or change places here")
        if entry.previous != self.head:
            raise LedgerError("it does not hold the hash of the entry before: one of the two is not of this ledger")
        if last is not None and entry.time < last.time:
            raise LedgerError(f"its time, {entry.time}, is before that of the entry before, {last.time}")
        if isinstance(entry.what, Opening) != (last is None):
            raise LedgerError("a ledger has one opening, and begins with it")
        if isinstance(entry.what, Opening) and self._public_key not in (None, entry.what.public_key):
            raise LedgerError(f"the ledger is that of key {entry.what.public_key}, not of {self._public_key}")
        key = entry.what.public_key if isinstance(entry.what, Opening) else self._public_key
        if not entry.is_signed_by(str(key)):
            raise LedgerError("the signature is not that of the silo")
        if self.closed and not isinstance(entry.what, Countersignature):
            raise LedgerError(f"a {entry.type} after the closing")

    def _check_meaning(self, entry: Entry) -> None:
        what = entry.what
        if isinstance(what, Opening | Amendment):
            _check_policy(what)
        elif isinstance(what, Commitment) and what.reservation not in self._open:
            raise LedgerError(f"it commits to entry {what.reservation}, which is not an open reservation")
        elif isinstance(what, Countersignature):
            if what.head not in self._hashes:
                raise LedgerError("it countersigns a hash that no entry before it has")
            if what.by == self._public_key:
                raise LedgerError("it is the silo's own, which countersigns nothing")


def read_export(data: bytes) -> Chain:
    """The chain in an exported ledger, with every byte checked.

    Raises
    ------
    LedgerError
        Naming the entry (its number, from 0, is its line's), or the head line, and what is wrong with it.
    """
    if not data:
        raise LedgerError("the export is empty")
    *lines, rest = data.split(b"\n")
    if rest:
        raise LedgerError(
            f"after entry {len(lines) - 1}: a line has no end; the export was cut off, or something was added to it"
        )
    verifier = Verifier()
    *lines, head = lines
    for line in lines:
        verifier.accept(verifier.check(line + b"\n"))
    if not verifier.entries:
        raise LedgerError("entry 0: it is missing; the export has a single line")
    chain = verifier.chain()
    try:
        check_head_line(head + b"\n", len(chain.entries), chain.head, chain.silo, chain.public_key)
    except LedgerError as error:
        raise LedgerError(f"head line, after entry {len(chain.entries) - 1}: {error}") from None
    return chain


def export(chain: Chain, key: SigningKey) -> bytes:
    """The chain as lines of JSON, with a signed head line at the end; :func:`read_export` reads it back."""
    return b"".join(entry.line for entry in chain.entries) + head_line(len(chain.entries), chain.head, chain.silo, key)


def charge_of(entry: Entry, what: Reservation) -> Charge:
    """The charge that the reservation in ``entry`` stands for."""
    return Charge(what.run, entry.time, what.released)


def _check_policy(what: Opening | Amendment) -> None:
    try:
        policy = policy_from_dict(what.policy)
    except ConfigError as error:
        raise LedgerError(f"policy: {error}") from None
    today = policy.to_dict()
    if {name: today[name] for name in what.policy} != what.policy:  # a later version may know more settings
        raise LedgerError("policy: not in the one form that this version writes")
    if any(not limit.order for limit in policy.limits) or policy.order is None:
        raise LedgerError("policy: a limit has no Rényi order")
    if isinstance(what, Opening) and policy.silo != what.silo:
        raise LedgerError(f"the policy is that of silo {policy.silo!r}, the ledger that of {what.silo!r}")


def _findings(chain: Chain, *, recompute: bool) -> Iterator[Finding]:
    spending = Spending()
    policies = dict(chain.policies)
    policy = policies[0]
    for entry in chain.entries:
        what = entry.what
        if isinstance(what, Amendment):
            try:
                policies[entry.seq].resolved(before=policy)
            except ConfigError as error:
                yield Finding(entry.seq, f"the policy was changed in what must stay: {error}")
            policy = policies[entry.seq]
        elif isinstance(what, Reservation):
            yield from (Finding(entry.seq, text) for text in _against_policy(policy, what))
            if recompute:
                yield from (Finding(entry.seq, text) for text in _against_sums(policy, spending, entry, what))


def _against_policy(policy: Policy, what: Reservation) -> Sequence[str]:
    mode: Any = what.mode
    try:
        policy.check(Proposal(what.run, what.coordinator, mode, what.action, what.round, what.released, what.declared_users))
    except PrivacyError as error:  # refused, or mode, round and event do not go together
        return [f"passes the policy: {error}"]
    return []


def _against_sums(policy: Policy, spending: Spending, entry: Entry, what: Reservation) -> Sequence[str]:
    """What is wrong with the reservation's cost; it is added to ``spending``."""
    found = []
    charge = charge_of(entry, what)
    try:
        spending.check(policy.limits, charge)
    except BudgetExhausted as error:
        found.append(f"passes the policy: {error}")
    spending.add(charge)
    right = spending.epsilon(policy.order or 0.0, policy.delta)
    said = math.inf if what.epsilon is None else what.epsilon
    if not math.isclose(said, right, rel_tol=SAME_EPSILON):
        found.append(f"the recorded epsilon is {said:.12g}, the entries up to here come to {right:.12g}")
    return found
