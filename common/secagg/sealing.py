"""Shares in transit: sealed for one silo by another, and relayed by a coordinator that can neither read nor move them.

ChaCha20-Poly1305 (RFC 8439, section 2.8) under a key of the two silos' X25519 exchange, one for each direction
(:meth:`common.secagg.keys.EphemeralKeys.channel_key`). Associated data are run, round, sender and receiver. A box has always
the same size, so its length says nothing. The nonce is random: a key seals one box in a round that goes well, and a
second one, should a message be made again, meets the same nonce with one chance in 2^96.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from common.errors import SecAggError
from common.secagg.context import KEY_BYTES, RoundContext, silo_bytes
from common.secagg.shamir import SHARE_BYTES, Share

NONCE_BYTES, TAG_BYTES = 12, 16
SEALED_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES


@dataclass(frozen=True)
class SharePair:
    """What one silo holds of another: a share of the seed of its self-mask, and one of its private key for masks.

    A silo reveals one of the two at most, whatever it is asked for.

    Raises
    ------
    SecAggError
        If the two belong to different holders.
    """

    seed: Share
    mask_secret: Share

    def __post_init__(self) -> None:
        if self.seed.silo != self.mask_secret.silo:
            raise SecAggError(f"one share is for silo {self.seed.silo}, the other for silo {self.mask_secret.silo}")

    @property
    def holder(self) -> int:
        """Number of the silo that holds them."""
        return self.seed.silo

    def to_bytes(self) -> bytes:
        """140 bytes: the share of the seed, then that of the key."""
        return self.seed.to_bytes() + self.mask_secret.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> SharePair:
        """What :meth:`to_bytes` wrote; :class:`SecAggError` for anything else."""
        return cls(Share.from_bytes(data[:SHARE_BYTES]), Share.from_bytes(data[SHARE_BYTES:]))


def seal(key: bytes, context: RoundContext, sender: int, receiver: int, shares: SharePair) -> bytes:
    """``shares`` of the silo ``sender`` for ``receiver``: nonce, ciphertext, tag; ``SEALED_BYTES`` = 168 bytes.

    ``key`` is the sender's outgoing channel key (32 bytes).

    Raises
    ------
    SecAggError
        If the shares are not those of ``receiver``, the two are one, or the key has another length.
    """
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    bound = _bound(key, context, sender, receiver)
    if shares.holder != receiver:
        raise SecAggError(f"the shares of silo {shares.holder} were to be sealed for silo {receiver}")
    nonce = os.urandom(NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, shares.to_bytes(), bound)


def unseal(key: bytes, context: RoundContext, sender: int, receiver: int, box: bytes) -> SharePair:
    """What ``sender`` sealed for ``receiver`` in this round; ``key`` is the receiver's incoming channel key (32 bytes).

    Raises
    ------
    SecAggError
        If any byte was changed, it was sealed by, for or in another, or what is in it are not the receiver's shares.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    bound = _bound(key, context, sender, receiver)
    if len(box) != SEALED_BYTES:
        raise SecAggError(f"the sealed shares of silo {sender} have {len(box)} bytes, not {SEALED_BYTES}")
    try:
        plain = ChaCha20Poly1305(key).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], bound)
    except InvalidTag:
        raise SecAggError(
            f"the sealed shares from silo {sender} for silo {receiver} were altered, or are of another pair or round"
        ) from None
    shares = SharePair.from_bytes(plain)
    if shares.holder != receiver:
        raise SecAggError(f"silo {sender} sealed shares of silo {shares.holder} for silo {receiver}")
    return shares


def _bound(key: bytes, context: RoundContext, sender: int, receiver: int) -> bytes:
    if len(key) != KEY_BYTES:
        raise SecAggError(f"a channel key has {KEY_BYTES} bytes")
    if sender == receiver:
        raise SecAggError(f"silo {sender} does not send shares to itself")
    return context.bind("sealed shares", silo_bytes(sender), silo_bytes(receiver))
