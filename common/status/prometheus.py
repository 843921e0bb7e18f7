"""Metrics for Prometheus over HTTP: to this machine alone unless the operator names another address."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from common.errors import ConfigError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


def serve_metrics(port: int, registry: CollectorRegistry, *, host: str = "127.0.0.1") -> tuple[int, Callable[[], None]]:
    """Show a registry at ``http://host:port/metrics``.

    Parameters
    ----------
    port:
        0 chooses one.
    host:
        Whoever reaches this address may read; there is no password.

    Returns
    -------
    The port, and what closes it.

    Raises
    ------
    ConfigError
        If it cannot be listened at.
    """
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ConfigError(
            f"metrics at {host}:{port}: cannot be listened at ({error.strerror}); set another metrics_port"
        ) from None

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return int(server.server_port), close
