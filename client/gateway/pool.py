"""A few threads for the computing, and a queue that has an end: who comes when it is full is told to come again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus
from typing import TypeVar

from client.gateway.problems import Refused

T = TypeVar("T")


class Pool:
    """Runs work beside the event loop.

    Parameters
    ----------
    threads:
        Working at once.
    waiting:
        Requests that may wait for a thread; further ones are refused.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="answering")
        self._most = threads + waiting
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def taken(self) -> int:
        """Requests that are worked on or wait."""
        return self._taken

    async def run(self, work: Callable[[], T]) -> T:
        """What ``work`` returns or raises.

        Raises
        ------
        Refused
            503 if too many wait.
        """
        with self._lock:
            if self._taken >= self._most:
                raise Refused(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    "more is asked than can be answered at once; try again in a second",
                    headers={"Retry-After": "1"},
                )
            self._taken += 1
        future = self._executor.submit(work)
        future.add_done_callback(self._free)  # whether it ran, failed, or was given up while it waited
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _free(self, _: Future[T]) -> None:
        with self._lock:
            self._taken -= 1
