"""The server: one event loop that speaks gRPC, and an end that loses no question."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from common.errors import ServingError
from server.serving.batching import Batcher
from server.serving.calls import Gate
from server.serving.counting import Counts
from server.serving.limits import Limits
from server.serving.service import CHUNK, HasCurrent, Recommender
from server.serving.standing import Health, Reflection
from server.serving.tls import Admission, is_loopback

METADATA_BYTES: Final = 4 << 10
KEEPALIVE_MS: Final = 60_000


@dataclass(frozen=True)
class Endpoint:
    """Where a service listens and whom it lets in.

    ``credentials`` None is a channel without TLS: for loopback addresses alone.
    """

    host: str = "127.0.0.1"
    port: int = 0
    credentials: grpc.ServerCredentials | None = None
    admission: Admission = field(default_factory=lambda: Admission(without_tls=True))

    def __post_init__(self) -> None:
        if self.credentials is None and not is_loopback(self.host):
            raise ServingError(
                f"{self.host}: without TLS it is served to this machine only: give certificates, or listen at 127.0.0.1"
            )

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("[") else self.host
        return f"{host}:{self.port}"


def options(limits: Limits) -> list[tuple[str, Any]]:
    """gRPC's own limits. Compression is off: a message's length must not depend on what is in it."""
    return [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", 2 * CHUNK),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES),
        ("grpc.max_concurrent_streams", 2 * limits.under_way),  # of one connection; beyond, its streams are reset
        # Calls that came and were not looked at yet; beyond, gRPC itself ends them with CANCELLED.
        ("grpc.server.max_pending_requests", 4 * limits.under_way),
        ("grpc.server.max_pending_requests_hard_limit", 8 * limits.under_way),
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed, which answers about a sixth more questions, else asyncio's own."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def serve(
    live: HasCurrent,
    endpoint: Endpoint,
    limits: Limits,
    counts: Counts,
    *,
    stop: asyncio.Event,
    ready: Callable[[int], None],
    grace: float = 10.0,
    pause: float = 0.0,
) -> None:
    """Answer until ``stop`` is set.

    Parameters
    ----------
    ready:
        Called with the port when questions are answered.
    grace:
        Seconds that calls under way have after the stop; new ones are refused then with ``UNAVAILABLE``.
    pause:
        Seconds from when health says ``NOT_SERVING`` until new calls are refused, for whoever balances load to notice.

    Raises
    ------
    ServingError
        If the address cannot be listened at.
    """
    gate = Gate(endpoint.admission, limits, counts)
    batcher = Batcher(lambda: live.current, limits.waiting)
    counts.show("silorec_batches", "Calls of the model so far.", lambda: batcher.batches)
    counts.show("silorec_batched_questions", "Questions in them so far.", lambda: batcher.questions)
    server = grpc.aio.server(options=options(limits))
    server.add_generic_rpc_handlers(
        (Recommender(live, gate, batcher).handler(), Health(gate).handler(), Reflection(gate).handler())
    )
    try:
        port = _listen(server, endpoint)
        await server.start()
        ready(port)
        await stop.wait()
        gate.stopping.set()
        await asyncio.sleep(pause)
        await server.stop(grace)
    finally:
        await batcher.close()


def _listen(server: Any, endpoint: Endpoint) -> int:
    try:
        if endpoint.credentials is None:
            return int(server.add_insecure_port(endpoint.address))
        return int(server.add_secure_port(endpoint.address, endpoint.credentials))
    except RuntimeError:
        raise ServingError(
            f"{endpoint.address}: cannot be listened at; is the port taken, or the address another machine's?"
        ) from None
