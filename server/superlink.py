"""Flower's SuperLink, behind the consortium's gate: ``python -m server.superlink HOME`` and then ``flower-superlink``'s options.

This is Flower's own program: its command line, its application, its state. What is added is :class:`server.gate.Gate` before it.
The options that a deployment needs (TLS, node authentication, the state's file) follow from the coordinator's home; whoever gives
them again overrides them. Flower has no place for such a gate in its command line, so this file follows ``flower-superlink`` of
Flower 1.41 and is to be compared with it when Flower is replaced by another version.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from common.consortium.home import CoordinatorHome
from server.gate import Gate, RosterOnDisk


def main(arguments: Sequence[str]) -> None:
    """Serve until told to end; ``arguments`` are the home and options of ``flower-superlink``."""
    import importlib

    import uvicorn
    from flwr.superlink.main import create_app

    from common.logs import configure

    home = CoordinatorHome(Path(arguments[0]))
    sys.argv = ["flower-superlink", *options_of(home), *arguments[1:]]
    configure()
    flower = importlib.import_module("flwr.superlink.cli.flower_superlink")  # the package has a function of the same name
    settings = flower._parse_superlink_lifespan_config()
    app = create_app(settings, flower.SuperLinkLifespan)
    app.add_middleware(Gate, roster=RosterOnDisk(home))
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        access_log=logging.getLogger().isEnabledFor(logging.DEBUG),
        log_config=None,
        server_header=False,
        workers=1,
    )


def options_of(home: CoordinatorHome) -> list[str]:
    """Of ``flower-superlink``: what a coordinator's home says of TLS, node authentication, state, and its address."""
    host, _, port = home.settings().listen.rpartition(":")
    return [
        *("--host", host.strip("[]")),
        *("--port", port),
        *("--ssl-certfile", str(home.tls_certificate)),
        *("--ssl-keyfile", str(home.tls_key)),
        *("--ssl-ca-certfile", str(home.authority)),
        "--enable-supernode-auth",
        *("--database", str(home.database)),
        *("--isolation", "subprocess"),
        "--disable-runtime-dependency-installation",
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
