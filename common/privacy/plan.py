"""What one silo will release in a run, planned from public numbers only.

The plan is made before any data are touched, from the configuration and the numbers that silos declared. It is the same
whoever the users are, which is what lets the coordinator, the silo and the auditor compute it independently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.config import Config, Mode
from common.errors import PrivacyError
from common.privacy.accountant import epsilon, noise_for_gaussian, noise_for_steps
from common.privacy.events import Event, GaussianCount, GaussianMetrics, PoissonGaussianSteps, Unprotected

COUNT_MAX_NORM = 1.0  # each user's counts are scaled to this L2 norm, so its value is a matter of units only

METRICS = ("ndcg", "hr")  # what a user's part in the figures of quality consists of, each in [0, 1]
METRICS_MAX_NORM = len(METRICS) ** 0.5


@dataclass(frozen=True)
class PrivacyPlan:
    """Parameters of every release of one silo in one run.

    Parameters
    ----------
    epsilon, delta:
        The budget of the whole run; meaningless in mode ``none``.
    noise_multiplier:
        Of each training step; 0 in mode ``none``.
    count_noise_multiplier:
        Of the count release; 0 in mode ``none``.
    metrics_noise_multiplier:
        Of the figures of quality after the last round; 0 in mode ``none`` and where they are withheld.
    expected_batch_size:
        Declared users times sampling probability: the denominator of every step.
    steps_per_round, rounds:
        How often.
    withholds_metrics:
        Nothing is told of an adapter's quality.
    hardened:
        The noise withstands attacks on floating-point arithmetic; each silo decides for itself.
    """

    mode: Mode
    epsilon: float
    delta: float
    noise_multiplier: float
    count_noise_multiplier: float
    sampling_probability: float
    expected_batch_size: float
    max_grad_norm: float
    steps_per_round: int
    rounds: int
    metrics_noise_multiplier: float = 0.0
    withholds_metrics: bool = True
    hardened: bool = True

    @property
    def count_noise_std(self) -> float:
        """Standard deviation of the noise in each released count."""
        return self.count_noise_multiplier * COUNT_MAX_NORM

    @property
    def metrics_noise_std(self) -> float:
        """Standard deviation of the noise in each released figure of quality, a sum over users."""
        return self.metrics_noise_multiplier * METRICS_MAX_NORM

    def count_event(self) -> Event:
        """What the count release costs."""
        if self.mode == "none":
            return Unprotected("interaction counts")
        return GaussianCount(self.count_noise_multiplier, COUNT_MAX_NORM)

    def train_event(self, round_number: int) -> Event:
        """What the update of one round costs."""
        if self.mode == "none":
            return Unprotected("update", round_number)
        return PoissonGaussianSteps(
            self.noise_multiplier, self.sampling_probability, self.steps_per_round, self.max_grad_norm, round_number
        )

    def metrics_event(self) -> Event:
        """What the figures of quality cost."""
        if self.mode == "none":
            return Unprotected("metrics", self.rounds)
        return GaussianMetrics(self.metrics_noise_multiplier, METRICS_MAX_NORM, self.rounds)

    def all_events(self) -> list[Event]:
        """Every release of the run, in order."""
        training = [self.train_event(r) for r in range(1, self.rounds + 1)]
        return [self.count_event(), *training, *([] if self.withholds_metrics else [self.metrics_event()])]

    def epsilon_after(self, rounds: int, method: str = "rdp") -> float:
        """Epsilon spent after the count and ``rounds`` rounds."""
        return epsilon(self.all_events()[: rounds + 1], self.delta, "pld" if method == "pld" else "rdp")


def delta_for(config: Config, declared_users: Sequence[int]) -> float:
    """The run's delta: as configured, else 1 / (10 × declared users of the smallest silo)."""
    if config.privacy.delta is not None:
        return config.privacy.delta
    return 1.0 / (10.0 * min(declared_users))


def plan_for(config: Config, declared_users: int, smallest: int) -> PrivacyPlan:
    """The plan of a silo that declared ``declared_users``, in a federation whose smallest silo declared ``smallest``.

    Raises
    ------
    PrivacyError
        If no noise can meet the budget.
    """
    privacy, training, rounds = config.privacy, config.training, config.federation.rounds
    if declared_users < 1 or smallest < 1:
        raise PrivacyError(f"declared users must be at least 1, got {declared_users} and {smallest}")
    delta = delta_for(config, [smallest])
    count_noise = metrics_noise = noise = 0.0
    before: list[Event] = []
    if privacy.mode != "none":
        count_noise = noise_for_gaussian(privacy.count_share * privacy.epsilon, delta, privacy.accountant)
        before.append(GaussianCount(count_noise, COUNT_MAX_NORM))
        if privacy.metrics_share:
            metrics_noise = noise_for_gaussian(privacy.metrics_share * privacy.epsilon, delta, privacy.accountant)
            before.append(GaussianMetrics(metrics_noise, METRICS_MAX_NORM))
        if rounds:
            noise = noise_for_steps(
                privacy.epsilon,
                delta,
                sampling_probability=training.sampling_probability,
                steps=rounds * training.local_steps,
                before=before,
                method=privacy.accountant,
            )
    return PrivacyPlan(
        mode=privacy.mode,
        epsilon=privacy.epsilon,
        delta=delta,
        noise_multiplier=noise,
        count_noise_multiplier=count_noise,
        sampling_probability=training.sampling_probability,
        expected_batch_size=training.sampling_probability * declared_users,
        max_grad_norm=privacy.max_grad_norm,
        steps_per_round=training.local_steps,
        rounds=rounds,
        metrics_noise_multiplier=metrics_noise,
        withholds_metrics=not privacy.metrics_share,
    )
