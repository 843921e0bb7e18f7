"""A silo's metrics for Prometheus, for its own operator: answers, refusals, seconds, budget, and what expires when.

They are read from the silo's home whenever they are asked for: its status file, its ledger and its certificates. Labels are
actions and codes out of fixed lists, limits, and kinds of certificates. They are for the silo's own machine, not the coordinator.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from common.consortium.home import SiloHome
from common.errors import DataError, ErrorCode
from common.protocol import RELEASED
from common.status.budget import Budget
from common.status.events import seconds
from common.status.expiry import endings, roster_of
from common.status.files import read_status


class SiloMetrics(Collector):
    """The metrics of one home; register it, or take :func:`registry_of`."""

    def __init__(self, home: SiloHome, name: str) -> None:
        self.home, self.name = home, name
        self._budget = Budget(home.ledger)

    def describe(self) -> list[Metric]:
        """Nothing is read when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the home and say what is there."""
        yield from self._from_status()
        yield from self._from_ledger()
        expiry = GaugeMetricFamily(
            "silorec_expiry_timestamp_seconds",
            "Until when a certificate, the roster or the membership is valid.",
            labels=["what"],
        )
        for one in endings(self.home, roster_of(self.home), self.name):
            expiry.add_metric(["membership" if one.is_of_a_silo else one.what], one.until)
        yield expiry

    def _from_status(self) -> Iterator[Metric]:
        try:
            status = read_status(self.home.status)
        except DataError:
            return
        answers = CounterMetricFamily("silorec_answers", "Questions that were answered, by action.", labels=["action"])
        refusals = CounterMetricFamily("silorec_refusals", "Questions that were refused, by code.", labels=["code"])
        spent = SummaryMetricFamily("silorec_answer_seconds", "Seconds of an answer or a refusal.", labels=["action"])
        for action in sorted({*RELEASED, *status["answers"]}):
            answers.add_metric([action], status["answers"].get(action, 0))
        for code in sorted({*(code.name for code in ErrorCode), *status["refusals"]}):
            refusals.add_metric([code], status["refusals"].get(code, 0))
        for action, sums in sorted(status["answer_seconds"].items()):
            spent.add_metric([action], count_value=sums["count"], sum_value=sums["sum"])
        yield from (answers, refusals, spent)
        yield GaugeMetricFamily("silorec_silo_up", "Whether the silo takes part.", value=_is_up(status))
        yield GaugeMetricFamily(
            "silorec_heartbeat_timestamp_seconds", "Last sign of life of the silo.", value=seconds(status["heartbeat"])
        )
        if status["last_contact"]:
            yield GaugeMetricFamily(
                "silorec_last_contact_timestamp_seconds",
                "When the silo last heard of the coordinator.",
                value=seconds(status["last_contact"]),
            )

    def _from_ledger(self) -> Iterator[Metric]:
        facts = self._budget.facts()
        yield GaugeMetricFamily("silorec_ledger_readable", "Whether the ledger is there and whole.", value="error" not in facts)
        if "error" in facts:
            return
        spent = GaugeMetricFamily(
            "silorec_epsilon_spent", "Epsilon spent under a limit; per run: of the last run, per day: today.", labels=["limit"]
        )
        left = GaugeMetricFamily("silorec_epsilon_left", "Epsilon left under a limit.", labels=["limit"])
        for name, limit in facts["limits"].items():
            spent.add_metric([name], float("inf") if limit["spent"] is None else limit["spent"])
            left.add_metric([name], limit["left"])
        yield from (spent, left)
        yield CounterMetricFamily("silorec_releases", "Releases that the ledger was charged for.", value=facts["reservations"])


def registry_of(home: SiloHome, name: str) -> CollectorRegistry:
    """A registry with the metrics of ``home``, whose silo is called ``name``, and of this process."""
    registry = CollectorRegistry()
    registry.register(SiloMetrics(home, name))
    ProcessCollector(registry=registry)
    return registry


def _is_up(status: dict[str, Any]) -> float:
    return float(status["state"] == "running" and not status["stale"])
