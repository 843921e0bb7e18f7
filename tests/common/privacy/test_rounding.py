"""The released sum is that of real numbers, rounded: the fast path is right, the slow path decides the rest."""

from __future__ import annotations

import math
import os

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from common.errors import PrivacyError
from common.privacy import rounding
from common.privacy.chacha import Stream
from common.privacy.noise import PAIRS, TERMS, box_muller_words, standard_normal
from common.privacy.rounding import add_gaussian_noise, grid

both = pytest.mark.parametrize("hardened", [True, False], ids=["hardened", "fast"])


def with_key(monkeypatch: pytest.MonkeyPatch, key: bytes) -> None:
    """All streams under one key, so that two ways can be compared."""
    monkeypatch.setattr(os, "urandom", lambda n: key[:n])


def digits(words: NDArray[np.uint64], more: NDArray[np.object_] | None = None) -> tuple[mpmath.mpf, mpmath.mpf]:
    """The two numbers of a pair, words ``(terms, 2)``, in the middle of what the words, and 64 ``more`` bits each, leave open."""
    with mpmath.workprec(300):
        cosine = sine = mpmath.mpf(0)
        for term, (radius, angle) in enumerate(words.tolist()):
            r, a, bits = radius >> 1, angle if angle < 2**63 else angle - 2**64, 63
            if more is not None:
                r, a, bits = r * 2**64 + more[term, 0], a * 2**64 + more[term, 1], 127
            half = mpmath.mpf(2) ** (bits + 1)
            length = mpmath.sqrt(-2 * mpmath.log((2 * r + 1) / half))
            phi = mpmath.pi * (2 * a + 1) / half
            cosine, sine = cosine + length * mpmath.cos(phi), sine + length * mpmath.sin(phi)
        root = mpmath.sqrt(len(words))
        return cosine / root, sine / root


@given(st.floats(2.0**-300, 2.0**300))
def test_the_grid_is_a_power_of_two_that_follows_from_the_deviation(std: float) -> None:
    spacing = grid(std)
    assert math.frexp(spacing)[0] == 0.5
    assert std * 2.0**-11 < spacing <= std * 2.0**-10


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf"), 1e-300])
def test_no_noise_is_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="standard deviation"):
        add_gaussian_noise(np.zeros(3), std)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_refused(number: float) -> None:
    with pytest.raises(PrivacyError, match="not finite"):
        add_gaussian_noise(np.array([0.0, number]), 1.0)


@both
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (2, 3, 5), (2 * PAIRS + 1,)])
def test_every_shape_is_on_the_grid_and_has_one_zero(shape: tuple[int, ...], hardened: bool) -> None:
    value = np.full(shape, 1 / 3, dtype=np.float32)
    released = add_gaussian_noise(value, 1.7, hardened=hardened)
    assert released.shape == shape
    assert released.dtype == np.float64
    steps = released / grid(1.7)
    assert np.array_equal(steps, np.rint(steps))
    assert not np.signbit(released[released == 0]).any()
    assert (value == np.float32(1 / 3)).all()


def test_every_multiple_within_eight_deviations_can_come_out_and_no_other_number() -> None:
    """The possible results do not depend on the value: here, that of the bulk all come (chance of a gap: 4e-10)."""
    std, seen = 1.0, []
    for value in (0.0, 1 / 3, 1e-12):
        steps = np.unique(add_gaussian_noise(np.full(2_000_000, value), std) / grid(std))
        assert np.array_equal(steps, np.rint(steps))
        seen.append(set(steps[np.abs(steps) <= 1024]))
    assert all(steps == set(range(-1024, 1025)) for steps in seen)


@both
def test_noise_of_a_rounded_sum_has_the_claimed_deviation(hardened: bool) -> None:
    """Chi-square of the variance, z of the mean; 2 in ten million."""
    n, std, value = 1_000_000, 2.3, 1 / 3
    z = (add_gaussian_noise(np.full(n, value), std, hardened=hardened) - value) / std
    assert stats.chi2.ppf(5e-8, n) < (z**2).sum() < stats.chi2.isf(5e-8, n)
    assert abs(z.sum()) / math.sqrt(n) < stats.norm.isf(5e-8)


@both
@pytest.mark.parametrize("value", [0.0, 0.3, -1234.5678])
def test_multiples_have_the_probabilities_of_the_rounded_gaussian(
    value: float, hardened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a grid of half a deviation, chi-square against differences of the normal distribution; once in ten million each."""
    monkeypatch.setattr(rounding, "GRID_BITS", 1)
    std, n = 1.0, 1_000_000
    spacing = grid(std)
    assert spacing == 0.5
    steps = np.rint(add_gaussian_noise(np.full(n, value), std, hardened=hardened) / spacing).astype(int)
    middle = round(value / spacing)
    cells = np.arange(middle - 8, middle + 9)
    edges = np.concatenate([[-np.inf], (cells[:-1] + 0.5) * spacing, [np.inf]])
    expected = n * np.diff(stats.norm.cdf(edges, loc=value, scale=std))
    seen = np.bincount(np.clip(steps - cells[0], 0, len(cells) - 1), minlength=len(cells))
    assert stats.chisquare(seen, expected).pvalue > 1e-7


@both
def test_double_precision_is_within_a_quarter_of_the_margin(hardened: bool) -> None:
    """4,000 pairs of words against 200 bits, and the words at the ends of what the margin is for."""
    terms = TERMS if hardened else 1
    words = box_muller_words(Stream(), 8_000, hardened)[:, :, :4000]
    least, most = int(rounding._LEAST), int(rounding._MOST) - 1
    corners = [(r, a) for r in (least, most) for a in (0, 1, 2**61 + 12345, 2**62 - 1, 2**63 - 1, 2**63, 2**64 - 1)]
    words = np.concatenate([words, np.array([[[r, a] for r, a in corners]] * terms, dtype=np.uint64).transpose(0, 2, 1)], axis=2)
    allowed = rounding.MARGIN * 2.0**-11 / 4
    got = standard_normal(words)
    inside = [p for p in range(words.shape[2]) if p not in rounding._extreme(words[:, 0])]
    assert len(inside) > 4000
    worst = 0.0
    for pair in inside:
        for exact, number in zip(digits(words[:, :, pair]), got[:, pair], strict=True):
            worst = max(worst, float(abs(exact - mpmath.mpf(float(number)))))
    # What the words leave open moves a radius by 2^-64 / (U·r), 2^-42.5 where U is least.
    assert worst + 2.0**-42.5 < allowed


@both
def test_a_second_look_at_every_number_changes_none(hardened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals and double precision agree wherever double precision is trusted."""
    value = np.random.default_rng(5).normal(size=301) * 10
    with_key(monkeypatch, bytes(range(32)))
    fast = add_gaussian_noise(value, 1.9, hardened=hardened)
    looks: list[int] = []
    real = rounding._exactly
    monkeypatch.setattr(rounding, "_exactly", lambda *args: looks.append(1) or real(*args))
    monkeypatch.setattr(rounding, "MARGIN", 0.51)
    slow = add_gaussian_noise(value, 1.9, hardened=hardened)
    assert len(looks) == 151
    assert np.array_equal(fast, slow)


@both
def test_the_second_look_rounds_as_many_digits_do(hardened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a grid so fine that double precision is often wrong, the intervals give what 300 bits give."""
    n, std = 101, 1.3
    with_key(monkeypatch, bytes(range(1, 33)))
    monkeypatch.setattr(rounding, "GRID_BITS", 50)
    monkeypatch.setattr(rounding, "MARGIN", 0.51)
    scale = std / grid(std)
    value = np.random.default_rng(7).normal(size=n) * scale
    steps = value.copy()
    rounding._round_noisy(steps, scale, Stream(), hardened)

    stream = Stream()
    words, pairs, wrong = box_muller_words(stream, n, hardened), (n + 1) // 2, 0
    for pair in range(pairs):
        terms = len(words)
        more = np.array([int(word) for word in stream.words(2 * terms)], dtype=object).reshape(terms, 2)
        numbers = digits(words[:, :, pair], more)  # one refinement decides: 127 bits against 50
        for i, number, double in zip((pair, pair + pairs), numbers, standard_normal(words[:, :, [pair]])[:, 0], strict=True):
            if i < n:
                with mpmath.workprec(300):
                    exact = mpmath.mpf(float(value[i])) + mpmath.mpf(scale) * number
                    assert steps[i] == int(mpmath.floor(exact + mpmath.mpf(0.5)))
                wrong += steps[i] != np.rint(value[i] + double * scale)
    assert wrong > n // 10


@pytest.mark.parametrize("radius", [0, 1, 2, 2**64 - 1])
@pytest.mark.parametrize("angle", [0, 2**62, 2**63, 2**64 - 1])
def test_the_rarest_words_are_rounded_too(radius: int, angle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go to the second look, whatever the digits that follow."""
    words = np.tile(np.array([[radius], [angle]], dtype=np.uint64), (TERMS, 1, 3))
    monkeypatch.setattr(rounding, "box_muller_words", lambda *_: words)
    looks: list[int] = []
    real = rounding._exactly
    monkeypatch.setattr(rounding, "_exactly", lambda *args: looks.append(1) or real(*args))
    released = add_gaussian_noise(np.array([0.0, 1.0, 2.0, 3.0, 4.0]), 1.0)
    assert len(looks) == 3
    assert np.isfinite(released).all()
    approx = np.arange(5) + standard_normal(words).reshape(-1)[:5]
    # 63 zeros leave the draw open upwards, by more than 2 once in 10¹² runs; 62 zeros and a one leave a twentieth.
    near = 2.0 if radius < 2 else 0.15 if radius == 2 else 2 * grid(1.0)
    assert np.abs(released - approx).max() <= near


def test_large_values_are_rounded_as_exactly_as_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value's multiple of the grid is set aside before noise comes near it."""
    with_key(monkeypatch, bytes(32))
    small = add_gaussian_noise(np.full(500, 0.25), 1.0)
    large = add_gaussian_noise(np.full(500, 2.0**40 + 0.25), 1.0)
    assert np.array_equal(large - 2.0**40, small)
