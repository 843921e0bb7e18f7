"""All that the service remembers of calls: how many, by silo, method and status."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from common.errors import ServingError


class Counts:
    """Prometheus counters in a registry of their own; none has a label that could tell one person's calls from another's."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("silo", "method", "status")
        self._calls = Counter("silorec_calls", "Calls by silo, method and gRPC status.", labels, registry=self.registry)
        self._questions = Counter("silorec_questions", "Questions that were answered.", ("silo",), registry=self.registry)

    def call(self, silo: str, method: str, status: str) -> None:
        """A call has ended."""
        self._calls.labels(silo, method, status).inc()

    def answered(self, silo: str, questions: int) -> None:
        """So many questions of one call were answered."""
        self._questions.labels(silo).inc(questions)

    def show(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A gauge that is read when somebody looks."""
        Gauge(name, about, registry=self.registry).set_function(value)

    def open_port(self, port: int) -> tuple[int, Callable[[], None]]:
        """Show the counters at http://127.0.0.1:port/metrics, to this machine only.

        Returns
        -------
        The port (chosen if 0 was asked for), and what closes it.

        Raises
        ------
        ServingError
            If the port is taken.
        """
        try:
            server, thread = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        except OSError as error:
            raise ServingError(f"--metrics-port {port}: cannot be listened at ({error.strerror}); choose another") from None

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return int(server.server_port), close
