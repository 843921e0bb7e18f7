"""``silorec doctor``: what is wrong with an installation or a home, and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from common.doctor.checklist import Examination
    from common.doctor.finding import Finding
    from common.doctor.subject import Subject

doctor_app = typer.Typer()

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "not checked": "dim"}


@doctor_app.command()
def doctor(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[PATH]", help="A silo's or the coordinator's home.", show_default="the installation alone"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration of a run, to hold data and models against.", show_default="the coordinator's latest"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Examine versions, keys, certificates, roster, budget, data, clock, disk, memory, GPU, ports and the way to the coordinator.

    Exits 1 if there is a problem; warnings leave it 0. A silo's data are read, and stay where they are.

    Example: silorec doctor /var/lib/silorec/silo
    """
    from common.doctor.subject import Subject

    subject = Subject(path, config=config)
    examined = _examined(subject, quiet=as_json)
    if as_json:
        typer.echo(json.dumps({"path": None if path is None else str(path), **examined.as_dict()}))
    else:
        _summarise(examined)
    if examined.problems:
        raise typer.Exit(1)


def _examined(subject: Subject, *, quiet: bool) -> Examination:
    """Go through the checks, each finding shown as soon as it is there."""
    from common.doctor.checklist import Examination, findings

    found = []
    for finding in findings(subject):
        found.append(finding)
        if not quiet:
            _show(finding)
    return Examination(subject.role, tuple(found))


def _show(finding: Finding) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print(
        Text.assemble((f"{finding.outcome:<11} ", _STYLES[finding.outcome]), f"{finding.name}: {finding.seen}"), soft_wrap=True
    )
    if finding.do:
        console.print(Text(f"{'':<11} do: {finding.do}"), soft_wrap=True)


def _summarise(examined: Examination) -> None:
    from common.privacy.audit.check import count

    well = sum(found.outcome == "ok" for found in examined.findings)
    told = [f"{well} ok", count(len(examined.warnings), "warning"), count(len(examined.problems), "problem")]
    if skipped := sum(found.outcome == "not checked" for found in examined.findings):
        told.append(f"{skipped} not checked")
    typer.echo(f"{examined.role}: {', '.join(told)}")
