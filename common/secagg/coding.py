"""How the answers to each question go into a secure sum and come out of it, from public numbers; both sides compute it.

A weight is a factor of at most 1, relative to the heaviest silo: the silo multiplies before it encodes, so a word has room for
the number of silos and not for the sum of their weights, and the rounding is finer by as much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.config import Config
from common.errors import ConfigError
from common.privacy.plan import COUNT_MAX_NORM, METRICS_MAX_NORM, PrivacyPlan, plan_for
from common.protocol import COUNT, METRICS, TRAIN
from common.secagg.fixed_point import FixedPoint
from common.secagg.rules import Rules

if TYPE_CHECKING:
    from common.privacy.distributed import DistributedGaussian

#: A Gaussian number is beyond this many standard deviations with one chance in 10^23.
TAIL = 10.0

#: Mode ``none`` does not bound how often a user meets an item; more than this, on average, is cut off.
MEETINGS = 1000.0


def coding_of(action: str, config: Config, length: int) -> FixedPoint:
    """How the vectors of ``length`` numbers that answer ``action`` become words; checked, so that no sum can wrap around.

    Raises
    ------
    ConfigError
        If ``aggregation.bits`` do not hold such a sum.
    """
    if config.privacy.mode == "distributed":
        return mechanism_of(action, config, length).coding
    return FixedPoint.finest(config.aggregation.bits, _largest(action, config), Rules.of(config).silos)


def mechanism_of(action: str, config: Config, length: int) -> DistributedGaussian:
    """Mode ``distributed``: the noise of which each silo adds a share, and its words.

    Raises
    ------
    ConfigError
        If a silo is too large for its sum in double precision to be bounded as the mechanism needs it.
    """
    from common.privacy.distributed import MOST_USERS, DistributedGaussian

    plan, rules, most = _plan(config), Rules.of(config), max(config.federation.declared_users)
    if most > MOST_USERS // 2:  # what is declared may be off; half of it is room for that
        raise ConfigError(
            f"privacy.mode = 'distributed': a silo declares {most} users, and the sums of one silo are bounded for "
            f"{MOST_USERS // 2} users; let it take part as several silos"
        )
    noise_multiplier, max_norm = {
        COUNT: (plan.count_noise_multiplier, COUNT_MAX_NORM),
        METRICS: (plan.metrics_noise_multiplier, METRICS_MAX_NORM),
        TRAIN: (plan.noise_multiplier, plan.max_grad_norm),
    }[action]
    largest = max_norm * most
    return DistributedGaussian(noise_multiplier, max_norm, length, rules.silos, rules.honest, largest)


def weights_of(action: str, config: Config) -> tuple[float, ...]:
    """What each silo multiplies its answer by: declared users over those of the largest silo, for updates; else 1."""
    declared = config.federation.declared_users
    if action != TRAIN or config.privacy.mode == "distributed" or config.federation.weighting != "declared":
        return (1.0,) * len(declared)
    return tuple(users / max(declared) for users in declared)


def _largest(action: str, config: Config) -> float:
    """Beyond this a silo's numbers are cut off."""
    plan, users = _plan(config), float(max(config.federation.declared_users))
    if action == TRAIN:
        return config.aggregation.clip
    if action == COUNT:
        return users * (MEETINGS if plan.mode == "none" else COUNT_MAX_NORM) + TAIL * plan.count_noise_std
    return users * METRICS_MAX_NORM + TAIL * plan.metrics_noise_std


def _plan(config: Config) -> PrivacyPlan:
    smallest = min(config.federation.declared_users)
    return plan_for(config, smallest, smallest)
