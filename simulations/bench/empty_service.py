"""A gRPC service that does nothing: what a call of a question's and an answer's size costs by itself.

It has the options and the credentials of the real service and hands back the same bytes to whatever comes.
The file is run, reads :class:`Empty` as JSON and prints its port.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SERVICE: Final = "silorec.bench.Empty"
METHOD: Final = f"/{SERVICE}/Call"


@dataclass(frozen=True)
class Empty:
    """``answer_bytes`` of an answer; ``certificates``: the service's certificate, its key and the clients' authority, or none."""

    answer_bytes: int
    certificates: tuple[str, ...] = ()


async def serve(empty: Empty) -> None:
    """Until the process ends."""
    import grpc

    from server.serving.limits import Limits
    from server.serving.running import options
    from server.serving.tls import server_credentials

    answer = bytes(empty.answer_bytes)

    async def call(raw: bytes, context: Any) -> bytes:
        return answer

    server = grpc.aio.server(options=options(Limits()))
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(call)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if empty.certificates:
        port = server.add_secure_port("127.0.0.1:0", server_credentials(*map(Path, empty.certificates)))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(json.dumps({"port": port}) + "\n")
    sys.stdout.flush()
    await server.wait_for_termination()


def main() -> None:
    from server.serving.running import new_event_loop

    raw: dict[str, Any] = json.loads(sys.stdin.readline())
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(Empty(raw["answer_bytes"], tuple(raw["certificates"]))))


if __name__ == "__main__":
    main()
