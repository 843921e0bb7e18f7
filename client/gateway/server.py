"""The gateway's process: one socket, uvicorn, and an end that lets requests finish."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

import uvicorn

from common.errors import ServingError

GRACE_SECONDS: Final = 10
"""That requests in hand have when the process is told to end."""

CONNECTIONS: Final = 512
"""Open at once; further ones are answered with 503."""


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at ``host`` and ``port`` (0: any that is free).

    Raises
    ------
    ServingError
        If there is no such host here, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ServingError(f"--host {host}: this is no address of this machine ({error.strerror})") from None
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(socket.SOMAXCONN)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise ServingError(f"port {port} of {host} is in use; choose another one with --port") from None
        raise ServingError(f"{host} port {port}: cannot listen there ({error.strerror})") from None
    return found


def address_of(listener: socket.socket) -> str:
    """``http://127.0.0.1:8080``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def hosts_for(host: str, more: list[str]) -> tuple[str, ...]:
    """Names under which the gateway may be asked: this machine's own, the address it listens at, and ``more``.

    The addresses that mean all interfaces are no names.
    """
    own = ["127.0.0.1", "localhost", "[::1]", *more]
    try:
        given = ipaddress.ip_address(host)
        if not given.is_unspecified:
            own.append(f"[{host}]" if given.version == 6 else host)
    except ValueError:
        own.append(host)
    return tuple(dict.fromkeys(own))


class Server(uvicorn.Server):
    """uvicorn, which says when it is ready and ends without an exception when it is asked to end.

    There is no access log, and addresses that proxies tell of are not looked at: the gateway does not know who asks.
    """

    def __init__(self, app: Any, ready: Callable[[], None] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="error",  # a warning for every malformed request would fill the log
                access_log=False,
                proxy_headers=False,
                server_header=False,
                ws="none",
                limit_concurrency=CONNECTIONS,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._ready is not None:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the server; unlike uvicorn's own, they are not raised again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, frame: FrameType | None) -> None:
            self.handle_exit(number, frame)

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
