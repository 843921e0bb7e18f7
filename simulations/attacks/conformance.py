"""Whether the training samples and clips as its plan says, looked at with next to no noise.

At the noise of a budget, one run hides most of what single canaries did: that is what the noise is for. But sampling and clipping
do not depend on it, so the same code can be run with a hundredth of a clip's noise. Then each gradient canary shows in each round
exactly how many steps drew it, and deviations come out that a budget's noise covers: shuffled batches or batches of a fixed size
where Poisson samples were charged, one single user who counts twice, a clip that is off by a percent.

This says nothing of the noise at the budget and refutes no epsilon. It is the complement of
:func:`simulations.attacks.canaries.audit_canaries`, which looks at the run as it is.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.errors import PrivacyError
from common.privacy.audit.mechanism import MechanismFit, mechanism_fit
from common.privacy.events import PoissonGaussianSteps
from common.privacy.plan import PrivacyPlan
from simulations.attacks.claims import check_attackable
from simulations.attacks.planting import choose_canaries, train_with_canaries
from simulations.watch import Silent, Watch

#: Of the clip, in one step.
NOISE_MULTIPLIER = 0.01

#: Of each of the four tests: a sound training fails the whole check less than once in ten thousand times.
LEVEL = 1e-4 / 4


@dataclass(frozen=True)
class ConformanceResult:
    """What canaries showed with next to no noise.

    Parameters
    ----------
    fit:
        Of all rounds' sums against the plan's noise (the small one), clip and sampling.
    clip_ratio, clip_p:
        What one participation of a canary adds to the sum, over the clip, and the p-value of its distance from 1.
    impossible:
        Canaries that showed, in some round, further from a whole number of steps between none and all than noise explains.
    impossible_p:
        Of the one furthest away, over all canaries and rounds.
    batches_p:
        Of the spread of the rounds' sample sizes, against independent coins for each user; None where every step takes everybody.
    """

    fit: MechanismFit
    clip_ratio: float
    clip_p: float
    impossible: int
    impossible_p: float
    batches_p: float | None
    n: int
    rounds: int
    seconds: float

    @property
    def violations(self) -> tuple[str, ...]:
        """What does not hold, in words."""
        failed = {test.name.partition(":")[0] for test in self.fit.tests if not test.holds}
        found = ["noise"] if "noise" in failed else []
        if self.clip_p < LEVEL:
            found.append(f"clip or sensitivity: a gradient enters the sum with {self.clip_ratio:.4g} times the clip")
        elif "participation" in failed:  # where a gradient has another size, sums say nothing of how often it was drawn
            found.append("sampling: users are not in steps as often as independent coins would have it")
        if self.impossible:
            found.append(f"{self.impossible} canaries moved a round by what no number of clipped gradients gives")
        if self.batches_p is not None and self.batches_p < LEVEL:
            found.append("the sizes of samples are not those of independent coins")
        return tuple(found)

    @property
    def holds(self) -> bool:
        return not self.violations

    @property
    def sentence(self) -> str:
        who = f"With next to no noise, {self.n:,} canaries over {self.rounds} rounds"
        if self.holds:
            return f"{who} showed nothing but Poisson samples of gradients clipped as planned."
        return f"{who} showed that the training is not what the plan says: {'; '.join(self.violations)}."

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        from simulations.result import finite

        values = {"holds": self.holds, "violations": self.violations, "sentence": self.sentence, **asdict(self)}
        return dict(finite(values))


def check_conformance(
    config: Config, plan: PrivacyPlan, *, n: int = 1000, seed: int, watch: Watch | None = None
) -> ConformanceResult:
    """Train one silo of canaries as ``plan`` says, but with noise of :data:`NOISE_MULTIPLIER`.

    Raises
    ------
    PrivacyError
        If the optimiser is not SGD, the plan has no private round, or ``n`` canaries do not fit.
    """
    check_attackable(plan.mode)
    if config.training.optimizer != "sgd" or plan.mode == "none" or plan.rounds < 1:
        raise PrivacyError(
            f"the check of sampling and clipping needs private rounds with sgd, this run has {plan.rounds} in mode {plan.mode!r} "
            f"with {config.training.optimizer}; the optimiser changes neither, so check with training.optimizer=sgd"
        )
    began = time.monotonic()
    watch = watch or Silent()
    quiet = replace(plan, noise_multiplier=NOISE_MULTIPLIER)
    rng = np.random.default_rng(seed)
    included = rng.random(n) < 0.5
    canaries = choose_canaries(config, quiet, n, rng)
    watch.stage("training with next to no noise", plan.rounds)
    seen = train_with_canaries(config, quiet, canaries, included, rng, watch=watch)
    events = [quiet.train_event(number) for number in range(1, plan.rounds + 1)]
    steps = [event for event in events if isinstance(event, PoissonGaussianSteps)]
    clip_ratio, clip_p = _clip(seen[:, included], quiet)
    impossible, impossible_p = _impossible(seen, included, quiet)
    return ConformanceResult(
        fit=mechanism_fit(seen.sum(axis=0) * plan.max_grad_norm, included, claimed=steps, confidence=1 - LEVEL),
        clip_ratio=clip_ratio,
        clip_p=clip_p,
        impossible=impossible,
        impossible_p=impossible_p,
        batches_p=_batches(seen[:, included], quiet),
        n=n,
        rounds=plan.rounds,
        seconds=time.monotonic() - began,
    )


def _clip(seen: NDArray[np.float64], plan: PrivacyPlan) -> tuple[float, float]:
    """Slope of what canaries showed on the number of steps that drew them, by least squares, and its two-sided p-value."""
    from scipy.stats import norm

    steps = plan.steps_per_round
    counts = np.clip(np.rint(seen), 0 if plan.sampling_probability < 1 else steps, steps)
    squares = float(np.sum(counts**2))
    if not squares:
        return math.nan, 1.0
    ratio = float(np.sum(seen * counts)) / squares
    error = plan.noise_multiplier * math.sqrt(steps / squares)
    return ratio, float(2 * norm.sf(abs(ratio - 1) / error))


def _impossible(seen: NDArray[np.float64], included: NDArray[np.bool_], plan: PrivacyPlan) -> tuple[int, float]:
    """Canaries with a contribution that is no possible count, and the p-value of the worst contribution (Šidák)."""
    from scipy.stats import norm

    most = np.where(included, plan.steps_per_round, 0)
    least = np.where(included & (plan.sampling_probability == 1), plan.steps_per_round, 0)
    away = np.abs(seen - np.clip(np.rint(seen), least, most)) / (plan.noise_multiplier * math.sqrt(plan.steps_per_round))
    each = 2 * norm.sf(away)
    together = -np.expm1(each.size * np.log1p(-np.minimum(each, 1 - 1e-16)))
    return int((together < LEVEL).any(axis=0).sum()), float(together.min())


def _batches(seen: NDArray[np.float64], plan: PrivacyPlan) -> float | None:
    """Two-sided, of the sum of squared deviations of the rounds' sizes, each Binomial(canaries * steps, q)."""
    from scipy.stats import chi2

    q, draws = plan.sampling_probability, seen.shape[1] * plan.steps_per_round
    if q == 1 or not draws:
        return None
    sizes = np.rint(seen).sum(axis=1)
    statistic = float(np.sum((sizes - draws * q) ** 2)) / (draws * q * (1 - q))
    return min(1.0, 2 * min(float(chi2.cdf(statistic, len(sizes))), float(chi2.sf(statistic, len(sizes)))))
