"""What can be seen in a folder: a run's, a simulation's, a coordinator's home or a silo's, told apart by the files in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.consortium.home import CoordinatorHome, SiloHome
from common.consortium.roster import Consortium
from common.errors import DataError, SilorecError
from common.status.budget import Budget
from common.status.events import EVENTS, stamp
from common.status.expiry import Ending, endings, moment, roster_of
from common.status.files import STATUS, read_status

Kind = Literal["run", "simulation", "coordinator", "silo"]

_ROUNDS, _RESULT, _CONFIG = "rounds.jsonl", "result.json", "config.toml"
_COORDINATOR, _SILO = "coordinator.toml", "silo.toml"
_MOST_RUNS = 20


@dataclass(frozen=True)
class Seen:
    """What a look found.

    Parameters
    ----------
    facts:
        Plain values for JSON.
    troubles:
        Sentences: what has failed, is not running, or has expired. Where there is one, a check of the status does not hold.
    warnings:
        Sentences on what will be trouble.
    """

    kind: Kind
    path: Path
    facts: dict[str, Any]
    troubles: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for machines."""
        return {"path": str(self.path), **self.facts, "kind": self.kind, "troubles": self.troubles, "warnings": self.warnings}


def kind_of(path: Path) -> Kind:
    """What a folder is.

    Raises
    ------
    DataError
        If it is none of the four.
    """
    if not path.is_dir():
        raise DataError("no such folder; give a run's folder, a coordinator's home or a silo's home", path)
    if (path / _COORDINATOR).exists():
        return "coordinator"
    if (path / _SILO).exists():
        return "silo"
    if (path / _ROUNDS).exists():
        return "simulation"
    if (path / STATUS).exists() or (path / EVENTS).exists():
        return "run"
    if (path / _CONFIG).exists():
        raise DataError("a run's folder in which no round was finished and no status was written yet", path)
    raise DataError(
        f"neither a run's folder ({STATUS} or {_ROUNDS}), nor a coordinator's home (coordinator.toml), nor a silo's (silo.toml)",
        path,
    )


def look_at(path: Path, now: float | None = None) -> Seen:
    """Look at a folder; what is damaged in it is told as trouble, unless nothing else is there.

    Raises
    ------
    SilorecError
        If the folder is none of ours, or its one file cannot be read.
    """
    looks: dict[Kind, Callable[[Path, float], Seen]] = {
        "run": _run,
        "simulation": _simulation,
        "coordinator": _coordinator,
        "silo": _silo,
    }
    return looks[kind_of(path)](path, time.time() if now is None else now)


def _run(path: Path, now: float) -> Seen:
    status = read_status(path, now)
    if status.get("kind") != "run":
        raise DataError(f"the {STATUS} is not that of a run", path)
    if (path.parent.parent / _COORDINATOR).exists():
        _say_standing(status, roster_of(CoordinatorHome(path.parent.parent)), now)
    return Seen("run", path, status, _troubles_of_run(status))


def _troubles_of_run(status: dict[str, Any]) -> list[str]:
    if status["state"] == "failed":
        return [f"the run has failed: {status['reason'] or 'no reason was noted'}"]
    if status["stale"]:
        return [f"not running? Its process gave no sign of life for {status['age']:.0f} s; started again, it goes on"]
    return []


def _simulation(path: Path, now: float) -> Seen:
    records = []
    for line in (path / _ROUNDS).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    try:
        result = json.loads((path / _RESULT).read_bytes())
    except (OSError, ValueError):
        result = {}
    last = records[-1] if records else None
    facts = {
        "run": result.get("name", path.name),
        "mode": result.get("mode", ""),
        "state": result.get("status", "unfinished"),
        "round": last and last["round"],
        "rounds": result.get("rounds_planned"),
        "last_round": last,
        "age": max(0.0, now - (path / _ROUNDS).stat().st_mtime),
    }
    return Seen("simulation", path, facts)


def _coordinator(path: Path, now: float) -> Seen:
    home, runs = CoordinatorHome(path), []
    for file in home.runs.glob(f"*/{STATUS}"):
        try:
            runs.append((file.parent.name, read_status(file, now)))
        except DataError:
            continue
    runs.sort(key=lambda named: named[1]["heartbeat"], reverse=True)
    consortium = roster_of(home)
    found = endings(home, consortium)
    troubles, warnings = _sorted([one for one in found if not one.is_of_a_silo], now)
    warnings += [why for one in found if one.is_of_a_silo and (why := one.expiry.warning(moment(now)))]
    if consortium is None:
        troubles.append(f"{home.roster.name} is not there, or not signed by the authority; see: silorec doctor {path}")
    if runs:
        troubles += [f"run {runs[0][0]}: {trouble}" for trouble in _troubles_of_run(runs[0][1])]
    for _, status in runs:
        _say_standing(status, consortium, now)
    members = () if consortium is None else consortium.members
    facts = {
        "consortium": consortium and {"name": consortium.name, "version": consortium.version, "address": consortium.address},
        "members": [
            {
                "number": number,
                "name": one.name,
                "standing": one.standing(moment(now)),
                "valid_until": stamp(one.valid_until.timestamp()),
            }
            for number, one in enumerate(members)
        ],
        "expiries": [_ending(one, now) for one in found],
        "runs": [{"name": name, **status} for name, status in runs[:_MOST_RUNS]],
    }
    return Seen("coordinator", path, facts, troubles, warnings)


def _silo(path: Path, now: float) -> Seen:
    home = SiloHome(path)
    consortium = roster_of(home)
    name = coordinator = ""
    troubles: list[str] = []
    try:
        settings = home.settings()
        name, coordinator = settings.name, settings.coordinator
    except SilorecError as error:
        troubles.append(str(error))
    try:
        status = read_status(home.status, now)
        if status["stale"]:
            ago = f"{status['age']:.0f} s"
            troubles.append(f"not running? The silo gave no sign of life for {ago}; start it with: silorec client up {path}")
    except DataError as error:
        status = {"state": "unknown" if home.status.exists() else "not started"}
        troubles.append(str(error) if home.status.exists() else f"this silo was never started: silorec client up {path}")
    found = endings(home, consortium, name)
    expired, warnings = _sorted([one for one in found if not one.is_of_a_silo], now)
    warnings += [
        why
        for one in found
        if one.is_of_a_silo and not one.expiry.has_expired(moment(now)) and (why := one.expiry.warning(moment(now)))
    ]
    troubles += expired
    if consortium is None:
        warnings.append(f"{home.roster.name} is not there yet, or not signed by the authority; see: silorec doctor {path}")
    else:
        troubles += [why for one in consortium.members if one.name == name and (why := one.why_refused(moment(now)))]
    budget = Budget(home.ledger).facts(now)
    if "error" in budget:
        troubles.append(f"ledger: {budget['error']}")
    elif budget["closed"]:
        troubles.append("the ledger is closed: nothing is released under it any more")
    else:
        warnings += [
            f"less than a tenth of {key} is left" for key, one in budget["limits"].items() if one["left"] < 0.1 * one["limit"]
        ]
    facts = {
        **status,
        "name": name,
        "coordinator": coordinator,
        "budget": budget,
        "expiries": [_ending(one, now) for one in found],
    }
    return Seen("silo", path, facts, troubles, warnings)


def _sorted(found: list[Ending], now: float) -> tuple[list[str], list[str]]:
    """Sentences on what has expired, and on what will soon."""
    said = [(one.expiry.has_expired(moment(now)), one.expiry.warning(moment(now))) for one in found]
    return [why for expired, why in said if expired], [why for expired, why in said if why and not expired]


def _ending(one: Ending, now: float) -> dict[str, Any]:
    return {"what": one.what, "until": stamp(one.until), "days": one.days(now)}


def _say_standing(status: dict[str, Any], consortium: Consortium | None, now: float) -> None:
    """Put the silos' names into a run's status, and for those that the roster does not admit any more, why."""
    for silo in status["silos"]:
        if consortium is not None and silo["number"] < len(consortium.members):
            member = consortium.members[silo["number"]]
            standing = member.standing(moment(now))
            silo["name"], silo["standing"] = member.name, standing
            if standing != "valid":
                silo["state"] = standing
