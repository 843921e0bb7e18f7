"""A consortium in a folder with two silos, and a coordinator on loopback that answers over TLS what a test wants it to."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509

from common.consortium.certificates import make_authority, sign_server, sign_silo, to_pem
from common.consortium.home import CoordinatorHome, SiloHome
from common.consortium.keys import load_key_p384, node_line, own_key
from common.consortium.roster import Consortium, Member, sign_roster
from common.doctor.machine import Machine, version_of
from common.privacy.ledger import Ledger
from common.privacy.policy import read_policy
from common.privacy.signing import create_key, load_key
from common.protocol import PROTOCOL_VERSION

NOW = datetime.now(UTC).replace(microsecond=0)
LONG_AGO, FAR = NOW - timedelta(days=10), NOW + timedelta(days=365)

#: A machine with nothing to complain of, but the real clock and the packages that are installed.
SOUND = Machine(
    free_bytes=lambda folder: 10**11,
    available_memory=lambda: 10**10,
    keeps_time=lambda: True,
    ephemeral_ports=lambda: (60001, 60999),
    patience=3.0,
)


class Coordinator(ThreadingHTTPServer):
    """What answers in a coordinator's place.

    ``facts`` is added to what a sound coordinator says of itself; None takes a fact away. ``refusal`` is what the gate says to
    every node; ``status`` replaces the answer's.
    """

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), _Answers)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.facts: dict[str, Any] = {}
        self.status, self.refusal, self.roster = 200, "", b""
        self.asked: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"{self.server_address[0]!s}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what these tests are about."""


class _Answers(BaseHTTPRequestHandler):
    server: Coordinator

    def do_GET(self) -> None:
        server = self.server
        server.asked.append((self.path, self.headers.get("flwr-public-key")))
        hello = {
            "consortium": "shops",
            "version": version_of("silorec"),
            "flwr": version_of("flwr"),
            "protocol": PROTOCOL_VERSION,
            "time": time.time(),
            "roster_version": 3,
            **server.facts,
        }
        status, answer = server.status, {key: value for key, value in hello.items() if value is not None}
        if self.path == "/silorec/roster":
            answer = {"roster": server.roster.decode()}
        elif self.path.startswith("/v1/fleet/"):
            status, answer = (401, {"code": 401, "detail": server.refusal}) if server.refusal else (404, {})
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@dataclass
class Deployment:
    """Folders of a coordinator and of silo ``north``, whose peer ``south`` is only in the roster."""

    folder: Path
    authority_key: Any = None
    authority: x509.Certificate | None = None
    server: Coordinator = field(init=False)
    _consortium: Consortium = field(init=False)

    @property
    def silo(self) -> SiloHome:
        return SiloHome(self.folder / "north")

    @property
    def coordinator(self) -> CoordinatorHome:
        return CoordinatorHome(self.folder / "coordinator")

    @property
    def consortium(self) -> Consortium:
        return self._consortium

    def certify_server(
        self, *names: str, since: datetime = LONG_AGO, until: datetime = FAR, foreign: bool = False
    ) -> ssl.SSLContext:
        """Give the coordinator a certificate, and what a server needs to show it."""
        home = self.coordinator
        key, authority = self.authority_key, self.authority
        if foreign:
            key = own_key(self.folder / "foreign.key")
            authority = make_authority(key, "somebody else", LONG_AGO, FAR)
        assert authority is not None
        public = own_key(home.tls_key).public_key()
        home.tls_certificate.write_text(to_pem(sign_server(authority, key, public, names or ("127.0.0.1",), since, until)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(home.tls_certificate, home.tls_key)
        return context

    def certify_silo(self, since: datetime = LONG_AGO, until: datetime = FAR) -> str:
        """Give the silo a certificate; returns it."""
        assert self.authority is not None
        public = load_key_p384(self.silo.tls_key).public_key()
        text = to_pem(sign_silo(self.authority, self.authority_key, public, "north", since, until))
        self.silo.tls_certificate.write_text(text)
        return text

    def sign(self, *, everywhere: bool = True, member: dict[str, Any] | None = None, **changes: Any) -> bytes:
        """Sign the roster with something else in it, and put it into both homes; or only hand it out at the coordinator."""
        consortium = replace(self._consortium, **changes)
        if member:
            north = replace(consortium.members[0], **member)
            consortium = replace(consortium, members=(north, *consortium.members[1:]))
        document = sign_roster(consortium, self.authority_key)
        self.server.roster = document
        if everywhere:
            self._consortium = consortium
            for home in (self.silo, self.coordinator):
                home.roster.write_bytes(document)
        return document

    def set(self, **settings: Any) -> None:
        """Write ``silo.toml``."""
        said = {"name": "north", "coordinator": self.server.address, **settings}
        data = said.pop("data", {"path": "shop.csv"})
        lines = [f"{key} = {json.dumps(value)}" for key, value in said.items()]
        self.silo.settings_file.write_text("\n".join([*lines, "[data]", *(f"{k} = {json.dumps(v)}" for k, v in data.items())]))

    def set_coordinator(self, **settings: Any) -> None:
        """Write ``coordinator.toml``."""
        said = {"name": "shops", "listen": self.server.address, **settings}
        self.coordinator.settings_file.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in said.items()))

    def set_policy(self, **settings: Any) -> None:
        """Write ``policy.toml``."""
        key = load_key(self.coordinator.key).public_key
        said = {"silo": "north", "epsilon": 8.0, "delta": 1e-5, "declared_users": 40, "coordinators": [key], **settings}
        self.silo.policy.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in said.items()))

    @contextmanager
    def serving(self, context: ssl.SSLContext | None, host: str = "127.0.0.1") -> Iterator[Coordinator]:
        """Answer in the coordinator's place, as long as the block lasts."""
        server = Coordinator(context, host)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        before = getattr(self, "server", None)
        self.server, server.roster = server, b"" if before is None else before.roster
        try:
            yield server
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
            if before is not None:
                self.server = before


@contextmanager
def deployed(folder: Path) -> Iterator[Deployment]:
    """A deployment in which all is well."""
    made = Deployment(folder)
    silo, coordinator = made.silo, made.coordinator
    for home in (silo.folder, coordinator.folder, folder / "south"):
        home.mkdir(mode=0o700)
    made.authority_key = own_key(folder / "authority.key")
    made.authority = make_authority(made.authority_key, "shops", LONG_AGO, FAR)
    for place in (silo.authority, coordinator.authority):
        place.write_text(to_pem(made.authority))
    north, south = create_key(silo.identity_key), create_key(folder / "south" / "ledger.key")
    node, southern = own_key(silo.node_key, openssh=True), own_key(folder / "south" / "node.key", openssh=True)
    own_key(silo.tls_key)
    with made.serving(made.certify_server()) as server:
        certificate = made.certify_silo()
        members = (
            Member("north", north.public_key, node_line(node.public_key()), certificate, 40, LONG_AGO, FAR),
            Member("south", south.public_key, node_line(southern.public_key()), certificate, 70, LONG_AGO, FAR),
        )
        key = create_key(coordinator.key).public_key
        made._consortium = Consortium("shops", 3, LONG_AGO, FAR, key, server.address, members)
        made.sign()
        made.set()
        made.set_coordinator()
        made.set_policy()
        (silo.folder / "shop.csv").write_text("user,item,time\n" + "".join(f"u{n},i{n % 5},{n}\n" for n in range(20)))
        Ledger.create(silo.ledger, read_policy(silo.policy), load_key(silo.identity_key))
        yield made
