"""The unmasked sum is the plain fixed-point sum of those who are in it, bit for bit; and if it cannot be, there is none.

Real silos' and coordinator's parts over the in-process Grid: 3 to 100 silos, vectors of 1 to 1,000,000 words, with silos that
vanish at any stage, before or after they have done their work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import pytest
from flwr.app import Message
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import server.aggregation
from common.errors import FederationError
from common.protocol import COUNT, MASK, TRAIN
from common.secagg.coding import coding_of
from common.secagg.graph import SMALL
from common.secagg.rules import Rules
from server.aggregation import Sum
from server.secagg import SecureSum
from simulations.grid import Fault
from tests.server import masking_silos
from tests.server.masking_silos import STAGES, MaskingSilos, Words, drawn, question

#: Silo to the stage that it does not answer, nor any later one, and whether it gets the request.
Gone = Mapping[int, tuple[int, Fault]]


@dataclass(frozen=True)
class Case:
    n: int
    length: int
    bits: int
    gone: Gone
    action: str = TRAIN
    seed: int = 0

    @property
    def survivors(self) -> tuple[int, ...]:
        """Those whose vectors come: all but those who vanish before they give them."""
        last = STAGES.index(MASK)
        return tuple(silo for silo in range(self.n) if silo not in self.gone or self.gone[silo][0] > last)

    def fault(self, silo: int, message: Message) -> Fault | None:
        if silo not in self.gone or message.metadata.message_type not in STAGES:
            return None
        stage, fault = self.gone[silo]
        now = STAGES.index(message.metadata.message_type)
        return fault if now == stage else Fault.LOST_REQUEST if now > stage else None


def vanishing(n: int, how_many: int, stages: list[int], seed: int) -> Gone:
    """``how_many`` silos, at these stages in turn; which ones, and whether they get the last request, follows from the seed."""
    rng = np.random.default_rng(seed)
    silos = rng.permutation(n)[:how_many]
    faults = [(Fault.LOST_REQUEST, Fault.LOST_REPLY)[bit] for bit in rng.integers(0, 2, how_many)]
    return {int(silo): (stages[i % len(stages)], faults[i]) for i, silo in enumerate(silos)}


@contextmanager
def watched() -> Iterator[list[Words]]:
    """The words of each sum as the masks come off; one attempt is made and no other."""
    seen: list[Words] = []
    unmasked = SecureSum.unmasked

    def kept(self: SecureSum, replies: Mapping[int, bytes]) -> Words:
        words = unmasked(self, replies)
        seen.append(words.copy())
        return words

    with patch.object(SecureSum, "unmasked", kept), patch.object(server.aggregation, "ATTEMPTS", 1):
        yield seen


def summed(case: Case) -> tuple[Sum, Words, dict[int, Words]]:
    """The sum, its words, and the words of each silo before they were masked; :class:`FederationError` if there is none."""
    config = masking_silos.settings(case.n, aggregation__bits=case.bits)
    silos = MaskingSilos(config, drawn(case.length, case.seed))
    with watched() as seen:
        asked = question(config, case.action, case.length)
        try:
            found = silos.secure(case.fault).ask(case.action, asked, what="round 1", length=case.length)
        except FederationError:
            assert not seen, "masks came off a sum that was then refused"
            raise
    (words,), (plain,) = seen, silos.words.values()
    return found, words, plain


def check(case: Case) -> None:
    """Against whole numbers of 64 bits with a sign: they show a wrap-around that words of the ring would hide."""
    found, words, plain = summed(case)
    signed = np.int32 if case.bits == 32 else np.int64
    total: NDArray[np.int64] = np.zeros(case.length, np.int64)
    for silo in case.survivors:
        total += plain[silo].view(signed)
    assert found.silos == case.survivors
    assert words.dtype == np.dtype(f"uint{case.bits}")
    np.testing.assert_array_equal(words.view(signed), total)
    config = masking_silos.settings(case.n, aggregation__bits=case.bits)
    coding = coding_of(case.action, config, case.length)
    np.testing.assert_array_equal(found.total, np.ldexp(total.astype(np.float64), -coding.scale_bits))
    assert total.any(), "nothing was summed"


@st.composite
def cases(draw: st.DrawFn, more_than_a_third: bool = False) -> Case:
    """Few silos and short vectors are drawn more often, and every size up to the largest: the logarithms are spread."""
    n = round(3 * (100 / 3) ** (draw(st.integers(0, 1000)) / 1000) ** 1.5)
    length = round(1_000_000 ** (draw(st.integers(0, 1000)) / 1000))
    borne = n - Rules(n).least
    how_many = draw(st.integers(borne + 1, n) if more_than_a_third else st.integers(0, borne) | st.just(borne))
    stages = draw(st.lists(st.integers(0, len(STAGES) - 1), min_size=1, max_size=max(1, how_many)))
    seed = draw(st.integers(0, 2**32 - 1))
    bits, action = draw(st.sampled_from((32, 64))), draw(st.sampled_from((TRAIN, COUNT)))
    return Case(n, length, bits, vanishing(n, how_many, stages, seed), action, seed)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_the_sum_is_that_of_the_survivors_bit_for_bit_however_up_to_a_third_vanish(case: Case) -> None:
    check(case)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(Case(80, 10, 32, vanishing(80, 27, [len(STAGES) - 1], seed=1)))
@given(cases(more_than_a_third=True))
def test_with_more_gone_there_is_no_sum_and_never_a_wrong_one(case: Case) -> None:
    """Above :data:`SMALL` silos a secret takes fewer shares than silos are promised to stay, so some such sums can be opened."""
    rules = Rules(case.n)
    there = case.n - sum(stage == 0 for stage, _ in case.gone.values())
    must_fail = len(case.survivors) < rules.least or there <= SMALL
    try:
        check(case)
    except FederationError:
        event("no sum")
        return
    event("a sum")
    assert not must_fail


@pytest.mark.parametrize("length", [1, 1_000_000])
@pytest.mark.parametrize("n", [3, 64, 65, 100])
def test_sizes_at_the_borders_with_silos_that_vanish_at_every_stage(n: int, length: int) -> None:
    """Three silos can lose one, so they lose it at each stage in turn."""
    borne = n - Rules(n).least
    bits = 64 if (n in (3, 65)) == (length > 1) else 32
    turns = [[stage] for stage in range(len(STAGES))] if borne < len(STAGES) else [list(range(len(STAGES)))]
    for stages in turns:
        gone = vanishing(n, borne, stages, seed=n)
        assert {stage for stage, _ in gone.values()} == set(stages)
        check(Case(n, length, bits, gone, seed=length))


def test_another_set_of_silos_gives_another_sum() -> None:
    """So the comparison can fail: with one survivor more or less the words differ."""
    case = Case(5, 100, 32, {2: (STAGES.index(MASK), Fault.LOST_REPLY)})
    _, words, plain = summed(case)
    assert sorted(plain) == [0, 1, 2, 3, 4], "the silo whose reply was lost has masked"
    everybody = sum(one.view(np.int32).astype(np.int64) for one in plain.values())
    assert not np.array_equal(words.view(np.int32), everybody)
