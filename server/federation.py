"""The federation, as the coordinator sees it: a count, rounds of train, average, step, checkpoint, and figures of quality.

It runs over any Flower ``Grid`` and knows the model only as one flat vector. What the silos send is protected before it
arrives here, so nothing in this file touches private data. A round that misses its quorum is tried again, where that costs no
silo anything; whom a round is asked of is decided in ``server.attendance``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.config import Config
from common.errors import RoundFailed, SilorecError
from common.privacy.plan import METRICS as FIGURES
from common.privacy.transcript import FILE as TRANSCRIPT
from common.privacy.transcript import Transcript
from common.protocol import COUNT, METRICS, PROTOCOL_VERSION, TRAIN, AdapterRequest, Request, config_hash
from common.secagg.coding import mechanism_of
from common.secagg.roster import KeyRoster
from server.aggregation import Aggregation, Sum, aggregation_of
from server.attendance import Tell, telling
from server.checkpoint import Checkpoint, load, save
from server.exchange import Exchange, Roster, Sign
from server.optimisers import OPTIMISERS, averaged, kept

log = logging.getLogger("silorec.server")

Asked = TypeVar("Asked")


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
    key_roster: KeyRoster | Callable[[], KeyRoster] | None = None,
    on_round: Callable[[RoundReport], None] | None = None,
    stop: Callable[[], bool] | None = None,
    tell: Tell | None = None,
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
        The silos' long-term keys; needed for secure aggregation. A function is called before each round: a silo that has become
        absent is not asked any more.
    on_round:
        Called after each round that is on the disk.
    stop:
        Asked before each round; True ends the run, which can be resumed.
    tell:
        Hears what happens, as JSON-able mappings whose ``event`` is ``run``, ``stage_begins``, ``stage`` (it is over),
        ``left_out``, ``invited``, ``round``, ``finished``, ``stopped`` or ``failed``. What it raises is logged and changes
        nothing.

    Raises
    ------
    FederationError
        If a round misses its quorum as often as it is tried, or the disk is full; the checkpoint of the round before it stays.
    """
    told = telling(tell)
    try:
        run = _Run(grid, config, start, roster, folder, sign, key_roster, told)
        state = run.state
        while state.round < config.federation.rounds:
            if stop is not None and stop():
                told({"event": "stopped", "round": state.round})
                return FederationResult(kept(state.vector, state.optimiser), state.round, state.history, stopped=True)
            began, number = time.monotonic(), state.round + 1
            if number == 0:
                state = run.tried(number, partial(_count, run.sums, config, state, start))
            else:
                summed = run.tried(number, partial(_trained, run.sums, state, start))
                update, noise_std = pseudo_gradient(summed, config)
                if start.frozen is not None:
                    update[start.frozen] = 0.0
                stepped = OPTIMISERS[config.federation.server_optimizer](
                    state.vector, update, state.optimiser, config.federation, noise_std
                )
                stepped = averaged(stepped, state.optimiser, config.federation)
                facts = _facts(number, summed) | {"update_norm": float(np.linalg.norm(update))}
                state = replace(
                    state, round=number, vector=stepped.vector, optimiser=stepped.state, history=(*state.history, facts)
                )
            state = run.saved(state)
            seconds = time.monotonic() - began
            run.tell_round(state, seconds)
            if on_round is not None:
                on_round(RoundReport(number, kept(state.vector, state.optimiser), state.history[-1], seconds))
        final = kept(state.vector, state.optimiser)
        if config.privacy.metrics_share and "metrics" not in state.history[-1]:
            figures = run.tried(state.round + 1, partial(quality, run.sums, config, start, final))
            state = run.saved(replace(state, history=(*state.history[:-1], {**state.history[-1], "metrics": figures})))
    except Exception as error:
        told({"event": "failed", "reason": str(error) if isinstance(error, SilorecError) else type(error).__name__})
        raise
    told({"event": "finished", "round": state.round})
    return FederationResult(final, state.round, state.history, metrics=state.history[-1].get("metrics", {}))


class _Run:
    """What the rounds of one run have in common: the way to the silos, the folder, and who watches."""

    def __init__(
        self,
        grid: Grid,
        config: Config,
        start: Start,
        roster: Roster,
        folder: Path | None,
        sign: Sign | None,
        key_roster: KeyRoster | Callable[[], KeyRoster] | None,
        tell: Tell,
    ) -> None:
        this = config_hash(config)
        self.config, self.folder, self.tell = config, folder, tell
        self.state = Checkpoint(this, start.manifest_hash, start.vector, seed=config.run.seed)
        self.transcript = None
        if folder is not None:
            self.state = load(folder, config_hash=this, manifest_hash=start.manifest_hash) or self.state
            facts = facts_of_run(config, start.manifest_hash)
            self.transcript = Transcript(folder / TRANSCRIPT, facts, mark=self.state.transcript)
        self.silos = Exchange(grid, roster, config, this, sign=sign, transcript=self.transcript, tell=tell)
        self._keys = key_roster if callable(key_roster) else lambda: key_roster
        self.sums = aggregation_of(config, self.silos, self._keys(), self.transcript)
        rounds = config.federation.rounds
        run = {"name": config.name, "config": this, "mode": config.privacy.mode, "silos": len(roster), "rounds": rounds}
        tell({"event": "run", **run, "from_round": self.state.round + 1})

    def tried(self, number: int, once: Callable[[], Asked]) -> Asked:
        """What ``once`` gives; where it misses the quorum it is tried again, with all silos that have not refused for good."""
        for attempt in range(1, self.config.federation.round_attempts + 1):
            try:
                if (keys := self._keys()) is not None:
                    self.sums.admit(keys)
                self.silos.begin(number, absent=keys.absent if keys else (), again=attempt > 1)
                return once()
            except RoundFailed as error:
                if attempt == self.config.federation.round_attempts or not error.again:
                    raise
                log.warning("%s; it is tried again in %g s", error, self.config.federation.round_pause)
            time.sleep(self.config.federation.round_pause)
        raise AssertionError("unreachable")

    def saved(self, state: Checkpoint) -> Checkpoint:
        """``state``, on the disk."""
        if self.folder is None or self.transcript is None:
            return state
        state = replace(state, seed=self.config.run.seed, transcript=self.transcript.mark)
        save(self.folder, state)
        return state

    def tell_round(self, state: Checkpoint, seconds: float) -> None:
        """Tell of a round that is on the disk; who was in it has not failed."""
        facts, answered = state.history[-1], state.history[-1]["answered"]
        if answered:
            self.silos.finish(state.round, answered)
        left: Mapping[int, float | None] = dict.fromkeys(answered)
        if answered and self.config.federation.ask_budgets:
            left = self.silos.budgets(answered, what=f"round {state.round}")
        self.tell(
            {
                "event": "round",
                "round": state.round,
                "answered": answered,
                "refused": facts["refused"],
                "seconds": seconds,
                "update_norm": facts.get("update_norm"),
                "budget_left": {str(silo): epsilon for silo, epsilon in left.items()},
            }
        )


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


def _trained(sums: Aggregation, state: Checkpoint, start: Start) -> Sum:
    """What the silos make of the adapter in the next round."""
    number = state.round + 1
    request = AdapterRequest(config_hash=state.config_hash, round=number, manifest_hash=start.manifest_hash, vector=state.vector)
    return sums.ask(TRAIN, request, what=f"round {number}", length=len(state.vector))


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


def facts_of_run(config: Config, manifest_hash: str) -> dict[str, Any]:
    """What a transcript says of its run in its first line."""
    return {
        "config": config_hash(config),
        "protocol": PROTOCOL_VERSION,
        "mode": config.privacy.mode,
        "coordinator": config.federation.coordinator,
        "declared_users": list(config.federation.declared_users),
        "manifest": manifest_hash,
    }
