"""What comes out of an examination: what was seen, whether that is well, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from common.doctor.subject import Role, Subject

Outcome = Literal["ok", "warning", "problem", "not checked"]


class NotChecked(Exception):
    """Something that a check needs is missing, and another check says so; the text is why."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    name:
        Of the check; several findings may share it.
    seen:
        What was seen, one sentence without its full stop.
    do:
        What to do about it, a command where there is one; empty where nothing is to be done.
    """

    name: str
    outcome: Outcome
    seen: str
    do: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """Something to look at: registered as a value in :data:`common.doctor.checklist.CHECKS`.

    Parameters
    ----------
    roles:
        Where it makes sense.
    look:
        Yields findings. A :class:`common.errors.SilorecError` that it lets through is a problem in its own words.
    """

    name: str
    roles: frozenset[Role]
    look: Callable[[Subject], Iterator[Finding]]


def ok(name: str, seen: str) -> Finding:
    return Finding(name, "ok", seen)


def warning(name: str, seen: str, do: str) -> Finding:
    return Finding(name, "warning", seen, do)


def problem(name: str, seen: str, do: str) -> Finding:
    return Finding(name, "problem", seen, do)
