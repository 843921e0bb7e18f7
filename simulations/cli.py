"""``silorec simulate``, ``silorec recommend`` and ``silorec bench``."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulations.bench import Report
    from simulations.watch import Watch

simulations_app = typer.Typer(add_completion=False)

INTERRUPTED = 130
"""Exit status after Ctrl-C, whether or not there was something to keep; as a shell's own."""


class AggregationChoice(Enum):
    """Values of ``--aggregation``."""

    plain = "plain"
    secure = "secure"


class GridChoice(Enum):
    """Values of ``--grid``."""

    in_process = "in-process"
    flower = "flower"


Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, for example privacy.epsilon=4; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


@simulations_app.command("simulate")
def simulate(
    scenario: Annotated[str, typer.Argument(help="A scenario's name, or a .toml file; --list shows the names.")] = "ml-100k",
    settings: Set = None,
    silos: Annotated[int | None, typer.Option(help="Number of silos (partition.silos).", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed (run.seed).", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run's folder.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    grid: Annotated[GridChoice, typer.Option(help="What carries messages.")] = GridChoice.in_process,
    aggregation: Annotated[
        AggregationChoice | None,
        typer.Option(
            help="secure: the coordinator sees sums only (aggregation.method); by default from three silos on.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest unfinished run of this name.")] = False,
    distil: Annotated[
        bool, typer.Option("--distil", help="Then distil the model, measure the student and make RUN/NAME.bundle; minutes.")
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="Show the scenarios and stop.")] = False,
    show_settings: Annotated[bool, typer.Option("--settings", help="Show every setting with its default and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a federation of silos on this machine, measure it, and write a report.

    Ctrl-C ends the training and keeps the last finished round.

    Example: silorec simulate ml-100k --set privacy.epsilon=4 --silos 8
    """
    if show or show_settings:
        _show(show_settings, as_json)
        return
    from common.config import load
    from simulations.run import simulate as run
    from simulations.watch import Silent, Terminal

    overrides, method = list(settings or []), aggregation.value if aggregation else None
    for key, value in (("partition.silos", silos), ("run.seed", seed), ("name", name), ("aggregation.method", method)):
        if value is not None:
            overrides.append(f"{key}={json.dumps(value)}")
    if as_json:
        folder = run(scenario, overrides=overrides, out=out, grid=grid.value, resume=resume, watch=Silent())
        if distil:
            _distil(folder, Silent())
        typer.echo((folder / "result.json").read_text(encoding="utf-8"))
    else:
        with Terminal() as watch:
            folder = run(scenario, overrides=overrides, out=out, grid=grid.value, resume=resume, watch=watch)
            if distil:
                _distil(folder, watch)
        _print_result(folder, load(folder / "config.toml").evaluation.k)
    if json.loads((folder / "result.json").read_text(encoding="utf-8"))["status"] == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _distil(folder: Path, watch: Watch) -> None:
    """The student of a run that has finished; one that was interrupted is gone on with first."""
    from simulations.student import distil_run

    if json.loads((folder / "result.json").read_text(encoding="utf-8"))["status"] == "finished":
        distil_run(folder, watch)


@simulations_app.command("recommend")
def recommend(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    history: Annotated[list[str], typer.Option("--history", help="An item's title or id, oldest first; may be repeated.")],
    k: Annotated[int, typer.Option("-k", help="How many.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Recommend items to somebody the model has never seen.

    Example: silorec recommend runs/ml-100k --history "Toy Story" --history "Aladdin" -k 5
    """
    from simulations.recommend import recommend as answer_for

    answer = answer_for(run, history, k)
    if as_json:
        rows = [{"item": r.item, "title": r.title, "score": r.score} for r in answer.recommendations]
        typer.echo(json.dumps({"history": answer.history, "recommendations": rows}))
        return
    typer.echo("after " + ", ".join(answer.history) + ":")
    for place, item in enumerate(answer.recommendations, start=1):
        typer.echo(f"{place:3d}. {item.title}")


@simulations_app.command("bench")
def bench(
    name: Annotated[str, typer.Argument(help="Which one; --list shows them.")] = "",
    out: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = Path("runs/bench"),
    show: Annotated[bool, typer.Option("--list", help="Show the benchmarks and stop.")] = False,
    silos: Annotated[int | None, typer.Option(help="Silos in a sum (secagg).", show_default=False)] = None,
    parameters: Annotated[int | None, typer.Option(help="Numbers in a vector (secagg).", show_default=False)] = None,
    items: Annotated[int | None, typer.Option(help="Items in the catalogue (search, serve).", show_default=False)] = None,
    repeats: Annotated[
        int | None, typer.Option(help="How often; medians count (secagg, search, serve, linkage).", show_default=False)
    ] = None,
    run: Annotated[str | None, typer.Option(help="Folder of a finished run (linkage).", show_default=False)] = None,
    runs: Annotated[
        str | None, typer.Option(help="Folder with finished runs ref0, ref1, ref2 and demo (student).", show_default=False)
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="What is served (serve).", show_default="one of random numbers")] = None,
    backbones: Annotated[
        str | None, typer.Option(help='Language models, for example "minilm tiny-llama" (cold).', show_default="all three")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds with faults (deployment).", show_default=False)] = None,
    only: Annotated[str | None, typer.Option(help="overhead or endurance (deployment).", show_default="both")] = None,
    skip_legacy: Annotated[
        bool, typer.Option("--skip-legacy", help="Do not run Flower's side (secagg); its goals count as missed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure something and compare it with its goals; exits 1 when a goal is missed.

    Example: silorec bench quality
    """
    from simulations.bench import benches, run_bench
    from simulations.watch import Silent, Terminal

    if show:
        for title, about in benches().items():
            typer.echo(f"{title}: {about}")
        return
    asked: dict[str, Any] = {
        "silos": silos,
        "parameters": parameters,
        "items": items,
        "repeats": repeats,
        "run": run,
        "runs": runs,
        "backbones": backbones,
        "rounds": rounds,
        "only": only,
        "skip_legacy": skip_legacy or None,
        "bundle": None if bundle is None else str(bundle),
    }
    settings = {key: value for key, value in asked.items() if value is not None}
    if as_json:
        report = run_bench(name, out, Silent(), **settings)
        typer.echo(json.dumps(report.as_dict()))
    else:
        with Terminal() as watch:
            report = run_bench(name, out, watch, **settings)
        _print_bench(report)
    if not report.holds:
        raise typer.Exit(1)


def _print_bench(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    goals = {goal.figure: goal for goal in report.goals}
    table = Table(title=report.bench)
    for column in ("figure", "value", "goal", ""):
        table.add_column(column, justify="right" if column == "value" else "left")
    for figure in report.figures:
        goal = goals.get(figure.name)
        met = "" if goal is None else "holds" if goal.holds(figure.value) else "missed"
        value = f"{figure.value:.4g} {figure.unit}".strip()
        table.add_row(figure.name, value, goal.describe() if goal else "", met + (f"  ({figure.note})" if figure.note else ""))
    Console().print(table)
    typer.echo(report.summary())


def _show(show_settings: bool, as_json: bool) -> None:
    from common.config import describe
    from simulations.scenario import scenarios

    if show_settings:
        rows = [dict(zip(("key", "type", "default", "description"), row, strict=True)) for row in describe()]
        if as_json:
            typer.echo(json.dumps(rows))
            return
        for row in rows:
            about = f"  # {row['description']}" if row["description"] else ""
            typer.echo(f"{row['key']} = {row['default']}  ({row['type']}){about}")
        return
    if as_json:
        typer.echo(json.dumps(scenarios()))
        return
    for name, about in scenarios().items():
        typer.echo(f"{name}: {about}")


def _print_result(folder: Path, k: int) -> None:
    from rich.console import Console
    from rich.table import Table

    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    table = Table(title=f"{result['name']}: test, {result['dataset']['users']} users, {result['dataset']['items']} items")
    for column in ("recommender", f"NDCG@{k}", f"HR@{k}", "MRR", "AUC"):
        table.add_column(column, justify="left" if column == "recommender" else "right")
    rows = [(f"silorec, {len(result['silos'])} silos", result), ("silorec before training", result["before_training"])]
    rows += [(entry["title"], entry) for entry in result["references"]]
    for title, row in rows:
        table.add_row(title, *(f"{row[key]:.4f}" for key in (f"ndcg@{k}", f"hr@{k}", "mrr", "auc")))
    console = Console()
    console.print(table)
    console.print(result["statement"], highlight=False, markup=False)
    if result["status"] != "finished":
        console.print(
            f"interrupted after round {result['rounds']} of {result['rounds_planned']}; --resume goes on", highlight=False
        )
    console.print(f"report: {folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
