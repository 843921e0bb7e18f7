"""Noise is added and the sum is rounded to a public grid, exactly as if both were real numbers.

Proofs of differential privacy are about real numbers; floating-point sums are not real. Their low bits can show what was under
the noise even if the noise is perfect (Haney et al. 2022, arXiv:2207.13793). :func:`add_gaussian_noise` gives

    ``round((value + std·Z) / grid) · grid``,  Z standard normal, a real number,

that is, a function of what the Gaussian mechanism of the proof releases: post-processing, which costs nothing. The grid is a
power of two that follows from ``std`` alone, 2¹⁰ to 2¹¹ steps to a standard deviation. The variance it adds, ``grid²/12``, is
less than 8e-8 of the noise's.

**How a computer rounds a real number exactly.** As in interval refining (Haney et al.): the words of the stream are the first
digits of Z's uniform numbers; the digits after them are there but not yet drawn. Double precision gives the sum up to a bound,
and where no half-way point of the grid is within that bound, all further digits would round to the same multiple. Where one is
near, or where the bound does not hold (a uniform number within 2⁻²⁴ of 0 or 2⁻²² of 1), interval arithmetic takes over and draws
digits until the rounding is decided. That happens to about one number in 800,000.

**What it rests on.** The cipher. IEEE 754 arithmetic. NumPy's logarithm and tangent, to 64 units in the last place (its vector
code aims at 4; a test measures). ``mpmath``'s intervals for the rest. It does not make the *value* right: the bound on what one
user moves it by must hold for the number that was computed, with that sum's own rounding errors (Casacuberta et al. 2022,
arXiv:2207.10635). And the time of the rare second look depends on the value, too, about once in 100 million numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import PrivacyError
from common.privacy.chacha import Stream
from common.privacy.noise import PAIRS, box_muller_words, standard_normal

GRID_BITS = 10
"""A standard deviation is 2¹⁰ to 2¹¹ steps of the grid."""

MARGIN = 2.0**-28
"""Bound on the error of ``(value + std·Z) / grid`` in double precision, for numbers that :func:`_extreme` does not name.

With U in [2⁻²⁴, 1 - 2⁻²²]: the computed U is off by at most 2⁻⁶⁴ + 2⁻⁵³·U, which moves the radius ``sqrt(-2 ln U)`` by 2⁻⁴²·⁵ at
either end and less between; the angle is off by 2⁻⁵⁰, times a radius of at most 5.8. So one draw is off by less than 2⁻⁴², the
sum of four, halved, by less than 2⁻⁴¹. That is 2⁻³⁰ in steps of the grid, of which a standard deviation has less than 2¹¹. The
factor of 4 that is left is for the functions: 64 units in the last place of the logarithm and the tangent are a sixth of it.
"""

_LEAST, _MOST = np.uint64(2**40), np.uint64(2**64 - 2**42)
"""Words of a radius in the range of :data:`MARGIN`."""


def grid(std: float) -> float:
    """The spacing of the numbers that may be released with noise ``std``: a power of two in ``(std·2⁻¹¹, std·2⁻¹⁰]``.

    Raises
    ------
    PrivacyError
        If there is no noise, or its size is beyond reason.
    """
    if not 2.0**-400 < std < 2.0**400:
        raise PrivacyError(f"the standard deviation of noise is {std}; it must be a positive number")
    return math.ldexp(0.5, math.frexp(std)[1] - GRID_BITS)


def add_gaussian_noise(value: NDArray[np.float64], std: float, *, hardened: bool = True) -> NDArray[np.float64]:
    """What a Gaussian mechanism over real numbers would release, rounded to the grid of ``std``: float64, the same shape.

    Parameters
    ----------
    value:
        What is to be protected, any shape; float32 is widened, which is exact.
    hardened:
        As of :func:`common.privacy.noise.gaussian_noise`: a second line, should NumPy's functions be worse than assumed.

    Raises
    ------
    PrivacyError
        If ``std`` is not positive, or a number is not finite or too large for the grid.
    """
    spacing = grid(std)
    scaled = np.asarray(value, dtype=np.float64).reshape(-1) / spacing
    stream = Stream()
    for start in range(0, len(scaled), 2 * PAIRS):
        part = scaled[start : start + 2 * PAIRS]
        if not np.isfinite(part).all():
            raise PrivacyError("a number to be protected is not finite, or too large for the noise; nothing was released")
        _round_noisy(part, std / spacing, stream, hardened)
    scaled *= spacing
    scaled += 0.0  # one zero, not two
    return scaled.reshape(np.shape(value))


def _round_noisy(value: NDArray[np.float64], std: float, stream: Stream, hardened: bool) -> None:
    """Replace ``value`` by the integer next to ``value + std·Z``; both are in steps of the grid."""
    words = box_muller_words(stream, len(value), hardened)
    normal = standard_normal(words).reshape(-1)[: len(value)]
    whole = np.rint(value)
    rest = value - whole  # exact, so what follows does not depend on how large the value is
    noisy = normal * std
    noisy += rest
    nearest = np.rint(noisy)
    np.add(whole, nearest, out=value)
    noisy -= nearest
    undecided = np.flatnonzero(np.abs(noisy, out=noisy) > 0.5 - MARGIN)
    pairs = words.shape[2]
    for pair in sorted({int(i) % pairs for i in undecided} | _extreme(words[:, 0])):
        members = [i for i in (pair, pair + pairs) if i < len(value)]
        for i, exact in zip(members, _exactly(words[:, :, pair], [float(rest[i]) for i in members], std, stream), strict=False):
            value[i] = whole[i] + exact


def _extreme(radius: NDArray[np.uint64]) -> set[int]:
    """Pairs of which a radius' uniform number is outside the range of :data:`MARGIN`; words ``(terms, pairs)``."""
    if radius.min() >= _LEAST and radius.max() < _MOST:
        return set()
    return {int(pair) for pair in np.flatnonzero(((radius < _LEAST) | (radius >= _MOST)).any(axis=0))}


def _exactly(words: NDArray[np.uint64], rests: Sequence[float], std: float, stream: Stream) -> list[int]:
    """The integers next to ``rest + std·Z`` for the cosine and the sine of one pair, words ``(terms, 2)``, by intervals.

    Digits that the words do not have are drawn from ``stream``, 64 at a time, until all roundings are decided.
    """
    from mpmath.ctx_iv import MPIntervalContext  # type: ignore[import-untyped]
    from mpmath.libmp import to_int  # type: ignore[import-untyped]

    real: Any = MPIntervalContext()
    digits = [(int(radius) >> 1, int(angle) - (int(angle) >> 63 << 64)) for radius, angle in words]
    bits = 63
    while True:
        more = [int(word) for word in stream.words(2 * len(digits))]
        digits = [(r << 64 | x, a << 64 | y) for (r, a), x, y in zip(digits, more[::2], more[1::2], strict=True)]
        bits += 64
        real.prec = 2 * bits
        if not all(radius for radius, _ in digits):
            continue
        cosine = sine = real.mpf(0)
        for r, a in digits:
            radius = real.sqrt(-2 * real.log(real.mpf([r, r + 1]) / 2**bits))
            angle = real.pi * real.mpf([a, a + 1]) / 2**bits
            cosine, sine = cosine + radius * real.cos(angle), sine + radius * real.sin(angle)
        scale = real.mpf(std) / math.isqrt(len(digits))
        sums = [rest + scale * part + real.mpf(0.5) for rest, part in zip(rests, (cosine, sine), strict=False)]
        bounds = [tuple(to_int(end, "f") for end in x._mpi_) for x in sums]  # "f": the integer below
        if all(low == high for low, high in bounds):
            return [low for low, _ in bounds]
