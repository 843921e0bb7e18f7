"""``silorec audit``: check what a federation claims of privacy, from ledgers and transcript, without trusting anybody."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from common.privacy.audit.verify import Verified

audit_app = typer.Typer(help="Check the privacy that a federation claims, without trusting anybody.", no_args_is_help=True)

Where = Annotated[
    Path, typer.Argument(metavar="PATH", help="Folder of a run, folder of exported ledgers, or one ledger.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


@audit_app.command()
def verify(path: Where, as_json: AsJson = False) -> None:
    """Check ledgers by themselves, against the transcript, and against the configuration; exits 1 when a check does not hold.

    No key is needed, and nothing is changed.

    Example: silorec audit verify runs/ml-100k
    """
    from common.privacy.audit.evidence import load_evidence
    from common.privacy.audit.verify import verify as check

    with _working("verifying", quiet=as_json):
        verified = check(load_evidence(path))
    if as_json:
        typer.echo(json.dumps(verified.as_dict()))
    else:
        _print_checks(verified)
    if not verified.holds:
        raise typer.Exit(1)


@audit_app.command()
def recompute(path: Where, as_json: AsJson = False) -> None:
    """Count what each ledger was charged by four accountants side by side; exits 1 when they do not agree.

    Example: silorec audit recompute runs/ml-100k
    """
    from common.errors import DataError
    from common.privacy.audit.evidence import load_evidence
    from common.privacy.audit.report import recompute_ledgers

    evidence = load_evidence(path)
    if not evidence.ledgers:
        raise DataError("no ledger could be read: silorec audit verify says why", path)
    with _working("computing epsilon", quiet=as_json):
        found = recompute_ledgers(evidence)
    if as_json:
        typer.echo(json.dumps({"ledgers": found}, allow_nan=False))
    else:
        _print_recomputed(found)
    if not all(ledger["holds"] for ledger in found):
        raise typer.Exit(1)


@audit_app.command()
def report(
    path: Where,
    attacks: Annotated[Path | None, typer.Option(help="What silorec audit attack --out wrote.", show_default=False)] = None,
    about: Annotated[
        Path | None, typer.Option(help="What the operators state of the deployment: a TOML file.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of audit.html and audit.json.", show_default="PATH")] = None,
    as_json: AsJson = False,
) -> None:
    """Write claims, evidence, attacks, a deployment statement and a checklist on one page; exits 1 when the claim does not hold.

    The page is written either way. --about may state: name, description, data_curators, intended_use, data_product_region,
    data_product_sector, publication_date, justification and more; a wrong key shows them all.

    Example: silorec audit report runs/ml-100k --attacks attacks.json
    """
    from common.privacy.audit.evidence import load_evidence
    from common.privacy.audit.report import audit, read_attacks, write_audit
    from common.privacy.audit.statement import read_about

    given = None if attacks is None else read_attacks(attacks)
    stated = None if about is None else read_about(about)
    evidence = load_evidence(path)
    with _working("verifying", quiet=as_json) as progress:
        document = audit(evidence, attacks=given, about=stated, progress=progress)
    _, page = write_audit(document, out or (path if path.is_dir() else path.parent))
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
    else:
        from rich.console import Console

        Console().print(document["verdict"], highlight=False, markup=False)
        typer.echo(f"report: {page}")
    if not document["holds"]:
        raise typer.Exit(1)


@contextlib.contextmanager
def _working(stage: str, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A spinner on standard error, with the time that has passed; what is handed out names the stage."""
    if quiet:
        yield lambda stage: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(stage, total=None)
        yield lambda stage: progress.update(task, description=stage)


def _print_checks(verified: Verified) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=False)
    for column in ("check", "outcome", "on what evidence"):
        table.add_column(column, overflow="fold")
    styles = {"holds": "green", "does not hold": "bold red", "not applicable": "dim"}
    for check in verified.checks:
        table.add_row(Text(check.name), Text(check.outcome, style=styles[check.outcome]), Text(check.evidence))
    console = Console()
    console.print(table)
    for check in verified.checks:
        for named in check.named:
            console.print(f"{check.name}: {named}", highlight=False, markup=False, soft_wrap=True)
    for ledger in verified.ledgers:
        words = f"{ledger['silo']}: fingerprint {ledger['fingerprint']} (compare it with the silo's by another way)"
        console.print(words, highlight=False, markup=False, soft_wrap=True)
    held = sum(check.outcome == "holds" for check in verified.checks)
    summary = f"{held} of {len(verified.checks)} checks hold, {len(verified.skipped)} not applicable"
    if verified.broken:
        summary += f"; DOES NOT HOLD: {', '.join(check.name for check in verified.broken)}"
    typer.echo(summary)


def _print_recomputed(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="epsilon of all reservations, at the delta of each ledger's policy")
    for column in ("ledger", "delta", "charges", "RDP", "RDP, again", "PLD", "PRV", "agree"):
        table.add_column(column, justify="left" if column in ("ledger", "agree") else "right")
    counted = [
        (f"{ledger['silo']}{which}", figures)
        for ledger in found
        for which, figures in (("", ledger), (", if all others collude", ledger["if_others_collude"]))
        if figures is not None
    ]
    for name, figures in counted:
        cells = [_cell(figures, accountant) for accountant in ("rdp", "reference", "pld", "prv")]
        outcomes = {rule["outcome"] for rule in figures["rules"]}
        agree = "NO" if "differs" in outcomes else "as far as checked" if "not checked" in outcomes else "yes"
        table.add_row(name, f"{figures['delta']:.3g}", str(figures["releases"]), *cells, agree)
    console = Console()
    console.print(table)
    for name, figures in counted:
        for rule in figures["rules"]:
            if rule["outcome"] != "holds":
                words = f"{name}: {rule['name']}: {rule['outcome']}: {rule['explanation']}"
                console.print(words, highlight=False, markup=False, soft_wrap=True)
    if len(counted) > len(found):
        words = "mode distributed: RDP at whole orders, where its discrete noise costs just that; PLD and PRV of continuous noise"
        console.print(words, highlight=False, markup=False, soft_wrap=True)


def _cell(ledger: dict[str, Any], name: str) -> str:
    figure = ledger["figures"][name]
    if ledger["unprotected"]:
        return "unbounded"
    return "not available" if figure["epsilon"] is None else f"{figure['epsilon']:.5f}"
