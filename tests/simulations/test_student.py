"""What a student keeps is measured as a run is measured, by the formula and the files that a bundle is served with."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.bundle.files import read_bundle
from common.config import load, to_toml
from common.engine import Engine
from common.errors import DataError
from common.metrics import evaluate
from common.model.adapter import manifest_of
from common.model.finished import CONFIG
from simulations.bench import goals_of, run_bench
from simulations.evaluate import Evaluator
from simulations.student import Pupil, distil_run, keep, pupil_of, student_scores
from simulations.watch import Silent
from tests.simulations import small_run

DISTILLATION = {
    "histories": 120, "epochs": 6, "batch_size": 8, "width": 16, "heads": 2, "feed_forward": 32, "item_dim": 4, "top_k": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(private: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished private run, with settings for a small student, distilled and measured."""
    folder = tmp_path_factory.mktemp("distilled") / "small"
    shutil.copytree(private, folder)
    config = load(folder / CONFIG, {f"distillation.{key}": value for key, value in DISTILLATION.items()})
    (folder / CONFIG).write_text(to_toml(config))
    distil_run(folder, Silent())
    return folder


@pytest.fixture(scope="module")
def pupil(finished: Path) -> Pupil:
    return pupil_of(finished, Silent())


def test_the_result_holds_every_loss_and_what_was_kept(finished: Path) -> None:
    result = small_run.result(finished)
    student = result["student"]
    assert student["teacher_ndcg@10"] == pytest.approx(result["ndcg@10"], abs=1e-9), "the run measured the same model"
    assert student["retained"] == pytest.approx(student["bundle_ndcg@10"] / student["teacher_ndcg@10"])
    assert [epoch["number"] for epoch in student["epochs"]] == list(range(1, 7))
    assert all(np.isfinite(list(epoch.values())).all() for epoch in student["epochs"])
    assert student["seconds"]["sampling"] > 0
    assert student["model_bytes"] > 1000


def test_the_figure_is_that_of_the_bundle_on_the_disk(finished: Path, pupil: Pupil) -> None:
    """Computed again by a loop over the served engine's scores."""
    bundle = read_bundle(finished / "small.bundle", {(finished / "bundle.key.pub").read_text().strip()})
    evaluator = _evaluator(pupil)
    gains = []
    engine = Engine(bundle, search="exact")
    for history, target in zip(evaluator.histories("test"), evaluator.targets("test"), strict=True):
        scores = engine.scores([history.tolist()])[0]
        others = np.setdiff1d(np.arange(len(scores)), [*history, target])
        rank = 1 + int((scores[others] > scores[target]).sum())
        gains.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
    student = small_run.result(finished)["student"]
    assert np.mean(gains) == pytest.approx(student["bundle_ndcg@10"], abs=2e-3)
    assert next(one.value for one in bundle.card.quality if one.name == "ndcg@10 of the student") == student["bundle_ndcg@10"]


def test_rounding_costs_next_to_nothing(pupil: Pupil, finished: Path) -> None:
    """NDCG@10 within 1 %, on 4,000 made-up cases whose targets the student itself would draw: a small run's users are too few."""
    engine = Engine(pupil.bundle(finished), search="exact")
    n_items, random = len(engine.bundle.items), np.random.default_rng(0)
    histories = [random.choice(n_items, 5, replace=False).astype(np.int32) for _ in range(4000)]
    exact = student_scores(pupil.student, histories)
    served = engine.scores([history.tolist() for history in histories])
    chances = np.exp(exact - exact.max(axis=1, keepdims=True))
    for row, history in enumerate(histories):
        chances[row, history] = 0.0
    targets = np.array([random.choice(n_items, p=row / row.sum()) for row in chances.astype(np.float64)], dtype=np.int32)
    before, after = (float(evaluate(scores, targets, histories, depth=10).ndcg(10).mean()) for scores in (exact, served))
    assert after == pytest.approx(before, rel=0.01)
    centred = [scores - scores.mean(axis=1, keepdims=True) for scores in (exact, served)]
    assert np.abs(centred[0] - centred[1]).mean() < 0.02 * centred[0].std(axis=1).mean()


def test_the_teacher_s_scores_are_kept_for_the_next_time(pupil: Pupil, finished: Path, tmp_path: Path) -> None:
    first = keep(finished, pupil, cache=tmp_path)
    (scores,) = tmp_path.glob("scores-*-test.npy")
    values = np.load(scores)
    assert keep(finished, pupil, cache=tmp_path) == first
    np.save(scores, -values)
    assert keep(finished, pupil, cache=tmp_path).teacher != first.teacher, "they are what is used"


def test_a_folder_without_a_result_is_refused(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(DataError, match="not the result of a simulation"):
        distil_run(tmp_path / "run", Silent())


def test_simulate_distils_when_asked(tmp_path: Path) -> None:
    import tomli_w
    from typer.testing import CliRunner

    from silorec import command_line

    scenario = tmp_path / "small.toml"
    settings = {**small_run.SETTINGS, "federation": {"rounds": 1}, "distillation": DISTILLATION | {"epochs": 1}}
    scenario.write_text(tomli_w.dumps(settings))
    arguments = ["simulate", str(scenario), "--out", str(tmp_path / "runs"), "--distil", "--json"]
    done = CliRunner().invoke(command_line(), arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["student"]["k"] == 10
    assert (tmp_path / "runs" / "small" / "small.bundle").is_file()


def test_the_report_tells_what_the_student_keeps(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    student = small_run.result(finished)["student"]
    table = page[page.index('id="table-student"') :]
    shown = re.findall(r'<data value="([^"]+)"', table[: table.index("</table>")])
    assert [float(value) for value in shown] == [student[f"{name}_ndcg@10"] for name in ("teacher", "student", "bundle")]
    assert f"{100 * student['retained']:.1f} % are kept" in page
    assert "held out" in page[page.index('id="student"') : page.index('id="table-student"')]


def test_the_bench_measures_what_its_goals_name(finished: Path, tmp_path: Path) -> None:
    """On four small runs: every goal has its figure, runs are left as they were, and a second time distils nothing again."""
    runs = tmp_path / "runs"
    for name in ("ref0", "ref1", "ref2", "demo"):
        shutil.copytree(finished, runs / name, ignore=shutil.ignore_patterns("student", "*.bundle"))
    before = sorted(path.relative_to(runs) for path in runs.rglob("*"))
    report = run_bench("student", tmp_path / "bench", Silent(), runs=str(runs))
    figures = {figure.name: figure.value for figure in report.figures}
    assert {goal.figure for goal in goals_of("student")} <= set(figures)
    assert all(np.isfinite(value) for value in figures.values())
    assert sorted(path.relative_to(runs) for path in runs.rglob("*")) == before
    again = run_bench("student", tmp_path / "bench", Silent(), runs=str(runs))
    name = "ref0: sampling and distilling"
    assert next(figure.value for figure in again.figures if figure.name == name) == figures[name]
    with pytest.raises(DataError, match="no finished run"):
        run_bench("student", tmp_path / "bench", Silent(), runs=str(tmp_path))


def test_the_protocol_is_the_run_s(pupil: Pupil) -> None:
    """The evaluator's NDCG of given scores equals the metric's own."""
    evaluator = _evaluator(pupil)
    histories, targets = evaluator.histories("test"), evaluator.targets("test")
    scores = student_scores(pupil.student, histories)
    expected = evaluate(scores, targets, histories, depth=10).ndcg(10).mean()
    assert evaluator.rank(scores, "test").ndcg(10).mean() == pytest.approx(expected)


def _evaluator(pupil: Pupil) -> Evaluator:
    from common.data.population import load_population

    teacher = pupil.teachers.models[0]
    return Evaluator(pupil.config, load_population(pupil.config), teacher, manifest_of(teacher))
