"""The consortium's signed roster: who takes part, under which keys, with how many declared users, and until when.

The authority signs it, and every party has the authority's certificate from its invitation. So a roster may come from anywhere,
over the coordinator's network too. A silo still refuses one that is older than its own, or that says of a silo it knows that its
identity was another one: that key signs the silo's ledger, a ledger has one key for life, and peers seal for it.

    format = 2
    consortium = "shops"
    version = 3
    issued = 2026-05-03 10:00:00+00:00
    valid_until = 2027-05-03 10:00:00+00:00
    coordinator = "9a0e…"               # Ed25519: signs what silos are asked
    address = "federation.example.org:9092"

    [[silo]]                            # number 0; a silo keeps its number for ever
    name = "north"
    key = "6f0c…"                       # Ed25519: identity, and the ledger's
    node = "ecdsa-sha2-nistp384 AAAA…"  # by which Flower knows the node
    certificate = "-----BEGIN …"        # for mutual TLS
    declared_users = 12000
    valid_from = 2026-05-03 09:00:00+00:00
    valid_until = 2027-05-03 10:00:00+00:00
    revoked = 2026-09-01 08:00:00+00:00
    reason = "left the consortium"

    # signature: MGUC…
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import tomli_w
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from filelock import FileLock

from common.consortium.certificates import authority_key, p384_key_of, parse_certificate
from common.consortium.home import CoordinatorHome, SiloHome, check_address, check_silo_name
from common.consortium.keys import node_line
from common.consortium.signed import attach, detach, is_signed_by_p384, read_document, sign_p384
from common.durable import write_durably
from common.errors import ConfigError, ConsortiumError
from common.privacy.signing import fingerprint, is_public_key
from common.secagg.roster import KeyRoster

FORMAT: Final = 2

#: How far two machines' clocks may be apart: what was issued counts from so long before.
CLOCKS_APART: Final = timedelta(hours=1)

_TAG = b"silorec-roster-2\0"
CONSORTIUM_NAME: Final = re.compile(r"\w[\w .&-]{0,49}")
_FIELDS = ("name", "key", "node", "certificate", "declared_users", "valid_from", "valid_until")


@dataclass(frozen=True)
class Member:
    """One silo of the roster; the fields are those of the file. Times have UTC and whole seconds.

    Raises
    ------
    ConsortiumError
        If a field is not what it should be.
    """

    name: str
    key: str
    node: str
    certificate: str
    declared_users: int
    valid_from: datetime
    valid_until: datetime
    revoked: datetime | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        _require("name", self.name, lambda name: bool(check_silo_name(name)))
        _require("key", self.key, is_public_key)
        _require("node", self.node, _is_node_key)
        _require("certificate", self.certificate, _is_certificate)
        _require("declared_users", self.declared_users, lambda n: type(n) is int and n > 0)
        _require("reason", self.reason, lambda text: text == "" or text.isprintable())
        for name in ("valid_from", "valid_until"):
            _require(name, getattr(self, name), _is_time)
        _require("revoked", self.revoked, lambda time: time is None or _is_time(time))
        if self.valid_from >= self.valid_until:
            raise ConsortiumError(f"silo {self.name!r} would be valid until before it is valid")

    def standing(self, now: datetime) -> str:
        """``valid``, ``expired``, ``revoked`` or ``not yet valid``."""
        if self.revoked is not None:
            return "revoked"
        return _standing(self.valid_from, self.valid_until, now)

    def why_refused(self, now: datetime) -> str:
        """A sentence that says why the silo takes no part; empty for one that does."""
        if self.revoked is not None:
            because = f": {self.reason}" if self.reason else ""
            return f"silo {self.name!r} was revoked on {day(self.revoked)}{because}; if that is wrong, talk to the authority"
        return {
            "valid": "",
            "expired": f"silo {self.name!r} was admitted until {day(self.valid_until)} and has expired; the authority extends it "
            f"with: silorec consortium rotate DIR --extend {self.name}",
            "not yet valid": f"silo {self.name!r} is valid from {minute(self.valid_from)} on, and this machine's clock says "
            f"{minute(now)}: set the clock",
        }[self.standing(now)]

    @cached_property
    def tls_key(self) -> EllipticCurvePublicKey:
        """The key that the silo's TLS certificate is for."""
        key = p384_key_of(parse_certificate(self.certificate.encode(), self.name))
        assert key is not None  # seen when it was read
        return key

    @cached_property
    def node_pem(self) -> bytes:
        """The node key as Flower stores it (PEM, SubjectPublicKeyInfo)."""
        return load_ssh_public_key(self.node.encode()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True)
class Consortium:
    """A roster that was read. Silo number ``i`` is ``members[i]``.

    Raises
    ------
    ConsortiumError
        If a field is not what it should be, or two silos have a name or a key in common.
    """

    name: str
    version: int
    issued: datetime
    valid_until: datetime
    coordinator: str
    address: str
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        _require("consortium", self.name, lambda name: CONSORTIUM_NAME.fullmatch(name) is not None)
        _require("version", self.version, lambda n: type(n) is int and n > 0)
        _require("issued", self.issued, _is_time)
        _require("valid_until", self.valid_until, _is_time)
        _require("coordinator", self.coordinator, is_public_key)
        _require("address", self.address, lambda address: bool(check_address(address)))
        for what in ("name", "key", "node"):
            values = [getattr(member, what) for member in self.members]
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ConsortiumError(f"two silos have the {what} {twice[0]!r}")

    @property
    def declared_users(self) -> tuple[int, ...]:
        """Of each silo, by number; what ``federation.declared_users`` must say."""
        return tuple(member.declared_users for member in self.members)

    def key_roster(self, now: datetime) -> KeyRoster:
        """All silos by number, for secure aggregation; whoever is not valid at ``now`` is absent."""
        absent = frozenset(number for number, member in enumerate(self.members) if member.standing(now) != "valid")
        try:
            return KeyRoster(tuple(m.name for m in self.members), tuple(m.key for m in self.members), absent)
        except ConfigError as error:  # nobody was admitted yet
            raise ConsortiumError(str(error)) from None

    def number_of(self, key: str) -> int:
        """Number of the silo with this identity key (hex).

        Raises
        ------
        ConsortiumError
            If it is nobody's.
        """
        for number, member in enumerate(self.members):
            if member.key == key:
                return number
        raise ConsortiumError(
            f"the key {key[:16]}… is foreign: version {self.version} of {self.name!r}'s roster has no silo with it"
        )

    def by_node(self, node: str) -> int:
        """Number of the silo whose Flower node has this public key (an OpenSSH line; its remark does not count).

        Raises
        ------
        ConsortiumError
            If it is nobody's.
        """
        line = " ".join(node.split()[:2])
        for number, member in enumerate(self.members):
            if member.node == line:
                return number
        raise ConsortiumError(f"the node's key is foreign: version {self.version} of {self.name!r}'s roster has no silo with it")

    def named(self, name: str) -> Member:
        """The silo of this name; :class:`ConsortiumError` if there is none."""
        for member in self.members:
            if member.name == name:
                return member
        raise ConsortiumError(f"{self.name!r} has no silo {name!r}; it has: {', '.join(m.name for m in self.members) or 'none'}")

    def standing(self, now: datetime) -> str:
        """Of the roster itself: ``valid``, ``expired`` or ``not yet valid``."""
        return _standing(self.issued - CLOCKS_APART, self.valid_until, now)

    def why_refused(self, now: datetime) -> str:
        """A sentence that says why this roster does not count at ``now``; empty for one that does."""
        return {
            "valid": "",
            "expired": f"version {self.version} of {self.name!r}'s roster was valid until {day(self.valid_until)}; the authority "
            "signs a new one with: silorec consortium rotate DIR --roster",
            "not yet valid": f"version {self.version} of {self.name!r}'s roster was issued at {minute(self.issued)}, and this "
            f"machine's clock says {minute(now)}: set the clock",
        }[self.standing(now)]


def read_signed(roster: Path, authority: Path) -> Consortium:
    """The roster in a file, if the authority signed it. Whether it is still valid is another question: ``why_refused``.

    Raises
    ------
    ConsortiumError
        If a file cannot be read, the signature is not the authority's, or the text is no roster.
    """
    return parse_signed(read_document(roster), authority, str(roster))


def parse_signed(document: bytes, authority: Path, where: str = "the roster") -> Consortium:
    """As :func:`read_signed`, from bytes that came another way."""
    try:
        content, signature = detach(document)
    except ValueError:
        raise ConsortiumError(f"{where}: not a signed roster: its last line is no signature; get it anew") from None
    if not is_signed_by_p384(authority_key(authority), signature, _TAG, content):
        raise ConsortiumError(f"{where}: the signature is not that of our authority ({authority}): altered, or of another one")
    try:
        return _from_tree(tomllib.loads(content.decode()))
    except (ConsortiumError, ValueError) as error:
        raise ConsortiumError(f"{where}: not a roster that this version of silorec can read: {error}") from None


def sign_roster(consortium: Consortium, key: EllipticCurvePrivateKey) -> bytes:
    """The file that :func:`read_signed` reads."""
    tree = {
        "format": FORMAT,
        "consortium": consortium.name,
        "version": consortium.version,
        "issued": consortium.issued,
        "valid_until": consortium.valid_until,
        "coordinator": consortium.coordinator,
        "address": consortium.address,
        "silo": [_entry_of(member) for member in consortium.members],
    }
    content = tomli_w.dumps(tree, multiline_strings=True).encode() + b"\n"
    return attach(content, sign_p384(key, _TAG, content))


def accept(home: SiloHome | CoordinatorHome, document: bytes, now: datetime | None = None) -> Consortium:
    """Take a roster in the place of the one at ``home``, from wherever it came; the same one again changes nothing.

    Who asked for new keys begins to use them once the roster has them. ``now`` is by this machine's clock.

    Raises
    ------
    ConsortiumError
        If it is not signed by our authority, older than ours, expired, of another consortium, without this silo, or says of a
        silo that we know that it is another one, or names keys for this side that are not here. Ours stays.
    """
    from common.consortium.joining import take_up
    from common.consortium.signing_key import take_up_signing_key

    new = parse_signed(document, home.authority, "the new roster")
    if refusal := new.why_refused(now or datetime.now(UTC)):
        raise ConsortiumError(refusal)
    with FileLock(home.folder / ".roster.lock"):
        if home.roster.exists():
            _check_follows(read_signed(home.roster, home.authority), new)
        if isinstance(home, SiloHome):
            take_up(home, new)  # first: what a crash leaves is mended when the roster comes again
        else:
            take_up_signing_key(home, new)
        if not home.roster.exists() or read_document(home.roster) != document:
            write_durably(home.roster, document)
    return new


def day(time: datetime) -> str:
    """As people write it in a sentence."""
    return f"{time:%Y-%m-%d}"


def minute(time: datetime) -> str:
    """As :func:`day`, where the hour counts; UTC."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def in_seconds(time: datetime) -> datetime:
    """``time`` in UTC and whole seconds, the form in which certificates and rosters have times."""
    return time.astimezone(UTC).replace(microsecond=0)


def _check_follows(old: Consortium, new: Consortium) -> None:
    """Whether a party that has ``old`` may take ``new``; :class:`ConsortiumError` if not."""
    if new.name != old.name:
        raise ConsortiumError(f"the new roster is that of {new.name!r}, and this folder belongs to {old.name!r}")
    if new.version < old.version:
        raise ConsortiumError(f"the new roster is version {new.version}, older than the version {old.version} that is here")
    if new.version == old.version and new != old:
        raise ConsortiumError(f"there are two different rosters of version {old.version}: the authority signed both; ask why")
    if len(new.members) < len(old.members):
        raise ConsortiumError(f"the new roster has {len(new.members)} silos, ours {len(old.members)}; a silo keeps its place")
    for number, (before, after) in enumerate(zip(old.members, new.members, strict=False)):
        if before.name != after.name:
            raise ConsortiumError(f"silo {number} was {before.name!r}, in the new roster {after.name!r}; a silo keeps its place")
        if before.key != after.key:
            raise ConsortiumError(
                f"the identity key of silo {before.name!r} is another one in the new roster ({fingerprint(after.key)}, was "
                f"{fingerprint(before.key)}); a silo with a new key comes under a new name: ask the authority"
            )
        if before.revoked is not None and after.revoked is None:
            raise ConsortiumError(f"silo {before.name!r} was revoked, and is not in the new roster; ask the authority")


def _standing(since: datetime, until: datetime, now: datetime) -> str:
    return "not yet valid" if now < since else "expired" if now >= until else "valid"


def _entry_of(member: Member) -> dict[str, Any]:
    entry: dict[str, Any] = {name: getattr(member, name) for name in _FIELDS}
    if member.revoked is not None:
        entry |= {"revoked": member.revoked, "reason": member.reason}
    return entry


def _from_tree(tree: dict[str, Any]) -> Consortium:
    if tree.get("format") != FORMAT:
        raise ConsortiumError(f"its format is {tree.get('format')!r}, not {FORMAT}")
    silos = tree.get("silo", [])
    if not isinstance(silos, list) or not all(isinstance(silo, dict) for silo in silos):
        raise ConsortiumError("it has no [[silo]] tables")
    head = _only(tree, ("consortium", "version", "issued", "valid_until", "coordinator", "address"), ("format", "silo"))
    head["name"] = head.pop("consortium")
    return Consortium(**head, members=tuple(Member(**_only(silo, _FIELDS, ("revoked", "reason"), keep=True)) for silo in silos))


def _only(tree: dict[str, Any], needed: tuple[str, ...], allowed: tuple[str, ...], *, keep: bool = False) -> dict[str, Any]:
    missing, unknown = [name for name in needed if name not in tree], sorted(tree.keys() - {*needed, *allowed})
    if missing or unknown:
        raise ConsortiumError(f"{missing[0]} is missing" if missing else f"it has a field {unknown[0]!r} that is not known")
    return {name: value for name, value in tree.items() if keep or name in needed}


def _require(field: str, value: Any, holds: Callable[[Any], bool]) -> None:
    try:
        sound = holds(value)
    except (TypeError, ValueError, AttributeError, UnsupportedAlgorithm, ConsortiumError):
        sound = False
    if not sound:
        raise ConsortiumError(f"{field} = {value!r} is not allowed")


def _is_time(value: Any) -> bool:
    return isinstance(value, datetime) and value == in_seconds(value) and value.tzinfo is not None


def _is_node_key(line: str) -> bool:
    key = load_ssh_public_key(line.encode())
    return isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP384R1) and line == node_line(key)


def _is_certificate(pem: str) -> bool:
    return p384_key_of(parse_certificate(pem.encode(), "certificate")) is not None
