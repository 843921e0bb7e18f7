"""What ``silorec consortium rotate`` does: each renewal gives its facts, for machines, and its lines, for people."""

from __future__ import annotations

from typing import Any, TypeAlias

from common.consortium.authority import Authority
from common.consortium.certificates import names_of, read_certificate
from common.consortium.home import CoordinatorHome, SiloHome
from common.consortium.joining import renew
from common.consortium.keys import waiting
from common.consortium.roster import day, read_signed
from common.consortium.signing_key import public_half, renew_signing_key
from common.privacy.signing import fingerprint

Told: TypeAlias = tuple[dict[str, Any], list[str]]


def keys(home: SiloHome) -> Told:
    """A silo's node and TLS keys."""
    request = renew(home, read_signed(home.roster, home.authority))
    lines = [
        f"new node and TLS keys wait in {home.folder}; send {request} to the authority",
        "the identity key stays: the ledger is signed with it, and a new identity means a new ledger",
    ]
    return {"request": str(request)}, lines


def new_signing_key(home: CoordinatorHome) -> Told:
    """A signing key for the coordinator, which the authority does not name yet."""
    public, path = renew_signing_key(home), public_half(waiting(home.key))
    lines = [
        f"a new signing key waits in {home.folder}; its public half, which is in {path.name}, is {public}",
        "first every silo allows it (coordinators in policy.toml, then silorec ledger amend)",
        f"then the authority names it: silorec consortium rotate DIR --signing-key {path}",
    ]
    return {"public_key": public, "file": str(path)}, lines


def signing_key(authority: Authority, public: str) -> Told:
    """The roster names another signing key of the coordinator."""
    consortium = authority.change_signing_key(public)
    lines = [
        f"the coordinator signs with {fingerprint(public)}; silos whose policy does not allow it refuse what it asks",
        *handed_out(authority),
    ]
    return {"coordinator": public, "version": consortium.version}, lines


def server(authority: Authority, san: list[str], days: float) -> Told:
    """The coordinator's certificate."""
    certificate = authority.renew_server(san, days)
    path, until = authority.home.coordinator.tls_certificate, certificate.not_valid_after_utc
    lines = [f"{path}: for {', '.join(names_of(certificate))}, until {day(until)}; start the coordinator anew with it"]
    return {"certificate": str(path), "names": names_of(certificate), "valid_until": until.isoformat()}, lines


def move(authority: Authority, address: str, san: list[str], days: float) -> Told:
    """The roster and the coordinator's certificate name another address."""
    consortium, path = authority.move(address, san, days), authority.home.coordinator.tls_certificate
    names = names_of(read_certificate(path))
    lines = [
        f"the coordinator is at {address}; {path} is for {', '.join(names)}: start the coordinator anew with it",
        f'every silo puts coordinator = "{address}" into its silo.toml',
        *handed_out(authority),
    ]
    return {"address": address, "certificate": str(path), "names": names, "version": consortium.version}, lines


def extend(authority: Authority, name: str, days: float) -> Told:
    """A silo's admission."""
    member = authority.extend(name, days)
    facts = {"silo": name, "valid_until": member.valid_until.isoformat(), "version": authority.consortium.version}
    return facts, [f"{name} takes part until {day(member.valid_until)}", *handed_out(authority)]


def roster(authority: Authority, days: float) -> Told:
    """The roster itself."""
    consortium = authority.renew_roster(days)
    lines = [f"the roster counts until {day(consortium.valid_until)}", *handed_out(authority)]
    return {"version": consortium.version, "valid_until": consortium.valid_until.isoformat()}, lines


def handed_out(authority: Authority) -> list[str]:
    """How the new roster gets to those who need it."""
    version, coordinator = authority.consortium.version, authority.home.coordinator
    if coordinator.roster.exists():
        return [f"version {version} of the roster is in {coordinator.folder}, which hands it out"]
    return [f"version {version} of the roster: take {authority.home.roster} to the coordinator's folder"]
