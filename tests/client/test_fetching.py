"""A bundle is fetched whole, goes on where it broke off, and is believed only when all of it holds."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from client.fetching import fetch_bundle
from client.remote import Service
from common.bundle.contents import Bundle
from common.errors import BundleError, ServingError
from common.privacy.signing import SigningKey, create_key
from common.proto import SERVICE
from common.proto import recommender_pb2 as messages
from tests.bundles import write_tiny
from tests.server.serving.running_service import Running


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return create_key(tmp_path_factory.mktemp("signer") / "signer.key")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, key: SigningKey) -> tuple[Path, Bundle]:
    """Of some 300 kB: two messages."""
    path = tmp_path_factory.mktemp("bundles") / "shop.bundle"
    return path, write_tiny(path, key, n_items=4_000, dim=64)


@contextmanager
def unsteady(content: bytes, digest: str, breaks: list[int], sent: list[tuple[bytes, int]]) -> Iterator[str]:
    """A service whose streams break off after the numbers of bytes in ``breaks``, one after the other; then one is whole."""

    def get(raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        request = messages.GetBundleRequest.FromString(raw)
        sent.append((request.digest, request.offset))
        if request.digest not in (b"", bytes.fromhex(digest)):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another bundle is served now")
        header = messages.BundleHeader(digest=bytes.fromhex(digest), size=len(content))
        yield messages.GetBundleResponse(header=header).SerializeToString()
        end = request.offset + breaks.pop(0) if breaks else len(content)
        for at in range(request.offset, min(end, len(content)), 10_000):
            yield messages.GetBundleResponse(chunk=content[at : min(at + 10_000, end)]).SerializeToString()
        if end < len(content):
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    server = grpc.server(ThreadPoolExecutor(2))
    handlers: dict[str, Any] = {"GetBundle": grpc.unary_stream_rpc_method_handler(get)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_the_services_bundle_becomes_the_silos(tmp_path: Path, shop: tuple[Path, Bundle], key: SigningKey) -> None:
    path, bundle = shop
    with Running(path, key.public_key) as running, Service(running.target) as service:
        got = fetch_bundle(service, tmp_path / "here.bundle", {key.public_key})
        assert got.digest == bundle.digest
        assert (tmp_path / "here.bundle").read_bytes() == path.read_bytes()
        state = (tmp_path / "here.bundle").stat()
        assert fetch_bundle(service, tmp_path / "here.bundle", {key.public_key}).digest == bundle.digest
        assert (tmp_path / "here.bundle").stat().st_ino == state.st_ino  # nothing was written a second time
    assert left(tmp_path) == {"here.bundle"}


def test_a_newer_bundle_takes_the_place_of_the_old_one(tmp_path: Path, key: SigningKey) -> None:
    served, here = tmp_path / "served", tmp_path / "here"
    served.mkdir()
    for seed in (1, 2):
        bundle = write_tiny(served / "shop.bundle", key, seed=seed)
        with Running(served / "shop.bundle", key.public_key) as running, Service(running.target) as service:
            assert fetch_bundle(service, here / "shop.bundle", {key.public_key}).digest == bundle.digest
    assert left(here) == {"shop.bundle"}


def test_streams_that_break_off_are_gone_on_with(tmp_path: Path, shop: tuple[Path, Bundle], key: SigningKey) -> None:
    content, bundle = shop[0].read_bytes(), shop[1]
    asked: list[tuple[bytes, int]] = []
    with unsteady(content, bundle.digest, [25_000, 0, 70_001], asked) as target, Service(target) as service:
        assert fetch_bundle(service, tmp_path / "b.bundle", {key.public_key}).digest == bundle.digest
    digest = bytes.fromhex(bundle.digest)
    assert asked == [(b"", 0), (digest, 25_000), (digest, 25_000), (digest, 95_001)]
    assert (tmp_path / "b.bundle").read_bytes() == content


def test_a_part_that_was_left_is_gone_on_with_later(tmp_path: Path, shop: tuple[Path, Bundle], key: SigningKey) -> None:
    content, bundle = shop[0].read_bytes(), shop[1]
    (tmp_path / f".b.bundle.{bundle.digest}.part").write_bytes(content[:123_456])
    (tmp_path / f".other.bundle.{bundle.digest}.part").write_bytes(b"of another file")
    asked: list[tuple[bytes, int]] = []
    with unsteady(content, bundle.digest, [], asked) as target, Service(target) as service:
        fetch_bundle(service, tmp_path / "b.bundle", {key.public_key})
    assert asked == [(bytes.fromhex(bundle.digest), 123_456)]
    assert left(tmp_path) == {"b.bundle", f".other.bundle.{bundle.digest}.part"}


def test_a_part_of_a_bundle_that_is_gone_is_thrown_away(tmp_path: Path, shop: tuple[Path, Bundle], key: SigningKey) -> None:
    path, bundle = shop
    (tmp_path / f".b.bundle.{'ab' * 32}.part").write_bytes(bytes(1_000))
    (tmp_path / f".b.bundle.{bundle.digest}.part").write_bytes(bytes(10_000_000))  # longer than the bundle
    with Running(path, key.public_key) as running, Service(running.target) as service:
        assert fetch_bundle(service, tmp_path / "b.bundle", {key.public_key}).digest == bundle.digest
    assert left(tmp_path) == {"b.bundle"}


@pytest.mark.parametrize("what", ["a byte", "a part from elsewhere", "the signer", "the name"])
def test_what_does_not_hold_is_deleted_and_the_old_bundle_stays(
    tmp_path: Path, shop: tuple[Path, Bundle], key: SigningKey, what: str
) -> None:
    content, bundle, trusted, digest = bytearray(shop[0].read_bytes()), shop[1], {key.public_key}, shop[1].digest
    write_tiny(tmp_path / "b.bundle", key, seed=5)
    before = (tmp_path / "b.bundle").read_bytes()
    if what == "a byte":
        content[len(content) // 2] ^= 1
    elif what == "a part from elsewhere":
        (tmp_path / f".b.bundle.{bundle.digest}.part").write_bytes(bytes(5_000))
    elif what == "the signer":
        trusted = {"00" * 32}
    else:
        digest = "ab" * 32
    with unsteady(bytes(content), digest, [], []) as target, Service(target) as service, pytest.raises(BundleError):
        fetch_bundle(service, tmp_path / "b.bundle", trusted)
    assert left(tmp_path) == {"b.bundle"}
    assert (tmp_path / "b.bundle").read_bytes() == before


def test_too_large_a_bundle_and_no_service_are_one_sentence(
    tmp_path: Path, shop: tuple[Path, Bundle], key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = shop
    with Running(path, key.public_key) as running, Service(running.target) as service:
        with pytest.raises(ServingError, match="more than the 1,000 that are allowed"):
            fetch_bundle(service, tmp_path / "b.bundle", {key.public_key}, max_bytes=1_000)
        gone = running.target
    monkeypatch.setattr("client.fetching.ATTEMPTS", 2)
    with Service(gone) as service, pytest.raises(ServingError, match="cannot be reached"):
        fetch_bundle(service, tmp_path / "b.bundle", {key.public_key})
    assert left(tmp_path) == set()


def test_a_server_that_sends_something_else_is_noticed(tmp_path: Path, shop: tuple[Path, Bundle], key: SigningKey) -> None:
    content, bundle = shop[0].read_bytes(), shop[1]
    with (
        unsteady(content, bundle.digest[:40], [], []) as target,
        Service(target) as service,
        pytest.raises(ServingError, match="not the beginning of a bundle"),
    ):
        fetch_bundle(service, tmp_path / "b.bundle", {key.public_key})
