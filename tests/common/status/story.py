"""A federation's events as a test tells them: four silos, one is cut off, one refuses for good, one shows its budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.status.events import EVENTS, append

NAMES = ("north", "south", "east", "west")
BEGIN = 1_780_000_000.0


def begins(*, rounds: int = 5, to_do: int = 0) -> dict[str, Any]:
    return {
        "event": "run", "name": "spring", "config": "c" * 64, "mode": "silo", "silos": list(NAMES), "rounds": rounds,
        "from_round": to_do,
    }  # fmt: skip


def stage(
    number: int, asked: Iterable[int], answered: Iterable[int], refused: Mapping[str, str] | None = None, *, name: str = "train",
    seconds: float | None = 8.0,
) -> dict[str, Any]:  # fmt: skip
    """One that is over; one that begins, where it has taken no ``seconds`` yet."""
    begins = {"round": number, "stage": name, "asked": list(asked), "deadline": 600.0}
    if seconds is None:
        return {"event": "stage_begins", **begins}
    return {"event": "stage", **begins, "answered": list(answered), "refused": dict(refused or {}), "seconds": seconds}


def left_out(silo: int, until: int | None, reason: str) -> dict[str, Any]:
    return {"event": "left_out", "silo": silo, "reason": reason, "until_round": until}


def ends(
    number: int, answered: Iterable[int], refused: Mapping[str, str] | None = None, *, seconds: float = 10.0, **more: Any
) -> dict[str, Any]:
    return {
        "event": "round",
        "round": number,
        "answered": list(answered),
        "refused": dict(refused or {}),
        "seconds": seconds,
        **more,
    }


#: East does not answer in round 2, is left out of round 3 and back in round 4; west's budget is spent in round 3.
STORY: tuple[dict[str, Any], ...] = (
    begins(),
    stage(0, range(4), range(4), name="query.count", seconds=2.0),
    ends(0, range(4), seconds=3.0),
    stage(1, range(4), range(4)),
    ends(1, range(4), update_norm=0.5, budget_left={"0": 7.5, "1": None, "2": None, "3": None}),
    stage(2, range(4), (0, 1, 3)),
    left_out(2, 4, "no answer"),
    ends(2, (0, 1, 3), seconds=20.0, update_norm=0.4, budget_left={"0": 7.0}),
    stage(3, (0, 1, 3), (0, 1), {"3": "BUDGET_EXHAUSTED"}),
    left_out(3, None, "BUDGET_EXHAUSTED"),
    ends(3, (0, 1), {"3": "BUDGET_EXHAUSTED"}, seconds=12.0, update_norm=0.3),
    {"event": "invited", "silo": 2},
    stage(4, (0, 1, 2), (0, 1, 2)),
    ends(4, (0, 1, 2), seconds=11.0, update_norm=0.2),
)


def write(folder: Path, events: Iterable[Mapping[str, Any]] = STORY, *, apart: float = 5.0) -> Path:
    """``events.jsonl`` of a story, one event every ``apart`` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, event in enumerate(events):
        append(folder / EVENTS, event, BEGIN + apart * place)
    return folder
