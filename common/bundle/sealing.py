"""Sealing: a bundle for the eyes of some silos only, on a way that others can read.

A random file key is wrapped for each recipient: X25519 of a fresh key with the recipient's (RFC 7748), HKDF-SHA256 (RFC 5869),
ChaCha20-Poly1305 (RFC 8439). The header that holds the wraps is authenticated by HMAC-SHA256 under a key derived from the file
key, which also ties the file to one key. The contents follow in chunks of 64 KiB by the STREAM construction (Hoang, Reyhanitabar,
Rogaway and Vizár 2015, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance"): a chunk's nonce is its number
and whether it is the last, so chunks that are missing, doubled, moved, appended or of another file are found. The design
is that of age (age-encryption.org/v1); the format is not.

::

    "silorec-sealed-1\\n" · n (2 bytes, big end first) · n × (fresh public key 32, wrapped file key 48) · HMAC 32 · chunks

Recipients are not named. Anybody can seal: who made the bundle is said by its signature, which is inside and is still
to be verified. The length of the contents is not hidden, and who gets a recipient's key later can open what was sent before.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.bundle.recipients import KEY_BYTES, RecipientKey, exchange
from common.durable import write_durably
from common.errors import BundleError

MAGIC: Final = b"silorec-sealed-1\n"
CHUNK: Final = 1 << 16
"""Bytes of contents in a chunk: read, checked and written on before the next is read."""

MAX_RECIPIENTS: Final = 1024
"""Each wrap is tried by each reader, at some 0.1 ms."""

_TAG, _MAC, _STANZA = 16, 32, 80
_NO_NONCE = bytes(12)  # a wrapping key wraps one file key


def is_sealed(path: Path) -> bool:
    """Whether the file at ``path`` begins like a sealed one."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def seal_file(path: Path, out: Path, recipients: Sequence[bytes]) -> Path:
    """Seal the file ``path`` to the public keys ``recipients`` (32 bytes each) as ``out``.

    Raises
    ------
    BundleError
        If there is no recipient or too many, or a file cannot be read or written.
    """
    try:
        with path.open("rb") as file:
            return write_durably(out, seal(file, recipients))
    except OSError as error:
        raise BundleError(f"{error.filename or path}: cannot be read or written ({error.strerror})") from None


def open_file(path: Path, out: Path, key: RecipientKey) -> Path:
    """Open the sealed file ``path`` as ``out``, readable by its owner only; nothing is left of one that does not hold.

    Raises
    ------
    BundleError
        If it is not sealed, not for this key, or was altered, shortened or lengthened; or a file cannot be read or written.
    """
    try:
        with path.open("rb") as file:
            return write_durably(out, unseal(file, key), mode=0o600)
    except OSError as error:
        raise BundleError(f"{error.filename or path}: cannot be read or written ({error.strerror})") from None
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None


def seal(contents: BinaryIO, recipients: Sequence[bytes]) -> Iterator[bytes]:
    """The sealed form of ``contents``, in parts; see the module's text.

    Raises
    ------
    BundleError
        If ``contents`` are empty, or there is no recipient or too many.
    """
    to = [*dict.fromkeys(recipients)]
    if not 1 <= len(to) <= MAX_RECIPIENTS:
        raise BundleError(f"{len(to)} recipients; a bundle is sealed to 1 to {MAX_RECIPIENTS:,}")
    file_key = os.urandom(KEY_BYTES)
    header = MAGIC + len(to).to_bytes(2, "big") + b"".join(_wrap(file_key, one) for one in to)
    yield header + _header_mac(file_key, header)
    cipher = ChaCha20Poly1305(_derived(file_key, b"contents"))
    for number, (chunk, last) in enumerate(_chunks(contents, CHUNK)):
        if not chunk:
            raise BundleError("there is nothing to seal: the file is empty")
        yield cipher.encrypt(_nonce(number, last), chunk, None)


def unseal(sealed: BinaryIO, key: RecipientKey) -> Iterator[bytes]:
    """What was sealed, in parts that have been authenticated; complete only when the iterator ends without an error.

    Raises
    ------
    BundleError
        If it is not sealed, not for this key, or was altered, shortened or lengthened.
    """
    start = sealed.read(len(MAGIC) + 2)
    count = int.from_bytes(start[len(MAGIC) :], "big")
    if not start.startswith(MAGIC) or len(start) != len(MAGIC) + 2 or not 1 <= count <= MAX_RECIPIENTS:
        raise BundleError("not a sealed bundle")
    stanzas, mac = sealed.read(count * _STANZA), sealed.read(_MAC)
    if len(stanzas) != count * _STANZA or len(mac) != _MAC:
        raise BundleError("it was cut off")
    unwrapped = (_unwrap(stanzas[i : i + _STANZA], key) for i in range(0, len(stanzas), _STANZA))
    file_key = next((found for found in unwrapped if found is not None), None)
    if file_key is None:
        raise BundleError(f"not sealed to {key.public_key}, or altered")
    if not hmac.compare_digest(mac, _header_mac(file_key, start + stanzas)):
        raise BundleError("its header was altered")
    cipher = ChaCha20Poly1305(_derived(file_key, b"contents"))
    for number, (block, last) in enumerate(_chunks(sealed, CHUNK + _TAG)):
        try:
            chunk = cipher.decrypt(_nonce(number, last), block, None)
        except InvalidTag:
            raise BundleError(f"chunk {number} was altered or moved, or something is missing behind it") from None
        if not chunk:
            raise BundleError("it holds nothing, or an empty chunk behind its contents")
        yield chunk


def _chunks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, bool]]:
    """Blocks of ``size`` bytes, the last one shorter perhaps, each with whether it is the last; one empty block for nothing."""
    block = file.read(size)
    while True:
        following = file.read(size) if len(block) == size else b""
        yield block, not following
        if not following:
            return
        block = following


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _derived(secret: bytes, what: bytes, salt: bytes | None = None) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt, b"silorec-sealed-1 " + what).derive(secret)


def _header_mac(file_key: bytes, header: bytes) -> bytes:
    return hmac.digest(_derived(file_key, b"header"), header, "sha256")


def _wrap(file_key: bytes, public: bytes) -> bytes:
    fresh = X25519PrivateKey.generate()
    shared = exchange(fresh, public)
    if shared is None:
        raise BundleError("a recipient's key is a point of small order: everybody could open what is sealed to it")
    ours = fresh.public_key().public_bytes_raw()
    return ours + ChaCha20Poly1305(_derived(shared, b"wrap", ours + public)).encrypt(_NO_NONCE, file_key, None)


def _unwrap(stanza: bytes, key: RecipientKey) -> bytes | None:
    """The file key, or None if it was not wrapped for this key."""
    theirs, wrapped = stanza[:KEY_BYTES], stanza[KEY_BYTES:]
    shared = key.exchange(theirs)
    if shared is None:
        return None
    try:
        return ChaCha20Poly1305(_derived(shared, b"wrap", theirs + key.public_bytes)).decrypt(_NO_NONCE, wrapped, None)
    except InvalidTag:
        return None
