"""Ed25519 keys on their owner's disk (RFC 8032), and what is signed with them.

A silo signs its ledger, an auditor countersigns it, a coordinator signs its questions. A private key never leaves the file that
it was made in, and a file that others can read is not used. A public key is 64 lower-case hex characters; people compare its
:func:`fingerprint`, by a way that does not run through silorec.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key

from common.durable import create_durably
from common.errors import LedgerError

_PUBLIC_KEY = re.compile(r"[0-9a-f]{64}")


class SigningKey:
    """A private key. It shows its public half only: not in ``repr``, not in a pickle."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self.__private = private
        self.public_key = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes; the same for the same message."""
        return self.__private.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey({fingerprint(self.public_key)})"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not copied to other processes: load it there from its file")


def create_key(path: Path) -> SigningKey:
    """Make a key at ``path`` (PKCS8 PEM, readable by its owner only); on the disk when this returns.

    Raises
    ------
    LedgerError
        If something is there already, which is never overwritten, or the file cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        create_durably(path, pem)
    except FileExistsError:
        raise LedgerError(f"{path}: there is a file already, and a key is never overwritten; choose another path") from None
    except OSError as error:
        raise LedgerError(f"{path}: the key cannot be written ({error.strerror})") from None
    return SigningKey(private)


def load_key(path: Path) -> SigningKey:
    """Read the key at ``path``.

    Raises
    ------
    LedgerError
        If there is none, others than its owner can get at the file, or it is no Ed25519 key.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise LedgerError(
                    f"{path}: others than its owner can read or change the key (mode {mode:04o}); run: chmod 600 {path}"
                )
            pem = file.read(1 << 16)
    except FileNotFoundError:
        raise LedgerError(f"{path}: there is no key; restore it from a copy, or make a ledger with a new one") from None
    except OSError as error:
        raise LedgerError(f"{path}: the key cannot be read ({error.strerror})") from None
    try:
        private = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):  # TypeError: it is encrypted
        private = None
    except Exception as error:  # an algorithm that OpenSSL was built without
        raise LedgerError(f"{path}: not an unencrypted Ed25519 private key ({type(error).__name__})") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise LedgerError(f"{path}: not an unencrypted Ed25519 private key in PEM form; restore it from a copy")
    return SigningKey(private)


def verify(public_key: str, signature: bytes, message: bytes) -> bool:
    """Whether ``signature`` is that of ``message`` by ``public_key``; no for a key that is none."""
    if not is_public_key(public_key):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def is_public_key(text: str) -> bool:
    """Whether ``text`` has the form of a public key: 64 lower-case hex characters."""
    return _PUBLIC_KEY.fullmatch(text) is not None


def fingerprint(public_key: str) -> str:
    """128 bits of the key's SHA-256 in groups of four, for people to compare."""
    digest = hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:32]
    return "-".join(digest[i : i + 4] for i in range(0, 32, 4))
