"""Distributed noise: each silo adds a share, in the ring and under its mask, so that only the sum is noisy enough to be seen.

Secure aggregation shows the coordinator the sum of all silos and nothing else. So no silo has to add all of the noise: if at
least m of those in a sum are honest, each adds the m-th part of the variance (Kairouz, Liu & Steinke 2021, arXiv:2102.06387).
Noise is whole, a discrete Gaussian on the steps of :class:`common.secagg.fixed_point.FixedPoint`, since what masks hide is whole;
:func:`common.privacy.discrete.discrete_gaussian` draws it exactly. This module holds the mechanism and the reasons why its cost
may be counted as that of one Gaussian with noise multiplier z. The accounting itself is in :mod:`common.privacy.accountant`.

**Sensitivity.** A silo holds a sum over its users in float64, and one user moves it by at most C in L2, but for errors of the
floating-point sum (:mod:`client.clipping`): below ``n²·2⁻⁵³·C`` for n users, so below ``2⁻¹¹·C`` up to :data:`MOST_USERS`. To cut
each number to what the coding can hold brings no two vectors further apart. The coding rounds a number of steps a to ``⌊a + r⌋``,
with r independent of the data, and for the same r ``|⌊a + r⌋ - ⌊b + r⌋| < |a - b| + 1``. So in L2, whatever r is, one user moves
the words by less than ``C·scale + √d`` and the errors: beside the ``2⁻¹¹·C·scale`` above, as much again is there for the coding's
cutting of a step's fraction to 62 digits, less than ``√d·2⁻⁶²``. :func:`sensitivity` gives
``L = ⌈C·scale·(1 + 2⁻¹⁰)⌉ + ⌈√d⌉`` steps.

**One discrete Gaussian costs what the continuous one costs.** Let f be the density of ``N_Z(0, s²)ᵈ`` and μ a vector of whole
numbers, by which a user moves the sum. For a whole number k

    ``E_{x~f}[(f(x-μ)/f(x))^k] = exp(k(k-1)·|μ|²/(2s²))``,

as for the continuous Gaussian: completing the square leaves a sum over the grid, centred on kμ, and that is a point of the grid
(in d dimensions the factors multiply). At a whole Rényi order α the Poisson-sampled mechanism costs ``log A(α)/(α-1)`` with
``A(α) = E_f[((1-q) + q·f(x-μ)/f(x))^α]``; multiplied out, that is a sum of such moments, so it is exactly the continuous one's
(Mironov, Talwar & Zhang 2019, arXiv:1908.10530, section 3.3), and it grows with ``|μ| ≤ L``. The other direction costs no more,
by their Theorem 5, since ``x → μ - x`` swaps the two; in terms of the ratio it is an inequality between numbers, which a test
checks. *Between* whole orders nothing of that is claimed: there log A is convex in the order, so the straight line between its
values at whole orders, with ``log A(1) = 0``, is a bound. Accountants of this mechanism have to keep to whole orders or use that
line. A PLD of the continuous Gaussian proves nothing here; it is off by about 1 in n² where n steps make the clip. What is random
beside (the other users in the sample, r) is independent of the user, and the worst case over it bounds the cost.

**The sum of m shares is as good as one discrete Gaussian** of m times the variance, though it is none. Add a share to k others:
if those are one discrete Gaussian, the density of the sum at z is the wider discrete Gaussian's times a sum of
``exp(-(x - cz)²/(2v))`` over whole x, ``v = s²·k/(k+1)``. That sum hardly depends on z: by Poisson summation it is the same for
all z within a factor ``exp(±5·exp(-2π²v))``. So over all m shares (their Theorem 1), with
``τ = 10·Σ_{k=1}^{m-1} exp(-2π²s²·k/(k+1))``, each probability of a vector of d numbers is right within a factor
``exp(±dτ/2)``, and (ε, δ) of a release becomes ``(ε + dτ, δ·exp(dτ/2))`` at most. Parameters where dτ is not below ``2⁻⁶⁴`` are
refused; at usual ones it is smaller than any number a computer holds. More than m honest shares, or what dishonest silos
add, is added to that sum and takes nothing away from it.

**If all others collude,** a silo's own share is what protects its users: a discrete Gaussian with multiplier ``z/√m``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, PrivacyError, SecAggError
from common.privacy.discrete import MOST_VARIANCE, discrete_gaussian
from common.secagg.fixed_point import Encoded, FixedPoint

MOST_USERS = 2**21
"""Most users of one silo in one sum for which :func:`sensitivity` covers the errors of a float64 sum."""

SLACK = Fraction(1, 2**10)
"""Part of C that is added to it for errors of floating point, so that even large silos are covered: a thousandth more noise."""

TAIL = 20
"""Standard deviations of the noise of all silos that the ring has room for.

A discrete Gaussian is sub-Gaussian with its own variance (Canonne, Kamath & Steinke 2020, arXiv:2004.00010), and so is a sum of
them. So one number of the noise of all silos leaves that room with a chance below ``2·exp(-200) < 2⁻²⁸⁷``: for 2⁶⁴ sums of
2⁶⁴ numbers, below 2⁻¹⁵⁹. Were it to happen, a sum would be refused when it is decoded, or a number would be wrong; nobody's
privacy depends on it.
"""

_MOST_EXCESS = -64
_FINENESS = 30


def sensitivity(max_norm: float, scale_bits: int, length: int) -> int:
    """Steps, in L2, by which one user moves a vector of ``length`` words; a unit of its values is ``2^scale_bits`` steps."""
    norm = Fraction(max_norm) * Fraction(2) ** scale_bits * (1 + SLACK)
    return math.ceil(norm) + _root_above(length)


@dataclass(frozen=True)
class DistributedGaussian:
    """One release of a sum over the users of all silos, of which each silo adds a share of the noise, in the ring.

    Parameters
    ----------
    noise_multiplier:
        z, the standard deviation of the noise over :attr:`sensitivity`, of a sum with ``honest`` honest silos. Taken as the
        rational number that the float is.
    max_norm:
        C, the L2 bound of one user's part of the sum; from 2⁻³⁰ to 2⁶⁰.
    length:
        d, numbers in the vector.
    silos:
        Most silos in a sum.
    honest:
        m, fewest honest silos in a sum: those whose noise is counted on.
    largest:
        Magnitude beyond which a number of one silo's sum is cut off, rounded down to a float32. It costs no privacy, but what
        it cuts off is lost.

    Raises
    ------
    ConfigError
        If one of them is impossible, or no scale gives room for all sums and their noise.
    PrivacyError
        If a share is so narrow that the sum of the shares is not as good as one discrete Gaussian.
    """

    noise_multiplier: float
    max_norm: float
    length: int
    silos: int
    honest: int
    largest: float

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "max_norm", "largest"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: must be a positive number, not {value!r}")
        for name in ("length", "silos", "honest"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: must be a whole number, 1 or more, not {value!r}")
        if not 2.0**-30 <= self.max_norm <= 2.0**60:
            raise ConfigError(f"max_norm: must be between 2^-30 and 2^60, not {self.max_norm!r}; take another unit")
        if self.honest > self.silos:
            raise ConfigError(f"honest: {self.honest} silos of at most {self.silos} cannot be honest")
        _ = self.coding  # or there is none
        if self.excess_bits >= _MOST_EXCESS:
            raise PrivacyError(
                f"noise multiplier {self.noise_multiplier!r} gives each of {self.honest} silos noise of variance "
                f"{self.share_variance} in steps: too little for the sum over {self.length} numbers to be like one Gaussian; "
                "take a larger noise multiplier"
            )

    @cached_property
    def coding(self) -> FixedPoint:
        """How values become words of 64 bits: C is 2²⁹ to 2³⁰ steps, fewer where a sum and its noise would not fit otherwise."""
        for scale_bits in range(_FINENESS - math.frexp(self.max_norm)[1], -61, -1):
            moved, variance, margin = self._noise(scale_bits)
            if 64 * _root_above(self.length) > moved:
                break  # rounding would make up more than a 64th of what is to be hidden
            most = self.silos * math.ceil(Fraction(self.largest) * Fraction(2) ** scale_bits) + margin
            if most < 2**63 and variance <= MOST_VARIANCE:
                return FixedPoint(64, scale_bits, self.largest, self.silos, margin=margin)
        raise ConfigError(
            f"words of 64 bits have no room for {self.silos} silos whose numbers reach {self.largest!r} and for noise multiplier "
            f"{self.noise_multiplier!r}, in steps fine enough for max_norm={self.max_norm!r} over {self.length} numbers; "
            "take a smaller largest, or check the others"
        )

    @property
    def sensitivity(self) -> int:
        """L, the steps by which one user moves the sum, in L2."""
        return self._noise(self.coding.scale_bits)[0]

    @property
    def share_variance(self) -> int:
        """``⌈(z·L)²/m⌉``, the variance in steps² of what each silo adds to each number."""
        return self._noise(self.coding.scale_bits)[1]

    @property
    def excess_bits(self) -> float:
        """Binary logarithm of a bound on dτ, the nats by which the sum of m shares may cost more than one discrete Gaussian."""
        if self.honest == 1:
            return -math.inf
        # k/(k+1) is at least 1/2; a variance too large for a float is more than large enough
        return math.log2(10 * self.length * (self.honest - 1)) - math.pi**2 / math.log(2) * min(self.share_variance, 2**60)

    def noise_std(self, silos_in_sum: int) -> float:
        """Standard deviation of the noise in one number of a decoded sum over that many silos, in the unit of the values.

        Rounding adds a variance of at most 1/4 step² per silo, which is not in it.

        Raises
        ------
        SecAggError
            If no such sum is made.
        """
        if not 1 <= silos_in_sum <= self.silos:
            raise SecAggError(f"a sum over {silos_in_sum} silos: there are 1 to {self.silos}")
        return math.sqrt(silos_in_sum * self.share_variance) / self.coding.scale

    def protect(self, values: NDArray[np.float64]) -> Encoded:
        """One silo's part: ``values``, its sum over users, in words of the ring, with its share of the noise.

        Parameters
        ----------
        values:
            float64 ``(length,)``; left as they are.

        Returns
        -------
        Encoded
            The words, uint64 ``(length,)``, ready to be masked, and how many values were cut off. The silo keeps that count to
            itself.

        Raises
        ------
        SecAggError
            If ``values`` has another form or type, or holds a NaN.
        """
        if values.shape != (self.length,) or values.dtype != np.float64:
            raise SecAggError(f"a vector to protect is float64 of shape ({self.length},), not {values.dtype} {values.shape}")
        words, clipped = self.coding.encode(values)
        words += discrete_gaussian(self.length, self.share_variance).view(np.uint64)
        return Encoded(words, clipped)

    def _noise(self, scale_bits: int) -> tuple[int, int, int]:
        """Sensitivity, variance of a share, and room for the noise of all silos, in steps at that scale."""
        moved = sensitivity(self.max_norm, scale_bits, self.length)
        variance = math.ceil((Fraction(self.noise_multiplier) * moved) ** 2 / self.honest)
        return moved, variance, TAIL * _root_above(self.silos * variance)


def _root_above(number: int) -> int:
    """The root of a positive whole number, rounded up."""
    return math.isqrt(number - 1) + 1
