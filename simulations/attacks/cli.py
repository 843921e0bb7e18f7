"""``silorec audit attack``: what an adversary gets out of a run, next to what the run claims."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulations.attacks.suite import Kind
    from simulations.watch import Watch

attack_app = typer.Typer(add_completion=False)


class KindChoice(Enum):
    """Values of ``--kind``."""

    canaries = "canaries"
    members = "members"
    reconstruction = "reconstruction"
    all = "all"


@attack_app.command("attack")
def attack(
    target: Annotated[str, typer.Argument(metavar="[RUN|SCENARIO]", help="Folder of a run, or a scenario.")] = "ml-100k",
    kind: Annotated[KindChoice, typer.Option(help="Which attack.")] = KindChoice.all,
    canaries: Annotated[int, typer.Option(min=1, help="How many canaries.")] = 1000,
    shadows: Annotated[int, typer.Option(min=2, help="Shadow models of membership inference; an even number.")] = 8,
    silo: Annotated[int, typer.Option(min=0, help="Which silo, by its place in the roster.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, for example training.optimizer=sgd; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws canaries, coins and pools.")] = 0,
    confidence: Annotated[float, typer.Option(help="Of every bound and interval.")] = 0.95,
    out: Annotated[Path | None, typer.Option(help="Write the figures here, for: silorec audit report --attacks.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Attack the training of one simulated silo, and compare what is found with the run's claim; exits 1 when it is refuted.

    Training is repeated with canaries or shadow models, so this takes several times as long as the run. Nothing is charged to a
    ledger. Figures about a silo's users are not protected: attack made-up or public data.

    Example: silorec audit attack runs/ml-100k --kind canaries --canaries 1000 --out attacks.json
    """
    from common.durable import write_durably
    from common.errors import ConfigError
    from simulations.attacks.suite import KINDS, target_of
    from simulations.watch import Silent, Terminal

    if not 0.5 < confidence < 1:
        raise ConfigError(f"--confidence {confidence}: must be above 0.5 and below 1")
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.absolute().parent}")
    config = target_of(target, settings or [])
    kinds: list[Kind] = list(KINDS) if kind is KindChoice.all else [kind.value]
    sizes = {"canaries": canaries, "shadows": shadows, "silo": silo, "seed": seed, "confidence": confidence}
    if as_json:
        found = _attack(config, kinds, Silent(), sizes)
        typer.echo(json.dumps(found))
    else:
        with Terminal() as watch:
            found = _attack(config, kinds, watch, sizes)
        _print(found)
    if out is not None:
        write_durably(out, (json.dumps(found, indent=2) + "\n").encode())
        if not as_json:
            typer.echo(f"figures: {out}")
    if found["refuted"]:
        raise typer.Exit(1)


def _attack(config: Any, kinds: list[Kind], watch: Watch, sizes: dict[str, Any]) -> dict[str, Any]:
    from simulations.attacks.suite import attack as run

    return run(config, kinds, watch=watch, **sizes)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"{found['name']}, silo {found['silo']}: lower bounds on epsilon at delta = {found['delta']:.3g}")
    for column in ("attack", "claimed", "found", "ceiling", "right guesses"):
        table.add_column(column, justify="left" if column == "attack" else "right")
    attacks = found["attacks"]
    if canaries := attacks.get("canaries"):
        table.add_row(
            f"{canaries['canaries']:,} gradient canaries",
            f"{canaries['claim']['epsilon']:.3f}",
            f"{canaries['epsilon_lower']:.3f}",
            f"{canaries['ceiling']:.3f}",
            f"{canaries['correct']} of {canaries['guesses']}",
        )
    if members := attacks.get("members"):
        one_run, claimed = members["one_run"], members["claimed_epsilon"]
        table.add_row(
            f"membership of {members['users']:,} users ({members['method']})",
            "none" if claimed is None else f"{claimed:.3f}",
            f"{one_run['epsilon_lower']:.3f}",
            f"{one_run['ceiling']:.3f}",
            f"{one_run['n_correct']} of {one_run['n_guesses']}",
        )
    if table.row_count:
        console.print(table)
    for name in ("canaries", "conformance"):
        if name in attacks:
            console.print(attacks[name]["sentence"], highlight=False, markup=False)
    for name in ("members", "reconstruction"):
        for sentence in attacks.get(name, {}).get("sentences", ()):
            console.print(sentence, highlight=False, markup=False)
    for name, why in found["skipped"].items():
        console.print(f"{name}: not attacked: {why}", highlight=False, markup=False)
    for what in found["refuted"]:
        console.print(f"REFUTED: {what}", highlight=False, markup=False)
