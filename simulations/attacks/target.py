"""The model under attack: one silo's run, trained as a federation would train it, and what it tells of each user.

Everything that releases something is the real code: the count, the rounds of :func:`client.trainer.train_round` and the server's
step. The federation has this one silo only: other silos would dilute its part in the mean and make an attack weaker. The attacker
gets the adapter that is handed out in the end; the coordinator, who sees every round, knows more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.errors import PrivacyError
from common.privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from client.silo_data import SiloData


def some_users(data: SiloData, users: Sequence[int] | NDArray[np.integer]) -> SiloData:
    """The silo as it would be with these users only."""
    chosen = [int(user) for user in users]
    return replace(
        data,
        histories=tuple(data.histories[u] for u in chosen),
        text=tuple(data.text[u] for u in chosen),
        held_out=None if data.held_out is None else data.held_out[chosen],
    )


def trained_adapter(config: Config, data: SiloData, plan: PrivacyPlan, *, seed: int) -> NDArray[np.float32]:
    """The adapter that a federation of this one silo hands out, float32 ``(n_parameters,)``.

    Count, ``plan.rounds`` rounds and server steps, as in a run. ``seed`` plays the part of ``run.seed``: it decides shuffling,
    windows and dropout in mode ``none``, and nothing in mode ``silo``.
    """
    from client.trainer import release_counts, train_round
    from common.model.adapter import from_vector
    from common.model.recommender import biases_from_counts
    from common.model.resident import resident
    from common.protocol import silo_seed
    from server.optimisers import OPTIMISERS, OptimiserState, averaged, kept

    check_fits(config, data, plan)
    home, federation = resident(config), config.federation
    vector = home.start.copy()
    if config.model.bias_weight:
        counts = release_counts(data, config, plan).astype(np.float64)
        vector[home.manifest.slice("bias.weight")] = biases_from_counts(counts, plan.count_noise_std, config.model)
    state: OptimiserState = {}
    for number in range(1, plan.rounds + 1):
        from_vector(home.model, vector, home.manifest)
        trained = train_round(home.model, data, config, plan, round_number=number, silo_seed=silo_seed(seed, 0, number))
        stepped = OPTIMISERS[federation.server_optimizer](vector, trained.update.astype(np.float64), state, federation)
        stepped = averaged(stepped, state, federation)
        vector, state = stepped.vector, stepped.state
    return kept(vector, state)


def mean_losses(config: Config, data: SiloData, vector: NDArray[np.float32]) -> NDArray[np.float64]:
    """Each user's mean cross-entropy per prediction in nats ``(n_users,)`` under an adapter, over the latest window.

    NaN for a user with fewer than two items: there is nothing to predict, so the model says nothing of them. Arithmetic is
    float32 whatever ``run.precision`` says.
    """
    import torch

    from client.silo_data import user_losses
    from common.model.adapter import from_vector
    from common.model.resident import resident

    home = resident(config)
    from_vector(home.model, vector, home.manifest)
    home.model.eval()
    out = np.full(len(data.histories), np.nan)
    for users in blocks(len(out), config.training.physical_batch_size):
        batch, targets = data.batch(users)
        with torch.inference_mode():
            losses = user_losses(home.model, batch.to(home.model.device), targets.to(home.model.device), data).cpu().double()
        predictions = (targets >= 0).sum(1).double()
        out[users] = torch.where(predictions > 0, losses * data.window / predictions, torch.nan).numpy()
    return out


def blocks(n: int, size: int) -> Iterator[NDArray[np.int64]]:
    """``0 … n-1`` in order, ``size`` at a time."""
    for start in range(0, n, size):
        yield np.arange(start, min(start + size, n))


def check_fits(config: Config, data: SiloData, plan: PrivacyPlan) -> None:
    """Refuse a silo, a configuration and a plan that do not belong together.

    Raises
    ------
    PrivacyError
        If modes differ, or the silo's items are not those of the run's catalogue.
    """
    from common.model.resident import resident

    if plan.mode != config.privacy.mode:
        raise PrivacyError(f"the plan is for mode {plan.mode!r}, the configuration says privacy.mode = {config.privacy.mode!r}")
    n_items = resident(config).model.n_items
    if data.n_items != n_items:
        raise PrivacyError(
            f"the silo's data name {data.n_items} items, the run's catalogue has {n_items}: attack a silo of this run"
        )
