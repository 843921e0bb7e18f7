"""Faults at random: what happens to a deployment in every round, drawn beforehand from a seed, and done to real processes.

A silo's faults come one after the other, those of different silos at the same time; each is mended some seconds later. What it
costs is told in seconds of the clock on the wall: how much longer the rounds took than rounds in which nothing happened.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from random import Random
from statistics import median

import psutil

from common.errors import FederationError
from common.status.events import seconds as seconds_of
from server.checkpoint import FINAL
from simulations.trial.consortium import Federation, Running
from simulations.trial.hosts import why_no_namespaces

COORDINATOR = "coordinator"

AFTER = (0.0, 3.0)
"""Seconds from the beginning of a round to a fault."""
LASTS = (2.0, 8.0)
"""Seconds until a fault is mended."""


class Fault(Enum):
    """What happens."""

    POWER = "power cut"
    CABLE = "cable pulled"
    EXECUTOR = "executor killed"
    FROZEN = "frozen"
    COORDINATOR = "coordinator killed"


OF_A_SILO = (Fault.POWER, Fault.CABLE, Fault.EXECUTOR, Fault.FROZEN)


@dataclass(frozen=True)
class Planned:
    """A fault of ``whom``, ``after`` seconds of a round, mended when it has lasted ``lasts`` seconds."""

    round: int
    whom: str
    fault: Fault
    after: float
    lasts: float


def drawn(
    rounds: Sequence[int],
    names: Sequence[str],
    *,
    seed: int,
    share: float = 0.2,
    coordinator_share: float = 0.05,
    faults: Sequence[Fault] = OF_A_SILO,
) -> list[Planned]:
    """In each round each silo suffers one of ``faults`` with chance ``share``, the coordinator is killed with its own chance."""
    random, found = Random(seed), []
    for number in rounds:
        for whom in (*names, COORDINATOR):
            suffers = random.random() < (coordinator_share if whom == COORDINATOR else share)
            fault = Fault.COORDINATOR if whom == COORDINATOR else random.choice(list(faults))
            after, lasts = random.uniform(*AFTER), random.uniform(*LASTS)
            if suffers:
                found.append(Planned(number, whom, fault, after, lasts))
    return found


def possible() -> tuple[Fault, ...]:
    """The faults of a silo that can be done to it here: nobody has a cable of their own on loopback."""
    return tuple(fault for fault in OF_A_SILO if fault is not Fault.CABLE or not why_no_namespaces())


@dataclass(frozen=True)
class Endured:
    """What became of a run. ``calm`` and ``faulty`` are seconds: of a median round without faults, of all with; ``answered``
    who is in each round that was told of.
    """

    finished_round: int
    calm: float
    faulty: float
    rounds: int
    faults: tuple[Planned, ...]
    answered: Mapping[int, Sequence[int]]

    @property
    def lost(self) -> float:
        """Seconds that a fault costs the federation, on average."""
        return (self.faulty - self.calm * self.rounds) / max(1, len(self.faults))

    def in_words(self) -> str:
        """How often what happened."""
        counted = Counter(planned.fault.value for planned in self.faults)
        return ", ".join(f"{name} {times}" for name, times in sorted(counted.items()))


class Ordeal:
    """A run from its start to its end, through the faults that are planned for it.

    Parameters
    ----------
    trial:
        All silos admitted, nobody running.
    config:
        Of the run.
    calm_rounds, rounds:
        How many there are without faults, and after them with. ``config`` has as many rounds as both together.
    planned:
        See :func:`drawn`.
    told:
        Hears the number of each round that is finished, and how many faults there were.
    """

    def __init__(
        self,
        trial: Federation,
        config: Path,
        calm_rounds: int,
        rounds: int,
        planned: Sequence[Planned],
        told: Callable[[int, int], None] = lambda round, faults: None,
    ) -> None:
        self.trial, self.config, self.calm_rounds, self.rounds, self.told = trial, config, calm_rounds, rounds, told
        self._coming = sorted(planned, key=lambda one: (one.round, one.after))
        self._done: list[Planned] = []
        self._over = threading.Event()
        self._silos: dict[str, Running] = {}
        self._server: Running | None = None
        self._mending = threading.Event()

    def endure(self, seconds: float) -> Endured:
        """Until the run has finished.

        Raises
        ------
        FederationError
            If it has not within ``seconds``, or somebody ends whom no fault has ended; with what all said.
        """
        for name in self.trial.names:
            self._silos[name] = self.trial.start_silo(name)
        self._server = self.trial.start_server(self.config, "--no-bundle")
        hands = {whom: ThreadPoolExecutor(1) for whom in (*self.trial.names, COORDINATOR)}
        under_way: list[Future[None]] = []
        try:
            self.trial.until(lambda: self._has_finished(hands, under_way), seconds, "the end of the run")
        finally:
            self._over.set()
            for hand in hands.values():
                hand.shutdown()
        for one in under_way:
            one.result()
        for name, silo in self._silos.items():
            if silo.process.poll() is not None:
                raise FederationError(f"the silo {name} has ended by itself\n{self.trial.account()}")
        return self._account()

    def _has_finished(self, hands: Mapping[str, ThreadPoolExecutor], under_way: list[Future[None]]) -> bool:
        told = [event["round"] for event in self.trial.rounds()]
        reached = max(told, default=-1)
        while self._coming and self._coming[0].round <= reached + 1:
            planned = self._coming.pop(0)
            under_way.append(hands[planned.whom].submit(self._suffer, planned))
        for one in under_way:
            if one.done():
                one.result()
        self.told(reached, len(self._done))
        if self._is_final():
            return True
        server = self._server
        if server is not None and server.process.poll() is not None and not self._mending.is_set() and not self._is_final():
            raise FederationError(f"the coordinator has ended by itself\n{self.trial.account()}")
        return False

    def _is_final(self) -> bool:
        return (self.trial.run_folder() / FINAL).exists()

    def _suffer(self, planned: Planned) -> None:
        """Do it, and mend it; nothing happens any more when the run is over."""
        if self._over.wait(planned.after):
            return
        self._done.append(planned)
        whom, lasts = planned.whom, planned.lasts
        match planned.fault:
            case Fault.COORDINATOR:
                self._kill_coordinator(lasts)
            case Fault.POWER:
                self._silos[whom].kill()
                self._over.wait(lasts)
                self._silos[whom] = self.trial.start_silo(whom)
            case Fault.CABLE:
                self.trial.hosts[whom].cut_off()
                self._over.wait(lasts)
                self.trial.hosts[whom].connect()
            case Fault.EXECUTOR:
                silo = self._silos[whom]
                executors = self.trial.until(lambda: [one for one in silo.family() if _is_executor(one)], 120, "an executor")
                _signal(executors, signal.SIGKILL)
            case Fault.FROZEN:
                family = self._silos[whom].family()
                _signal(family, signal.SIGSTOP)
                self._over.wait(lasts)
                _signal(family, signal.SIGCONT)

    def _kill_coordinator(self, lasts: float) -> None:
        self._mending.set()
        try:
            if self._server is not None:
                self._server.kill()
            self._over.wait(lasts)
            if not self._is_final():
                self._server = self.trial.start_server(self.config, "--no-bundle")
        finally:
            self._mending.clear()

    def _account(self) -> Endured:
        rounds = self.trial.rounds()
        ended = {int(event["round"]): seconds_of(event["time"]) for event in rounds}
        finished = [event for event in self.trial.events() if event["event"] == "finished"]
        last = int(finished[-1]["round"]) if finished else max(ended)
        calm = [ended[number] - ended[number - 1] for number in range(2, self.calm_rounds + 1)]
        faulty = (ended.get(last) or seconds_of(finished[-1]["time"])) - ended[self.calm_rounds]
        answered = {int(event["round"]): event["answered"] for event in rounds}
        return Endured(last, median(calm), faulty, self.rounds, tuple(self._done), answered)


def _is_executor(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "client.executor" in process.cmdline()
    return False


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for one in processes:
        with contextlib.suppress(psutil.Error):
            one.send_signal(number)
