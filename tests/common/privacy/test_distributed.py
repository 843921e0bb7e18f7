"""Shares of noise add up to the noise that is accounted for: the claims of the mechanism, against sums of many digits."""

from __future__ import annotations

import dataclasses
import math
import os
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from common.errors import ConfigError, PrivacyError, SecAggError
from common.privacy import distributed
from common.privacy.discrete import MOST_VARIANCE
from common.privacy.distributed import MOST_USERS, TAIL, DistributedGaussian, sensitivity
from common.secagg.fixed_point import FixedPoint

RARE = 1e-7
"""Chance that a right mechanism fails one of the statistical tests."""

USUAL = DistributedGaussian(noise_multiplier=1.1, max_norm=0.5, length=20_000, silos=10, honest=6, largest=100.0)


# What one discrete Gaussian costs


def log_moment(order: float, q: float, s: float, mu: int, *, forward: bool = True) -> float:
    """``log E[(P/Q)^order]`` under Q, for P and Q the sampled and the plain mechanism or, backwards, the other way: 40 digits."""
    with mpmath.workdps(40):
        s2, q_ = mpmath.mpf(s) ** 2, mpmath.mpf(q)
        reach = int(14 * s + abs(mu) * (abs(order) + 2))
        total = moment = mpmath.mpf(0)
        for x in range(-reach, reach + 1):
            weight = mpmath.exp(-mpmath.mpf(x * x) / (2 * s2))
            mixed = 1 - q_ + q_ * mpmath.exp((2 * x * mu - mu * mu) / (2 * s2))
            total += weight
            moment += weight * mixed ** (order if forward else 1 - order)
        return float(mpmath.log(moment / total))


def accounted(orders: list[int], q: float, multiplier: float) -> dict[int, float]:
    """``(order - 1) ·`` the cost of the continuous mechanism at whole orders, by ``dp_accounting``; 0 at order 1."""
    import dp_accounting
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(orders=orders)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(multiplier)))
    return {1: 0.0} | {order: (order - 1) * float(cost) for order, cost in zip(orders, accountant._rdp, strict=True)}


MECHANISMS = [(1.0, 1, 0.3), (1.0, 1, 1.0), (1.3, 2, 0.05), (2.5, 1, 0.01), (4.0, 3, 0.2), (10.0, 7, 0.5), (10.0, 12, 0.001)]
mechanisms = pytest.mark.parametrize(("s", "mu", "q"), MECHANISMS)


@mechanisms
def test_at_whole_orders_the_discrete_gaussian_costs_what_the_continuous_one_costs(s: float, mu: int, q: float) -> None:
    orders = [2, 3, 4, 5, 8, 16]
    theirs = accounted(orders, q, s / mu)
    for order in orders:
        assert log_moment(order, q, s, mu) == pytest.approx(theirs[order], rel=1e-9)


@mechanisms
def test_between_whole_orders_the_straight_line_is_a_bound(s: float, mu: int, q: float) -> None:
    theirs = accounted(list(range(2, 10)), q, s / mu)
    for order in (1.05, 1.3, 1.5, 1.9, 2.5, 3.25, 4.7, 8.5):
        below = math.floor(order)
        line = theirs[below] + (order - below) * (theirs[below + 1] - theirs[below])
        exact = log_moment(order, q, s, mu)
        assert 0 < exact < line


@mechanisms
def test_the_other_direction_costs_no_more(s: float, mu: int, q: float) -> None:
    """Removing and adding a user, at whole orders and between; without sampling they cost the same."""
    for order in (1.3, 2, 2.5, 3, 8, 16):
        there, back = log_moment(order, q, s, mu), log_moment(order, q, s, mu, forward=False)
        assert back <= there * (1 + 1e-12)
        if q == 1.0:
            assert back == pytest.approx(there, rel=1e-12)


def test_the_other_direction_costs_no_more_for_every_ratio_of_two_mirrored_points() -> None:
    """``x`` and ``μ - x`` together add to forward minus backward moment what no ratio makes negative; so in any dimension."""
    ratio = np.exp(np.linspace(-20, 20, 801))[:, None]
    q = np.concatenate([[0.0], np.geomspace(1e-6, 1, 60)])
    for order in (1.01, 1.5, 2.0, 3.0, 6.5, 12.0):
        here, mirrored = 1 - q + q * ratio, 1 - q + q / ratio
        forward = here**order + ratio * mirrored**order
        backward = here ** (1 - order) + ratio * mirrored ** (1 - order)
        assert (forward - backward >= -1e-13 * forward).all()


def test_a_shift_of_a_vector_costs_what_its_length_costs() -> None:
    """Two dimensions, moved by (3, 4), against one dimension, moved by 5; and a shift that is shorter costs less."""
    s, q, order = 4.0, 0.2, 4
    x = np.arange(-120, 121)
    weight = np.exp(-(x**2) / (2 * s * s))
    weight /= weight.sum()

    def moment(*shift: int) -> float:
        ratios = [np.exp((2 * x * mu - mu * mu) / (2 * s * s)) for mu in shift]
        return float(np.outer(weight, weight).ravel() @ (1 - q + q * np.outer(*ratios).ravel()) ** order)

    assert math.log(moment(3, 4)) == pytest.approx(log_moment(order, q, s, 5), rel=1e-9)
    assert moment(3, 3) < moment(3, 4)


# What a sum of shares costs


@pytest.mark.parametrize("shares", [2, 3, 5])
@pytest.mark.parametrize("variance", [0.25, 0.5, 1.0, 2.0])
def test_a_sum_of_shares_is_as_close_to_one_discrete_gaussian_as_is_claimed(shares: int, variance: float) -> None:
    """Exact convolution. The ratio of both has the period ``shares``, so the numbers looked at are all that there are."""
    tau = 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, shares))
    with mpmath.workdps(40):
        reach = int(16 * math.sqrt(variance)) + 4 * shares
        share = [mpmath.exp(-mpmath.mpf(x * x) / (2 * mpmath.mpf(variance))) for x in range(-reach, reach + 1)]
        total = mpmath.fsum(share)
        share = [mass / total for mass in share]
        summed = dict(zip(range(-reach, reach + 1), share, strict=True))
        for _ in range(shares - 1):
            middle = range(-reach, reach + 1)
            summed = {z: mpmath.fsum(share[x + reach] * summed[z - x] for x in middle if z - x in summed) for z in middle}
        wide = {z: mpmath.exp(-mpmath.mpf(z * z) / (2 * shares * mpmath.mpf(variance))) for z in range(-4 * reach, 4 * reach + 1)}
        total = mpmath.fsum(wide.values())
        ratios = [float(mpmath.log(summed[z] * total / wide[z])) for z in range(-shares, shares + 1)]
    assert max(map(abs, ratios)) <= tau / 2
    if shares == 2:
        assert max(map(abs, ratios)) > tau / 5  # not by far; with more shares the bound is a wide one


@pytest.mark.parametrize(("length", "honest"), [(1, 2), (1000, 3), (10**6, 60)])
@pytest.mark.parametrize("variance", [2, 5, 9])
def test_the_bound_on_what_a_sum_costs_more_is_the_papers_or_above(
    length: int, honest: int, variance: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mechanism = DistributedGaussian(1.0, 1.0, length, honest, honest, 1.0)
    monkeypatch.setattr(DistributedGaussian, "share_variance", variance)
    with mpmath.workdps(30):
        terms = (mpmath.exp(-2 * mpmath.pi**2 * variance * k / (k + 1)) for k in range(1, honest))
        exact = float(mpmath.log(10 * length * mpmath.fsum(terms), 2))
    assert exact - 1e-9 <= mechanism.excess_bits <= exact + math.log2(2 * honest)


@pytest.mark.parametrize(("multiplier", "silos", "honest"), [(1e-9, 5, 2), (2e-9, 1000, 1000)])
def test_shares_too_narrow_to_add_up_to_one_gaussian_are_refused(multiplier: float, silos: int, honest: int) -> None:
    with pytest.raises(PrivacyError, match="too little for the sum over 1000 numbers to be like one Gaussian"):
        DistributedGaussian(multiplier, 1.0, 1000, silos, honest, 10.0)
    assert DistributedGaussian(multiplier, 1.0, 1000, silos, 1, 10.0).share_variance >= 1  # one share is a discrete Gaussian
    assert DistributedGaussian(1e-3, 1.0, 1000, silos, honest, 10.0).excess_bits < -(2**30)


# Sensitivity


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(-3, 40),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**32),
    st.sampled_from(["all of it in one number", "even", "random", "a hair in each number"]),
)
def test_one_user_moves_the_words_by_no_more_than_the_sensitivity(
    length: int, scale_bits: int, norm: float, seed: int, how: str
) -> None:
    """For the same rounding, and however the user's part lies to the steps; some numbers are cut off."""
    random = np.random.default_rng(seed)
    step = 2.0**-scale_bits
    base = random.normal(size=length) * random.choice([step, norm, 10 * norm])
    part = {
        "all of it in one number": np.eye(length)[0],
        "even": random.choice([-1.0, 1.0], length),
        "random": random.normal(size=length),
        "a hair in each number": np.sign(random.normal(size=length)) * 1e-9 * step,
    }[how]
    size = float(np.linalg.norm(part))
    part = part if how == "a hair in each number" and size <= norm else part * (norm * (1 - 1e-12) / size)
    coding = FixedPoint(64, scale_bits, 8 * norm, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", lambda n: bytes([seed % 251]) * n)  # one r for both
        words = [coding.encode(values).words.view(np.int64) for values in (base, base + part)]
    moved = sum((int(a) - int(b)) ** 2 for a, b in zip(*words, strict=True))
    assert moved <= sensitivity(norm, scale_bits, length) ** 2


def test_the_sensitivity_is_nearly_reached() -> None:
    """A user whose part is a hair in every number can move each word by one step; nothing smaller would hold."""
    length, coding = 10_000, FixedPoint(64, 0, 100.0, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", lambda n: bytes(n))
        # r of each number, found by encoding 0.5 ± : the smallest value that is rounded up is 1 - r.
        low, high = np.zeros(length), np.ones(length)
        for _ in range(60):
            middle = (low + high) / 2
            up = coding.encode(middle).words.view(np.int64) == 1
            low, high = np.where(up, low, middle), np.where(up, middle, high)
        words = [coding.encode(values).words.view(np.int64) for values in (low, high)]
    assert np.linalg.norm(high - low) < 1e-9
    assert int(((words[1] - words[0]) ** 2).sum()) == length
    assert sensitivity(1e-9, 0, length) == math.isqrt(length) + 1


def test_the_slack_holds_twice_the_errors_of_a_sum_over_as_many_users_as_is_said() -> None:
    assert Fraction(MOST_USERS) ** 2 / 2**53 * 2 <= distributed.SLACK


@settings(deadline=None)
@given(
    st.floats(1e-3, 1e3),
    st.floats(1e-6, 1e6),
    st.integers(1, 10**7),
    st.integers(1, 1000),
    st.integers(1, 1000),
    st.floats(1.0, 1e5),
)
def test_what_a_share_is_follows_from_exact_fractions(
    multiplier: float, norm: float, length: int, silos: int, honest: int, most: float
) -> None:
    honest = min(honest, silos)
    mechanism = DistributedGaussian(multiplier, norm, length, silos, honest, most * norm)
    step = Fraction(1, 1) / Fraction(mechanism.coding.scale)
    moved, variance = mechanism.sensitivity, mechanism.share_variance
    with mpmath.workdps(60):
        bound = mpmath.mpf(norm) / (mpmath.mpf(step.numerator) / step.denominator) * (1 + mpmath.mpf(2) ** -10)
        assert bound + mpmath.sqrt(length) <= moved < bound + mpmath.sqrt(length) + 2
    assert honest * variance >= (Fraction(multiplier) * moved) ** 2 > honest * (variance - 1)
    # Together: the noise of m honest silos is z times what one user moves, or a hair more.
    assert 2**29 <= norm * mechanism.coding.scale < 2**30
    deviation = mechanism.noise_std(honest)
    assert multiplier * norm <= deviation * (1 + 1e-12)
    assert deviation <= multiplier * norm * (1 + 2.0**-10 + (math.sqrt(length) + 3) * 2.0**-29) * (1 + 1e-9) + float(step)


# Room in the ring


@settings(deadline=None)
@given(
    st.floats(1e-3, 1e4),
    st.floats(1e-9, 1e18),
    st.integers(1, 10**7),
    st.integers(1, 10**5),
    st.integers(1, 10**5),
    st.floats(1e-2, 1e9),
)
def test_no_sum_can_wrap_around(multiplier: float, norm: float, length: int, silos: int, honest: int, most: float) -> None:
    def make(most: float) -> DistributedGaussian:
        return DistributedGaussian(multiplier, norm, length, silos, min(honest, silos), most * norm)

    if silos * max(most, 20 * multiplier) > 2**26:
        try:
            mechanism = make(most)
        except (ConfigError, PrivacyError):  # there may be no room, or only for steps too coarse for little noise
            return
    else:
        mechanism = make(most)
    coding = mechanism.coding
    room = coding.margin**2 * mechanism.honest  # as though all silos' noise came to TAIL deviations
    assert room >= TAIL**2 * silos * (Fraction(multiplier) * mechanism.sensitivity) ** 2
    assert silos * coding.max_step + coding.margin <= 2**63 - 1
    assert mechanism.share_variance <= MOST_VARIANCE
    assert coding.clip <= most * norm <= coding.clip * (1 + 2.0**-22)


def test_a_coarser_scale_is_taken_where_the_finest_has_no_room() -> None:
    usual, crowded = dataclasses.replace(USUAL, silos=1000), dataclasses.replace(USUAL, silos=1000, largest=1e8)
    assert usual.coding.scale_bits == 30
    assert crowded.coding.scale_bits < 30
    finer, margin = crowded.coding.scale_bits + 1, 2 * crowded.coding.margin - 100
    with pytest.raises(ConfigError, match="wrap around"):
        FixedPoint(64, finer, 1e8, 1000, margin=margin)
    assert crowded.noise_std(6) == pytest.approx(usual.noise_std(6), rel=1e-3)


def test_steps_are_coarser_where_the_noise_would_be_wider_than_can_be_drawn() -> None:
    wide = DistributedGaussian(2.0**22, 1.0, 1000, 1, 1, 1.0)
    assert wide.coding.scale_bits == 27  # with one more, the deviation of a share is a little above 2^50
    assert wide.share_variance <= MOST_VARIANCE < 4 * wide.share_variance
    assert wide.protect(np.zeros(1000)).words.view(np.int64).std() > 2.0**48


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"largest": 1e19}, "no room for 10 silos"),
        ({"noise_multiplier": 1e20}, "no room"),
        ({"noise_multiplier": 1e20, "silos": 1, "honest": 1}, "no room"),
        ({"max_norm": 1e-10}, "max_norm: must be between 2"),
        ({"max_norm": 1e19}, "max_norm: must be between 2"),
        ({"silos": 5}, "honest: 6 silos of at most 5"),
        ({"silos": 0}, "silos: must be a whole number"),
        ({"honest": 0}, "honest: must be a whole number"),
        ({"honest": True}, "honest: must be a whole number"),
        ({"length": 2.0}, "length: must be a whole number"),
        ({"noise_multiplier": 0.0}, "noise_multiplier: must be a positive number"),
        ({"noise_multiplier": math.nan}, "noise_multiplier: must be a positive number"),
        ({"max_norm": -1.0}, "max_norm: must be a positive number"),
        ({"largest": math.inf}, "largest: must be a positive number"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_with_a_sentence(change: dict[str, float], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        dataclasses.replace(USUAL, **change)  # type: ignore[arg-type]


# From silos to sum


def summed(mechanism: DistributedGaussian, values: NDArray[np.float64], silos: int) -> NDArray[np.float64]:
    """The decoded sum of as many silos, each of which holds ``values``."""
    words = np.zeros(mechanism.length, dtype=np.uint64)
    for _ in range(silos):
        part = mechanism.protect(values)
        assert part.words.dtype == np.uint64
        words += part.words
    return mechanism.coding.decode(words, silos)


@pytest.mark.parametrize("silos", [1, 6, 10])
def test_a_sum_has_the_noise_that_is_claimed(silos: int) -> None:
    """With m silos z·C, and more with more: chi-square of the variance, z of the mean, Kolmogorov-Smirnov of the form."""
    values = np.random.default_rng(1).normal(size=USUAL.length)
    noise = summed(USUAL, values, silos) - silos * values
    z, n = noise / USUAL.noise_std(silos), USUAL.length
    assert stats.chi2.ppf(RARE / 2, n) < (z**2).sum() < stats.chi2.isf(RARE / 2, n)
    assert abs(z.sum()) / math.sqrt(n) < stats.norm.isf(RARE / 2)
    assert stats.kstest(z, stats.norm.cdf).pvalue > RARE
    assert abs(z @ values) / np.linalg.norm(values) < stats.norm.isf(RARE / 2)  # and it knows nothing of the values
    assert USUAL.noise_std(silos) == pytest.approx(1.1 * 0.5 * math.sqrt(silos / 6) * (1 + 2.0**-10), rel=1e-5)


def test_two_parts_of_the_same_values_differ_in_every_word() -> None:
    values = np.zeros(1000)
    mechanism = dataclasses.replace(USUAL, length=1000)
    one, other = mechanism.protect(values).words, mechanism.protect(values).words
    assert (one != other).mean() > 0.99
    assert not values.any()


def test_sums_at_the_edge_of_the_range_do_not_wrap() -> None:
    """All silos at the largest value there is, and beyond it, either sign; the ring is as full as it gets."""
    crowded = dataclasses.replace(USUAL, length=400, silos=20, honest=12, largest=4e8)
    coding = crowded.coding
    assert coding.max_total(20) > 2**61
    values = np.where(np.arange(400) % 2, 1.0, -1.0) * np.repeat([4e8, 1e300], 200)
    part = crowded.protect(values)
    assert part.clipped == 200
    total = summed(crowded, values, 20)
    expected = 20 * np.sign(values) * coding.clip
    assert np.abs(total - expected).max() < 8 * crowded.noise_std(20)


def test_parts_that_are_no_vector_of_the_mechanism_are_refused() -> None:
    for wrong in (np.zeros(3), np.zeros((20_000, 1)), np.zeros(20_000, np.float32)):
        with pytest.raises(SecAggError, match=r"float64 of shape \(20000,\)"):
            USUAL.protect(wrong)
    with pytest.raises(SecAggError, match="NaN"):
        USUAL.protect(np.full(20_000, math.nan))


@pytest.mark.parametrize("silos", [0, 11])
def test_a_sum_that_is_not_made_has_no_noise(silos: int) -> None:
    with pytest.raises(SecAggError, match="there are 1 to 10"):
        USUAL.noise_std(silos)
