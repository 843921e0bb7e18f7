"""The way to the coordinator over real TLS on loopback, broken at each step; ports; admission."""

from __future__ import annotations

import base64
import socket
import threading
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from common.consortium.keys import load_key_p384
from common.doctor.reach import is_for, split_address
from common.errors import ConfigError
from tests.common.doctor.deployment import LONG_AGO, NOW, Deployment
from tests.common.doctor.looking import faults, look, says, the_only

YESTERDAY = NOW - timedelta(days=1)


def closed_port() -> int:
    """A port at which nobody listens."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def reached(deployment: Deployment, address: str, **machine: Any) -> Any:
    """The fault of a silo that is told this address."""
    deployment.set(coordinator=address)
    return the_only(look(deployment, "coordinator", **machine), "problem")


def test_a_name_that_leads_nowhere(deployment: Deployment) -> None:
    found = reached(deployment, "no-such-host.invalid:9092")
    assert says(found, r"the name no-such-host\.invalid leads to no address", r"getent hosts no-such-host\.invalid")


def test_a_port_where_nobody_listens(deployment: Deployment) -> None:
    port = closed_port()
    found = reached(deployment, f"127.0.0.1:{port}")
    assert says(found, f"nobody listens at 127.0.0.1:{port}: the connection was refused", "silorec server up")


def test_packets_that_are_dropped(deployment: Deployment) -> None:
    with closing(socket.socket()) as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]  # the kernel drops what comes when the queue is full
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        found = reached(deployment, f"127.0.0.1:{address[1]}", patience=0.3)
        for one in waiting:
            one.close()
    assert says(found, "did not answer within 0.3 s: the host is down, or a firewall drops the packets", "nc -vz 127.0.0.1")


def test_a_server_without_tls(deployment: Deployment) -> None:
    with deployment.serving(None) as plain:
        assert says(reached(deployment, plain.address), "answers, but not with TLS", "check the port")


def test_a_server_that_says_nothing(deployment: Deployment) -> None:
    with closing(socket.socket()) as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(5)
        found = reached(deployment, f"127.0.0.1:{mute.getsockname()[1]}", patience=0.3)
    assert says(found, r"took the connection and made no TLS \(timed out\)", "check the port")


def test_a_certificate_for_another_address(deployment: Deployment) -> None:
    with deployment.serving(deployment.certify_server("10.1.2.3"), "127.0.0.2") as server:
        found = reached(deployment, server.address)
    assert says(
        found, r"the coordinator's certificate is for 10\.1\.2\.3, localhost, 127\.0\.0\.1, ::1, not for 127\.0\.0\.2", ""
    )
    assert says(found, "", r"have the certificate made anew with 127\.0\.0\.2 in it")


def test_a_certificate_for_another_name(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    known, port = socket.getaddrinfo, int(deployment.server.address.split(":")[1])

    def resolve(host: str, *rest: Any, **more: Any) -> Any:
        return known("127.0.0.1" if host == "federation.example.org" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    found = reached(deployment, f"federation.example.org:{port}")
    assert says(found, r"is for 127\.0\.0\.1, localhost, ::1, not for federation\.example\.org", "made anew with federation")
    with deployment.serving(deployment.certify_server("federation.example.org")) as server:
        deployment.set(coordinator=f"federation.example.org:{server.server_address[1]}")
        assert not faults(look(deployment, "coordinator"))


def test_an_expired_certificate(deployment: Deployment) -> None:
    with deployment.serving(deployment.certify_server(until=YESTERDAY)) as server:
        found = reached(deployment, server.address)
    assert says(found, rf"has expired on {YESTERDAY:%Y-%m-%d %H:%M} UTC", "have the coordinator renew it")


def test_a_certificate_that_is_not_valid_yet(deployment: Deployment) -> None:
    begins = NOW + timedelta(days=1)
    with deployment.serving(deployment.certify_server(since=begins)) as server:
        found = reached(deployment, server.address)
    assert says(found, rf"is not valid before {begins:%Y-%m-%d %H:%M} UTC", "set this machine's clock right")


def test_a_foreign_authority(deployment: Deployment) -> None:
    with deployment.serving(deployment.certify_server(foreign=True)) as server:
        found = reached(deployment, server.address)
    assert says(found, r"made by a foreign authority \(CN=somebody else authority\)", "compare the authority's fingerprint")


def test_an_authority_that_is_no_certificate(deployment: Deployment) -> None:
    deployment.silo.authority.write_text("nothing")
    found = the_only(look(deployment, "coordinator"), "problem")
    assert says(found, r"authority\.pem cannot be used as the authority's certificate", "from your invitation")


def test_a_server_that_is_no_coordinator(deployment: Deployment) -> None:
    deployment.server.status = 404
    found = the_only(look(deployment, "coordinator"), "problem")
    assert says(found, "answers /silorec/hello with HTTP status 404", "silorec server up")


def test_another_consortiums_coordinator(deployment: Deployment) -> None:
    deployment.server.facts = {"consortium": "libraries"}
    found = the_only(look(deployment, "coordinator"), "problem")
    assert says(found, "is the coordinator of 'libraries', this home belongs to 'shops'", "mend the coordinator's address")


def test_a_proxy_that_the_node_would_take(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    found = the_only(look(deployment, "coordinator"), "warning")
    assert says(found, r"an HTTPS proxy is set in the environment \(proxy\.example:3128\)", r"export NO_PROXY=127\.0\.0\.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert not faults(look(deployment, "coordinator"))


def test_a_coordinator_that_is_not_running_is_no_problem_on_its_own_machine(deployment: Deployment) -> None:
    port = closed_port()
    deployment.sign(address=f"127.0.0.1:{port}")
    deployment.set_coordinator(listen=f"127.0.0.1:{port}")
    found = the_only(look(deployment, "coordinator", "coordinator"), "warning")
    assert says(found, "nobody listens", "run silorec doctor on a silo")
    (port_found,) = look(deployment, "listen port", "coordinator")
    assert port_found.seen == f"127.0.0.1:{port} is free: the coordinator is not running"


def test_a_port_that_somebody_else_has(deployment: Deployment) -> None:
    with deployment.serving(None) as other:
        deployment.set_coordinator(listen=other.address)
        found = the_only(look(deployment, "listen port", "coordinator"), "problem")
    assert says(found, "is taken, and not by this coordinator: .*not with TLS", "ss -ltnp")
    deployment.set_coordinator(name="libraries")
    found = the_only(look(deployment, "listen port", "coordinator"), "problem")
    assert says(found, "is taken by the coordinator of 'shops', this home is that of 'libraries'", "take another port")


def test_an_address_that_is_not_this_machines(deployment: Deployment) -> None:
    deployment.set_coordinator(listen="203.0.113.9:9092")
    found = the_only(look(deployment, "listen port", "coordinator"), "problem")
    assert says(
        found, r"203\.0\.113\.9:9092 cannot be listened at", "name an address of this machine: listen in coordinator.toml"
    )


def test_a_port_that_the_kernel_gives_away(deployment: Deployment) -> None:
    found = the_only(look(deployment, "listen port", "coordinator", ephemeral_ports=lambda: (1024, 65535)), "warning")
    assert says(found, r"that the kernel gives to outgoing connections \(1024 to 65535\)", "9092")


def test_a_port_for_metrics(deployment: Deployment) -> None:
    from prometheus_client import CollectorRegistry, Gauge, start_http_server

    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        deployment.set(metrics_port=port)
        found = the_only(look(deployment, "metrics port", patience=0.3), "warning")
    assert says(found, rf"port {port} of 127\.0\.0\.1, for metrics, .*in use\), and what has it is not silorec", "ss -ltnp")
    (free,) = look(deployment, "metrics port")
    assert (free.outcome, free.seen) == ("ok", f"port {port} of 127.0.0.1 is free: this side is not running")
    registry = CollectorRegistry()
    Gauge("silorec_round", "Of the run.", registry=registry)
    server, thread = start_http_server(port, "127.0.0.1", registry)
    (served,) = look(deployment, "metrics port")
    server.shutdown()
    server.server_close()
    thread.join()
    assert (served.outcome, served.seen) == ("ok", f"silorec's metrics are at http://127.0.0.1:{port}/metrics")


def test_admission_is_asked_for_with_the_silos_key(deployment: Deployment) -> None:
    (found,) = look(deployment, "admission")
    assert found.seen == "the coordinator lets this silo in, as 'north' of roster version 3"
    path, header = deployment.server.asked[-1]
    assert path.startswith("/v1/fleet/")
    sent = load_key_p384(deployment.silo.node_key).public_key()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    assert load_pem_public_key(base64.b64decode(header or "")) == sent
    deployment.server.refusal = "silo 'north' was revoked on 1 May 2026"
    found = the_only(look(deployment, "admission"), "problem")
    assert says(found, "the coordinator refuses this silo's node key: silo 'north' was revoked", "ask the authority")


def test_what_the_coordinators_roster_says_counts_before_the_silos_own(deployment: Deployment) -> None:
    deployment.sign(everywhere=False, version=4, member={"revoked": YESTERDAY, "reason": "left"})
    found = the_only(look(deployment, "admission"), "problem")
    assert says(found, "by the coordinator's roster silo 'north' was revoked on .*: left", "ask the authority")
    deployment.server.roster = deployment.server.roster.replace(b"left", b"right")
    found = the_only(look(deployment, "admission"), "problem")
    assert says(found, "the coordinator's roster: the signature is not that of our authority", "by voice")
    deployment.sign(everywhere=False, version=4, members=deployment.consortium.members[1:])
    assert says(the_only(look(deployment, "admission"), "problem"), "is foreign: version 4 of 'shops'")


@pytest.mark.parametrize(("version", "words"), [(4, "the coordinator has version 4 .* this silo 3"), (2, "still has version 2")])
def test_rosters_of_different_age(deployment: Deployment, version: int, words: str) -> None:
    deployment.server.facts = {"roster_version": version}
    assert says(the_only(look(deployment, "newer roster"), "warning"), words)


def test_what_needs_the_coordinator_is_not_checked_without_it(deployment: Deployment) -> None:
    deployment.set(coordinator=f"127.0.0.1:{closed_port()}")
    for name in ("other side", "newer roster", "admission", "clock"):
        (found,) = look(deployment, name)
        assert (found.outcome, found.seen) == ("not checked", "it needs the coordinator's answer")


def test_an_answer_without_end_does_not_keep_the_doctor(deployment: Deployment) -> None:
    """A server that sends a byte of its answer and then nothing more."""
    context, listening = deployment.certify_server(), socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    done = threading.Event()

    def drip() -> None:
        connection, _ = listening.accept()
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1000)
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            done.wait(10)

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    found = reached(deployment, f"127.0.0.1:{listening.getsockname()[1]}", patience=0.5)
    done.set()
    thread.join()
    listening.close()
    assert says(found, r"made TLS and gave no HTTP answer \(.*timed out\)", "log")


@pytest.mark.parametrize("address", ["host", "host:", ":9092", "host:0", "host:65536", "host:x", ""])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="must be host:port"):
        split_address(address)


def test_addresses_are_taken_apart() -> None:
    assert split_address("federation.example.org:9092") == ("federation.example.org", 9092)
    assert split_address("[::1]:443") == ("::1", 443)


def test_names_of_a_certificate_hold_as_openssl_holds_them(deployment: Deployment) -> None:
    from cryptography import x509

    deployment.certify_server("*.example.org", "::2", since=LONG_AGO)
    shown = x509.load_pem_x509_certificate(deployment.coordinator.tls_certificate.read_bytes())
    held = {
        host: is_for(shown, host)
        for host in ("a.example.org", "A.Example.org", "a.b.example.org", "example.org", "::2", "0:0::2")
    }
    assert held == {**dict.fromkeys(held, False), **dict.fromkeys(("a.example.org", "A.Example.org", "::2", "0:0::2"), True)}
