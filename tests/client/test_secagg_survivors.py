"""A silo against a coordinator that tells silos different survivors, or wants more secrets than the sum takes."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.secagg.context import RoundContext
from common.secagg.graph import Graph, draw, graph_seed
from common.secagg.keys import Advertisement, EphemeralKeys
from common.secagg.messages import (
    Secret,
    pack,
    pack_advertisements,
    pack_survivors,
    survivors_statement,
    unpack,
    unpack_revealed,
)
from common.secagg.sealing import SharePair, seal
from common.secagg.shamir import split
from tests.secure_silos import Attempt, Consortium, refused

#: Six silos: a sum takes four, a secret four shares, and the survivors four signatures.
N = 6


@pytest.fixture
def silos() -> Consortium:
    return Consortium(N)


def test_another_set_of_survivors_in_the_same_round_is_refused(silos: Consortium) -> None:
    attempt = Attempt(silos).until("sign")
    first = silos.participant(0).sign(attempt.round_id, attempt.survivors)
    for fewer in (range(5), (0, 2, 3, 4), (0, 1, 2, 3, 5)):
        with refused(silos, "two sets of survivors in one round"):
            silos.participant(0).sign(attempt.round_id, pack_survivors(fewer))
    assert silos.participant(0).sign(attempt.round_id, attempt.survivors) == first
    attempt.finish("sign")
    with refused(silos, "two sets of survivors in one round"):
        silos.participant(0).sign(attempt.round_id, pack_survivors(range(5)))
    assert silos.participant(0).sign(attempt.round_id, attempt.survivors) == first


def test_halves_that_are_told_different_survivors_do_not_both_open_the_sum() -> None:
    """Of ten silos one colludes and signs both sets. A quorum is six, and of nine honest silos only one half has five."""
    silos = Consortium(10)
    attempt = Attempt(silos).until("sign")
    halves = {range(9): (0, 1, 2, 3), range(1, 10): (5, 6, 7, 8, 9)}
    for survivors, half in halves.items():
        for silo in half:
            silos.participant(silo).sign(attempt.round_id, pack_survivors(survivors))
    small, large = (attempt.signatures_by(sorted({*half, 4}), survivors) for survivors, half in halves.items())
    for silo in halves[range(9)]:
        with refused(silos, "5 silos signed the survivors; a quorum is 6", silo):
            silos.participant(silo).reveal(attempt.round_id, small)
        with refused(silos, "silo 9 is no survivor|did not sign these survivors", silo):
            silos.participant(silo).reveal(attempt.round_id, large)
    assert silos.participant(9).reveal(attempt.round_id, large)


def test_two_equal_halves_open_nothing(silos: Consortium) -> None:
    attempt = Attempt(silos).until("sign")
    halves = {range(5): (0, 1, 2), range(1, 6): (3, 4, 5)}
    for survivors, half in halves.items():
        for silo in half:
            silos.participant(silo).sign(attempt.round_id, pack_survivors(survivors))
    for survivors, half in halves.items():
        for silo in half:
            with refused(silos, "3 silos signed the survivors; a quorum is 4", silo):
                silos.participant(silo).reveal(attempt.round_id, attempt.signatures_by(half, survivors))


def test_a_silo_signs_no_set_without_itself_with_strangers_or_with_too_few(silos: Consortium) -> None:
    attempt = Attempt(silos)
    attempt.advertise({5})
    attempt.share()
    attempt.mask()
    bad: list[tuple[str, bytes]] = [
        ("the vector of this silo is not in the sum", pack_survivors(range(1, 5))),
        (r"survivors \[5\] are not in this round", pack_survivors(range(6))),
        (r"survivors \[65535\] are not in this round", pack_survivors((0, 1, 2, 3, 65535))),
        ("3 survivors are too few: a sum is over 4 silos or more", pack_survivors((0, 1, 2))),
        ("the vector of this silo is not in the sum", b""),
        ("not in the order of their numbers", b"".join(i.to_bytes(4, "big") for i in (0, 2, 1, 3))),
        ("not in the order of their numbers", b"".join(i.to_bytes(4, "big") for i in (0, 1, 2, 2))),
        ("not a list of records of 4 bytes", pack_survivors(range(5)) + b"\0"),
    ]
    for why, payload in bad:
        with refused(silos, why):
            silos.participant(0).sign(attempt.round_id, payload)
    attempt.finish("sign")


def test_a_survivor_whose_shares_this_silo_does_not_hold_is_refused(silos: Consortium) -> None:
    """The coordinator keeps the box of silo 5 back from silo 0, whose vector then has no mask with it, and counts both."""
    attempt = Attempt(silos).until("mask")
    attempt.boxes[0] = pack({silo: box for silo, box in attempt.boxes_for(0).items() if silo != 5})
    attempt.mask()
    with refused(silos, r"silos \[5\] count as survivors, but this silo has no shares of theirs"):
        silos.participant(0).sign(attempt.round_id, pack_survivors(range(6)))
    silos.participant(0).sign(attempt.round_id, pack_survivors(range(5)))


def test_signatures_of_another_set_round_or_run_by_others_or_too_few_open_nothing(silos: Consortium) -> None:
    attempt = Attempt(silos)
    attempt.advertise()
    attempt.share()
    attempt.mask({5})
    attempt.sign()
    named, this = range(5), silos.context(attempt.round_id)
    good = unpack(attempt.signatures, 68, "signatures")
    forged = "did not sign these survivors: the signature is forged, or of another set or round"

    def signed(survivors: Any = named, signers: Any = (0, 1, 2, 3), context: RoundContext = this) -> bytes:
        return attempt.signatures_by(signers, survivors, context)

    bad: list[tuple[str, bytes]] = [
        (forged, signed(survivors=range(4))),
        (forged, signed(context=replace(this, round_id=secrets.token_bytes(32)))),
        (forged, signed(context=replace(this, run="0" * 64))),
        ("silo 3 " + forged, pack(good | {3: good[2]})),
        ("silo 3 " + forged, pack(good | {3: bytes(64)})),
        ("silo 5 is no survivor of this round, and signs for it", signed(signers=range(6))),
        ("silo 9 is no survivor", pack(good | {9: good[2]})),
        ("3 silos signed the survivors; a quorum is 4", signed(signers=(1, 2, 3))),
        ("0 silos signed the survivors", b""),
        ("not in the order of their numbers", signed(signers=(1, 2, 3)) + signed(signers=(3,))),
    ]
    for why, payload in bad:
        with refused(silos, why):
            silos.participant(0).reveal(attempt.round_id, payload)
    attempt.finish("reveal")


def test_a_signature_under_another_graph_opens_nothing(silos: Consortium) -> None:
    """The same survivors, but other keys were shown to those who signed."""
    attempt = Attempt(silos).until("reveal")
    context = silos.context(attempt.round_id)
    others = [ad for silo, ad in attempt.ads.items() if silo != 5]
    statement = survivors_statement(context, graph_seed(context, others), range(6))
    with refused(silos, "did not sign these survivors"):
        silos.participant(0).reveal(attempt.round_id, pack({silo: silos.keys[silo].sign(statement) for silo in range(4)}))
    attempt.finish("reveal")


def test_of_each_peer_one_secret_is_revealed_once_and_for_one_set_of_survivors(silos: Consortium) -> None:
    attempt = Attempt(silos)
    attempt.advertise()
    attempt.share({5})
    attempt.mask({4})
    attempt.sign()
    first = silos.participant(0).reveal(attempt.round_id, attempt.signatures)
    told = unpack_revealed(first)
    assert {owner: kind for owner, (kind, _) in told.items()} == dict.fromkeys(range(4), Secret.SEED) | {4: Secret.MASK_KEY}
    assert {share.silo for _, share in told.values()} == {0}
    for survivors, why in ((range(5), "did not sign these"), ((0, 1, 2, 3, 5), "did not sign these")):
        with refused(silos, "two sets of survivors"):
            silos.participant(0).sign(attempt.round_id, pack_survivors(survivors))
        with refused(silos, why):
            silos.participant(0).reveal(attempt.round_id, attempt.signatures_by(range(4), survivors))
    more = attempt.signatures_by(range(4), range(4))  # another quorum for the same survivors opens the same
    assert silos.participant(0).reveal(attempt.round_id, more) == first
    attempt.finish("reveal")


def alone(silos: Consortium) -> tuple[bytes, Graph, dict[int, bytes]]:
    """Silo 0 of many, after masking: the round, its graph and the boxes; the others are played by hand as far as it sees them."""
    round_id = secrets.token_bytes(32)
    context, this = silos.context(round_id), silos.participant(0)
    keys = {silo: EphemeralKeys.generate() for silo in range(1, len(silos))}
    mine = Advertisement.from_bytes(this.advertise(round_id))
    ads = {0: mine} | {silo: one.advertise(silos.keys[silo], context, silo) for silo, one in keys.items()}
    graph = draw(silos.rules.plan(len(silos)), ads, graph_seed(context, ads.values()))
    this.share(round_id, pack_advertisements(ads.values()))
    boxes = {}
    for peer in graph.neighbours(0):
        holders = graph.holders(peer)
        two = [split(secret, holders, graph.plan.threshold) for secret in (secrets.token_bytes(32), keys[peer].mask_secret())]
        (pair,) = (SharePair(*pair) for pair in zip(*two, strict=True) if pair[0].silo == 0)
        boxes[peer] = seal(keys[peer].channel_key(context, mine, outgoing=True), context, peer, 0, pair)
    return round_id, graph, boxes


def test_survivors_that_would_cut_a_sparse_graph_in_parts_are_refused() -> None:
    """66 silos on a ring of 28 neighbours each; the coordinator names the dropouts when it knows the ring."""
    silos = Consortium(66, corrupt=0.0)
    round_id, graph, boxes = alone(silos)
    assert not graph.plan.is_complete
    strangers = sorted(set(range(66)) - set(graph.holders(0)))
    with refused(silos, "are no neighbours of this one"):
        silos.participant(0).receive(round_id, pack(boxes | {strangers[0]: boxes[graph.neighbours(0)[0]]}))
    silos.participant(0).mask(round_id, pack(boxes), np.zeros(5, np.uint32))
    place, half = graph.ring.index(0), graph.plan.degree // 2

    def without(gone: set[int]) -> bytes:
        assert 66 - len(gone) >= silos.rules.least
        return pack_survivors(set(range(66)) - gone)

    row = {graph.ring[(place + step) % 66] for step in range(1, half + 1)}
    holders = {graph.ring[(place + step) % 66] for step in range(20, 41)}
    with refused(silos, "0 of 14 silos in a row survived, and 1 must"):
        silos.participant(0).sign(round_id, without(row))
    with refused(silos, r"8 holders of the secrets of silo \d+ are left; the threshold is 9|silos in a row survived"):
        silos.participant(0).sign(round_id, without(holders))
    one_less = set(sorted(row)[1:])
    assert len(silos.participant(0).sign(round_id, without(one_less))) == 64
