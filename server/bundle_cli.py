"""``silorec bundle make`` and ``silorec bundle add-items``: for whoever signs bundles. Nothing is sent anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from common.privacy.signing import SigningKey
    from server.distill import Told

KEY = "bundle.key"

bundle_making_app = typer.Typer(help="Make and extend bundles.", no_args_is_help=True)

KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        help="The Ed25519 key to sign with; made, with its public half in KEY.pub, if there is none.",
        show_default=f"{KEY} beside the bundle",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@bundle_making_app.command()
def make(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where to write the bundle.", show_default="RUN/NAME.bundle")] = None,
    key: KeyFile = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change how it is distilled, for example distillation.epochs=10; repeatable."
        ),
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(
            help="One more model to learn from: a run's folder, an adapter or a checkpoint; repeatable.", show_default=False
        ),
    ] = None,
    public: Annotated[
        Path | None,
        typer.Option(help="Histories that anybody may see, one a line, ids separated by commas.", show_default=False),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Distil again, even if that is done.")] = False,
    figures: Annotated[
        bool, typer.Option("--figures/--no-figures", help="Tell in the card what was measured on users' data without noise.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Distil a run's model into a small student, if that is not done yet, and write the signed bundle. No silo's data are read.

    Example: silorec bundle make runs/ml-100k --out shop.bundle --key coordinator.key
    """
    from common.config import load
    from common.errors import ConfigError, DataError
    from common.model.finished import CONFIG
    from server.bundling import make_bundle

    if not (run / CONFIG).is_file():
        raise DataError(f"{CONFIG} is missing: not the folder of a run", run)
    if wrong := [one for one in settings or () if not one.startswith("distillation.")]:
        raise ConfigError(f"--set {wrong[0]}: of a finished run only settings of the section distillation can be changed")
    config = load(run / CONFIG, overrides=settings or ())
    path = out or run / f"{config.name}.bundle"
    signing = signing_key(key or path.parent / KEY)
    with _progress(as_json) as told:
        made = make_bundle(
            run,
            path,
            signing,
            config=config,
            teachers=teacher or (),
            public=public,
            again=again,
            figures=figures,
            told=told,
        )
    size = f"{made.bundle_bytes / 1e6:.2f} MB, its model {made.model_bytes / 1e6:.2f} MB"
    facts = {
        "bundle": str(path),
        "digest": made.digest,
        "signer": made.signer,
        "bytes": made.bundle_bytes,
        "model_bytes": made.model_bytes,
        "card": made.card.model_dump(mode="json"),
    }
    _tell(facts, f"{path}: {size}\n  digest {made.digest}\n  signed by {made.signer}", as_json)


@bundle_making_app.command(name="add-items")
def add(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="NAME.bundle, or a folder with its files.", show_default=False)
    ],
    items: Annotated[
        Path,
        typer.Argument(metavar="ITEMS", help="CSV or Parquet: id, title, categories, year, description.", show_default=False),
    ],
    out: Annotated[Path | None, typer.Option(help="Where to write it.", show_default="BUNDLE, which is replaced")] = None,
    key: KeyFile = None,
    signer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Who may have signed BUNDLE: a public key or a file with keys; repeatable.",
            show_default="your key",
        ),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Preset or folder of the text encoder.", show_default="what the card names")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OURS=THEIRS", help="Name of a column in the file, for example item=sku; repeatable.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add items to a bundle without training: vectors from their texts, the rest predicted from items that the model knows.

    Example: silorec bundle add-items shop.bundle new.csv --key coordinator.key
    """
    from common.bundle.cli import trusted_signers
    from common.bundle.files import read_bundle
    from common.data.readers.columns import ColumnMapping
    from common.data.readers.reading import Reading
    from common.data.readers.table_items import read_items
    from common.errors import DataError
    from server.adding import add_items

    if not items.is_file():
        raise DataError("no such file", items)
    pairs = {"item": "id"} if "id" in column_names(items) else {}
    pairs |= dict(one.partition("=")[::2] for one in column or ())
    new = read_items(items, ColumnMapping(pairs), Reading())
    target = out or bundle
    signing = signing_key(key or target.parent / KEY)
    opened = read_bundle(bundle, {signing.public_key, *trusted_signers(signer or [])})
    digest = add_items(opened, new, target, signing, encoder=encoder)
    facts = {"bundle": str(target), "digest": digest, "signer": signing.public_key, "added": len(new)}
    facts["items"] = len(opened.items) + len(new)
    _tell(facts, f"{target}: {len(new)} items more, {facts['items']:,} in all\n  digest {digest}", as_json)


def column_names(items: Path) -> list[str]:
    """Of a table of items, Parquet or delimited text."""
    from common.data.readers.delimited import read_header
    from common.data.readers.reading import Reading
    from common.data.readers.table_items import separator_of
    from common.errors import DataError

    if items.suffix != ".parquet":
        return list(read_header(items, separator_of(items), Reading()))
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return list(parquet.read_schema(items).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"not a Parquet file: {error}", items) from None


def signing_key(path: Path) -> SigningKey:
    """The key at ``path``, made now if there is none, with its public half beside it; a person is told."""
    from common.durable import write_durably
    from common.privacy.signing import create_key, load_key

    if path.exists():
        return load_key(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = create_key(path)
    public = path.with_name(path.name + ".pub")
    write_durably(public, (made.public_key + "\n").encode())
    typer.echo(f"made a signing key: {path} (keep a copy, show it to nobody); give the silos {public}", err=True)
    return made


@contextmanager
def _progress(silent: bool) -> Iterator[Told | None]:
    """A bar on standard error for each stage."""
    if silent:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def told(stage: str, done: int, total: int, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note="")
            bars.update(tasks[stage], completed=done, note=note)

        yield told


def _tell(facts: dict[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else text)
