"""The bytes of each stage: lists of records of a fixed size, each for one silo, in the order of the silos' numbers.

=============  ==========================================  =====================================================
stage          what a silo gets                            what it gives
=============  ==========================================  =====================================================
advertise      nothing but the round                       its :class:`Advertisement`, 132 bytes
share          all advertisements                          a sealed pair of shares for each neighbour, 172 bytes
mask           the pairs sealed for it; the question       its masked vector
sign           the survivors, 4 bytes each                 its signature of this list, 64 bytes
reveal         a quorum of signatures, 68 bytes each       one share of each peer's secrets, 75 bytes
=============  ==========================================  =====================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from enum import IntEnum
from itertools import pairwise

from common.errors import SecAggError
from common.secagg.context import MAX_SILOS, ROUND_ID_BYTES, RoundContext, silo_bytes
from common.secagg.keys import ADVERTISEMENT_BYTES, Advertisement
from common.secagg.sealing import SEALED_BYTES
from common.secagg.shamir import SHARE_BYTES, Share

NUMBER_BYTES = 4
SIGNATURE_BYTES = 64
BOX_RECORD = NUMBER_BYTES + SEALED_BYTES
SIGNATURE_RECORD = NUMBER_BYTES + SIGNATURE_BYTES
REVEALED_RECORD = NUMBER_BYTES + 1 + SHARE_BYTES
NONCE_BYTES = 32


class Secret(IntEnum):
    """Which of a peer's two secrets a revealed share belongs to."""

    SEED = 0
    """Of the self-mask of a silo whose vector is in the sum."""
    MASK_KEY = 1
    """The private key for pairwise masks of a silo that dropped out after it shared."""


def round_id(nonce: bytes, question: str) -> bytes:
    """32 bytes that name one attempt at one sum: SHA-256 of the coordinator's ``nonce`` (32) and the question's digest (64 hex).

    All keys and masks are bound to it. So silos that were asked different questions do not have the same masks, and their sum
    is noise: a coordinator cannot single one out by giving it another model (Pasquini et al. 2022, CCS, "Eluding Secure
    Aggregation in Federated Learning via Model Inconsistency").

    Raises
    ------
    SecAggError
        If one has another form.
    """
    if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
        raise SecAggError(f"the nonce of a round has {NONCE_BYTES} bytes")
    try:
        digest = bytes.fromhex(question)
    except (TypeError, ValueError):
        digest = b""
    if len(digest) != ROUND_ID_BYTES:
        raise SecAggError("a question's digest has 64 hex characters")
    return hashlib.sha256(b"silorec-secagg-round-1\0" + nonce + digest).digest()


def survivors_statement(context: RoundContext, graph_seed: bytes, survivors: Iterable[int]) -> bytes:
    """What silos sign: these, under the graph of these keys, are in the sum of this round, and no others."""
    return context.bind("survivors", graph_seed, *(silo_bytes(silo) for silo in sorted(survivors)))


def pack_advertisements(advertisements: Iterable[Advertisement]) -> bytes:
    """In the order of the silos' numbers."""
    return b"".join(one.to_bytes() for one in sorted(advertisements, key=lambda one: one.silo))


def unpack_advertisements(data: bytes) -> tuple[Advertisement, ...]:
    """What :func:`pack_advertisements` wrote, nothing of it verified yet; :class:`SecAggError` for anything else."""
    found = tuple(Advertisement.from_bytes(record) for record in _records(data, ADVERTISEMENT_BYTES, "advertisements"))
    _check_order([one.silo for one in found], "advertisements")
    return found


def pack(records: Mapping[int, bytes]) -> bytes:
    """Each silo's number and its record, in the order of numbers."""
    return b"".join(silo_bytes(silo) + records[silo] for silo in sorted(records))


def unpack(data: bytes, size: int, what: str) -> dict[int, bytes]:
    """Silo to record, from records of ``size`` bytes in all; :class:`SecAggError` if ``data`` are no such list."""
    records = {int.from_bytes(r[:NUMBER_BYTES], "big"): r[NUMBER_BYTES:] for r in _records(data, size, what)}
    numbers = [int.from_bytes(r[:NUMBER_BYTES], "big") for r in _records(data, size, what)]
    _check_order(numbers, what)
    return records


def pack_survivors(survivors: Iterable[int]) -> bytes:
    """Their numbers, in order."""
    return pack(dict.fromkeys(survivors, b""))


def unpack_survivors(data: bytes) -> tuple[int, ...]:
    """What :func:`pack_survivors` wrote; :class:`SecAggError` for anything else."""
    return tuple(unpack(data, NUMBER_BYTES, "survivors"))


def pack_revealed(shares: Mapping[int, tuple[Secret, Share]]) -> bytes:
    """Owner to the one share of its secrets that is revealed."""
    return pack({owner: bytes([kind]) + share.to_bytes() for owner, (kind, share) in shares.items()})


def unpack_revealed(data: bytes) -> dict[int, tuple[Secret, Share]]:
    """What :func:`pack_revealed` wrote; :class:`SecAggError` for anything else."""
    found = {}
    for owner, record in unpack(data, REVEALED_RECORD, "revealed shares").items():
        try:
            found[owner] = Secret(record[0]), Share.from_bytes(record[1:])
        except ValueError:
            raise SecAggError(f"a revealed share of silo {owner} is of no known kind") from None
    return found


def _records(data: bytes, size: int, what: str) -> list[bytes]:
    if not isinstance(data, bytes) or len(data) % size or len(data) > size * MAX_SILOS:
        raise SecAggError(f"{what}: not a list of records of {size} bytes, one for each silo at most")
    return [data[start : start + size] for start in range(0, len(data), size)]


def _check_order(silos: list[int], what: str) -> None:
    for silo in silos:
        silo_bytes(silo)
    if any(one >= other for one, other in pairwise(silos)):
        raise SecAggError(f"{what}: silos are not in the order of their numbers, each once")
