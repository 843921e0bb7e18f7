"""The consortium's certificates before strict judges: OpenSSL, Python's ssl, cryptography's verifier, gRPC with our service."""

from __future__ import annotations

import ipaddress
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from common.consortium.certificates import fingerprint_of, is_fingerprint_of, names_of, read_certificate
from common.consortium.home import CoordinatorHome, SiloHome
from server.serving.tls import Admission, server_credentials
from tests.common.consortium.conftest import DAY, NOW, Shops, needs

HOSTS = ("federation.example.org", "10.0.0.1", "localhost", "127.0.0.1", "::1")


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Shops:
    shops = Shops(tmp_path_factory.mktemp("shops"))
    shops.admit("north")
    return shops


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Shops:
    """Another consortium that looks the same."""
    shops = Shops(tmp_path_factory.mktemp("strangers"))
    shops.admit("north")
    return shops


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Shops:
    """A consortium of three months ago, whose certificates were for 60 days; its authority is still valid."""
    shops = Shops(tmp_path_factory.mktemp("past"), NOW - 90 * DAY, days=60)
    shops.admit("north", days=60)
    return shops


def openssl(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)


@needs("openssl")
@pytest.mark.parametrize("host", HOSTS)
def test_openssl_takes_the_coordinators_certificate_for_each_of_its_names(shops: Shops, host: str) -> None:
    way = "-verify_ip" if host[-1].isdigit() else "-verify_hostname"
    strict = ("-x509_strict", "-purpose", "sslserver", way, host, "-CAfile", shops.coordinator.authority)
    assert openssl("verify", *strict, shops.coordinator.tls_certificate).returncode == 0
    other = ("10.0.0.2" if host[-1].isdigit() else "elsewhere.example.org",)
    assert "mismatch" in openssl("verify", *strict[:4], *other, *strict[5:], shops.coordinator.tls_certificate).stderr


@needs("openssl")
def test_openssl_takes_a_silos_certificate_for_a_client_and_for_nothing_else(shops: Shops) -> None:
    north = shops.home("north")
    strict = ("-x509_strict", "-CAfile", north.authority)
    assert openssl("verify", *strict, "-purpose", "sslclient", north.tls_certificate).returncode == 0
    for purpose, file in (("sslserver", north.tls_certificate), ("sslclient", shops.coordinator.tls_certificate)):
        assert "unsuitable certificate purpose" in openssl("verify", *strict, "-purpose", purpose, file).stderr


@needs("openssl")
def test_openssl_finds_the_time_in_which_a_certificate_counts(shops: Shops) -> None:
    north = shops.home("north")
    for days, why in ((-0.03, ""), (364.9, ""), (-1, "not yet valid"), (366, "has expired")):
        at = int((NOW + days * DAY).timestamp())
        said = openssl("verify", "-attime", at, "-CAfile", north.authority, north.tls_certificate)
        assert why in said.stderr
        assert (said.returncode == 0) == (not why)


def test_a_silo_cannot_sign_for_others(shops: Shops) -> None:
    certificate = read_certificate(shops.home("north").tls_certificate)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    authority = read_certificate(shops.authority.home.authority)
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)


def test_cryptographys_verifier_takes_both(shops: Shops) -> None:
    """An implementation of RFC 5280 that shares nothing with OpenSSL's."""
    authority = read_certificate(shops.coordinator.authority)
    policy = PolicyBuilder().store(Store([authority])).time(datetime.now(UTC))
    client = policy.build_client_verifier().verify(read_certificate(shops.home("north").tls_certificate), [])
    assert client.subjects == [x509.DNSName("north")]
    server = read_certificate(shops.coordinator.tls_certificate)
    for host in HOSTS:
        try:
            name: x509.DNSName | x509.IPAddress = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        assert policy.build_server_verifier(name).verify(server, [])[-1] == authority
    with pytest.raises(VerificationError):
        policy.build_server_verifier(x509.DNSName("elsewhere.example.org")).verify(server, [])
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


@needs("openssl")
def test_people_compare_the_digits_that_openssl_shows(shops: Shops) -> None:
    path = shops.coordinator.authority
    said = openssl("x509", "-in", path, "-noout", "-fingerprint", "-sha256").stdout.strip().partition("=")[2]
    certificate = read_certificate(path)
    shown = fingerprint_of(certificate)
    assert said.replace(":", "").lower().startswith(shown.replace("-", ""))
    assert shown == shops.authority.fingerprint
    for text in (shown, shown.upper(), shown.replace("-", " "), said):
        assert is_fingerprint_of(text, certificate)
    for text in ("", shown[:-1], shown[:-1] + ("0" if shown[-1] != "0" else "1"), said[:-3]):
        assert not is_fingerprint_of(text, certificate)


def test_a_certificate_names_hosts_in_order(shops: Shops) -> None:
    assert names_of(read_certificate(shops.coordinator.tls_certificate)) == HOSTS
    assert names_of(read_certificate(shops.coordinator.authority)) == ()


def contexts(server: CoordinatorHome, client: SiloHome | None, trusts: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Mutual TLS 1.3, checked as strictly as Python can."""
    one, other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context, authority in ((one, server.authority), (other, trusts)):
        context.load_verify_locations(authority)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    one.verify_mode = ssl.CERT_REQUIRED
    one.load_cert_chain(server.tls_certificate, server.tls_key)
    if client is not None:
        other.load_cert_chain(client.tls_certificate, client.tls_key)
    return one, other


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> tuple[str, str]:
    """Names that each side sees of the other, after a whole handshake and a word each way."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = server.wrap_bio(to_server, to_client, server_side=True)
    there = client.wrap_bio(to_client, to_server, server_hostname=host)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for side in (there, here):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    there.write(b"question")
    assert here.read(8) == b"question"
    here.write(b"answer")
    assert there.read(6) == b"answer"
    seen = [side.getpeercert() for side in (here, there)]
    return tuple(peer["subjectAltName"][0][1] for peer in seen)  # type: ignore[index,return-value]


@pytest.mark.parametrize("host", HOSTS)
def test_coordinator_and_silo_shake_hands_and_know_each_other(shops: Shops, host: str) -> None:
    north = shops.home("north")
    assert handshake(*contexts(shops.coordinator, north, north.authority), host) == ("north", "federation.example.org")


def test_a_silo_refuses_a_coordinator_of_another_name_or_authority(shops: Shops, strangers: Shops) -> None:
    north = shops.home("north")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(*contexts(shops.coordinator, north, north.authority), "elsewhere.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        handshake(*contexts(strangers.coordinator, strangers.home("north"), north.authority), "localhost")


def test_a_coordinator_refuses_a_silo_of_another_authority_and_one_without_a_certificate(shops: Shops, strangers: Shops) -> None:
    trusts = shops.coordinator.authority
    with pytest.raises(ssl.SSLError, match="verify failed"):
        handshake(*contexts(shops.coordinator, strangers.home("north"), trusts), "localhost")
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(*contexts(shops.coordinator, None, trusts), "localhost")


def test_expired_certificates_are_refused_until_they_are_renewed(past: Shops) -> None:
    north, trusts = past.home("north"), past.coordinator.authority
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        handshake(*contexts(past.coordinator, north, trusts), "localhost")
    past.now = NOW
    past.authority.renew_server(("new.example.org",))
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):  # now the silo's
        handshake(*contexts(past.coordinator, north, trusts), "localhost")
    past.authority.extend("north")
    past.hand_out("north")
    for host in (*HOSTS, "new.example.org"):
        assert handshake(*contexts(past.coordinator, north, trusts), host)[0] == "north"


@pytest.fixture
def service(shops: Shops) -> Iterator[int]:
    """The port of a service that answers with the name by which the recommendation service knows its caller."""
    home, admission = shops.coordinator, Admission()
    handler = grpc.unary_unary_rpc_method_handler(lambda _, context: admission.silo_of(context.auth_context()).encode())
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("who", {"Am": handler}),))
    credentials = server_credentials(home.tls_certificate, home.tls_key, home.authority)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield port
    server.stop(0).wait(10)


def test_the_recommendation_service_knows_a_silo_by_its_name(shops: Shops, strangers: Shops, service: int) -> None:
    def ask(home: SiloHome) -> bytes:
        trusted = shops.coordinator.authority.read_bytes()
        credentials = grpc.ssl_channel_credentials(trusted, home.tls_key.read_bytes(), home.tls_certificate.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{service}", credentials, options=(("grpc.enable_retries", 0),)) as channel:
            return channel.unary_unary("/who/Am")(b"", timeout=10)

    assert ask(shops.home("north")) == b"north"
    with pytest.raises(grpc.RpcError) as refused:
        ask(strangers.home("north"))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
