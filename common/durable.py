"""Writing so that a crash leaves either the old file or the new one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path


def write_durably(path: Path, content: bytes | Iterable[bytes | memoryview], *, mode: int = 0o666) -> Path:
    """Replace ``path`` by ``content`` so that a crash leaves either the old file or the new one, on the disk.

    ``content`` may come in parts. ``mode`` is cut by the process' umask, as usual; 0o600 is for what only its owner may read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.writelines((content,) if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    sync_folder(path.parent)
    return path


def create_durably(path: Path, content: bytes, *, mode: int = 0o600) -> Path:
    """Make ``path`` with ``content``, all of it or nothing, on the disk when this returns.

    Raises
    ------
    FileExistsError
        If something is there already, which is never overwritten.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)  # unlike a rename, it fails where something is there
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    sync_folder(path.parent)
    return path


def sync_folder(folder: Path) -> None:
    """Bring the names in ``folder`` to the disk: a new file is only there after a crash when its folder was synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
