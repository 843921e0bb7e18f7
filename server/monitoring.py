"""A coordinator's metrics for Prometheus, read from a run's events: rounds, silos, seconds of stages, refusals.

They are made from ``events.jsonl`` whenever they are asked for, so any process can show them, the run's own or the one that
watches over it, and counters go on after a restart. Labels are states, codes and stages out of fixed lists, and the run. Nothing
is counted per silo: what one refuses, and shows of its budget, the operator sees in ``silorec status``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from common.consortium.home import CoordinatorHome
from common.errors import DataError, ErrorCode
from common.protocol import BUDGET
from common.status.events import EVENTS, Event, Follower, seconds
from common.status.expiry import endings, roster_of
from common.status.files import read_status
from common.status.run import RUN_STATES, SILO_STATES, RunSoFar

ROUND_BUCKETS: Final = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
STAGE_BUCKETS: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
OTHER: Final = "other"

_STAGE = re.compile(r"[a-z][a-z_. -]{0,30}")
_MOST_STAGES = 20
_CODES = frozenset(code.name for code in ErrorCode)


class RunMetrics(Collector):
    """The metrics of the run whose folder ``where`` tells, asked each time; register it, or take :func:`registry_of`."""

    def __init__(self, where: Callable[[], Path]) -> None:
        self._where = where
        self._rounds = _Seconds(ROUND_BUCKETS)
        self._stages: dict[str, _Seconds] = {}
        self._refusals: Counter[str] = Counter()
        self._left_out = self._n_rounds = self._starts = 0
        self._turn_to(where())

    def _turn_to(self, folder: Path) -> None:
        """Counters go on; they count what this coordinator did, in whichever run."""
        self.folder, self._follower, self._run = folder, Follower(folder / EVENTS), RunSoFar()

    def describe(self) -> list[Metric]:
        """Nothing is read when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Catch up with the events, then say what they come to."""
        if (folder := self._where()) != self.folder:
            self._turn_to(folder)
        for event, time in self._follower.new():
            self._tell(event, time)
        run, last = self._run, self._run.last
        if run.attempts:
            yield InfoMetricFamily(
                "silorec_run", "The run that is shown.", {"name": run.run, "mode": run.mode, "config": run.config[:16]}
            )
        yield _states("silorec_run_state", "State of the run: 1 for the one it is in.", RUN_STATES, Counter([run.state]))
        yield _states(
            "silorec_silos", "Silos by what they did when last asked.", SILO_STATES, Counter(s.state for s in run.silos.values())
        )
        yield CounterMetricFamily("silorec_rounds", "Rounds that were finished.", value=self._n_rounds)
        yield CounterMetricFamily("silorec_run_starts", "Times that the run was started or taken up again.", value=self._starts)
        yield CounterMetricFamily("silorec_silos_left_out", "Times that a silo was left out.", value=self._left_out)
        if last is not None:
            yield GaugeMetricFamily("silorec_round", "The last finished round.", value=last.number)
            yield GaugeMetricFamily(
                "silorec_round_answers", "Silos whose answers are in the last round.", value=len(last.answered)
            )
            yield GaugeMetricFamily("silorec_last_round_timestamp_seconds", "When the last round was finished.", value=last.time)
        if run.planned is not None:
            yield GaugeMetricFamily("silorec_rounds_planned", "Rounds that the configuration asks for.", value=run.planned)
        yield from self._from_files()
        yield self._rounds.metric("silorec_round_seconds", "Seconds of a round, from the first question to the checkpoint.")
        stages = HistogramMetricFamily("silorec_stage_seconds", "Seconds of a stage of a round.", labels=["stage"])
        for name, spent in sorted(self._stages.items()):
            stages.add_metric([name], spent.buckets(), spent.sum)
        yield stages
        refusals = CounterMetricFamily("silorec_refusals", "Refusals by code.", labels=["code"])
        for code in sorted(_CODES | set(self._refusals)):
            refusals.add_metric([code], self._refusals[code])
        yield refusals

    def _tell(self, event: Event, time: float) -> None:
        self._run.tell(event, time)
        match event["event"]:
            case "stage" if event["stage"] != BUDGET:
                self._stage(str(event["stage"])).add(event["seconds"])
                for code in (event.get("refused") or {}).values():
                    self._refusals[code if code in _CODES else OTHER] += 1
            case "round":
                self._n_rounds += 1
                if event.get("seconds") is not None:
                    self._rounds.add(event["seconds"])
            case "left_out":
                self._left_out += 1
            case "run":
                self._starts += 1

    def _stage(self, name: str) -> _Seconds:
        """By the stage's name without a round's number."""
        name = name.rstrip("0123456789 ")
        if not _STAGE.fullmatch(name) or (name not in self._stages and len(self._stages) >= _MOST_STAGES):
            name = OTHER
        return self._stages.setdefault(name, _Seconds(STAGE_BUCKETS))

    def _from_files(self) -> Iterator[Metric]:
        try:
            status = read_status(self.folder)
        except DataError:
            return
        yield GaugeMetricFamily(
            "silorec_heartbeat_timestamp_seconds", "Last sign of life of the run's process.", value=seconds(status["heartbeat"])
        )
        if status.get("checkpoint"):
            yield GaugeMetricFamily(
                "silorec_checkpoint_timestamp_seconds", "When the checkpoint was written.", value=seconds(status["checkpoint"])
            )


def registry_of(where: Callable[[], Path], home: CoordinatorHome | None = None) -> CollectorRegistry:
    """A registry with the metrics of a run and of this process.

    Parameters
    ----------
    where:
        Tells the run's folder, which may still be to come; asked whenever metrics are.
    home:
        Of the coordinator, whose certificates are then told too.
    """
    registry = CollectorRegistry()
    registry.register(RunMetrics(where))
    if home is not None:
        registry.register(ExpiryMetrics(home))
    ProcessCollector(registry=registry)
    return registry


class ExpiryMetrics(Collector):
    """What in a coordinator's home expires when, the silos' memberships by name."""

    def __init__(self, home: CoordinatorHome) -> None:
        self.home = home

    def describe(self) -> list[Metric]:
        """Nothing is read when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the home and say what is there."""
        expiry = GaugeMetricFamily(
            "silorec_expiry_timestamp_seconds", "Until when a certificate, the roster or a silo is valid.", labels=["what"]
        )
        for one in endings(self.home, roster_of(self.home)):
            expiry.add_metric([one.what], one.until)
        yield expiry


class _Seconds:
    """A histogram's counts."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum, self.count = bounds, [0] * len(bounds), 0.0, 0

    def add(self, value: float) -> None:
        self.sum, self.count = self.sum + value, self.count + 1
        for place, bound in enumerate(self.bounds):
            self.counts[place] += value <= bound

    def buckets(self) -> list[tuple[str, float]]:
        below = [(floatToGoString(bound), float(count)) for bound, count in zip(self.bounds, self.counts, strict=True)]
        return [*below, ("+Inf", float(self.count))]

    def metric(self, name: str, text: str) -> HistogramMetricFamily:
        return HistogramMetricFamily(name, text, buckets=self.buckets(), sum_value=self.sum)


def _states(name: str, text: str, states: tuple[str, ...], counts: Counter[str]) -> GaugeMetricFamily:
    """A series for each state, so that one which is left shows 0."""
    family = GaugeMetricFamily(name, text, labels=["state"])
    for state in states:
        family.add_metric([state], counts[state])
    return family
