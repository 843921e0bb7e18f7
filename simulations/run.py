"""A whole simulation: data dealt out to silos, a federation, an evaluation, references, a result and a report.

The federation that runs here is the one that runs in a deployment: ``client.app:app`` answers ``server.federation``. Only
the grid between them, and the evaluation that looks at everybody's data, belong to the simulation.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import Config, load, to_run_config, to_toml
from common.data.catalogue_file import write_catalogue
from common.data.population import Population, enrolled, load_population
from common.durable import write_durably
from common.errors import ConfigError
from common.model.adapter import load_adapter, save_adapter
from common.model.finished import ADAPTER, CATALOGUE, CONFIG
from common.model.resident import resident
from common.protocol import config_hash
from server.checkpoint import START, read_metrics
from simulations.compare import check_references, compare
from simulations.evaluate import Evaluator, Judged
from simulations.result import assemble, finite, spent_in
from simulations.scenario import DEFAULT, load_scenario
from simulations.watch import Silent, Watch

if TYPE_CHECKING:
    from server.federation import RoundReport

GridName = Literal["in-process", "flower"]

RESULT, ROUNDS = "result.json", "rounds.jsonl"


@dataclass
class Progress:
    """What a simulation has so far; enough to write a result at any moment.

    ``best`` is the selected round's ``(round, validation, adapter)``, its validation None where it was not asked; ``start`` the
    adapter before training, counts included; ``released_metrics`` what the silos told of the last adapter's quality.
    """

    start: NDArray[np.float32] | None = None
    best: tuple[int, Judged | None, NDArray[np.float32]] | None = None
    last_round: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    released_metrics: Mapping[str, float] = field(default_factory=dict)


def simulate(
    scenario: str | Path = DEFAULT,
    *,
    overrides: Iterable[str] = (),
    out: str | Path = "runs",
    grid: GridName = "in-process",
    resume: bool = False,
    watch: Watch | None = None,
) -> Path:
    """Run a scenario and return the folder with its result.

    Parameters
    ----------
    scenario:
        A name (see :func:`simulations.scenario.scenarios`) or the path of a TOML file.
    overrides:
        ``section.key=value`` strings.
    out:
        The run's folder is ``out/<name>``, or ``out/<name>-2`` and so on where that exists.
    grid:
        ``in-process``, or ``flower`` for Flower's own simulation, which is evaluated at its end only.
    resume:
        Go on with the newest unfinished run of this name.

    Raises
    ------
    SilorecError
        If the scenario, the data or the federation are not in order.
    KeyboardInterrupt
        When interrupted before there is anything to keep. Later, the result of the last finished round is written instead, and
        marked as interrupted.
    """
    watch = watch or Silent()
    began = time.monotonic()
    config = load_scenario(scenario, overrides=overrides)
    check_references(config)
    watch.stage("reading data")
    config = enrolled(config)
    population = load_population(config)
    folder = _folder(Path(out), config, resume)
    write_durably(folder / CONFIG, to_toml(config).encode())

    with contextlib.ExitStack() as stack:
        by_flower = stack.enter_context(_by_flower(config, folder)) if grid == "flower" else None
        return _simulate(config, population, folder, by_flower, watch, began)


def _simulate(
    config: Config,
    population: Population,
    folder: Path,
    by_flower: Future[NDArray[np.float32]] | None,
    watch: Watch,
    began: float,
) -> Path:
    """From the data to the report; ``by_flower`` is the last adapter of a federation that runs elsewhere."""
    progress = Progress()
    with _part(progress, "model"):
        watch.stage("loading model and item vectors")
        home = resident(config)
        evaluator = Evaluator(config, population, home.model, home.manifest)
        write_catalogue(folder / CATALOGUE, population.dataset.catalogue)
    status, references = "finished", []
    grid: GridName = "in-process" if by_flower is None else "flower"
    try:
        with _part(progress, "federation"):
            if by_flower is None:
                _federate(config, folder, evaluator, progress, watch)
            else:
                _await_flower(config, folder, evaluator, progress, watch, by_flower)
        with _part(progress, "references"):
            references = compare(config, evaluator, watch)
    except KeyboardInterrupt:
        if progress.best is None:
            raise
        status = "interrupted"
        watch.say(f"interrupted: keeping round {progress.best[0]}")
    return _conclude(config, folder, evaluator, progress, references, status, grid, time.monotonic() - began, watch)


def _federate(config: Config, folder: Path, evaluator: Evaluator, progress: Progress, watch: Watch) -> None:
    """The round loop over the in-process grid, evaluated as it goes."""
    from client.app import app as client_app
    from client.place import make_simulated_roster
    from server.app import start_of
    from server.exchange import Roster
    from server.federation import run_federation
    from simulations.grid import InProcessGrid

    start = start_of(config)
    unseen = _recall(config, folder, evaluator, progress, start.manifest_hash)
    watch.stage("training", config.federation.rounds)

    def on_round(report: RoundReport) -> None:
        facts = report.facts
        record = _observe(config, folder, evaluator, progress, report.round, report.vector, report.seconds)
        record["answered"], record["update_norm"] = len(facts["answered"]), facts.get("update_norm")
        with open(folder / ROUNDS, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record)) + "\n")
        watch.step(report.round, _note(config, record))
        watch.say(f"round {report.round}: {_note(config, record)}")

    roster = Roster.of(config.federation)
    settings = to_run_config(config) | {"app.out": str(folder)}
    grid = InProcessGrid(client_app, len(roster), settings)
    keys = make_simulated_roster(folder, len(roster)) if config.is_secure else None
    if unseen is not None:
        on_round(unseen)
    result = run_federation(grid, config, start, roster, folder=folder, key_roster=keys, on_round=on_round)
    progress.released_metrics = result.metrics


@contextlib.contextmanager
def _by_flower(config: Config, folder: Path) -> Iterator[Future[NDArray[np.float32]]]:
    """The same federation by ``flwr run``, in processes that start while this one loads its model; ended on the way out."""
    from simulations.flower import flower_started, run_with_flower

    n_silos = len(config.federation.declared_users)
    with ThreadPoolExecutor(1) as waiting, flower_started() as flower:
        yield waiting.submit(run_with_flower, config, folder, n_silos, flower=flower)


def _await_flower(
    config: Config, folder: Path, evaluator: Evaluator, progress: Progress, watch: Watch, by_flower: Future[NDArray[np.float32]]
) -> None:
    """Only the end of a federation by Flower is seen from here."""
    watch.stage("training in Flower's simulation")
    began = time.monotonic()
    vector = by_flower.result()
    progress.released_metrics = read_metrics(folder)
    progress.start = load_adapter(folder / START)[0]
    seconds = time.monotonic() - began
    record = _observe(config, folder, evaluator, progress, config.federation.rounds, vector, seconds)
    record["answered"], record["update_norm"] = len(config.federation.declared_users), None
    write_durably(folder / ROUNDS, (json.dumps(finite(record)) + "\n").encode())


def _observe(
    config: Config,
    folder: Path,
    evaluator: Evaluator,
    progress: Progress,
    number: int,
    vector: NDArray[np.float32],
    seconds: float,
) -> dict[str, Any]:
    """Evaluate a finished round on the validation items, keep it if it is the one to report, and describe it."""
    evaluation = config.evaluation
    last = number == config.federation.rounds
    judged = evaluator.judge(vector, "validation") if last or number % evaluation.every == 0 else None
    if number == 0:
        progress.start = vector
        save_adapter(folder / START, vector, evaluator.manifest)
    progress.last_round = number
    if evaluation.select == "last" or progress.best is None or _better(judged, progress.best[1], evaluation.k):
        progress.best = (number, judged, vector)
        save_adapter(folder / ADAPTER, vector, evaluator.manifest)
    spent = spent_in(config, folder).epsilon
    return {
        "round": number,
        "seconds": seconds,
        "silos": len(config.federation.declared_users),
        "loss": None if judged is None else judged.loss,
        "epsilon": spent,
        "validation": None if judged is None else judged.evaluation.summary(evaluation.k),
        "test": None,
        "selected": progress.best is not None and progress.best[0] == number,
    }


def _better(new: Judged | None, old: Judged | None, k: int) -> bool:
    if new is None or old is None:
        return old is None
    return float(new.evaluation.ndcg(k).mean()) > float(old.evaluation.ndcg(k).mean())


def _recall(config: Config, folder: Path, evaluator: Evaluator, progress: Progress, manifest_hash: str) -> RoundReport | None:
    """Take up where an interrupted run was: rounds that were evaluated, the adapter before training and the selected one.

    A round is on the disk before it is evaluated. If the run was stopped in between, that round is returned, to be evaluated now.
    """
    from server.checkpoint import load as load_checkpoint
    from server.federation import RoundReport
    from server.optimisers import kept

    path = folder / ROUNDS
    state = load_checkpoint(folder, config_hash=config_hash(config), manifest_hash=manifest_hash)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() and state is not None else []
    whole = [line for line in lines if line.endswith("\n")]
    write_durably(path, "".join(whole).encode())
    if state is None:
        return None
    handed_out = kept(state.vector, state.optimiser)
    records = [json.loads(line) for line in whole]
    if records or state.round:
        progress.start = load_adapter(folder / START)[0]
    if records:
        progress.last_round = records[-1]["round"]
        chosen = load_adapter(folder / ADAPTER)[0]
        number = max(record["round"] for record in records if record["selected"])
        if progress.last_round < state.round and np.array_equal(chosen, handed_out):
            number = state.round  # it was selected, but not yet written down, when the run was stopped
        asked = config.evaluation.select == "validation"
        progress.best = (number, evaluator.judge(chosen, "validation") if asked else None, chosen)
        if progress.last_round == state.round:
            return None
    return RoundReport(state.round, handed_out, state.history[-1], math.nan)


def _conclude(
    config: Config,
    folder: Path,
    evaluator: Evaluator,
    progress: Progress,
    references: list[dict[str, Any]],
    status: str,
    grid: str,
    seconds: float,
    watch: Watch,
) -> Path:
    """Measure the selected round on the test items and write result and report."""
    from simulations.report import write_report

    assert progress.best is not None
    assert progress.start is not None
    watch.stage("measuring the result")
    number, validation, vector = progress.best
    result = assemble(
        config,
        folder,
        evaluator,
        selected=(number, vector),
        validation=(validation or evaluator.judge(vector, "validation")).evaluation,
        test=evaluator.judge(vector, "test").evaluation,
        before=evaluator.judge(progress.start, "test").evaluation,
        references=references,
        facts={
            "status": status,
            "grid": grid,
            "rounds": progress.last_round,
            "seconds": seconds,
            "seconds_by_part": progress.seconds,
            "released_metrics": progress.released_metrics,
        },
    )
    write_durably(folder / RESULT, (json.dumps(result, indent=2) + "\n").encode())
    write_report(folder)
    return folder


@contextlib.contextmanager
def _part(progress: Progress, name: str) -> Iterator[None]:
    """Add the time spent inside to ``progress.seconds``."""
    began = time.monotonic()
    try:
        yield
    finally:
        progress.seconds[name] = progress.seconds.get(name, 0.0) + time.monotonic() - began


def _folder(out: Path, config: Config, resume: bool) -> Path:
    """The run's folder: a new one, or with ``resume`` the newest unfinished one of this name and configuration."""
    taken = [out / config.name]
    while taken[-1].exists():
        taken.append(out / f"{config.name}-{len(taken) + 1}")
    if not resume:
        try:
            taken[-1].mkdir(parents=True)
        except OSError as error:
            raise ConfigError(
                f"{taken[-1]}: the run's folder cannot be made ({error.strerror}); choose another with --out"
            ) from None
        return taken[-1]
    for folder in reversed(taken[:-1]):
        if (folder / CONFIG).is_file() and not _is_finished(folder):
            if load(folder / CONFIG) != config:
                raise ConfigError(
                    f"{folder}: this unfinished run has other settings; give the same ones, or start anew without --resume"
                )
            return folder
    raise ConfigError(f"{out}: no unfinished run called {config.name!r} to resume")


def _is_finished(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / RESULT).read_text(encoding="utf-8"))["status"] == "finished")
    except (OSError, ValueError, KeyError):
        return False


def _note(config: Config, record: dict[str, Any]) -> str:
    k = config.evaluation.k
    parts = []
    if record["validation"] is not None:
        parts.append(f"validation NDCG@{k} {record['validation'][f'ndcg@{k}']:.4f}, loss {record['loss']:.3f}")
    if config.privacy.mode == "none":
        parts.append("no privacy")
    else:
        parts.append(f"ε {record['epsilon']:.2f} of {config.privacy.epsilon:g}")
    return ", ".join(parts)
