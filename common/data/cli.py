"""``silorec data``: look at a data set before anything is trained on it. Nothing is sent anywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import ConfigError

data_app = typer.Typer(help="Look at data sets: detect the format, count, and see what would be dropped.", no_args_is_help=True)


class Policy(StrEnum):
    """What to do with a malformed row."""

    strict = "strict"
    skip = "skip"


class Deal(StrEnum):
    """What decides a user's silo."""

    taste = "taste"
    size = "size"
    catalogue = "catalogue"


@data_app.callback()
def _data() -> None:
    """Look at data sets: detect the format, count, and see what would be dropped."""


@data_app.command()
def inspect(
    source: Annotated[str, typer.Argument(help="File, folder, or the URL of a database.", show_default=False)],
    format: Annotated[str, typer.Option(help="Name of a format (see 'silorec data formats'), or auto.")] = "auto",
    malformed: Annotated[
        Policy, typer.Option(help="strict: the first malformed row is an error; skip: leave such rows out and count them.")
    ] = Policy.strict,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="For CSV, Parquet, RecBole and databases: our name = the source's, such as user=uid; repeatable. Also "
            "items=FILE, time_unit=ms, category_separator=','. time= (empty) takes the order of the file.",
            show_default=False,
        ),
    ] = None,
    query: Annotated[
        str | None, typer.Option(help="For a database: SELECT that gives one row an interaction.", show_default=False)
    ] = None,
    items_query: Annotated[
        str | None, typer.Option(help="For a database: SELECT that gives the items.", show_default=False)
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="For a database: file that holds the password, mode 0600.", show_default=False)
    ] = None,
    min_value: Annotated[
        float | None, typer.Option(help="Drop interactions with a lower value (rating).", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Print format, counts, time span, density, and what was dropped and why.

    A database is read only, and its password is better kept in a file or in an environment variable (${NAME} in the URL).

    Example: silorec data inspect shop.csv --column user=customer --column time=bought_at --malformed skip

    Example: silorec data inspect sqlite:///shop.db --query 'SELECT customer AS user, sku AS item, bought_at AS time FROM sales'
    """
    from common.data.load import detect_format, read_dataset
    from common.data.own import OwnSource
    from common.data.summary import summary

    columns = _columns(column or [])
    own = OwnSource.of({"data": source, "query": query, "items_query": items_query, "password_file": password_file})
    with _progress_bar(quiet=as_json) as progress:
        if own.path is None:
            chosen = "sql"
            progress.add_task(f"reading {own.place}", total=None)
            own = replace(own, columns=columns, format=format)
            dataset = own.read(malformed=malformed.value, min_value=min_value, ordered=False)
        else:
            chosen = detect_format(own.path) if format == "auto" else format
            task = progress.add_task(f"reading {own.path.name}", total=None)
            dataset = read_dataset(
                own.path,
                format=chosen,
                columns=columns,
                malformed=malformed.value,
                min_value=min_value,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        figures = {"path": own.place, "format": chosen, **summary(dataset)}
    if as_json:
        typer.echo(json.dumps(figures, indent=2, ensure_ascii=False))
    else:
        _print(figures)


@data_app.command()
def formats(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False) -> None:
    """List the formats that can be read and how their files look.

    Example: silorec data formats
    """
    from rich.console import Console
    from rich.table import Table

    from common.data.load import formats as known

    if as_json:
        typer.echo(json.dumps(known(), indent=2))
        return
    table = Table("format", "files")
    for name, about in known().items():
        table.add_row(name, about.replace("[", r"\["))
    Console().print(table)


@data_app.command()
def deal(
    source: Annotated[str, typer.Argument(help="A data set that can be fetched, a file or a folder.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder for the files.", show_default=False)],
    silos: Annotated[int, typer.Option(min=1, help="How many silos.")] = 3,
    by: Annotated[
        Deal, typer.Option(help="What decides a user's silo; catalogue also gives each silo items of its own.")
    ] = Deal.taste,
    seed: Annotated[int, typer.Option(min=0, help="Of the dealing.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Deal a data set out to silos, as files to try a deployment with: one CSV a silo, and the public catalogue.

    Example: silorec data deal ml-100k trial --silos 3
    """
    from common.assets import ASSETS, asset_path
    from common.config import PartitionConfig
    from common.data.dealing import CATALOGUE
    from common.data.dealing import deal as dealt
    from common.data.load import read_dataset

    dataset = read_dataset(asset_path(source) if source in ASSETS else Path(source))
    found = dealt(dataset, PartitionConfig(by=by.value, silos=silos), out, seed)
    if as_json:
        rows = [{"silo": one.name, "path": str(one.path), "declared_users": one.declared_users} for one in found]
        typer.echo(json.dumps({"catalogue": str(out / CATALOGUE), "silos": rows}, indent=2))
        return
    typer.echo(f"{out / CATALOGUE}: the public catalogue, {len(dataset.catalogue)} items")
    for one in found:
        typer.echo(f"{one.path}: to declare {one.declared_users} users")


@data_app.command()
def catalogue(
    source: Annotated[str, typer.Argument(help="A data set that can be fetched, a file or a folder.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="File to write; its name ends with catalogue.jsonl.", show_default=False)],
    format: Annotated[str, typer.Option(help="Name of a format (see 'silorec data formats'), or auto.")] = "auto",
) -> None:
    """Write the public catalogue of a data set alone: ids, titles, categories and fields of its items, and nothing of users.

    Example: silorec data catalogue shop.csv catalogue.jsonl
    """
    from common.assets import ASSETS, asset_path
    from common.data.catalogue_file import write_catalogue
    from common.data.load import read_dataset
    from common.data.population import CATALOGUE_FILE

    if not out.name.endswith(CATALOGUE_FILE):
        raise ConfigError(f"{out}: the name of a catalogue ends with {CATALOGUE_FILE}, by which runs know it")
    dataset = read_dataset(asset_path(source) if source in ASSETS else Path(source), format=format)
    write_catalogue(out, dataset.catalogue)
    typer.echo(f"{out}: {len(dataset.catalogue)} items")


def _columns(options: list[str]) -> dict[str, str]:
    columns = {}
    for option in options:
        ours, equals, theirs = option.partition("=")
        if not equals or not ours.strip():
            raise ConfigError(f"--column {option!r}: expected OURS=THEIRS, for example user=uid")
        columns[ours.strip()] = theirs
    return columns


def _progress_bar(*, quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=quiet,
    )


def _print(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(title=escape(f"{figures['name']} ({figures['format']})"), show_header=False)
    quantiles = figures["interactions_per_user"]
    rows = {
        "users": f"{figures['users']:,}",
        "items": f"{figures['items']:,}, of which {figures['items_touched']:,} touched",
        "interactions": f"{figures['interactions']:,}",
        "density": f"{figures['density']:.4%} of user-item pairs",
        "time span": f"{figures['first']} to {figures['last']} UTC ({figures['days']:,.1f} days)",
        "per user": ", ".join(f"{name} {value:g}" for name, value in quantiles.items()),
        "values": "none" if figures["values"] is None else "{:g} to {:g}".format(*figures["values"]),
        "items with category": f"{figures['share_of_items_with_category']:.1%}",
        "interactions with text": f"{figures['share_with_text']:.1%}",
        "users with profile": f"{figures['share_of_users_with_profile']:.1%}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    if not figures["dropped"]:
        console.print("Nothing was dropped.")
        return
    lost = Table("dropped", "rows", "for example")
    for reason, found in figures["dropped"].items():
        lost.add_row(escape(reason), f"{found['count']:,}", escape(found["example"]))
    console.print(lost)
