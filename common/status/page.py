"""A run's status on one page that needs nothing else: who took part in which round, and how long rounds took.

It is made from the run's folder, requests nothing and runs no scripts, as a run's report (``common.report``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from markupsafe import Markup

from common.durable import write_durably
from common.errors import DataError
from common.report.page import environment
from common.report.plots import Panel, Series, rounds_plot
from common.status.events import EVENTS, read_events, stamp
from common.status.look import look_at
from common.status.run import ABSENT, ANSWERED, LEFT_OUT, NO_ANSWER, REFUSED, WAITING, Round, folded, state_in_words
from common.status.tables import headline

MOST_ROUNDS: Final = 200
"""More rounds than this are not all drawn: the last ones are."""

#: Colour never carries meaning alone.
SIGNS: Final = {ANSWERED: "", REFUSED: "×", NO_ANSWER: "?", LEFT_OUT: "·", ABSENT: "–", WAITING: ""}

_CELL, _LEFT, _TOP = 18, 150, 22


def write_page(run: Path, path: Path) -> Path:
    """Write the page of the run in folder ``run`` to ``path``.

    Raises
    ------
    DataError
        If the folder is not that of a deployed run, or the page cannot be written.
    """
    page = render(run)
    try:
        return write_durably(path, page.encode("utf-8", "replace"))
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror})", path) from None


def render(run: Path, now: float | None = None) -> str:
    """The page's text; see :func:`write_page`."""
    seen = look_at(run, now)
    if seen.kind != "run":
        raise DataError(f"a page is made of a run's folder, and this is a {seen.kind}'s", run)
    rounds = sorted(folded(read_events(run / EVENTS)).rounds.values(), key=lambda one: one.number)[-MOST_ROUNDS:]
    silos = [{**silo, "words": state_in_words(silo)} for silo in seen.facts["silos"]]
    lasted = [(one.number, one.seconds) for one in rounds if one.seconds is not None]
    words = "A column for each round: answered (plain), refused (×), no answer (?), left out (·), not admitted (–)."
    return (
        environment("common.report")
        .get_template("status.html.j2")
        .render(
            status=seen.facts,
            silos=silos,
            troubles=seen.troubles,
            lead=f"{seen.facts['state']}: {headline(seen.facts)}, mode {seen.facts['mode']}",
            made=stamp(time.time() if now is None else now)[:16].replace("T", " ") + " UTC",
            grid=participation([silo["name"] for silo in silos], rounds) if rounds and silos else None,
            grid_words=words,
            plot=rounds_plot([Panel("Seconds of a round", [Series("seconds", lasted, "own")])], axis="round") if lasted else None,
        )
    )


def participation(names: Sequence[str], rounds: Sequence[Round]) -> Markup:
    """A grid of silos by rounds as SVG; silo ``i`` is called ``names[i]``."""
    parts = []
    for row, name in enumerate(names):
        y = _TOP + _CELL * row
        short = name if len(name) <= 20 else name[:19] + "…"
        parts.append(Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}</text>').format(_LEFT - 8, y + 13, short))
        for column, one in enumerate(rounds):
            state = one.states.get(row, WAITING)
            parts.append(_cell(_LEFT + _CELL * column, y, state, f"{name}, round {one.number}: {one.refused.get(row, state)}"))
    for column, one in enumerate(rounds):
        if column == 0 or one.number % 5 == 0:
            x = _LEFT + _CELL * column + _CELL / 2
            parts.append(Markup('<text class="tick" x="{}" y="14" text-anchor="middle">{}</text>').format(x, one.number))
    width, height = _LEFT + _CELL * len(rounds) + 4, _TOP + _CELL * len(names) + 4
    answers = sum(len(one.answered) for one in rounds)
    about = f"Grid of {len(names)} silos by {len(rounds)} rounds: {answers} answers."
    return Markup('<svg viewBox="0 0 {} {}" style="width:{}px" role="img" aria-label="{}">{}</svg>').format(
        width, height, width, about, Markup("").join(parts)
    )


def _cell(x: float, y: float, state: str, title: str) -> Markup:
    name = state.replace(" ", "-")
    box = Markup('<rect class="cell {}" x="{}" y="{}" width="{}" height="{}" rx="3"/>').format(name, x, y, _CELL, _CELL)
    sign = Markup('<text class="sign {}" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        name, x + _CELL / 2, y + _CELL - 5, SIGNS[state]
    )
    return Markup("<g><title>{}</title>{}{}</g>").format(title, box, sign if SIGNS[state] else "")
