"""``silorec status`` and ``silorec tensorboard``: what a run, a coordinator or a silo does. Nothing is sent anywhere."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

status_app = typer.Typer(add_completion=False)

EVERY = 1.0
"""Seconds between two looks of ``--watch``."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines; with --watch, one object per line.")]


@status_app.command("status")
def status(
    path: Annotated[Path, typer.Argument(help="A run's folder, a coordinator's home or a silo's home.", show_default=False)],
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second until Ctrl-C.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Of a run: also write a page with rounds, seconds and who took part.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show rounds, silos, seconds, budgets and what is wrong, from the files in a folder.

    The status is 1 if the run has failed, if a process that should be there gives no sign of life, or if something has expired.

    Example: silorec status /var/lib/silorec/runs/spring --watch
    """
    from common.status.look import look_at

    if html is not None:
        from common.status.page import write_page

        typer.echo(f"page: {write_page(path, html)}", err=True)
    if watch:
        _watch(path, as_json)
        return
    seen = look_at(path)
    if as_json:
        typer.echo(json.dumps(seen.to_dict(), indent=2))
    else:
        from rich.console import Console

        from common.status.tables import picture

        Console(highlight=False).print(picture(seen))
    if seen.troubles:
        raise typer.Exit(1)


def _watch(path: Path, as_json: bool) -> None:
    """Ends with Ctrl-C, as asked, so with status 0, or 1 as without ``--watch``."""
    from rich.console import Console
    from rich.live import Live

    from common.status.look import look_at
    from common.status.tables import picture

    seen = look_at(path)
    try:
        if as_json:
            while True:
                typer.echo(json.dumps(seen.to_dict()))
                time.sleep(EVERY)
                seen = look_at(path)
        with Live(picture(seen), console=Console(highlight=False), auto_refresh=False) as live:
            while True:
                time.sleep(EVERY)
                seen = look_at(path)
                live.update(picture(seen), refresh=True)
    except KeyboardInterrupt:
        if seen.troubles:
            raise typer.Exit(1) from None


@status_app.command("tensorboard")
def tensorboard(
    run: Annotated[Path, typer.Argument(help="Folder of a simulated or a deployed run.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where to.", show_default="RUN/tensorboard")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Write a run's figures over rounds as TensorBoard scalars.

    Example: silorec tensorboard runs/ml-100k
    """
    from common.status.tensorboard import export

    folder, count = export(run, out)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "scalars": count}))
    else:
        typer.echo(f"{count} scalars; look at them with: tensorboard --logdir {folder}")
