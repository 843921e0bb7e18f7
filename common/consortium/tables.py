"""How a roster and a journal look to a person, and a roster to a program that reads its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from common.consortium.expiry import days_left
from common.consortium.roster import Consortium, day
from common.journal import Act
from common.privacy.signing import fingerprint


def facts_of(consortium: Consortium, now: datetime) -> dict[str, Any]:
    """All that the roster says, except keys and certificates at length."""
    return {
        "consortium": consortium.name,
        "version": consortium.version,
        "issued": consortium.issued.isoformat(),
        "valid_until": consortium.valid_until.isoformat(),
        "days_left": days_left(consortium.valid_until, now),
        "standing": consortium.standing(now),
        "coordinator": consortium.coordinator,
        "address": consortium.address,
        "silos": [
            {
                "number": number,
                "name": member.name,
                "key": member.key,
                "fingerprint": fingerprint(member.key),
                "node": member.node,
                "declared_users": member.declared_users,
                "standing": member.standing(now),
                "valid_until": member.valid_until.isoformat(),
                "days_left": days_left(member.valid_until, now),
                "revoked": None if member.revoked is None else member.revoked.isoformat(),
                "reason": member.reason,
            }
            for number, member in enumerate(consortium.members)
        ],
    }


def print_roster(consortium: Consortium, now: datetime) -> None:
    """One line a silo."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    left = days_left(consortium.valid_until, now)
    counts = f"{consortium.standing(now)} until {day(consortium.valid_until)}, {left} days left"
    title = f"roster of {consortium.name}, version {consortium.version}, {counts}"
    table = Table(title=escape(title), title_justify="left")
    for column in ("no.", "silo", "identity", "users", "until", "days", "standing"):
        table.add_column(column, overflow="fold", min_width=20 if column == "identity" else None)
    for number, member in enumerate(consortium.members):
        standing, shown = member.standing(now), fingerprint(member.key)
        until = member.valid_until if member.revoked is None else member.revoked
        table.add_row(
            str(number),
            member.name,
            f"{shown[:20]}\n{shown[20:]}",
            str(member.declared_users),
            day(until),
            "" if member.revoked is not None else str(days_left(until, now)),
            standing,
        )
    console = Console()
    console.print(table)
    for member in consortium.members:
        if member.reason:
            console.print(escape(f"{member.name} was revoked: {member.reason}"), highlight=False, soft_wrap=True)


def journal_lines(acts: Sequence[Act]) -> list[str]:
    """One line an act: number, time (UTC), what was done, and its facts."""
    return [
        f"{act.seq} {datetime.fromtimestamp(act.time, UTC):%Y-%m-%d %H:%M} {act.act}"
        + "".join(f", {name} {_in_words(value)}" for name, value in act.facts.items())
        for act in acts
    ]


def _in_words(value: Any) -> str:
    return " ".join(str(part) for part in value) if isinstance(value, list) else str(value)
