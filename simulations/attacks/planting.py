"""Gradient canaries: made-up users whose gradient is known, planted in the real training of a silo.

The canary of Nasr et al. (2023) and Steinke et al. (2023): where the training has computed a canary's gradient, its own vector is
put in the place, before Opacus clips. All that decides privacy (the sample, the clip, the noise, the denominator, the
optimiser's step) is done to it by the code that trains real users.

The vectors are "Dirac": one number of the adapter for each canary, with a random sign. They are orthogonal, so what one canary
adds hides no other, and as many fit as the adapter has numbers. Their norm is far above the clip: where nothing is clipped, that
shows.

With SGD, the change of a canary's number is known. In units of a clipped gradient, one round of ``s`` steps gives

    seen = Binomial(s, sampling_probability) + N(0, s * noise_multiplier²)     for a canary that was in the data
    seen = N(0, s * noise_multiplier²)                                         for one that was not

and the best that anybody can do with it (Neyman & Pearson) is the ratio of the two densities, :func:`log_likelihood_ratio`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.errors import PrivacyError
from common.privacy.plan import PrivacyPlan
from simulations.watch import Watch

if TYPE_CHECKING:
    from client.dp_steps import Plant
    from client.silo_data import SiloData
    from common.model.adapter import Manifest
    from common.model.recommender import Recommender

#: A canary's gradient norm over the clip.
LOUDNESS = 10.0

#: An adapter is float32. Numbers that round by more than this share of a step's noise (standard deviation) get no canary.
ROUNDING = 0.01


@dataclass(frozen=True, eq=False)
class GradientCanaries:
    """``m`` canaries, each with a number of the adapter of its own.

    Parameters
    ----------
    places:
        int64 ``(m,)``, places in the adapter, all different.
    signs:
        float32 ``(m,)``, 1 or -1.
    norm:
        Of each canary's gradient before it is clipped.
    """

    places: NDArray[np.int64]
    signs: NDArray[np.float32]
    norm: float

    def __post_init__(self) -> None:
        if len(np.unique(self.places)) != len(self.places) or len(self.signs) != len(self.places):
            raise PrivacyError(f"{len(self.places)} canaries need as many different places and signs")
        if not 0 < self.norm < math.inf:
            raise PrivacyError(f"a canary's norm is {self.norm}, must be positive and finite")

    def __len__(self) -> int:
        return len(self.places)

    def plant(self, manifest: Manifest, who: NDArray[np.int64]) -> Plant:
        """What ``train_round`` takes: ``who`` says which canary each of the silo's users is, -1 for a real user."""

        def plant(model: Recommender, users: NDArray[np.int64]) -> None:
            import torch

            rows = np.flatnonzero(who[users] >= 0)
            canaries = who[users[rows]]
            parameters = dict(model.named_parameters())
            for name in manifest.names:
                parameter = parameters[name]
                if not parameter.requires_grad:
                    continue
                where = manifest.slice(name)
                gradients = parameter.grad_sample.flatten(1).clone()  # type: ignore[attr-defined]
                gradients[torch.from_numpy(rows)] = 0.0
                here = (self.places[canaries] >= where.start) & (self.places[canaries] < where.stop)
                cells = torch.from_numpy(rows[here]), torch.from_numpy(self.places[canaries[here]] - where.start)
                gradients[cells] = torch.from_numpy(self.signs[canaries[here]] * np.float32(self.norm)).to(gradients)
                parameter.grad_sample = gradients.view(len(users), *parameter.shape)  # type: ignore[attr-defined]

        return plant

    def seen_in(self, update: NDArray[np.float32]) -> NDArray[np.float64]:
        """How far an update moved along each canary's descent, float64 ``(m,)``."""
        return -update[self.places].astype(np.float64) * self.signs


def step_of(config: Config, plan: PrivacyPlan) -> float:
    """How far one clipped gradient moves the adapter in a step of SGD."""
    return config.training.learning_rate * plan.max_grad_norm / plan.expected_batch_size


def places_for(config: Config, plan: PrivacyPlan) -> NDArray[np.int64]:
    """Numbers of the adapter that are trained and, with SGD, are stored exactly enough to show one step's noise."""
    from common.model.resident import resident

    home = resident(config)
    trained = {name for name, parameter in home.model.named_parameters() if parameter.requires_grad}
    usable = np.zeros(home.manifest.n_parameters, dtype=np.bool_)
    for name in trained & set(home.manifest.names):
        usable[home.manifest.slice(name)] = True
    if config.training.optimizer == "sgd":
        usable &= np.spacing(np.abs(home.start)) <= ROUNDING * plan.noise_multiplier * step_of(config, plan)
    return np.flatnonzero(usable)


def choose_canaries(config: Config, plan: PrivacyPlan, n: int, rng: np.random.Generator) -> GradientCanaries:
    """``n`` canaries at random places of the run's adapter.

    Raises
    ------
    PrivacyError
        If fewer than ``n`` fit.
    """
    places = places_for(config, plan)
    if n > len(places):
        raise PrivacyError(
            f"{n} gradient canaries need as many numbers of the adapter, and {len(places)} are trained and exact enough: "
            f"audit with at most {len(places)} canaries, or give the model more parameters (model.lora_rank, model.item_dim)"
        )
    chosen = np.sort(rng.choice(places, n, replace=False))
    signs = rng.choice(np.array([-1.0, 1.0], dtype=np.float32), n)
    return GradientCanaries(chosen, signs, LOUDNESS * plan.max_grad_norm)


def train_with_canaries(
    config: Config,
    plan: PrivacyPlan,
    canaries: GradientCanaries,
    included: NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    background: SiloData | None = None,
    watch: Watch,
) -> NDArray[np.float64]:
    """All rounds of a silo whose users are ``background`` and the canaries that are ``included``.

    Returns
    -------
    float64 ``(rounds, m)``: what each round's update shows of each canary; with SGD in units of a clipped gradient.
    """
    from client.trainer import train_round
    from common.model.adapter import from_vector
    from common.model.resident import resident

    home = resident(config)
    present = np.flatnonzero(included)
    data = with_users(config, made_up_histories(len(present), 2, home.model.n_items, background, rng), background)
    who = np.concatenate([np.full(len(data.histories) - len(present), -1, dtype=np.int64), present])
    plant = canaries.plant(home.manifest, who)
    unit = step_of(config, plan) if config.training.optimizer == "sgd" else 1.0
    seen = np.zeros((plan.rounds, len(canaries)))
    try:
        from_vector(home.model, home.start, home.manifest)
        for number in range(1, plan.rounds + 1):
            trained = train_round(home.model, data, config, plan, round_number=number, silo_seed=0, plant=plant)
            seen[number - 1] = canaries.seen_in(trained.update) / unit
            watch.step(number)
    finally:
        from_vector(home.model, home.start, home.manifest)
    return seen


def made_up_histories(
    n: int, length: int, n_items: int, background: SiloData | None, rng: np.random.Generator
) -> tuple[NDArray[np.int32], ...]:
    """``n`` histories of ``length`` items drawn from what the silo sells."""
    mask = None if background is None else background.item_mask
    sold = np.arange(n_items) if mask is None else np.flatnonzero(mask)
    return tuple(rng.choice(sold, length).astype(np.int32) for _ in range(n))


def with_users(config: Config, histories: tuple[NDArray[np.int32], ...], background: SiloData | None) -> SiloData:
    """The silo of ``background`` with users appended who have these histories and no text; without one, a silo of them alone."""
    from client.silo_data import SiloData
    from common.model.resident import resident

    text: tuple[tuple[int, ...], ...] = ((),) * len(histories)
    if background is None:
        return SiloData(histories, text, resident(config).model.n_items, config.model.window)
    return replace(background, histories=background.histories + histories, text=background.text + text, held_out=None)


def log_likelihood_ratio(seen: NDArray[np.float64], plan: PrivacyPlan) -> NDArray[np.float64]:
    """In nats ``(m,)``: how much better "was in the data" explains what all rounds showed, ``seen`` (rounds, m), with SGD.

    The privacy loss that came about, as the plan claims it: each round is a mixture over the number ``k`` of the ``s`` steps
    that drew the canary, ``log sum_k P[Binomial(s, q) = k] exp((k x - k²/2) / (s * noise_multiplier²))``.
    """
    from scipy.stats import binom

    steps, variance = plan.steps_per_round, plan.steps_per_round * plan.noise_multiplier**2
    total = np.full(seen.shape, -np.inf)
    for k in range(steps + 1):
        log_chance = float(binom.logpmf(k, steps, plan.sampling_probability))
        if log_chance > -np.inf:
            total = np.logaddexp(total, log_chance + (k * seen - k**2 / 2) / variance)
    return total.sum(axis=0)
