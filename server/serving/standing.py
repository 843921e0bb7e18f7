"""gRPC's own services beside ours: health (is it serving?) and reflection (what can be asked?), behind the same gate.

A server is healthy until it is told to stop: a bundle that does not hold is never taken, and the old one goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from common.proto import SERVICE
from server.serving.calls import Gate
from server.serving.questions import read
from server.serving.refusal import Refused, malformed

HEALTH: Final = "grpc.health.v1.Health"
REFLECTION: Final = reflection.SERVICE_NAME


class Health:
    """The health protocol (grpc/grpc: doc/health-checking.md) for one service whose state changes once: when it stops."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            HEALTH,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
            },
        )

    async def check(self, raw: bytes, context: Any) -> bytes | None:
        async with self._gate.call("Check", context):
            _check_name(raw)
            return self._state()
        return None

    async def watch(self, raw: bytes, context: Any) -> None:
        async with self._gate.call("Watch", context) as silo:
            _check_name(raw)
            async with self._gate.stream(silo):
                if not self._gate.stopping.is_set():
                    await context.write(self._state())
                    await self._gate.stopping.wait()
                await context.write(self._state())

    def _state(self) -> bytes:
        states = health_pb2.HealthCheckResponse
        state = states.NOT_SERVING if self._gate.stopping.is_set() else states.SERVING
        return bytes(states(status=state).SerializeToString())


def _check_name(raw: bytes) -> None:
    if read(health_pb2.HealthCheckRequest, raw).service not in ("", SERVICE):
        raise Refused(grpc.StatusCode.NOT_FOUND, f"there is no such service here; there is {SERVICE}")


class Reflection:
    """Reflection as grpcio-reflection answers it, each request of a stream counting as a question."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._inner = reflection.aio.ReflectionServicer((SERVICE, HEALTH, REFLECTION))

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            REFLECTION, {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(self.info)}
        )

    async def info(self, requests: AsyncIterator[bytes], context: Any) -> None:
        async with self._gate.call("ServerReflectionInfo", context) as silo, self._gate.stream(silo):
            async for reply in self._inner.ServerReflectionInfo(self._read(requests, silo), context):
                await context.write(reply.SerializeToString())

    async def _read(self, requests: AsyncIterator[bytes], silo: str) -> AsyncIterator[Any]:
        async for raw in until(requests, self._gate.stopping):
            self._gate.spend(silo, 1)
            try:
                request = reflection_pb2.ServerReflectionRequest.FromString(raw)
            except DecodeError:
                raise malformed("this is not a ServerReflectionRequest") from None
            yield request


async def until(items: AsyncIterator[bytes], stop: asyncio.Event) -> AsyncIterator[bytes]:
    """What comes from ``items`` before ``stop`` is set."""
    stopped = asyncio.ensure_future(stop.wait())
    iterator = aiter(items)
    try:
        while True:
            coming = asyncio.ensure_future(anext(iterator, None))
            await asyncio.wait({coming, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await coming
                return
            item = coming.result()
            if item is None:
                return
            yield item
    finally:
        stopped.cancel()
