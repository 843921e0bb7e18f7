"""What the coordinator gets of one silo cannot be told from noise: a million words, masked by the silo's own code.

Masks come from fresh keys, so these tests are not seeded. Each statistic is compared with a bound that uniform words pass by
chance at most once in 10^7 (:data:`FALSE_ALARM`), by the exact distribution or a bound of its tail.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2, norm, poisson

from tests.secure_silos import Attempt, Consortium, Words

WORDS = 10**6
FALSE_ALARM = 1e-7

INPUTS = {
    "zeros": lambda dtype: np.zeros(WORDS, dtype),
    "a constant": lambda dtype: np.full(WORDS, 0x01234567, dtype),
    "the largest word": lambda dtype: np.full(WORDS, np.iinfo(dtype).max, dtype),
}


@lru_cache(maxsize=2)
def masked(name: str, dtype: type) -> dict[int, Words]:
    """The masked vectors of three silos that all have the same input."""
    one = Attempt(Consortium(3), [INPUTS[name](dtype)] * 3, dtype).until("mask")
    one.mask()
    return one.masked


def fields(words: Words) -> dict[str, NDArray[np.intp]]:
    """Numbers from 0 to 255 out of the words: every byte, their top and bottom eight bits, and bits that lie across bytes."""
    bits = words.dtype.itemsize * 8
    wanted = {"all bytes": words.view(np.uint8), "top bits": words >> words.dtype.type(bits - 8), "bottom bits": words & 255}
    wanted["bits across bytes"] = (words >> words.dtype.type(12)) & 255
    return {name: value.astype(np.intp) for name, value in wanted.items()}


def uneven(values: NDArray[np.intp], chance: float = FALSE_ALARM) -> bool:
    """Pearson's chi-square test of uniformity over 0..255; two-sided, for a count that is too even is no chance either."""
    counts = np.bincount(values, minlength=256)
    expected = len(values) / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return not chi2.ppf(chance / 2, 255) <= statistic <= chi2.isf(chance / 2, 255)


def biased(ones: int, n: int, chance: float) -> bool:
    """Whether so many ones of ``n`` fair coins are that rare (Hoeffding's bound, so it holds at any n)."""
    return abs(ones - n / 2) > math.sqrt(n * math.log(2 / chance) / 2)


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("name", INPUTS)
def test_the_bytes_of_a_masked_vector_are_uniform_whatever_is_in_it(name: str, dtype: type) -> None:
    for words in masked(name, dtype).values():
        for what, values in fields(words).items():
            assert not uneven(values, FALSE_ALARM / 12), what


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("name", INPUTS)
def test_every_bit_of_a_masked_vector_is_a_fair_coin(name: str, dtype: type) -> None:
    words = masked(name, dtype)[0]
    for bit in range(dtype(0).nbytes * 8):
        ones = int(np.count_nonzero(words >> dtype(bit) & dtype(1)))
        assert not biased(ones, WORDS, FALSE_ALARM / 64), bit


def test_these_tests_find_what_is_not_uniform() -> None:
    """One word in 200 that is not masked, a key stream of 31 bits, a generator whose bytes are too even."""
    words = masked("zeros", np.uint32)[0].copy()
    words[::200] = 0
    assert uneven(fields(words)["all bytes"])
    assert uneven(fields(words)["top bits"])
    assert uneven(fields(words)["bottom bits"])
    assert biased(int(np.count_nonzero(words >> 31)), WORDS, FALSE_ALARM / 64) is False  # 2,500 of 10^6: the bytes find it
    short = masked("zeros", np.uint32)[0] >> np.uint32(1)
    assert uneven(fields(short)["top bits"])
    assert biased(int(np.count_nonzero(short >> 31)), WORDS, FALSE_ALARM / 64)
    assert uneven(np.arange(WORDS) % 256)


def test_the_same_input_in_two_rounds_gives_vectors_that_have_nothing_in_common() -> None:
    """Of the same silo, in the same run."""
    silos = Consortium(3)
    two = []
    for _ in range(2):
        attempt = Attempt(silos, [INPUTS["a constant"](np.uint32)] * 3).until("mask")
        attempt.mask()
        two.append(attempt.masked[0])
    assert not relations(*two)


def test_two_silos_with_the_same_input_give_vectors_that_have_nothing_in_common() -> None:
    """Though their pairwise mask is in both, with opposite signs."""
    vectors = masked("zeros", np.uint32)
    assert not relations(vectors[0], vectors[1])


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_the_sum_of_all_masked_vectors_is_noise_until_the_self_masks_are_told(dtype: type) -> None:
    """Pairwise masks cancel in it. A coordinator that calls a silo gone, and adds its vector after all, has this."""
    total = sum(masked("zeros", dtype).values())
    for what, values in fields(total).items():
        assert not uneven(values, FALSE_ALARM / 8), what


def test_vectors_that_share_masks_are_found_to_be_related() -> None:
    """What would happen if a round's masks were used again: the difference of two vectors is that of their inputs."""
    words = masked("zeros", np.uint32)[0][: WORDS // 5]
    assert relations(words, words + np.uint32(5)) == {"correlation", "difference", "bits"}
    assert relations(words, np.roll(words, 1)) == {"equal anywhere"}
    half = np.where(np.arange(len(words)) % 2, words, np.roll(words, 7))
    assert relations(words, half) == {"equal here", "equal anywhere", "correlation", "difference", "bits"}
    assert "correlation" in relations(words, -words)


def relations(one: Words, other: Words) -> set[str]:
    """What two vectors of uniform 32-bit words have in common beyond chance: equal words in equal places, or anywhere;
    correlation; a difference that is not uniform; equal bits.
    """
    n, found = len(one), set()
    if int(np.count_nonzero(one == other)) > most_by_chance(n / 2**32):
        found.add("equal here")
    common = len(np.intersect1d(one, other))  # of 10^12 pairs one in 2^32 is equal: 232.8 are expected
    expected = 2**32 * (1 - (1 - 2.0**-32) ** n) ** 2
    if not least_by_chance(expected) <= common <= most_by_chance(expected):
        found.add("equal anywhere")
    correlation = np.corrcoef(one.astype(np.float64), other.astype(np.float64))[0, 1]
    if abs(correlation) * math.sqrt(n) > norm.isf(FALSE_ALARM / 2):
        found.add("correlation")
    if uneven(fields(one - other)["all bytes"]):
        found.add("difference")
    if biased(int(np.bitwise_count(one ^ other).sum()), 32 * n, FALSE_ALARM):
        found.add("bits")
    return found


def most_by_chance(mean: float) -> int:
    """The largest count that is not rarer than :data:`FALSE_ALARM`.

    Chernoff's bound of a Poisson count, ``P[X >= k] <= exp(k - mean) * (mean / k)^k``, holds for sums of independent coins with
    that mean, and for coins that are negatively associated, as the indicators of values that were drawn are.
    """
    k = math.ceil(mean) + 1
    while k - mean + k * math.log(mean / k) > math.log(FALSE_ALARM / 2):
        k += 1
    return k - 1


def least_by_chance(mean: float) -> int:
    """The smallest one, by the same bound of the other tail."""
    k = math.floor(mean)
    while k >= 0 and k - mean + (k * math.log(mean / k) if k else 0.0) > math.log(FALSE_ALARM / 2):
        k -= 1
    return k + 1


def test_the_bounds_of_chance_are_near_the_exact_tails() -> None:
    """A bound that is too wide would let everything pass."""
    for mean, near in ((WORDS / 2**32, 1), (30.0, 6), (232.8, 10)):
        assert 0 <= most_by_chance(mean) - poisson.isf(FALSE_ALARM / 2, mean) <= near
        assert 0 <= poisson.ppf(FALSE_ALARM / 2, mean) - least_by_chance(mean) <= near
