"""Who may ask: a silo's certificate, signed by the federation's authority, is its permission.

OpenSSL checks a certificate when a connection is made: its signatures up to the authority, its dates, its use. Connections live
long, so its dates, and the lists of those who are allowed or revoked, are looked at again in every call.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from common.errors import ServingError
from server.serving.refusal import Refused

LOCAL: Final = "local"
"""What a caller without a certificate is called; there is none except over loopback without TLS."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A silo's name: it becomes a label of counters."""

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_FILE_LIMIT: Final = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Silo:
    """Who a certificate is for: the first DNS name among its alternative names, else its common name.

    ``fingerprint`` is the SHA-256 (hex) of the certificate, ``expires`` in seconds since 1970.
    """

    name: str
    fingerprint: str
    expires: float


class NameList:
    """A file with one silo a line, by name or by its certificate's SHA-256; ``#`` begins a remark. A change counts at once.

    A file that cannot be read, or holds something else, is an error at the start. Later the list stays as it was, and the log
    says so.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._looked = clock()
        self._state = _state_of(path)
        self._entries = _entries_of(path)

    def __contains__(self, silo: Silo) -> bool:
        self._look()
        return silo.name in self._entries or silo.fingerprint in self._entries

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < 1.0:
            return
        self._looked = now
        state = _state_of(self._path)
        if state == self._state:
            return
        self._state = state
        try:
            self._entries = _entries_of(self._path)
        except ServingError as error:
            log.error("%s; the list stays as it was", error)


class Admission:
    """Decides by certificate who may ask.

    Parameters
    ----------
    allow:
        If given, only these silos may.
    deny:
        These may not, whatever else holds: revoked certificates.
    without_tls:
        Every caller is :data:`LOCAL`.
    """

    def __init__(self, allow: NameList | None = None, deny: NameList | None = None, *, without_tls: bool = False) -> None:
        self._allow, self._deny, self._without_tls = allow, deny, without_tls

    def silo_of(self, connection: Mapping[str, Iterable[bytes]]) -> str:
        """Name of the silo behind a connection, given gRPC's facts about it (``auth_context``).

        Raises
        ------
        Refused
            If it may not ask.
        """
        if self._without_tls:
            return LOCAL
        certificate = next(iter(connection.get("x509_pem_cert", ())), None)
        silo = None if certificate is None else _silo_of(certificate)
        if silo is None:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "the certificate names no silo; ask the coordinator for one that does")
        if time.time() > silo.expires:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "the silo's certificate has expired; connect again with a new one")
        if (self._deny is not None and silo in self._deny) or (self._allow is not None and silo not in self._allow):
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "this silo may not ask here; talk to the coordinator")
        return silo.name


@functools.lru_cache(maxsize=1024)
def _silo_of(pem: bytes) -> Silo | None:
    """The silo that a certificate names, None if it names none."""
    certificate = x509.load_pem_x509_certificate(pem)
    names = [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = alternative.get_values_for_type(x509.DNSName) or names
    except x509.ExtensionNotFound:
        pass
    if not names or NAME.fullmatch(names[0]) is None:
        return None
    return Silo(names[0], certificate.fingerprint(SHA256()).hex(), certificate.not_valid_after_utc.timestamp())


def server_credentials(certificate: Path, key: Path, client_ca: Path) -> grpc.ServerCredentials:
    """Mutual TLS: nobody connects without a certificate that ``client_ca`` signed.

    Raises
    ------
    ServingError
        If a file cannot be read or is not what it should be.
    """
    chain, private, authority = (_read(path) for path in (certificate, key, client_ca))
    check_certificate(certificate, chain, key, private)
    if key.stat().st_mode & 0o007:
        raise ServingError(f"{key}: everybody on this machine can read the key; run: chmod 600 {key}")
    _certificates(client_ca, authority)
    return grpc.ssl_server_credentials([(private, chain)], root_certificates=authority, require_client_auth=True)


def check_certificate(certificate: Path, chain: bytes, key: Path, private: bytes) -> None:
    """Raise :class:`ServingError` unless the key is the certificate's and the certificate has not expired."""
    first = _certificates(certificate, chain)[0]
    if first.not_valid_after_utc < datetime.now(UTC):
        raise ServingError(f"{certificate}: the certificate expired on {first.not_valid_after_utc:%Y-%m-%d}; get a new one")
    public = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if _private_key(key, private).public_key().public_bytes(*public) != first.public_key().public_bytes(*public):
        raise ServingError(f"{key}: this is not the key of the certificate {certificate}")


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _private_key(path: Path, pem: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem, password=None)
    except TypeError:
        raise ServingError(f"{path}: the key is encrypted; a service needs one that it can read") from None
    except Exception:  # what OpenSSL cannot read ends in exceptions of several kinds
        raise ServingError(f"{path}: not a private key in PEM form") from None


def _certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ServingError(f"{path}: not a certificate in PEM form") from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_FILE_LIMIT)
    except OSError as error:
        raise ServingError(f"{path}: cannot be read ({error.strerror})") from None


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _entries_of(path: Path) -> frozenset[str]:
    entries = set()
    for number, line in enumerate(_read(path).decode("utf-8", "replace").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        digest = text.replace(":", "").lower()
        if _FINGERPRINT.fullmatch(digest):
            entries.add(digest)
        elif NAME.fullmatch(text):
            entries.add(text)
        else:
            raise ServingError(f"{path}:{number}: neither a silo's name nor a certificate's SHA-256 (64 hex digits)")
    return frozenset(entries)
