"""One run over real processes, TLS and a network, beside the same run in this process: seconds, stages, bytes, requests."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray

from common.status.events import Event, read_events
from common.status.events import seconds as seconds_of
from common.status.files import read_json
from server.checkpoint import read_final
from simulations.trial.consortium import Federation, Running, twin
from simulations.trial.hosts import why_no_namespaces

PROGRAMS: Final[Mapping[str, str]] = {
    "server.superlink": "SuperLink",
    "flwr-serverapp": "the coordinator's app",
    "client.supernode": "SuperNodes",
    "client.executor": "executors",
}
"""What is found in a program's command, and its name."""

FIRST = 2
"""The first round that counts: in those before it programs are loaded and models are built."""


@dataclass(frozen=True, eq=False)
class Timed:
    """Median seconds of a round and of its stages, and the last adapter."""

    seconds: float
    stages: Mapping[str, float]
    vector: NDArray[np.float32]

    @property
    def beside_stages(self) -> float:
        """What the coordinator does between the stages."""
        return max(0.0, self.seconds - sum(self.stages.values()))


@dataclass(frozen=True, eq=False)
class Deployed:
    """A run over the network. ``computing``: seconds of the slowest silo by stage; ``processor``: seconds of a core that programs
    take in a round, by kind, all silos together; ``up`` and ``down``: bytes of a silo in a round, None on loopback.
    """

    timed: Timed
    computing: Mapping[str, float]
    processor: Mapping[str, float]
    up: float | None
    down: float | None


def in_process(trial: Federation, config: Path, folder: Path) -> Timed:
    """The same run over :class:`simulations.grid.InProcessGrid`, on copies of the silos' homes."""
    vector = twin(trial, folder, config)
    return timed((event for event, _ in read_events(folder / "events.jsonl")), vector)


def timed(events: Iterable[Event], vector: NDArray[np.float32]) -> Timed:
    """From a run's events."""
    seconds: list[float] = []
    by_stage: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for event in events:
        if event.get("round", -1) < FIRST:
            continue
        if event["event"] == "round":
            seconds.append(event["seconds"])
        elif event["event"] == "stage":
            by_stage[name_of(event["stage"])][event["round"]] += event["seconds"]
    return Timed(median(seconds), {stage: median(times.values()) for stage, times in by_stage.items()}, vector)


def name_of(action: str) -> str:
    """A stage, in short."""
    return action.removeprefix("query.")


def deployed(
    trial: Federation, config: Path, *, environment: Mapping[str, str] | None = None, seconds: float = 900.0
) -> Deployed:
    """The run from start to end, all processes with more variables in their ``environment``."""
    silos = [trial.start_silo(name, environment=environment) for name in trial.names]
    server = trial.start_server(config, "--no-bundle", environment=environment)
    seen: dict[int, list[_Seen]] = {}
    worked: dict[int, Mapping[str, float]] = {}

    def looked() -> bool:
        for event in trial.rounds():
            if event["round"] not in seen:
                seen[event["round"]] = [_Seen.of(trial, name) for name in trial.names]
                worked[event["round"]] = processor_seconds([server, *silos])
        return server.process.poll() is not None

    trial.until(looked, seconds, "the end of the run")
    trial.finish(server, 10.0)
    for silo in silos:
        silo.end()
    first, last = seen[FIRST - 1], seen[max(seen)]
    rounds = max(seen) - (FIRST - 1)
    spent = [after.since(before, rounds) for before, after in zip(first, last, strict=True)]
    computing = {action: max(one.seconds.get(action, 0.0) for one in spent) for one in spent for action in one.seconds}
    before = worked[FIRST - 1]
    processor = {kind: (now - before.get(kind, 0.0)) / rounds for kind, now in worked[max(worked)].items()}
    up, down = (None, None) if why_no_namespaces() else (mean(one.up for one in spent), mean(one.down for one in spent))
    return Deployed(timed(trial.events(), read_final(trial.run_folder())), computing, processor, up, down)


def processor_seconds(running: Iterable[Running]) -> dict[str, float]:
    """Seconds of a core that the programs of :data:`PROGRAMS` have taken so far, by name."""
    found: dict[str, float] = dict.fromkeys(PROGRAMS.values(), 0.0)
    for process in (member for one in running for member in one.family()):
        with contextlib.suppress(psutil.Error):
            command, times = " ".join(process.cmdline()), process.cpu_times()
            kind = next((name for part, name in PROGRAMS.items() if part in command), None)
            if kind is not None:
                found[kind] += times.user + times.system
    return found


@dataclass(frozen=True)
class _Seen:
    """Of one silo since it was started: seconds of its answers by stage, and bytes over its cable."""

    seconds: Mapping[str, float]
    up: float
    down: float

    @classmethod
    def of(cls, trial: Federation, name: str) -> _Seen:
        said: Mapping[str, Any] = read_json(trial.silo(name).status) or {}
        up, down = (0, 0) if why_no_namespaces() else trial.hosts[name].traffic()
        return cls({name_of(action): found["sum"] for action, found in said.get("answer_seconds", {}).items()}, up, down)

    def since(self, before: _Seen, rounds: int) -> _Seen:
        """A round's share of what came since ``before``."""
        seconds = {action: (total - before.seconds.get(action, 0.0)) / rounds for action, total in self.seconds.items()}
        return _Seen(seconds, (self.up - before.up) / rounds, (self.down - before.down) / rounds)


def requests_a_round(trial: Federation) -> float:
    """How many requests the SuperLink answers in a round, from its log; it logs them from level DEBUG on."""
    ended = {event["round"]: seconds_of(event["time"]) for event in trial.rounds()}
    first, last = ended[FIRST - 1], ended[max(ended)]
    found = 0
    for line in (trial.coordinator.folder / "logs" / "superlink.log").read_text(errors="replace").splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and said.get("logger") == "uvicorn.access":
            found += first < seconds_of(said["time"]) <= last
    return found / (max(ended) - (FIRST - 1))


def quiet_traffic(trial: Federation, seconds: float, sleep: Any) -> tuple[float, float]:
    """Bytes a second up and down of a silo that has nothing to do, in the first ``seconds``, when it asks most often."""
    silos = [trial.start_silo(name) for name in trial.names]
    server = trial.start("coordinator", "server", "up", str(trial.coordinator.folder))
    trial.until(lambda: "may connect now" in server.said(), what="the SuperLink")
    hosts = [trial.hosts[name] for name in trial.names]
    begun = [host.traffic() for host in hosts]
    trial.until(
        lambda: all(h.traffic()[1] - b[1] > 5000 for h, b in zip(hosts, begun, strict=True)), what="the silos' connections"
    )
    sleep(2.0)
    before = [host.traffic() for host in hosts]
    sleep(seconds)
    after = [host.traffic() for host in hosts]
    for running in (*silos, server):
        running.end()
    up, down = (mean((a[way] - b[way]) / seconds for a, b in zip(after, before, strict=True)) for way in (0, 1))
    return up, down
