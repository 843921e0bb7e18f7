"""A load generator for unary gRPC calls that costs little, so that two cores are the server's and not its own.

A gRPC client in Python spends as much processor time on a call as the service does. This one speaks just enough HTTP/2 (RFC 9113)
for calls of one message whose headers never change: a call is one write of bytes made beforehand. It counts a call as answered
when a message of exactly the expected length came before the stream's end, and it checks no more than that. It is a process of
its own: the file is run, reads :class:`Load` as JSON and prints :class:`Outcome` as JSON.

Two ways to ask. *Closed*: ``streams`` calls are always under way, which finds saturation. *Open*: calls start at the times of a
Poisson process whatever the server does, and a call's time counts from when it should have started, so that a server that falls
behind cannot hide it (coordinated omission).
"""

from __future__ import annotations

import json
import selectors
import socket
import ssl
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW: Final = 65_535
LARGE_WINDOW: Final = 2**31 - 1


@dataclass(frozen=True)
class Load:
    """What to ask, how often and where.

    Parameters
    ----------
    port:
        On 127.0.0.1.
    method:
        Full name: ``/package.Service/Method``.
    questions:
        Messages, hexadecimal; sent in turn.
    answer_bytes:
        Length of the one message that answers each.
    seconds, warm_up:
        How long to count, and how long to ask before that.
    streams:
        Calls under way, at least 1; unused when ``rate`` is given.
    rate:
        Calls a second of the Poisson process; 0 asks in a closed loop.
    connections:
        Over how many connections the calls are spread.
    certificates:
        Paths of the client's certificate chain, its key and the server's authority; empty for a channel without TLS.
    seed:
        Of the arrival times.
    """

    port: int
    method: str
    questions: tuple[str, ...]
    answer_bytes: int
    seconds: float
    warm_up: float = 0.5
    streams: int = 1
    rate: float = 0.0
    connections: int = 1
    certificates: tuple[str, ...] = ()
    seed: int = 0


@dataclass
class Outcome:
    """What came of it; ``latencies`` in seconds, of the calls that were answered inside the counted time."""

    answered: int = 0
    failed: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, section 4.1."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _literal(name: bytes | int, value: bytes) -> bytes:
    """A header field that enters no table (RFC 7541, section 6.2.2), its name a string or a place in the static table."""
    if isinstance(name, int):
        head = bytes((name,)) if name < 15 else bytes((15, name - 15))
    else:
        head = b"\0" + bytes((len(name),)) + name
    return head + bytes((len(value),)) + value


def header_block(method: str, port: int, secure: bool) -> bytes:
    """The headers of a call, the same for all."""
    return (
        b"\x83"  # :method POST
        + (b"\x87" if secure else b"\x86")  # :scheme
        + _literal(4, method.encode())
        + _literal(1, f"localhost:{port}".encode())
        + _literal(31, b"application/grpc")
        + _literal(b"te", b"trailers")
        + _literal(58, b"grpc-c/1.0 (linux; chttp2)")
        + _literal(b"grpc-timeout", b"60S")
    )


class _Connection:
    """One connection: what is to be written, what was read, the streams under way."""

    def __init__(self, load: Load) -> None:
        raw = socket.create_connection(("127.0.0.1", load.port), timeout=10)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket: socket.socket = raw
        if load.certificates:
            chain, key, authority = load.certificates
            context = ssl.create_default_context(cafile=authority)
            context.set_alpn_protocols(["h2"])
            context.load_cert_chain(chain, key)
            self.socket = context.wrap_socket(raw, server_hostname="localhost")
        self.socket.setblocking(False)
        settings = (4).to_bytes(2, "big") + LARGE_WINDOW.to_bytes(4, "big")  # SETTINGS_INITIAL_WINDOW_SIZE
        more = (LARGE_WINDOW - INITIAL_WINDOW).to_bytes(4, "big")
        self.out = bytearray(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, more)
        )
        self.unread = bytearray()
        self.window = INITIAL_WINDOW
        self.next_stream = 1
        self.headers = header_block(load.method, load.port, bool(load.certificates))
        self.began: dict[int, float] = {}
        self.received: dict[int, int] = {}
        self.waiting: deque[tuple[float, bytes]] = deque()

    def ask(self, intended: float, message: bytes) -> None:
        self.waiting.append((intended, message))
        self._start_waiting()

    def _start_waiting(self) -> None:
        while self.waiting and self.window >= len(self.waiting[0][1]):
            intended, message = self.waiting.popleft()
            stream, self.next_stream = self.next_stream, self.next_stream + 2
            self.began[stream] = intended
            self.received[stream] = 0
            self.window -= len(message)
            self.out += frame(HEADERS, END_HEADERS, stream, self.headers) + frame(DATA, END_STREAM, stream, message)

    def write(self) -> None:
        while self.out:
            try:
                sent = self.socket.send(self.out)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            del self.out[:sent]

    def read(self) -> list[tuple[float, int]]:
        """When each stream that has now ended should have begun, and how many bytes of messages it got."""
        while True:
            try:
                chunk = self.socket.recv(1 << 16)
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            if not chunk:
                raise ConnectionError("the server closed the connection")
            self.unread += chunk
        return self._frames()

    def _frames(self) -> list[tuple[float, int]]:
        ended, at, data = [], 0, self.unread
        while len(data) - at >= 9:
            length = int.from_bytes(data[at : at + 3], "big")
            if len(data) - at < 9 + length:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            payload = slice(at + 9, at + 9 + length)
            at += 9 + length
            if stream and stream not in self.began:
                continue  # ended already: a reset may follow the end
            if kind == DATA:
                self.received[stream] += length
            elif kind == SETTINGS and not flags & ACK:
                self.out += frame(SETTINGS, ACK, 0, b"")
            elif kind == PING and not flags & ACK:
                self.out += frame(PING, ACK, 0, bytes(data[payload]))
            elif kind == WINDOW_UPDATE and stream == 0:
                self.window += int.from_bytes(data[payload], "big")
                self._start_waiting()
            elif kind == GOAWAY:
                raise ConnectionError("the server ends the connection")
            if (kind in (DATA, HEADERS) and flags & END_STREAM) or kind == RESET:
                ended.append((self.began.pop(stream), self.received.pop(stream)))
        del data[:at]
        return ended


def generate(load: Load) -> Outcome:
    """Ask as ``load`` says.

    Raises
    ------
    OSError
        If the server cannot be reached or ends a connection.
    """
    questions = [b"\0" + (len(text) // 2).to_bytes(4, "big") + bytes.fromhex(text) for text in load.questions]
    expected = 5 + load.answer_bytes
    connections = [_Connection(load) for _ in range(load.connections)]
    selector = selectors.SelectSelector()  # to the microsecond; epoll waits whole milliseconds
    for connection in connections:
        connection.write()
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    outcome, asked = Outcome(), 0
    start = time.perf_counter()
    counted_from, end = start + load.warm_up, start + load.warm_up + load.seconds
    arrivals = iter(_arrivals(load, start)) if load.rate else iter(())
    next_arrival = next(arrivals, None)
    if not load.rate:
        for place in range(load.streams):
            connections[place % load.connections].ask(start, questions[place % len(questions)])
        asked = load.streams
    processor = 0.0
    counting = False
    while True:
        now = time.perf_counter()
        if not counting and now >= counted_from:
            counting, processor = True, time.process_time()
        while next_arrival is not None and next_arrival <= now:
            connections[asked % load.connections].ask(next_arrival, questions[asked % len(questions)])
            asked += 1
            next_arrival = next(arrivals, None)
        for connection in connections:
            connection.write()
        if now >= end and (not load.rate or not any(c.began or c.waiting for c in connections) or now >= end + 30.0):
            break
        pause = 0.05 if next_arrival is None else max(0.0, min(0.05, next_arrival - time.perf_counter()))
        for key, _ in selector.select(pause):
            connection = key.data
            ended = connection.read()
            now = time.perf_counter()
            for began, received in ended:
                if not load.rate:
                    connection.ask(now, questions[asked % len(questions)])
                    asked += 1
                if (began if load.rate else now) < counted_from or (not load.rate and now > end):
                    continue
                if received == expected:
                    outcome.answered += 1
                    outcome.latencies.append(now - began)
                else:
                    outcome.failed += 1
            connection.write()
    outcome.seconds = load.seconds
    outcome.processor_seconds = time.process_time() - processor
    if load.rate:  # whatever never came back
        outcome.failed += sum(len(c.began) + len(c.waiting) for c in connections)
    for connection in connections:
        connection.socket.close()
    return outcome


def _arrivals(load: Load, start: float) -> Any:
    """Times of a Poisson process until the end of the counted time."""
    random = np.random.default_rng(load.seed)
    at, end = start, start + load.warm_up + load.seconds
    while True:
        for gap in random.exponential(1.0 / load.rate, 1024):
            at += gap
            if at >= end:
                return
            yield at


def main() -> None:
    """Load as JSON on standard input, outcome as JSON on standard output."""
    raw: dict[str, Any] = json.load(sys.stdin)
    load = Load(**(raw | {key: tuple(raw[key]) for key in ("questions", "certificates")}))
    json.dump(asdict(generate(load)), sys.stdout)


if __name__ == "__main__":
    main()
