"""What goes under the noise: sums over a silo's users, each user's part bounded in L2. Nothing here may leave a silo as it is.

Sums are float64, so that the bound holds for what was computed, too, up to the last bits of double precision (see
``client.clipping``). Whoever releases one adds noise by that bound: all of it (``client.trainer``), or a share of what goes under
a sum over silos.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from client.dp_steps import Plant, clipped_sums, secret_seed, training_mode
from client.silo_data import SiloData
from common.config import Config
from common.errors import DataError
from common.metrics import evaluate
from common.model.adapter import manifest_of
from common.model.recommender import Recommender, autocast
from common.privacy.plan import COUNT_MAX_NORM, METRICS, METRICS_MAX_NORM, PrivacyPlan


def count_sum(data: SiloData, private: bool) -> NDArray[np.float64]:
    """Interaction mass per item ``(n_items,)``.

    Where ``private``, each user spreads a vector of L2 norm :data:`COUNT_MAX_NORM` over the distinct items of the whole history;
    else these are plain counts, in which nobody is bounded.
    """
    counts = np.zeros(data.n_items, dtype=np.float64)
    for history in data.histories:
        if not private:
            np.add.at(counts, history, 1.0)
            continue
        items = np.unique(history)
        if len(items):
            counts[items] += COUNT_MAX_NORM / np.sqrt(len(items))
    return counts


def metrics_sum(model: Recommender, data: SiloData, config: Config) -> NDArray[np.float64]:
    """NDCG@k and HR@k summed over users, ``(2,)``; a user's part has at most L2 norm :data:`METRICS_MAX_NORM`.

    Each user is measured on the held-out item alone, among all items that the silo sells and the user has not met; a user
    without one adds nothing.

    Raises
    ------
    DataError
        If the silo holds nothing out.
    """
    per_user = _quality(model, data, config)
    norms = np.linalg.norm(per_user, axis=1, keepdims=True)
    total: NDArray[np.float64] = (per_user * np.minimum(1.0, METRICS_MAX_NORM / np.maximum(norms, 1e-12))).sum(axis=0)
    return total


def gradient_sum(
    model: Recommender, data: SiloData, config: Config, plan: PrivacyPlan, plant: Plant | None = None
) -> NDArray[np.float64]:
    """The sum of clipped gradients of one step of DP-SGD, ``(n_parameters,)`` in the adapter's order, not divided by anything.

    One Poisson sample of the silo's users with ``plan.sampling_probability``; a user's part has at most L2 norm
    ``plan.max_grad_norm``. Zero at parameters of the adapter that are not trained, and everywhere if nobody was sampled. The
    model is the same afterwards. Samples, windows and dropout are drawn in secret, so two calls differ.

    Parameters
    ----------
    plant:
        An audit's canaries; see :data:`client.dp_steps.Plant`.
    """
    with training_mode(model, secret_seed()), clipped_sums(model, data, config, plan, plant) as step:
        step()
        parameters = dict(model.named_parameters())
        parts = [_summed(parameters[name]) for name in manifest_of(model).names]
    return np.concatenate(parts)


def _summed(parameter: torch.nn.Parameter) -> NDArray[np.float64]:
    """What a step left in a parameter, flat."""
    if not parameter.requires_grad:
        return np.zeros(parameter.numel())
    summed: torch.Tensor = parameter.summed_grad  # type: ignore[attr-defined]
    return np.asarray(summed.double().cpu().numpy()).reshape(-1)


def _quality(model: Recommender, data: SiloData, config: Config) -> NDArray[np.float64]:
    """``(n_users, 2)``: NDCG@k and HR@k of each user with a held-out item."""
    if data.held_out is None:
        raise DataError("this silo holds no interactions out, so quality cannot be measured")
    users = np.flatnonzero(data.held_out >= 0)
    if not len(users):
        return np.zeros((0, len(METRICS)))
    k = config.evaluation.k
    model.eval()

    def scores(positions: NDArray[np.int64]) -> NDArray[np.floating]:
        batch = data.inputs(users[positions]).to(model.device)
        with torch.inference_mode(), autocast(config, model.device):
            return np.asarray(model(batch, last_only=True).float().cpu().numpy())

    sold = None if data.item_mask is None else data.item_mask[None]
    ranked = evaluate(
        scores,
        data.held_out[users],
        [data.histories[int(u)] for u in users],
        depth=k,
        assortments=sold,
        assortment_of=None if sold is None else np.zeros(len(users), dtype=np.int64),
        block=config.training.physical_batch_size,
    )
    return np.stack([ranked.ndcg(k), ranked.hit_rate(k)], axis=1)
