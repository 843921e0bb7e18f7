"""Keys and certificates of a home: there, private, of the right kind, the ones that the roster names, and not about to expire."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.consortium.certificates import is_issued_by, names_of, read_certificate
from common.consortium.expiry import Expiry
from common.consortium.home import host_of
from common.consortium.keys import load_key_p384, node_line
from common.doctor.finding import Check, Finding, NotChecked, ok, problem, warning
from common.doctor.reach import is_for
from common.doctor.subject import COORDINATOR, HOMES, SILO, Subject
from common.errors import SilorecError
from common.privacy.signing import SigningKey, fingerprint, load_key

Loader = Callable[[Path], object]

_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"

_EXTENDED = "ask the authority to extend this silo: silorec consortium rotate DIR --extend NAME"
_RENEWED = "ask the authority for another one: silorec consortium rotate DIR --server"
_FOUNDED = "its certificates end with it: found the consortium anew (silorec consortium init)"


def look_at_files(subject: Subject) -> Iterator[Finding]:
    """Every private key: there, readable by this user alone, and of its kind."""
    for path, kind, load in _private_keys(subject):
        if found := _why_not(path, load, subject.machine.user):
            yield problem("keys", *found)
        elif path.name == "node.key" and not path.read_bytes().startswith(_OPENSSH):
            seen = f"{path}: Flower reads a node's key in OpenSSH's form only, this one is in another"
            yield problem("keys", seen, f"ssh-keygen -p -N '' -f {path}")
        else:
            yield ok("keys", f"{path.name}: {kind}, readable by its owner alone")


def look_at_silo_in_roster(subject: Subject) -> Iterator[Finding]:
    """The silo's keys are those that the roster has."""
    silo, roster = subject.silo, subject.roster
    identity = _identity(silo.identity_key)
    try:
        member = roster.members[roster.number_of(identity.public_key)]
    except SilorecError as error:
        do = "restore ledger.key from its copy; if this silo was never admitted, give its .request file to the authority"
        yield problem("keys in roster", str(error), do)
        return
    wrong, renew = False, f"restore it from its copy, or make a new one: silorec consortium rotate {silo.folder}"
    node, certificate = _p384(silo.node_key), _certificate(silo.tls_certificate)
    if node is not None and node_line(node.public_key()) != member.node:
        wrong = True
        seen = f"node.key is not the node key that the roster has for {member.name!r}: the coordinator refuses this node"
        yield problem("keys in roster", seen, renew)
    if certificate is not None and certificate != x509.load_pem_x509_certificate(member.certificate.encode()):
        wrong = True
        seen = f"tls.pem is not the certificate that the roster has for {member.name!r}"
        yield warning("keys in roster", seen, "silorec client up puts the roster's in its place, if tls.key is the key to it")
    if not wrong:
        yield ok(
            "keys in roster", f"the roster names these keys, as silo {member.name!r}, identity {fingerprint(identity.public_key)}"
        )


def look_at_coordinator_in_roster(subject: Subject) -> Iterator[Finding]:
    """The coordinator's key and the names in its certificate are those that the roster has."""
    coordinator, roster = subject.coordinator, subject.roster
    mine = _identity(coordinator.key).public_key
    if mine != roster.coordinator:
        seen = f"coordinator.key ({fingerprint(mine)}) is not the roster's ({fingerprint(roster.coordinator)})"
        yield problem("keys in roster", f"{seen}: silos refuse what it signs", "restore coordinator.key from its copy")
    else:
        yield ok("keys in roster", f"the roster names this coordinator's key, {fingerprint(mine)}")
    certificate, host = _certificate(coordinator.tls_certificate), host_of(roster.address)
    if certificate is not None and not is_for(certificate, host):
        seen = f"tls.pem is for {', '.join(names_of(certificate)) or 'no name'}, and silos are told to connect to {host}"
        yield problem(
            "keys in roster",
            seen,
            f"have the certificate made anew with {host} in it: silorec consortium rotate DIR --server --san {host}",
        )


def look_at_certificates(subject: Subject) -> Iterator[Finding]:
    """The home's certificate and the authority's: they fit each other and the key, and are valid for a while."""
    home, sound = subject.home, True
    authority = certificate = None
    for path in (home.authority, home.tls_certificate):
        if (found := _certificate(path)) is None:
            admitted = subject.role == "coordinator" or home.roster.exists() or path == home.authority
            do = (
                f"restore {path.name} from its copy" if admitted else "none: it comes with the roster, once this silo is admitted"
            )
            yield problem("certificates", f"{path}: there is no certificate that can be read", do)
            sound = False
        elif path == home.authority:
            authority = found
        else:
            certificate = found
    if authority is not None and certificate is not None and not is_issued_by(certificate, authority):
        sound = False
        seen = f"{home.tls_certificate.name} was not made by the authority of {home.authority.name}"
        yield problem("certificates", seen, "restore both from the same copy, or from your invitation")
    key = _p384(home.tls_key)
    if certificate is not None and key is not None and not _is_of(certificate, key):
        sound = False
        seen = f"{home.tls_certificate.name} is the certificate of another key than {home.tls_key.name}"
        yield problem(
            "certificates", seen, "restore both from the same copy, or have both made anew: silorec consortium rotate --help"
        )
    renewed = _EXTENDED if subject.role == "silo" else _RENEWED
    for path, shown, do in ((home.authority, authority, _FOUNDED), (home.tls_certificate, certificate, renewed)):
        if shown is not None:
            valid = Expiry(path.name, shown.not_valid_before_utc, shown.not_valid_after_utc, do)
            if ageing := of_expiry("certificates", valid, subject.now):
                sound = False
                yield ageing
    if sound and certificate is not None:
        until = certificate.not_valid_after_utc
        yield ok("certificates", f"made by the consortium's authority, valid until {until:%Y-%m-%d}")


def of_expiry(name: str, expiry: Expiry, now: datetime) -> Finding | None:
    """A finding of what has expired, does so soon, or is not valid yet; None of anything else."""
    if not (fault := expiry.fault(now)):
        return None
    counts = expiry.has_begun(now) and not expiry.has_expired(now)
    return (warning if counts else problem)(name, fault, expiry.remedy_for(now))


def node_public_pem(path: Path) -> bytes | None:
    """The public half of a node key as Flower sends it (PEM), or None where there is none."""
    key = _p384(path)
    return None if key is None else key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _private_keys(subject: Subject) -> list[tuple[Path, str, Loader]]:
    home = subject.home
    tls: tuple[Path, str, Loader] = (home.tls_key, "P-384", load_key_p384)
    if subject.role == "silo":
        silo = subject.silo
        return [(silo.identity_key, "Ed25519", load_key), (silo.node_key, "P-384", load_key_p384), tls]
    return [(subject.coordinator.key, "Ed25519", load_key), tls]


def _why_not(path: Path, load: Loader, user: int) -> tuple[str, str] | None:
    """What is wrong with a private key's file, and what to do."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return f"{path}: there is no key", f"restore {path.name} from its copy; without one, the authority has to admit new keys"
    mode = stat.S_IMODE(about.st_mode)
    if mode & 0o077:
        return f"{path}: others than its owner can read or change the key (mode {mode:04o})", f"chmod 600 {path}"
    if about.st_uid != user:
        return (
            f"{path}: the key belongs to user {about.st_uid}, this is user {user}",
            f"run as its owner, or: chown {user} {path}",
        )
    try:
        load(path)
    except SilorecError as error:
        return str(error), f"restore {path.name} from its copy"
    return None


def _identity(path: Path) -> SigningKey:
    try:
        return load_key(path)
    except SilorecError:
        raise NotChecked(f"it needs {path.name}") from None


def _p384(path: Path) -> EllipticCurvePrivateKey | None:
    """A P-384 key; None if there is none that may be used, which the check of keys says."""
    try:
        return load_key_p384(path)
    except SilorecError:
        return None


def _certificate(path: Path) -> x509.Certificate | None:
    try:
        return read_certificate(path)
    except SilorecError:
        return None


def _is_of(certificate: x509.Certificate, key: EllipticCurvePrivateKey) -> bool:
    public = certificate.public_key()
    return isinstance(public, EllipticCurvePublicKey) and public.public_numbers() == key.public_key().public_numbers()


CHECKS = (
    Check("keys", HOMES, look_at_files),
    Check("keys in roster", SILO, look_at_silo_in_roster),
    Check("keys in roster", COORDINATOR, look_at_coordinator_in_roster),
    Check("certificates", HOMES, look_at_certificates),
)
