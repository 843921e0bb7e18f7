"""The figures of a report as inline SVG: dots with intervals, lines over rounds, and ROC curves.

Plain markup without scripts, fonts or colours of its own: marks carry classes, and the page's style sheet paints them, which is
how a figure follows a light or a dark page. Every figure is drawn twice, for wide and for narrow screens, so that its text keeps
its size on a phone; the page shows one of the two. Every mark tells its figures to a pointer (``<title>``), every figure tells
its content to a screen reader (``aria-label``). Colour never carries meaning alone: shapes and dashes differ as well.

All scales start at zero, so that lengths can be compared as ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

_WIDE, _NARROW = 800, 340

Style = Literal["own", "before", "reference", "validation", "test", "spent"]


@dataclass(frozen=True)
class Dot:
    """One row of :func:`dot_plot`; ``interval`` is ``(low, high)`` and ``value`` None where it was not measured.

    ``reach`` is what ``value`` could have been at most, drawn as a dashed line with an end.
    """

    label: str
    value: float | None
    interval: tuple[float, float] | None = None
    style: Style = "reference"
    reach: float | None = None


@dataclass(frozen=True)
class Series:
    """One line of a :class:`Panel`: ``(round, value)`` in the order of rounds; not ``joined``, it is points only."""

    name: str
    points: Sequence[tuple[int, float]]
    style: Style
    joined: bool = True


@dataclass(frozen=True)
class Level:
    """A horizontal or vertical line to compare with."""

    label: str
    value: float


@dataclass(frozen=True)
class Panel:
    """One quantity over rounds."""

    title: str
    series: Sequence[Series]
    levels: Sequence[Level] = ()
    height: int = 190


@dataclass(frozen=True)
class Curve:
    """One line of :func:`roc_plot`: ``(false positive rate, true positive rate)`` from (0, 0) to (1, 1)."""

    name: str
    points: Sequence[tuple[float, float]]
    style: Style


def both_widths(wide: Markup, narrow: Markup) -> Markup:
    """The two drawings of one figure, of which the page's style sheet shows one."""
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(wide, narrow)


def dot_plot(dots: Sequence[Dot], *, axis: str, digits: int = 4, level: Level | None = None) -> Markup:
    """Rows of dots with their intervals on one scale from zero.

    Parameters
    ----------
    dots:
        Rows from top to bottom.
    axis:
        What is measured, written under the scale.
    digits:
        Decimals of the figures beside the rows.
    level:
        A vertical line to compare with.
    """
    return both_widths(
        _dot_plot(dots, axis=axis, digits=digits, level=level, narrow=False),
        _dot_plot(dots, axis=axis, digits=digits, level=level, narrow=True),
    )


ROUNDS = "round (0 = before training)"


def rounds_plot(panels: Sequence[Panel], *, marked: int | None = None, axis: str = ROUNDS) -> Markup:
    """Panels under each other that share the axis of rounds.

    Parameters
    ----------
    panels:
        From top to bottom; panels without any point are left out.
    marked:
        The round whose model is reported: a vertical line.
    axis:
        What is counted from left to right.
    """
    drawn = [panel for panel in panels if any(series.points for series in panel.series)]
    return both_widths(_rounds_plot(drawn, marked, axis, narrow=False), _rounds_plot(drawn, marked, axis, narrow=True))


def roc_plot(curves: Sequence[Curve]) -> Markup:
    """True against false positive rates, on a square; the dashed diagonal is guessing."""
    return both_widths(_roc_plot(curves, narrow=False), _roc_plot(curves, narrow=True))


def nice_ticks(highest: float, most: int = 6) -> list[float]:
    """From 0 in equal steps of 1, 2, 2.5 or 5 times a power of ten to the first that is not below ``highest``.

    At most ``most`` steps; a ``highest`` of 0 gives 0 and 1.
    """
    if highest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest / most))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0, 20.0) if factor * power * most >= highest * (1 - 1e-12))
    return [i * step for i in range(math.ceil(highest / step - 1e-9) + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """As many decimals as the step needs, the same in all labels."""
    step = ticks[1] - ticks[0]
    digits = next((d for d in range(12) if abs(round(step, d) - step) <= 1e-6 * step), 12)
    return [f"{tick:,.{digits}f}" for tick in ticks]


def _dot_plot(dots: Sequence[Dot], *, axis: str, digits: int, level: Level | None, narrow: bool) -> Markup:
    width = _NARROW if narrow else _WIDE
    left, right = (10, 66) if narrow else (252, 76)
    row, top = (46, 8) if narrow else (32, 8)
    if level is not None:
        top += 18
    known = [d for d in dots if d.value is not None]
    highest = max([0.0, *(d.value or 0.0 for d in known), *(d.interval[1] for d in known if d.interval)])
    highest = max([highest, *(d.reach for d in known if d.reach is not None)])
    if level is not None:
        highest = max(highest, level.value)
    ticks = nice_ticks(highest, 4 if narrow else 6)
    bottom = top + row * len(dots)
    height = bottom + 44

    def x(value: float) -> float:
        return left + (width - left - right) * value / ticks[-1]

    parts = []
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        parts.append(_line("grid", x(tick), top, x(tick), bottom))
        parts.append(_text("tick", x(tick), bottom + 16, label, "middle"))
    parts.append(_text("axis", (left + width - right) / 2, bottom + 36, axis, "middle"))
    if level is not None:
        parts.append(_line("level", x(level.value), top - 4, x(level.value), bottom))
        middle = (left + width - right) / 2
        parts.append(_text("level-name", x(level.value), top - 8, level.label, "start" if x(level.value) < middle else "end"))
    for place, dot in enumerate(dots):
        y = top + row * place + (row * 0.68 if narrow else row / 2)
        parts.append(_dot_row(dot, x, y, left=left, width=width, digits=digits, narrow=narrow))
    description = f"Dot plot of {axis}. " + "; ".join(describe(d, digits) for d in dots) + "."
    return _svg(width, height, description, parts)


def describe(dot: Dot, digits: int) -> str:
    """The row in words: ``label value (low to high)``."""
    if dot.value is None:
        return f"{dot.label}: not measured"
    words = f"{dot.label}: {dot.value:.{digits}f}"
    if dot.reach is not None:
        words += f" of at most {dot.reach:.{digits}f}"
    return words if dot.interval is None else f"{words} ({dot.interval[0]:.{digits}f} to {dot.interval[1]:.{digits}f})"


def _dot_row(dot: Dot, x: Callable[[float], float], y: float, *, left: float, width: float, digits: int, narrow: bool) -> Markup:
    parts = [Markup("<title>{}</title>").format(describe(dot, digits))]
    if narrow:
        parts.append(_text("label", left, y - 14, _shorten(dot.label, 42), "start"))
    else:
        parts.append(_text("label", left - 14, y + 4.5, _shorten(dot.label, 37), "end"))
    if dot.value is None:
        parts.append(_text("tick", x(0) + 8, y + 4.5, "not measured", "start"))
    else:
        if dot.reach is not None:
            end = x(dot.reach)
            parts.append(_line("level", x(0), y, end, y))
            parts.append(_line("whisker", end, y - 7, end, y + 7))
        if dot.interval is not None:
            low, high = x(dot.interval[0]), x(dot.interval[1])
            parts.append(_line("whisker", low, y, high, y))
            parts.append(_line("whisker", low, y - 4, low, y + 4))
            parts.append(_line("whisker", high, y - 4, high, y + 4))
        parts.append(_marker(dot.style, x(dot.value), y))
        parts.append(_text("value", width - 6, y + 4.5, f"{dot.value:.{digits}f}", "end"))
    return Markup('<g class="{}">{}</g>').format(dot.style, Markup("").join(parts))


def _rounds_plot(panels: Sequence[Panel], marked: int | None, axis: str, *, narrow: bool) -> Markup:
    width = _NARROW if narrow else _WIDE
    left, right = 50, 14
    last = max([1, *(number for panel in panels for series in panel.series for number, _ in series.points)])
    rounds = [t for t in nice_ticks(last, 6 if narrow else 12) if t == int(t) and t <= last]

    def x(number: float) -> float:
        return left + (width - left - right) * number / last

    parts, words, y = [], [], 0.0
    for panel in panels:
        top = y + (46 if len(panel.series) > 1 else 30)
        bottom = top + panel.height
        values = [v for series in panel.series for _, v in series.points] + [level.value for level in panel.levels]
        ticks = nice_ticks(max(values), 5)
        parts.append(_text("panel", 0, y + 16, panel.title, "start"))
        if len(panel.series) > 1:
            parts.append(_legend(panel.series, y + 36))
        for tick, label in zip(ticks, tick_labels(ticks), strict=True):
            level_y = bottom - panel.height * tick / ticks[-1]
            parts.append(_line("grid", left, level_y, width - right, level_y))
            parts.append(_text("tick", left - 8, level_y + 4, label, "end"))
        for number in rounds:
            parts.append(_text("tick", x(number), bottom + 16, f"{number:.0f}", "middle"))
        if marked is not None and marked <= last:
            parts.append(_line("marked", x(marked), top, x(marked), bottom))
        for level in panel.levels:
            level_y = bottom - panel.height * level.value / ticks[-1]
            parts.append(_line("level", left, level_y, width - right, level_y))
            below = level_y - top < 16
            parts.append(_text("level-name", left + 6, level_y + (15 if below else -5), level.label, "start"))
            words.append(f"{level.label}.")
        for series in panel.series:
            scaled = [(number, value, x(number), bottom - panel.height * value / ticks[-1]) for number, value in series.points]
            parts.append(_series(series, scaled))
            words.append(_describe_series(panel, series))
        y = bottom + 26
    parts.append(_text("axis", (left + width - right) / 2, y + 8, axis, "middle"))
    return _svg(width, y + 16, "Line plot over rounds. " + " ".join(words), parts)


def _roc_plot(curves: Sequence[Curve], *, narrow: bool) -> Markup:
    size, left, top = (250 if narrow else 340), 50, 30 + 22 * len(curves)
    ticks = [0.0, 0.5, 1.0] if narrow else [0.0, 0.25, 0.5, 0.75, 1.0]
    parts, words = [], []
    for place, curve in enumerate(curves):
        at = 22.0 * (place + 1)
        sample = Markup('<path class="curve" d="M{:.1f} {:.1f} h26"/>').format(left, at - 4)
        name = _text("tick", left + 33, at, curve.name, "start")
        parts.append(Markup('<g class="{} roc">{}{}</g>').format(curve.style, sample, name))
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        x, y = left + size * tick, top + size * (1 - tick)
        parts += [_line("grid", x, top, x, top + size), _text("tick", x, top + size + 16, label, "middle")]
        parts += [_line("grid", left, y, left + size, y), _text("tick", left - 8, y + 4, label, "end")]
    parts.append(_line("level", left, top + size, left + size, top))
    for curve in curves:
        scaled = [(left + size * fpr, top + size * (1 - tpr)) for fpr, tpr in curve.points]
        path = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(scaled))
        drawn = Markup('<path class="curve" d="{}"/>').format(path)
        parts.append(Markup('<g class="{} roc"><title>{}</title>{}</g>').format(curve.style, curve.name, drawn))
        words.append(f"{curve.name}.")
    parts.append(_text("axis", left + size / 2, top + size + 38, "false positive rate; upwards: true positive rate", "middle"))
    described = "ROC curves; the diagonal is guessing. " + " ".join(words)
    return _svg(_NARROW if narrow else _WIDE, top + size + 46, described, parts)


def _series(series: Series, scaled: Sequence[tuple[int, float, float, float]]) -> Markup:
    path = " ".join(f"{'L' if i else 'M'}{px:.1f} {py:.1f}" for i, (_, _, px, py) in enumerate(scaled))
    parts = [Markup('<path class="curve" d="{}"/>').format(path)] if series.joined and len(scaled) > 1 else []
    dense = len(scaled) > 60
    for i, (number, value, px, py) in enumerate(scaled):
        if dense and i not in (0, len(scaled) - 1):
            continue
        title = Markup("<title>{}</title>").format(f"{series.name}, round {number}: {value:.4g}")
        parts.append(Markup("<g>{}{}</g>").format(title, _marker(series.style, px, py)))
    return Markup('<g class="{}">{}</g>').format(series.style, Markup("").join(parts))


def _describe_series(panel: Panel, series: Series) -> str:
    if not series.points:
        return f"{panel.title}, {series.name}: not measured."
    (first, start), (last, end) = series.points[0], series.points[-1]
    name = panel.title if series.name == panel.title else f"{panel.title}, {series.name}"
    return f"{name}: {start:.4g} in round {first}, {end:.4g} in round {last}."


def _legend(series: Iterable[Series], y: float) -> Markup:
    parts, at = [], 2.0
    for one in series:
        curve = Markup('<path class="curve" d="M{:.1f} {:.1f} h26"/>').format(at, y - 4) if one.joined else Markup()
        name = _text("tick", at + 33, y, one.name, "start")
        parts.append(Markup('<g class="{}">{}{}{}</g>').format(one.style, curve, _marker(one.style, at + 13, y - 4), name))
        at += 60 + 6.6 * len(one.name)
    return Markup("").join(parts)


def _marker(style: Style, x: float, y: float) -> Markup:
    if style == "own":
        return Markup('<path class="mark" d="M{:.1f} {:.1f} l7 7 -7 7 -7 -7z"/>').format(x, y - 7)
    if style == "validation":
        return Markup('<rect class="mark" x="{:.1f}" y="{:.1f}" width="7" height="7"/>').format(x - 3.5, y - 3.5)
    return Markup('<circle class="mark" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(
        x, y, 5 if style in ("reference", "before") else 4
    )


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(style, x1, y1, x2, y2)


def _text(style: str, x: float, y: float, words: str, anchor: Literal["start", "middle", "end"]) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(style, x, y, anchor, words)


def _svg(width: float, height: float, description: str, parts: Sequence[Markup]) -> Markup:
    start = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">').format(width, height, description)
    return start + Markup("").join(parts) + Markup("</svg>")


def _shorten(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"
