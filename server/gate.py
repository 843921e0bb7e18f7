"""The gate in front of Flower's SuperLink: who may reach which of its interfaces, decided by the consortium's roster.

Flower serves everything at one port: what silos ask (Fleet), what an operator orders (Control) and what its own processes use
(Runtime). Without account authentication, whoever reaches the port may order a run: have code run on the coordinator. Here

* Fleet is for node keys of silos that are in the roster, valid and not revoked, judged anew at every request;
* Control and Runtime are for this machine alone;
* ``/silorec/hello`` and ``/silorec/roster`` are for everybody: versions and the clock, and the roster that the authority signed.

That the caller has the key that its request names is checked behind the gate, by Flower's node authentication.
"""

from __future__ import annotations

import base64
import binascii
import functools
import ipaddress
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from common.consortium.home import CoordinatorHome
from common.consortium.roster import Consortium, Member, read_signed
from common.errors import SilorecError
from common.protocol import PROTOCOL_VERSION

log = logging.getLogger("silorec.server")

FLEET: Final = "/v1/fleet/"
FOR_ALL: Final = ("/health",)
HELLO, ROSTER = "/silorec/hello", "/silorec/roster"
KEY_HEADER: Final = b"flwr-public-key"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class RosterOnDisk:
    """The coordinator's roster, read again when its file has changed; one that cannot be read leaves the last one in force."""

    def __init__(self, home: CoordinatorHome, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.home, self.clock = home, clock
        self._seen = (-1, 0, 0)
        self._read: Consortium | None = None
        self._by_node: dict[bytes, Member] = {}

    def current(self) -> Consortium:
        """Raises :class:`SilorecError` if there has never been one that could be read."""
        state = _state(self.home.roster)
        if state != self._seen or self._read is None:
            try:
                self._read = read_signed(self.home.roster, self.home.authority)
                self._by_node = {member.node_pem: member for member in self._read.members}
                self._seen = state
            except SilorecError as error:
                if self._read is None:
                    raise
                log.error("the roster has changed and cannot be used: %s; the last one stays in force", error)
                self._seen = state
        return self._read

    def why_refused(self, node_key: bytes) -> str:
        """Why a node with this public key (PEM) may not take part now; empty if it may."""
        consortium, now = self.current(), self.clock()
        member = self._by_node.get(node_key)
        if member is None:
            return f"this node's key is not in the roster of {consortium.name}: the silo has to be admitted first"
        return consortium.why_refused(now) or member.why_refused(now)


class Gate:
    """ASGI middleware; see the module.

    Parameters
    ----------
    app:
        The SuperLink.
    roster:
        Who takes part.
    """

    def __init__(self, app: App, *, roster: RosterOnDisk) -> None:
        self.app, self.roster = app, roster
        self._told: OrderedDict[str, float] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, answer it here, or refuse it before its body is read."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        path, caller = str(scope["path"]), str((scope.get("client") or ("", 0))[0])
        if path == HELLO:
            await _answer(send, 200, hello(self.roster.current()))
        elif path == ROSTER:
            await _answer(send, 200, {"roster": self.roster.home.roster.read_text(encoding="utf-8")})
        elif path.startswith(FLEET):
            why = self.roster.why_refused(_node_key(scope))
            if why:
                self._tell(caller, why)
                await _answer(send, 401, {"code": 401, "detail": why})
            else:
                await self.app(scope, receive, send)
        elif path in FOR_ALL or _is_local(caller):
            await self.app(scope, receive, send)
        else:
            why = "only processes on the coordinator's own machine may ask for this"
            self._tell(caller, f"{path}: {why}")
            await _answer(send, 403, {"code": 403, "detail": why})

    def _tell(self, caller: str, why: str) -> None:
        """Log a refusal, once a minute for each caller and reason."""
        now, key = time.monotonic(), f"{caller} {why}"
        if now - self._told.get(key, -60.0) >= 60.0:
            log.warning("refused %s: %s", caller, why)
            self._told[key] = now
            if len(self._told) > 1000:
                self._told.popitem(last=False)


def hello(consortium: Consortium) -> dict[str, Any]:
    """What anybody may know: names, versions, and the coordinator's clock in seconds since 1970."""
    return {
        "consortium": consortium.name,
        "version": _version("silorec"),
        "flwr": _version("flwr"),
        "protocol": PROTOCOL_VERSION,
        "time": time.time(),
        "roster_version": consortium.version,
    }


def _node_key(scope: Scope) -> bytes:
    """The public key that a request names, PEM; empty where there is none."""
    for name, value in scope["headers"]:
        if name == KEY_HEADER:
            return _pem_of_header(bytes(value))
    return b""


@functools.lru_cache(maxsize=256)
def _pem_of_header(value: bytes) -> bytes:
    """From Flower's header, base64, in the one form that the roster has it in; empty for anything else."""
    try:
        sent = load_pem_public_key(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError, UnsupportedAlgorithm):
        return b""
    return sent.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _is_local(caller: str) -> bool:
    try:
        address = ipaddress.ip_address(caller)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _state(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
