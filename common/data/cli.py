"""``silorec data``: look at a data set before anything is trained on it. Nothing is sent anywhere."""

from __future__ import annotations

import json
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


@data_app.callback()
def _data() -> None:
    """Look at data sets: detect the format, count, and see what would be dropped."""


@data_app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="File or folder.", show_default=False)],
    format: Annotated[str, typer.Option(help="Name of a format (see 'silorec data formats'), or auto.")] = "auto",
    malformed: Annotated[
        Policy, typer.Option(help="strict: the first malformed row is an error; skip: leave such rows out and count them.")
    ] = Policy.strict,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="For CSV, Parquet and RecBole: our name = the file's, such as user=uid; repeatable. Also items=FILE, "
            "time_unit=ms, category_separator=','. time= (empty) takes the order of the file.",
            show_default=False,
        ),
    ] = None,
    min_value: Annotated[
        float | None, typer.Option(help="Drop interactions with a lower value (rating).", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Print format, counts, time span, density, and what was dropped and why.

    Example: silorec data inspect shop.csv --column user=customer --column time=bought_at --malformed skip
    """
    from common.data.load import detect_format, read_dataset
    from common.data.summary import summary

    columns = _columns(column or [])
    chosen = detect_format(path) if format == "auto" else format
    with _progress_bar(quiet=as_json) as progress:
        task = progress.add_task(f"reading {path.name}", total=None)
        dataset = read_dataset(
            path,
            format=chosen,
            columns=columns,
            malformed=malformed.value,
            min_value=min_value,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
        figures = {"path": str(path), "format": chosen, **summary(dataset)}
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
