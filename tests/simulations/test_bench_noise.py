"""``silorec bench noise`` measures what its goals speak of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulations.bench import goals_of, noise, run_bench
from simulations.watch import Silent


def test_every_goal_is_about_a_figure_that_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a thousandth of the size; whether times hold is not asked here."""
    monkeypatch.setattr(noise, "SIZES", {"150k": (1_500, 3), "10M": (20_000, 3)})
    report = run_bench("noise", tmp_path, Silent())
    values = {figure.name: figure.value for figure in report.figures}
    assert len(values) == len(report.figures)
    assert {goal.figure for goal in report.goals} <= set(values)
    assert goals_of("noise")
    assert all(value > 0 for name, value in values.items() if "memory" not in name)
    ratio = values[f"{noise.HARDENED} over {noise.REFERENCE}, 10M"]
    assert ratio == pytest.approx(values[f"{noise.HARDENED}, 10M"] / values[f"{noise.REFERENCE}, 10M"])
    assert json.loads((tmp_path / "noise.json").read_text())["bench"] == "noise"
    assert report.summary().startswith("noise: ")


def test_memory_beside_the_result_does_not_grow_with_it() -> None:
    """Noise for ten million numbers takes 80 MB for the numbers and less than 4 MiB more."""
    small, large = 100_000, 1_000_000
    for name in (noise.HARDENED, noise.ROUNDED):
        beside = {n: noise._peak(noise._sources(n)[name]) - 8 * n for n in (small, small, large)}  # once to load what it needs
        assert beside[large] < 4 * 2**20
        assert beside[large] < 1.5 * beside[small] + 2**18
