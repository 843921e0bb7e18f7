"""Rényi differential privacy of the Poisson-sampled Gaussian, worked out a second time, to check the accountants by.

Take noise of standard deviation s (in units of one user's bound) and a chance q that a user is in the sample. Without the user a
release is ``Q = N(0, s²)``, with the user at worst ``P = (1-q) N(0, s²) + q N(1, s²)`` (Mironov, Talwar & Zhang 2019, theorem 4).
The Rényi divergences of order a are

    remove: D(P‖Q) = log E[(1 + u)^a] / (a - 1)        add: D(Q‖P) = log E[(1 + u)^(1-a)] / (a - 1)

with ``u(x) = q (exp((2x - 1) / 2s²) - 1)`` and x drawn from Q. Both are integrals over the line, and here they are done
as integrals, with no distinction between whole orders and others. Since ``E[u] = 0``,

    E[(1 + u)^p] - 1 = E[(1 + u)^p - 1 - p u]

where the right-hand side is never negative, so nothing cancels however little a release costs. The trapezoidal rule on the whole
line converges geometrically for such integrands (Trefethen & Weideman 2014); all sums are kept as logarithms.

Noise of mode ``distributed`` is a discrete Gaussian on a grid, and a user moves the sum from one of its points to another. At a
whole order k the moment ``E[(P/Q)^k]`` is then that of continuous Gaussians: complete the square, and the sum over the grid that
is left is the same whichever point it is centred on. So the divergences are the same at whole orders. Between them
:func:`rdp_of_events` takes the chord of ``(a - 1) D_a``, which is convex in a, between the whole orders on either side.

Nothing here is taken from ``dp_accounting`` or Opacus, and nothing here imports them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from common.errors import PrivacyError
from common.privacy.events import (
    Distributed,
    DistributedCount,
    DistributedMetrics,
    DistributedStep,
    Event,
    GaussianCount,
    GaussianMetrics,
    PoissonGaussianSteps,
    Unprotected,
)

Floats = NDArray[np.float64]

#: What lies this many nats below the highest point of an integrand is left out.
_NEGLIGIBLE = 60.0
#: The Gaussian factor alone is negligible beyond this many standard deviations: 12² / 2 > 60.
_TAIL = 12.0
#: Below this |p u| the integrand is summed from its series; the direct difference would lose digits.
_SERIES_BELOW = 0.05


def rdp_of_gaussian(sigma: float, order: float) -> float:
    """Of ``N(1, sigma²)`` to ``N(0, sigma²)``, in nats (Mironov 2017, proposition 7)."""
    return order / (2.0 * sigma**2)


def rdp_of_sampled_gaussian(sampling_probability: float, sigma: float, order: float) -> float:
    """The larger of both directions at a real ``order`` above 1, in nats.

    Raises
    ------
    PrivacyError
        If the probability is not in (0, 1], the noise is not positive or the order is not above 1.
    """
    _check(sampling_probability, sigma, order)
    if sampling_probability == 1.0:
        return rdp_of_gaussian(sigma, order)
    return max(
        divergence_of_removal(sampling_probability, sigma, order), divergence_of_addition(sampling_probability, sigma, order)
    )


@lru_cache(maxsize=65536)
def divergence_of_removal(sampling_probability: float, sigma: float, order: float) -> float:
    """``D(P‖Q)``: somebody who was there is gone. In nats, by quadrature."""
    _check(sampling_probability, sigma, order)
    # (1 + u)^order times the density has its peaks in [0, order], and none is narrower than the density's own.
    low, high = -_TAIL * sigma, max(order, 1.0) + _TAIL * sigma
    # (1 + u)^order is analytic within π s² of the line and never larger there than on it.
    return _log_of_moment(sampling_probability, sigma, order, low, high, min(sigma, sigma**2) / 4.0, sigma / 2.0) / (order - 1.0)


@lru_cache(maxsize=65536)
def divergence_of_addition(sampling_probability: float, sigma: float, order: float) -> float:
    """``D(Q‖P)``: somebody is there who was not. In nats, by quadrature."""
    _check(sampling_probability, sigma, order)
    power = 1.0 - order
    peak = _peak_of_addition(sampling_probability, sigma, power)
    low, high = min(peak, 0.0) - _TAIL * sigma, 1.0 + _TAIL * sigma
    # A negative power sharpens the peak where the two parts of the mixture are alike.
    width = 1.0 / math.sqrt(1.0 / sigma**2 + (order - 1.0) / (4.0 * sigma**4))
    return _log_of_moment(sampling_probability, sigma, power, low, high, min(width, sigma**2) / 4.0, width / 2.0) / (order - 1.0)


def rdp_by_binomial_sum(sampling_probability: float, sigma: float, order: int) -> float:
    """``D(P‖Q)`` at a whole ``order``, in nats: Mironov, Talwar & Zhang 2019, section 3.3, by another way than the quadrature.

    Their sum over k of ``C(a, k) (1-q)^(a-k) q^k exp(k(k-1) / 2s²)``, less the 1 to which it sums without the last factor.
    """
    _check(sampling_probability, sigma, order)
    if type(order) is not int:
        raise PrivacyError(f"the closed sum is for whole orders, got {order!r}")
    if sampling_probability == 1.0:
        return rdp_of_gaussian(sigma, order)
    k = np.arange(2, order + 1)
    choose = math.lgamma(order + 1) - np.array([math.lgamma(i + 1) + math.lgamma(order - i + 1) for i in range(2, order + 1)])
    terms = choose + (order - k) * math.log1p(-sampling_probability) + k * math.log(sampling_probability)
    return _log_one_plus(_log_sum(terms + _log_expm1(k * (k - 1) / (2.0 * sigma**2)))) / (order - 1)


def rdp_of_events(events: Sequence[Event], order: float) -> float:
    """Of all events together at one order: composition adds (Mironov 2017, proposition 1). Infinite when one was unprotected.

    Events of mode ``distributed`` are counted at whole orders, and between them by the chord; see the module.
    """
    if any(isinstance(event, Unprotected) for event in events):
        return math.inf
    in_the_ring = mechanisms([event for event in events if isinstance(event, Distributed)])
    total = _rdp_of(mechanisms([event for event in events if not isinstance(event, Distributed)]), order)
    if not in_the_ring or order == round(order):
        return total + _rdp_of(in_the_ring, order)
    below = math.floor(order)
    share = order - below
    ends = [(whole - 1) * _rdp_of(in_the_ring, whole) if whole > 1 else 0.0 for whole in (below, below + 1)]
    return total + ((1 - share) * ends[0] + share * ends[1]) / (order - 1)


def _rdp_of(counts: Counter[tuple[float, float]], order: float) -> float:
    return sum(times * rdp_of_sampled_gaussian(q, sigma, order) for (q, sigma), times in counts.items())


def mechanisms(events: Sequence[Event]) -> Counter[tuple[float, float]]:
    """How often each (sampling probability, noise multiplier) ran; a noise multiplier of 0 stands for no protection.

    That noise of mode ``distributed`` is discrete is not said here: its noise multiplier is that of the sum over silos.
    """
    counts: Counter[tuple[float, float]] = Counter()
    for event in events:
        match event:
            case GaussianCount() | GaussianMetrics() | DistributedCount() | DistributedMetrics():
                counts[1.0, event.noise_multiplier] += 1
            case PoissonGaussianSteps():
                counts[event.sampling_probability, event.noise_multiplier] += event.steps
            case DistributedStep():
                counts[event.sampling_probability, event.noise_multiplier] += 1
            case Unprotected():
                counts[1.0, 0.0] += 1
    return counts


def epsilon_from_rdp(rdp: float, order: float, delta: float) -> float:
    """Epsilon at ``delta`` of what is Rényi private with ``rdp`` nats at ``order``; not below 0.

    Canonne, Kamath & Steinke 2020, proposition 12: ``rdp + log(1 - 1/a) - log(delta a) / (a - 1)``.
    And 0 where the divergence is so small that no two neighbours can be told apart by more than ``delta`` at all: the total
    variation is at most ``sqrt(1 - exp(-KL))`` (Bretagnolle & Huber 1979), and KL is at most ``rdp``.
    """
    if -math.expm1(-rdp) < delta**2:
        return 0.0
    return max(0.0, rdp + math.log1p(-1.0 / order) - math.log(delta * order) / (order - 1.0))


def epsilon_at(events: Sequence[Event], delta: float, order: float) -> float:
    """Epsilon of all events together by their cost at one order: the figure of a filter that holds to that order."""
    return epsilon_and_order(events, delta, [order])[0]


def epsilon_and_order(events: Sequence[Event], delta: float, orders: Sequence[float]) -> tuple[float, float]:
    """The least epsilon over ``orders``, and the order that gives it; for no events 0, when one was unprotected infinite, and the
    order ``inf``."""
    if not 0 < delta < 1:
        raise PrivacyError(f"delta = {delta}, must be in (0, 1)")
    if not events:
        return 0.0, math.inf
    if any(isinstance(event, Unprotected) for event in events):
        return math.inf, math.inf
    return min((epsilon_from_rdp(rdp_of_events(events, order), order, delta), float(order)) for order in orders)


def _check(sampling_probability: float, sigma: float, order: float) -> None:
    if not 0 < sampling_probability <= 1:
        raise PrivacyError(f"sampling probability = {sampling_probability}, must be in (0, 1]")
    if not 1e-3 <= sigma < math.inf:
        raise PrivacyError(f"noise multiplier = {sigma}, must be from 0.001: for less, the quadrature needs too fine a grid")
    if not 1 < order < math.inf:
        raise PrivacyError(f"order = {order}, must be finite and above 1")


def _peak_of_addition(q: float, sigma: float, power: float) -> float:
    """Where ``(1 + u)^power exp(-x² / 2s²)`` is largest: its logarithm is concave, so there is one root of the derivative, by
    bisection on [power, 0]."""
    if q == 1.0:
        return power
    odds = math.log1p(-q) - math.log(q)
    low, high = power, 0.0
    for _ in range(80):
        x = 0.5 * (low + high)
        against = odds - (2.0 * x - 1.0) / (2.0 * sigma**2)  # log odds that x came from without the user
        share = 0.0 if against > 700 else 1.0 / (1.0 + math.exp(against))
        low, high = (low, x) if x > power * share else (x, high)
    return low


def _log_of_moment(q: float, sigma: float, power: float, low: float, high: float, step: float, coarse: float) -> float:
    """log E[(1 + u)^power], by the trapezoidal rule with ``step`` on the parts of [low, high] that matter.

    These are found on a grid of about ``coarse``, finer than any peak is wide.
    """
    each = math.ceil(coarse / step)
    cells = np.arange(math.floor(low / (each * step)), math.ceil(high / (each * step)) + 1).astype(np.float64)
    heights = _log_integrand(cells * (each * step), q, sigma, power)
    kept = heights > heights.max() - _NEGLIGIBLE
    for shift in (1, 1):  # two neighbours on either side
        kept[shift:] |= kept[:-shift].copy()
        kept[:-shift] |= kept[shift:].copy()
    points: Floats = (cells[kept, None] * each + np.arange(each)).ravel() * step
    log_excess = _log_sum(_log_integrand(points, q, sigma, power)) + math.log(step / (sigma * math.sqrt(2.0 * math.pi)))
    return _log_one_plus(log_excess)


def _log_integrand(x: Floats, q: float, sigma: float, power: float) -> Floats:
    """log of ``(1 + u)^p - 1 - p u``, times ``exp(-x² / 2s²)``."""
    z = (2.0 * x - 1.0) / (2.0 * sigma**2)
    log_q = math.log(q)
    log_rest = math.log1p(-q) if q < 1.0 else -math.inf
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        u = q * np.expm1(z)
        # log(1 + u), where u is small and where it is near -1 or overflows.
        log_ratio = np.where(np.abs(u) < 0.5, np.log1p(u), np.logaddexp(log_rest, log_q + z))
        # Next to u = 0: the binomial series from its second term on.
        few = np.abs(u) * max(abs(power), 1.0) < _SERIES_BELOW
        value = np.empty_like(z)
        value[few] = _log_series(u[few], power)
        rest = ~few
        value[rest] = _log_difference(u[rest], log_ratio[rest], log_q + z[rest], power)
    return value - x**2 / (2.0 * sigma**2)


def _log_series(u: Floats, power: float) -> Floats:
    """log of the sum over k >= 2 of C(power, k) u^k, for small ``power u``; its first term is positive, and leads."""
    lead = 0.5 * power * (power - 1.0)
    term, total = np.ones_like(u), np.ones_like(u)  # relative to the first
    for k in range(3, 25):
        term = term * u * ((power - k + 1.0) / k)
        total += term
    return math.log(lead) + 2.0 * np.log(np.abs(u)) + np.log(total)


def _log_difference(u: Floats, log_ratio: Floats, log_u: Floats, power: float) -> Floats:
    """log of ``(1 + u)^p - (1 + p u)`` where the two differ in their leading digits. ``log_u`` serves where u overflows."""
    exponent = power * log_ratio
    line = power * u
    small = (exponent < 30.0) & (np.abs(line) < 1e13)
    direct = np.log(np.expm1(np.where(small, exponent, 0.0)) - np.where(small, line, -1.0))
    log_line = np.where(np.abs(line) < 1e13, np.log(np.abs(1.0 + line)), math.log(abs(power)) + log_u)
    power_leads = exponent + np.log(-np.expm1(np.minimum(log_line - exponent, -1e-300)))
    # A negative power of a large u is next to nothing; what leads is the line, and it is negative.
    far = np.where((exponent >= 30.0) | (power > 0), power_leads, log_line)
    return np.where(small, direct, far)


def _log_sum(terms: Floats) -> float:
    top = float(terms.max())
    return top + math.log(float(np.exp(terms - top).sum()))


def _log_expm1(x: Floats) -> Floats:
    return np.where(x > 30.0, x, np.log(np.expm1(np.minimum(x, 30.0))))


def _log_one_plus(log_excess: float) -> float:
    """log(1 + exp(log_excess))."""
    return float(np.logaddexp(0.0, log_excess))
