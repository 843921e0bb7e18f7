"""Noise in whole numbers: exact draws from the discrete Gaussian, fast enough for a vector of a million.

``N_Z(0, σ²)`` has ``P[k]`` proportional to ``exp(-k²/(2σ²))`` over the whole numbers. Noise that is added in a ring, under masks,
has to be whole, and this one costs what the continuous Gaussian costs (Canonne, Kamath & Steinke 2020, arXiv:2004.00010; see
:mod:`common.privacy.distributed`). :func:`discrete_gaussian` draws from it exactly: no table is cut off, no tail is missing, no
probability is rounded.

**How a number is drawn** (their Algorithms 2 and 3; σ² is ``variance``). Let ``t`` be the power of two with ``t² ≤ 2σ² < 4t²``.

1. U is uniform in 0 … t-1: bits of a word, none rejected since t is a power of two.
2. V is geometric, ``P[V ≥ v] = exp(-v)``, and ``X = U + t·V``.
3. A fair coin is X's sign; minus zero is thrown away.
4. The number is kept with probability ``exp(-γ)``, ``γ = U/t + (X - σ²/t)²/(2σ²)``, else one starts anew.

A number comes out with a probability proportional to ``exp(-V - γ)``, and ``V + γ = X²/(2σ²) + σ²/(2t²)``, of which the second
term is the same for all: the discrete Gaussian. The paper throws two coins, ``exp(-U/t)`` in Algorithm 2 and
``exp(-(X - σ²/t)²/(2σ²))`` in Algorithm 3; that both show heads is one coin with the product. Its t is ``⌊σ⌋ + 1``; any t is
right, and a power of two makes ``U/t`` exact in double precision. Of 100 tries 41 to 48 give a number.

**How a coin is exact at the price of one comparison.** A coin shows heads if a uniform real number W is below ``exp(-γ)``. A word
of the stream is W's first 64 digits; the digits after them are there but not yet drawn, as in
:mod:`common.privacy.rounding`. ``exp(-γ)`` is had in double precision, whose error is below :data:`MARGIN`. Where the word is
further than that from it, no digit can change the outcome. Where it is nearer, once in 2⁴¹ coins, :class:`_Uniform` draws digits
and narrows ``exp(-γ)`` by interval arithmetic until one is below the other. V is had from a word in the same way: it is below
``⌊exp(-v)·2⁶⁴⌋`` or above for each v, and equal once in 2⁵⁸ words.

**What it rests on.** The cipher. IEEE 754 arithmetic. NumPy's exponential, to 64 units in the last place (a test measures).
``mpmath``'s intervals for the rest. The time of a call depends on how many numbers were thrown away and on the largest V, so a
little on the noise, never on what is to be protected.

**Why own code.** A number of a vector of a million, standard deviation 2³³, takes 50 ns of processor time (median of 23,
``time.process_time``; 44 at best) on one core of 2.6 GHz. ``make_gaussian`` of opendp 0.16 over vectors of i64, which is exact
too, takes 11,000 to 13,000 there, and its wheel has 47 MB. ``silorec bench noise`` lays both side by side where opendp is
installed.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import PrivacyError
from common.privacy.chacha import Stream

MOST_VARIANCE = 2**100
"""Largest variance: ``U/t`` is held in the 53 bits of a double, and ``X = U + t·V`` in 63 bits up to V = 2¹³.

To go beyond that, V has to be as large with a chance of ``exp(-2¹³)``, and its coin has to show heads with one of ``exp(-2²⁴)``.
"""

MARGIN = 2.0**-42
"""Bound on the error of ``exp(-γ)`` in double precision, with what the word of a coin leaves open.

Let ``e = 2⁻⁵³``, ``ρ = σ²/t²``, in [1/2, 2), and ``z = X/t - ρ``, so that ``γ = U/t + z²/(2ρ)``. U has at most 50 bits, so
``U/t`` is exact, and so is V. One relative error of at most e each: ρ, the sum ``U/t + V = X/t``, the difference z, its square,
``1/(2ρ)`` (beside ρ's own), the product, the last sum. As ``X/t ≤ |z| + ρ``, z is off by at most ``2e(|z| + ρ)``. So, but for
terms with e², ``z²/(2ρ)`` is off by ``2e(z²/ρ + |z|)`` for that and by ``4e·z²/(2ρ)`` for what follows, and γ, with ``z²/ρ ≤ 2γ``
and ``|z| ≤ 2√γ``, by less than ``e(9γ + 4√γ)``. That moves ``exp(-γ)`` by at most ``e(9·0.37 + 4·0.43) < 6e``, since
``γ·exp(-γ)`` and ``√γ·exp(-γ)`` are nowhere larger. The exponential is taken to be right to 64 units in the last place, 128e. The
word as a double and the difference from it are off by e each, and the digits that are open by less. In all that is below 2⁻⁴⁵;
a factor of 8 is left.
"""

BLOCK = 2**14
"""Tries made at a time: what a step works on stays in the processor's cache, and memory does not grow with the request."""

_ONE = np.uint64(1)


def discrete_gaussian(n: int, variance: int) -> NDArray[np.int64]:
    """``n`` independent draws from ``N_Z(0, variance)``, int64 ``(n,)``, exact.

    ``variance`` is the parameter σ²; the variance of the numbers is less, but by no more than 1 in 10⁶ for σ² ≥ 1.

    Parameters
    ----------
    n:
        How many, 0 or more.
    variance:
        A whole number from 1 to 2¹⁰⁰.

    Raises
    ------
    PrivacyError
        If one of them is anything else.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise PrivacyError(f"{n!r} numbers cannot be drawn; it must be a whole number, 0 or more")
    if isinstance(variance, bool) or not isinstance(variance, int) or not 1 <= variance <= MOST_VARIANCE:
        raise PrivacyError(f"the variance of whole-number noise is {variance!r}; it must be a whole number from 1 to 2^100")
    noise = np.empty(n, dtype=np.int64)
    stream = Stream()
    done = 0
    while done < n:
        tries = min(BLOCK, 5 * (n - done) // 2 + 32)  # decided before they are made, so the first that are kept are fair
        kept = _kept(stream.words(3 * tries).reshape(3, tries), variance)[: n - done]
        noise[done : done + len(kept)] = kept
        done += len(kept)
    return noise


def _kept(words: NDArray[np.uint64], variance: int) -> NDArray[np.int64]:
    """What is kept of as many tries as ``words``, uint64 ``(3, tries)``, has columns: sign and U, V, coin."""
    places, sizes, coins = words
    bits = _width(variance)
    u = (places & np.uint64(2**bits - 1)).view(np.int64)
    v = _geometric(sizes)
    gamma = _gamma(u, v, variance)
    np.negative(gamma, out=gamma)
    chance = np.exp(gamma, out=gamma)
    gap = (coins >> _ONE).view(np.int64) * 2.0**-63
    gap -= chance
    heads = gap < 0
    for i in np.flatnonzero(np.abs(gap, out=gap) <= MARGIN):
        heads[i] = _Uniform(int(coins[i])).is_below_exp(-_exact_gamma(int(u[i]), int(v[i]), variance))
    kept = np.flatnonzero(heads)
    magnitude = (v[kept] << bits) + u[kept]
    sign = places[kept].view(np.int64) >> 63  # the highest bit: 0 or -1
    noise = (magnitude ^ sign) - sign
    return noise if magnitude.all() else noise[(magnitude | ~sign) != 0]


def _width(variance: int) -> int:
    """Digits of U: ``t = 2^width`` has ``t² ≤ 2·variance < 4t²``; 0 to 50."""
    return (2 * variance).bit_length() - 1 >> 1


def _gamma(u: NDArray[np.int64], v: NDArray[np.int64], variance: int) -> NDArray[np.float64]:
    """γ of each try in double precision, as the proof of :data:`MARGIN` has it."""
    bits = _width(variance)
    ratio = variance / 4**bits  # of whole numbers: correctly rounded
    fraction, gamma = u.astype(np.float64), v.astype(np.float64)
    fraction *= 2.0**-bits
    gamma += fraction
    gamma -= ratio
    gamma *= gamma
    gamma *= 0.5 / ratio
    gamma += fraction
    return gamma


def _exact_gamma(u: int, v: int, variance: int) -> Fraction:
    t = 2 ** _width(variance)
    return Fraction(u, t) + (u + t * v - Fraction(variance, t)) ** 2 / (2 * variance)


def _geometric(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """V of each word, int64: how many of ``exp(-1), exp(-2), …`` its real number is below."""
    levels, least = np.zeros(len(words), dtype=np.int8), words.min()
    unsure: list[np.intp] = []
    for threshold in _thresholds():
        if threshold < least:
            break
        levels += (words < threshold).view(np.int8)
        if (equal := words == threshold).any():
            unsure.extend(np.flatnonzero(equal))
    v = levels.astype(np.int64)
    for i in unsure:
        v[i] = _Uniform(int(words[i])).geometric()
    return v


@lru_cache(maxsize=1)
def _thresholds() -> NDArray[np.uint64]:
    """``⌊exp(-v)·2⁶⁴⌋`` for v = 1 … 45. The last is 0: no word is below it, and a word of 0 is looked at again."""
    return np.array([_exp_bounds(Fraction(-v), 64, 256)[0] for v in range(1, 46)], dtype=np.uint64)


class _Uniform:
    """A real number, uniform in [0, 1): ``word`` is its first 64 digits, and more are drawn when a question needs them.

    They come from a stream of their own, so that the words of other numbers do not depend on how often that happens.
    """

    def __init__(self, word: int) -> None:
        self._digits, self._bits = word, 64
        self._stream = Stream()

    def is_below_exp(self, power: Fraction) -> bool:
        """Whether it is below ``exp(power)``, ``power`` not positive."""
        while True:
            low, high = _exp_bounds(power, self._bits, 2 * self._bits)
            if self._digits < low:
                return True
            if self._digits >= high:
                return False
            self._digits = self._digits << 64 | int(self._stream.words(1)[0])
            self._bits += 64

    def geometric(self) -> int:
        """The largest v with the number below ``exp(-v)``."""
        v = 0
        while self.is_below_exp(Fraction(-v - 1)):
            v += 1
        return v


def _exp_bounds(power: Fraction, bits: int, precision: int) -> tuple[int, int]:
    """Whole numbers ``low ≤ exp(power)·2^bits ≤ high``, next to it if ``precision`` binary digits are enough to tell."""
    from mpmath.ctx_iv import MPIntervalContext  # type: ignore[import-untyped]
    from mpmath.libmp import to_int  # type: ignore[import-untyped]

    real: Any = MPIntervalContext()
    real.prec = precision
    low, high = (real.exp(real.mpf(power.numerator) / power.denominator) * 2**bits)._mpi_
    return int(to_int(low, "f")), int(to_int(high, "c"))  # the whole number below, the one above
