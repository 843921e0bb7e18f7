"""Words for every kind of answer: no sum that the settings allow wraps around, by Python's whole numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.config import Config, load
from common.errors import ConfigError
from common.privacy.plan import COUNT_MAX_NORM, METRICS_MAX_NORM, plan_for
from common.protocol import COUNT, METRICS, SUMMED, TRAIN
from common.secagg.coding import MEETINGS, TAIL, coding_of, mechanism_of, weights_of
from common.secagg.fixed_point import FixedPoint
from common.secagg.rules import Rules

ONES = np.uint64(2**64 - 1)


class Always:
    """A stream of random words that rounds everything up, or everything towards zero."""

    def __init__(self, word: int) -> None:
        self.word = np.uint64(word)

    def fill(self, words: np.ndarray) -> None:
        words[:] = self.word


def config(declared: list[int], **dotted: Any) -> Config:
    base = {"privacy.mode": "none", "partition.silos": len(declared), "federation.declared_users": declared}
    return load(base, {key.replace("__", "."): value for key, value in dotted.items()})


def signed(words: np.ndarray) -> list[int]:
    """Words as the whole numbers for which they stand, without NumPy."""
    bits = words.dtype.itemsize * 8
    return [int(word) - (2**bits if int(word) >> (bits - 1) else 0) for word in words]


def check(coding: FixedPoint, silos: int, largest: float) -> None:
    """Sums over all silos, over one, and of the extremes, whatever the rounding: words mod ``2^bits`` are the sum itself."""
    modulus, room = 2**coding.bits, 2 ** (coding.bits - 1) - 1
    assert silos * coding.max_step + coding.margin <= room
    bound = coding.clip
    values = np.array([bound, -bound, 2 * bound, -2 * bound, bound / 3, -bound / 3, 0.0, math.inf, -math.inf])
    for dtype in (np.float32, np.float64):
        with np.errstate(over="ignore"):
            one = values.astype(dtype)
        for random in (0, ONES, 0x5555555555555555):
            encoded = coding.encode(one, stream=Always(random))
            steps = signed(encoded.words)
            for value, step in zip(one, steps, strict=True):
                exact = Fraction(min(max(float(value), -bound), bound)) * Fraction(2) ** coding.scale_bits
                assert abs(step - exact) < 1
            for many in {1, silos}:
                total = np.zeros(len(one), coding.dtype)
                for _ in range(min(many, 3)):
                    total += encoded.words
                total += encoded.words * coding.dtype.type(many - min(many, 3))  # as many more times, modulo 2^bits
                assert [int(word) for word in total] == [many * step % modulus for step in steps]
                assert signed(total) == [many * step for step in steps]
                decoded = coding.decode(total, many)
                assert [float(many * Fraction(step) / Fraction(2) ** coding.scale_bits) for step in steps] == decoded.tolist()
            assert encoded.clipped == 4
    assert 0.999999 * largest <= bound <= largest


@settings(max_examples=150, deadline=None)
@given(
    declared=st.lists(st.integers(1, 10**6), min_size=3, max_size=40),
    clip=st.floats(1e-12, 1e6),
    bits=st.sampled_from([32, 64]),
    action=st.sampled_from(SUMMED),
)
def test_no_sum_of_a_run_without_noise_wraps_around(declared: list[int], clip: float, bits: int, action: str) -> None:
    this = config(declared, aggregation__clip=clip, aggregation__bits=bits)
    coding = coding_of(action, this, 5)
    largest = {TRAIN: clip, COUNT: max(declared) * MEETINGS, METRICS: max(declared) * METRICS_MAX_NORM}[action]
    check(coding, len(declared), largest)
    if coding.scale_bits < 60:  # and no finer step would do
        with pytest.raises(ConfigError, match="a sum could wrap around"):
            FixedPoint(bits, coding.scale_bits + 1, coding.clip, len(declared))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_the_range_of_protected_sums_has_room_for_users_and_ten_deviations_of_noise(epsilon: float, bits: int) -> None:
    declared = [90, 400, 1000]
    this = config(declared, privacy__mode="silo", privacy__epsilon=epsilon, privacy__metrics_share=0.1, aggregation__bits=bits)
    plan = plan_for(this, 90, 90)
    assert TAIL == 10.0
    assert plan.count_noise_std > 0 < plan.metrics_noise_std
    check(coding_of(COUNT, this, 5), 3, 1000 * COUNT_MAX_NORM + 10 * plan.count_noise_std)
    check(coding_of(METRICS, this, 2), 3, 1000 * METRICS_MAX_NORM + 10 * plan.metrics_noise_std)
    check(coding_of(TRAIN, this, 5), 3, 8.0)


@settings(max_examples=60, deadline=None)
@given(
    declared=st.lists(st.integers(1, 60_000), min_size=3, max_size=12),
    max_norm=st.floats(1e-3, 1e3),
    length=st.integers(1, 10**7),
    action=st.sampled_from(SUMMED),
)
def test_no_sum_in_mode_distributed_wraps_around_with_all_of_its_noise(
    declared: list[int], max_norm: float, length: int, action: str
) -> None:
    this = config(
        declared,
        privacy__mode="distributed",
        privacy__delta=1e-5,
        privacy__metrics_share=0.1,
        privacy__max_grad_norm=max_norm,
        training__local_steps=1,
    )
    try:
        mechanism = mechanism_of(action, this, length)
    except ConfigError:
        assume(False)
    coding = coding_of(action, this, length)
    assert (coding.bits, coding) == (64, mechanism.coding)
    norm = {TRAIN: max_norm, COUNT: COUNT_MAX_NORM, METRICS: METRICS_MAX_NORM}[action]
    assert (mechanism.silos, mechanism.honest) == (len(declared), Rules.of(this).honest)
    assert coding.margin >= 20 * math.isqrt(len(declared) * mechanism.share_variance)
    check(coding, len(declared), norm * max(declared))


@pytest.mark.parametrize(
    ("settings_", "why"),
    [
        ({"aggregation__clip": 1e30}, "a sum could wrap around"),
        ({"aggregation__clip": 1e-300}, "below the normal range of float32"),
        (
            {"privacy__mode": "distributed", "training__local_steps": 1, "privacy__max_grad_norm": 2.0**-40},
            "max_norm: must be between",
        ),
    ],
)
def test_settings_for_which_there_are_no_words_are_refused(settings_: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        coding_of(TRAIN, config([10, 20, 30], **settings_), 5)


@given(st.lists(st.integers(1, 10**9), min_size=3, max_size=20))
def test_a_weight_is_a_share_of_the_largest_silo(declared: list[int]) -> None:
    this = config(declared)
    weights = weights_of(TRAIN, this)
    assert len(weights) == len(declared)
    assert max(weights) == 1.0
    assert all(0 < weight <= 1 for weight in weights)
    for users, weight in zip(declared, weights, strict=True):
        assert Fraction(weight) == pytest.approx(Fraction(users, max(declared)), rel=1e-15)
    for alike in (weights_of(COUNT, this), weights_of(METRICS, this)):
        assert alike == (1.0,) * len(declared)
    assert weights_of(TRAIN, config(declared, federation__weighting="uniform")) == (1.0,) * len(declared)


def test_in_mode_distributed_users_are_weighed_by_themselves() -> None:
    this = config([10, 20, 30], privacy__mode="distributed", training__local_steps=1)
    assert weights_of(TRAIN, this) == (1.0, 1.0, 1.0)


def test_weighted_values_stay_within_the_range() -> None:
    """A silo multiplies before it encodes; in float32 the product with a weight of at most 1 does not pass the clip."""
    this = config([7, 999_983, 1_000_003])
    coding = coding_of(TRAIN, this, 3)
    for weight in weights_of(TRAIN, this):
        values = np.array([coding.clip, -coding.clip], np.float32) * np.float32(weight)
        assert coding.encode(values).clipped == 0
