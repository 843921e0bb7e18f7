"""What a bundle consists of, and the signature over it.

``MANIFEST.json`` names every other file with its size and SHA-256, in the one form that :meth:`Manifest.to_bytes` writes:
anything else is refused, so two readers cannot understand it differently. ``SIGNATURE`` is two lines of hex: an Ed25519
public key (RFC 8032) and its signature over a tag and the manifest's bytes. The tag keeps a signature made for another
purpose from counting here. Whether the key is one to trust is for the reader to say.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from common.errors import BundleError
from common.privacy.signing import SigningKey, verify

FORMAT: Final = "silorec-bundle-1"

MANIFEST, SIGNATURE = "MANIFEST.json", "SIGNATURE"
MODEL, ITEMS, CATALOGUE, CARD_JSON, CARD_MD = "model.onnx", "items.safetensors", "catalogue.parquet", "card.json", "card.md"
SIGNED: Final = (CARD_JSON, CARD_MD, CATALOGUE, ITEMS, MODEL)
NAMES: Final = (MANIFEST, SIGNATURE, *SIGNED)
"""All files of a bundle, in the order in which they lie in its archive: what says whether to read on comes first."""

MANIFEST_LIMIT: Final = 4096  # bytes; five names, sizes and hashes take about 600
SIGNATURE_LIMIT: Final = 64 + 1 + 128 + 1

_TAG: Final = b"silorec-bundle-1\0"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(rb"([0-9a-f]{64})\n([0-9a-f]{128})\n")


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and SHA-256 (hex) of one file.

    Raises
    ------
    BundleError
        If either cannot be that.
    """

    size: int
    sha256: str

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 0:
            raise BundleError(f"{MANIFEST}: {self.size!r} is not a size")
        if type(self.sha256) is not str or not _DIGEST.fullmatch(self.sha256):
            raise BundleError(f"{MANIFEST}: {self.sha256!r} is not a SHA-256")

    @classmethod
    def of(cls, content: bytes | memoryview) -> FileFacts:
        return cls(len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Manifest:
    """The files that belong to a bundle, all of :data:`SIGNED` and no other.

    Raises
    ------
    BundleError
        If one is missing or one is too many.
    """

    files: Mapping[str, FileFacts]

    def __post_init__(self) -> None:
        if wrong := sorted(set(self.files) ^ set(SIGNED)):
            raise BundleError(f"{MANIFEST}: {wrong[0]!r} is {'not part of a bundle' if wrong[0] in self.files else 'missing'}")

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, ASCII, a line end."""
        files = {name: {"sha256": facts.sha256, "size": facts.size} for name, facts in self.files.items()}
        text = json.dumps({"files": files, "format": FORMAT}, sort_keys=True, separators=(",", ":"))
        return text.encode("ascii") + b"\n"

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of :meth:`to_bytes`: the bundle's name."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """What :meth:`to_bytes` wrote, byte for byte; :class:`BundleError` for anything else."""
        try:
            raw = json.loads(content)
            known, entries = raw["format"], raw["files"]
            if known != FORMAT:
                raise BundleError(
                    f"{MANIFEST}: format {known!r}, where this silorec reads {FORMAT!r}; use the silorec that wrote it"
                )
            manifest = cls({name: FileFacts(entry["size"], entry["sha256"]) for name, entry in entries.items()})
        except BundleError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise BundleError(f"{MANIFEST} is not a list of files with sizes and hashes") from None
        if manifest.to_bytes() != content:
            raise BundleError(f"{MANIFEST} is not written in the one form that is allowed (keys, order, spaces)")
        return manifest


def sign(manifest: bytes, key: SigningKey) -> bytes:
    """The content of ``SIGNATURE``."""
    return f"{key.public_key}\n{key.sign(_TAG + manifest).hex()}\n".encode("ascii")


def signer_of(manifest: bytes, signature: bytes) -> str:
    """The public key (hex) that signed these bytes; it says nothing about whose it is.

    Raises
    ------
    BundleError
        If ``signature`` is none, or not that key's over this manifest.
    """
    found = _SIGNATURE.fullmatch(signature)
    if found is None:
        raise BundleError(f"{SIGNATURE} is not a public key and a signature, two lines of hex")
    key, value = found[1].decode("ascii"), bytes.fromhex(found[2].decode("ascii"))
    if not verify(key, value, _TAG + manifest):
        raise BundleError(f"the signature does not fit {MANIFEST}: one of the two was altered")
    return key
