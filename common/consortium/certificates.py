"""Certificates (X.509) of a consortium: the authority's own, the coordinator's for TLS, and the silos' for mutual TLS.

All keys are P-384, all signatures ECDSA with SHA-384. Fields follow RFC 5280, so that strict verifiers take them. A certificate
is valid from an hour before it was made: clocks of several organisations differ.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.consortium.signed import read_document
from common.errors import ConsortiumError

#: A coordinator's certificate is also for these, so that its own machine can reach it.
LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")


def make_authority(key: EllipticCurvePrivateKey, consortium: str, since: datetime, until: datetime) -> x509.Certificate:
    """The authority's certificate, signed by itself: it may sign others, and those may sign none."""
    name = _name(f"{consortium} authority")
    builder = _builder(name, name, key.public_key(), since, until)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return builder.sign(key, SHA384())


def sign_server(
    authority: x509.Certificate,
    authority_key: EllipticCurvePrivateKey,
    key: EllipticCurvePublicKey,
    names: Sequence[str],
    since: datetime,
    until: datetime,
) -> x509.Certificate:
    """A server's certificate for host names and addresses ``names``; :data:`LOCAL_NAMES` come in addition."""
    alternative = [_general_name(name) for name in dict.fromkeys((*names, *LOCAL_NAMES))]
    builder = _builder(_name(names[0][:64]), authority.subject, key, since, until)
    return _sign_leaf(builder, authority, authority_key, alternative, ExtendedKeyUsageOID.SERVER_AUTH)


def sign_silo(
    authority: x509.Certificate,
    authority_key: EllipticCurvePrivateKey,
    key: EllipticCurvePublicKey,
    name: str,
    since: datetime,
    until: datetime,
) -> x509.Certificate:
    """A silo's certificate for mutual TLS: its first alternative name is the silo's."""
    builder = _builder(_name(name), authority.subject, key, since, until)
    return _sign_leaf(builder, authority, authority_key, [x509.DNSName(name)], ExtendedKeyUsageOID.CLIENT_AUTH)


def make_signing_request(key: EllipticCurvePrivateKey, name: str) -> str:
    """A request for a silo's certificate (PKCS #10, PEM); it proves that the asker has the key."""
    return (
        x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(key, SHA384()).public_bytes(Encoding.PEM).decode()
    )


def key_of_signing_request(pem: str) -> EllipticCurvePublicKey:
    """The key in a request; :class:`ConsortiumError` if it is none, not signed by that key, or the key is not P-384."""
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = p384_key_of(request)
        sound = key is not None and request.is_signature_valid
    except (ValueError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion):
        key, sound = None, False
    if key is None or not sound:
        raise ConsortiumError("the request for a TLS certificate is not one of a P-384 key that is signed by that key")
    return key


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate in a PEM file; :class:`ConsortiumError` if there is none."""
    return parse_certificate(read_document(path), str(path))


def parse_certificate(pem: bytes, where: str) -> x509.Certificate:
    """The first certificate in PEM text that came from ``where``; :class:`ConsortiumError` if there is none."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion):
        raise ConsortiumError(f"{where}: not a certificate in PEM form") from None


def authority_key(path: Path) -> EllipticCurvePublicKey:
    """The public key of the authority's certificate at ``path``; :class:`ConsortiumError` if it is not an authority's."""
    return key_of_authority(read_certificate(path), str(path))


def key_of_authority(certificate: x509.Certificate, where: str) -> EllipticCurvePublicKey:
    """The public key of a certificate that signs others; :class:`ConsortiumError` if this one cannot."""
    key = p384_key_of(certificate)
    try:
        signs = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        signs = False
    if key is None or not signs:
        raise ConsortiumError(f"{where}: the certificate is not that of a consortium's authority")
    return key


def p384_key_of(holder: x509.Certificate | x509.CertificateSigningRequest) -> EllipticCurvePublicKey | None:
    """The P-384 key that a certificate or a request holds; None if it holds another kind, or a damaged one."""
    try:
        key = holder.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP384R1) else None


def fingerprint_of(certificate: x509.Certificate) -> str:
    """128 bits of a certificate's SHA-256 in groups of four, for people to compare.

    `openssl x509 -noout -fingerprint -sha256` begins with the same digits.
    """
    digest = certificate.fingerprint(SHA256()).hex()[:32]
    return "-".join(digest[i : i + 4] for i in range(0, 32, 4))


def is_fingerprint_of(text: str, certificate: x509.Certificate) -> bool:
    """Whether ``text`` is that fingerprint, or all 256 bits, however it is written."""
    digits, digest = "".join(c for c in text.lower() if c not in "-: "), certificate.fingerprint(SHA256()).hex()
    return digits in (digest, digest[:32])


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The host names and addresses that a certificate is for, in order."""
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in alternative)


def to_pem(certificate: x509.Certificate) -> str:
    """PEM text."""
    return certificate.public_bytes(Encoding.PEM).decode()


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether ``authority`` signed ``certificate``; dates are another question."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePublicKey, since: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _sign_leaf(
    builder: x509.CertificateBuilder,
    authority: x509.Certificate,
    authority_key: EllipticCurvePrivateKey,
    alternative: Iterable[x509.GeneralName],
    use: x509.ObjectIdentifier,
) -> x509.Certificate:
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key_of_authority(authority, "the authority"))
    return (
        builder.add_extension(signer, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .sign(authority_key, SHA384())
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError:
        raise ConsortiumError(f"{name!r} is neither a host name nor an address") from None
