"""What deployment costs: a round between hosts over TLS beside the same round in one process, and rounds under faults.

Hosts are network namespaces, each with an address and a cable of its own, so bytes are counted where they pass; where namespaces
are not permitted everybody is on loopback, and bytes are reckoned from the messages. Everything is on one machine: silos that
would compute at the same time share its processor here, in one process they take turns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from common.errors import ConfigError
from common.pauses import FACTOR
from simulations.bench import Figure, register
from simulations.watch import Watch

TINY, REAL = "tiny", "minilm"
PARTS: Final = ("overhead", "endurance")
SILOS: Final = ("north", "south", "west")
MORE_SILOS: Final = (*SILOS, "east", "island")
UNPROTECTED: Final[Mapping[str, Any]] = {"modes": ["none"], "delta": 1e-4}

TINY_ROUNDS, LOGGED_ROUNDS, REAL_ROUNDS = 6, 3, 4
OTHER_PAUSES: Final = 2.0
"""Times their length, to measure what pauses cost. Longer ones: shorter ones have the SuperLink answer more questions, and where
it shares a processor with everybody rounds then take longer.
"""
QUIET_SECONDS: Final = 10.0

CALM_ROUNDS, ROUNDS, SHARE, SEED = 4, 20, 0.2, 30
LONGEST: Final = 120.0
"""Seconds for a round under faults, on average; a run that takes longer has failed."""

ENDURING: Final[Mapping[str, Any]] = {
    "quorum": 0.4,
    "backoff_rounds": 1,
    "patience": 2.0,
    "round_pause": 1.0,
    "round_attempts": 10,
    "stage_deadline": 30.0,
    "deadline": 60.0,
}


@register("deployment")
def deployment(out: Path, watch: Watch, *, rounds: int = ROUNDS, only: str = "") -> list[Figure]:
    """A round over TLS beside one in-process, where its time and bytes go; then 20 rounds with faults, and what a fault costs."""
    from threadpoolctl import threadpool_limits

    if only and only not in PARTS:
        raise ConfigError(f"deployment has no part {only!r}; it has: {', '.join(PARTS)}")
    if rounds < 1:
        raise ConfigError("rounds with faults: 1 or more")
    figures: list[Figure] = []
    with threadpool_limits(1):
        if only in ("", PARTS[0]):
            figures += _overhead(watch)
        if only in ("", PARTS[1]):
            figures += _endurance(rounds, watch)
    return figures


def _overhead(watch: Watch) -> list[Figure]:
    from simulations.bench import deployed_parts as parts
    from simulations.bench.deployed_rounds import deployed, in_process, quiet_traffic, requests_a_round
    from simulations.trial.hosts import why_no_namespaces

    watch.stage("overhead", 8)
    tiny = {"federation": {"rounds": TINY_ROUNDS}}
    with _federation() as trial:
        config = trial.configure(**tiny)
        alone = in_process(trial, config, trial.folder / "twin")
        watch.step(1, f"{TINY}: in-process")
        spread = deployed(trial, config)
        watch.step(2, f"{TINY}: deployed")
    with _federation() as trial:
        slow = deployed(trial, trial.configure(**tiny), environment={FACTOR: str(OTHER_PAUSES)})
        watch.step(3, f"{TINY}: other pauses")
    with _federation() as trial:
        logged = {"SILOREC_LOG_LEVEL": "DEBUG", "SILOREC_LOG_FORMAT": "json"}
        deployed(trial, trial.configure(federation={"rounds": LOGGED_ROUNDS}), environment=logged)
        requests = requests_a_round(trial)
        secure, plain = (parts.request_cost(trial.coordinator, secure=tls) for tls in (True, False))
        watch.step(4, "requests")
    with _federation("ml-100k") as trial:
        quiet = None if why_no_namespaces() else quiet_traffic(trial, QUIET_SECONDS, time.sleep)
        watch.step(5, "a quiet stretch")
        config = trial.configure(**_real())
        real_alone = in_process(trial, config, trial.folder / "twin")
        watch.step(6, f"{REAL}: in-process")
        real = deployed(trial, config)
        watch.step(7, f"{REAL}: deployed")
        whole = _parameters(trial, config)
        size, place = len(real.timed.vector), trial.folder / "stores"
        vectors: dict[str, Any] = {TINY: alone.vector, REAL: real.timed.vector, "": None}
        costs = {name: parts.message_cost(vector, place / (name or "small")) for name, vector in vectors.items()}
        watch.step(8, "messages")

    added = slow.timed.seconds - spread.timed.seconds
    polling = max(0.0, added / (OTHER_PAUSES - 1.0))
    figures: list[Figure] = []
    for title, one, two in ((TINY, alone, spread), (REAL, real_alone, real)):
        figures += _compared(title, one, two)
        stages = len(two.timed.stages)
        messages = 2 * len(SILOS)
        copies = messages * (costs[title].both + (stages - 1) * costs[""].both)
        tls, http = requests * (secure.kept - plain.kept), requests * plain.kept
        computing = sum(two.computing.values())
        rest = two.timed.seconds - computing - two.timed.beside_stages - polling - tls - http - copies
        taken = ", ".join(f"{kind} {seconds:.2f}" for kind, seconds in two.processor.items())
        figures += [
            Figure(f"{title}: of it, the silos computing", computing, "s", "the slowest silo of each stage, as the silos say"),
            Figure(f"{title}: of it, the coordinator between stages", two.timed.beside_stages, "s"),
            Figure(f"{title}: of it, polling", polling, "s", _polling_note(added, title)),
            Figure(f"{title}: of it, TLS", tls, "s", f"{requests:.0f} requests of all silos and of the coordinator, one by one"),
            Figure(
                f"{title}: of it, copies", copies, "s", f"{messages * stages} messages through two of Flower's stores, one by one"
            ),
            Figure(f"{title}: of it, requests without TLS", http, "s", "as many, empty ones, one by one"),
            Figure(f"{title}: of it, else", rest, "s", "the remainder: Flower's processes, node signatures, waiting for a core"),
            Figure(f"{title}: seconds of a core in a round", sum(two.processor.values()), "s", taken),
        ]
    note = "median, loopback, kept connection"
    figures += [
        Figure("a request with TLS", 1e3 * secure.kept, "ms", note),
        Figure("a request without TLS", 1e3 * plain.kept, "ms", note),
        Figure("a request with TLS, new connection", 1e3 * secure.new, "ms", "Flower keeps connections"),
        Figure("a request without TLS, new connection", 1e3 * plain.new, "ms"),
        Figure(
            "requests to the SuperLink in a round", requests, "", f"{TINY}, {len(SILOS)} silos and the coordinator, from its log"
        ),
        Figure(f"{REAL}: numbers in the adapter", size),
    ]
    return [*figures, *_traffic(real, quiet, costs[REAL].size, whole)]


def _compared(title: str, alone: Any, spread: Any) -> Iterator[Figure]:
    """Seconds a round and a stage, in-process and deployed."""
    yield Figure(f"{title}: the same bits", float(np.array_equal(alone.vector, spread.timed.vector)), "", "the last adapter")
    yield Figure(f"{title}: a round in-process", alone.seconds, "s", "median; the silos take turns")
    yield Figure(f"{title}: a round deployed", spread.timed.seconds, "s", "median; the silos at the same time, TLS")
    yield Figure(f"{title}: deployed over in-process", spread.timed.seconds / alone.seconds, "times")
    for stage, seconds in spread.timed.stages.items():
        computing = spread.computing.get(stage, 0.0)
        note = f"in-process {alone.stages.get(stage, 0.0):.3f} s; the slowest silo computes for {computing:.3f} s of it"
        yield Figure(f"{title}: stage {stage}, deployed", seconds, "s", note)


def _polling_note(added: float, title: str) -> str:
    note = f"pauses {OTHER_PAUSES:g} times as long add {added:.2f} s to a round"
    return note if title == TINY else f"as {TINY}, which has as many messages: {note}"


def _traffic(real: Any, quiet: tuple[float, float] | None, message: int, whole: int) -> Iterator[Figure]:
    """Bytes of a silo in a round, against the whole model both ways."""
    if real.up is None:
        up = down = float(message)
        note = "reckoned: one message with the adapter; without namespaces nothing can be counted on the wire"
    else:
        up, down, note = real.up, real.down, "counted at the silo's interface: TCP, TLS, polling and all stages in it"
    yield Figure("a silo sends in a round", up, "B", note)
    yield Figure("a silo gets in a round", down, "B", note)
    if quiet is not None:
        note = f"over {QUIET_SECONDS:g} s just after its start; it asks less often with time"
        yield Figure("a silo without work sends in a second", quiet[0], "B", note)
        yield Figure("a silo without work gets in a second", quiet[1], "B", note)
    yield Figure("whole model, both ways", 2.0 * whole, "B", "all parameters of backbone and heads, float32")
    yield Figure("whole model over what a silo sends and gets", 2.0 * whole / (up + down), "times")


def _real() -> dict[str, Any]:
    """The model of scenario ml-100k; two steps of a batch, in mode none, so that bits can be compared."""
    from common.config import to_dict
    from simulations.scenario import load_scenario

    scenario = to_dict(load_scenario("ml-100k"))
    return {
        "model": scenario["model"],
        "training": scenario["training"] | {"local_steps": 2, "batch_size": 32},
        "federation": {"rounds": REAL_ROUNDS},
    }


def _parameters(trial: Any, config: Path) -> int:
    """Bytes of all of the model's parameters, float32."""
    from common.consortium.roster import read_signed
    from common.model.resident import resident
    from server.deployment import configured

    place = trial.coordinator
    model = resident(configured(config, read_signed(place.roster, place.authority))).model
    return 4 * sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _federation(source: str = "synthetic", names: tuple[str, ...] = SILOS) -> Iterator[Any]:
    from simulations.trial.consortium import federation
    from simulations.trial.hosts import hosts

    with (
        TemporaryDirectory(prefix="silorec-") as folder,
        hosts(["coordinator", *names]) as machines,
        federation(Path(folder), machines, names, policy=UNPROTECTED, source=source) as trial,
    ):
        yield trial


@dataclass(frozen=True)
class Outlived:
    """A run under faults, and whether the audit accepts its ledgers."""

    endured: Any
    accepted: bool


def outlive(trial: Any, rounds: int, *, calm: int = CALM_ROUNDS, seed: int = SEED, watch: Watch | None = None) -> Outlived:
    """``calm`` rounds without faults and then ``rounds`` in which every silo suffers one with chance :data:`SHARE`."""
    from simulations.trial.audited import audited
    from simulations.trial.faults import Ordeal, drawn, possible

    config = trial.configure(federation={**ENDURING, "rounds": calm + rounds}, aggregation={"dropout": 0.4})
    planned = drawn(range(calm + 1, calm + rounds + 1), trial.names, seed=seed, share=SHARE, faults=possible())

    def told(reached: int, faults: int) -> None:
        if watch is not None:
            watch.step(max(0, reached), f"{faults} of {len(planned)} faults")

    endured = Ordeal(trial, config, calm, rounds, planned, told).endure(LONGEST * (calm + rounds))
    return Outlived(endured, audited(trial).holds)


def _endurance(rounds: int, watch: Watch) -> list[Figure]:
    watch.stage("rounds with faults", CALM_ROUNDS + rounds)
    with _federation(names=MORE_SILOS) as trial:
        found = outlive(trial, rounds, watch=watch)
    endured = found.endured
    share = f"chance {SHARE:g} of each of {len(MORE_SILOS)} silos in every round, and 0.05 of the coordinator"
    took_part = [len(silos) for number, silos in endured.answered.items() if number > CALM_ROUNDS]
    return [
        Figure("faults", len(endured.faults), "", f"{share}: {endured.in_words()}"),
        Figure("rounds finished under faults", endured.finished_round - CALM_ROUNDS),
        Figure("the audit accepts the ledgers under faults", float(found.accepted)),
        Figure("a round without faults", endured.calm, "s", f"median of rounds 2 to {CALM_ROUNDS}, from end to end"),
        Figure("a round with faults", endured.faulty / rounds, "s", "mean, from end to end, restarts of the coordinator in it"),
        Figure("silos in a round with faults", float(np.mean(took_part)), "", f"mean, of {len(MORE_SILOS)}"),
        Figure("lost for a fault", endured.lost, "s", "all rounds with faults, less as many without, over faults"),
    ]
