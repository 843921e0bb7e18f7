"""One entry of a silo's ledger: what it says, its canonical form, its hash and its signature.

An entry says one of six things. A *reservation* is made before anything is computed and counts as spent from then on; the
*commitment* names the digest of what was released under it. *Opening*, *amendments* and *closing* are the operator's, a
*countersignature* is another party's, who has seen the ledger up to some entry.

The body of an entry is a JSON object in one canonical form. Its hash is SHA-256 over a tag and that form, it holds the hash of
the entry before, and the silo signs the hash (Ed25519). So an entry fixes all that came before it, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from common.errors import LedgerError, PrivacyError
from common.privacy.events import NEIGHBOURS, UNIT, Event, event_from_dict, event_to_dict
from common.privacy.signing import SigningKey, is_public_key, verify

FORMAT = 1
NOTHING = "0" * 64  # the hash before the first entry

_ENTRY_TAG = b"silorec-ledger-entry-1\0"
_HEAD_TAG = b"silorec-ledger-head-1\0"
_COUNTERSIGNATURE_TAG = b"silorec-ledger-countersignature-1\0"

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_ACTION = re.compile(r"[a-z][a-z0-9.-]{0,63}")
_MODES = ("silo", "distributed", "none")
_REASON_LENGTH = 1000


@dataclass(frozen=True)
class Opening:
    """The first entry: whose ledger it is, under which policy, and what its epsilon speaks of."""

    type: ClassVar[str] = "opening"
    silo: str
    public_key: str
    policy: Mapping[str, Any]
    unit: str
    neighbours: str
    software: str

    def __post_init__(self) -> None:
        _check_text("silo", self.silo)
        _check_text("software", self.software)
        _check(isinstance(self.public_key, str) and is_public_key(self.public_key), "public_key", self.public_key)
        _check(isinstance(self.policy, dict), "policy", self.policy)
        _check(self.unit == UNIT, "unit", self.unit)
        _check(self.neighbours == NEIGHBOURS, "neighbours", self.neighbours)


@dataclass(frozen=True)
class Amendment:
    """The operator changed the policy; it is in force from the next entry on."""

    type: ClassVar[str] = "amendment"
    policy: Mapping[str, Any]
    reason: str

    def __post_init__(self) -> None:
        _check(isinstance(self.policy, dict), "policy", self.policy)
        _check_text("reason", self.reason)


@dataclass(frozen=True)
class Reservation:
    """A release is paid for; see ``common.privacy.policy.Proposal`` for the fields that are not said here.

    Parameters
    ----------
    question:
        SHA-256 (hex) of the question that is answered.
    event:
        What the release costs, as ``common.privacy.events.event_to_dict`` writes it.
    epsilon:
        Of the whole ledger after this entry, at the policy's order and delta; None for an unbounded one.
    """

    type: ClassVar[str] = "reservation"
    run: str
    coordinator: str
    mode: str
    declared_users: int | None
    action: str
    round: int
    question: str
    event: Mapping[str, Any]
    epsilon: float | None

    def __post_init__(self) -> None:
        _check_digest("run", self.run)
        _check_digest("question", self.question)
        _check(self.coordinator == "" or _is(_DIGEST, self.coordinator), "coordinator", self.coordinator)
        _check(self.mode in _MODES, "mode", self.mode)
        _check(self.declared_users is None or _whole(self.declared_users), "declared_users", self.declared_users)
        _check(_is(_ACTION, self.action), "action", self.action)
        _check(_whole(self.round), "round", self.round)
        _check(self.epsilon is None or (type(self.epsilon) is float and self.epsilon >= 0), "epsilon", self.epsilon)
        try:
            event = event_from_dict(self.event)
        except PrivacyError as error:
            raise LedgerError(f"event: {error}") from None
        if _canonical(event_to_dict(event)) != _canonical(self.event):
            raise LedgerError(f"event: not in the one form that this version writes: {self.event!r}")
        _check(event.round == self.round, "round", self.round)

    @property
    def released(self) -> Event:
        """The event as a value."""
        return event_from_dict(self.event)


@dataclass(frozen=True)
class Commitment:
    """What was released under the reservation with that ``seq``: SHA-256 (hex) of the answer."""

    type: ClassVar[str] = "commitment"
    reservation: int
    answer: str

    def __post_init__(self) -> None:
        _check(_whole(self.reservation), "reservation", self.reservation)
        _check_digest("answer", self.answer)


@dataclass(frozen=True)
class Countersignature:
    """Somebody with another key has seen the ledger up to the entry with hash ``head``; :func:`countersign` makes it."""

    type: ClassVar[str] = "countersignature"
    head: str
    by: str
    signature: str

    def __post_init__(self) -> None:
        _check_digest("head", self.head)
        _check(_is(_DIGEST, self.by), "by", self.by)
        _check(_is(_SIGNATURE, self.signature), "signature", self.signature)
        if not countersigned(self.head, self.by, self.signature):
            raise LedgerError(f"the countersignature is not that of {self.by} over {self.head}")


@dataclass(frozen=True)
class Closing:
    """Nothing is released any more; countersignatures may follow."""

    type: ClassVar[str] = "closing"
    reason: str

    def __post_init__(self) -> None:
        _check_text("reason", self.reason)


What = Opening | Amendment | Reservation | Commitment | Countersignature | Closing
_TYPES: dict[str, type[What]] = {
    cls.type: cls for cls in (Opening, Amendment, Reservation, Commitment, Countersignature, Closing)
}
_COMMON = ("format", "seq", "time", "previous", "type")


@dataclass(frozen=True)
class Entry:
    """``what`` was said as number ``seq`` (from 0) at ``time`` (whole seconds UTC), after the entry with hash ``previous``."""

    seq: int
    time: int
    previous: str
    what: What
    hash: str
    signature: str

    @classmethod
    def signed(cls, seq: int, time: int, previous: str, what: What, key: SigningKey) -> Entry:
        """A new entry, hashed and signed."""
        digest = _hash(_body(seq, time, previous, what))
        return cls(seq, time, previous, what, digest, key.sign(bytes.fromhex(digest)).hex())

    @classmethod
    def parse(cls, line: bytes) -> Entry:
        """Read :attr:`line` back; the signature is not checked, because the line does not say by whom it should be.

        Raises
        ------
        LedgerError
            If a byte is not as it must be.
        """
        outer = parse_canonical(line)
        if outer.keys() != {"entry", "hash", "signature"} or not isinstance(body := outer["entry"], dict):
            raise LedgerError("not an entry: expected entry, hash and signature")
        if body.get("format") != FORMAT or type(body["format"]) is not int:
            raise LedgerError(f"format = {body.get('format')!r} is not known to this version of silorec, which reads {FORMAT}")
        cls_of_what = _TYPES.get(body["type"]) if isinstance(body.get("type"), str) else None
        if cls_of_what is None:
            raise LedgerError(f"type = {body.get('type')!r}, must be one of {', '.join(_TYPES)}")
        names = {field.name for field in fields(cls_of_what)}
        if missing := sorted({*_COMMON, *names} - body.keys()):
            raise LedgerError(f"{body['type']} lacks {', '.join(missing)}")
        if unknown := sorted(body.keys() - {*_COMMON, *names}):
            raise LedgerError(f"{body['type']} has unknown fields {', '.join(unknown)}")
        for name in ("seq", "time"):
            _check(_whole(body[name]), name, body[name])
        _check_digest("previous", body["previous"])
        _check(_is(_SIGNATURE, outer["signature"]), "signature", outer["signature"])
        if _hash(body) != outer["hash"]:
            raise LedgerError("the hash is not that of the entry: it was altered or damaged")
        what = cls_of_what(**{name: body[name] for name in names})
        return cls(body["seq"], body["time"], body["previous"], what, outer["hash"], outer["signature"])

    @property
    def type(self) -> str:
        return self.what.type

    @property
    def body(self) -> dict[str, Any]:
        """The entry as plain values, without hash and signature."""
        return _body(self.seq, self.time, self.previous, self.what)

    @property
    def line(self) -> bytes:
        """The entry's line in an export, with its newline."""
        return _canonical({"entry": self.body, "hash": self.hash, "signature": self.signature}) + b"\n"

    def is_signed_by(self, public_key: str) -> bool:
        """Whether the signature is that of ``public_key``."""
        return verify(public_key, bytes.fromhex(self.signature), bytes.fromhex(self.hash))


def countersign(head: str, key: SigningKey) -> str:
    """``key``'s signature (hex) under having seen a ledger up to the entry with hash ``head``.

    It has a tag of its own, so that it can never pass for an entry of a ledger that has the same key.
    """
    return key.sign(_COUNTERSIGNATURE_TAG + bytes.fromhex(head)).hex()


def countersigned(head: str, by: str, signature: str) -> bool:
    """Whether ``signature`` is that of ``by`` over ``head``."""
    return verify(by, bytes.fromhex(signature), _COUNTERSIGNATURE_TAG + bytes.fromhex(head))


def head_line(entries: int, last: str, silo: str, key: SigningKey) -> bytes:
    """The last line of an export: without it, the removal of the last entry would not show."""
    head = {"entries": entries, "hash": last, "silo": silo}
    signature = key.sign(hashlib.sha256(_HEAD_TAG + _canonical(head)).digest()).hex()
    return _canonical({"head": head, "signature": signature}) + b"\n"


def check_head_line(line: bytes, entries: int, last: str, silo: str, public_key: str) -> None:
    """Whether ``line`` is the :func:`head_line` of these.

    Raises
    ------
    LedgerError
        If it is not.
    """
    outer = parse_canonical(line)
    if outer.keys() != {"head", "signature"} or not isinstance(head := outer["head"], dict):
        raise LedgerError("not a head line: expected head and signature")
    expected = {"entries": entries, "hash": last, "silo": silo}
    if _canonical(head) != _canonical(expected):
        raise LedgerError(f"says {head!r}, but the entries before it say {expected!r}: entries were removed or added")
    _check(_is(_SIGNATURE, outer["signature"]), "signature", outer["signature"])
    if not verify(public_key, bytes.fromhex(outer["signature"]), hashlib.sha256(_HEAD_TAG + _canonical(head)).digest()):
        raise LedgerError("the signature is not that of the silo")


def parse_canonical(line: bytes) -> dict[str, Any]:
    """The JSON object in ``line``, which must be in the canonical form and end with a newline.

    Raises
    ------
    LedgerError
        If a byte is not as it must be.
    """
    try:
        values = json.loads(line.decode("ascii"))
        canonical = isinstance(values, dict) and _canonical(values) + b"\n" == line
    except (ValueError, RecursionError):  # of which UnicodeDecodeError and JSONDecodeError are kinds
        raise LedgerError("not a line of a ledger: it was altered or damaged") from None
    if not canonical:
        raise LedgerError("not in the canonical form, byte for byte: it was altered or damaged")
    return dict(values)


def _body(seq: int, time: int, previous: str, what: What) -> dict[str, Any]:
    said = {field.name: getattr(what, field.name) for field in fields(what)}
    return {"format": FORMAT, "seq": seq, "time": time, "previous": previous, "type": what.type, **said}


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_ENTRY_TAG + _canonical(body)).hexdigest()


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def _check(right: bool, name: str, value: object) -> None:
    if not right:
        raise LedgerError(f"{name} = {value!r} is not as it must be")


def _check_digest(name: str, value: object) -> None:
    if not _is(_DIGEST, value):
        raise LedgerError(f"{name} = {value!r}, must be 64 lower-case hex characters")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > _REASON_LENGTH:
        raise LedgerError(f"{name} = {value!r}, must be one line of up to {_REASON_LENGTH} printable characters, not empty")


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _whole(value: object) -> bool:
    return type(value) is int and value >= 0
