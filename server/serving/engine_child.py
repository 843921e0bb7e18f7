"""The process in which an engine computes; :mod:`server.serving.engine_process` starts it and speaks with it.

A message is its length (eight bytes, little-endian) and so many bytes. First comes what scores are made of and how to search,
pickled by the process that started this one. Those of a question are int64: ``k``, the number of histories, the length of each,
then all positions. Those of an answer are int32 positions and float32 scores, ``(B, k)`` each, or the name of what failed.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import BinaryIO, Final

import numpy as np

from common.engine.retrieval import Retrieval
from common.errors import SilorecError

READY: Final = b"ready"
LENGTH: Final = struct.Struct("<Q")
LONGEST_NAME: Final = 200

NICE: Final = 5
"""By how much the engine gives way to what speaks gRPC. Where both want a processor, questions are taken in first, so that there
are more of them in the next batch, which costs less each.
"""


def message(content: bytes) -> bytes:
    """With its length before it."""
    return LENGTH.pack(len(content)) + content


def received(stream: BinaryIO) -> bytes:
    """One message; :class:`EOFError` where there is none."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    (length,) = LENGTH.unpack(head)
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return content


def _answering(stream: BinaryIO, connection: socket.socket) -> None:
    """The child: take a bundle, then answer until the other side is gone."""
    scoring, options = pickle.loads(received(stream))  # noqa: S301  from the process that started this one
    try:
        retrieval = Retrieval(scoring, **options)
        retrieval.try_out()
    except SilorecError as error:
        connection.sendall(message(str(error).encode()))
        return
    gc.collect()
    gc.freeze()
    connection.sendall(message(READY))
    while True:
        numbers = np.frombuffer(received(stream), dtype="<i8").tolist()
        k, count = numbers[:2]
        try:
            positions, scores = retrieval.top(_histories(numbers[2 : 2 + count], numbers[2 + count :]), k)
        except Exception as error:  # what it says may quote a question, so only its kind is told
            connection.sendall(message(type(error).__name__.encode()[:LONGEST_NAME]))
        else:
            answer = (positions.astype("<i4", copy=False).tobytes(), scores.astype("<f4", copy=False).tobytes())
            connection.sendall(message(b"".join(answer)))


def _histories(lengths: Sequence[int], positions: Sequence[int]) -> list[Sequence[int]]:
    histories, at = [], 0
    for length in lengths:
        histories.append(positions[at : at + length])
        at += length
    return histories


def main() -> None:
    """``python -m server.serving.engine_child DESCRIPTOR``."""
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
