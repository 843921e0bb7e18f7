"""The trade as a picture that stands alone: share of people linked from left to right, quality from bottom to top.

As in ``common/report/plots.py`` both scales start at zero and shapes differ beside colours; the picture carries its own style,
for light and dark, because a document shows it without the report's style sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from common.report.plots import nice_ticks, tick_labels

_WIDTH, _HEIGHT = 800, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 20, 74, 56

_STYLE = """
.page{fill:#fbfcfd}.grid{stroke:#e1e5e9}text{fill:#1d2731}.tick{fill:#46535f;font-size:12px}
.own{fill:#1f66b0;stroke:#1f66b0}.shuffled{fill:none;stroke:#b3540a}.middle{fill:none;stroke:#0b7a5e}.order{fill:none;stroke:#6a6e75}
.false{fill:none;stroke:#8a3ea8}.chosen{fill:none;stroke:#b23a2e;stroke-width:2.5}.nothing{stroke:#1d2731;stroke-width:2}
@media (prefers-color-scheme:dark){.page{fill:#12171d}.grid{stroke:#2b333b}text{fill:#e6ebf0}.tick{fill:#aab6c1}
.own{fill:#74b1f2;stroke:#74b1f2}.shuffled{stroke:#f0a05a}.middle{stroke:#4fc9a4}.order{stroke:#a0a6af}.false{stroke:#c78be0}
.chosen{stroke:#ff9a94}.nothing{stroke:#e6ebf0}}
"""

_KINDS = {"1+3": "own", "all shuffled": "shuffled", "1+3+6": "middle", "order kept": "order"}
_REPLACED = "1+3, some replaced"


@dataclass(frozen=True)
class Mark:
    """One setting: where it stands, and whether it was chosen."""

    cut: str
    cap: int
    replacement: float
    linked: float
    ndcg: float
    chosen: bool = False

    @property
    def kind(self) -> str:
        """Class of its mark."""
        return "false" if self.replacement else _KINDS[self.cut]

    @property
    def words(self) -> str:
        """What a pointer is told."""
        replaced = f", {self.replacement:.0%} replaced" if self.replacement else ""
        return f"newest {self.cap}, {self.cut}{replaced}: {self.linked:.1%} linked, NDCG@10 {self.ndcg:.4f}"


def tradeoff(marks: Sequence[Mark], *, nothing: tuple[float, float]) -> str:
    """An SVG document; ``nothing`` is where an empty question stands."""
    ticks_x = nice_ticks(1.0, 5)
    ticks_y = nice_ticks(max([nothing[1], *(mark.ndcg for mark in marks)]), 6)

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / ticks_x[-1]

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / ticks_y[-1]

    parts = [f'<rect class="page" width="{_WIDTH}" height="{_HEIGHT}"/>']
    for tick, label in zip(ticks_x, tick_labels(ticks_x), strict=True):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" y1="{_TOP}" x2="{x(tick):.1f}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(_text("tick", x(tick), _HEIGHT - _BOTTOM + 18, label, "middle"))
    for tick, label in zip(ticks_y, tick_labels(ticks_y), strict=True):
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y(tick):.1f}" x2="{_WIDTH - _RIGHT}" y2="{y(tick):.1f}"/>')
        parts.append(_text("tick", _LEFT - 8, y(tick) + 4, label, "end"))
    parts.append(_text("", (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 14, "share of people linked across two days", "middle"))
    parts.append(_text("", _LEFT, _TOP - 12, "NDCG@10", "start"))
    parts += _legend([*_KINDS.items(), (_REPLACED, "false")])
    for mark in marks:
        shape = _shape(mark.kind, x(mark.linked), y(mark.ndcg))
        ring = f'<circle class="chosen" cx="{x(mark.linked):.1f}" cy="{y(mark.ndcg):.1f}" r="10"/>' if mark.chosen else ""
        parts.append(f"<g><title>{escape(mark.words)}</title>{shape}{ring}</g>")
        if mark.kind == "own":
            parts.append(_text("tick", x(mark.linked), y(mark.ndcg) - 13, str(mark.cap), "middle"))
    at_x, at_y = x(nothing[0]), y(nothing[1])
    cross = f"M{at_x - 5:.1f} {at_y - 5:.1f}l10 10m0 -10l-10 10"
    parts.append(f'<g><title>nothing shown: NDCG@10 {nothing[1]:.4f}</title><path class="nothing" d="{cross}"/></g>')
    parts.append(_text("tick", at_x + 12, at_y + 4, "nothing shown", "start"))
    about = "; ".join(mark.words for mark in marks if mark.chosen) or "none chosen"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'role="img" aria-labelledby="t d" font-family="system-ui, -apple-system, \'Segoe UI\', sans-serif" font-size="13">'
        '<title id="t">People linked across two days, against quality</title>'
        f'<desc id="d">{len(marks)} settings of protection. Ringed: {escape(about)}.</desc>'
        f"<style>{_STYLE}</style>" + "\n".join(parts) + "</svg>\n"
    )


def _legend(entries: Sequence[tuple[str, str]]) -> list[str]:
    parts, place = [_text("tick", _LEFT, 20, "buckets, newest first (numbers in the plot: items shown):", "start")], float(_LEFT)
    for name, kind in entries:
        parts += [_shape(kind, place + 6, 38), _text("tick", place + 18, 42, name, "start")]
        place += 42 + 7.2 * len(name)
    return parts


def _shape(kind: str, x: float, y: float) -> str:
    """Circle, square, triangle, rhombus or cross."""
    if kind == "own":
        return f'<circle class="own" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    paths = {
        "shuffled": f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z",
        "middle": f"M{x:.1f} {y - 5:.1f}l5 9h-10z",
        "order": f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
        "false": f"M{x - 4:.1f} {y:.1f}h8m-4 -4v8",
    }
    return f'<path class="{kind}" d="{paths[kind]}"/>'


def _text(style: str, x: float, y: float, words: str, anchor: str) -> str:
    kind = f' class="{style}"' if style else ""
    return str(Markup('<text{} x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(Markup(kind), x, y, anchor, words))
