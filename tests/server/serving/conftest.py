"""A signed tiny bundle, a service that answers from it, and an authority with a few silos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from common.bundle.contents import Bundle
from common.privacy.signing import SigningKey, create_key
from server.serving.running import Endpoint
from server.serving.tls import Admission, server_credentials
from simulations.bench.certificates import Authority, Pair
from tests.bundles import write_tiny
from tests.server.serving.running_service import Running


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return create_key(tmp_path_factory.mktemp("signer") / "signer.key")


@pytest.fixture(scope="session")
def bundle_file(tmp_path_factory: pytest.TempPathFactory, key: SigningKey) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "shop.bundle"
    write_tiny(path, key, n_items=150)
    return path


@pytest.fixture(scope="session")
def bundle(bundle_file: Path, key: SigningKey) -> Bundle:
    from common.bundle.files import read_bundle

    return read_bundle(bundle_file, {key.public_key})


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def service_certificate(authority: Authority) -> Pair:
    return authority.sign("service", server=True)


@pytest.fixture(scope="session")
def service(bundle_file: Path, key: SigningKey) -> Iterator[Running]:
    """Without TLS."""
    with Running(bundle_file, key.public_key) as running:
        yield running


@pytest.fixture
def channel(service: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(service.target) as channel:
        yield channel


@pytest.fixture(scope="session")
def secured(bundle_file: Path, key: SigningKey, authority: Authority, service_certificate: Pair) -> Iterator[Running]:
    """With mutual TLS, for whoever has a certificate of the authority."""
    with Running(bundle_file, key.public_key, with_tls(authority, service_certificate)) as running:
        yield running


def with_tls(authority: Authority, certificate: Pair, admission: Admission | None = None) -> Endpoint:
    """An endpoint for those whose certificate the authority signed."""
    credentials = server_credentials(certificate.certificate, certificate.key, authority.certificate)
    return Endpoint(credentials=credentials, admission=admission or Admission())
