"""What the coordinator does with the mean of the silos' updates: a server optimiser, and a running average of adapters.

Updates play the part of a gradient (Reddi et al. 2021, "Adaptive Federated Optimization", arXiv 2003.00295, Algorithm 2:
the pseudo-gradient ``Δ_t`` is the mean of the silos' differences, and a step goes *along* it). An optimiser is a step with a
state that is a table of vectors, so that a checkpoint can hold it; a new one is registered by name and changes nothing else
here. Where the updates are protected, so is whatever a step makes of them: it is post-processing and costs no privacy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.config import FederationConfig
from common.errors import FederationError

AVERAGE = "average"

OptimiserState = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Stepped:
    """The adapter after a step, float32 ``(n,)``, and the optimiser's state."""

    vector: NDArray[np.float32]
    state: OptimiserState


class Step(Protocol):
    """One step of a server optimiser."""

    def __call__(
        self,
        vector: NDArray[np.float32],
        update: NDArray[np.float64],
        state: OptimiserState,
        config: FederationConfig,
        noise_std: float = 0.0,
    ) -> Stepped:
        """
        Parameters
        ----------
        vector:
            The adapter, float32 ``(n,)``.
        update:
            The pseudo-gradient ``Δ``, float64 ``(n,)``.
        state:
            What the step before gave back; ``{}`` before the first.
        noise_std:
            Standard deviation of the noise in each number of ``update``; 0 where there is none, or where it is not known.
        """
        ...


def fedavg(
    vector: NDArray[np.float32],
    update: NDArray[np.float64],
    state: OptimiserState,
    config: FederationConfig,
    noise_std: float = 0.0,
) -> Stepped:
    """``x ← x + η·Δ`` (McMahan et al. 2017 for η = 1)."""
    return Stepped((vector + config.server_learning_rate * update).astype(np.float32), {})


def fedadam(
    vector: NDArray[np.float32],
    update: NDArray[np.float64],
    state: OptimiserState,
    config: FederationConfig,
    noise_std: float = 0.0,
) -> Stepped:
    """Algorithm 2 of Reddi et al. with the FedAdam line: ``m ← β₁m + (1-β₁)Δ``, ``v ← β₂v + (1-β₂)Δ²``,
    ``x ← x + η·m/(√v + τ)``, from ``m = 0`` and ``v = τ²``, without Adam's bias correction, as in the paper."""
    beta1, beta2, tau = config.server_beta1, config.server_beta2, config.server_tau
    m = state["m"] if "m" in state else np.zeros_like(update)
    v = state["v"] if "v" in state else np.full_like(update, tau**2)
    m = beta1 * m + (1 - beta1) * update
    v = beta2 * v + (1 - beta2) * update**2
    step = config.server_learning_rate * m / (np.sqrt(v) + tau)
    return Stepped((vector + step).astype(np.float32), {"m": m, "v": v})


def adam(
    vector: NDArray[np.float32],
    update: NDArray[np.float64],
    state: OptimiserState,
    config: FederationConfig,
    noise_std: float = 0.0,
) -> Stepped:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980, Algorithm 1), bias correction included: ``x ← x + η·m̂/(√v̂ + τ)``."""
    state, m, v, _ = _moments(update, state, config, noise_std)
    return Stepped((vector + config.server_learning_rate * m / (np.sqrt(v) + config.server_tau)).astype(np.float32), state)


def adam_bc(
    vector: NDArray[np.float32],
    update: NDArray[np.float64],
    state: OptimiserState,
    config: FederationConfig,
    noise_std: float = 0.0,
) -> Stepped:
    """Adam without the noise's part in the second moment: ``x ← x + η·m̂/√max(v̂ - Φ, γ')`` (Tang, Shpilevskiy & Lécuyer 2024,
    "DP-AdamBC", AAAI, arXiv 2312.14334, Algorithm 1).

    ``v̂`` estimates the square of the signal plus the variance Φ of the noise; where noise prevails, as in private training it
    does, Adam would divide by the noise, the same for all numbers, and be plain momentum. Φ is public. The floor γ' is
    ``server_tau²``, so that no step is longer than ``η·|m̂|/τ``. The paper has one Φ; here rounds may differ in their noise, and Φ
    is the mean of their variances with the weights that ``v̂`` gives to the rounds, which is the paper's where they are alike.

    ``v̂ - Φ`` is itself an estimate: noise alone leaves a spread of ``Φ·√(2(1-β₂)/(1+β₂))`` in it after many rounds and of
    ``√2·Φ`` in the first one. A floor far below that divides by luck. With ``noise_std`` 0 throughout, this is Adam with a
    floor in place of ``+ τ``.
    """
    state, m, v, noise = _moments(update, state, config, noise_std)
    step = config.server_learning_rate * m / np.sqrt(np.maximum(v - noise, config.server_tau**2))
    return Stepped((vector + step).astype(np.float32), state)


def _moments(
    update: NDArray[np.float64], state: OptimiserState, config: FederationConfig, noise_std: float
) -> tuple[OptimiserState, NDArray[np.float64], NDArray[np.float64], float]:
    """The next state, and without the bias of their start at 0: first moment, second moment, and the noise's part in that."""
    if not 0 <= noise_std < np.inf:
        raise FederationError(f"the noise in an update has standard deviation {noise_std}; it must be a number, and not negative")
    beta1, beta2 = config.server_beta1, config.server_beta2
    before = {name: state.get(name, np.zeros(1)) for name in ("m", "v", "noise", "t")}
    after = {
        "m": beta1 * before["m"] + (1 - beta1) * update,
        "v": beta2 * before["v"] + (1 - beta2) * update**2,
        "noise": beta2 * before["noise"] + (1 - beta2) * noise_std**2,
        "t": before["t"] + 1,
    }
    first, second = 1 - beta1 ** after["t"][0], 1 - beta2 ** after["t"][0]
    return after, after["m"] / first, after["v"] / second, float(after["noise"][0] / second)


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


OPTIMISERS: Mapping[str, Step] = {"fedavg": fedavg, "fedadam": fedadam, "adam": adam, "adam-bc": adam_bc}
