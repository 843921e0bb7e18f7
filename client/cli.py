"""``silorec client``: a silo in a federation across machines."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

client_app = typer.Typer(help="A silo in a federation: answer the coordinator from this machine.", no_args_is_help=True)

Home = Annotated[Path, typer.Argument(help="The silo's folder, made by 'silorec consortium join'.")]


@client_app.command("up")
def up(
    home: Home,
    as_json: Annotated[bool, typer.Option("--json", help="Print what happens as lines of JSON.")] = False,
) -> None:
    """Start and watch over this silo: Flower's SuperNode, the process that computes answers, and the roster.

    It runs until Ctrl-C or SIGTERM, or until the silo's place in the roster ends.

    Example: silorec client up /var/lib/silorec
    """
    from client.deployment import SiloService
    from client.status import SiloStatus
    from common.consortium.home import SiloHome
    from common.interrupting import ended_by_signal

    place = SiloHome(home.absolute())
    service = SiloService(place, told=teller(as_json))
    with ended_by_signal(), SiloStatus(place), contextlib.ExitStack() as stack:
        if service.settings.metrics_port:
            from client.monitoring import registry_of
            from common.status.prometheus import serve_metrics

            _, close = serve_metrics(service.settings.metrics_port, registry_of(place, service.settings.name))
            stack.callback(close)
        service.run()


@client_app.command("executor")
def executor(
    home: Home,
    address: Annotated[str, typer.Option(help="Of the SuperNode's Runtime API, host:port on this machine.")] = "127.0.0.1:9094",
    secret: Annotated[Path, typer.Option(help="The file that the SuperNode was given as --superexec-auth-secret-file.")] = Path(
        "executor.secret"
    ),
) -> None:
    """Compute the answers for a SuperNode that you started yourself, with --isolation process.

    Example: silorec client executor /var/lib/silorec --secret executor.secret
    """
    from client.executor import main

    main(["--address", address, "--secret", str(secret), "--home", str(home)])


def teller(as_json: bool) -> Any:
    """Prints lines for the operator as they come."""

    def told(line: str) -> None:
        typer.echo(json.dumps({"message": line}) if as_json else line)

    return told
