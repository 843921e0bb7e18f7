"""Asking a coordinator who it is, step by step, so that a person is told at which step it failed and why.

Anybody may ask these two questions; the answers hold nothing about users:

    GET /silorec/hello     consortium, version, flwr, protocol, time (seconds since 1970, UTC), roster_version
    GET /silorec/roster    roster, signature: the text of both files
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from common.consortium.certificates import names_of
from common.errors import ConfigError

HELLO, ROSTER = "/silorec/hello", "/silorec/roster"
_NOTHING = "/v1/fleet/silorec-doctor"
_LARGEST = 8 << 20

# What OpenSSL says of a certificate (x509_vfy.h).
_NOT_YET, _EXPIRED, _WRONG_NAME, _WRONG_ADDRESS = 9, 10, 62, 64
_FOREIGN = frozenset({2, 7, 18, 19, 20, 21, 24, 27})


@dataclass(frozen=True)
class Spoken:
    """An answer of a coordinator.

    Parameters
    ----------
    facts:
        The answer's JSON object.
    ahead:
        By how many seconds this machine's clock is ahead of the coordinator's; None where the answer tells no time.
    give_or_take:
        Half the time that the answer took, and the coarseness of the time in it: the difference is that uncertain.
    """

    facts: dict[str, Any]
    ahead: float | None
    give_or_take: float


class NotReached(Exception):
    """No answer, or no good one.

    Parameters
    ----------
    step:
        ``address``, ``name``, ``tcp``, ``tls`` or ``http``.
    ahead, give_or_take:
        As in :class:`Spoken`, where something answered with a date.
    """

    def __init__(self, step: str, seen: str, do: str, ahead: float | None = None, give_or_take: float = 0.0) -> None:
        super().__init__(seen)
        self.step, self.seen, self.do, self.ahead, self.give_or_take = step, seen, do, ahead, give_or_take


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port``.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is no address: it must be host:port, for example coordinator.example:9092")
    return host, int(port)


def ask(address: str, path: str, authority: Path, clock: Callable[[], float], patience: float) -> Spoken:
    """One question over TLS, the coordinator's certificate checked against the consortium's authority.

    Raises
    ------
    NotReached
        With the step that failed.
    """
    host, port = split_address(address)
    with contextlib.closing(_connect(host, port, patience)) as plain, _secured(plain, host, port, authority) as connection:
        return _answer(connection, host, port, path, clock)


def refusal_of(address: str, node_key: str, authority: Path, clock: Callable[[], float], patience: float) -> str | None:
    """Why the coordinator's gate does not let a node with this key in; None if it does.

    Asked for is something that is not there, so nothing happens at the coordinator, whatever the answer.

    Parameters
    ----------
    node_key:
        The public key as Flower's header has it: PEM in base64.
    """
    host, port = split_address(address)
    with contextlib.closing(_connect(host, port, patience)) as plain, _secured(plain, host, port, authority) as connection:
        status, body, _, _ = _exchange(connection, host, port, _NOTHING, clock, {"flwr-public-key": node_key})
    if status not in (401, 403):
        return None
    with contextlib.suppress(ValueError, AttributeError):
        detail = json.loads(body).get("detail")
        return detail[:500] if isinstance(detail, str) else f"HTTP status {status}"
    return f"HTTP status {status}"


def _connect(host: str, port: int, patience: float) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        seen = f"the name {host} leads to no address ({getattr(error, 'strerror', None) or error})"
        raise NotReached("name", seen, f"mend the coordinator's address, or the name service: getent hosts {host}") from None
    for family, kind, protocol, _, place in found:
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(patience)
        try:
            connection.connect(place)
        except OSError as error:
            connection.close()
            failed: OSError = error
        else:
            return connection
    where = f"{host}:{port}"
    if isinstance(failed, ConnectionRefusedError):
        do = "start the coordinator there (silorec server up), or mend the port in the address"
        raise NotReached("tcp", f"nobody listens at {where}: the connection was refused", do)
    if isinstance(failed, TimeoutError):
        seen = f"{where} did not answer within {patience:g} s: the host is down, or a firewall drops the packets"
        raise NotReached("tcp", seen, f"let connections through to {where}, from here and on the way; then: nc -vz {host} {port}")
    raise NotReached("tcp", f"{where} cannot be reached ({failed.strerror})", f"mend the route to it: ip route get {host}")


def _secured(plain: socket.socket, host: str, port: int, authority: Path) -> ssl.SSLSocket:
    where = f"{host}:{port}"
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except OSError as error:  # ssl.SSLError is one
        seen = f"{authority} cannot be used as the authority's certificate ({error.strerror or error})"
        raise NotReached("tls", seen, "put the consortium's authority.pem there again, from your invitation") from None
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise _refused(error, host, port, plain.gettimeout()) from None
    except ssl.SSLError as error:
        seen = f"{where} answers, but not with TLS ({error.reason or error})"
        raise NotReached("tls", seen, "check the port: something else than a coordinator, or one without TLS, answers") from None
    except OSError as error:
        words = "timed out" if isinstance(error, TimeoutError) else error.strerror or "the connection was closed"
        seen = f"{where} took the connection and made no TLS ({words})"
        raise NotReached("tls", seen, "check the port, and whether a proxy or firewall stands in between") from None


def _refused(error: ssl.SSLCertVerificationError, host: str, port: int, patience: float | None) -> NotReached:
    """Why a certificate was not taken, with what is in it."""
    shown = _certificate(host, port, patience)
    if error.verify_code in (_WRONG_NAME, _WRONG_ADDRESS):
        names = ", ".join(names_of(shown)) if shown else "other names"
        seen = f"the coordinator's certificate is for {names or 'no name at all'}, not for {host}"
        do = f"use one of these names as the coordinator's address, or have the certificate made anew with {host} in it"
    elif error.verify_code == _EXPIRED:
        when = f" on {shown.not_valid_after_utc:%Y-%m-%d %H:%M} UTC" if shown else ""
        seen = f"the coordinator's certificate, or its authority's, has expired{when}"
        do = "have the coordinator renew it; if that date is still to come, set this machine's clock right"
    elif error.verify_code == _NOT_YET:
        when = f" before {shown.not_valid_before_utc:%Y-%m-%d %H:%M} UTC" if shown else ""
        seen = f"the coordinator's certificate is not valid{when}"
        do = "set this machine's clock right (timedatectl), or the coordinator's if the certificate was made with a wrong one"
    elif error.verify_code in _FOREIGN:
        issuer = f" ({shown.issuer.rfc4514_string()})" if shown else ""
        seen = f"the coordinator's certificate was made by a foreign authority{issuer}, not by that of authority.pem"
        do = "compare the authority's fingerprint with the consortium's by voice, and do not go on before: another server, a "
        do += "proxy that opens TLS, or an attacker may be answering"
    else:
        seen = f"the coordinator's certificate is refused ({error.verify_message})"
        do = "have the coordinator's certificate made anew"
    return NotReached("tls", seen, do)


def _certificate(host: str, port: int, patience: float | None) -> x509.Certificate | None:
    """What is shown there, without believing any of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=patience) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError):
        return None


def is_for(certificate: x509.Certificate, host: str) -> bool:
    """Whether a certificate is for ``host``, a name or an address; one left-most ``*`` stands for one label."""
    names = names_of(certificate)
    try:
        return str(ipaddress.ip_address(host)) in names
    except ValueError:
        wanted = host.lower().rstrip(".")
        return any(name.lower() in (wanted, f"*.{wanted.partition('.')[2]}") for name in names)


def _answer(connection: ssl.SSLSocket, host: str, port: int, path: str, clock: Callable[[], float]) -> Spoken:
    where = f"{host}:{port}"
    status, body, date, (now, half) = _exchange(connection, host, port, path, clock, {})
    ahead, give_or_take = (None, 0.0) if date is None else (now - date - 0.5, half + 0.5)  # the header has whole seconds
    try:
        facts = json.loads(body) if status == 200 else None
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        seen = f"{where} answers {path} with HTTP status {status}" + (" and no JSON object" if status == 200 else "")
        do = "start the coordinator with silorec server up (Flower's own flower-superlink does not answer this); look at its log"
        raise NotReached("http", seen, do, ahead, give_or_take)
    told = facts.get("time")
    if isinstance(told, int | float) and not isinstance(told, bool):
        ahead, give_or_take = now - told, half
    return Spoken(facts, ahead, give_or_take)


def _exchange(
    connection: ssl.SSLSocket, host: str, port: int, path: str, clock: Callable[[], float], headers: dict[str, str]
) -> tuple[int, bytes, float | None, tuple[float, float]]:
    """Status, body and date of an answer, and this machine's time half-way with half of how long it took."""
    asked = clock()
    speaking = http.client.HTTPConnection(host, port)
    speaking.sock = connection
    try:
        speaking.request("GET", path, headers={"Accept": "application/json", "Connection": "close", **headers})
        answer = speaking.getresponse()
        body = answer.read(_LARGEST)
    except (OSError, http.client.HTTPException) as error:
        words = str(error) or type(error).__name__
        do = "look at the coordinator's log; check that the port is silorec's"
        raise NotReached("http", f"{host}:{port} made TLS and gave no HTTP answer ({words})", do) from None
    half = (clock() - asked) / 2
    return answer.status, body, _date(answer.getheader("Date")), (asked + half, half)


def _date(header: str | None) -> float | None:
    try:
        return parsedate_to_datetime(header).timestamp() if header else None
    except (ValueError, TypeError):
        return None
