"""Prometheus metrics: how many requests of which kind, how long they took, which bundle answers.

Nothing is counted per person or per item: labels are the route as it is written in the code, a method and a status out of fixed
lists, and facts of the bundle. A request's text, length and sender have no way in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.serving import Live

BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
METHODS: Final = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
OTHER: Final = "other"

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One registry for one app."""

    def __init__(self, live: Live, waiting: Callable[[], int]) -> None:
        disable_created_metrics()  # when a route was first asked is nobody's business
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "silorec_requests", "Requests by route, method and status.", ["route", "method", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "silorec_request_seconds", "Time from the first byte to the last.", ["route"], buckets=BUCKETS, registry=self.registry
        )
        self.registry.register(_Bundles(live, waiting))
        ProcessCollector(registry=self.registry)

    def answered(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Count one answer; ``route`` is None where no route of ours was meant."""
        route = OTHER if route is None else route
        self._requests.labels(route, method if method in METHODS else OTHER, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def page(self) -> bytes:
        return generate_latest(self.registry)


class _Bundles(Collector):
    """Read from the live bundle when asked, so that a bundle that has gone leaves no series behind."""

    def __init__(self, live: Live, waiting: Callable[[], int]) -> None:
        self._live, self._waiting = live, waiting

    def collect(self) -> Iterator[Metric]:
        status, bundle = self._live.status, self._live.engine.bundle
        facts = {"digest": status.digest, "signer": status.signer, "name": bundle.card.name, "created": bundle.card.created}
        info = GaugeMetricFamily("silorec_bundle_info", "The bundle that answers; always 1.", labels=[*facts])
        info.add_metric([*facts.values()], 1)
        yield info
        yield GaugeMetricFamily("silorec_bundle_items", "Items that can be recommended.", value=len(bundle.items))
        yield GaugeMetricFamily("silorec_bundle_since_seconds", "When the bundle took over, since 1970.", value=status.since)
        yield GaugeMetricFamily("silorec_requests_in_hand", "Requests computed or waiting for it.", value=self._waiting())
        for name, text, value in (
            ("silorec_bundle_swaps", "Bundles taken since the start.", status.swaps),
            ("silorec_bundle_rollbacks", "Ways back to the last good bundle.", status.rollbacks),
            ("silorec_bundle_refused", "Bundles refused; the old one went on.", status.refused),
        ):
            yield CounterMetricFamily(name, text, value=value)
