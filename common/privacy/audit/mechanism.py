"""Do canaries' scores have the distribution that the claimed mechanism gives them? Exact tests of noise, clip and sampling.

A gradient canary is a user whose gradient is always a vector of norm C (the clip) in a direction of its own, orthogonal to the
other canaries' directions and to what real users do. Its score is the sum over all T steps of <noised sum of clipped gradients,
direction>, in the gradients' own units. If DP-SGD ran as claimed, with noise multiplier sigma and Poisson sampling with
probability q, independently:

    included / C ~ Binomial(T, q) + N(0, T sigma^2)        excluded / C ~ N(0, T sigma^2)

This is a test of the claim, two-sided, and much sharper than a bound on epsilon: it sees too little noise, a clip that does not
hold, and sampling other than Poisson. Shuffling, where a user takes part exactly once in each epoch, has the right mean but no
spread of participation (that it is not what was accounted for: Chua et al. 2024, arXiv 2403.17673). But it speaks only of the
training that the canaries went through, and :func:`detectable` says which deviations m canaries are able to show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import PrivacyError
from common.privacy.audit.gaussian_bound import check_level, check_scores
from common.privacy.events import PoissonGaussianSteps

Part = Literal["noise", "clip/sensitivity", "sampling"]
PARTS: tuple[Part, ...] = ("noise", "clip/sensitivity", "sampling")

#: Tests of one fit; each is corrected for the others (Holm 1979).
N_TESTS = 5

#: How many standard errors an explanation of a failed test may be off.
_NEAR = 2.58


@dataclass(frozen=True)
class FitTest:
    """One test. ``expected`` and ``observed`` are in units of the clip; for a distribution, 0 and the distance of CDFs."""

    name: str
    expected: float
    observed: float
    p_value: float
    p_corrected: float
    holds: bool


@dataclass(frozen=True)
class MechanismFit:
    """Whether the scores are what the claim says.

    Parameters
    ----------
    holds:
        No test failed. A true claim fails with probability at most 1 - ``confidence``.
    violated:
        Parts of the claim that do not hold, the most likely reading of the failed tests.
    ambiguous:
        What is called ``clip/sensitivity`` may as well be the sampling probability: both change the mean contribution of a
        canary.
    noise_ratio, noise_ratio_low, noise_ratio_high:
        Standard deviation of the noise over the claimed one, with a two-sided interval.
    contribution_ratio, contribution_ratio_low, contribution_ratio_high:
        Mean contribution of an included canary over the claimed one, T q C, with a two-sided interval.
    """

    holds: bool
    violated: tuple[Part, ...]
    ambiguous: bool
    tests: tuple[FitTest, ...]
    noise_ratio: float
    noise_ratio_low: float
    noise_ratio_high: float
    contribution_ratio: float
    contribution_ratio_low: float
    contribution_ratio_high: float
    n_included: int
    n_excluded: int
    confidence: float
    sentence: str


@dataclass(frozen=True)
class Detectable:
    """Deviations that an audit sees with probability ``power``, each by its own test and alone.

    ``noise_too_small`` and ``noise_too_large`` are ratios of standard deviations, ``contribution_too_small`` and
    ``contribution_too_large`` of mean contributions (below 0: no such deviation is seen). ``shuffling_power`` is the
    probability to see participation that is exactly T q for everybody; ``canaries_for_shuffling`` the included canaries with
    which it is ``power``, None where more than a million are needed or there is nothing to see (q = 1).
    """

    noise_too_small: float
    noise_too_large: float
    contribution_too_small: float
    contribution_too_large: float
    shuffling_power: float
    canaries_for_shuffling: int | None
    power: float
    confidence: float
    sentence: str


def mechanism_fit(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    claimed: PoissonGaussianSteps | Sequence[PoissonGaussianSteps],
    confidence: float = 0.95,
) -> MechanismFit:
    """Test the scores of gradient canaries against the claimed steps.

    Five two-sided tests under the claim: the excluded canaries' mean square (chi-square, exact) and whole distribution
    (Kolmogorov-Smirnov, exact); the included ones' mean (exact), variance (chi-square with the moments of the claim) and whole
    distribution. Holm's correction. Then the failed ones are read: an included variance that the measured noise explains is not
    counted against the sampling, and a wrong mean is laid to the clip or to the sampling probability by the spread that goes
    with it.

    Parameters
    ----------
    scores, included:
        ``(m,)`` finite floats, in the units of the gradients, not divided by the clip; ``(m,)`` booleans. At least 10 of each
        kind.
    claimed:
        The steps that the scores sum over: one event, or the events of several rounds, equal but for their round and number of
        steps.

    Raises
    ------
    PrivacyError
        If shapes or numbers do not fit.
    """
    from scipy.stats import chi2, kstest, norm
    from scipy.stats import t as student

    values, member = check_scores(scores, included, finite=True)
    check_level(confidence)
    claim = _one(claimed)
    inside, outside = (values[chosen] / claim.max_grad_norm for chosen in (member, ~member))
    n_in, n_out = len(inside), len(outside)
    if min(n_in, n_out) < 10:
        raise PrivacyError(f"{n_in} included and {n_out} excluded canaries: the fit needs 10 of each")
    model = _Model(claim)

    squares = float(np.sum(outside**2))
    mean, variance = float(inside.mean()), float(np.var(inside, ddof=1))
    degrees = model.degrees(n_in)
    far_out, far_in = kstest(outside, norm(scale=model.noise).cdf), kstest(inside, model.cdf)
    found = [
        ("noise: variance", model.noise**2, squares / n_out, _two_sided(chi2, squares / model.noise**2, n_out)),
        ("noise: distribution", 0.0, float(far_out.statistic), float(far_out.pvalue)),
        ("participation: mean", model.mean, mean, model.mean_p_value(float(inside.sum()), n_in)),
        ("participation: variance", model.variance, variance, _two_sided(chi2, variance / model.variance * degrees, degrees)),
        ("participation: distribution", 0.0, float(far_in.statistic), float(far_in.pvalue)),
    ]
    corrected = holm([p for *_, p in found])
    tests = tuple(
        FitTest(name, expected, observed, p, adjusted, adjusted > 1 - confidence)
        for (name, expected, observed, p), adjusted in zip(found, corrected, strict=True)
    )
    failed = {test.name for test in tests if not test.holds}
    violated, ambiguous = _read(failed, model, mean, variance, squares / n_out, n_in, n_out, confidence)

    tail = (1 - confidence) / 2
    noise_low, noise_high = (math.sqrt(squares / float(chi2.ppf(p, n_out))) / model.noise for p in (1 - tail, tail))
    half = float(student.ppf(1 - tail, n_in - 1)) * math.sqrt(variance / n_in)
    return MechanismFit(
        holds=not failed,
        violated=violated,
        ambiguous=ambiguous,
        tests=tests,
        noise_ratio=math.sqrt(squares / n_out) / model.noise,
        noise_ratio_low=noise_low,
        noise_ratio_high=noise_high,
        contribution_ratio=mean / model.mean,
        contribution_ratio_low=(mean - half) / model.mean,
        contribution_ratio_high=(mean + half) / model.mean,
        n_included=n_in,
        n_excluded=n_out,
        confidence=confidence,
        sentence=_sentence(violated, ambiguous, n_in, n_out, confidence),
    )


def detectable(
    n_included: int,
    n_excluded: int,
    *,
    claimed: PoissonGaussianSteps | Sequence[PoissonGaussianSteps],
    confidence: float = 0.95,
    power: float = 0.9,
) -> Detectable:
    """What :func:`mechanism_fit` is able to see with so many canaries, each test at the least level that Holm's correction asks.

    Raises
    ------
    PrivacyError
        If there are fewer than 10 canaries of a kind, or ``confidence`` or ``power`` is not in (0.5, 1).
    """
    from scipy.special import ndtri
    from scipy.stats import chi2

    check_level(confidence)
    check_level(power)
    if min(n_included, n_excluded) < 10:
        raise PrivacyError(f"{n_included} included and {n_excluded} excluded canaries: the fit needs 10 of each")
    model, tail = _Model(_one(claimed)), (1 - confidence) / N_TESTS / 2
    least = math.sqrt(float(chi2.ppf(tail, n_excluded) / chi2.ppf(power, n_excluded)))
    most = math.sqrt(float(chi2.isf(tail, n_excluded) / chi2.ppf(1 - power, n_excluded)))
    shift = float(ndtri(power) - ndtri(tail)) * math.sqrt(model.variance / n_included) / model.mean
    now = model.shuffling_power(n_included, tail)
    needed = _canaries_for_shuffling(model, tail, power)
    sentence = (
        f"With {n_included} included and {n_excluded} excluded canaries, a fit sees with probability {power:.0%}: noise below "
        f"{least:.0%} or above {most:.0%} of the claimed, contributions "
        + (f"below {1 - shift:.0%} or " if shift < 1 else "")
        + f"above {1 + shift:.0%} of the claimed. "
        + (
            "With every user in every step there is no shuffling to see."
            if model.spread == 0
            else f"It sees shuffling with probability {now:.0%}"
            + (
                f"; {needed:,} included canaries make it {power:.0%}."
                if needed
                else "; no practical number of canaries makes it sure."
            )
        )
    )
    return Detectable(least, most, 1 - shift, 1 + shift, now, needed, power, confidence, sentence)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for each other, in the order given: any false one at or below a level has at most its chance."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


class _Model:
    """Distribution of a score over the clip under the claim: K + N(0, noise^2), K binomial."""

    def __init__(self, claim: PoissonGaussianSteps) -> None:
        self.steps, self.q = claim.steps, claim.sampling_probability
        self.mean = self.steps * self.q
        self.spread = self.mean * (1 - self.q)  # variance of participation
        self.noise = claim.noise_multiplier * math.sqrt(self.steps)
        self.variance = self.spread + self.noise**2

    def _window(self, trials: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Counts that matter, and their probabilities."""
        from scipy.stats import binom

        middle, reach = trials * self.q, 40 * math.sqrt(trials * self.q * (1 - self.q)) + 40
        counts = np.arange(max(0, math.floor(middle - reach)), min(trials, math.ceil(middle + reach)) + 1, dtype=np.float64)
        return counts, binom.pmf(counts, trials, self.q)

    def cdf(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        from scipy.special import ndtr

        counts, mass = self._window(self.steps)
        kept = mass > 1e-18
        counts, mass = counts[kept], mass[kept]
        points = np.atleast_1d(np.asarray(x, dtype=np.float64))
        blocks = np.array_split(points, max(1, len(points) * len(counts) // 2_000_000))
        return np.concatenate([ndtr((block[:, None] - counts) / self.noise) @ mass for block in blocks])

    def mean_p_value(self, total: float, n: int) -> float:
        """Two-sided, of the sum of n scores: binomial over all steps of all canaries, plus noise."""
        from scipy.special import ndtr

        counts, mass = self._window(n * self.steps)
        z = (total - counts) / (self.noise * math.sqrt(n))
        return min(1.0, 2 * min(float(ndtr(z) @ mass), float(ndtr(-z) @ mass)))

    def variance_of_variance(self, n: int, variance: float | None = None) -> float:
        """Of the sample variance of n scores: fourth cumulant / n + 2 variance^2 / (n - 1)."""
        fourth = max(0.0, self.spread * (1 - 6 * self.q * (1 - self.q)))  # below 0, a chi-square would be a bad likeness
        v = self.variance if variance is None else variance
        return max(fourth / n + 2 * v * v / (n - 1), 1e-300)

    def degrees(self, n: int) -> float:
        """Of the chi-square whose first two moments are those of the sample variance (Satterthwaite 1946)."""
        return 2 * self.variance**2 / self.variance_of_variance(n)

    def shuffling_power(self, n: int, tail: float) -> float:
        """Probability that the variance's test sees participation without spread."""
        from scipy.stats import chi2

        if self.spread == 0:
            return 0.0
        degrees = self.degrees(n)
        critical = self.variance * float(chi2.ppf(tail, degrees)) / degrees
        return float(chi2.cdf(critical * (n - 1) / self.noise**2, n - 1))


def _one(claimed: PoissonGaussianSteps | Sequence[PoissonGaussianSteps]) -> PoissonGaussianSteps:
    events = [claimed] if isinstance(claimed, PoissonGaussianSteps) else list(claimed)
    if not events or not all(isinstance(event, PoissonGaussianSteps) for event in events):
        raise PrivacyError("the claimed mechanism must be steps of a Poisson-sampled Gaussian, at least one event")
    kinds = {(event.noise_multiplier, event.sampling_probability, event.max_grad_norm) for event in events}
    if len(kinds) != 1:
        raise PrivacyError(
            "the claimed steps differ in noise, sampling probability or clip: score and test each kind of steps by itself"
        )
    (sigma, q, clip), steps = kinds.pop(), sum(event.steps for event in events)
    return PoissonGaussianSteps(sigma, q, steps, clip)


def _two_sided(family: object, statistic: float, degrees: float) -> float:
    below, above = family.cdf(statistic, degrees), family.sf(statistic, degrees)  # type: ignore[attr-defined]
    return min(1.0, 2 * min(float(below), float(above)))


def _read(
    failed: set[str], model: _Model, mean: float, variance: float, noise: float, n_in: int, n_out: int, confidence: float
) -> tuple[tuple[Part, ...], bool]:
    """Which parts of the claim the failed tests speak against. ``noise`` is the measured variance of the noise."""
    from scipy.stats import t as student

    parts: set[Part] = set()
    ambiguous = False
    if failed & {"noise: variance", "noise: distribution"}:
        parts.add("noise")
    error = math.sqrt(model.variance_of_variance(n_in, variance) + 2 * noise**2 / n_out)

    def explains(spread: float) -> bool:
        """Whether this variance of participation, on top of the measured noise, gives the variance found."""
        return abs(variance - noise - spread) <= _NEAR * error

    far = abs(mean - model.mean) / math.sqrt(variance / n_in)
    # With more noise than claimed, the mean strays further; only what is far by its own spread counts then.
    wrong_mean = "participation: mean" in failed and (
        "noise" not in parts or far > float(student.ppf(1 - (1 - confidence) / N_TESTS / 2, n_in - 1))
    )
    if wrong_mean:
        clip = explains(model.spread * (mean / model.mean) ** 2)
        rate = 0 <= mean <= model.steps and explains(mean * (1 - mean / model.steps))
        ambiguous = clip and rate
        if clip or not rate:
            parts.add("clip/sensitivity")
        if not clip:
            parts.add("sampling")
    elif "participation: variance" in failed and not ("noise" in parts and explains(model.spread)):
        parts.add("sampling")
    if failed and not parts:  # the included canaries' distribution alone, or a mean that only noise explains
        parts.add("sampling")
    return tuple(part for part in PARTS if part in parts), ambiguous


def _canaries_for_shuffling(model: _Model, tail: float, power: float) -> int | None:
    low, high = 10, 1_000_000
    if model.shuffling_power(high, tail) < power:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if model.shuffling_power(middle, tail) >= power else (middle + 1, high)
    return low


def _sentence(violated: tuple[Part, ...], ambiguous: bool, n_in: int, n_out: int, confidence: float) -> str:
    who = f"The scores of {n_in} included and {n_out} excluded canaries"
    if not violated:
        return f"{who} are such as the claimed mechanism gives; larger deviations than these canaries can show are not excluded."
    parts = ", ".join(violated) + (" (or the sampling probability)" if ambiguous else "")
    return f"{who} are not such as the claimed mechanism gives ({confidence:.0%} confidence). What does not hold: {parts}."
