"""Which round of which run a key, a mask or a sealed share belongs to: part of every derivation, against replays."""

from __future__ import annotations

import re
from dataclasses import dataclass

from common.errors import SecAggError

ROUND_ID_BYTES = 32
KEY_BYTES = 32
MAX_SILOS = 2**16

_RUN = re.compile(r"[0-9a-f]{64}")
_PROTOCOL = b"silorec-secagg-1"


@dataclass(frozen=True)
class RoundContext:
    """One attempt at one sum.

    Parameters
    ----------
    run:
        Hash of the run's configuration, 64 lower-case hex characters.
    round_id:
        32 bytes that no other attempt has: a hash of the round's number and of what the coordinator drew for it.

    Raises
    ------
    SecAggError
        If one has another form.
    """

    run: str
    round_id: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.run, str) or _RUN.fullmatch(self.run) is None:
            raise SecAggError("run: must be a hash of 64 lower-case hex characters")
        if not isinstance(self.round_id, bytes) or len(self.round_id) != ROUND_ID_BYTES:
            raise SecAggError(f"round_id: must be {ROUND_ID_BYTES} bytes")

    def bind(self, purpose: str, *parts: bytes) -> bytes:
        """``purpose``, run, round and ``parts`` as bytes that nothing else gives: each after its length."""
        fields = (_PROTOCOL, purpose.encode(), bytes.fromhex(self.run), self.round_id, *parts)
        return b"".join(len(field).to_bytes(4, "big") + field for field in fields)

    def derive(self, secret: bytes, purpose: str, *parts: bytes) -> bytes:
        """A key of 32 bytes from ``secret`` for this purpose alone: HKDF-SHA256 (RFC 5869), no salt, :meth:`bind` as info.

        Raises
        ------
        SecAggError
            If ``secret`` is not 32 bytes long.
        """
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        if not isinstance(secret, bytes) or len(secret) != KEY_BYTES:
            raise SecAggError(f"a secret has {KEY_BYTES} bytes")
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=self.bind(purpose, *parts)).derive(secret)


def silo_bytes(silo: int) -> bytes:
    """A silo's number in 4 bytes, big end first.

    Raises
    ------
    SecAggError
        If it is no whole number from 0 to ``MAX_SILOS - 1``.
    """
    if isinstance(silo, bool) or not isinstance(silo, int) or not 0 <= silo < MAX_SILOS:
        raise SecAggError(f"a silo's number is whole, from 0 to {MAX_SILOS - 1}, not {silo!r}")
    return silo.to_bytes(4, "big")
