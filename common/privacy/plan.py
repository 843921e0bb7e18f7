"""What one silo will release in a run, planned from public numbers only.

The plan is made before any data are touched, from the configuration and the numbers that silos declared. It is the same
whoever the users are, which is what lets the coordinator, the silo and the auditor compute it independently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.config import Config, Mode
from common.errors import PrivacyError
from common.privacy.accountant import epsilon, epsilon_if_others_collude, noise_for_gaussian, noise_for_steps
from common.privacy.events import (
    DistributedCount,
    DistributedMetrics,
    DistributedStep,
    Event,
    GaussianCount,
    GaussianMetrics,
    PoissonGaussianSteps,
    Unprotected,
    if_others_collude,
)
from common.secagg.rules import Rules

COUNT_MAX_NORM = 1.0  # each user's counts are scaled to this L2 norm, so its value is a matter of units only

METRICS = ("ndcg", "hr")  # what a user's part in the figures of quality consists of, each in [0, 1]
METRICS_MAX_NORM = len(METRICS) ** 0.5


@dataclass(frozen=True)
class PrivacyPlan:
    """Parameters of every release of one silo in one run.

    Parameters
    ----------
    epsilon, delta:
        The budget of the whole run; meaningless in mode ``none``. In mode ``distributed`` it holds against whoever sees the sums.
    noise_multiplier:
        Of each training step; 0 in mode ``none``. In mode ``distributed`` all noise multipliers are those of a sum over silos
        with :attr:`honest` shares of noise in it.
    count_noise_multiplier:
        Of the count release; 0 in mode ``none``.
    metrics_noise_multiplier:
        Of the figures of quality after the last round; 0 in mode ``none`` and where they are withheld.
    expected_batch_size:
        Declared users of this silo times sampling probability: the denominator of every step. In mode ``distributed`` the
        coordinator divides by the sum of it over all silos.
    steps_per_round, rounds:
        How often.
    withholds_metrics:
        Nothing is told of an adapter's quality.
    hardened:
        The noise withstands attacks on floating-point arithmetic; each silo decides for itself.
    honest:
        Mode ``distributed``: silos in every sum whose shares of noise are counted on (``common.secagg.rules.Rules.honest``);
        0 in the other modes.
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
    honest: int = 0

    @property
    def count_noise_std(self) -> float:
        """Standard deviation of the noise in each released count; in mode ``distributed``, the least in each of the sum."""
        return self.count_noise_multiplier * COUNT_MAX_NORM

    @property
    def metrics_noise_std(self) -> float:
        """Standard deviation of the noise in each released figure of quality, a sum over users; see :attr:`count_noise_std`."""
        return self.metrics_noise_multiplier * METRICS_MAX_NORM

    def count_event(self) -> Event:
        """What the count release costs."""
        if self.mode == "none":
            return Unprotected("interaction counts")
        return _count(self.count_noise_multiplier, self.honest)

    def train_event(self, round_number: int) -> Event:
        """What the update of one round costs."""
        if self.mode == "none":
            return Unprotected("update", round_number)
        if self.mode == "distributed":
            return DistributedStep(
                self.noise_multiplier, self.sampling_probability, self.max_grad_norm, round_number, honest=self.honest
            )
        return PoissonGaussianSteps(
            self.noise_multiplier, self.sampling_probability, self.steps_per_round, self.max_grad_norm, round_number
        )

    def metrics_event(self) -> Event:
        """What the figures of quality cost."""
        if self.mode == "none":
            return Unprotected("metrics", self.rounds)
        return _metrics(self.metrics_noise_multiplier, self.rounds, self.honest)

    def all_events(self) -> list[Event]:
        """Every release of the run, in order."""
        training = [self.train_event(r) for r in range(1, self.rounds + 1)]
        return [self.count_event(), *training, *([] if self.withholds_metrics else [self.metrics_event()])]

    def collusion_events(self) -> list[Event]:
        """What is left of :meth:`all_events` if all other silos collude with the coordinator; in modes other than ``distributed``
        that is all of them.
        """
        return [if_others_collude(event) for event in self.all_events()]

    def epsilon_after(self, rounds: int, method: str = "rdp") -> float:
        """Epsilon spent after the count and ``rounds`` rounds."""
        return epsilon(self.all_events()[: rounds + 1], self.delta, "pld" if method == "pld" else "rdp")

    def epsilon_if_others_collude(self, method: str = "rdp") -> float:
        """Epsilon of the whole run if all other silos collude with the coordinator, at the run's delta."""
        return epsilon_if_others_collude(self.all_events(), self.delta, "pld" if method == "pld" else "rdp")


def delta_for(config: Config, declared_users: Sequence[int]) -> float:
    """The run's delta: as configured, else 1 / (10 × declared users of the smallest silo)."""
    if config.privacy.delta is not None:
        return config.privacy.delta
    return 1.0 / (10.0 * min(declared_users))


def plan_for(config: Config, declared_users: int, smallest: int) -> PrivacyPlan:
    """The plan of a silo that declared ``declared_users``, in a federation whose smallest silo declared ``smallest``.

    In mode ``distributed`` the noise of a sum over silos is calibrated as that of one mechanism, at whole Rényi orders.

    Raises
    ------
    PrivacyError
        If no noise can meet the budget.
    ConfigError
        If the mode is ``distributed`` and there are too few silos for secure sums.
    """
    privacy, training, rounds = config.privacy, config.training, config.federation.rounds
    if declared_users < 1 or smallest < 1:
        raise PrivacyError(f"declared users must be at least 1, got {declared_users} and {smallest}")
    delta = delta_for(config, [smallest])
    in_shares = privacy.mode == "distributed"
    honest = Rules.of(config).honest if in_shares else 0
    count_noise = metrics_noise = noise = 0.0
    before: list[Event] = []
    if privacy.mode != "none":
        budget = privacy.count_share * privacy.epsilon
        count_noise = noise_for_gaussian(budget, delta, privacy.accountant, whole_orders=in_shares)
        before.append(_count(count_noise, honest))
        if privacy.metrics_share:
            budget = privacy.metrics_share * privacy.epsilon
            metrics_noise = noise_for_gaussian(budget, delta, privacy.accountant, whole_orders=in_shares)
            before.append(_metrics(metrics_noise, rounds, honest))
        if rounds:
            noise = noise_for_steps(
                privacy.epsilon,
                delta,
                sampling_probability=training.sampling_probability,
                steps=rounds * training.local_steps,
                before=before,
                method=privacy.accountant,
                whole_orders=in_shares,
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
        honest=honest,
    )


def _count(noise_multiplier: float, honest: int) -> Event:
    """The event of a count; of mode ``distributed`` where shares of noise are counted on."""
    if honest:
        return DistributedCount(noise_multiplier, COUNT_MAX_NORM, honest=honest)
    return GaussianCount(noise_multiplier, COUNT_MAX_NORM)


def _metrics(noise_multiplier: float, round_number: int, honest: int) -> Event:
    if honest:
        return DistributedMetrics(noise_multiplier, METRICS_MAX_NORM, round_number, honest=honest)
    return GaussianMetrics(noise_multiplier, METRICS_MAX_NORM, round_number)
