"""The service in this process: a real server on a real socket, its event loop in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from common.bundle.contents import Bundle
from common.engine import Engine
from common.proto import path_of
from common.proto import recommender_pb2 as messages
from common.recommending import PAD, SLOTS
from common.serving import Live
from server.serving.counting import Counts
from server.serving.engine_process import EngineProcess
from server.serving.issued import issuing
from server.serving.limits import Limits
from server.serving.running import Endpoint, new_event_loop, serve

GENEROUS = Limits(rate=1e6, burst=1_000_000)


class InThread(Engine):
    """An engine in this process, so that a test can stand in its way."""

    async def answer(self, histories: Sequence[Sequence[int]], k: int) -> Any:
        return await asyncio.to_thread(self.top, histories, k)


class Running:
    """A service from one bundle (or a folder of them); a context manager."""

    def __init__(
        self,
        path: Path,
        signer: str,
        endpoint: Endpoint | None = None,
        limits: Limits = GENEROUS,
        *,
        grace: float = 10.0,
        open_engine: Callable[[Bundle], Any] = EngineProcess,
    ) -> None:
        self.live = Live(path, {signer}, open_engine=open_engine, prepare=issuing(path))
        self.counts, self.limits, self.grace = Counts(), limits, grace
        self._endpoint = endpoint or Endpoint()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: BaseException | None = None
        self.port = 0

    def __enter__(self) -> Running:
        self._thread.start()
        self._ready.wait(30)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self.live.close()

    @property
    def target(self) -> str:
        return f"localhost:{self.port}"

    def stop(self) -> None:
        """Ask it to stop, and wait."""
        self.ask_to_stop()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def ask_to_stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)

    def metric(self, name: str, **labels: str) -> float:
        """A counter's value."""
        return self.counts.registry.get_sample_value(name, labels or None) or 0.0

    def _run(self) -> None:
        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            how = {"stop": self._stop, "ready": self._is_ready, "grace": self.grace}
            await serve(self.live, self._endpoint, self.limits, self.counts, **how)

        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(main())
        except BaseException as error:
            self._failure = error
            self._ready.set()

    def _is_ready(self, port: int) -> None:
        self.port = port
        self._ready.set()


def question(catalogue: str, history: tuple[int, ...] = ()) -> bytes:
    """A ``RecommendRequest`` of a history that is shown as it is."""
    slots = [*history, *[PAD] * (SLOTS - len(history))]
    return bytes(messages.RecommendRequest(catalogue=bytes.fromhex(catalogue), history=slots).SerializeToString())


def raw_call(channel: grpc.Channel, method: str = "Recommend") -> Callable[..., bytes]:
    """A method that takes and gives bytes."""
    return channel.unary_unary(path_of(method) if "/" not in method else method)


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """How a call was refused."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError("it was answered")
