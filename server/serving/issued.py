"""What goes with the engine that answers: its names as bytes, its card, and the file that silos may fetch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from common.bundle.files import read_manifest
from common.errors import BundleError
from common.serving import HasBundle, newest


class BundleFile:
    """A bundle's archive, open as long as somebody reads it, whatever takes its place on the disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` on, fewer at the end; many may read at once."""
        return os.pread(self._file.fileno(), size, offset)

    def __del__(self) -> None:
        self._file.close()


@dataclass(frozen=True, eq=False)
class Issued:
    """Names of a bundle as they are on the wire (32 bytes each), its card as JSON, and its file; None if it is a folder."""

    digest: bytes
    catalogue: bytes
    card: str
    file: BundleFile | None


def issuing(path: Path) -> Callable[[HasBundle], Issued]:
    """What :class:`~common.serving.Live` needs as ``prepare`` for bundles at ``path``."""

    def prepare(engine: HasBundle) -> Issued:
        bundle = engine.bundle
        return Issued(
            bytes.fromhex(bundle.digest),
            bytes.fromhex(bundle.catalogue_fingerprint),
            bundle.card.to_json().decode(),
            _file_of(newest(path), bundle.digest),
        )

    return prepare


def _file_of(place: Path, digest: str) -> BundleFile | None:
    """The file from which the bundle was read. Its first part names the rest; who fetches it verifies the whole."""
    if place.is_dir():
        return None
    try:
        file = place.open("rb")
    except OSError as error:
        raise BundleError(f"{place}: cannot be read again ({error.strerror})") from None
    opened = BundleFile(file)
    if read_manifest(Path(f"/dev/fd/{file.fileno()}"))[0].digest != digest:
        raise BundleError(f"{place}: it was replaced while it was opened; it will be taken when it changes the next time")
    return opened
