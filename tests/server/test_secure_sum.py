"""The coordinator's part against silos that vanish or lie: those that can be left out are, and else there is no sum."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import numpy as np
import pytest

from common.errors import SecAggError
from common.secagg.keys import EphemeralKeys
from common.secagg.messages import REVEALED_RECORD, Secret, pack, pack_revealed, unpack, unpack_revealed
from common.secagg.roster import KeyRoster
from common.secagg.shamir import P, Share
from server.secagg import SecureSum
from tests.secure_silos import STAGES, Attempt, Consortium, play

#: Six silos: a sum takes four, a secret four shares, and the survivors four signatures.
N = 6


@pytest.fixture
def silos() -> Consortium:
    return Consortium(N)


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        ("advertise", "3 of 6 silos showed their keys; a sum takes 4 or more"),
        ("share", "3 of 6 silos shared their secrets; a sum takes 4 or more"),
        ("mask", "3 of 6 silos gave their vectors; a sum takes 4 or more"),
        ("sign", "3 of 6 silos signed the survivors; a sum takes 4 or more"),
        ("reveal", "3 of 6 silos revealed their shares; a sum takes 4 or more"),
    ],
)
def test_with_too_few_silos_in_any_stage_there_is_no_sum(stage: str, why: str, silos: Consortium) -> None:
    gone = [{3, 4, 5} if stage == name else set() for name in STAGES]
    with pytest.raises(SecAggError, match=why):
        play(silos, np.zeros((N, 5), np.uint32), gone)


@pytest.mark.parametrize("stage", [None, *STAGES])
def test_one_silo_less_than_that_is_borne(stage: str | None, silos: Consortium) -> None:
    vectors = np.random.default_rng(0).integers(0, 2**32, (N, 5), np.uint32)
    gone = [{0, 5} if stage == name else set() for name in STAGES]
    summed, survivors = play(silos, vectors, gone)
    np.testing.assert_array_equal(summed, vectors[list(survivors)].sum(axis=0, dtype=np.uint32))


def test_a_silo_that_answers_wrongly_is_left_out(silos: Consortium, caplog: pytest.LogCaptureFixture) -> None:
    """Silo 1 shows keys of another round; silo 2 shares with some of its neighbours only, so no vector of it is asked for."""
    caplog.set_level(logging.WARNING)
    attempt = Attempt(silos)
    ads = {silo: silos.participant(silo).advertise(attempt.round_id) for silo in range(N)}
    ads[1] = Attempt(silos).silos.participant(1).advertise(bytes(32))
    ads[N] = ads[0]
    attempt.advertisements = attempt.sum.advertised(ads)
    attempt.there -= {1}
    assert sorted(attempt.sum.ads) == [0, 2, 3, 4, 5]
    shares = {silo: silos.participant(silo).share(attempt.round_id, attempt.advertisements) for silo in attempt.there}
    shares[2] = shares[2][172:]
    shares[1] = shares[0]
    attempt.boxes = attempt.sum.shared(shares)
    assert sorted(attempt.boxes) == [0, 3, 4, 5]
    assert sorted(attempt.boxes_for(0)) == [3, 4, 5]
    attempt.finish("mask")
    assert [record.args[0] for record in caplog.records if record.args] == [1, 6, 1, 2]


def test_a_signature_that_is_not_the_survivors_own_is_left_out(silos: Consortium) -> None:
    attempt = Attempt(silos).until("sign")
    replies = {silo: silos.participant(silo).sign(attempt.round_id, attempt.survivors) for silo in range(N)}
    others = Attempt(Consortium(N)).until("reveal").signed
    attempt.signatures = attempt.sum.signed(replies | {0: others[0], 1: replies[2], 9: replies[3]})
    assert sorted(attempt.sum.signatures) == [2, 3, 4, 5]
    with pytest.raises(SecAggError, match="3 of 6 silos signed the survivors; a sum takes 4 or more"):
        attempt.sum.signed({silo: replies[silo] for silo in range(3)} | {3: others[3]})
    attempt.signed = replies
    attempt.finish("reveal")


def test_a_vector_of_another_kind_of_a_stranger_or_twice_is_not_added(silos: Consortium) -> None:
    attempt = Attempt(silos)
    attempt.advertise()
    attempt.share({5})
    words = np.ones(5, np.uint32)
    for bad in (np.ones(4, np.uint32), np.ones(5, np.uint64), np.ones((1, 5), np.uint32)):
        with pytest.raises(SecAggError, match="the vector of silo 0 is"):
            attempt.sum.add(0, bad)
    for stranger in (5, N):
        with pytest.raises(SecAggError, match=f"silo {stranger} has no vector"):
            attempt.sum.add(stranger, words)
    assert not attempt.sum.total.any()
    attempt.sum.add(0, words)
    with pytest.raises(SecAggError, match="or has given one already"):
        attempt.sum.add(0, words)
    np.testing.assert_array_equal(attempt.sum.total, words)


def moved(share: Share) -> Share:
    return Share(share.silo, (share.value + 1) % P)


def told_wrongly(attempt: Attempt, holder: int, owner: int, change: Callable[[Secret, Share], tuple[Secret, Share]]) -> bytes:
    told = unpack_revealed(attempt.revealed[holder])
    return pack_revealed(told | {owner: change(*told[owner])})


def test_with_an_altered_share_there_is_no_sum_and_with_the_right_one_there_is(
    silos: Consortium, caplog: pytest.LogCaptureFixture
) -> None:
    """Shares that have a wrong form leave their silo out, and four are needed; wrong values show when they are put together."""
    caplog.set_level(logging.WARNING)
    old, attempt = Attempt(silos), Attempt(silos)
    for one in (old, attempt):
        one.advertise()
        one.share()
        one.mask({5})
        one.sign()
        one.revealed = {silo: silos.participant(silo).reveal(one.round_id, one.signatures) for silo in range(5)}
    masked = attempt.sum.total.copy()
    wrong_share, wrong_kind = "shares of silos .* do not belong to one secret", "that nobody asked for, or another's"
    bad: list[tuple[str, int, bytes]] = [
        (f"the secret of silo 2: the {wrong_share}", 0, told_wrongly(attempt, 0, 2, lambda kind, share: (kind, moved(share)))),
        (f"the secret of silo 5: the {wrong_share}", 3, told_wrongly(attempt, 3, 5, lambda kind, share: (kind, moved(share)))),
        (wrong_kind, 0, told_wrongly(attempt, 0, 2, lambda kind, share: (Secret.MASK_KEY, share))),
        (wrong_kind, 0, told_wrongly(attempt, 0, 5, lambda kind, share: (Secret.SEED, share))),
        (wrong_kind, 0, told_wrongly(attempt, 0, 2, lambda kind, share: (kind, Share(1, share.value)))),
        (wrong_kind, 0, attempt.revealed[1]),
        (wrong_kind, 0, attempt.revealed[0] + pack({9: unpack(attempt.revealed[0], REVEALED_RECORD, "")[0]})),
        ("is of no known kind", 0, attempt.revealed[0][:4] + b"\2" + attempt.revealed[0][5:]),
        ("is no element of the field", 0, attempt.revealed[0][:9] + b"\xff" * 66 + attempt.revealed[0][75:]),
        ("not a list of records of 75 bytes", 0, attempt.revealed[0][:-1]),
        (f"the secret of silo 0: the {wrong_share}", 0, old.revealed[0]),
    ]
    four = {silo: reply for silo, reply in attempt.revealed.items() if silo != 4}
    for why, holder, reply in bad:
        malformed = "the secret of" not in why
        with pytest.raises(SecAggError, match="3 of 6 silos revealed their shares" if malformed else why):
            attempt.sum.unmasked(four | {holder: reply})
        assert not malformed or re.search(why, caplog.messages[-1])
        np.testing.assert_array_equal(attempt.sum.total, masked)
    assert (masked != attempt.expected()).all()
    np.testing.assert_array_equal(attempt.sum.unmasked(attempt.revealed | {0: attempt.revealed[0][:-1]}), attempt.expected())


def test_a_silo_that_shares_another_key_than_it_advertised_ends_the_attempt_when_it_vanishes(silos: Consortium) -> None:
    attempt = Attempt(silos).until("share")
    shares = {silo: silos.participant(silo).share(attempt.round_id, attempt.advertisements) for silo in range(5)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EphemeralKeys, "mask_secret", lambda keys: bytes(range(32)))
        shares[5] = silos.participant(5).share(attempt.round_id, attempt.advertisements)
    attempt.boxes = attempt.sum.shared(shares)
    attempt.mask({5})
    attempt.sign()
    with pytest.raises(SecAggError, match="what was recovered is not the key for masks that silo 5 advertised"):
        attempt.reveal()


def test_no_stage_goes_before_the_first_and_the_roster_must_fit(silos: Consortium) -> None:
    context = silos.context(bytes(32))
    fresh = SecureSum(context, silos.rules, silos.roster, np.uint32, 5)
    with pytest.raises(SecAggError, match="no silo has shown its keys yet"):
        fresh.shared({})
    with pytest.raises(SecAggError, match="silo 0 has no vector"):
        fresh.add(0, np.zeros(5, np.uint32))
    with pytest.raises(SecAggError, match="0 of 6 silos gave their vectors"):
        fresh.summed()
    with pytest.raises(SecAggError, match="no silo has shown its keys yet"):
        fresh.signed({})
    with pytest.raises(SecAggError, match="no silo has shown its keys yet"):
        fresh.unmasked({})
    with pytest.raises(SecAggError, match="the roster has 5 silos, the configuration 6"):
        SecureSum(context, silos.rules, KeyRoster(silos.roster.names[:5], silos.roster.keys[:5]), np.uint32, 5)
