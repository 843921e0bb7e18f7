"""Whole-number noise is exactly the discrete Gaussian: each step against whole-number arithmetic, the whole against sums."""

from __future__ import annotations

import math
import os
import tracemalloc
from collections.abc import Iterator, Sequence
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from common.errors import PrivacyError
from common.privacy import discrete
from common.privacy.chacha import Stream
from common.privacy.discrete import MOST_VARIANCE, discrete_gaussian

RARE = 1e-7
"""Chance that a right sampler fails one of the statistical tests."""

VARIANCES = [1, 2, 3, 7, 100, 10**4, 2**40 + 12345, 2**66 - 1, 2**66, 2**67 + 1, 3 * 2**98 + 7, MOST_VARIANCE]


def masses(variance: int) -> NDArray[np.float64]:
    """The discrete Gaussian's probabilities of 0, 1, 2, … as far as 15 deviations, by plain sums of 50 digits."""
    with mpmath.workdps(50):
        weights = [mpmath.exp(-mpmath.mpf(k * k) / (2 * variance)) for k in range(15 * math.isqrt(variance) + 15)]
        total = weights[0] + 2 * mpmath.fsum(weights[1:])
        return np.array([float(weight / total) for weight in weights])


def below_exp(digits: int, bits: int, power: Fraction) -> tuple[bool, bool]:
    """Of the numbers whose first ``bits`` are ``digits``: are all below exp(power), and is any? By 200 decimal digits."""
    with mpmath.workdps(200):
        edge = mpmath.exp(mpmath.mpf(power.numerator) / power.denominator) * mpmath.mpf(2) ** bits
        return digits + 1 <= edge, digits < edge


class Scripted:
    """A stream whose words are given; it has no others."""

    def __init__(self, words: Sequence[int]) -> None:
        self._words: Iterator[int] = iter(words)

    def words(self, n: int) -> NDArray[np.uint64]:
        return np.array([next(self._words) for _ in range(n)], dtype=np.uint64)


def with_digits(monkeypatch: pytest.MonkeyPatch, *words: int) -> None:
    """Each number that is looked at again finds ``words`` as its next digits, and none after them."""
    monkeypatch.setattr(discrete, "Stream", lambda: Scripted(words))


# What is computed


@settings(deadline=None)
@given(st.integers(1, MOST_VARIANCE), st.data())
def test_a_number_is_kept_with_a_probability_proportional_to_its_mass(variance: int, data: st.DataObject) -> None:
    """P[U, V]·exp(-γ) is exp(-X²/(2σ²)) but for a factor that is the same for all, in fractions."""
    t = 2 ** discrete._width(variance)
    assert t * t <= 2 * variance < 4 * t * t
    u, v = data.draw(st.integers(0, t - 1)), data.draw(st.integers(0, 60))
    gamma = discrete._exact_gamma(u, v, variance)
    assert gamma >= 0
    x = u + t * v
    assert v + gamma == Fraction(x * x, 2 * variance) + Fraction(variance, 2 * t * t)
    assert divmod(x, t) == (v, u)  # each magnitude comes from one U and V


@pytest.mark.parametrize("variance", VARIANCES)
def test_double_precision_is_within_an_eighth_of_the_margin(variance: int) -> None:
    """The chance of 2,000 tries, of the least and of the most numbers, against 60 digits."""
    bits = discrete._width(variance)
    random = np.random.default_rng(3)
    u, v = random.integers(0, 2**bits, 2000), random.integers(0, 12, 2000)
    u[:12], u[12:24] = 0, 2**bits - 1
    v[:12] = v[12:24] = range(12)
    v[24:40] = range(30, 46)
    got = np.exp(-discrete._gamma(u, v, variance))
    gammas = [discrete._exact_gamma(int(a), int(b), variance) for a, b in zip(u, v, strict=True)]
    with mpmath.workdps(60):
        worst = max(
            abs(mpmath.mpf(float(number)) - mpmath.exp(-mpmath.mpf(g.numerator) / g.denominator))
            for number, g in zip(got, gammas, strict=True)
        )
    # The proof allows 64 units in the last place to the exponential; the word as a double and the difference take 3e more.
    assert worst + 3 * 2.0**-53 < discrete.MARGIN / 8


def test_thresholds_are_the_digits_of_powers_of_e() -> None:
    with mpmath.workdps(200):
        assert discrete._thresholds().tolist() == [int(mpmath.floor(mpmath.exp(-v) * 2**64)) for v in range(1, 46)]
    assert discrete._thresholds()[-2:].tolist() == [1, 0]


def test_a_word_gives_the_geometric_number_of_its_digits() -> None:
    """Random words and the words next to each threshold, by comparing 200 digits."""
    words = Stream().words(3000)
    edges = discrete._thresholds()
    words = np.concatenate([words, edges[:-1] + np.uint64(1), edges[:-2] - np.uint64(1), np.array([2**64 - 1], np.uint64)])
    words = words[~np.isin(words, edges)]
    with mpmath.workdps(200):
        expected = [int(mpmath.floor(-mpmath.log(mpmath.mpf(2 * int(w) + 1) / 2**65))) for w in words]
    assert discrete._geometric(words).tolist() == expected
    assert [discrete._Uniform(int(w)).geometric() for w in words[:300]] == expected[:300]
    assert set(expected) >= set(range(43))


@pytest.mark.parametrize("v", [1, 2, 9, 44])
def test_a_word_that_equals_a_threshold_is_decided_by_the_digits_after_it(v: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with mpmath.workdps(200):
        digits = int(mpmath.floor(mpmath.exp(-v) * 2**192))
    first, second, third = digits >> 128, digits >> 64 & 2**64 - 1, digits & 2**64 - 1
    word = np.array([first, 2**64 - 1, first], dtype=np.uint64)
    for more, expected in (
        ([second - 1], v),
        ([second + 1], v - 1),
        ([second, third - 1], v),
        ([second, third + 1], v - 1),
    ):
        with_digits(monkeypatch, *more)
        assert discrete._geometric(word).tolist() == [expected, 0, expected]


def test_a_word_of_zeros_goes_as_far_as_its_digits_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for more, expected in (([2**64 - 1], 44), ([1], 88), ([0, 3], 131)):
        with_digits(monkeypatch, *more)
        assert discrete._geometric(np.array([0], dtype=np.uint64)).tolist() == [expected]


@settings(deadline=None)
@given(st.integers(0, 2**192 - 1), st.fractions(Fraction(0), Fraction(50)))
def test_the_second_look_compares_as_200_digits_do(digits: int, gamma: Fraction) -> None:
    everywhere, somewhere = below_exp(digits >> 128, 64, -gamma)
    if everywhere == somewhere:  # else its digits are to be drawn
        assert discrete._Uniform(digits >> 128).is_below_exp(-gamma) is everywhere


@settings(deadline=None)
@given(st.fractions(Fraction(1, 1000), Fraction(40)), st.integers(-2, 2), st.integers(0, 2))
def test_the_second_look_draws_as_many_digits_as_it_takes(gamma: Fraction, beside: int, words: int) -> None:
    """Numbers that share 64, 128 or 192 digits with exp(-γ), and differ in the last one or two, or not at all."""
    bits = 64 * (words + 1)
    with mpmath.workdps(200):
        edge = int(mpmath.floor(mpmath.exp(-mpmath.mpf(gamma.numerator) / gamma.denominator) * 2**bits))
    digits = min(max(edge + beside, 0), 2**bits - 1)
    everywhere, somewhere = below_exp(digits, bits, -gamma)
    with pytest.MonkeyPatch.context() as patch:
        with_digits(patch, *((digits >> 64 * i) % 2**64 for i in range(words - 1, -1, -1)))
        number = discrete._Uniform(digits >> 64 * words)
        if everywhere == somewhere:
            assert number.is_below_exp(-gamma) is everywhere
        else:
            with pytest.raises(StopIteration):  # it asks for more
                number.is_below_exp(-gamma)


def test_a_probability_of_one_needs_no_more_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    with_digits(monkeypatch)
    assert discrete._Uniform(2**64 - 1).is_below_exp(Fraction(0))
    assert discrete._exact_gamma(0, 1, 1) == 0  # it occurs


@pytest.mark.parametrize("variance", [3, 2**67 + 1, MOST_VARIANCE])
def test_coins_next_to_their_chance_fall_as_200_digits_say(variance: int) -> None:
    """Words that differ from exp(-γ) in the last of 64 digits: double precision is often wrong there, the sampler never."""
    n = 600
    bits = discrete._width(variance)
    words = Stream().words(3 * n).reshape(3, n)
    words[0] &= np.uint64(2**63 - 1)  # no minus zero
    u, v = (words[0] & np.uint64(2**bits - 1)).astype(np.int64), discrete._geometric(words[1])
    gammas = [discrete._exact_gamma(int(a), int(b), variance) for a, b in zip(u, v, strict=True)]
    random = np.random.default_rng(11)
    with mpmath.workdps(200):
        for i, gamma in enumerate(gammas):
            edge = int(mpmath.floor(mpmath.exp(-mpmath.mpf(gamma.numerator) / gamma.denominator) * 2**64))
            words[2, i] = min(max(edge + int(random.choice([-40, -1, 1, 40])), 0), 2**64 - 1)
    expected = [below_exp(int(word), 64, -gamma)[0] for word, gamma in zip(words[2], gammas, strict=True)]
    x = (v << bits) + u
    assert discrete._kept(words, variance).tolist() == x[expected].tolist()
    double = words[2] * 2.0**-64 < np.exp(-discrete._gamma(u, v, variance))
    assert (double != expected).mean() > 0.1


@pytest.mark.parametrize("variance", [1, 2, 100, 2**66, MOST_VARIANCE])
def test_a_second_look_at_every_coin_changes_no_number(variance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound so large that no coin is decided in double precision, the same words give the same numbers."""
    monkeypatch.setattr(os, "urandom", lambda n: bytes(range(n)))
    monkeypatch.setattr(discrete, "BLOCK", 100)
    fast = discrete_gaussian(301, variance)
    looks: list[int] = []
    tries: list[int] = []
    look, keep = discrete._Uniform.is_below_exp, discrete._kept
    monkeypatch.setattr(discrete._Uniform, "is_below_exp", lambda self, power: looks.append(1) or look(self, power))
    monkeypatch.setattr(discrete, "_kept", lambda words, v: tries.append(words.shape[1]) or keep(words, v))
    monkeypatch.setattr(discrete, "MARGIN", 2.0)
    slow = discrete_gaussian(301, variance)
    assert len(looks) == sum(tries) > 301
    assert np.array_equal(fast, slow)


# What comes out


@pytest.mark.parametrize("variance", [1, 2, 3, 100, 10**4])
def test_numbers_have_the_masses_of_the_discrete_gaussian(variance: int) -> None:
    """Chi-square against sums of 50 digits; cells of fewer than 20 numbers are put together."""
    n = 1_000_000
    noise = discrete_gaussian(n, variance)
    mass = masses(variance)
    reach = np.flatnonzero(n * mass >= 20).max()
    expected = n * np.concatenate([mass[reach:0:-1], mass[: reach + 1]])
    expected = np.append(expected, n - expected.sum())
    inside = noise[np.abs(noise) <= reach]
    seen = np.append(np.bincount(inside + reach, minlength=2 * reach + 1), n - len(inside))
    assert stats.chisquare(seen, expected).pvalue > RARE


@pytest.mark.parametrize("bits", [20, 33, 40, 50])
def test_wide_noise_is_normal_in_its_high_digits_and_uniform_in_its_low_ones(bits: int) -> None:
    """Kolmogorov-Smirnov and chi-square over 200 cells of the normal distribution, chi-square over the last 8 bits."""
    n, std = 1_000_000, 2**bits
    noise = discrete_gaussian(n, std * std)
    assert stats.kstest(noise / std, stats.norm.cdf).pvalue > RARE
    cells = np.searchsorted(stats.norm.ppf(np.arange(1, 200) / 200), noise / std)
    assert stats.chisquare(np.bincount(cells, minlength=200)).pvalue > RARE
    assert stats.chisquare(np.bincount(noise & 255, minlength=256)).pvalue > RARE


@pytest.mark.parametrize("variance", [1, 50, 2**41 + 1, 2**66, MOST_VARIANCE])
def test_noise_has_mean_zero_and_the_variance_that_was_asked_for(variance: int) -> None:
    n = 1_000_000
    z = discrete_gaussian(n, variance) / float(variance) ** 0.5
    assert abs(z.sum()) / n**0.5 < stats.norm.isf(RARE / 2)
    # The fourth moment of the standard normal is 3, and these numbers' for σ² ≥ 1 is so to 1e-5.
    assert abs((z * z - 1).sum()) / (2 * n) ** 0.5 < stats.norm.isf(RARE / 2)


@pytest.mark.parametrize("variance", [2, 2**66])
def test_sign_and_size_are_independent_and_so_are_neighbours(variance: int) -> None:
    noise = discrete_gaussian(1_000_000, variance)
    size = np.abs(noise)
    cells = np.searchsorted(np.unique(np.quantile(size[size > 0], np.arange(1, 20) / 20)), size)
    table = np.zeros((2, cells.max() + 1))
    np.add.at(table, ((noise > 0).astype(int)[noise != 0], cells[noise != 0]), 1)
    assert stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue > RARE
    for lag in (1, discrete.BLOCK):
        pairs = np.zeros((4, 4))
        quarter = np.searchsorted(np.quantile(noise, [0.25, 0.5, 0.75]), noise)
        np.add.at(pairs, (quarter[:-lag], quarter[lag:]), 1)
        pairs = pairs[pairs.sum(axis=1) > 0][:, pairs.sum(axis=0) > 0]
        assert stats.chi2_contingency(pairs).pvalue > RARE


@pytest.mark.parametrize("variance", [1, 9, 2**40, 2**66])
def test_noise_is_as_opendp_draws_it(variance: int) -> None:
    """Two-sample tests against the exact sampler of OpenDP, where that is installed."""
    dp = pytest.importorskip("opendp.prelude", exc_type=ImportError)
    dp.enable_features("contrib")
    theirs = dp.m.make_gaussian(dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T=float), scale=float(variance) ** 0.5)
    other, ours = np.array(theirs([0] * 50_000)), discrete_gaussian(1_000_000, variance)
    edges = np.unique(np.quantile(ours, np.arange(1, 40) / 40))
    table = np.array([np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) for x in (ours, other)])
    assert stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue > RARE
    if variance >= 2**40:
        assert stats.ks_2samp(ours, other).pvalue > RARE


# How it is asked for


@pytest.mark.parametrize("n", [0, 1, 2, 37, 20_000])
def test_as_many_numbers_come_as_were_asked_for(n: int) -> None:
    noise = discrete_gaussian(n, MOST_VARIANCE)
    assert noise.shape == (n,)
    assert noise.dtype == np.int64
    assert len(np.unique(noise)) == n  # the chance of two alike is below n²·2⁻⁵² = 9e-8


def test_two_calls_share_no_number() -> None:
    assert not set(discrete_gaussian(1000, MOST_VARIANCE).tolist()) & set(discrete_gaussian(1000, MOST_VARIANCE).tolist())


@pytest.mark.parametrize("variance", [0, -1, MOST_VARIANCE + 1, 1.0, True, None])
def test_a_variance_that_is_no_whole_number_in_range_is_refused(variance: object) -> None:
    with pytest.raises(PrivacyError, match="whole number from 1"):
        discrete_gaussian(3, variance)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [-1, 2.0, True])
def test_a_number_of_draws_that_is_none_is_refused(n: object) -> None:
    with pytest.raises(PrivacyError, match="cannot be drawn"):
        discrete_gaussian(n, 3)  # type: ignore[arg-type]


def test_memory_beside_the_result_does_not_grow_with_it() -> None:
    beside = {}
    for n in (100_000, 100_000, 1_000_000):  # once to load what it needs
        tracemalloc.start()
        discrete_gaussian(n, 2**66)
        beside[n] = tracemalloc.get_traced_memory()[1] - 8 * n
        tracemalloc.stop()
    assert beside[1_000_000] < 4 * 2**20
    assert beside[1_000_000] < 1.2 * beside[100_000] + 2**16
