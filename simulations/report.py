"""``report.html``: a run on one page that needs nothing else, for a person who never saw the project.

The page is made from what the run's folder holds (``result.json``, ``rounds.jsonl``, ``config.toml``; see ``docs/results.md``)
and from nothing else, so it can be made again at any time. It requests nothing: styles and figures are inline, there are no
scripts, and a content security policy says so to the browser. Everything that comes from data is escaped. A run that was
interrupted renders as well; what is missing is shown as a dash.

Shown figures are rounded; the full value is in the ``value`` attribute of its ``<data>`` element.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from common.config import Config, load
from common.durable import write_durably
from common.errors import DataError
from common.report.page import environment
from common.report.plots import Dot, Level, Panel, Series, Style, dot_plot, rounds_plot
from common.report.words import plural
from simulations import report_text as text

SCHEMA = 1
MOST_SILOS = 24
"""More silos than this are not all drawn: the best, the worst, and the table has them all."""

_REQUIRED = ("schema", "name", "status", "mode", "k", "rounds", "rounds_planned", "selected_round")


@dataclass(frozen=True, eq=False)
class Run:
    """What a run's folder holds; the shape of ``result`` and ``rounds`` is documented in ``docs/results.md``."""

    result: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    config: Config
    config_text: str


@dataclass(frozen=True)
class Row:
    """One recommender in a table of metrics."""

    title: str
    style: Style
    values: Mapping[str, Any]

    def interval(self, key: str) -> tuple[float, float] | None:
        """The confidence interval of a metric, if there is one."""
        return _interval(self.values, key)


def write_report(run_folder: Path) -> Path:
    """Write ``report.html`` into a run's folder.

    Parameters
    ----------
    run_folder:
        Holds ``result.json``, ``rounds.jsonl`` and ``config.toml``.

    Returns
    -------
    The page's path; an older page is replaced in one step.

    Raises
    ------
    DataError
        If a file is missing or malformed, or was written by another version.
    ConfigError
        If ``config.toml`` is no valid configuration.
    """
    page = render(read_run(run_folder))
    # A lone surrogate in a title cannot be encoded; it becomes a question mark.
    return write_durably(run_folder / "report.html", page.encode("utf-8", "replace"))


def read_run(run_folder: Path) -> Run:
    """Read and check a run's folder; raises as :func:`write_report` does."""
    result_path, rounds_path, config_path = (run_folder / name for name in ("result.json", "rounds.jsonl", "config.toml"))
    result = _parse(_read(result_path), result_path)
    missing = [key for key in _REQUIRED if key not in result]
    if missing:
        raise DataError(f"{', '.join(missing)} missing: this is no result of a run", result_path)
    if result["schema"] != SCHEMA:
        raise DataError(
            f"schema {result['schema']!r}, this version reads {SCHEMA}: run it again, or use the other version", result_path
        )
    rounds = [
        _parse(line, rounds_path, number) for number, line in enumerate(_read(rounds_path).split("\n"), start=1) if line.strip()
    ]
    return Run(result, rounds, load(config_path), _read(config_path))


def render(run: Run) -> str:
    """The page as HTML."""
    template = environment("simulations").get_template("report.html.j2")
    result, columns = run.result, text.metrics(run.result["k"])
    key = columns[0].key
    own, silos = _own_rows(run), list(result.get("silos") or ())
    return template.render(
        result=result,
        config=run.config,
        config_text=run.config_text,
        columns=columns,
        key=key,
        rounds=run.rounds,
        has_test=any(r.get("test") for r in run.rounds),
        has_loss=any(r.get("loss") is not None for r in run.rounds),
        protected=result["mode"] != "none",
        silos=silos,
        silos_drawn=min(len(silos), MOST_SILOS),
        own_rows=own,
        validation=result.get("validation") or {},
        reference_rows=_reference_rows(result, key),
        lead=text.lead(result),
        quality=text.quality(result),
        privacy=text.privacy(result),
        reported_round=text.reported_round(result),
        interruption=text.interruption(result),
        comparison=text.comparison(result),
        rounds_figure=_rounds_figure(run, key),
        silos_figure=_silos_figure(silos, result, key),
        student=result.get("student"),
        student_words=text.student(result),
        student_figure=_student_figure(result.get("student") or {}),
        references_figure=_references_figure([*own, *_reference_rows(result, key)], key),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError("no such file: give the folder of a run", path) from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error.reason} at byte {error.start}", path) from None


def _parse(content: str, path: Path, line: int | None = None) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise DataError(f"{constant} is no JSON number; unknown values are null", path, line)

    try:
        value = json.loads(content, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg}", path, line or error.lineno) from None
    if not isinstance(value, dict):
        raise DataError("expected a JSON object", path, line)
    return value


def _own_rows(run: Run) -> list[Row]:
    rows = [Row("This run", "own", run.result)]
    if run.result.get("before_training"):
        rows.append(Row("This run, before training", "before", run.result["before_training"]))
    return rows


def _reference_rows(result: Mapping[str, Any], key: str) -> list[Row]:
    found = sorted(result.get("references") or (), key=lambda r: -1.0 if r.get(key) is None else r[key], reverse=True)
    return [Row(reference["title"], "reference", reference) for reference in found]


def _rounds_figure(run: Run, key: str) -> Markup | None:
    quality = [Series("validation", _points(run.rounds, "validation", key), "validation"), _test_series(run, key)]
    if not any(series.points for series in quality):
        return None
    popular = next((r for r in run.result.get("references") or () if r["name"] == "popularity" and r.get(key) is not None), None)
    levels = [] if popular is None else [Level(f"popularity (test) {popular[key]:.4f}", popular[key])]
    panels = [Panel(f"Quality: {key.upper()}", quality, levels)]
    if run.result["mode"] == "none":
        panels.append(Panel("Loss on validation items, nats", [Series("loss", _points(run.rounds, "loss"), "spent")], height=90))
    else:
        spent = [Series("ε spent", _points(run.rounds, "epsilon"), "spent")]
        budget = run.config.privacy.epsilon
        panels.append(Panel("Privacy: ε spent so far", spent, [Level(f"agreed limit {budget:g}", budget)], height=110))
    return rounds_plot(panels, marked=run.result["selected_round"])


def _test_series(run: Run, key: str) -> Series:
    """Test figures of all rounds; where only the first and the reported state were tested, these two points."""
    every_round = _points(run.rounds, "test", key)
    if every_round:
        return Series("test", every_round, "test")
    ends = {0: (run.result.get("before_training") or {}).get(key)}
    ends[run.result["selected_round"]] = run.result.get(key)
    return Series("test", [(number, value) for number, value in ends.items() if value is not None], "test", joined=False)


def _silos_figure(silos: Sequence[Mapping[str, Any]], result: Mapping[str, Any], key: str) -> Markup | None:
    measured = [silo for silo in silos if silo.get(key) is not None]
    if not measured:
        return None
    drawn = measured
    if len(measured) > MOST_SILOS:
        ranked = sorted(measured, key=lambda silo: silo[key], reverse=True)
        drawn = ranked[: MOST_SILOS // 2] + ranked[-MOST_SILOS // 2 :]
    dots = [Dot(f"{silo['name']} ({plural(silo['users'], 'user')})", silo[key], _interval(silo, key)) for silo in drawn]
    level = None if result.get(key) is None else Level(f"all users {result[key]:.4f}", result[key])
    return dot_plot(dots, axis=f"{key.upper()} on test", level=level)


def _references_figure(rows: Sequence[Row], key: str) -> Markup | None:
    dots = [Dot(row.title, row.values.get(key), row.interval(key), row.style) for row in rows]
    if all(dot.value is None for dot in dots):
        return None
    dots.sort(key=lambda dot: -1.0 if dot.value is None else dot.value, reverse=True)
    return dot_plot(dots, axis=f"{key.upper()} on test")


def _student_figure(student: Mapping[str, Any]) -> Markup | None:
    epochs = student.get("epochs") or ()
    if not epochs:
        return None

    def panel(title: str, name: str, height: int) -> Panel:
        lines: tuple[tuple[str, str, Style], ...] = (("learnt", name, "spent"), ("held out", f"held_out_{name}", "test"))
        series = [Series(label, [(epoch["number"], epoch[key]) for epoch in epochs], style) for label, key, style in lines]
        return Panel(title, series, height=height)

    panels = [
        panel("Divergence from the model, nats", "divergence", 150),
        panel("One minus the cosine of queries", "cosine", 110),
    ]
    return rounds_plot(panels, axis="pass over the made-up histories")


def _points(rounds: Sequence[Mapping[str, Any]], name: str, key: str | None = None) -> list[tuple[int, float]]:
    points = []
    for line in rounds:
        value = line.get(name)
        if key is not None:
            value = (value or {}).get(key)
        if value is not None:
            points.append((line["round"], value))
    return points


def _interval(values: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    found = (values.get("intervals") or {}).get(key)
    return None if found is None else (found[0], found[1])
