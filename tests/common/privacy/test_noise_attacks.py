"""Attacks on the digits of noise, carried out: what they get from single draws, from sums of four, and from rounded sums.

The attacker knows that the value under the noise was 0 or 1, in every coordinate, and sees what was released. Under real numbers
the answer would be a matter of odds. With floating-point numbers it can be a matter of fact.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from common.privacy.noise import PAIRS, gaussian_noise, standard_normal
from common.privacy.rounding import add_gaussian_noise, grid

STD = 1.3
Released = NDArray[np.float64]


def plain(truth: float, n: int, hardened: bool) -> Released:
    """Noise added in double precision: ``(2, pairs)``, cosines and sines."""
    return (truth + gaussian_noise((n,), STD, hardened=hardened)).reshape(2, -1)


def rounded(truth: float, n: int, hardened: bool) -> Released:
    return add_gaussian_noise(np.full(n, truth), STD, hardened=hardened).reshape(2, -1)


def explained(released: Released, guess: float, reach: int = 24) -> NDArray[np.bool_]:
    """Of each pair that is easy to undo: do words exist that lead from ``guess`` to it, if noise is a single draw?

    The attack of Holohan & Braghin (2021) and Jin et al. (2022) on the transform of Box & Muller, on 53 bits: radius and angle of
    the pair give the two uniform numbers up to rounding; those around them, ``reach`` to each side, are tried.
    """
    z = (released - guess) / STD
    easy = (np.abs(z) > 0.1).all(axis=0) & (np.hypot(*z) < 3)
    z, released = z[:, easy], released[:, easy]
    steps = np.arange(-reach, reach + 1)
    uniform = np.exp(-(z[0] ** 2 + z[1] ** 2) / 2)
    radius = ((uniform[:, None] + np.spacing(uniform)[:, None] * steps) * 2.0**63).astype(np.uint64) << np.uint64(1)
    turn = np.arctan2(z[1], z[0]) / math.pi * 2.0**63
    angle = (turn[:, None] + np.spacing(np.abs(turn))[:, None] * steps).clip(-(2.0**63), 2.0**63 - 1024).astype(np.int64)
    words = np.empty((1, 2, len(uniform), len(steps), len(steps)), dtype=np.uint64)
    words[0, 0], words[0, 1] = radius[:, :, None], angle.view(np.uint64)[:, None, :]
    tried = guess + STD * standard_normal(words.reshape(1, 2, -1)).reshape(words.shape[1:])
    return (tried == released[:, :, None, None]).all(axis=0).any(axis=(1, 2))


@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_a_single_draw_tells_what_was_under_it(truth: float) -> None:
    """The truth explains every pair; the other value would explain 60 pairs by chance once in 10²⁰ runs."""
    released = plain(truth, 2000, hardened=False)
    assert 2 * PAIRS >= 2000  # one block, so halves are cosines and sines
    right, wrong = explained(released, truth), explained(released, 1.0 - truth)
    assert len(right) > 600
    assert right.all()
    assert wrong.mean() < 0.6
    assert not wrong[:60].all()


@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_the_sum_of_four_cannot_be_undone_like_that(truth: float) -> None:
    """Neither value explains what was released: about half of the pairs at most, by chance. All 600: once in 10¹⁰⁰ runs."""
    released = plain(truth, 2000, hardened=True)
    for guess in (0.0, 1.0):
        assert 0 < explained(released, guess).mean() < 0.7


@pytest.mark.parametrize("hardened", [True, False], ids=["hardened", "fast"])
@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_rounded_sums_cannot_be_undone_either_even_of_single_draws(truth: float, hardened: bool) -> None:
    """As above: what explains a pair of multiples of the grid is chance."""
    released = rounded(truth, 2000, hardened)
    for guess in (0.0, 1.0):
        assert 0 < explained(released, guess).mean() < 0.7


def fine(released: Released) -> float:
    """The part of small results that are not multiples of 2⁻⁵³: 1 plus anything near -1 is one, always."""
    small = released[np.abs(released) < 0.125]
    return float((np.rint(small * 2.0**53) != small * 2.0**53).mean())


def test_even_the_sum_of_four_leaves_bits_of_the_value_where_noise_and_value_cancel() -> None:
    """The attack of Haney et al. (2022): one small result with a finer digit, and the value was not 1. Why sums are rounded.

    Half of the small results have such a digit; of 60,000, none does once in 10¹⁰⁰⁰⁰ runs.
    """
    for hardened in (True, False):
        assert fine(plain(0.0, 1_000_000, hardened)) > 0.3
        assert fine(plain(1.0, 1_000_000, hardened)) == 0.0


def test_rounded_sums_have_no_finer_digits_whatever_was_under_the_noise() -> None:
    for truth in (0.0, 1.0, 1 / 3, 1e-12):
        steps = rounded(truth, 100_000, hardened=True) / grid(STD)
        assert np.array_equal(steps, np.rint(steps))


# A machine so small that everything it can do is counted: floats of 4 binary digits, uniform numbers of 4 bits. Distributions are
# exact; no draw is made.
Law = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Pairs ``(n, 2)`` and their probabilities."""

_DIGITS = 4


def _float(x: NDArray[np.float64], digits: int = _DIGITS) -> NDArray[np.float64]:
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(mantissa * 2.0**digits), exponent - digits) + 0.0


def _law(pairs: NDArray[np.float64], weights: NDArray[np.float64]) -> Law:
    distinct, which = np.unique(np.ascontiguousarray(pairs).view(np.complex128).ravel(), return_inverse=True)
    return distinct.view(np.float64).reshape(-1, 2), np.bincount(which, weights)


def _single() -> Law:
    """All pairs that Box & Muller's transform can give."""
    uniform = (np.arange(2.0**_DIGITS) + 0.5) / 2**_DIGITS
    radius, angle = _float(np.sqrt(-2 * np.log(uniform)), 7), 2 * np.pi * uniform
    pairs = np.stack([np.multiply.outer(radius, _float(f(angle), 7)).ravel() for f in (np.cos, np.sin)], axis=1)
    return _law(_float(pairs), np.full(len(pairs), 1 / len(pairs)))


def _sum(a: Law, b: Law) -> Law:
    pairs = _float((a[0][:, None] + b[0][None]).reshape(-1, 2))
    return _law(pairs, np.multiply.outer(a[1], b[1]).ravel())


def _certain(noise: Law, terms: int, truth: float, spacing: float | None) -> float:
    """The probability that a release of ``truth`` could not have come from ``1 - truth``."""
    released = []
    for value in (truth, 1 - truth):
        pairs = _float(value + _float(noise[0] / math.sqrt(terms)))
        if spacing is not None:
            pairs = np.rint(pairs / spacing) * spacing + 0.0
        released.append(dict(zip(map(tuple, (law := _law(pairs, noise[1]))[0].tolist()), law[1].tolist(), strict=True)))
    return sum(p for pair, p in released[0].items() if pair not in released[1])


@pytest.fixture(scope="module")
def laws() -> dict[int, Law]:
    one = _single()
    two = _sum(one, one)
    return {1: one, 4: _sum(_sum(two, one), one)}


def test_on_a_machine_of_four_digits_all_can_be_counted(laws: dict[int, Law]) -> None:
    """A single draw leaves no doubt. A sum of four reaches nearly everything; rounded as well, it leaves hardly any certainty.

    Without rounding the sum still tells 0 from 1 half of the time, by digits that ``1 + noise`` cannot have. With rounding what
    is left is the tail of so small a machine: its noise ends at 2.6 deviations a draw.
    """
    assert [len(laws[terms][0]) for terms in (1, 4)] == [256, 20009]
    for law in laws.values():
        assert law[1].sum() == pytest.approx(1)
    assert min(_certain(laws[1], 1, truth, None) for truth in (0, 1)) > 0.97
    assert _certain(laws[4], 4, 1, None) < 1e-4
    assert _certain(laws[4], 4, 0, None) > 0.5
    for truth in (0, 1):
        assert _certain(laws[4], 4, truth, 0.25) < 1e-3
        assert _certain(laws[4], 4, truth, 0.5) < 3e-5
        assert _certain(laws[1], 1, truth, 0.5) > 0.25
