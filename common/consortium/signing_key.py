"""The coordinator's signing key, with which it signs questions and bundles: a new one waits until the roster names it."""

from __future__ import annotations

import os
from pathlib import Path

from common.consortium.home import CoordinatorHome
from common.consortium.keys import waiting
from common.consortium.roster import Consortium
from common.durable import sync_folder, write_durably
from common.errors import ConsortiumError
from common.privacy.signing import create_key, fingerprint, load_key


def renew_signing_key(home: CoordinatorHome) -> str:
    """Make a key beside the one in use; its public half (64 hex characters), for silos' policies and for the authority.

    The coordinator goes on with the key that it has until :func:`take_up_signing_key` sees a roster with the new one. Asked again
    before that, it gives the same key.
    """
    path = waiting(home.key)
    public = (load_key(path) if path.exists() else create_key(path)).public_key
    write_public_half(path)
    return public


def has_signing_key(home: CoordinatorHome, public: str) -> bool:
    """Whether the private half is here, in use or waiting."""
    return public in (_public(home.key), _public(waiting(home.key)))


def take_up_signing_key(home: CoordinatorHome, consortium: Consortium) -> bool:
    """Bring the folder in line with the roster: a key that waited comes into use, in the place of the old one.

    Whether anything changed. What a crash interrupted is done by the next call.

    Raises
    ------
    ConsortiumError
        If the roster names a key that is not here.
    """
    named, path = consortium.coordinator, home.key
    changed = _public(path) != named
    if changed:
        if _public(waiting(path)) != named:
            raise ConsortiumError(
                f"{path}: the roster names another signing key for the coordinator, {fingerprint(named)}: restore it, or make a "
                f"new one and have the authority name it: silorec consortium rotate {home.folder}"
            )
        os.replace(waiting(path), path)
        sync_folder(path.parent)
        public_half(waiting(path)).unlink(missing_ok=True)
    write_public_half(path)
    return changed


def public_half(path: Path) -> Path:
    """Where the public half of the key at ``path`` lies: ``coordinator.key.pub``, for those who check what was signed."""
    return path.with_name(f"{path.name}.pub")


def write_public_half(path: Path) -> None:
    """Write it beside the key at ``path``."""
    half, content = public_half(path), f"{load_key(path).public_key}\n".encode()
    if not half.exists() or half.read_bytes() != content:
        write_durably(half, content)


def _public(path: Path) -> str | None:
    return load_key(path).public_key if path.exists() else None
