"""Sealed shares: of fixed size, for one receiver in one round, and no changed byte goes unseen."""

from __future__ import annotations

import secrets

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.errors import SecAggError
from common.secagg.context import RoundContext
from common.secagg.sealing import SEALED_BYTES, SharePair, seal, unseal
from common.secagg.shamir import P, Share

CONTEXT = RoundContext("ab" * 32, bytes(range(32)))
KEY = bytes(range(32))


def pair(holder: int, one: int = 1, other: int = 2) -> SharePair:
    return SharePair(Share(holder, one), Share(holder, other))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, P - 1), st.integers(0, P - 1), st.integers(0, 65535), st.integers(0, 65535))
def test_what_is_sealed_comes_out_and_has_one_size(one: int, other: int, sender: int, receiver: int) -> None:
    assume(sender != receiver)
    shares = pair(receiver, one, other)
    box = seal(KEY, CONTEXT, sender, receiver, shares)
    assert len(box) == SEALED_BYTES == 168
    assert unseal(KEY, CONTEXT, sender, receiver, box) == shares


def test_every_changed_byte_is_seen() -> None:
    box = seal(KEY, CONTEXT, 3, 4, pair(4))
    for i in range(len(box)):
        for bit in (1, 128):
            changed = bytearray(box)
            changed[i] ^= bit
            with pytest.raises(SecAggError, match="altered"):
                unseal(KEY, CONTEXT, 3, 4, bytes(changed))
    for wrong in (box[:-1], box + b"\0", b""):
        with pytest.raises(SecAggError, match="bytes"):
            unseal(KEY, CONTEXT, 3, 4, wrong)


def test_a_box_belongs_to_one_sender_receiver_round_run_and_key() -> None:
    box = seal(KEY, CONTEXT, 3, 4, pair(4))
    for key, context, sender, receiver in (
        (KEY, CONTEXT, 5, 4),
        (KEY, CONTEXT, 3, 5),
        (KEY, CONTEXT, 4, 3),
        (KEY, RoundContext("ac" * 32, CONTEXT.round_id), 3, 4),
        (KEY, RoundContext(CONTEXT.run, bytes(32)), 3, 4),
        (secrets.token_bytes(32), CONTEXT, 3, 4),
    ):
        with pytest.raises(SecAggError, match="altered, or are of another pair or round"):
            unseal(key, context, sender, receiver, box)


def test_shares_of_another_holder_are_refused_at_both_ends() -> None:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    with pytest.raises(SecAggError, match="silo 5 were to be sealed for silo 4"):
        seal(KEY, CONTEXT, 3, 4, pair(5))
    bound = CONTEXT.bind("sealed shares", (3).to_bytes(4, "big"), (4).to_bytes(4, "big"))

    def dishonest(plain: bytes) -> bytes:
        return bytes(12) + ChaCha20Poly1305(KEY).encrypt(bytes(12), plain, bound)

    good, moved = Share(4, 1).to_bytes(), Share(5, 1).to_bytes()
    assert unseal(KEY, CONTEXT, 3, 4, dishonest(good + good)) == pair(4, 1, 1)
    for plain in (moved + moved, good + moved, good[:4] + b"\xff" * 66 + good):
        with pytest.raises(SecAggError):
            unseal(KEY, CONTEXT, 3, 4, dishonest(plain))


def test_the_same_shares_are_never_sealed_alike() -> None:
    assert len({seal(KEY, CONTEXT, 3, 4, pair(4)) for _ in range(50)}) == 50


def test_keys_and_ends_that_cannot_be_are_refused() -> None:
    for key, sender, receiver in ((KEY[:31], 3, 4), (KEY, 4, 4), (KEY, -1, 4)):
        with pytest.raises(SecAggError):
            seal(key, CONTEXT, sender, receiver, pair(4))
