"""The engine in a process of its own, so that what computes and what speaks gRPC do not wait for one interpreter's lock.

One process belongs to one bundle and ends with it. The service hands it the bundle, which it has verified, over a pair of
sockets, then batches of histories; both sides say numbers only. Names stay in the service: scores need none.

If the child is killed, another one is started and asked again. It ends when the service does, since its socket does then, and
with nothing else: after a signal to the whole group of processes the service can still answer what is under way.

What both sides say is in :mod:`server.serving.engine_child`, which imports no more than it needs: a bundle takes over as soon as
its engine has started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.bundle.contents import Bundle
from common.engine.retrieval import SearchChoice
from common.errors import BundleError, ServingError
from server.serving.engine_child import LENGTH, LONGEST_NAME, READY, message, received

END_SECONDS: Final = 5.0
"""That a child has to end in when it is not needed any more."""

log = logging.getLogger(__name__)

Found = tuple[NDArray[np.int32], NDArray[np.float32]]


class EngineProcess:
    """Answers by a child process, as :class:`common.engine.Engine` would. To be asked on one event loop.

    Parameters
    ----------
    bundle:
        Opened and verified.
    search, index_folder:
        As in :class:`~common.engine.Engine`.

    Raises
    ------
    BundleError
        If the bundle cannot be run, or does not give finite scores.
    ServingError
        If no process can be started.
    """

    def __init__(self, bundle: Bundle, *, search: SearchChoice = "auto", index_folder: Path | None = None) -> None:
        self.bundle = bundle
        self._options: dict[str, Any] = {"search": search, "index_folder": index_folder}
        self._turn = asyncio.Lock()
        self._child = _Child(bundle, self._options)

    @property
    def pid(self) -> int:
        """Of the process that answers."""
        return self._child.process.pid

    async def answer(self, histories: Sequence[Sequence[int]], k: int) -> Found:
        """As :meth:`common.engine.Engine.top`. One call at a time, others wait.

        Raises
        ------
        ServingError
            If the engine fails on these histories, or its process ends twice over them.
        """
        async with self._turn:
            try:
                return await self._child.answer(histories, k)
            except (EOFError, OSError):
                log.error("the engine's process ended (status %s); it is started again", self._child.end())
            self._child = await asyncio.to_thread(_Child, self.bundle, self._options)
            try:
                return await self._child.answer(histories, k)
            except (EOFError, OSError):
                raise ServingError(f"the engine's process ended twice (status {self._child.end()})") from None


class _Child:
    """A process, and what is said to it. It ends when nobody refers to this any more."""

    def __init__(self, bundle: Bundle, options: dict[str, Any]) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", "server.serving.engine_child", str(theirs.fileno())]  # -P: never from here
            found = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            try:
                self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=found)
            except OSError as error:
                self._socket.close()
                raise ServingError(f"the engine's process cannot be started ({error.strerror})") from None
        self._finalizer = weakref.finalize(self, _let_end, self.process, self._socket)
        self._finalizer.atexit = False  # the socket is closed then by itself
        try:
            self._socket.sendall(message(pickle.dumps((bundle.scoring, options), pickle.HIGHEST_PROTOCOL)))
            with self._socket.makefile("rb") as stream:
                said = received(stream)
        except (EOFError, OSError):
            raise ServingError(f"the engine's process ended while it began (status {self.end()})") from None
        if said != READY:
            self.end()
            raise BundleError(said.decode())
        self._socket.setblocking(False)

    def end(self) -> int:
        """Let it end, and wait; its exit status."""
        self._finalizer.detach()
        self._socket.close()
        return _ended(self.process)

    async def answer(self, histories: Sequence[Sequence[int]], k: int) -> Found:
        loop = asyncio.get_running_loop()
        numbers = np.fromiter(chain((k, len(histories)), map(len, histories), chain.from_iterable(histories)), dtype="<i8")
        await loop.sock_sendall(self._socket, message(numbers.tobytes()))
        size = 4 * len(histories) * k
        answer = await self._read(loop, 2 * size)
        if len(answer) != 2 * size:
            raise ServingError(f"the engine failed: {bytes(answer).decode(errors='replace')}")
        shape = (len(histories), k)
        return (
            np.frombuffer(answer[:size], dtype="<i4").reshape(shape),
            np.frombuffer(answer[size:], dtype="<f4").reshape(shape),
        )

    async def _read(self, loop: asyncio.AbstractEventLoop, expected: int) -> memoryview:
        """One message, most often by one call of the system: how long it should be is known."""
        buffer = memoryview(bytearray(LENGTH.size + max(expected, LONGEST_NAME)))
        got, wanted = 0, LENGTH.size
        while got < wanted:
            count = await loop.sock_recv_into(self._socket, buffer[got:])
            if not count:
                raise EOFError
            got += count
            if got >= LENGTH.size:
                wanted = LENGTH.size + LENGTH.unpack_from(buffer)[0]
        return buffer[LENGTH.size : wanted]


def _let_end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    threading.Thread(target=_ended, args=(process,), daemon=True).start()


def _ended(process: subprocess.Popen[bytes]) -> int:
    """The exit status of a child whose connection is closed; one that does not end is killed."""
    try:
        return process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
