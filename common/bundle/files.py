"""Writing, verifying and opening a bundle.

A bundle is one file ``NAME.bundle`` (see :mod:`common.bundle.archive`) or a folder with the same seven files. It is opened in
this order, and the first thing that does not hold ends it: the manifest and the signature, of limited size; the signer, who
must be trusted; the sizes of all files against the manifest; each file's SHA-256; and only then is anything parsed. What is
hashed is what is parsed: every file is read once.

A bundle says nothing about its age: whoever serves an old one serves what its signer signed then. ``created`` in its card and the
digest tell two of them apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.bundle.archive import archive_parts, opened
from common.bundle.card import Card
from common.bundle.catalogue_parquet import BYTES_PER_ITEM, SPARE_BYTES, catalogue_from_bytes, catalogue_to_bytes
from common.bundle.contents import Bundle, ItemTable
from common.bundle.item_tensors import MAX_DIM, items_from_bytes, items_size, items_to_bytes
from common.bundle.manifest import (
    CARD_JSON,
    CARD_MD,
    CATALOGUE,
    ITEMS,
    MANIFEST,
    MANIFEST_LIMIT,
    MODEL,
    SIGNATURE,
    SIGNATURE_LIMIT,
    SIGNED,
    FileFacts,
    Manifest,
    sign,
    signer_of,
)
from common.bundle.model_graph import check_model
from common.data.catalogue import Catalogue
from common.durable import write_durably
from common.errors import BundleError
from common.privacy.signing import SigningKey, fingerprint, is_public_key

MAX_ITEMS: Final = 1_000_000
"""Items that are accepted unless the reader asks for more; vectors of 448 columns then take 0.46 GB of memory."""

MODEL_LIMIT: Final = 256 << 20
"""Bytes of a model. A student has about one million parameters; this leaves room for 64 million in float32."""

CARD_LIMIT: Final = 256 << 10
"""Bytes of a card, in either form: it is made to be read by people."""


@dataclass(frozen=True)
class Verified:
    """What a bundle is after all checks: its digest, who signed it, and its files with sizes and hashes."""

    digest: str
    signer: str
    files: Mapping[str, FileFacts]


def write_bundle(
    path: Path,
    *,
    card: Card,
    catalogue: Catalogue,
    items: ItemTable,
    model: bytes,
    key: SigningKey,
    max_items: int = MAX_ITEMS,
) -> str:
    """Write and sign the bundle ``path``; it is there whole, on the disk, or not at all.

    What was encoded is parsed again before it is signed, so nothing is signed that :func:`read_bundle` would refuse. The same
    contents and key give the same bytes (with the same pyarrow).

    Returns
    -------
    str
        The bundle's digest: SHA-256 (hex) of its manifest.

    Raises
    ------
    BundleError
        If the contents do not fit together or cannot be written.
    """
    contents: dict[str, bytes | memoryview] = {
        MODEL: model,
        ITEMS: items_to_bytes(items),
        CATALOGUE: catalogue_to_bytes(catalogue),
        CARD_JSON: card.to_json(),
        CARD_MD: card.to_markdown().encode(),
    }
    with _named(path):
        manifest = Manifest({name: FileFacts.of(contents[name]) for name in SIGNED})
        _check_sizes(manifest, max_items)
        bundle = _parse(manifest, key.public_key, contents, max_items)
        contents[MANIFEST] = manifest.to_bytes()
        contents[SIGNATURE] = sign(manifest.to_bytes(), key)
        try:
            write_durably(path, archive_parts(contents))
        except OSError as error:
            raise BundleError(f"cannot be written ({error.strerror})") from None
    return bundle.digest


def read_bundle(path: Path, trusted: Collection[str] | None, *, max_items: int = MAX_ITEMS) -> Bundle:
    """Verify the bundle at ``path``, an archive or a folder, and open it.

    Parameters
    ----------
    trusted:
        Ed25519 public keys (64 hex) of which one must have signed it. None takes any signer: for who made the bundle, and
        for no one else, since anybody can sign.
    max_items:
        Refuse more items than that before reading them.

    Raises
    ------
    BundleError
        In one sentence: what does not hold.
    """
    return _open(path, trusted, max_items)[1]


def verify_bundle(path: Path, trusted: Collection[str] | None, *, max_items: int = MAX_ITEMS) -> Verified:
    """All that :func:`read_bundle` checks, and raises; what comes back names the files instead of holding them."""
    manifest, bundle = _open(path, trusted, max_items)
    return Verified(bundle.digest, bundle.signer, manifest.files)


def read_manifest(path: Path) -> tuple[Manifest, str]:
    """The manifest of a bundle and the key that signed it, whoever that is; no other file was looked at."""
    with _named(path), opened(path) as source:
        raw = source.take(MANIFEST, MANIFEST_LIMIT)
        signer = signer_of(raw, source.take(SIGNATURE, SIGNATURE_LIMIT))
        return Manifest.from_bytes(raw), signer


def load_bundle(path: str | Path, signer: str | Collection[str]) -> Bundle:
    """Verify and open a bundle: ``silorec.load_bundle("shop.bundle", "9f2c…")``.

    Parameters
    ----------
    signer:
        The Ed25519 public key (64 hex) that must have signed it, or several of which one must have.

    Raises
    ------
    BundleError
        In one sentence: what does not hold.
    """
    return read_bundle(Path(path), {signer} if isinstance(signer, str) else set(signer))


def _open(path: Path, trusted: Collection[str] | None, max_items: int) -> tuple[Manifest, Bundle]:
    with _named(path):
        if trusted is not None:
            _check_keys(trusted)
        with opened(path) as source:
            raw = source.take(MANIFEST, MANIFEST_LIMIT)
            signer = signer_of(raw, source.take(SIGNATURE, SIGNATURE_LIMIT))
            if trusted is not None and signer not in trusted:
                raise BundleError(f"signed by {fingerprint(signer)}, who is not among the {len(trusted)} trusted signers")
            manifest = Manifest.from_bytes(raw)
            _check_sizes(manifest, max_items)
            source.expect({name: facts.size for name, facts in manifest.files.items()})
            contents: dict[str, bytes | memoryview] = {}
            for name in SIGNED:
                contents[name] = source.take_exactly(name, manifest.files[name].size)
                if FileFacts.of(contents[name]) != manifest.files[name]:
                    raise BundleError(f"{name} is not the file that was signed: its SHA-256 is another")
            source.finish()
        return manifest, _parse(manifest, signer, contents, max_items)


def _check_keys(trusted: Collection[str]) -> None:
    if isinstance(trusted, str) or not trusted:
        raise BundleError("say who is trusted: a collection of public keys that is not empty")
    if wrong := [key for key in trusted if not is_public_key(key)]:
        raise BundleError(f"{wrong[0]!r} is not a public key: 64 lower-case hex characters")


def _check_sizes(manifest: Manifest, max_items: int) -> None:
    """Refuse files that ``max_items`` items cannot need, before they are read."""
    limits = {
        MODEL: MODEL_LIMIT,
        ITEMS: items_size(max_items, MAX_DIM),
        CATALOGUE: max_items * BYTES_PER_ITEM + SPARE_BYTES,
        CARD_JSON: CARD_LIMIT,
        CARD_MD: CARD_LIMIT,
    }
    for name, limit in limits.items():
        if (size := manifest.files[name].size) > limit:
            raise BundleError(f"{name} has {size:,} bytes, at most {limit:,} are allowed")


def _parse(manifest: Manifest, signer: str, contents: Mapping[str, bytes | memoryview], max_items: int) -> Bundle:
    """The bundle in files whose hashes were compared."""
    card = Card.from_json(bytes(contents[CARD_JSON]))
    if card.to_markdown().encode() != contents[CARD_MD]:
        raise BundleError(f"{CARD_MD} does not say what {CARD_JSON} says")
    items = items_from_bytes(contents[ITEMS], max_items)
    model = bytes(contents[MODEL])
    check_model(model, items.dim)
    return Bundle(manifest.digest, signer, card, catalogue_from_bytes(contents[CATALOGUE], max_items), items, model)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors name the bundle."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
