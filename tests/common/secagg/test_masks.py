"""Masks are RFC 8439's key stream, cancel in pairs, look uniform, and belong to one run, round and owner."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import SecAggError
from common.secagg.context import RoundContext, silo_bytes
from common.secagg.masks import BLOCK_BYTES, Mask, apply_masks, expand, pair_mask, pair_sign, self_mask

CONTEXT = RoundContext("ab" * 32, bytes(range(32)))


def slow_block(key: bytes, counter: int) -> bytes:
    """The block function of RFC 8439, section 2.3, written out."""
    start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *struct.unpack("<8I", key), counter, 0, 0, 0]
    s = list(start)

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = (s[x] + s[y]) & 0xFFFFFFFF
            s[z] ^= s[x]
            s[z] = (s[z] << turn | s[z] >> (32 - turn)) & 0xFFFFFFFF

    for _ in range(10):
        for i in range(4):
            quarter(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<16I", *((x + y) & 0xFFFFFFFF for x, y in zip(s, start, strict=True)))


def slow_hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt, 32 bytes: one block."""
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def test_the_mask_of_the_zero_key_is_the_vector_of_rfc_8439() -> None:
    """Appendix A.1, test vectors 1 and 2."""
    wanted = bytes.fromhex(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )
    assert [int(w) for w in expand(bytes(32), 32)] == list(struct.unpack("<32I", wanted))
    assert [int(w) for w in expand(bytes(32), 16, np.uint64)] == list(struct.unpack("<16Q", wanted))


@pytest.mark.parametrize(("dtype", "letter", "size"), [(np.uint32, "I", 4), (np.uint64, "Q", 8)])
def test_masking_is_the_literal_loop(dtype: type, letter: str, size: int) -> None:
    rng = np.random.default_rng(3)
    n = 50
    words = rng.integers(0, 2 ** (8 * size), n, dtype=dtype)
    masks = [Mask(secrets.token_bytes(32), sign) for sign in (1, -1, -1, 1)]
    wanted = [int(w) for w in words]
    for key, sign in masks:
        stream = b"".join(slow_block(key, i) for i in range(-(-n * size // 64)))
        for i, word in enumerate(struct.unpack(f"<{n}{letter}", stream[: n * size])):
            wanted[i] = (wanted[i] + sign * word) % 2 ** (8 * size)
    apply_masks(words, masks)
    assert [int(w) for w in words] == wanted


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("extra", [-1, 0, 1, 17])
def test_blocks_join_without_a_seam(dtype: type, extra: int) -> None:
    key = bytes(range(32))
    n = 2 * BLOCK_BYTES // np.dtype(dtype).itemsize + extra
    whole = expand(key, n, dtype).tobytes()
    for block in (0, 1, BLOCK_BYTES // 64 - 1, BLOCK_BYTES // 64, 2 * BLOCK_BYTES // 64 - 1):
        assert whole[64 * block : 64 * (block + 1)] == slow_block(key, block)[: max(0, len(whole) - 64 * block)]


@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 300), silos=st.integers(2, 7), wide=st.booleans())
def test_pairwise_masks_cancel_and_self_masks_come_off(n: int, silos: int, wide: bool) -> None:
    dtype = np.uint64 if wide else np.uint32
    keys = [secrets.token_bytes(32) for _ in range(silos)]
    shared = {frozenset(pair): secrets.token_bytes(32) for pair in combinations(range(silos), 2)}
    seeds = [secrets.token_bytes(32) for _ in range(silos)]
    inputs = np.random.default_rng(n).integers(0, 2**32, (silos, n), dtype=dtype)
    total = np.zeros(n, dtype)
    for u in range(silos):
        y = inputs[u].copy()
        masks = [pair_mask(shared[frozenset((u, v))], CONTEXT, keys[u], keys[v]) for v in range(silos) if v != u]
        apply_masks(y, [*masks, self_mask(seeds[u], CONTEXT, u)])
        total += y
    apply_masks(total, [self_mask(seeds[u], CONTEXT, u).removal() for u in range(silos)])
    assert np.array_equal(total, inputs.sum(axis=0, dtype=dtype))


def test_the_signs_of_a_pair_are_opposite_and_follow_the_order_of_the_keys() -> None:
    low, high = b"\x00" * 31 + b"\xff", b"\x01" + b"\x00" * 31
    assert (pair_sign(low, high), pair_sign(high, low)) == (1, -1)
    with pytest.raises(SecAggError, match="same public key"):
        pair_sign(low, low)
    with pytest.raises(SecAggError):
        pair_sign(low[:31], high)


def test_keys_are_hkdf_of_everything_that_they_belong_to() -> None:
    secret, a, b = bytes(range(32)), b"\x01" * 32, b"\x02" * 32
    info = CONTEXT.bind("pair mask", a, b)
    fields = (b"silorec-secagg-1", b"pair mask", b"\xab" * 32, bytes(range(32)), a, b)
    assert info == b"".join(struct.pack(">I", len(f)) + f for f in fields)
    assert pair_mask(secret, CONTEXT, a, b) == (slow_hkdf(secret, info), 1)
    assert pair_mask(secret, CONTEXT, b, a) == (slow_hkdf(secret, info), -1)
    assert self_mask(secret, CONTEXT, 7) == (slow_hkdf(secret, CONTEXT.bind("self mask", b"\0\0\0\x07")), 1)


def test_no_two_purposes_rounds_runs_or_owners_share_a_key() -> None:
    secret, a, b, c = bytes(32), b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
    contexts = [CONTEXT, RoundContext("ac" * 32, CONTEXT.round_id), RoundContext(CONTEXT.run, bytes(32))]
    keys = [self_mask(secret, context, silo).key for context in contexts for silo in (0, 1)]
    keys += [pair_mask(secret, context, a, peer).key for context in contexts for peer in (b, c)]
    assert len(set(keys)) == 12


def test_all_256_bits_of_a_key_count() -> None:
    base = bytes(range(32))
    masks = {expand(base, 4).tobytes()}
    for bit in range(256):
        masks.add(expand((int.from_bytes(base, "big") ^ 1 << bit).to_bytes(32, "big"), 4).tobytes())
    assert len(masks) == 257


def test_a_masked_vector_looks_uniform() -> None:
    """Chi-square of 10^6 low and high bytes over 256 cells; beyond 6 deviations (of a normal tail): a false alarm in 10^9."""
    words = np.zeros(10**6, np.uint32)
    apply_masks(words, [Mask(secrets.token_bytes(32), -1)])
    for part in (words & np.uint32(255), words >> np.uint32(24)):
        counts = np.bincount(part.astype(np.int64), minlength=256)
        chi = float(((counts - 10**6 / 256) ** 2).sum() / (10**6 / 256))
        assert abs((chi / 255) ** (1 / 3) - (1 - 2 / (9 * 255))) / (2 / (9 * 255)) ** 0.5 < 6  # Wilson and Hilferty 1931


@pytest.mark.parametrize(
    "words",
    [np.zeros(4, np.int32), np.zeros(4, np.uint16), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2], np.zeros(4, ">u4")],
)
def test_vectors_that_do_not_fit_are_refused(words: np.ndarray) -> None:
    with pytest.raises(SecAggError):
        apply_masks(words, [Mask(bytes(32), 1)])


def test_malformed_masks_are_refused_before_anything_is_added() -> None:
    for bad in (Mask(bytes(31), 1), Mask(bytes(32), 0), Mask(bytes(32), 2)):
        words = np.zeros(4, np.uint32)
        with pytest.raises(SecAggError):
            apply_masks(words, [Mask(bytes(32), 1), bad])
        assert not words.any()
    locked = np.zeros(4, np.uint32)
    locked.flags.writeable = False
    with pytest.raises(SecAggError):
        apply_masks(locked, [])


def test_a_key_is_not_shown() -> None:
    key = secrets.token_bytes(32)
    assert repr(Mask(key, 1)) == "Mask(sign=1)"


@pytest.mark.parametrize(("run", "round_id"), [("AB" * 32, bytes(32)), ("ab" * 31, bytes(32)), ("ab" * 32, bytes(31))])
def test_a_context_has_one_form(run: str, round_id: bytes) -> None:
    with pytest.raises(SecAggError):
        RoundContext(run, round_id)


@pytest.mark.parametrize("silo", [-1, 2**16, True, 1.0])
def test_a_silo_is_a_small_whole_number(silo: int) -> None:
    with pytest.raises(SecAggError):
        silo_bytes(silo)
