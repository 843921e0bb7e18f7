"""Fixed point: sums are exact in the ring, close in the reals, unbiased, and cannot wrap around."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, SecAggError
from common.secagg.fixed_point import BLOCK, FixedPoint

DTYPES = [np.float32, np.float64]


def slow_steps(value: float, coding: FixedPoint) -> tuple[int, int]:
    """The two whole numbers that an encoding may choose from, by fractions."""
    clip = Fraction(coding.clip)
    exact = min(max(Fraction(value), -clip), clip) * Fraction(2) ** coding.scale_bits
    return math.floor(exact), math.ceil(exact)


def signed(words: np.ndarray) -> list[int]:
    return [int(w) for w in words.view(np.int32 if words.dtype == np.uint32 else np.int64)]


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([32, 64]),
    dtype=st.sampled_from(DTYPES),
    clip=st.floats(1e-3, 1e3),
    scale=st.integers(-12, 40),
    silos=st.integers(1, 6),
    weights=st.lists(st.integers(1, 9), min_size=6, max_size=6),
    data=st.data(),
)
def test_a_sum_is_within_its_bound_whatever_the_values(
    bits: int, dtype: type, clip: float, scale: int, silos: int, weights: list[int], data: st.DataObject
) -> None:
    try:
        coding = FixedPoint(bits, scale, clip, silos, 9)
    except ConfigError:
        coding = FixedPoint.finest(bits, clip, silos, 9)
    width = 32 if dtype is np.float32 else 64
    total, exact = np.zeros(5, coding.dtype), [Fraction(0)] * 5
    for weight in weights[:silos]:
        floats = st.floats(-2 * float(np.float32(clip)), 2 * float(np.float32(clip)), width=width)
        x = np.array(data.draw(st.lists(floats, min_size=5, max_size=5)), dtype)
        words, clipped = coding.encode(x, weight)
        for word, value in zip(signed(words), x, strict=True):
            assert word in [weight * step for step in slow_steps(float(value), coding)]
        assert clipped == sum(abs(float(v)) > coding.clip for v in x)
        total += words
        most = Fraction(coding.clip)
        exact = [e + weight * min(max(Fraction(float(v)), -most), most) for e, v in zip(exact, x, strict=True)]
    decoded = coding.decode(total, sum(weights[:silos]))
    bound = coding.error_bound(sum(weights[:silos]))
    for got, wanted in zip(decoded, exact, strict=True):
        assert abs(Fraction(float(got)) - wanted) <= Fraction(bound)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.3, -0.3, 0.95, -1e-3, 7.5, -1000.125])
def test_rounding_is_right_on_average(bits: int, dtype: type, value: float) -> None:
    """A mean of 200,000 Bernoulli steps; 5.5 deviations: a false alarm in 2.6e7, over 24 cases 1e-6."""
    coding = FixedPoint(bits, 0, 2000.0, 4)
    n = 200_000
    steps = np.array(signed(coding.encode(np.full(n, value, dtype)).words), dtype=np.float64)
    wanted = float(dtype(value))
    p = wanted - math.floor(wanted)
    assert set(np.unique(steps)) <= {math.floor(wanted), math.ceil(wanted)}
    assert abs(steps.mean() - wanted) <= 5.5 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_on_the_grid_are_exact_and_a_large_float_is_not_pushed_up(dtype: type) -> None:
    """Beyond 2^22 a sum value + u is rounded in float32 itself: whole numbers would creep up by one now and then."""
    coding = FixedPoint(32, 0, 2.0**29, 2)
    x = np.array([0, 1, -1, 2**20 + 1, 2**23 - 1, -(2**24) + 1, 2**29, -(2**29)] * 5000, dtype)
    assert np.array_equal(coding.encode(x).words.view(np.int32), x.astype(np.int32))


@pytest.mark.parametrize(("bits", "dtype"), [(32, np.float32), (32, np.float64), (64, np.float32), (64, np.float64)])
def test_the_worst_sum_that_is_allowed_does_not_wrap_and_one_step_more_is_refused(bits: int, dtype: type) -> None:
    silos, weight = 7, 3
    room = 2 ** (bits - 1) - 1
    clip = float(2 ** (bits - 8))
    most = room - silos * weight * int(clip)
    coding = FixedPoint(bits, 0, clip, silos, weight, most)
    for sign in (1, -1):
        total = np.zeros(3, coding.dtype)
        for _ in range(silos):
            total += coding.encode(np.full(3, sign * np.inf, dtype), weight).words
        assert np.array_equal(coding.decode(total, silos * weight), [sign * silos * weight * clip] * 3)
    with pytest.raises(ConfigError, match=r"silos=7 \* max_weight=3 .*clip=.*scale_bits=0.*margin=.*bits="):
        FixedPoint(bits, 0, clip, silos, weight, most + 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clip_between_two_float32_is_the_lower_one_for_both_types(dtype: type) -> None:
    coding = FixedPoint(32, 20, 1.0 + 2.0**-24 + 2.0**-30, 2)  # nearer to the upper one
    assert coding.clip == 1.0
    x = np.array([1.0, np.nextafter(np.float32(1), np.float32(2)), -3.0], dtype)
    words, clipped = coding.encode(x)
    assert clipped == 2
    assert signed(words) == [2**20, 2**20, -(2**20)]


@pytest.mark.parametrize("n", [0, 1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
@pytest.mark.parametrize(("bits", "dtype"), [(32, np.float32), (64, np.float32), (64, np.float64)])
def test_blocks_join_without_a_seam(n: int, bits: int, dtype: type) -> None:
    x = np.random.default_rng(n).normal(size=n).astype(dtype)
    before = x.copy()
    coding = FixedPoint(bits, 16, 2.0, 10)
    words, clipped = coding.encode(x)
    assert words.shape == (n,)
    assert words.dtype == coding.dtype
    assert np.array_equal(x, before)
    assert clipped == np.count_nonzero(np.abs(x) > 2.0)
    if n:
        assert np.abs(coding.decode(words, 1) - np.clip(x, -2, 2)).max() < coding.error_bound(1)


def test_two_encodings_of_one_vector_differ() -> None:
    coding = FixedPoint(32, 4, 1.0, 3)
    x = np.full(256, 0.33, np.float32)
    assert not np.array_equal(coding.encode(x).words, coding.encode(x).words)


def test_the_deviation_of_the_error_is_bounded() -> None:
    """Fraction one half is the worst; the sample deviation of 40,000 lies within 3 % (beyond 8 of its own deviations)."""
    coding = FixedPoint(32, 3, 4.0, 3, 5)
    total = np.zeros(40_000, np.uint32)
    for weight in (1, 5, 2):
        total += coding.encode(np.full(40_000, 0.0625 + 1.0, np.float32), weight).words
    error = coding.decode(total, 8) - 8 * 1.0625
    assert error.std() == pytest.approx(coding.error_deviation((1, 5, 2)), rel=0.03)


def test_finest_is_the_largest_scale_that_fits() -> None:
    coding = FixedPoint.finest(32, 3.0, 100, 8)
    assert coding.max_total(800) <= 2**31 - 1
    with pytest.raises(ConfigError, match="wrap around"):
        FixedPoint(32, coding.scale_bits + 1, 3.0, 100, 8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bits": 16}, "bits"),
        ({"scale_bits": 61}, "scale_bits"),
        ({"scale_bits": 1.0}, "scale_bits"),
        ({"clip": 0.0}, "clip"),
        ({"clip": math.nan}, "clip"),
        ({"clip": math.inf}, "clip"),
        ({"clip": 1e-39}, "clip"),
        ({"silos": 0}, "silos"),
        ({"silos": True}, "silos"),
        ({"max_weight": 0}, "max_weight"),
        ({"max_weight": 1.5}, "max_weight"),
        ({"margin": -1}, "margin"),
        ({"silos": 2**20}, "wrap around"),
    ],
)
def test_what_is_impossible_is_named(change: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        FixedPoint(**({"bits": 32, "scale_bits": 16, "clip": 1.0, "silos": 8} | change))


def test_vectors_that_do_not_fit_are_refused() -> None:
    coding = FixedPoint(32, 16, 1.0, 8, 2)
    good = np.ones(4, np.float32)
    for x in (good.astype(np.float16), good.reshape(2, 2), np.array([1.0, np.nan], np.float32), np.array([np.nan, 5.0])):
        with pytest.raises(SecAggError):
            coding.encode(x)
    for weight in (0, 3, -1, True, 1.0):
        with pytest.raises(SecAggError, match="weight"):
            coding.encode(good, weight)  # type: ignore[arg-type]
    words = coding.encode(good).words
    for total_weight in (0, 17):
        with pytest.raises(SecAggError, match="weights"):
            coding.decode(words, total_weight)
    with pytest.raises(SecAggError):
        coding.decode(words.astype(np.uint64), 1)


def test_a_mask_that_is_left_in_the_sum_shows() -> None:
    """A uniform word passes with 3 in 10^5 here; 1,000 of them together never do."""
    coding = FixedPoint(32, 16, 1.0, 8)
    words = coding.encode(np.zeros(1000, np.float32)).words
    words += np.random.default_rng(1).integers(0, 2**32, 1000, dtype=np.uint32)
    with pytest.raises(SecAggError, match="a mask is left"):
        coding.decode(words, 1)
