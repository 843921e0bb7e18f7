"""What travels between authority and silo before there is a roster: an invitation one way, a request back.

Both are TOML with a signature in the last line. The invitation is signed by the authority, whose certificate is in it: people
compare that certificate's fingerprint by voice, and then all of it holds. Its token is for one silo and one use; the request
proves that its sender has the token without showing it, and is signed by the silo's identity key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import tomllib
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, Literal

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from common.consortium.certificates import fingerprint_of, key_of_authority, parse_certificate
from common.consortium.home import check_address, check_silo_name
from common.consortium.signed import attach, detach, is_signed_by_p384, sign_p384
from common.errors import ConsortiumError
from common.privacy.signing import SigningKey, is_public_key, verify

FORMAT: Final = 1

_INVITATION: Final = b"silorec-invitation-1\0"
_REQUEST: Final = b"silorec-request-1\0"
_PROOF: Final = b"silorec-proof-1\0"

_REMARK: Final = (
    "# An invitation to a consortium: for one silo, once. Whoever has it can join in that silo's name; keep it to yourself.\n"
)


@dataclass(frozen=True)
class Invitation:
    """What a silo needs to ask for its admission. ``token`` is 64 hex characters, ``authority`` PEM text."""

    consortium: str
    silo: str
    address: str
    coordinator: str
    token: str
    issued: datetime
    expires: datetime
    authority: str

    @property
    def fingerprint(self) -> str:
        """Of the authority's certificate."""
        return fingerprint_of(parse_certificate(self.authority.encode(), "the invitation"))

    def write(self, key: EllipticCurvePrivateKey) -> bytes:
        """The file that :func:`read_invitation` reads, signed with the authority's key."""
        content = (_REMARK + tomli_w.dumps({"format": FORMAT, **asdict(self)}, multiline_strings=True)).encode() + b"\n"
        return attach(content, sign_p384(key, _INVITATION, content))


@dataclass(frozen=True)
class Request:
    """A silo's public keys, for the roster.

    Parameters
    ----------
    kind:
        ``join``, or ``renew`` for new node and TLS keys of a silo that is a member.
    key, node, tls:
        Identity (Ed25519, hex), Flower's node (OpenSSH line), and a signing request for the TLS certificate (PEM).
    declared_users:
        Of a ``join``; 0 in a renewal, which leaves them.
    proof:
        Of a ``join``: that its sender has the invitation's token; see :func:`proof_of`.
    replaces:
        Of a renewal: the node key that it replaces. So none can be used twice.
    """

    kind: Literal["join", "renew"]
    consortium: str
    silo: str
    key: str
    node: str
    tls: str
    declared_users: int = 0
    proof: str = ""
    replaces: str = ""

    def write(self, key: SigningKey) -> bytes:
        """The file that :func:`read_request` reads, signed with the silo's identity key."""
        content = tomli_w.dumps({"format": FORMAT, **asdict(self)}, multiline_strings=True).encode() + b"\n"
        return attach(content, key.sign(_REQUEST + content))


def proof_of(token: str, request: Request) -> str:
    """HMAC-SHA256 (hex) of the request's fields under the token: who sees a request cannot make another from it."""
    fields = {name: value for name, value in asdict(request).items() if name != "proof"}
    return hmac.new(bytes.fromhex(token), _PROOF + json.dumps(fields, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def read_invitation(document: bytes, where: str) -> Invitation:
    """The invitation in a file's bytes; ``where`` names the file.

    Raises
    ------
    ConsortiumError
        If it is none, or was altered after the authority signed it.
    """
    fields, content, signature = _open(document, where, "an invitation")
    try:
        invitation = Invitation(**fields)
        check_silo_name(invitation.silo)
        check_address(invitation.address)
        sound = is_public_key(invitation.coordinator) and len(bytes.fromhex(invitation.token)) == 32
        sound = sound and all(time.tzinfo is not None for time in (invitation.issued, invitation.expires))
        pem = invitation.authority.encode()
    except (TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise ConsortiumError(f"{where}: not an invitation that this version of silorec can read")
    authority = key_of_authority(parse_certificate(pem, where), where)
    if not is_signed_by_p384(authority, signature, _INVITATION, content):
        raise ConsortiumError(f"{where}: the invitation was altered after it was made; ask for another one")
    return invitation


def read_request(document: bytes, where: str) -> Request:
    """The request in a file's bytes; ``where`` names the file.

    Raises
    ------
    ConsortiumError
        If it is none, or was altered after the silo signed it.
    """
    fields, content, signature = _open(document, where, "a request")
    try:
        request = Request(**fields)
        check_silo_name(request.silo)
        texts = (request.consortium, request.key, request.node, request.tls, request.proof, request.replaces)
        sound = all(isinstance(text, str) for text in texts) and type(request.declared_users) is int
        sound = sound and is_public_key(request.key)
        sound = sound and (request.declared_users > 0 if request.kind == "join" else request.kind == "renew")
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise ConsortiumError(f"{where}: not a request that this version of silorec can read")
    if not verify(request.key, signature, _REQUEST + content):
        raise ConsortiumError(
            f"{where}: the request is not signed by the key in it: it was altered; ask the silo for another one"
        )
    return request


def _open(document: bytes, where: str, what: str) -> tuple[dict[str, Any], bytes, bytes]:
    try:
        content, signature = detach(document)
        fields = tomllib.loads(content.decode())
    except ValueError:
        raise ConsortiumError(f"{where}: not {what}, or not all of it; get it anew") from None
    if fields.pop("format", None) != FORMAT:
        raise ConsortiumError(f"{where}: not {what} of format {FORMAT}")
    return fields, content, signature
