"""Ports that this side opens, and the way to the coordinator."""

from __future__ import annotations

import base64
import errno
import http.client
import os
import socket
import urllib.request
from collections.abc import Iterator

from common.consortium.home import CoordinatorSettings
from common.consortium.roster import parse_signed
from common.doctor.finding import Check, Finding, NotChecked, ok, problem, warning
from common.doctor.keys import node_public_pem
from common.doctor.reach import HELLO, ROSTER, NotReached, ask, refusal_of, split_address
from common.doctor.subject import COORDINATOR, HOMES, SILO, Subject
from common.errors import SilorecError

_LOOPBACK = "127.0.0.1"


def look_at_listen_port(subject: Subject) -> Iterator[Finding]:
    """The coordinator's own port: free, or served by this coordinator."""
    settings = _settings(subject)
    host, port = split_address(settings.listen)
    words = why_not_free(host, port)
    if not words:
        yield ok("listen port", f"{settings.listen} is free: the coordinator is not running")
    elif words == os.strerror(errno.EADDRINUSE):
        yield _who_serves(subject, settings.name, port)
    else:
        do = "take a port from 1024 on" if words == os.strerror(errno.EACCES) else "name an address of this machine"
        yield problem("listen port", f"{settings.listen} cannot be listened at ({words})", f"{do}: listen in coordinator.toml")
    given = subject.machine.ephemeral_ports()
    if given and given[0] <= port <= given[1]:
        seen = f"port {port} is among those that the kernel gives to outgoing connections ({given[0]} to {given[1]})"
        yield warning("listen port", f"{seen}: it may be taken when the coordinator starts", "take a port outside, such as 9092")


def look_at_loopback(subject: Subject) -> Iterator[Finding]:
    """Loopback, which Flower's processes use among themselves."""
    if words := why_not_free(_LOOPBACK, 0):
        seen = f"no port of {_LOOPBACK} can be opened ({words}): Flower's processes speak to each other there"
        yield problem("loopback", seen, "bring the loopback interface up: ip link set lo up")
    else:
        yield ok("loopback", f"ports of {_LOOPBACK} can be opened")


def look_at_metrics_port(subject: Subject) -> Iterator[Finding]:
    """The port of the metrics, where one is wanted."""
    port = subject.silo_settings.metrics_port if subject.role == "silo" else _settings(subject).metrics_port
    if not port:
        return
    words = why_not_free(_LOOPBACK, port)
    if not words:
        yield ok("metrics port", f"port {port} of {_LOOPBACK} is free: this side is not running")
    elif _shows_metrics(port, subject.machine.patience):
        yield ok("metrics port", f"silorec's metrics are at http://{_LOOPBACK}:{port}/metrics")
    else:
        seen = f"port {port} of {_LOOPBACK}, for metrics, cannot be opened ({words}), and what has it is not silorec"
        yield warning("metrics port", seen, f"take another metrics_port; ss -ltnp 'sport = :{port}' shows who has this one")


def look_at_coordinator(subject: Subject) -> Iterator[Finding]:
    """Name, TCP, TLS and HTTP, up to the coordinator's own words."""
    reached, address = subject.hello, subject.address
    if isinstance(reached, NotReached):
        if subject.role == "coordinator" and reached.step in ("name", "tcp"):
            # Many networks do not lead back to the address that others use, and the coordinator may not be running.
            seen = f"{reached.seen} (the address that silos use, seen from here)"
            yield warning("coordinator", seen, f"if it is running: run silorec doctor on a silo; else {reached.do}")
        else:
            yield problem("coordinator", reached.seen, reached.do)
        return
    told, ours = reached.facts.get("consortium"), _consortium(subject)
    if ours is not None and told != ours:
        seen = f"{address} is the coordinator of {str(told)[:60]!r}, this home belongs to {ours!r}"
        yield problem("coordinator", seen, "mend the coordinator's address")
    else:
        yield ok("coordinator", f"{address} answers over TLS as the coordinator of {told!r}")
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    host = split_address(address)[0]
    if proxy and not urllib.request.proxy_bypass(host):
        seen = (
            f"an HTTPS proxy is set in the environment ({proxy.rpartition('@')[2]}): Flower's node takes it, this check did not"
        )
        yield warning("coordinator", seen, f"if the coordinator is reached directly: export NO_PROXY={host}")


def look_at_admission(subject: Subject) -> Iterator[Finding]:
    """Whether the coordinator lets this silo's key in: by the roster that it holds, and by asking with the key."""
    subject.told()
    try:
        document = subject.ask(ROSTER).facts.get("roster")
        theirs = parse_signed(str(document).encode(), subject.silo.authority, "the coordinator's roster")
        member = theirs.members[theirs.number_of(subject.member.key)]
    except NotReached as failed:
        yield problem("admission", failed.seen, failed.do)
        return
    except SilorecError as error:
        yield problem("admission", str(error), "ask the authority, and compare fingerprints by voice")
        return
    if refusal := member.why_refused(subject.now):
        yield problem("admission", f"by the coordinator's roster {refusal}", "ask the authority")
        return
    key = node_public_pem(subject.silo.node_key)
    if key is None:
        raise NotChecked("it needs node.key")
    header = base64.b64encode(key).decode()
    machine = subject.machine
    try:
        refused = refusal_of(subject.address, header, subject.silo.authority, machine.clock, machine.patience)
    except NotReached as failed:
        yield problem("admission", failed.seen, failed.do)
        return
    if refused is not None:
        yield problem(
            "admission", f"the coordinator refuses this silo's node key: {refused}", "restore node.key, or ask the authority"
        )
    else:
        yield ok("admission", f"the coordinator lets this silo in, as {member.name!r} of roster version {theirs.version}")


def why_not_free(host: str, port: int) -> str:
    """Why nobody could listen there now; empty if somebody could. Port 0 is any."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
            tried.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _shows_metrics(port: int, patience: float) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://{_LOOPBACK}:{port}/metrics", timeout=patience
        ) as answer:
            return b"silorec_" in answer.read(1 << 20)
    except (OSError, http.client.HTTPException):
        return False


def _who_serves(subject: Subject, name: str, port: int) -> Finding:
    """Who holds the port already."""
    machine, address = subject.machine, f"{_LOOPBACK}:{port}"
    try:
        told = ask(address, HELLO, subject.coordinator.authority, machine.clock, machine.patience).facts.get("consortium")
    except NotReached as failed:
        seen = f"port {port} is taken, and not by this coordinator: {failed.seen}"
        return problem("listen port", seen, f"ss -ltnp 'sport = :{port}' shows who has it; end that, or take another port")
    if told != name:
        seen = f"port {port} is taken by the coordinator of {str(told)[:60]!r}, this home is that of {name!r}"
        return problem("listen port", seen, "take another port: listen in coordinator.toml")
    return ok("listen port", f"this coordinator is running, at port {port}")


def _settings(subject: Subject) -> CoordinatorSettings:
    try:
        return subject.coordinator.settings()
    except SilorecError:
        raise NotChecked("it needs coordinator.toml") from None


def _consortium(subject: Subject) -> str | None:
    try:
        return subject.roster.name
    except NotChecked:
        return None


CHECKS = (
    Check("listen port", COORDINATOR, look_at_listen_port),
    Check("loopback", HOMES, look_at_loopback),
    Check("metrics port", HOMES, look_at_metrics_port),
    Check("coordinator", HOMES, look_at_coordinator),
    Check("admission", SILO, look_at_admission),
)
