"""Training inside one silo, plain or with differential privacy for each user, and its count and figures. No Flower here.

In mode ``silo`` a round is a few steps of DP-SGD (Abadi et al. 2016): users are Poisson-sampled, each user's whole
contribution is one gradient, clipped in L2 (``client.dp_steps``), noise is added to the sum, and the sum is divided by the
*declared* expected batch size. An empty sample still takes a noisy step. What a round costs is ``PrivacyPlan.train_event``; the
caller charges it to the silo's ledger before calling :func:`train_round`.

In private modes every draw comes from secret randomness, never from the run's seed; ``client.dp_steps`` says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.dp_steps import Plant, clipped_sums, secret_seed, training_mode
from client.silo_data import SiloData, rows_of, user_losses
from client.sums import count_sum, metrics_sum
from common.config import Config, TrainingConfig
from common.model.adapter import to_vector
from common.model.recommender import Recommender, autocast
from common.privacy.plan import PrivacyPlan
from common.privacy.rounding import add_gaussian_noise


@dataclass(frozen=True, eq=False)
class LocalResult:
    """What a round of local training gives. In mode ``none`` everything is exact; else only ``update`` may leave.

    Parameters
    ----------
    update:
        float32 ``(n_parameters,)``: local minus global adapter.
    loss:
        Mean loss per prediction in nats, None in private modes: it was not protected.
    """

    update: NDArray[np.float32]
    steps: int
    loss: float | None


def release_counts(data: SiloData, config: Config, plan: PrivacyPlan) -> NDArray[np.float32]:
    """Interaction mass per item ``(n_items,)``, protected as ``plan.count_event()`` says; charge that first.

    In a private mode each user spreads a vector of L2 norm 1 over the distinct items of the whole history, and Gaussian
    noise is added; in mode ``none`` these are plain counts.
    """
    counts = count_sum(data, private=plan.mode != "none")
    if plan.mode != "none":
        counts = add_gaussian_noise(counts, plan.count_noise_std, hardened=plan.hardened)
    return counts.astype(np.float32)


def release_metrics(model: Recommender, data: SiloData, config: Config, plan: PrivacyPlan) -> NDArray[np.float32]:
    """NDCG@k and HR@k summed over users, ``(2,)``, protected as ``plan.metrics_event()`` says; charge that first.

    Each user is measured on the held-out item alone, among all items that the silo sells and the user has not met; a user
    without one adds nothing. In a private mode Gaussian noise is added: a user's part has at most norm sqrt(2).
    """
    total = metrics_sum(model, data, config)
    if plan.mode != "none":
        total = add_gaussian_noise(total, plan.metrics_noise_std, hardened=plan.hardened)
    return total.astype(np.float32)


def train_round(
    model: Recommender,
    data: SiloData,
    config: Config,
    plan: PrivacyPlan,
    *,
    round_number: int,
    silo_seed: int,
    plant: Plant | None = None,
) -> LocalResult:
    """Train ``model`` in place from the state it is in, and give the difference.

    Parameters
    ----------
    silo_seed:
        Seeds shuffling, windows and dropout in mode ``none``; nothing in private modes depends on it.
    plant:
        An audit's canaries, for private modes; see :data:`client.dp_steps.Plant`.
    """
    if plan.mode != "none":
        silo_seed = secret_seed()
    before = to_vector(model)
    with training_mode(model, silo_seed):
        if plan.mode == "none":
            steps, loss = _train_plain(model, data, config, np.random.default_rng(silo_seed))
        else:
            steps, loss = _train_private(model, data, config, plan, plant), None
    return LocalResult(update=to_vector(model) - before, steps=steps, loss=loss)


def _train_plain(model: Recommender, data: SiloData, config: Config, rng: np.random.Generator) -> tuple[int, float]:
    training = config.training
    optimizer = _optimizer(model, training)
    trainable = [p for p in model.parameters() if p.requires_grad]
    total = predictions = 0.0
    steps = 0
    for users in _plain_batches(data, training, rng):
        batch, targets = data.batch(users, data.random_ends(users, rng))
        optimizer.zero_grad(set_to_none=True)
        count = int((targets >= 0).sum())
        for rows in torch.arange(len(users)).split(training.physical_batch_size):
            part, part_targets = rows_of(batch, targets, rows, model.device)
            with autocast(config, model.device):
                losses = user_losses(model, part, part_targets, data, training.label_smoothing)
            loss = losses.sum() * data.window
            (loss / max(count, 1)).backward()
            total += float(loss.detach())
        predictions += count
        nn.utils.clip_grad_norm_(trainable, training.gradient_clip)
        optimizer.step()
        steps += 1
    return steps, total / max(predictions, 1.0)


def _train_private(model: Recommender, data: SiloData, config: Config, plan: PrivacyPlan, plant: Plant | None) -> int:
    optimizer = _optimizer(model, config.training)
    with clipped_sums(model, data, config, plan, plant) as step:
        for _ in range(plan.steps_per_round):
            _add_noise(step(), plan)
            optimizer.step()
    return plan.steps_per_round


def _add_noise(parameters: Sequence[nn.Parameter], plan: PrivacyPlan) -> None:
    """From the sum of clipped gradients, float64, to the protected mean gradient of the step."""
    std = plan.noise_multiplier * plan.max_grad_norm
    for parameter in parameters:
        summed = parameter.summed_grad.cpu().numpy()  # type: ignore[attr-defined]
        noisy = torch.from_numpy(add_gaussian_noise(summed, std, hardened=plan.hardened))
        parameter.grad = (noisy / plan.expected_batch_size).to(parameter.device, parameter.dtype)


def _optimizer(model: Recommender, training: TrainingConfig) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=training.learning_rate)
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=training.learning_rate)
    return torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)


def _plain_batches(data: SiloData, training: TrainingConfig, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Shuffled batches: ``local_epochs`` passes, or ``local_steps`` batches when that is 0."""
    n, size = len(data.histories), training.batch_size
    steps, limit = 0, training.local_steps if training.local_epochs == 0 else None
    epoch = 0
    while n and (epoch < training.local_epochs if limit is None else steps < limit):
        order = rng.permutation(n)
        for start in range(0, n, size):
            if limit is not None and steps == limit:
                return
            yield order[start : start + size]
            steps += 1
        epoch += 1
