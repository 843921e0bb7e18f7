"""What a coordinator can compute by itself: gradients of made-up or suspected users at the adapter that it handed out.

Model, catalogue and adapter are public, so anybody can compute the gradient that a user with a given history *would* have. To
read an update is to ask which of these gradients it is made of (gradient matching; Zhu et al. 2019, "Deep Leakage from
Gradients", search for inputs, here the candidates are known). Two answers: the cosine of each gradient with the update, and the
coefficients of the ridge regression of the update on all gradients at once, which does not mistake a user for one with similar
taste who was there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.errors import PrivacyError
from simulations.attacks.target import blocks

if TYPE_CHECKING:
    from client.silo_data import SiloData
    from common.model.recommender import Recommender

#: Bytes of gradients that one attack may hold.
MOST_BYTES = 1 << 30

#: Ridge, relative to the gradients' squared length, where no noise was added: the trainer's choice of windows is noise, too.
RIDGE = 0.05

#: Histories before the item in question in a probe.
CONTEXTS = 8


def user_gradients(config: Config, data: SiloData, start: NDArray[np.float32], max_grad_norm: float) -> NDArray[np.float32]:
    """Each user's gradient at adapter ``start``, clipped, float32 ``(n_users, n_parameters)`` in the adapter's order.

    Of the latest window and without dropout; zero where a user has nothing to predict, and at parameters that are not trained.

    Raises
    ------
    PrivacyError
        If they do not fit into :data:`MOST_BYTES`.
    """
    from opacus.grad_sample import GradSampleHooks

    from client import grad_samplers  # noqa: F401  registers the recommender's layers with Opacus
    from client.dp_steps import per_user_gradients
    from common.model.adapter import from_vector
    from common.model.resident import resident

    home = resident(config)
    check_room(len(data.histories), home.manifest.n_parameters)
    from_vector(home.model, start, home.manifest)
    out = np.zeros((len(data.histories), home.manifest.n_parameters), dtype=np.float32)
    parameters = dict(home.model.named_parameters())
    hooks = GradSampleHooks(home.model, loss_reduction="sum", strict=False)
    _listen(home.model)
    try:
        for users in blocks(len(out), config.training.physical_batch_size):
            batch, targets = data.batch(users)
            per_user_gradients(home.model, batch.to(home.model.device), targets.to(home.model.device), data, config)
            for name in home.manifest.names:
                if parameters[name].requires_grad:
                    sample: Any = parameters[name].grad_sample  # type: ignore[attr-defined]
                    out[users, home.manifest.slice(name)] = sample.flatten(1).detach().cpu().numpy()
            for parameter in home.model.parameters():
                parameter.grad_sample, parameter.grad = None, None  # type: ignore[attr-defined]
    finally:
        hooks.cleanup()
        for module in home.model.modules():
            for trace in ("activations", "max_batch_len"):  # left by a step that was broken off
                if hasattr(module, trace):
                    delattr(module, trace)
        home.model.eval()
    norms = np.linalg.norm(out, axis=1, keepdims=True)
    out *= np.minimum(1.0, max_grad_norm / np.maximum(norms, 1e-12))
    return out


def item_gradients(
    config: Config, data: SiloData, items: NDArray[np.int64], start: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """What sets each of ``items`` apart in the gradient of somebody who met it, float32 ``(len(items), n_parameters)``.

    The mean gradient of probe users who met a random item and then the one in question, less its mean over all items. Of ``data``
    only what is public is used: the number of items and what the silo sells.
    """
    check_room(len(items), len(start))
    total = np.zeros((len(items), len(start)), dtype=np.float32)
    for context in rng.choice(items, CONTEXTS):
        histories = tuple(np.array([context, item], dtype=np.int32) for item in items)
        probes = replace(data, histories=histories, text=((),) * len(items), held_out=None)
        total += user_gradients(config, probes, start, np.inf)
    total /= CONTEXTS
    return total - total.mean(axis=0, keepdims=True)


def cosines(update: NDArray[np.float64], gradients: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each gradient with the direction that the update went, ``(n,)``; training steps *against* gradients."""
    lengths = np.linalg.norm(gradients, axis=1).astype(np.float64) * max(float(np.linalg.norm(update)), 1e-300)
    return -(gradients @ update) / np.maximum(lengths, 1e-300)


def regressed(update: NDArray[np.float64], gradients: NDArray[np.float32], ridge: float) -> NDArray[np.float64]:
    """How much of each gradient the update consists of, up to a common factor ``(n,)``.

    ``argmin_a |update + aᵀ G|² + λ |a|²`` over gradients ``G`` of unit length, in the dual form ``(G Gᵀ + λ I) a = -G update``.
    """
    lengths = np.maximum(np.linalg.norm(gradients, axis=1, keepdims=True), 1e-30)
    unit = gradients / lengths
    kernel = (unit @ unit.T).astype(np.float64)
    kernel[np.diag_indices(len(kernel))] += ridge
    return np.linalg.solve(kernel, -(unit @ update))


def ridge_for(noise_multiplier: float, steps: int) -> float:
    """Ridge for an update of ``steps`` noisy steps.

    A user's part in the mean step is between nothing and one clip, so its standard deviation is about half a clip; the noise in
    it has ``noise_multiplier / sqrt(steps)`` clips. The ratio of the variances is the ridge of the posterior mean.
    """
    return RIDGE + (2.0 * noise_multiplier) ** 2 / max(steps, 1)


def check_room(n: int, n_parameters: int) -> None:
    """Refuse what would not fit into memory."""
    if n * n_parameters * 4 > MOST_BYTES:
        raise PrivacyError(
            f"{n} gradients of {n_parameters} parameters take {n * n_parameters * 4 / 2**30:.1f} GiB, the limit is "
            f"{MOST_BYTES / 2**30:.0f} GiB: attack with fewer candidates or train fewer parameters"
        )


def _listen(model: Recommender) -> None:
    """Opacus' hooks hear layers in training mode only; these are put there alone, so that dropout stays off."""
    model.eval()
    for module in model.modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            module.training = True
