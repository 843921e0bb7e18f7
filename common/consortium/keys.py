"""Elliptic-curve keys (P-384) on their owner's disk: of the authority, of TLS, and of a silo's Flower node.

A key is made where it is used and is never overwritten. One that others than its owner can read is not used.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from common.durable import create_durably
from common.errors import ConsortiumError

_OPENSSH: Final = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_LIMIT: Final = 1 << 16


def waiting(path: Path) -> Path:
    """Where a new key waits until the roster has it."""
    return path.with_name(f"{path.name}.new")


def own_key(path: Path, *, openssh: bool = False) -> EllipticCurvePrivateKey:
    """The key at ``path``, made now if there is none: PKCS8 PEM, or OpenSSH's form, the only one that Flower reads.

    Raises
    ------
    ConsortiumError
        As :func:`load_key_p384`, or if it cannot be written.
    """
    if path.exists():
        return load_key_p384(path)
    form = PrivateFormat.OpenSSH if openssh else PrivateFormat.PKCS8
    key = generate_private_key(SECP384R1())
    try:
        create_durably(path, key.private_bytes(Encoding.PEM, form, NoEncryption()), mode=0o600)
    except FileExistsError:  # somebody else was quicker
        return load_key_p384(path)
    except OSError as error:
        raise ConsortiumError(f"{path}: the key cannot be written ({error.strerror})") from None
    return key


def load_key_p384(path: Path) -> EllipticCurvePrivateKey:
    """Read the key at ``path``, in either form.

    Raises
    ------
    ConsortiumError
        If there is none, others than its owner can get at the file, or it is no unencrypted P-384 key.
    """
    pem = read_private(path)
    load = load_ssh_private_key if pem.startswith(_OPENSSH) else load_pem_private_key
    try:
        key = load(pem, password=None)
    except Exception:  # what OpenSSL cannot read ends in exceptions of several kinds
        key = None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise ConsortiumError(f"{path}: not an unencrypted P-384 private key; restore it from a copy")
    return key


def read_private(path: Path) -> bytes:
    """The bytes of a file that nobody but its owner can get at; :class:`ConsortiumError` if others can."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConsortiumError(
                    f"{path}: others than its owner can read or change it (mode {mode:04o}); run: chmod 600 {path}"
                )
            return file.read(_LIMIT)
    except FileNotFoundError:
        raise ConsortiumError(f"{path}: no such file; restore it from a copy") from None
    except OSError as error:
        raise ConsortiumError(f"{path}: cannot be read ({error.strerror})") from None


def node_line(key: EllipticCurvePublicKey) -> str:
    """A public key as OpenSSH writes it in one line, without a remark; `flwr supernode register` takes it from a file."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
