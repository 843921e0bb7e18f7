"""The engine in a process of its own, so that what computes and what speaks gRPC do not wait for one interpreter's lock.

One process belongs to one bundle and ends with it. The service hands it the bundle, which it has verified, over a pair of
sockets, then batches of histories; both sides say numbers only. Names stay in the service: scores need none.

If the child is killed, another one is started and asked again. It ends when the service does, since its socket does then, and
with nothing else: after a signal to the whole group of processes the service can still answer what is under way.

A message is its length (eight bytes, little-endian) and so many bytes. Those of a question are int64: ``k``, the number of
histories, the length of each, then all positions. Those of an answer are int32 positions and float32 scores, ``(B, k)`` each,
or the name of what failed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from common.bundle.contents import Bundle
from common.engine.retrieval import Retrieval, SearchChoice
from common.errors import BundleError, ServingError, SilorecError

READY: Final = b"ready"
END_SECONDS: Final = 5.0
"""That a child has to end in when it is not needed any more."""

NICE: Final = 5
"""By how much the engine gives way to what speaks gRPC. Where both want a processor, questions are taken in first, so that there
are more of them in the next batch, which costs less each.
"""

_LENGTH = struct.Struct("<Q")
_LONGEST_NAME = 200

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
            command = [sys.executable, "-P", "-m", "server.serving.engine_process", str(theirs.fileno())]  # -P: never from here
            found = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            try:
                self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=found)
            except OSError as error:
                self._socket.close()
                raise ServingError(f"the engine's process cannot be started ({error.strerror})") from None
        self._finalizer = weakref.finalize(self, _let_end, self.process, self._socket)
        self._finalizer.atexit = False  # the socket is closed then by itself
        try:
            self._socket.sendall(_message(pickle.dumps((bundle.scoring, options), pickle.HIGHEST_PROTOCOL)))
            with self._socket.makefile("rb") as stream:
                said = _received(stream)
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
        await loop.sock_sendall(self._socket, _message(numbers.tobytes()))
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
        buffer = memoryview(bytearray(_LENGTH.size + max(expected, _LONGEST_NAME)))
        got, wanted = 0, _LENGTH.size
        while got < wanted:
            count = await loop.sock_recv_into(self._socket, buffer[got:])
            if not count:
                raise EOFError
            got += count
            if got >= _LENGTH.size:
                wanted = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
        return buffer[_LENGTH.size : wanted]


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


def _message(content: bytes) -> bytes:
    return _LENGTH.pack(len(content)) + content


def _received(stream: BinaryIO) -> bytes:
    """One message; :class:`EOFError` where there is none."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return content


def _answering(stream: BinaryIO, connection: socket.socket) -> None:
    """The child: take a bundle, then answer until the other side is gone."""
    scoring, options = pickle.loads(_received(stream))  # noqa: S301  from the process that started this one
    try:
        retrieval = Retrieval(scoring, **options)
        retrieval.try_out()
    except SilorecError as error:
        connection.sendall(_message(str(error).encode()))
        return
    gc.collect()
    gc.freeze()
    connection.sendall(_message(READY))
    while True:
        numbers = np.frombuffer(_received(stream), dtype="<i8").tolist()
        k, count = numbers[:2]
        try:
            positions, scores = retrieval.top(_histories(numbers[2 : 2 + count], numbers[2 + count :]), k)
        except Exception as error:  # what it says may quote a question, so only its kind is told
            connection.sendall(_message(type(error).__name__.encode()[:_LONGEST_NAME]))
        else:
            answer = (positions.astype("<i4", copy=False).tobytes(), scores.astype("<f4", copy=False).tobytes())
            connection.sendall(_message(b"".join(answer)))


def _histories(lengths: Sequence[int], positions: Sequence[int]) -> list[Sequence[int]]:
    histories, at = [], 0
    for length in lengths:
        histories.append(positions[at : at + length])
        at += length
    return histories


def main() -> None:
    """``python -m server.serving.engine_process DESCRIPTOR``."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    with socket.socket(fileno=int(sys.argv[1])) as connection, connection.makefile("rb") as stream:
        try:
            _answering(stream, connection)
        except (EOFError, ConnectionError):
            return


if __name__ == "__main__":
    main()
