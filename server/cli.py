"""``silorec server``: the coordinator of a federation across machines."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from common.consortium.home import CoordinatorHome
    from server.deployment import Deployment

server_app = typer.Typer(help="The coordinator: ask the silos, add up their answers, make the bundle.", no_args_is_help=True)


@server_app.command("up")
def up(
    home: Annotated[Path, typer.Argument(help="The coordinator's folder, made by 'silorec consortium init'.")],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="The run's configuration, a TOML file; the roster gives the silos. Without one, runs are ordered with flwr.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: section.key=value.")] = None,
    bundle: Annotated[bool, typer.Option(help="When the run has finished, distil and sign the bundle.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print what happens as lines of JSON.")] = False,
) -> None:
    """Start and watch over Flower's SuperLink and one run, until it has finished; then make the signed bundle.

    Killed and started again, it goes on after the last round that is on the disk.

    Example: silorec server up /var/lib/silorec --config run.toml
    """
    from common.consortium.home import CoordinatorHome
    from common.interrupting import ended_by_signal
    from server.deployment import Deployment, serve
    from server.link import Link

    told = _teller(as_json)
    with ended_by_signal(), contextlib.ExitStack() as stack:
        place = CoordinatorHome(home.absolute())
        link = Link(place, told=told)
        if config is None:
            serve(link)
        run = Deployment(link, config, settings or ())
        if port := place.settings().metrics_port:
            stack.callback(_metrics(run, port))
        folder = run.run()
        if bundle:
            told(f"making the bundle of {folder.name}")
            told(f"signed bundle: {bundle_of(place, folder)}")


def bundle_of(home: CoordinatorHome, folder: Path) -> Path:
    """The bundle of a finished run, signed with the coordinator's key; made if it is not there."""
    from common.privacy.signing import load_key
    from server.bundling import make_bundle

    path = folder / f"{folder.name}.bundle"
    if not path.exists():
        make_bundle(folder, path, load_key(home.key), figures=False)
    return path


def _metrics(run: Deployment, port: int) -> Callable[[], object]:
    from common.status.prometheus import serve_metrics
    from server.monitoring import registry_of

    return serve_metrics(port, registry_of(lambda: run.order.folder, run.link.home))[1]


def _teller(as_json: bool) -> Callable[[str], None]:
    return lambda line: typer.echo(json.dumps({"message": line}) if as_json else line)
