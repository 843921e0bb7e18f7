"""Keys of a round: agreed on by both ends, signed for one round, and refused when anything about them is wrong."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from common.errors import FederationError, SecAggError
from common.privacy.signing import SigningKey, create_key
from common.secagg.context import RoundContext
from common.secagg.keys import (
    ADVERTISEMENT_BYTES,
    Advertisement,
    EphemeralKeys,
    recovered_pair_mask,
    verify_advertisement,
    verify_advertisements,
)
from common.secagg.masks import apply_masks

CONTEXT = RoundContext("ab" * 32, bytes(range(32)))
FIELD = 2**255 - 19

# Points of order 1, 2, 4 and 8 on the curve and its twist, with their second spellings: cr.yp.to/ecdh.html, "Validate".
SMALL_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    FIELD - 1,
    FIELD,
    FIELD + 1,
]


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> list[SigningKey]:
    folder: Path = tmp_path_factory.mktemp("keys")
    return [create_key(folder / f"{i}.pem") for i in range(4)]


@pytest.fixture
def keys() -> list[EphemeralKeys]:
    return [EphemeralKeys.generate() for _ in range(4)]


def advertised(signing: list[SigningKey], keys: list[EphemeralKeys]) -> list[Advertisement]:
    return [k.advertise(s, CONTEXT, i) for i, (s, k) in enumerate(zip(signing, keys, strict=True))]


def roster(signing: list[SigningKey]) -> dict[int, str]:
    return {i: key.public_key for i, key in enumerate(signing)}


def resigned(signing_key: SigningKey, silo: int, mask_key: bytes, share_key: bytes) -> Advertisement:
    """Signed by the silo itself: what a dishonest silo could send."""
    return Advertisement(
        silo, mask_key, share_key, signing_key.sign(CONTEXT.bind("advertisement", silo.to_bytes(4, "big"), mask_key, share_key))
    )


def test_the_exchange_is_that_of_rfc_7748() -> None:
    """Section 6.1: Alice's and Bob's keys, and their secret, seen through the derivation of the mask."""
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    ends = [X25519PrivateKey.from_private_bytes(private) for private in (alice, bob)]
    other = X25519PrivateKey.generate()
    a, b = (EphemeralKeys(end, other) for end in ends)
    assert a.mask_key.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert b.mask_key.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    low, high = sorted((a.mask_key, b.mask_key))
    wanted = CONTEXT.derive(shared, "pair mask", low, high)
    assert a.pair_mask(CONTEXT, Advertisement(1, b.mask_key, b.share_key, bytes(64))) == (wanted, 1)
    assert b.pair_mask(CONTEXT, Advertisement(0, a.mask_key, a.share_key, bytes(64))) == (wanted, -1)


def test_honest_advertisements_pass_in_any_order(signing: list[SigningKey], keys: list[EphemeralKeys]) -> None:
    ads = advertised(signing, keys)
    found = verify_advertisements(reversed(ads), roster(signing), CONTEXT)
    assert list(found) == [0, 1, 2, 3]
    assert list(found.values()) == ads
    for ad in ads:
        assert len(ad.to_bytes()) == ADVERTISEMENT_BYTES == 132
        assert Advertisement.from_bytes(ad.to_bytes()) == ad


def test_both_ends_of_a_pair_agree_and_third_parties_do_not(signing: list[SigningKey], keys: list[EphemeralKeys]) -> None:
    ads = advertised(signing, keys)
    one, other = keys[0].pair_mask(CONTEXT, ads[1]), keys[1].pair_mask(CONTEXT, ads[0])
    assert one.key == other.key
    assert one.sign == -other.sign
    assert keys[0].channel_key(CONTEXT, ads[1], outgoing=True) == keys[1].channel_key(CONTEXT, ads[0], outgoing=False)
    derived = {one.key, keys[0].pair_mask(CONTEXT, ads[2]).key, keys[2].pair_mask(CONTEXT, ads[1]).key}
    derived |= {keys[i].channel_key(CONTEXT, ads[j], outgoing=True) for i in range(4) for j in range(4) if i != j}
    assert len(derived) == 15


def test_a_recovered_key_gives_the_mask_that_its_peer_applied(signing: list[SigningKey], keys: list[EphemeralKeys]) -> None:
    ads = advertised(signing, keys)
    for peer in (1, 2, 3):
        words = np.zeros(10, np.uint32)
        apply_masks(words, [keys[peer].pair_mask(CONTEXT, ads[0])])
        assert words.any()
        apply_masks(words, [recovered_pair_mask(keys[0].mask_secret(), CONTEXT, ads[0], ads[peer]).removal()])
        assert not words.any()
    with pytest.raises(SecAggError, match="not the key for masks that silo 0 advertised"):
        recovered_pair_mask(keys[1].mask_secret(), CONTEXT, ads[0], ads[2])
    with pytest.raises(SecAggError):
        recovered_pair_mask(bytes(31), CONTEXT, ads[0], ads[2])


@pytest.mark.parametrize("context", [RoundContext("ac" * 32, CONTEXT.round_id), RoundContext(CONTEXT.run, bytes(32))])
def test_an_advertisement_of_another_run_or_round_is_refused(
    context: RoundContext, signing: list[SigningKey], keys: list[EphemeralKeys]
) -> None:
    old = keys[0].advertise(signing[0], context, 0)
    verify_advertisement(old, signing[0].public_key, context, 0)
    with pytest.raises(SecAggError, match="another round"):
        verify_advertisement(old, signing[0].public_key, CONTEXT, 0)


def test_a_key_that_the_coordinator_puts_in_is_refused(signing: list[SigningKey], keys: list[EphemeralKeys]) -> None:
    ads = advertised(signing, keys)
    own = EphemeralKeys.generate()
    for forged in (
        replace(ads[0], mask_key=own.mask_key),
        replace(ads[0], share_key=own.share_key),
        replace(ads[0], mask_key=ads[0].share_key, share_key=ads[0].mask_key),
        replace(ads[0], signature=ads[1].signature),
        own.advertise(signing[1], CONTEXT, 0),  # another silo's signature
        keys[0].advertise(signing[0], CONTEXT, 1),  # its own signature in another's place
    ):
        with pytest.raises(SecAggError):
            verify_advertisement(forged, signing[0].public_key, CONTEXT, 0)
        with pytest.raises(SecAggError):
            verify_advertisements([forged, *ads[2:]], roster(signing), CONTEXT)
    assert issubclass(SecAggError, FederationError)


def test_every_byte_of_an_advertisement_counts(signing: list[SigningKey], keys: list[EphemeralKeys]) -> None:
    data = advertised(signing, keys)[0].to_bytes()
    for i in range(len(data)):
        changed = bytearray(data)
        changed[i] ^= 1
        with pytest.raises(SecAggError):
            verify_advertisement(Advertisement.from_bytes(bytes(changed)), signing[0].public_key, CONTEXT, 0)
    for size in (0, 131, 133):
        with pytest.raises(SecAggError):
            Advertisement.from_bytes(bytes(size))


@pytest.mark.parametrize("u", SMALL_ORDER)
@pytest.mark.parametrize("high_bit", [0, 1 << 255])
def test_points_of_small_order_are_refused(u: int, high_bit: int, signing: list[SigningKey], keys: list[EphemeralKeys]) -> None:
    point = (u | high_bit).to_bytes(32, "little")
    for mask_key, share_key in ((point, keys[0].share_key), (keys[0].mask_key, point)):
        ad = resigned(signing[0], 0, mask_key, share_key)
        with pytest.raises(SecAggError, match=r"small order|canonical"):
            verify_advertisement(ad, signing[0].public_key, CONTEXT, 0)
    with pytest.raises(SecAggError, match="small order"):
        keys[1].pair_mask(CONTEXT, resigned(signing[0], 0, point, keys[0].share_key))
    with pytest.raises(SecAggError, match="small order"):
        keys[1].channel_key(CONTEXT, resigned(signing[0], 0, keys[0].mask_key, point), outgoing=True)


def test_a_second_spelling_of_a_good_point_is_refused(signing: list[SigningKey], keys: list[EphemeralKeys]) -> None:
    """X25519 ignores the highest bit: the same key, under another name, would pass as a different one."""
    spelling = keys[1].mask_key[:31] + bytes([keys[1].mask_key[31] | 0x80])
    ad = resigned(signing[0], 0, spelling, keys[0].share_key)
    with pytest.raises(SecAggError, match="canonical"):
        verify_advertisement(ad, signing[0].public_key, CONTEXT, 0)


Change = Callable[[list[SigningKey], list[EphemeralKeys]], Advertisement]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s, k: resigned(s[1], 1, k[0].mask_key, k[1].share_key), "silos 0 and 1 advertised the same key"),
        (lambda s, k: resigned(s[1], 1, k[1].mask_key, k[0].share_key), "silos 0 and 1 advertised the same key"),
        (lambda s, k: resigned(s[1], 1, k[0].share_key, k[1].share_key), "silos 0 and 1 advertised the same key"),
        (lambda s, k: resigned(s[1], 1, k[1].mask_key, k[1].mask_key), "they must be two"),
        (lambda s, k: k[1].advertise(s[0], CONTEXT, 0), "silo 0 advertised twice"),
        (lambda s, k: k[1].advertise(s[1], CONTEXT, 9), "not in the roster"),
    ],
)
def test_silos_share_no_keys(change: Change, said: str, signing: list[SigningKey], keys: list[EphemeralKeys]) -> None:
    ads = advertised(signing, keys)
    with pytest.raises(SecAggError, match=said):
        verify_advertisements([ads[0], change(signing, keys), ads[2]], roster(signing), CONTEXT)


def test_a_roster_with_one_key_twice_is_refused(signing: list[SigningKey], keys: list[EphemeralKeys]) -> None:
    ads = [keys[i].advertise(signing[0], CONTEXT, i) for i in (0, 1)]
    with pytest.raises(SecAggError, match="same long-term key"):
        verify_advertisements(ads, {0: signing[0].public_key, 1: signing[0].public_key}, CONTEXT)


def test_a_silo_does_not_pair_with_itself(signing: list[SigningKey], keys: list[EphemeralKeys]) -> None:
    ad = advertised(signing, keys)[0]
    with pytest.raises(SecAggError):
        keys[0].pair_mask(CONTEXT, ad)
    with pytest.raises(SecAggError):
        keys[0].channel_key(CONTEXT, ad, outgoing=True)


def test_private_keys_are_neither_shown_nor_copied(keys: list[EphemeralKeys]) -> None:
    assert repr(keys[0]) == "EphemeralKeys()"
    with pytest.raises(TypeError):
        pickle.dumps(keys[0])
    with pytest.raises(TypeError):
        copy.deepcopy(keys[0])
