"""TOML files that carry their own signature, as a remark in the last line.

One file cannot be torn: whoever reads it sees a text and the signature of that text, or the ones before. What is signed are the
bytes before the last line, behind a tag that says what kind of text it is.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA384

from common.errors import ConsortiumError

_MARK: Final = b"# signature: "
_LIMIT: Final = 1 << 24


def read_document(path: Path) -> bytes:
    """The bytes of a file, up to 16 MiB; :class:`ConsortiumError` with a sentence if it cannot be read or is larger."""
    try:
        with path.open("rb") as file:
            document = file.read(_LIMIT + 1)
    except FileNotFoundError:
        raise ConsortiumError(f"{path}: no such file") from None
    except OSError as error:
        raise ConsortiumError(f"{path}: cannot be read ({error.strerror})") from None
    if len(document) > _LIMIT:
        raise ConsortiumError(f"{path}: larger than {_LIMIT >> 20} MiB: not a file of a consortium")
    return document


def attach(content: bytes, signature: bytes) -> bytes:
    """``content``, which ends with a line's end, and its signature in one file."""
    return content + _MARK + base64.b64encode(signature) + b"\n"


def detach(document: bytes) -> tuple[bytes, bytes]:
    """Content and signature of a file; :class:`ValueError` unless the last line is a signature in the one form there is."""
    start = document.rstrip(b"\n").rfind(b"\n") + 1
    content, line = document[:start], document[start:]
    try:
        signature = base64.b64decode(line.removeprefix(_MARK).removesuffix(b"\n"), validate=True)
    except binascii.Error:
        raise ValueError("the last line is no signature") from None
    if attach(content, signature) != document:
        raise ValueError("the last line is no signature")
    return content, signature


def sign_p384(key: EllipticCurvePrivateKey, tag: bytes, content: bytes) -> bytes:
    """ECDSA with SHA-384 (FIPS 186-5) over tag and content, as DER."""
    return key.sign(tag + content, ECDSA(SHA384()))


def is_signed_by_p384(key: EllipticCurvePublicKey, signature: bytes, tag: bytes, content: bytes) -> bool:
    """Whether ``signature`` is that of :func:`sign_p384`."""
    try:
        key.verify(signature, tag + content, ECDSA(SHA384()))
    except InvalidSignature:
        return False
    return True
