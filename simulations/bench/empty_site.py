"""A web service that says "ok" to whatever comes: what a request costs by itself, with TLS and without.

It runs in uvicorn, as Flower's SuperLink does. The file is run, reads its certificate and key as JSON (``[]`` for none) and
prints its port.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any


async def app(scope: Any, receive: Any, send: Any) -> None:
    """ASGI."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def main() -> None:
    import uvicorn

    pair: list[str] = json.loads(sys.stdin.readline())
    tls: dict[str, Any] = {"ssl_certfile": pair[0], "ssl_keyfile": pair[1]} if pair else {}
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, **tls)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        sys.stdout.write(json.dumps({"port": listening.getsockname()[1]}) + "\n")
        sys.stdout.flush()
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
