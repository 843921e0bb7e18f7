"""Randomness that protects: Gaussian noise, and the coins that choose the users of a step.

Nobody must be able to compute the noise again. A seeded generator is as strong as its seed is long: PyTorch's on a CPU keeps 32
bits of whatever it is seeded with, so all its noise vectors can be tried, and one that leaves plausible counts behind is the
right one. Here every call has its own stream of a cipher under a fresh 256-bit key (:mod:`common.privacy.chacha`).

**Which numbers can come out.** A draw is made by the transform of Box & Muller (1958) in its cosine form: no rejection, so every
draw takes the same work and the same number of words, whatever its value. Both numbers of a pair are released, so a *single*
draw can be undone: radius and angle of the pair give back the two uniform numbers, and a wrong guess of what was under the noise
shows, because no uniform numbers lead there (Mironov 2012 for Laplace noise; Holohan & Braghin 2021, arXiv:2107.10138, and Jin
et al. 2022, arXiv:2112.05307, for Gaussian). ``hardened`` is Holohan & Braghin's answer: the Gaussian is infinitely divisible,
so a draw may be the sum of several, over the root of their number. They count ``2^(53·(2n-1))`` trials for a sum of 2n draws of
which two each share their uniform numbers; Opacus takes n = 2, four draws, 2^159. Here the four draws of a number come from four
*different* pairs, since cosine and sine of one angle add up to no more than one draw. The two numbers that share four pairs hang
on eight uniform numbers of at least 53 bits: to try them is to guess three pairs, 2^318, and undo the fourth; meeting in the
middle takes 2^212 time and memory. What is found then says little: some 2^318 choices lead to each pair of numbers, whatever was
under it.

**What that does not give.** It is a count of work, not a proof. It is about which numbers can come out, not how often. And it
does not look at the addition: noise has a last binary place of its own, and where value and noise nearly cancel, bits of the
value that are finer stay in the result as they were (Haney et al. 2022, arXiv:2207.13793). :mod:`common.privacy.rounding` closes
that: it adds noise and rounds the sum to a public grid, exactly as if both had been real numbers. Release through it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from common.errors import PrivacyError
from common.privacy.chacha import Stream

TERMS = 4
"""Draws in a hardened one; its root is exact."""

PAIRS = 2**12
"""Pairs made at a time: what a step works on stays in the processor's cache, and memory does not grow with the request."""


def gaussian_noise(shape: tuple[int, ...], std: float, *, hardened: bool = True) -> NDArray[np.float64]:
    """Independent draws from ``N(0, std²)``, float64.

    No draw lies beyond 18.9 standard deviations (9.5 where not ``hardened``); the mass out there is below 1e-20.

    Parameters
    ----------
    hardened:
        Each number is the sum of :data:`TERMS` draws over their root; else a single draw, in a quarter of the time. Both are
        made of the same cipher's words.

    Raises
    ------
    PrivacyError
        If ``std`` is negative or not a number.
    """
    if not (math.isfinite(std) and std >= 0):
        raise PrivacyError(f"the standard deviation of noise is {std}; it must be a number, not negative")
    noise = np.empty(math.prod(shape), dtype=np.float64)
    stream = Stream()
    for start in range(0, len(noise), 2 * PAIRS):
        part = noise[start : start + 2 * PAIRS]
        normal = standard_normal(box_muller_words(stream, len(part), hardened))
        np.multiply(normal.reshape(-1)[: len(part)], std, out=part)
    return noise.reshape(shape)


def box_muller_words(stream: Stream, n: int, hardened: bool) -> NDArray[np.uint64]:
    """Words for ``n`` numbers, uint64 ``(terms, 2, pairs)``: of each pair a radius and an angle."""
    return stream.words((TERMS if hardened else 1) * 2 * (pairs := (n + 1) // 2)).reshape(-1, 2, pairs)


def standard_normal(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Standard normal numbers, float64 ``(2, pairs)``, of words ``(terms, 2, pairs)``; ``terms`` is 1 or 4.

    Of a radius' word the upper 63 bits ``w`` are used, ``U = (w + ½)·2⁻⁶³`` in (0, 1], so that small numbers keep their digits
    and the tail is not cut off at 2⁻⁵³. An angle's word is a signed number ``a``, ``φ = π·a·2⁻⁶³``. Cosine and sine are had from
    the tangent of half the angle: one function instead of two.
    """
    radius = (words[:, 0] >> np.uint64(1)).view(np.int64) + 0.5
    radius *= 2.0**-63
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    sine = words[:, 1].view(np.int64) * (math.pi * 2.0**-64)
    np.tan(sine, out=sine)
    cosine = sine * sine
    radius /= cosine + 1.0
    np.subtract(1.0, cosine, out=cosine)
    cosine *= radius
    sine *= radius
    sine *= 2.0
    terms = len(words)
    if terms == 1:
        return np.concatenate([cosine, sine])
    return np.stack([cosine.sum(axis=0), sine.sum(axis=0)]) / math.sqrt(terms)


def poisson_mask(n: int, probability: float) -> NDArray[np.bool_]:
    """Independent coins, bool ``(n,)``, each True with ``probability``, rounded down to a multiple of 2⁻⁶⁴.

    Raises
    ------
    PrivacyError
        If ``probability`` is not between 0 and 1.
    """
    if not 0.0 <= probability <= 1.0:
        raise PrivacyError(f"a sampling probability is {probability}; it must be between 0 and 1")
    threshold = int(probability * 2.0**64)
    if threshold == 2**64:
        return np.ones(n, dtype=np.bool_)
    mask = np.empty(n, dtype=np.bool_)
    stream = Stream()
    for start in range(0, n, 4 * PAIRS):
        part = mask[start : start + 4 * PAIRS]
        np.less(stream.words(len(part)), np.uint64(threshold), out=part)
    return mask
