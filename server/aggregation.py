"""From the silos' updates to the next adapter: a weighted mean, then a server optimiser.

Updates play the part of a gradient (Reddi et al. 2021, "Adaptive Federated Optimization", arXiv 2003.00295, Algorithm 2:
the pseudo-gradient ``Δ_t`` is the mean of the silos' differences). An optimiser is a step with a state that is a table of
vectors, so that a checkpoint can hold it; a new one is registered by name and changes nothing else here.

Sums run in float64 and in the order of the roster, so that the result does not depend on who answered first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.config import FederationConfig
from common.errors import FederationError

AVERAGE = "average"

OptimiserState = Mapping[str, NDArray[np.float64]]
Step = Callable[[NDArray[np.float32], NDArray[np.float64], OptimiserState, FederationConfig], "Stepped"]


@dataclass(frozen=True, eq=False)
class Stepped:
    """The adapter after a step, float32 ``(n,)``, and the optimiser's state."""

    vector: NDArray[np.float32]
    state: OptimiserState


def weighted_mean(updates: Mapping[int, NDArray[np.float32]], weights: Mapping[int, float]) -> NDArray[np.float64]:
    """``Σ w_i·u_i / Σ w_i`` over the silos that answered.

    Parameters
    ----------
    updates:
        Silo to float32 ``(n,)``.
    weights:
        Silo to declared weight; at least those of ``updates``.

    Returns
    -------
    float64 ``(n,)``.

    Raises
    ------
    FederationError
        If there is no update, or their lengths differ.
    """
    if not updates:
        raise FederationError("there is no update to average")
    silos = sorted(updates)
    lengths = {len(updates[silo]) for silo in silos}
    if len(lengths) > 1:
        raise FederationError(f"the silos' updates have different lengths: {sorted(lengths)}")
    total = sum(float(weights[silo]) for silo in silos)
    mean = np.zeros(lengths.pop(), dtype=np.float64)
    for silo in silos:
        mean += (float(weights[silo]) / total) * updates[silo].astype(np.float64)
    return mean


def fedavg(vector: NDArray[np.float32], update: NDArray[np.float64], state: OptimiserState, config: FederationConfig) -> Stepped:
    """``x ← x + η·Δ`` (McMahan et al. 2017 for η = 1)."""
    return Stepped((vector + config.server_learning_rate * update).astype(np.float32), {})


def fedadam(vector: NDArray[np.float32], update: NDArray[np.float64], state: OptimiserState, config: FederationConfig) -> Stepped:
    """Algorithm 2 of Reddi et al. with the FedAdam line: ``m ← β₁m + (1-β₁)Δ``, ``v ← β₂v + (1-β₂)Δ²``,
    ``x ← x + η·m/(√v + τ)``, from ``m = 0`` and ``v = τ²``, without Adam's bias correction, as in the paper."""
    beta1, beta2, tau = config.server_beta1, config.server_beta2, config.server_tau
    m = state["m"] if "m" in state else np.zeros_like(update)
    v = state["v"] if "v" in state else np.full_like(update, tau**2)
    m = beta1 * m + (1 - beta1) * update
    v = beta2 * v + (1 - beta2) * update**2
    step = config.server_learning_rate * m / (np.sqrt(v) + tau)
    return Stepped((vector + step).astype(np.float32), {"m": m, "v": v})


def averaged(stepped: Stepped, before: OptimiserState, config: FederationConfig) -> Stepped:
    """Also keep the running average ``a ← α·a + (1-α)·x`` of adapters, from the first one (Polyak & Juditsky 1992).

    Rounds go on from ``x``; :func:`kept` gives what the federation hands out. In private modes this is post-processing.
    """
    alpha = config.server_averaging
    if not alpha:
        return stepped
    vector = stepped.vector.astype(np.float64)
    average = alpha * before[AVERAGE] + (1 - alpha) * vector if AVERAGE in before else vector
    return Stepped(stepped.vector, {**stepped.state, AVERAGE: average})


def kept(vector: NDArray[np.float32], state: OptimiserState) -> NDArray[np.float32]:
    """What a federation hands out after a round, float32 ``(n,)``: the running average if there is one, else the last adapter."""
    return state[AVERAGE].astype(np.float32) if AVERAGE in state else vector


OPTIMISERS: Mapping[str, Step] = {"fedavg": fedavg, "fedadam": fedadam}
