"""Marks stand where their figures say."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.report.plots import Dot, Panel, Series, dot_plot, nice_ticks, rounds_plot, tick_labels
from tests.simulations.page import Page


@given(st.floats(1e-9, 1e9), st.integers(2, 12))
def test_ticks_start_at_zero_reach_the_highest_value_and_are_few(highest, most):
    ticks = nice_ticks(highest, most)
    assert ticks[0] == 0
    assert ticks[-1] >= highest * (1 - 1e-8)
    assert 2 <= len(ticks) <= most + 1
    step = ticks[1] - ticks[0]
    assert ticks[-1] - step < highest
    assert float(f"{step:.3e}"[:4]) in (1.0, 2.0, 2.5, 5.0)
    assert [float(label.replace(",", "")) for label in tick_labels(ticks)] == pytest.approx(ticks, rel=1e-6)


def marks(figure: str) -> list[dict[str, str | None]]:
    return [a for tag, a in Page(figure).tags if tag in ("circle", "line") and a.get("class") in ("mark", "whisker")]


def test_dots_and_whiskers_stand_where_their_figures_say():
    values, intervals = (0.02, 0.05, 0.08), ((0.01, 0.04), (0.03, 0.06), (0.07, 0.1))
    wide = str(dot_plot([Dot(f"d{i}", v, c) for i, (v, c) in enumerate(zip(values, intervals, strict=True))], axis="x")).split(
        "</svg>"
    )[0]
    found = marks(wide.split(">", 1)[1] + "</svg>")
    dots = [float(a["cx"] or "") for a in found if "cx" in a]
    lines = [(float(a["x1"] or ""), float(a["x2"] or "")) for a in found if "x1" in a and a["x1"] != a["x2"]]
    scale = (dots[2] - dots[0]) / (values[2] - values[0])
    zero = dots[0] - scale * values[0]
    zero_tick = next(float(m) for m, label in re.findall(r'x="([\d.]+)"[^>]*>([\d.]+)</text>', wide) if label == "0.00")
    assert zero == pytest.approx(zero_tick, abs=0.15)
    for dot, line, value, interval in zip(dots, lines, values, intervals, strict=True):
        assert dot == pytest.approx(zero + scale * value, abs=0.15)
        assert line == pytest.approx([zero + scale * end for end in interval], abs=0.2)


def test_points_over_rounds_stand_where_their_figures_say():
    points = [(0, 1.0), (5, 3.0), (20, 2.0)]
    wide = str(rounds_plot([Panel("Loss", [Series("loss", points, "spent")]), Panel("none", [Series("x", [], "test")])])).split(
        "</svg>"
    )[0]
    found = marks(wide.split(">", 1)[1] + "</svg>")
    xs, ys = ([float(a[name] or "") for a in found] for name in ("cx", "cy"))
    assert (xs[1] - xs[0]) / (xs[2] - xs[0]) == pytest.approx(5 / 20, abs=1e-3)
    assert (ys[0] - ys[2]) / (ys[0] - ys[1]) == pytest.approx((2 - 1) / (3 - 1), abs=1e-2)
    assert "none" not in wide, "a panel without points is left out"


def test_row_that_was_not_measured_says_so():
    figure = str(dot_plot([Dot("known", 0.1), Dot("unknown", None)], axis="x"))
    assert figure.count("not measured") >= 2
    assert len(re.findall("<circle", figure)) == 2, "one dot, wide and narrow"
