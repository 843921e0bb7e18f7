"""A silo against a coordinator that does not keep to the protocol: each attack ends in a refusal, and changes nothing.

After each refusal the silo remembers what it remembered before, and the honest rest of the attempt gives the right sum.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from client.secagg import Participant, RamMemory
from common.errors import SecAggError
from common.secagg.context import RoundContext
from common.secagg.keys import Advertisement, EphemeralKeys
from common.secagg.messages import (
    BOX_RECORD,
    pack,
    pack_advertisements,
)
from common.secagg.roster import KeyRoster
from common.secagg.rules import Rules
from common.secagg.sealing import SharePair, seal
from common.secagg.shamir import Share
from tests.secure_silos import Attempt, Consortium, new_key, play, refused

#: Six silos: a sum takes four, a secret four shares, and the survivors four signatures.
N = 6


@pytest.fixture
def silos() -> Consortium:
    return Consortium(N)


# The honest protocol, so that nothing below holds because everything is refused.


@pytest.mark.parametrize("n", [3, 4, N, 10])
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_the_sum_over_those_who_gave_their_vectors_is_exact_whoever_drops_out(n: int, dtype: type) -> None:
    silos, rng = Consortium(n), np.random.default_rng(n)
    vectors = rng.integers(0, np.iinfo(dtype).max, (n, 50), dtype)
    spare = n - silos.rules.least
    for stage in range(5):
        vanish = set(rng.choice(n, spare, replace=False).tolist())
        gone = [vanish if stage == s else set() for s in range(5)]
        summed, survivors = play(silos, vectors, gone, dtype)
        assert set(survivors) == set(range(n)) - (vanish if stage < 3 else set())
        np.testing.assert_array_equal(summed, vectors[list(survivors)].sum(axis=0, dtype=dtype))


# Keys that are not the silos'.


def keys_of_the_coordinator(kind: str, silos: Consortium, attempt: Attempt, peer: int) -> Advertisement:
    real, mine, context = attempt.ads[peer], EphemeralKeys.generate(), silos.context(attempt.round_id)
    return {
        "both keys, the old signature": replace(real, mask_key=mine.mask_key, share_key=mine.share_key),
        "the key for masks": replace(real, mask_key=mine.mask_key),
        "the key for shares": replace(real, share_key=mine.share_key),
        "signed by a key of its own": mine.advertise(new_key(), context, peer),
        "signed by another silo": mine.advertise(silos.keys[peer + 1], context, peer),
        "the two keys exchanged": replace(real, mask_key=real.share_key, share_key=real.mask_key),
        "those of another silo under this number": replace(attempt.ads[peer + 1], silo=peer),
        "the signature altered": replace(real, signature=bytes([real.signature[0] ^ 1]) + real.signature[1:]),
        "of another run": mine.advertise(silos.keys[peer], RoundContext("0" * 64, attempt.round_id), peer),
        "of another round": mine.advertise(silos.keys[peer], silos.context(secrets.token_bytes(32)), peer),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "both keys, the old signature",
        "the key for masks",
        "the key for shares",
        "signed by a key of its own",
        "signed by another silo",
        "the two keys exchanged",
        "those of another silo under this number",
        "the signature altered",
        "of another run",
        "of another round",
    ],
)
def test_a_key_that_its_silo_did_not_sign_for_this_round_is_refused(kind: str, silos: Consortium) -> None:
    attempt = Attempt(silos).until("share")
    bad = keys_of_the_coordinator(kind, silos, attempt, 3)
    with refused(silos, r"silo 3 did not sign these keys for this run and round"):
        silos.participant(0).share(attempt.round_id, attempt.with_ads(bad))
    attempt.finish("share")


def test_keys_of_an_earlier_round_are_refused_in_a_new_one(silos: Consortium) -> None:
    old, new = Attempt(silos).until("share"), Attempt(silos).until("share")
    for replayed in (new.with_ads(old.ads[2]), old.advertisements):
        with refused(silos, "did not sign these keys for this run and round"):
            silos.participant(0).share(new.round_id, replayed)
    new.finish("share")


def test_a_silo_that_advertises_another_silos_key_as_its_own_is_refused(silos: Consortium) -> None:
    """Silo 4 colludes: it signs the key of silo 3, so that both would make the same masks."""
    attempt = Attempt(silos).until("share")
    copied, mine, context = attempt.ads[3], EphemeralKeys.generate(), silos.context(attempt.round_id)
    for mask_key, share_key in ((copied.mask_key, mine.share_key), (mine.mask_key, copied.share_key)):
        statement = context.bind("advertisement", (4).to_bytes(4, "big"), mask_key, share_key)
        bad = Advertisement(4, mask_key, share_key, silos.keys[4].sign(statement))
        with refused(silos, "silos 3 and 4 advertised the same key"):
            silos.participant(0).share(attempt.round_id, attempt.with_ads(bad))
    attempt.finish("share")


def test_a_point_of_small_order_is_refused(silos: Consortium) -> None:
    attempt = Attempt(silos).until("share")
    mine, context = EphemeralKeys.generate(), silos.context(attempt.round_id)
    statement = context.bind("advertisement", (4).to_bytes(4, "big"), bytes(32), mine.share_key)
    bad = Advertisement(4, bytes(32), mine.share_key, silos.keys[4].sign(statement))
    with refused(silos, "silo 4 advertised a point of small order"):
        silos.participant(0).share(attempt.round_id, attempt.with_ads(bad))
    attempt.finish("share")


def test_a_list_without_this_silos_own_keys_is_refused(silos: Consortium) -> None:
    """Left out; or others that this silo's key did sign for the same round, as after its state was put back from a copy."""
    attempt = Attempt(silos).until("share")
    others = pack_advertisements(one for silo, one in attempt.ads.items() if silo != 0)
    signed = EphemeralKeys.generate().advertise(silos.keys[0], silos.context(attempt.round_id), 0)
    for listed in (others, attempt.with_ads(signed)):
        with refused(silos, "does not hold the ones that this silo advertised"):
            silos.participant(0).share(attempt.round_id, listed)
    attempt.finish("share")


def test_two_lists_of_keys_for_one_round_are_refused_and_the_first_gets_the_same_answer(silos: Consortium) -> None:
    attempt = Attempt(silos).until("share")
    shorter = pack_advertisements(one for silo, one in attempt.ads.items() if silo != 5)
    first = silos.participant(0).share(attempt.round_id, attempt.advertisements)
    with refused(silos, "two lists of keys for one round"):
        silos.participant(0).share(attempt.round_id, shorter)
    assert silos.participant(0).share(attempt.round_id, attempt.advertisements) == first
    attempt.finish("share")


def test_a_name_is_used_for_one_round_and_no_other(silos: Consortium) -> None:
    old = Attempt(silos).until("share")
    assert silos.participant(0).advertise(old.round_id) == old.ads[0].to_bytes()
    new = Attempt(silos).until("share")
    with refused(silos, "the message is of an old round"):
        silos.participant(0).advertise(old.round_id)
    new.finish("share")
    with refused(silos, "the message is of an old round"):
        silos.participant(0).advertise(old.round_id)


def test_no_two_attempts_have_the_same_keys_or_seeds(silos: Consortium) -> None:
    seen: set[str] = set()
    for _ in range(5):
        Attempt(silos).until("mask")
        for silo in range(N):
            open_ = silos.state(silo)["open"]
            seen |= {open_["keys"][:64], open_["keys"][64:], open_["seed"]}
    assert len(seen) == 5 * N * 3


# Rosters.


def test_a_roster_with_another_key_for_this_silo_or_another_number_of_silos_is_refused(silos: Consortium) -> None:
    names, keys = silos.roster.names, silos.roster.keys
    forged = KeyRoster(names, (new_key().public_key, *keys[1:]))
    with pytest.raises(SecAggError, match="the roster's key of silo 0 is not this silo's own"):
        Participant(0, silos.run, silos.rules, forged, silos.keys[0], RamMemory())
    with pytest.raises(SecAggError, match="the roster's key of silo 1 is not this silo's own"):
        Participant(1, silos.run, silos.rules, silos.roster, silos.keys[0], RamMemory())
    with pytest.raises(SecAggError, match="the roster's key of silo 6 is not"):
        Participant(6, silos.run, silos.rules, silos.roster, silos.keys[0], RamMemory())
    with pytest.raises(SecAggError, match="the roster has 5 silos, the configuration 6"):
        Participant(0, silos.run, silos.rules, KeyRoster(names[:-1], keys[:-1]), silos.keys[0], RamMemory())


def test_a_peer_is_known_by_the_silos_own_roster_only(silos: Consortium) -> None:
    """The coordinator and all others know silo 3 by a key that is the coordinator's."""
    attempt, forger = Attempt(silos).until("share"), new_key()
    theirs = EphemeralKeys.generate().advertise(forger, silos.context(attempt.round_id), 3)
    forged = KeyRoster(silos.roster.names, tuple(forger.public_key if i == 3 else k for i, k in enumerate(silos.roster.keys)))
    misled = Participant(1, silos.run, silos.rules, forged, silos.keys[1], silos.memories[1])
    misled.share(attempt.round_id, attempt.with_ads(theirs))
    with refused(silos, "silo 3 did not sign"):
        silos.participant(0).share(attempt.round_id, attempt.with_ads(theirs))


def test_a_silo_beyond_the_roster_is_refused(silos: Consortium) -> None:
    attempt = Attempt(silos).until("share")
    stranger = EphemeralKeys.generate().advertise(new_key(), silos.context(attempt.round_id), N)
    with refused(silos, "silo 6 is not in the roster"):
        silos.participant(0).share(attempt.round_id, attempt.with_ads(stranger))
    attempt.finish("share")


def test_a_list_of_too_few_keys_is_refused(silos: Consortium) -> None:
    attempt = Attempt(silos).until("share")
    for left in (3, 2, 1):
        few = pack_advertisements(one for silo, one in attempt.ads.items() if silo < left)
        with refused(silos, f"{left} of 6 silos are there; a sum takes 4 or more"):
            silos.participant(0).share(attempt.round_id, few)
    attempt.finish("share")


# Sealed shares.


def altered(box: bytes, place: int) -> bytes:
    return box[:place] + bytes([box[place] ^ 1]) + box[place + 1 :]


@pytest.mark.parametrize("place", [0, 11, 12, 16, 100, 151, 152, 167])
def test_a_sealed_share_with_a_changed_bit_is_refused(place: int, silos: Consortium) -> None:
    attempt = Attempt(silos).until("mask")
    found, words = attempt.boxes_for(0), attempt.vectors[0].copy()
    with refused(silos, "the sealed shares from silo 2 for silo 0 were altered"):
        silos.participant(0).mask(attempt.round_id, pack(found | {2: altered(found[2], place)}), words)
    np.testing.assert_array_equal(words, attempt.vectors[0])
    attempt.finish("mask")


def test_a_sealed_share_opens_for_its_receiver_from_its_sender_in_its_round_only(silos: Consortium) -> None:
    old = Attempt(silos).until("mask")
    attempt = Attempt(silos).until("mask")
    found, words = attempt.boxes_for(0), attempt.vectors[0].copy()
    swapped = found | {2: found[3], 3: found[2]}
    for other in (found | {2: attempt.boxes_for(1)[2]}, found | {2: old.boxes_for(0)[2]}, swapped, old.boxes_for(0)):
        with refused(silos, "were altered, or are of another pair or round"):
            silos.participant(0).mask(attempt.round_id, pack(other), words)
    attempt.finish("mask")


def test_shares_from_itself_from_strangers_and_too_few_are_refused(silos: Consortium) -> None:
    attempt = Attempt(silos).until("mask")
    found, words = attempt.boxes_for(0), attempt.vectors[0].copy()
    few = {silo: found[silo] for silo in (1, 2)}
    bad: list[tuple[str, bytes]] = [
        (r"silos \[0\] are no neighbours", pack(found | {0: found[1]})),
        (r"silos \[6\] are no neighbours", pack(found | {6: found[1]})),
        ("2 neighbours have shared; the secrets of this silo take 4 holders", pack(few)),
        ("0 neighbours have shared", b""),
        ("not a list of records of 172 bytes", pack(found)[:-1]),
        ("not in the order of their numbers", pack(found)[BOX_RECORD:] + pack(found)[:BOX_RECORD]),
        ("not in the order of their numbers", pack(found)[:BOX_RECORD] * 2 + pack(found)[BOX_RECORD:]),
    ]
    for why, payload in bad:
        with refused(silos, why):
            silos.participant(0).mask(attempt.round_id, payload, words)
    attempt.finish("mask")


def test_shares_that_belong_to_another_holder_are_refused(silos: Consortium) -> None:
    """Silo 2 colludes, and seals for silo 0 what another silo holds, so that silo 0 would reveal nonsense in its own name."""
    attempt = Attempt(silos).until("share")
    context, keys = silos.context(attempt.round_id), EphemeralKeys.from_disk(bytes.fromhex(silos.state(2)["open"]["keys"]))
    attempt.share()
    pair = SharePair(Share(3, 1), Share(3, 2))
    key = keys.channel_key(context, attempt.ads[0], outgoing=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharePair, "holder", 0)
        box = seal(key, context, 2, 0, pair)
    with refused(silos, "silo 2 sealed shares of silo 3 for silo 0"):
        silos.participant(0).receive(attempt.round_id, pack(attempt.boxes_for(0) | {2: box}))
    attempt.finish("mask")


def test_two_lists_of_shares_for_one_round_are_refused(silos: Consortium) -> None:
    attempt = Attempt(silos).until("mask")
    silos.participant(0).receive(attempt.round_id, attempt.boxes[0])
    fewer = {silo: box for silo, box in attempt.boxes_for(0).items() if silo != 5}
    with refused(silos, "two lists of sealed shares for one round"):
        silos.participant(0).mask(attempt.round_id, pack(fewer), attempt.vectors[0].copy())
    silos.participant(0).receive(attempt.round_id, attempt.boxes[0])
    attempt.finish("mask")


# The masked vector.


def test_a_second_vector_under_the_same_masks_is_refused(silos: Consortium) -> None:
    attempt = Attempt(silos).until("sign")
    for vector in (attempt.vectors[0], np.zeros(5, np.uint32)):
        words = vector.copy()
        with refused(silos, "has given its vector of this round; another under the same masks would tell both"):
            silos.participant(0).mask(attempt.round_id, attempt.boxes[0], words)
        np.testing.assert_array_equal(words, vector)
    attempt.finish("sign")


def test_a_vector_that_cannot_be_masked_or_kept_leaves_the_round_open(silos: Consortium) -> None:
    attempt = Attempt(silos).until("mask")
    with refused(silos, "masks go on a contiguous"):
        silos.participant(0).mask(attempt.round_id, attempt.boxes[0], np.zeros(5))  # type: ignore[arg-type]

    def full() -> None:
        raise SecAggError("no room on the disk")

    with refused(silos, "no room on the disk"):
        silos.participant(0).mask(attempt.round_id, attempt.boxes[0], attempt.vectors[0].copy(), full)
    assert not silos.participant(0).has_masked(attempt.round_id)
    attempt.finish("mask")


def test_what_is_kept_is_masked_and_kept_before_it_counts_as_sent(silos: Consortium) -> None:
    attempt, seen = Attempt(silos).until("mask"), []
    words = attempt.vectors[0].copy()
    silos.participant(0).mask(attempt.round_id, attempt.boxes[0], words, lambda: seen.append(words.copy()))
    np.testing.assert_array_equal(seen, [words])
    assert (words != attempt.vectors[0]).all()
    assert silos.participant(0).has_masked(attempt.round_id)
    assert not silos.participant(0).has_masked(secrets.token_bytes(32))


# Messages of other rounds and other stages.


def test_messages_of_an_old_round_are_refused_at_every_stage(silos: Consortium) -> None:
    old = Attempt(silos).until("reveal")
    new = Attempt(silos).until("share")
    words = np.zeros(5, np.uint32)
    late: list[Callable[[], object]] = [
        lambda: silos.participant(0).share(old.round_id, old.advertisements),
        lambda: silos.participant(0).receive(old.round_id, old.boxes[0]),
        lambda: silos.participant(0).mask(old.round_id, old.boxes[0], words),
        lambda: silos.participant(0).sign(old.round_id, old.survivors),
        lambda: silos.participant(0).reveal(old.round_id, old.signatures),
    ]
    for ask in late:
        with refused(silos, "no round of this name is open here"):
            ask()
    assert not silos.participant(0).has_masked(old.round_id)
    new.share()
    with refused(silos, "were altered, or are of another pair or round"):
        silos.participant(0).mask(new.round_id, old.boxes[0], words)
    new.mask()
    new.sign()
    with refused(silos, "did not sign these survivors"):
        silos.participant(0).reveal(new.round_id, old.signatures)
    new.finish("reveal")


def test_stages_out_of_their_order_are_refused(silos: Consortium) -> None:
    """A second consortium of the same silos, which went further, gives the attacker real messages of the same round."""
    ahead = Attempt(silos).until("reveal")
    twin = Consortium(N)
    twin.keys, twin.roster, twin.run, twin.rules = silos.keys, silos.roster, silos.run, silos.rules
    attempt = Attempt(twin, ahead.vectors, round_id=ahead.round_id)
    early: dict[str, tuple[str, Callable[[], object]]] = {
        "share": ("no round of this name is open", lambda: twin.participant(0).share(ahead.round_id, ahead.advertisements)),
        "receive": ("shared its secrets", lambda: twin.participant(0).receive(ahead.round_id, ahead.boxes[0])),
        "mask": ("shared its secrets", lambda: twin.participant(0).mask(ahead.round_id, ahead.boxes[0], np.zeros(5, np.uint32))),
        "sign": ("has not given its vector", lambda: twin.participant(0).sign(ahead.round_id, ahead.survivors)),
        "reveal": ("has signed no survivors", lambda: twin.participant(0).reveal(ahead.round_id, ahead.signatures)),
    }
    for _, ask in early.values():
        with refused(twin, "no round of this name is open"):
            ask()
    attempt.advertise()
    for stage in ("receive", "mask", "sign", "reveal"):
        with refused(twin, early[stage][0]):
            early[stage][1]()
    attempt.share()
    for stage in ("sign", "reveal"):
        with refused(twin, early[stage][0]):
            early[stage][1]()
    attempt.mask()
    with refused(twin, early["reveal"][0]):
        early["reveal"][1]()
    attempt.finish("sign")


def test_a_new_round_ends_the_one_before_for_good(silos: Consortium) -> None:
    """Its secrets are gone, so that a coordinator cannot come back for what was not revealed."""
    old = Attempt(silos).until("sign")
    held = silos.state(0)["open"]["held"]
    Attempt(silos).until("share")
    kept = json.dumps(silos.state(0))
    assert len(held) == N
    assert not any(pair in kept for pair in held.values())
    with refused(silos, "no round of this name is open here"):
        silos.participant(0).sign(old.round_id, old.survivors)


def test_the_rules_are_the_silos_own() -> None:
    """A coordinator that would make do with five of ten does not get a share for it."""
    silos = Consortium(10)
    attempt = Attempt(silos)
    attempt.sum.rules = Rules(10, dropout=0.49, corrupt=0.0)
    attempt.advertise(range(6, 10))
    with refused(silos, "6 of 10 silos are there; a sum takes 7 or more"):
        silos.participant(0).share(attempt.round_id, attempt.advertisements)
