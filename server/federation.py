"""The federation, as the coordinator sees it: a count, rounds of train, average, step, checkpoint, and figures of quality.

It runs over any Flower ``Grid`` and knows the model only as one flat vector. What the silos send is protected before it
arrives here, so nothing in this file touches private data.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.config import Config
from common.privacy.plan import METRICS as FIGURES
from common.privacy.transcript import FILE as TRANSCRIPT
from common.privacy.transcript import Transcript
from common.protocol import COUNT, METRICS, PROTOCOL_VERSION, TRAIN, AdapterRequest, Request, config_hash
from common.secagg.coding import mechanism_of
from common.secagg.roster import KeyRoster
from server.aggregation import Aggregation, Sum, aggregation_of
from server.checkpoint import Checkpoint, load, save
from server.exchange import Exchange, Roster, Sign
from server.optimisers import OPTIMISERS, averaged, kept

log = logging.getLogger("silorec.server")


@dataclass(frozen=True, eq=False)
class Start:
    """What a federation begins with.

    Parameters
    ----------
    vector:
        The adapter before any training, float32 ``(n_parameters,)``.
    manifest_hash:
        How it is laid out.
    biased:
        ``biased(vector, counts, noise_std)`` puts item biases into a vector: ``counts`` is the silos' summed protected count,
        float64 ``(n_items,)``, ``noise_std`` the standard deviation of the noise in it. None for a model without biases, which
        needs no count.
    count_noise_std:
        Standard deviation of the noise in each silo's count, the same for all: it follows from the budget.
    n_items:
        Length of a count.
    metrics_noise_std:
        Standard deviation of the noise in each figure of quality of each silo.
    frozen:
        Numbers of the adapter that training leaves as they are: noise that is added to all alike must not move them.
    """

    vector: NDArray[np.float32]
    manifest_hash: str
    biased: Callable[[NDArray[np.float32], NDArray[np.float64], float], NDArray[np.float32]] | None = None
    count_noise_std: float = 0.0
    n_items: int = 0
    metrics_noise_std: float = 0.0
    frozen: slice | None = None


@dataclass(frozen=True, eq=False)
class RoundReport:
    """One finished round (0 is the count): the adapter to hand out, who answered, and how long it took."""

    round: int
    vector: NDArray[np.float32]
    facts: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True, eq=False)
class FederationResult:
    """The adapter to hand out, the last finished round, one table per round, and whether it was stopped before its time.

    ``metrics`` holds what the silos told of the adapter's quality, ``{}`` where they withheld it, see :func:`quality`.
    """

    vector: NDArray[np.float32]
    round: int
    history: tuple[Mapping[str, Any], ...]
    stopped: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


def run_federation(
    grid: Grid,
    config: Config,
    start: Start,
    roster: Roster,
    *,
    folder: Path | None = None,
    sign: Sign | None = None,
    key_roster: KeyRoster | None = None,
    on_round: Callable[[RoundReport], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> FederationResult:
    """Run the rounds that are still to do.

    Parameters
    ----------
    grid:
        Carries messages to the silos.
    config, start, roster:
        Settings, the first adapter, and the silos with their declared users.
    folder:
        Of checkpoint and transcript; if there is a checkpoint, the federation goes on from it. None keeps nothing.
    sign:
        Signs requests with the key that ``config.federation.coordinator`` names.
    key_roster:
        The silos' long-term keys; needed for secure aggregation.
    on_round:
        Called after each round that is on the disk.
    stop:
        Asked before each round; True ends the run, which can be resumed.

    Raises
    ------
    FederationError
        If a round misses its quorum; the checkpoint of the round before it stays.
    """
    this = config_hash(config)
    transcript = None if folder is None else Transcript(folder / TRANSCRIPT, _facts_of_run(config, this, start))
    silos = Exchange(grid, roster, config, this, sign=sign, transcript=transcript)
    sums = aggregation_of(config, silos, key_roster, transcript)
    optimise = OPTIMISERS[config.federation.server_optimizer]
    state = Checkpoint(this, start.manifest_hash, start.vector)
    if folder is not None:
        state = load(folder, config_hash=this, manifest_hash=start.manifest_hash) or state

    while state.round < config.federation.rounds:
        if stop is not None and stop():
            return FederationResult(kept(state.vector, state.optimiser), state.round, state.history, stopped=True)
        began, number = time.monotonic(), state.round + 1
        if number == 0:
            state = _count(sums, config, state, start)
        else:
            request = AdapterRequest(config_hash=this, round=number, manifest_hash=start.manifest_hash, vector=state.vector)
            summed = sums.ask(TRAIN, request, what=f"round {number}", length=len(state.vector))
            update, noise_std = pseudo_gradient(summed, config)
            if start.frozen is not None:
                update[start.frozen] = 0.0
            stepped = optimise(state.vector, update, state.optimiser, config.federation, noise_std)
            stepped = averaged(stepped, state.optimiser, config.federation)
            facts = _facts(number, summed) | {"update_norm": float(np.linalg.norm(update))}
            state = replace(state, round=number, vector=stepped.vector, optimiser=stepped.state, history=(*state.history, facts))
        if folder is not None:
            save(folder, state)
        if on_round is not None:
            on_round(RoundReport(number, kept(state.vector, state.optimiser), state.history[-1], time.monotonic() - began))
    final = kept(state.vector, state.optimiser)
    if config.privacy.metrics_share and "metrics" not in state.history[-1]:
        last = {**state.history[-1], "metrics": quality(sums, config, start, final)}
        state = replace(state, history=(*state.history[:-1], last))
        if folder is not None:
            save(folder, state)
    return FederationResult(final, state.round, state.history, metrics=state.history[-1].get("metrics", {}))


def pseudo_gradient(summed: Sum, config: Config) -> tuple[NDArray[np.float64], float]:
    """Where the silos' answers of one round point to, float64 ``(n,)``, and the standard deviation of known noise in each number.

    That is the mean of their updates. In mode ``distributed`` the answers are sums of users' gradients, and it is the opposite of
    their mean gradient, by the number of users that is expected in a step of these silos.
    """
    if config.privacy.mode != "distributed":
        return summed.mean, 0.0
    users = config.training.sampling_probability * sum(config.federation.declared_users[silo] for silo in summed.silos)
    noise = mechanism_of(TRAIN, config, len(summed.total)).noise_std(len(summed.silos))
    return -summed.total / users, noise / users


def quality(sums: Aggregation, config: Config, start: Start, vector: NDArray[np.float32]) -> dict[str, float]:
    """What the silos tell of an adapter's quality: for each figure the noised sum over users, over the declared users of those
    who answered, and ``<figure>_std``, the standard deviation of the noise in it.
    """
    rounds = config.federation.rounds
    request = AdapterRequest(config_hash=config_hash(config), round=rounds, manifest_hash=start.manifest_hash, vector=vector)
    summed = sums.ask(METRICS, request, what="metrics", length=len(FIGURES))
    users = sum(config.federation.declared_users[silo] for silo in summed.silos)
    std = _noise_std(METRICS, config, summed, start.metrics_noise_std) / users
    return {name: float(summed.total[i]) / users for i, name in enumerate(FIGURES)} | {f"{name}_std": std for name in FIGURES}


def _count(sums: Aggregation, config: Config, state: Checkpoint, start: Start) -> Checkpoint:
    """Round 0: item biases from the silos' protected counts, where the model has biases."""
    if start.biased is None:
        return replace(state, round=0, history=(*state.history, _facts(0, None)))
    summed = sums.ask(COUNT, Request(config_hash=state.config_hash), what="count", length=start.n_items)
    vector = start.biased(state.vector, summed.total, _noise_std(COUNT, config, summed, start.count_noise_std))
    return replace(state, round=0, vector=vector, history=(*state.history, _facts(0, summed)))


def _noise_std(action: str, config: Config, summed: Sum, of_one_silo: float) -> float:
    """Of the noise in each number of a sum: each silo's own, or in mode ``distributed`` all shares together."""
    if config.privacy.mode == "distributed":
        return mechanism_of(action, config, len(summed.total)).noise_std(len(summed.silos))
    return of_one_silo * len(summed.silos) ** 0.5


def _facts(number: int, summed: Sum | None) -> dict[str, Any]:
    return {
        "round": number,
        "answered": list(summed.silos) if summed else [],
        "refused": {str(silo): code.name for silo, code in summed.refusals.items()} if summed else {},
    }


def _facts_of_run(config: Config, config_hash: str, start: Start) -> dict[str, Any]:
    return {
        "config": config_hash,
        "protocol": PROTOCOL_VERSION,
        "mode": config.privacy.mode,
        "coordinator": config.federation.coordinator,
        "declared_users": list(config.federation.declared_users),
        "manifest": start.manifest_hash,
    }
