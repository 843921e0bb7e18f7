"""How a status looks in a terminal: a heading, a table, and what to worry about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from common.report.words import duration, plural
from common.status.look import Seen
from common.status.run import ANSWERED, WAITING, state_in_words

_COLOURS = {
    ANSWERED: "green",
    WAITING: "",
    "finished": "green",
    "running": "green",
    "round": "cyan",
    "waiting": "cyan",
    "failed": "red",
}


def picture(seen: Seen) -> RenderableType:
    """All of a look."""
    parts = {"run": _run, "simulation": _simulation, "coordinator": _coordinator, "silo": _silo}[seen.kind](seen.facts)
    marks = [Text(f"✗ {line}", "bold red") for line in seen.troubles] + [Text(f"! {line}", "yellow") for line in seen.warnings]
    return Group(*parts, *marks)


def headline(status: Mapping[str, Any]) -> str:
    """``round 4 of 20, train: 3 of 4 silos answered``; how far a run is, in one line."""
    done, planned = status.get("round"), status.get("rounds")
    of = f" of {planned}" if planned is not None else ""
    stage = status.get("stage")
    if status["state"] == "round" and status.get("current_round") is not None:
        line = f"in round {status['current_round']}{of}"
        if stage:
            line += f", {stage['name']}"
            line += (
                f": {stage['answered']} of {stage['asked']} answered"
                if stage["answered"] is not None
                else f": {stage['asked']} asked"
            )
        return line
    return f"{plural(done, 'round')} finished{of}" if done is not None else "no round finished yet"


def _run(status: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield _title(f"{status['run']}", "not running?" if status["stale"] else status["state"], f"mode {status['mode']}")
    yield Text(headline(status))
    speed = [f"{duration(status['seconds_per_round'])} a round"] if status["seconds_per_round"] is not None else []
    if status["seconds_left"] is not None and not status["stale"]:
        speed.append(f"about {duration(status['seconds_left'])} left")
    if status.get("checkpoint"):
        speed.append(f"checkpoint of {_clock(status['checkpoint'])}")
    if status["attempts"] > 1:
        speed.append(f"started {status['attempts']} times")
    if speed:
        yield Text(", ".join(speed), "dim")
    shows = any(silo["budget_left"] is not None for silo in status["silos"])
    table = Table(
        "silo", "state", "rounds", "missed", "last", "refusal (round)", *(["ε left"] if shows else []), box=None, pad_edge=False
    )
    for silo in status["silos"]:
        words = Text(state_in_words(silo), _COLOURS.get(silo["state"], "red" if silo["state"] == "refused" else "yellow"))
        refusal = "" if silo["last_code"] is None else f"{silo['last_code']} ({silo['last_code_round']})"
        row: list[RenderableType] = [Text(silo["name"]), words, str(silo["rounds_answered"]), str(silo["rounds_missed"])]
        row += ["–" if silo["last_round"] is None else str(silo["last_round"]), refusal]
        table.add_row(*row, *([_epsilon(silo["budget_left"])] if shows else []))
    if status["silos"]:
        yield table


def _simulation(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield _title(facts["run"], facts["state"], "simulation")
    yield Text(headline(facts))
    last = facts["last_round"] or {}
    known = {key: last.get(key) for key in ("loss", "epsilon", "seconds")} | (last.get("validation") or {})
    figures = [f"{key} {value:.4g}" for key, value in known.items() if isinstance(value, int | float) and key != "users"]
    if figures:
        yield Text(", ".join(figures), "dim")


def _coordinator(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    consortium = facts["consortium"]
    if consortium:
        yield _title(f"coordinator of {consortium['name']}", "", f"{consortium['address']}, roster {consortium['version']}")
    else:
        yield _title("coordinator", "", "")
    if facts["members"]:
        table = Table("silo", "standing", "until", box=None, pad_edge=False)
        for one in facts["members"]:
            table.add_row(
                Text(one["name"]),
                Text(one["standing"], "green" if one["standing"] == "valid" else "red"),
                one["valid_until"][:10],
            )
        yield table
    newest, *older = facts["runs"] or [None]
    if newest is None:
        yield Text("no run was started yet")
        return
    yield Text("")
    yield from _run(newest)
    if older:
        table = Table("earlier runs", "state", "rounds", "last sign of life", box=None, pad_edge=False)
        for one in older:
            done = "–" if one["round"] is None else str(one["round"])
            table.add_row(Text(one["name"]), "not running?" if one["stale"] else one["state"], done, _clock(one["heartbeat"]))
        yield Text("")
        yield table


def _silo(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield _title(f"silo {facts['name']}", "not running?" if facts.get("stale") else facts["state"], facts["coordinator"])
    if "answers" in facts:
        contact = "never" if facts["last_contact"] is None else _clock(facts["last_contact"])
        line = f"{plural(facts['rounds_answered'], 'round')} answered, last heard of the coordinator: {contact}"
        if facts["seconds_per_answer"] is not None:
            line += f", {duration(facts['seconds_per_answer'])} an answer"
        yield Text(line)
        if facts["last_error"] is not None:
            last = facts["last_error"]
            where = "" if last["round"] is None else f" in round {last['round']}"
            yield Text(f"last refusal: {last['code']} ({last['action']}{where}, {_clock(last['time'])})", "yellow")
    if facts["budget"].get("limits"):
        table = Table("budget", "limit", "spent", "left", box=None, pad_edge=False)
        for name, one in facts["budget"]["limits"].items():
            table.add_row(name, f"{one['limit']:g}", _epsilon(one["spent"]), _epsilon(one["left"]))
        yield table
    if facts["expiries"]:
        table = Table("expires", "until", "days", box=None, pad_edge=False)
        for one in facts["expiries"]:
            table.add_row(one["what"], one["until"][:10], f"{one['days']:.0f}")
        yield table


def _title(name: str, state: str, more: str) -> Text:
    text = Text(name, "bold")
    if state:
        text.append("  ").append(state, _COLOURS.get(state, "yellow"))
    return text.append(f"  {more}", "dim") if more else text


def _epsilon(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _clock(stamped: str) -> str:
    """``2026-03-01 09:30:00 UTC``."""
    return f"{stamped[:10]} {stamped[11:19]} UTC"
