"""A silo's certificate is its permission: real certificates, real handshakes."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

import grpc
import pytest

from common.bundle.contents import Bundle
from common.errors import ServingError
from common.privacy.signing import SigningKey
from server.serving.refusal import Refused
from server.serving.running import Endpoint
from server.serving.tls import Admission, NameList, Silo, is_loopback, server_credentials
from simulations.bench.certificates import Authority, Pair
from tests.server.serving.conftest import with_tls
from tests.server.serving.running_service import Running, question, raw_call, refusal


def connect(running: Running, authority: Authority, pair: Pair | None) -> grpc.Channel:
    trusted = authority.certificate.read_bytes()
    credentials = (
        grpc.ssl_channel_credentials(trusted)
        if pair is None
        else grpc.ssl_channel_credentials(trusted, pair.key.read_bytes(), pair.certificate.read_bytes())
    )
    return grpc.secure_channel(running.target, credentials, options=(("grpc.enable_retries", 0),))


def ask(running: Running, authority: Authority, pair: Pair | None, bundle: Bundle) -> bytes:
    with connect(running, authority, pair) as channel:
        return raw_call(channel)(question(bundle.catalogue_fingerprint, (1, 2)), timeout=5)


def facts(pair: Pair) -> dict[str, list[bytes]]:
    """As gRPC gives them of a connection."""
    return {"x509_pem_cert": [pair.certificate.read_bytes()]}


def test_a_silo_with_a_certificate_is_answered_and_counted_by_name(
    secured: Running, authority: Authority, bundle: Bundle
) -> None:
    assert ask(secured, authority, authority.sign("north"), bundle)
    assert ask(secured, authority, authority.sign("south", alternative=False), bundle)
    for silo in ("north", "south"):
        assert secured.metric("silorec_calls_total", silo=silo, method="Recommend", status="OK") == 1


@pytest.mark.parametrize("who", ["nobody", "expired", "foreign", "a server's", "not yet valid"])
def test_who_has_no_valid_certificate_is_refused_in_the_handshake(
    secured: Running, authority: Authority, bundle: Bundle, tmp_path: Path, who: str
) -> None:
    pairs = {
        "nobody": None,
        "expired": authority.sign("north", days=-1.0, file="expired"),
        "foreign": Authority(tmp_path, "authority").sign("north"),
        "a server's": authority.sign("other-service", server=True),
        "not yet valid": authority.sign("north", days=40.0, since=20.0, file="early"),
    }
    code, _ = refusal(lambda: ask(secured, authority, pairs[who], bundle))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert not secured.metric("silorec_calls_total", silo="unknown", method="Recommend", status="OK")
    assert ask(secured, authority, authority.sign("after", file="after"), bundle)  # and the service goes on


def test_a_plain_socket_and_old_tls_get_nowhere(secured: Running, authority: Authority) -> None:
    with socket.create_connection(("127.0.0.1", secured.port), timeout=5) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        plain.settimeout(5)
        assert plain.recv(100)[:1] != b"\0"  # no HTTP/2 frame: an alert, or the end
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.set_alpn_protocols(["h2"])
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    pair = authority.sign("old", file="old")
    context.load_cert_chain(pair.certificate, pair.key)
    with socket.create_connection(("127.0.0.1", secured.port), timeout=5) as raw, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(raw, server_hostname="localhost")


def test_revoking_counts_at_once_even_on_an_open_connection(
    bundle_file: Path, bundle: Bundle, key: SigningKey, authority: Authority, service_certificate: Pair, tmp_path: Path
) -> None:
    allow, deny = tmp_path / "allow", tmp_path / "deny"
    allow.write_text("north\neast # joined in May\n")
    deny.write_text("# nobody yet\n")
    admission = Admission(NameList(allow), NameList(deny))
    north, west = authority.sign("north", file="n"), authority.sign("west")
    asked = question(bundle.catalogue_fingerprint)
    with Running(bundle_file, key.public_key, with_tls(authority, service_certificate, admission)) as running:
        with connect(running, authority, north) as channel:
            assert raw_call(channel)(asked, timeout=5)
            code, said = refusal(lambda: ask(running, authority, west, bundle))
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "talk to the coordinator" in said
            from cryptography import x509
            from cryptography.hazmat.primitives.hashes import SHA256

            shown = x509.load_pem_x509_certificate(north.certificate.read_bytes()).fingerprint(SHA256()).hex(":").upper()
            deny.write_text(f"{shown}  # key lost\n")
            time.sleep(1.1)
            assert refusal(lambda: raw_call(channel)(asked, timeout=5))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert running.metric("silorec_calls_total", silo="unknown", method="Recommend", status="PERMISSION_DENIED") == 2


def test_a_certificate_that_expires_while_connected_ends_the_permission(
    secured: Running, authority: Authority, bundle: Bundle
) -> None:
    brief = authority.sign("brief", days=3.0 / 86_400)
    asked = question(bundle.catalogue_fingerprint)
    with connect(secured, authority, brief) as channel:
        assert raw_call(channel)(asked, timeout=5)
        time.sleep(3.1)
        code, said = refusal(lambda: raw_call(channel)(asked, timeout=5))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert "has expired" in said


def test_names_come_from_the_alternative_name_first(authority: Authority) -> None:
    admission = Admission()
    assert admission.silo_of(facts(authority.sign("shop-7.example"))) == "shop-7.example"
    for name in ("a b", "käse", "../x", "-x"):
        with pytest.raises(Refused, match="names no silo"):
            admission.silo_of(facts(authority.sign(name, alternative=False, file="odd")))
    with pytest.raises(Refused, match="names no silo"):
        admission.silo_of({})
    assert Admission(without_tls=True).silo_of({}) == "local"


def test_a_damaged_list_is_an_error_at_the_start_and_changes_nothing_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "list"
    with pytest.raises(ServingError, match="cannot be read"):
        NameList(file)
    file.write_text("north\nnot a name\n")
    with pytest.raises(ServingError, match="list:2: neither a silo's name nor"):
        NameList(file)
    file.write_text("north\n")
    now = 0.0
    names = NameList(file, clock=lambda: now)
    north, south = Silo("north", "ab" * 32, 0.0), Silo("south", "cd" * 32, 0.0)
    assert north in names
    file.write_text("south\n?\n")
    now = 2.0
    assert north in names
    assert south not in names
    assert "the list stays as it was" in caplog.text
    file.write_text("south\n\n")
    assert south not in names  # looked at once a second
    now = 4.0
    assert south in names
    assert north not in names


def test_files_that_do_not_fit_are_one_sentence(authority: Authority, service_certificate: Pair, tmp_path: Path) -> None:
    good, other = service_certificate, authority.sign("other", server=True)
    expired = authority.sign("late", server=True, days=-2.0)
    text = tmp_path / "text"
    text.write_text("hello")
    text.chmod(0o600)
    open_key = tmp_path / "open.key"
    open_key.write_bytes(good.key.read_bytes())
    open_key.chmod(0o644)
    for certificate, private, ca, said in (
        (tmp_path / "none", good.key, authority.certificate, "none: cannot be read"),
        (text, good.key, authority.certificate, "text: not a certificate"),
        (good.certificate, text, authority.certificate, "text: not a private key"),
        (good.certificate, other.key, authority.certificate, "not the key of the certificate"),
        (expired.certificate, expired.key, authority.certificate, "the certificate expired on"),
        (good.certificate, good.key, text, "text: not a certificate"),
        (good.certificate, open_key, authority.certificate, "run: chmod 600"),
    ):
        with pytest.raises(ServingError, match=said):
            server_credentials(certificate, private, ca)


def test_without_tls_only_this_machine_is_served() -> None:
    for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"):
        assert is_loopback(host)
        Endpoint(host)
    for host in ("0.0.0.0", "::", "192.168.0.1", "shop.example", ""):
        assert not is_loopback(host)
        with pytest.raises(ServingError, match="without TLS"):
            Endpoint(host)
