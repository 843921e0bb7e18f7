"""How anonymous is a question to the coordinator's service, and what does that cost? Table, plot and figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.durable import write_durably
from common.errors import ConfigError
from simulations.bench import Figure, register
from simulations.watch import Watch

if TYPE_CHECKING:
    from simulations.linkage.answers import Asked
    from simulations.linkage.choice import Measured, Setting
    from simulations.linkage.visits import Visits

DISTANCES = (0, 1, 5, 10, 20)
QUESTIONS = (1, 2, 5, 10)
SEED = 0


@register("linkage")
def linkage(out: Path, watch: Watch, *, run: str = "", repeats: int = 1) -> list[Figure]:
    """Share of people whose anonymous questions of two days are matched, against NDCG@10; --run names a finished run; an hour."""
    from client.private_history import Protection
    from simulations.linkage.answers import asked_of_run
    from simulations.linkage.choice import above_chord, draws_for, grid, knee, measure, nothing_shown, setting
    from simulations.linkage.plot import Mark, tradeoff
    from simulations.linkage.visits import as_between_visits, real_visits, visit_sizes

    if not run:
        raise ConfigError("benchmark 'linkage' asks a trained model: name the folder of a finished run with --run")
    watch.stage("reading the run")
    asked = asked_of_run(run)
    interactions = asked.population.split.interactions
    visits = as_between_visits(asked.histories("test"), visit_sizes(interactions), SEED)
    settings = grid()
    watch.stage("linking and asking", len(settings))
    rows: list[Measured] = []
    for number, wanted in enumerate(settings, start=1):
        rows.append(measure(asked, visits, wanted, draws=draws_for(wanted, repeats), seed=SEED))
        watch.step(number, wanted.name)
        _keep(out, rows)
    # Chosen by validation; the test figures of the chosen one are only looked at.
    blank = (1 / len(visits), nothing_shown(asked, "validation"))
    points = [blank] + [(row.linked, row.ndcg_validation) for row in rows]
    chosen_at, heights = knee(points) - 1, above_chord(points)
    if chosen_at < 0:
        raise ConfigError("showing nothing is the knee: this model gains nothing from histories, take another run")
    chosen, knee_row = settings[chosen_at], rows[chosen_at]
    default = next((row for row, s in zip(rows, settings, strict=True) if s.protection == Protection()), None)
    open_row = next(row for row in rows if row.name == setting(30, "order kept").name)

    order = [int(i) for i in heights.argsort()[::-1] if i not in (0, chosen_at + 1)]
    runner_up, rival = float(heights[order[0]]), rows[order[0] - 1].name
    marks = [Mark(r.cut, r.cap, r.replacement, r.linked, r.ndcg_test, r is knee_row) for r in rows]
    svg = tradeoff(marks, nothing=(1 / len(visits), nothing_shown(asked, "test")))
    write_durably(out / "linkage.svg", svg.encode())
    watch.stage("the chosen one more closely")
    closer = _closer(asked, chosen, visits, real_visits(interactions))
    _keep(out, rows, chosen=chosen.name, people=len(visits), between=visits.between.tolist(), **closer)

    figures = [
        Figure("people", float(len(visits))),
        Figure("linked, chosen", knee_row.linked, "", f"{knee_row.name}; 95 %: {_span(knee_row)}"),
        Figure("linked, whole order of 30", open_row.linked, "", f"95 %: {_span(open_row)}"),
        Figure("linked by guessing", 1 / len(visits)),
        Figure("linked one to one, chosen", knee_row.everybody),
        Figure("linked, the most distinctive tenth, 2 more items, chosen", closer["distinctive"]),
        Figure("linked, all others, 2 more items, chosen", closer["not distinctive"]),
        Figure("linked among those whose questions overlap, chosen", knee_row.overlapping),
        Figure("right among the surest tenth, chosen", knee_row.surest),
        Figure("linked when nothing was added, chosen", knee_row.unchanged),
        Figure("ndcg@10, chosen", knee_row.ndcg_test),
        Figure("ndcg@10 within one answer, chosen", knee_row.ndcg_sent),
        Figure("ndcg@10, chosen over whole order of 30", knee_row.ndcg_test / open_row.ndcg_test, "times"),
        Figure("linked, whole order of 30 over chosen", open_row.linked / max(knee_row.linked, 1e-9), "times"),
        Figure(
            "lead of the knee", float(heights[chosen_at + 1] - runner_up), "", f"of {heights[chosen_at + 1]:.3f}; next: {rival}"
        ),
        Figure("the default is the knee", float(default is knee_row), "", "1 is yes"),
    ]
    figures += [Figure(f"linked, pool of {pool}, chosen", share) for pool, share in knee_row.pools.items()]
    figures += [Figure(f"linked after {n} more items, chosen", share) for n, share in closer["by distance"].items()]
    figures.append(Figure("linked between real visits, chosen", closer["real visits"], "", f"{closer['who came back']} people"))
    figures += [Figure(name, value) for name, value in closer["repeats"].items()]
    return figures


def _closer(asked: Asked, chosen: Setting, visits: Visits, returned: Visits) -> dict[str, Any]:
    """Distances in items, people who really came back, short histories, and many questions of one person."""
    from random import Random

    from simulations.linkage.answers import short_quality
    from simulations.linkage.choice import Setting, between, by_distance, distinctive_and_others
    from simulations.linkage.repeats import told_apart

    histories, replacing = asked.histories("test"), replace(chosen.protection, replacement=0.2)
    repeated = {
        f"true told from false (AUC), a fifth replaced {'permanently' if permanent else 'afresh'}, {n} questions": told_apart(
            histories, asked.n_items, replacing, n, permanent=permanent, seed=SEED
        )
        for permanent in (False, True)
        for n in QUESTIONS
    }
    rng = Random(SEED)
    short = _shortened(histories, chosen.protection.cap, rng)
    fills = {
        fill: between(asked, short, Setting(chosen.cut, replace(chosen.protection, fill=fill)), SEED) for fill in (False, True)
    }
    costs = {fill: short_quality(asked, short, replace(chosen.protection, fill=fill), SEED) for fill in (False, True)}
    distinctive, others = distinctive_and_others(asked, chosen, SEED)
    return {
        "distinctive": distinctive,
        "not distinctive": others,
        "by distance": by_distance(asked, chosen, DISTANCES, SEED),
        "real visits": between(asked, returned, chosen, SEED),
        "who came back": len(returned),
        "repeats": repeated
        | {
            f"linked, a fifth replaced {'permanently' if permanent else 'afresh'}": between(
                asked, visits, Setting(chosen.cut, replacing), SEED, permanent=permanent
            )
            for permanent in (False, True)
        }
        | {
            **{f"ndcg@10, short histories {'filled' if fill else 'as they are'}": value for fill, value in costs.items()},
            "linked, short histories as they are": fills[False],
            "linked, short histories filled": fills[True],
        },
    }


def _shortened(histories: Any, cap: int, rng: Any) -> Visits:
    """Everybody at the beginning: 1 to ``cap`` items on the first day, and one more on the second."""
    from simulations.linkage.visits import Visits

    cuts = [rng.randint(1, cap) for _ in histories]
    return Visits(
        tuple(history[:n] for history, n in zip(histories, cuts, strict=True)),
        tuple(history[: n + 1] for history, n in zip(histories, cuts, strict=True)),
    )


def _span(row: Measured) -> str:
    low, high = row.linked_interval
    return f"{low:.3f} to {high:.3f}"


def _keep(out: Path, rows: list[Measured], **more: Any) -> None:
    """All settings as JSON, after each: an hour's work is not lost with the last minute."""
    content = {"settings": [row.as_dict() for row in rows], **more}
    write_durably(out / "settings.json", (json.dumps(content, indent=2) + "\n").encode())
