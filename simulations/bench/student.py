"""What a student keeps of its teacher, what it weighs, and how much faster it answers.

Teachers are three runs of ``ml-100k-reference`` and the private demo. With ``--runs FOLDER`` they are taken from there (folders
``ref0``, ``ref1``, ``ref2`` and ``demo``), else trained first, which takes about an hour on two cores. Students that an earlier
bench left in ``OUT/student`` are not distilled again: then the seconds are those that were written down when they were.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from common.bundle.contents import Bundle
from common.engine import Engine
from common.errors import DataError
from common.model.finished import ADAPTER
from common.model.recommender import Batch, Recommender, autocast
from server.bundle_cli import KEY, signing_key
from server.bundling import RESULT, make_bundle
from simulations.bench import Figure, register
from simulations.run import simulate
from simulations.student import Kept, Pupil, keep, pupil_of
from simulations.watch import Watch

REFERENCES = {"ref0": 0, "ref1": 1, "ref2": 2}
DEMO = "demo"
ROUNDS, CALLS = 20, 21
"""Of the latency: rounds in which each model is asked so many times in a row. The first call of a row is not counted: it finds
what the other model left in the processor's caches, and nobody serves a student beside its teacher.
"""


@register("student")
def student(out: Path, watch: Watch, *, runs: str = "") -> list[Figure]:
    """What the students of three reference runs and of the private demo keep of NDCG@10, their size and speed."""
    folder = Path(runs) if runs else trained(out, watch)
    figures: list[Figure] = []
    kept: dict[str, Kept] = {}
    for name in (*REFERENCES, DEMO):
        run = folder / name
        if not is_finished(run):
            raise DataError("there is no finished run; make it with silorec simulate, or leave out --runs", run)
        pupil = pupil_of(linked(run, out / "students" / name), watch)
        watch.stage(f"{name}: measuring")
        kept[name] = keep(run, pupil, cache=out / "scores")
        watch.say(f"{name}: {kept[name].retained:.2%} of NDCG@{kept[name].k} kept")
        figures += _figures(name, run, pupil, kept[name], out, watch)
    return _summary(kept) + figures


def trained(out: Path, watch: Watch) -> Path:
    """The folder of the four teachers, trained where they are missing."""
    folder = out / "runs"
    scenarios = {name: ("ml-100k-reference", seed) for name, seed in REFERENCES.items()} | {DEMO: ("ml-100k", 0)}
    for name, (scenario, seed) in scenarios.items():
        if not is_finished(folder / name):
            watch.say(f"training {name}")
            settings = (f"name={name}", f"run.seed={seed}", "evaluation.references=[]")
            simulate(scenario, overrides=settings, out=folder, watch=watch, resume=(folder / name).is_dir())
    return folder


def is_finished(run: Path) -> bool:
    """Whether a simulation came to its end there; a run that goes on has an adapter too."""
    try:
        return bool(json.loads((run / RESULT).read_text(encoding="utf-8"))["status"] == "finished")
    except (OSError, ValueError, KeyError):
        return False


def linked(run: Path, copy: Path) -> Path:
    """A folder with what distilling reads of a run, so that the run itself stays as it is."""
    from shutil import copyfile

    from common.model.finished import CATALOGUE, CONFIG

    copy.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, CATALOGUE, ADAPTER):
        copyfile(run / name, copy / name)
    return copy


def _summary(kept: dict[str, Kept]) -> list[Figure]:
    references = [kept[name] for name in REFERENCES]
    seeds = ", ".join(f"{one.retained:.4f}" for one in references)
    rounding = [one.bundle / one.student for one in kept.values()]
    pooled = sum(one.bundle for one in kept.values()) / sum(one.student for one in kept.values())
    return [
        Figure("ndcg@10 retained, reference", mean(one.retained for one in references), "", f"seeds: {seeds}"),
        Figure("ndcg@10 retained, private demo", kept[DEMO].retained),
        Figure("ndcg@10, int8 over float32, all four", pooled, "", "a thousand users alone vary by more than rounding matters"),
        Figure("ndcg@10, int8 over float32, furthest from 1", max(rounding, key=lambda ratio: abs(ratio - 1.0))),
    ]


def _figures(name: str, run: Path, pupil: Pupil, kept: Kept, out: Path, watch: Watch) -> list[Figure]:
    seconds = pupil.account["seconds"]
    note = f"sampling {seconds['sampling']:.0f} s, training {seconds['training']:.0f} s"
    made = make_bundle(out / "students" / name, out / f"{name}.bundle", signing_key(out / KEY), config=pupil.config)
    figures = [
        Figure(f"{name}: teacher ndcg@10", kept.teacher),
        Figure(f"{name}: student ndcg@10", kept.student, "", "float32, PyTorch"),
        Figure(f"{name}: bundle ndcg@10", kept.bundle, "", "int8, ONNX Runtime"),
        Figure(f"{name}: sampling and distilling", seconds["sampling"] + seconds["training"], "s", note),
        Figure(f"{name}: model.onnx", made.model_bytes / 1e6, "MB", "int8"),
        Figure(f"{name}: bundle", made.bundle_bytes / 1e6, "MB"),
    ]
    if name in ("ref0", DEMO):
        figures += _latency(name, pupil, pupil.bundle(run), watch)
    return figures


def _latency(name: str, pupil: Pupil, bundle: Bundle, watch: Watch) -> list[Figure]:
    """One history of a full window scored against the whole catalogue, on one thread, by turns; medians."""
    teacher, window = pupil.teachers.models[0], pupil.config.model.window
    history = [int(i) for i in torch.arange(window) % teacher.n_items]
    engine = Engine(bundle, search="exact", threads=1)
    ways: dict[str, Callable[[], Any]] = {
        "teacher, float32": _teacher(teacher, history),
        "teacher, as it was trained": _teacher(teacher, history, autocast(pupil.config, teacher.device)),
        "student": lambda: engine.scores([history]),
    }
    watch.stage(f"{name}: latency", ROUNDS)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for done in range(ROUNDS):
            for way, score in ways.items():
                seconds[way] += _seconds(score)
            watch.step(done + 1)
    finally:
        torch.set_num_threads(threads)
    cost = {way: 1e3 * median(values) for way, values in seconds.items()}
    fastest = min(value for way, value in cost.items() if way != "student")
    note = f"one history of {window} items, one thread, median of {ROUNDS * (CALLS - 1)}"
    return [
        *(Figure(f"{name}: latency, {way}", value, "ms", note) for way, value in cost.items()),
        Figure(f"{name}: latency, teacher over student", fastest / cost["student"], "times", "the faster teacher"),
    ]


def _seconds(score: Callable[[], Any]) -> list[float]:
    """Of all calls in a row but the first."""
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        score()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def _teacher(teacher: Recommender, history: list[int], arithmetic: torch.autocast | None = None) -> Callable[[], Any]:
    batch = Batch(torch.tensor([history]), torch.zeros(1, 0, dtype=torch.long))

    def score() -> Any:
        with torch.inference_mode():
            if arithmetic is None:
                return teacher(batch, last_only=True)
            with arithmetic:
                return teacher(batch, last_only=True)

    return score
