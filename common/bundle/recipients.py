"""X25519 keys (RFC 7748) to which bundles are sealed: a silo makes a pair, gives away the public half and keeps the other.

They are not the Ed25519 keys with which things are signed. A public key is written ``x25519:`` and 64 hex characters, so that
one is not taken for the other.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from common.durable import sync_folder, write_durably
from common.errors import BundleError

KEY_BYTES = 32

_PUBLIC = re.compile(r"x25519:([0-9a-f]{64})")
_TRIAL = X25519PrivateKey.from_private_bytes(bytes(range(32)))  # no secret: shows which points have a small order


class RecipientKey:
    """A private key. It shows its public half only: not in ``repr``, not in a pickle."""

    def __init__(self, private: X25519PrivateKey) -> None:
        self.__private = private
        self.public_bytes = private.public_key().public_bytes_raw()

    @property
    def public_key(self) -> str:
        return f"x25519:{self.public_bytes.hex()}"

    def exchange(self, public: bytes) -> bytes | None:
        """The shared secret, 32 bytes; None for a point of small order, with which it would be no secret."""
        return exchange(self.__private, public)

    def __repr__(self) -> str:
        return f"RecipientKey({self.public_key})"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not copied to other processes: load it there from its file")


def exchange(private: X25519PrivateKey, public: bytes) -> bytes | None:
    """X25519 of the two; None where the result is zero whatever the private key is (RFC 7748, section 6.1)."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return None


def recipient(text: str) -> bytes:
    """The 32 bytes of a public key, as text or as a file that holds it.

    Raises
    ------
    BundleError
        If it is neither, or a point of small order.
    """
    written = text
    if not _PUBLIC.fullmatch(text):
        try:
            with Path(text).open("rb") as file:
                written = file.read(1024).decode("ascii", "replace").strip()
        except (OSError, ValueError):
            raise BundleError(f"{text!r} is neither a recipient's key (x25519:…) nor a file that can be read") from None
    found = _PUBLIC.fullmatch(written)
    if found is None:
        raise BundleError(f"{text}: not the public key of a recipient; it looks like x25519:… and 'silorec bundle key' makes it")
    public = bytes.fromhex(found[1])
    if exchange(_TRIAL, public) is None:
        raise BundleError(f"{text}: a point of small order: everybody could open what is sealed to it")
    return public


def create_recipient_key(path: Path) -> RecipientKey:
    """Make a pair: ``path`` (PKCS8 PEM, readable by its owner only) and ``path.pub``; on the disk when this returns.

    Raises
    ------
    BundleError
        If something is at ``path`` already, which is never overwritten, or the files cannot be written.
    """
    private = X25519PrivateKey.generate()
    key = RecipientKey(private)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        try:
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, path)  # unlike a rename, it fails where something is there
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
        sync_folder(path.parent)
        write_durably(public_path(path), f"{key.public_key}\n".encode())
    except FileExistsError:
        raise BundleError(f"{path}: there is a file already, and a key is never overwritten; choose another path") from None
    except OSError as error:
        raise BundleError(f"{path}: the key cannot be written ({error.strerror})") from None
    return key


def public_path(path: Path) -> Path:
    """Where the public half of the key at ``path`` is written."""
    return path.with_name(path.name + ".pub")


def load_recipient_key(path: Path) -> RecipientKey:
    """Read the private key at ``path``.

    Raises
    ------
    BundleError
        If there is none, others than its owner can get at the file, or it is no X25519 key.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise BundleError(
                    f"{path}: others than its owner can read or change the key (mode {mode:04o}); run: chmod 600 {path}"
                )
            pem = file.read(1 << 16)
    except OSError as error:
        raise BundleError(f"{path}: the key cannot be read ({error.strerror})") from None
    try:
        private = load_pem_private_key(pem, password=None)
    except Exception:  # ValueError; TypeError: encrypted; or an algorithm that OpenSSL was built without
        private = None
    if not isinstance(private, X25519PrivateKey):
        raise BundleError(f"{path}: not an unencrypted X25519 private key in PEM form; 'silorec bundle key' makes one")
    return RecipientKey(private)
