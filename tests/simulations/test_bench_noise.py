"""``silorec bench noise`` measures what its goals speak of."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

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


def test_whole_number_noise_is_beside_opendp_or_says_that_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here OpenDP is a stand-in that takes 2 ms for 1,000 numbers: it is a tool to compare with, and need not be installed."""
    monkeypatch.setattr(noise, "SIZES", {"150k": (1_500, 3)})
    monkeypatch.setattr(noise, "OPENDP_SIZE", 1_000)
    monkeypatch.setattr(noise, "_opendp_is_installed", lambda: False)
    alone = {figure.name: figure for figure in run_bench("noise", tmp_path, Silent()).figures}
    name = f"{noise.DISCRETE}, 150k"
    assert alone[name].note == "median of 3; nothing beside it: opendp is not installed"
    assert not [figure for figure in alone if noise.OPENDP in figure]

    asked: list[tuple[float, int]] = []

    def make_gaussian(*_: object, scale: float) -> Callable[[list[int]], None]:
        return lambda values: (asked.append((scale, len(values))), time.sleep(0.002))[1]

    stand_in = MagicMock()
    stand_in.m.make_gaussian = make_gaussian
    monkeypatch.setitem(sys.modules, "opendp", MagicMock(prelude=stand_in))
    monkeypatch.setitem(sys.modules, "opendp.prelude", stand_in)
    monkeypatch.setattr(noise, "_opendp_is_installed", lambda: True)
    both = {figure.name: figure for figure in run_bench("noise", tmp_path, Silent()).figures}
    assert asked == [(2.0**33, 1_000)] * 4
    assert both[noise.OPENDP].value >= 2_000
    assert both[f"{noise.OPENDP} over {name}"].value == pytest.approx(both[noise.OPENDP].value / both[name].value)
    assert both[name].note == "median of 3"


def test_memory_beside_the_result_does_not_grow_with_it() -> None:
    """Noise for ten million numbers takes 80 MB for the numbers and less than 4 MiB more."""
    importlib.import_module("mpmath")  # loaded when the first number needs a second look: seldom, and some megabytes
    small, large = 100_000, 1_000_000
    for name in (noise.HARDENED, noise.ROUNDED, noise.DISCRETE):
        beside = {n: noise._peak(noise._sources(n)[name]) - 8 * n for n in (small, small, large)}  # once to load what it needs
        assert beside[large] < 4 * 2**20
        assert beside[large] < 1.5 * beside[small] + 2**18
