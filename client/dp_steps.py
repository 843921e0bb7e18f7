"""Steps of DP-SGD up to the noise: a Poisson sample of users, a gradient for each, clipped in L2, and summed.

Each user is in a step with the plan's probability, and what a user adds to its sum has at most norm ``max_grad_norm`` over all
parameters together (Abadi et al. 2016). Whoever asks for a sum has to add the noise; there is none in this file.

In private modes every draw comes from secret randomness, never from the run's seed. For noise and sampling that is plain: a
coordinator who knows the seed must not be able to subtract the noise. But windows and dropout are drawn for users in their order
in the sample, so with a known seed one user more would change what everybody after them contributes, and the sum would move by
more than the clip. Drawn in secret they are independent of who else is there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.silo_data import SiloData, rows_of, user_losses
from common.config import Config
from common.model.recommender import Batch, Recommender, autocast
from common.privacy.noise import poisson_mask
from common.privacy.plan import PrivacyPlan

#: For audits of the training itself (``simulations.attacks``): told whose gradients now lie in ``grad_sample`` (B, *shape), not
#: yet clipped, and may put others in their place. No app passes one.
Plant = Callable[[Recommender, NDArray[np.int64]], None]


def secret_seed() -> int:
    """63 bits from the operating system, for PyTorch's generators."""
    return int.from_bytes(os.urandom(8), "little") >> 1


@contextmanager
def training_mode(model: Recommender, seed: int) -> Iterator[None]:
    """The model learns, its dropout follows ``seed``, and afterwards neither it nor PyTorch's generators show a trace of that."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model.train()
        try:
            yield
        finally:
            model.eval()
            for parameter in model.parameters():
                parameter.grad = None


@contextmanager
def clipped_sums(
    model: Recommender, data: SiloData, config: Config, plan: PrivacyPlan, plant: Plant | None = None
) -> Iterator[Callable[[], list[nn.Parameter]]]:
    """Gives a function that makes the sum of one step, for a model in :func:`training_mode`.

    It draws a sample and leaves the sum of its clipped gradients in ``parameter.summed_grad``, float64, of each parameter that
    is trained; it gives these parameters. ``parameter.grad`` is None then. The sum stays until the next step or the end.
    """
    from opacus.grad_sample import GradSampleHooks

    from client import grad_samplers  # noqa: F401  registers the recommender's layers with Opacus
    from client.clipping import DoublePrecisionSums

    rng = np.random.default_rng()
    hooks = GradSampleHooks(model, loss_reduction="sum", strict=False)
    sums = DoublePrecisionSums(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad]),  # never steps
        noise_multiplier=0.0,  # adds none
        max_grad_norm=plan.max_grad_norm,
        expected_batch_size=None,
        loss_reduction="sum",
    )

    def step() -> list[nn.Parameter]:
        sums.zero_grad(set_to_none=True)
        users = poisson_sample(len(data.histories), plan.sampling_probability)
        batch, targets = data.batch(users, data.random_ends(users, rng))
        size = config.training.physical_batch_size
        for rows in torch.arange(len(users)).split(size) if len(users) else (torch.arange(0),):
            per_user_gradients(model, *rows_of(batch, targets, rows, model.device), data, config)
            if plant is not None:
                plant(model, users[rows.numpy()])
            sums.clip_and_accumulate()
            _drop_per_user_gradients(model)
        return list(sums.params)

    try:
        yield step
    finally:
        hooks.cleanup()
        _drop_traces(model)


def poisson_sample(n_users: int, probability: float) -> NDArray[np.int64]:
    """Each of ``n_users`` independently with ``probability``, from a cryptographic stream."""
    return np.flatnonzero(poisson_mask(n_users, probability)).astype(np.int64)


def per_user_gradients(model: Recommender, batch: Batch, targets: Tensor, data: SiloData, config: Config) -> None:
    """Leave each user's gradient in ``parameter.grad_sample`` (B, *shape), float32, of a model under Opacus' hooks.

    A gradient that is not finite becomes zero: it is still a function of its user alone, and clipping stays a bound.
    """
    if len(targets):
        with autocast(config, model.device):
            losses = user_losses(model, batch, targets, data, config.training.label_smoothing)
        with warnings.catch_warnings():
            # Layers that read item vectors have inputs without gradients: worth a warning to PyTorch, fine for Opacus.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            losses.sum().backward()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        gradient = getattr(parameter, "grad_sample", None)
        if gradient is None:  # nobody was sampled, or this parameter was not reached
            gradient = parameter.new_zeros((len(targets), *parameter.shape))
        gradient = gradient.float()
        finite = torch.isfinite(gradient.flatten(1)).all(1) if len(targets) else torch.ones(0, dtype=torch.bool)
        whole = bool(finite.all())
        parameter.grad_sample = gradient if whole else torch.nan_to_num(gradient, 0.0, 0.0, 0.0)  # type: ignore[attr-defined]


def _drop_per_user_gradients(model: Recommender) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter.grad = None


def _drop_traces(model: Recommender) -> None:
    """Take away what Opacus leaves on parameters and layers, above all activations of a step that was broken off."""
    for owner, names in [
        *((p, ("summed_grad",)) for p in model.parameters()),
        *((m, ("activations", "max_batch_len")) for m in model.modules()),
    ]:
        for name in names:
            if hasattr(owner, name):
                delattr(owner, name)
