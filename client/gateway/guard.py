"""What every request passes before it is looked at, and every answer before it leaves.

Names of hosts, sizes and types of bodies; headers that tell browsers to keep to this page; one count in the metrics. A fault is
logged by its kind and place alone: the text of an exception may quote a request.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Collection
from http import HTTPStatus
from typing import Any, Final

from client.gateway.metrics import Metrics
from client.gateway.models import BODY_MOST
from client.gateway.problems import CONTENT_TYPE, Refused

BODY_SECONDS: Final = 20.0
"""Within which a body must have come."""

OPEN_TO_ALL_HOSTS: Final = frozenset({"/healthz", "/readyz"})
"""Asked by orchestrators under the address of a machine; they tell nothing."""

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), browsing-topics=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_SECURITY = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]

log = logging.getLogger(__name__)


class Guard:
    """ASGI middleware around the whole app.

    Parameters
    ----------
    hosts:
        Names under which the gateway may be asked, without ports; a page of somebody else's that makes its own name point here
        (DNS rebinding) is refused by this.
    """

    def __init__(self, app: Any, *, hosts: Collection[str], metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self.hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def sending(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_SECURITY]
            await send(message)

        try:
            body = await self._admitted(scope, receive)
            await self.app(scope, body, sending)
        except Refused as refused:
            await _refuse(refused, sending)
        except Exception as fault:
            place = traceback.extract_tb(fault.__traceback__)[-1]
            log.error(
                "a fault while answering %s: %s at %s:%s", _route(scope), type(fault).__name__, place.filename, place.lineno
            )
            if status:
                raise _Broken from None  # half an answer has left: the connection is cut
            await _refuse(Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "the gateway has a fault; its log says where"), sending)
        finally:
            if status:
                self.metrics.answered(_route(scope), scope["method"], status, time.perf_counter() - started)

    async def _admitted(self, scope: dict[str, Any], receive: Any) -> Any:
        """What the app reads the body from, once all of it has come and is found to be allowed."""
        headers = dict(scope["headers"])
        if scope["path"] not in OPEN_TO_ALL_HOSTS and _host(headers.get(b"host", b"")) not in self.hosts:
            raise Refused(
                HTTPStatus.MISDIRECTED_REQUEST,
                "the gateway does not go by this name; its operator can add it with --allow-host",
            )
        if b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0":
            return receive
        too_large = Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {BODY_MOST} bytes", headers={"Connection": "close"}
        )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > BODY_MOST:
            raise too_large
        body = await _read(receive, too_large)
        if body and headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be JSON and say so: Content-Type: application/json")
        return _Replay(body, receive)


class _Broken(Exception):
    """Half an answer has left."""


class _Replay:
    """Gives a body that was read already, then whatever else comes."""

    def __init__(self, body: bytes, receive: Any) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> dict[str, Any]:
        if self._body is None:
            message: dict[str, Any] = await self._receive()
            return message
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _read(receive: Any, too_large: Refused) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            more = True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    break  # the client has gone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > BODY_MOST:
                    raise too_large
                more = message.get("more_body", False)
    except TimeoutError:
        raise Refused(
            HTTPStatus.REQUEST_TIMEOUT, f"the body did not come within {BODY_SECONDS:.0f} s", headers={"Connection": "close"}
        ) from None
    return b"".join(parts)


async def _refuse(refused: Refused, send: Any) -> None:
    body = refused.body
    headers = {"content-type": CONTENT_TYPE, "content-length": str(len(body)), **refused.headers}
    start = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.problem.status, "headers": start})
    await send({"type": "http.response.body", "body": body})


def _host(header: bytes) -> str:
    """``[::1]:8080`` and ``localhost:8080`` without their ports, in lower case."""
    name = header.decode("latin-1").strip().lower()
    if name.startswith("["):
        return name[: name.find("]") + 1]
    return name.rsplit(":", 1)[0]


def _route(scope: dict[str, Any]) -> str | None:
    """The route as it is written in the code, never the path that was asked for."""
    return getattr(scope.get("route"), "path", None)
