"""The authority: it founds a consortium, invites and admits silos, revokes them, renews what expires, and notes each act.

Every change of the roster is first written beside it, then noted in the journal with its digest, then put in its place. The note
decides: after a crash in between, the next act finishes a change that was noted, and drops one that was not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from filelock import FileLock

from common.consortium.certificates import (
    fingerprint_of,
    key_of_signing_request,
    make_authority,
    names_of,
    p384_key_of,
    read_certificate,
    sign_server,
    sign_silo,
    to_pem,
)
from common.consortium.home import AuthorityHome, CoordinatorHome, check_address, check_silo_name, host_of
from common.consortium.keys import load_key_p384, own_key, read_private
from common.consortium.letters import Invitation, Request, proof_of, read_request
from common.consortium.roster import (
    CLOCKS_APART,
    CONSORTIUM_NAME,
    Consortium,
    Member,
    day,
    in_seconds,
    minute,
    parse_signed,
    read_signed,
    sign_roster,
)
from common.consortium.signed import read_document
from common.consortium.signing_key import has_signing_key, take_up_signing_key, write_public_half
from common.consortium.templates import coordinator_template
from common.durable import create_durably, sync_folder, write_durably
from common.errors import ConsortiumError
from common.journal import Act, Journal, read_journal
from common.privacy.signing import create_key, fingerprint, is_public_key, load_key
from common.privacy.store import make_folder

#: Days that things are valid, where nothing else is said.
AUTHORITY_DAYS: Final = 3650
DAYS: Final = 365
INVITATION_DAYS: Final = 14

Clock = Callable[[], datetime]


def _machine_clock() -> datetime:
    return datetime.now(UTC)


def found(
    folder: Path,
    name: str,
    address: str,
    *,
    also: Sequence[str] = (),
    days: float = DAYS,
    authority_days: float = AUTHORITY_DAYS,
    clock: Clock = _machine_clock,
) -> Authority:
    """Make ``folder/authority`` and ``folder/coordinator``, or complete them after a crash.

    Parameters
    ----------
    address:
        ``host:port`` by which silos reach the coordinator.
    also:
        Other host names and addresses that its certificate is for.
    days, authority_days:
        For how long the coordinator's certificate and the roster, and the authority's certificate, are valid.

    Raises
    ------
    ConsortiumError
        If there is a consortium already, or a name is not allowed.
    """
    home = AuthorityHome(folder / "authority")
    coordinator = home.coordinator
    try:
        check_address(address)
    except ValueError as error:
        raise ConsortiumError(f"address = {address!r}: {error}") from None
    if CONSORTIUM_NAME.fullmatch(name) is None:
        raise ConsortiumError(f"name = {name!r}: a consortium's name has up to 50 letters, digits, spaces and any of _ . & -")
    if home.roster.exists():
        raise ConsortiumError(f"{home.folder}: there is a consortium already; see: silorec consortium roster {folder}")
    now = in_seconds(clock())
    make_folder(home.folder)
    make_folder(coordinator.folder)
    key = own_key(home.key)
    if not home.authority.exists():
        certificate = make_authority(key, name, now - CLOCKS_APART, now + timedelta(days=authority_days))
        create_durably(home.authority, to_pem(certificate).encode(), mode=0o644)
    write_durably(coordinator.authority, home.authority.read_bytes())
    if not coordinator.key.exists():
        create_key(coordinator.key)
    write_public_half(coordinator.key)
    if not coordinator.settings_file.exists():
        create_durably(coordinator.settings_file, coordinator_template(name, int(address.rpartition(":")[2])).encode())
    authority = Authority(home, clock)
    authority.found(name, address, also, days)
    return authority


class Authority:
    """The authority in a folder that :func:`found` made; ``clock`` tells the time.

    All methods raise :class:`ConsortiumError` for what may not be done, and then nothing was.
    """

    def __init__(self, home: AuthorityHome, clock: Clock = _machine_clock) -> None:
        self.home, self._clock = home, clock
        if not home.key.exists():
            raise ConsortiumError(f"{home.folder}: there is no authority here; make one with: silorec consortium init")

    @property
    def consortium(self) -> Consortium:
        """The roster in force."""
        return read_signed(self.home.roster, self.home.authority)

    @property
    def fingerprint(self) -> str:
        """Of the authority's certificate: what operators compare by voice."""
        return fingerprint_of(read_certificate(self.home.authority))

    def found(self, name: str, address: str, also: Sequence[str], days: float) -> None:
        """Sign the coordinator's certificate and the first roster, in which nobody is."""
        with self._turn():
            if self.home.roster.exists():  # noted before a crash, and finished just now
                return
            self._sign_server(host_of(address), also, days)
            now, until = self._now(), self._until(days)
            coordinator = load_key(self.home.coordinator.key).public_key
            first = Consortium(name, 1, now, until, coordinator, address, ())
            self._commit("found", first, authority=self.fingerprint, coordinator=coordinator, address=address)

    def invite(self, name: str, days: float = INVITATION_DAYS) -> tuple[Invitation, bytes]:
        """An invitation for a silo that is to be called ``name``, and its file; an earlier one of that name is void."""
        try:
            check_silo_name(name)
        except ValueError as error:
            raise ConsortiumError(f"{name!r}: {error}") from None
        with self._turn():
            consortium = self.consortium
            if any(member.name == name for member in consortium.members):
                raise ConsortiumError(f"silo {name!r} is or was a member of {consortium.name!r}: choose another name")
            key, now = load_key_p384(self.home.key), self._now()
            invitation = Invitation(
                consortium=consortium.name,
                silo=name,
                address=consortium.address,
                coordinator=consortium.coordinator,
                token=secrets.token_hex(32),
                issued=now,
                expires=now + timedelta(days=days),
                authority=self.home.authority.read_text(),
            )
            open_ones = {silo: entry for silo, entry in self._invitations().items() if entry["expires"] > now}
            self._write_invitations({**open_ones, name: {"token": invitation.token, "expires": invitation.expires}})
            self._journal("invite", silo=name, expires=minute(invitation.expires))
            return invitation, invitation.write(key)

    def admit(self, document: bytes, where: str, days: float = DAYS) -> Member:
        """Take a silo into the roster, or its new node and TLS keys; ``document`` is its request's bytes.

        The same request again changes nothing.
        """
        request = read_request(document, where)
        with self._turn():
            consortium = self.consortium
            if request.consortium != consortium.name:
                raise ConsortiumError(
                    f"{where}: a request for consortium {request.consortium!r}, and this is {consortium.name!r}"
                )
            known = {member.name: member for member in consortium.members}.get(request.silo)
            if known is not None and (known.key, known.node) == (request.key, request.node):
                return known
            if request.kind == "renew":
                return self._renew(request, known, where)
            if known is not None:
                raise ConsortiumError(f"{where}: there is a silo {request.silo!r} already, with other keys; choose another name")
            return self._admit(request, where, days)

    def revoke(self, name: str, reason: str) -> Member:
        """Take a silo's rights for good; it keeps its number."""
        if not reason.strip() or not reason.isprintable():
            raise ConsortiumError("say in one line why: --reason")
        with self._turn():
            member = self.consortium.named(name)
            if member.revoked is not None:
                raise ConsortiumError(f"silo {name!r} was revoked already, on {day(member.revoked)}")
            revoked = replace(member, revoked=self._now(), reason=reason.strip())
            self._change("revoke", revoked, reason=revoked.reason)
            return revoked

    def extend(self, name: str, days: float = DAYS) -> Member:
        """Let a silo take part for ``days`` from now on, with a new certificate for the key that it has."""
        with self._turn():
            member = self._not_revoked(name)
            until = self._until(days)
            certificate = self._sign_silo(member.tls_key, name, member.valid_from, until)
            extended = replace(member, valid_until=until, certificate=certificate)
            self._change("extend", extended, until=minute(until))
            return extended

    def renew_server(self, also: Sequence[str] = (), days: float = DAYS) -> x509.Certificate:
        """Sign a new certificate for the coordinator: for the names that it has and ``also``, for its key if that is here.

        Without the key it is for that of its last certificate; so an authority that is kept elsewhere needs that file only.
        """
        with self._turn():
            return self._sign_server(host_of(self.consortium.address), also, days)

    def renew_roster(self, days: float = DAYS) -> Consortium:
        """Sign the roster anew, as it stands, so that it counts for ``days`` from now on."""
        with self._turn():
            self._commit("renew roster", self._next(days=days))
            return self.consortium

    def change_signing_key(self, public: str) -> Consortium:
        """Name another signing key of the coordinator, by its public half.

        Where the coordinator's folder lies beside ours, the private half must be there.
        """
        coordinator = self.home.coordinator
        if not is_public_key(public):
            raise ConsortiumError(
                f"{public!r}: a signing key's public half has 64 of 0-9 and a-f; the coordinator makes one: "
                f"silorec consortium rotate {coordinator.folder}"
            )
        with self._turn():
            if coordinator.key.exists() and not has_signing_key(coordinator, public):
                raise ConsortiumError(
                    f"{coordinator.folder}: the private half of {fingerprint(public)} is not there; make a new key first: "
                    f"silorec consortium rotate {coordinator.folder}"
                )
            self._commit("signing key", replace(self._next(), coordinator=public), coordinator=public)
            return self.consortium

    def move(self, address: str, also: Sequence[str] = (), days: float = DAYS) -> Consortium:
        """Name another address (``host:port``) of the coordinator, and sign a certificate for the new host and the old ones."""
        try:
            check_address(address)
        except ValueError as error:
            raise ConsortiumError(f"address = {address!r}: {error}") from None
        with self._turn():
            self._sign_server(host_of(address), also, days)
            self._commit("address", replace(self._next(), address=address), address=address)
            return self.consortium

    def _admit(self, request: Request, where: str, days: float) -> Member:
        invitation = self._invitations().get(request.silo)
        if invitation is None:
            raise ConsortiumError(f"{where}: nobody called {request.silo!r} was invited, or the invitation was used")
        if self._now() >= invitation["expires"]:
            expired = minute(invitation["expires"])
            raise ConsortiumError(f"{where}: the invitation expired at {expired}; invite {request.silo!r} again")
        if not secrets.compare_digest(proof_of(invitation["token"], request), request.proof):
            raise ConsortiumError(f"{where}: the request was not made with the last invitation for {request.silo!r}")
        since, until = self._now() - CLOCKS_APART, self._until(days)
        certificate = self._sign_silo(key_of_signing_request(request.tls), request.silo, since, until)
        member = Member(request.silo, request.key, request.node, certificate, request.declared_users, since, until)
        members = self.consortium.members
        self._commit(
            "admit",
            self._next((*members, member)),
            silo=member.name,
            number=len(members),
            key=member.key,
            declared_users=member.declared_users,
            until=minute(until),
        )
        self._write_invitations({silo: entry for silo, entry in self._invitations().items() if silo != member.name})
        return member

    def _renew(self, request: Request, known: Member | None, where: str) -> Member:
        if known is None or known.key != request.key:
            raise ConsortiumError(f"{where}: the key that signed it is foreign: it is not that of a silo {request.silo!r}")
        member = self._not_revoked(known.name)
        if refusal := member.why_refused(self._now()):
            raise ConsortiumError(f"{where}: {refusal}")
        if request.replaces != member.node:
            raise ConsortiumError(f"{where}: it replaces a key that {member.name!r} no longer has; ask for a new request")
        tls = key_of_signing_request(request.tls)
        certificate = self._sign_silo(tls, member.name, member.valid_from, member.valid_until)
        renewed = replace(member, node=request.node, certificate=certificate)
        self._change("renew keys", renewed)
        return renewed

    def _not_revoked(self, name: str) -> Member:
        member = self.consortium.named(name)
        if member.revoked is not None:
            raise ConsortiumError(member.why_refused(self._now()))
        return member

    def _change(self, act: str, changed: Member, **facts: Any) -> None:
        members = tuple(changed if member.name == changed.name else member for member in self.consortium.members)
        self._commit(act, self._next(members), silo=changed.name, **facts)

    def _next(self, members: tuple[Member, ...] | None = None, days: float = DAYS) -> Consortium:
        """The roster after the one in force."""
        old = self.consortium
        members = old.members if members is None else members
        return replace(old, version=old.version + 1, issued=self._now(), valid_until=self._until(days), members=members)

    def _commit(self, act: str, consortium: Consortium, **facts: Any) -> None:
        document = sign_roster(consortium, load_key_p384(self.home.key))
        parse_signed(document, self.home.authority)  # what we cannot read ourselves, nobody gets
        write_durably(self.home.pending, document)
        self._journal(act, version=consortium.version, roster=_digest(document), **facts)
        self._publish()

    def _publish(self) -> None:
        os.replace(self.home.pending, self.home.roster)
        sync_folder(self.home.folder)
        self._copy()

    def _copy(self) -> None:
        """Bring the coordinator's copy up to date, where its folder lies beside ours."""
        coordinator, document = self.home.coordinator, read_document(self.home.roster)
        if coordinator.key.exists() and (not coordinator.roster.exists() or coordinator.roster.read_bytes() != document):
            if has_signing_key(coordinator, self.consortium.coordinator):  # else its operator hears of it, and we go on
                take_up_signing_key(coordinator, self.consortium)
            write_durably(coordinator.roster, document)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One act at a time, after what a crash interrupted."""
        try:
            with FileLock(self.home.lock):
                self._finish()
                yield
        except OSError as error:
            raise ConsortiumError(f"{error.filename or self.home.folder}: cannot be written ({error.strerror})") from None

    def _finish(self) -> None:
        """Finish or drop what a crash interrupted."""
        home = self.home
        noted = [str(act.facts["roster"]) for act in _acts(home.journal) if "roster" in act.facts]
        if home.pending.exists():
            if noted[-1:] == [_digest(home.pending.read_bytes())]:
                self._publish()
            else:
                home.pending.unlink()
        if home.roster.exists():
            if noted[-1:] != [_digest(home.roster.read_bytes())]:
                raise ConsortiumError(
                    f"{home.journal}: its last change of the roster is not the roster that is here: one of the two was cut off, "
                    "or put back from an older copy; restore both from the same copy"
                )
            self._copy()

    def _sign_server(self, host: str, also: Sequence[str], days: float) -> x509.Certificate:
        coordinator = self.home.coordinator
        before = read_certificate(coordinator.tls_certificate) if coordinator.tls_certificate.exists() else None
        certificate = sign_server(
            read_certificate(self.home.authority),
            load_key_p384(self.home.key),
            _server_key(coordinator, before),
            (host, *(names_of(before) if before else ()), *also),
            self._now() - CLOCKS_APART,
            self._until(days),
        )
        write_durably(coordinator.tls_certificate, to_pem(certificate).encode())
        until = minute(certificate.not_valid_after_utc)
        self._journal("server certificate", names=list(names_of(certificate)), until=until)
        return certificate

    def _sign_silo(self, key: EllipticCurvePublicKey, name: str, since: datetime, until: datetime) -> str:
        authority = read_certificate(self.home.authority)
        return to_pem(sign_silo(authority, load_key_p384(self.home.key), key, name, since, until))

    def _now(self) -> datetime:
        return in_seconds(self._clock())

    def _until(self, days: float) -> datetime:
        """In ``days`` from now, or when the authority itself expires; :class:`ConsortiumError` if it may not sign now."""
        now, authority = self._now(), read_certificate(self.home.authority)
        if now >= authority.not_valid_after_utc:
            raise ConsortiumError(
                f"{self.home.authority}: the authority expired on {day(authority.not_valid_after_utc)} and signs nothing any "
                "more; found a new consortium"
            )
        if now < authority.not_valid_before_utc:
            raise ConsortiumError(
                f"{self.home.authority}: the authority is valid from {minute(authority.not_valid_before_utc)} on, and this "
                f"machine's clock says {minute(now)}: set the clock"
            )
        return min(in_seconds(now + timedelta(days=days)), authority.not_valid_after_utc)

    def _journal(self, act: str, **facts: Any) -> None:
        Journal(self.home.journal, clock=lambda: self._clock().timestamp()).append(act, **facts)

    def _invitations(self) -> dict[str, Any]:
        path = self.home.invitations
        try:
            return tomllib.loads(read_private(path).decode()) if path.exists() else {}
        except ValueError:
            raise ConsortiumError(f"{path}: damaged; remove it, and invite anew whoever has not joined yet") from None

    def _write_invitations(self, invitations: dict[str, Any]) -> None:
        write_durably(self.home.invitations, tomli_w.dumps(invitations).encode(), mode=0o600)


def _server_key(coordinator: CoordinatorHome, before: x509.Certificate | None) -> EllipticCurvePublicKey:
    """The key in the folder; without one, that of the last certificate; without both, a new one in the folder."""
    key = None if before is None or coordinator.tls_key.exists() else p384_key_of(before)
    return key or own_key(coordinator.tls_key).public_key()


def _acts(path: Path) -> Sequence[Act]:
    return read_journal(path) if path.exists() else ()


def _digest(document: bytes) -> str:
    return hashlib.sha256(document).hexdigest()
