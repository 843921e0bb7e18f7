"""Masks that hide a vector of words: a key of 256 bits, stretched by ChaCha20, added modulo 2^b.

Bonawitz et al. 2017, section 4: silo u sends ``y_u = x_u + PRG(b_u) + Σ_{u<v} PRG(s_uv) - Σ_{u>v} PRG(s_uv)``. The pairwise masks
cancel in the sum, the self-masks are taken off by their shared seeds. The order of the silos is that of their public keys for
masks, compared as bytes: it needs no numbering, and both silos of a pair find opposite signs.

A mask is the ChaCha20 key stream (RFC 8439; nonce zero, from block 0) of its key, read as little-endian words. So a key must
make one mask only: keys come from :func:`self_mask` and :func:`pair_mask`, which bind them to run, round and owner by HKDF.
A key stream is never stored whole: it is made and added in blocks that stay in the processor's cache. Milliseconds per mask of a
million words, one core (best of 5 by ``time.perf_counter``): 0.9 for uint32, of which 0.84 is the key stream; 1.8 for uint64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import SecAggError
from common.privacy.chacha import cipher, write
from common.secagg.context import KEY_BYTES, RoundContext, silo_bytes

#: Bytes of a vector and of a key stream that are worked on at a time.
BLOCK_BYTES = 2**18

#: The 32-bit counter of blocks ends here (RFC 8439, section 2.3).
MAX_BYTES = 2**32 * 64


class Mask(NamedTuple):
    """A key of 32 bytes, and whether its mask is added (``sign = 1``) or taken off (``-1``)."""

    key: bytes
    sign: int

    def __repr__(self) -> str:
        return f"Mask(sign={self.sign})"

    def removal(self) -> Mask:
        """What takes this mask off again."""
        return Mask(self.key, -self.sign)


def self_mask(seed: bytes, context: RoundContext, silo: int) -> Mask:
    """The mask of silo ``silo`` alone, ``PRG(b_u)``, from its seed of 32 fresh bytes; the silo adds it.

    Raises
    ------
    SecAggError
        If the seed or the silo's number has another form.
    """
    return Mask(context.derive(seed, "self mask", silo_bytes(silo)), 1)


def pair_mask(shared: bytes, context: RoundContext, own: bytes, peer: bytes) -> Mask:
    """The mask that the owner of public key ``own`` shares with that of ``peer``, with the sign that it has for the former.

    ``shared`` is the X25519 secret of the two (32 bytes). The one whose key is lower, as bytes, adds.

    Raises
    ------
    SecAggError
        If the keys are equal, or something has not 32 bytes.
    """
    sign = pair_sign(own, peer)
    low, high = (own, peer) if sign == 1 else (peer, own)
    return Mask(context.derive(shared, "pair mask", low, high), sign)


def pair_sign(own: bytes, peer: bytes) -> int:
    """1 for the silo whose public key comes first in the order of bytes, -1 for the other.

    Raises
    ------
    SecAggError
        If the keys are equal, or not 32 bytes.
    """
    if len(own) != KEY_BYTES or len(peer) != KEY_BYTES:
        raise SecAggError(f"a public key has {KEY_BYTES} bytes")
    if own == peer:
        raise SecAggError("two silos have the same public key for masks; their pair has no order")
    return 1 if own < peer else -1


def apply_masks(words: NDArray[np.unsignedinteger[Any]], masks: Sequence[Mask]) -> None:
    """Add ``masks``, each with its sign, to ``words`` in place, modulo ``2^b``.

    ``words`` is a contiguous, writable uint32 or uint64 vector ``(n,)``; b is the size of its words. The time is that of the key
    streams: see :func:`expand` for the layout of one.

    Raises
    ------
    SecAggError
        If ``words`` has another form or is longer than a key stream (256 GiB), or a mask is malformed; ``words`` is as before.
    """
    _check(words)
    for mask in masks:
        if not isinstance(mask.key, bytes) or len(mask.key) != KEY_BYTES or mask.sign not in (1, -1):
            raise SecAggError(f"a mask has a key of {KEY_BYTES} bytes and the sign 1 or -1")
    streams = [(cipher(mask.key), np.add if mask.sign == 1 else np.subtract) for mask in masks]
    scratch = np.empty(min(len(words), BLOCK_BYTES // words.itemsize), words.dtype.newbyteorder("<"))
    for start in range(0, len(words), len(scratch) or 1):
        block = words[start : start + len(scratch)]  # stays in the cache while all masks pass over it
        key_stream = scratch[: len(block)]
        target = key_stream.view(np.uint8).data
        for stream, operation in streams:
            write(stream, target)
            operation(block, key_stream, out=block)


def expand(key: bytes, n: int, dtype: type[np.unsignedinteger[Any]] = np.uint32) -> NDArray[np.unsignedinteger[Any]]:
    """The first ``n`` words of a key's mask, ``(n,)``: little-endian words of the ChaCha20 key stream under the nonce zero.

    For tests and for showing what a mask is; :func:`apply_masks` does not allocate one.

    Raises
    ------
    SecAggError
        If the key has not 32 bytes, or ``n`` is beyond a key stream.
    """
    words = np.zeros(n, dtype)
    apply_masks(words, [Mask(key, 1)])
    return words


def _check(words: NDArray[np.unsignedinteger[Any]]) -> None:
    if words.dtype not in (np.uint32, np.uint64) or words.ndim != 1 or not words.flags.c_contiguous or not words.flags.writeable:
        raise SecAggError(
            f"masks go on a contiguous, writable vector of uint32 or uint64, not {words.dtype} of shape {words.shape}"
        )
    if words.nbytes > MAX_BYTES:
        raise SecAggError(f"{words.nbytes} bytes are more than a key stream has ({MAX_BYTES})")
