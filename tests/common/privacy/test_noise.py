"""Noise is Gaussian with the claimed standard deviation, and nobody can make it again.

The checks are functions that give complaints: real noise must have none, planted weak noise must have the one that it deserves.
Each check raises a false alarm once in ten million runs, that for repeated numbers once in a million; the file as a whole, with
17 checks of each kind of noise and those of coins, six times in a million.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from common.errors import PrivacyError
from common.privacy.noise import PAIRS, TERMS, gaussian_noise, poisson_mask, standard_normal

Draw = Callable[[int], NDArray[np.float64]]
Complaints = Callable[[Draw], set[str]]
ALARM = 1e-7

both = pytest.mark.parametrize("hardened", [True, False], ids=["hardened", "fast"])


def of_shape(draw: Draw) -> set[str]:
    """Mean, variance, kurtosis, distribution, and correlations within a call; 12 checks."""
    n, found = 2_000_000, set()
    z = draw(n)
    z_limit = stats.norm.isf(ALARM / 2) + 0.2  # + 0.2: products and fourth powers are a little skewed
    if abs(z.sum()) / np.sqrt(n) > z_limit:
        found.add("mean")
    if not stats.chi2.ppf(ALARM / 2, n) < (z**2).sum() < stats.chi2.isf(ALARM / 2, n):
        found.add("variance")
    if abs((z**4).mean() - 3) / np.sqrt(96 / n) > z_limit:
        found.add("kurtosis")
    if stats.kstest(z[:500_000], "norm").pvalue < ALARM:
        found.add("distribution")
    half = n // 2
    for name, lag in {"next": 1, "cosine and sine": PAIRS, "next block": 2 * PAIRS, "half": half}.items():
        a, b = z[:half], z[lag : lag + half]
        if any(abs(np.corrcoef(x, y)[0, 1]) * np.sqrt(half) > z_limit for x, y in ((a, b), (a**2, b**2))):
            found.add(name)
    return found


def of_tails(draw: Draw) -> set[str]:
    """Exact binomial bounds for what is beyond 4 and 5 deviations: of 30 million numbers, 1,900 and 17; 2 checks."""
    n, blocks = 1_000_000, 30
    counts = np.zeros(2, dtype=int)
    for _ in range(blocks):
        size = np.abs(draw(n))
        counts += [(size > 4).sum(), (size > 5).sum()]
    found = set()
    for limit, seen in zip((4, 5), counts, strict=True):
        law = stats.binom(blocks * n, 2 * stats.norm.sf(limit))
        if law.cdf(seen) < ALARM / 2 or law.sf(seen - 1) < ALARM / 2:
            found.add(f"beyond {limit}")
    return found


def of_calls(draw: Draw) -> set[str]:
    """No number comes twice, no call comes twice, calls are not correlated; 3 checks.

    Two of 100,000 numbers of 53 bits are the same once in a million runs; of 24 bits, 300 would be.
    """
    found = set()
    if len(np.unique(draw(100_000))) < 100_000:
        found.add("numbers repeat")
    calls = np.array([draw(2) for _ in range(4_000)])
    if len(np.unique(calls, axis=0)) < len(calls):
        found.add("calls repeat")
    n = 1_000_000
    if abs(np.corrcoef(draw(n), draw(n))[0, 1]) * np.sqrt(n) > stats.norm.isf(ALARM / 2) + 0.2:
        found.add("calls are correlated")
    return found


@both
@pytest.mark.parametrize("complaints", [of_shape, of_tails, of_calls], ids=["shape", "tails", "calls"])
def test_the_draws_are_gaussian_with_the_claimed_standard_deviation(complaints: Complaints, hardened: bool) -> None:
    assert complaints(lambda n: gaussian_noise((n,), 3.7, hardened=hardened) / 3.7) == set()


Weak = Callable[[np.random.Generator, int], NDArray[np.float64]]
"""A source that must be caught; it is seeded, so that it is caught in every run."""


def _of_24_bits(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return stats.norm.ppf((rng.integers(2**24, size=n) + 0.5) * 2.0**-24)


def _of_a_16_bit_seed(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return np.random.default_rng(int(rng.integers(2**16))).normal(size=n)


def _of_one_seed(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return np.random.default_rng(1).normal(size=n)


def _of_twelve_uniforms(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return np.sum([rng.random(n) for _ in range(12)], axis=0) - 6


def _one_angle_for_both(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    z = rng.normal(size=(-(-n // (2 * PAIRS)), 2, PAIRS))
    z[:, 1] = z[:, 0]
    return z.reshape(-1)[:n]


@pytest.mark.parametrize(
    ("complaints", "weak", "caught"),
    [
        (of_shape, lambda rng, n: rng.normal(size=n) * 1.005, "variance"),
        (of_shape, lambda rng, n: rng.normal(size=n) + 0.005, "mean"),
        (of_shape, lambda rng, n: rng.standard_t(100, size=n) * np.sqrt(0.98), "kurtosis"),
        (of_shape, lambda rng, n: rng.laplace(scale=np.sqrt(0.5), size=n), "distribution"),
        (of_shape, _one_angle_for_both, "cosine and sine"),
        (of_tails, _of_twelve_uniforms, "beyond 4"),
        (of_tails, lambda rng, n: np.clip(rng.normal(size=n), -4.95, 4.95), "beyond 5"),
        (of_calls, _of_24_bits, "numbers repeat"),
        (of_calls, _of_a_16_bit_seed, "calls repeat"),
        (of_calls, _of_one_seed, "calls are correlated"),
    ],
    ids=["std", "mean", "t", "laplace", "one angle", "twelve uniforms", "no tail", "24 bits", "16-bit seed", "one seed"],
)
def test_weak_noise_is_caught_by_the_same_checks(complaints: Complaints, weak: Weak, caught: str) -> None:
    rng = np.random.default_rng(20240611)
    assert caught in complaints(lambda n: weak(rng, n))


def test_no_seed_brings_the_noise_back() -> None:
    def draw() -> NDArray[np.float64]:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  the global generator must not matter
        torch.manual_seed(0)
        return gaussian_noise((1000,), 1.0)

    first, second = draw(), draw()
    assert not (first == second).any()


def test_pytorch_keeps_32_bits_of_a_seed() -> None:
    """Why its generator is not used: 2³² noise vectors can be tried."""
    first, second = (torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5 + 2**32))
    assert torch.equal(first, second)


@pytest.mark.slow
def test_a_seed_of_32_bits_repeats_itself_and_the_cipher_does_not() -> None:
    """250,000 calls of 2³² possible ones have 7 pairs alike; of 2²⁵⁶, none."""
    seeds, generator = np.random.default_rng(3).integers(2**63, size=250_000), torch.Generator()
    weak = [tuple(torch.randn(2, generator=generator.manual_seed(int(seed)), dtype=torch.float64).tolist()) for seed in seeds]
    assert len(set(weak)) < len(weak)
    strong = [tuple(gaussian_noise((2,), 1.0).tolist()) for _ in seeds]
    assert len(set(strong)) == len(strong)


@both
def test_each_call_takes_one_fresh_key_and_nothing_else(hardened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = os.urandom

    def counted(n: int) -> bytes:
        asked.append(n)
        return real(n)

    monkeypatch.setattr(os, "urandom", counted)
    gaussian_noise((5 * PAIRS + 1,), 1.0, hardened=hardened)
    gaussian_noise((3,), 1.0, hardened=hardened)
    poisson_mask(10, 0.5)
    assert asked == [32, 32, 32]


def test_the_key_decides_all_of_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of the key: other noise. The same key: the same noise, so nothing else goes into it."""
    keys = iter([bytes(32), bytes(32), b"\x01" + bytes(31)])
    monkeypatch.setattr(os, "urandom", lambda n: next(keys)[:n])
    first, again, other = (gaussian_noise((3 * PAIRS,), 1.0) for _ in range(3))
    assert np.array_equal(first, again)
    assert not (first == other).any()


@both
def test_numbers_are_those_of_box_and_muller_by_a_loop(hardened: bool) -> None:
    """The same words, number by number, with Python's own functions."""
    import math

    terms, pairs = TERMS if hardened else 1, 50
    words = np.frombuffer(os.urandom(16 * terms * pairs), dtype=np.uint64).reshape(terms, 2, pairs)
    got = standard_normal(words)
    for pair in range(pairs):
        cosine = sine = 0.0
        for radius, angle in words[:, :, pair].tolist():
            r = math.sqrt(-2 * math.log(((radius >> 1) + 0.5) / 2**63))
            phi = math.pi * (angle if angle < 2**63 else angle - 2**64) / 2**63
            cosine, sine = cosine + r * math.cos(phi), sine + r * math.sin(phi)
        assert got[0, pair] == pytest.approx(cosine / math.sqrt(terms), abs=1e-14)
        assert got[1, pair] == pytest.approx(sine / math.sqrt(terms), abs=1e-14)


@both
@pytest.mark.parametrize("radius", [0, 1, 2**64 - 1])
@pytest.mark.parametrize("angle", [0, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
def test_the_rarest_words_give_a_number(radius: int, angle: int, hardened: bool) -> None:
    words = np.tile(np.array([[radius], [angle]], dtype=np.uint64), (TERMS if hardened else 1, 1, 1))
    draws = standard_normal(words)
    assert np.isfinite(draws).all()
    assert np.abs(draws).max() < (18.9 if hardened else 9.5)


@both
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (2, 3, 5), (2 * PAIRS + 1,), (4, PAIRS)])
def test_every_shape(shape: tuple[int, ...], hardened: bool) -> None:
    draws = gaussian_noise(shape, 1.0, hardened=hardened)
    assert draws.shape == shape
    assert draws.dtype == np.float64
    assert len(np.unique(draws)) == draws.size


def test_no_deviation_is_no_noise() -> None:
    assert not gaussian_noise((10,), 0.0).any()


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_an_impossible_deviation_is_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="standard deviation"):
        gaussian_noise((10,), std)


@pytest.mark.parametrize("probability", [1e-3, 0.25, 0.9])
def test_coins_fall_with_their_probability_and_independently(probability: float) -> None:
    """Exact binomial bounds for the number and for pairs of neighbours; four checks, 4 in ten million."""
    n = 1_000_000
    mask = poisson_mask(n, probability)
    law = stats.binom(n, probability)
    assert law.ppf(ALARM / 2) <= mask.sum() <= law.isf(ALARM / 2)
    law = stats.binom(n // 2, probability**2)
    for pairs in (mask[::2] & mask[1::2], mask[: n // 2] & mask[n // 2 :]):
        assert law.ppf(ALARM / 2) <= pairs.sum() <= law.isf(ALARM / 2)
    assert not np.array_equal(mask, poisson_mask(n, probability))


def test_coins_compare_whole_words_with_the_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    """At one half the highest bit decides; a probability below 2⁻⁶⁴ is none; one is everybody, also with the highest word."""
    words = np.array([0, 2**63 - 1, 2**63, 2**64 - 1], dtype=np.uint64)
    monkeypatch.setattr("common.privacy.chacha.Stream.words", lambda self, n: words[:n])
    assert poisson_mask(4, 0.5).tolist() == [True, True, False, False]
    assert poisson_mask(4, 2.0**-65).tolist() == [False] * 4
    assert poisson_mask(4, 2.0**-64).tolist() == [True, False, False, False]
    assert poisson_mask(4, 1.0).tolist() == [True] * 4


@pytest.mark.parametrize("n", [0, 1, 4 * PAIRS, 4 * PAIRS + 3])
def test_coins_for_any_number_of_users(n: int) -> None:
    assert poisson_mask(n, 0.5).shape == (n,)
    assert not poisson_mask(n, 0.0).any()


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_an_impossible_probability_is_refused(probability: float) -> None:
    with pytest.raises(PrivacyError, match="probability"):
        poisson_mask(5, probability)
