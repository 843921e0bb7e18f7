"""One signed bundle, and what is needed to make others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from common.bundle.archive import archive_parts, opened
from common.bundle.contents import Bundle
from common.bundle.files import write_bundle
from common.bundle.manifest import MANIFEST, NAMES, SIGNATURE, SIGNED, FileFacts, Manifest, sign
from common.privacy.signing import SigningKey, create_key
from tests.bundles import tiny_bundle

Resign = Callable[[dict[str, bytes]], Path]


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return create_key(tmp_path_factory.mktemp("signer") / "coordinator.key")


@pytest.fixture(scope="session")
def tiny() -> Bundle:
    return tiny_bundle(n_items=12, dim=6, text_dim=4)


@pytest.fixture(scope="session")
def archive(tiny: Bundle, key: SigningKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that holds; tests do not change it."""
    path = tmp_path_factory.mktemp("bundle") / "tiny.bundle"
    write_bundle(path, card=tiny.card, catalogue=tiny.catalogue, items=tiny.items, model=tiny.model, key=key)
    return path


@pytest.fixture(scope="session")
def contents(archive: Path) -> dict[str, bytes]:
    """Its seven files, by the reader's own hands."""
    with opened(archive) as source:
        return {name: source.take(name, 1 << 30) for name in NAMES}


@pytest.fixture
def resigned(contents: dict[str, bytes], key: SigningKey, tmp_path: Path) -> Resign:
    """A bundle with other files, rightly hashed and signed by the trusted key: what a careless or a bought signer could make."""

    def make(changes: dict[str, bytes]) -> Path:
        files = {**contents, **changes}
        manifest = Manifest({name: FileFacts.of(files[name]) for name in SIGNED}).to_bytes()
        files |= {MANIFEST: manifest, SIGNATURE: sign(manifest, key)} | changes
        path = tmp_path / "resigned.bundle"
        path.write_bytes(b"".join(archive_parts(files)))
        return path

    return make
