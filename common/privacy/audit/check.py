"""What comes out of a check: whether it holds, by what evidence, and the entries that say so or speak against it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["holds", "does not hold", "not applicable"]


@dataclass(frozen=True)
class Named:
    """A place in the evidence, and what is to be said of it.

    Parameters
    ----------
    ledger, entry:
        A ledger by its file's name, and the ``seq`` of an entry in it.
    answer:
        An answer by its number in the transcript, from 1.
    """

    what: str
    ledger: str | None = None
    entry: int | None = None
    answer: int | None = None

    def __str__(self) -> str:
        parts = []
        if self.answer is not None:
            parts.append(f"answer {self.answer} of the transcript")
        if self.ledger is not None:
            parts.append(self.ledger if self.entry is None else f"entry {self.entry} of {self.ledger}")
        return f"{', '.join(parts)}: {self.what}" if parts else self.what

    def as_dict(self) -> dict[str, Any]:
        return {"ledger": self.ledger, "entry": self.entry, "answer": self.answer, "what": self.what}


@dataclass(frozen=True)
class Check:
    """One statement about the evidence.

    Parameters
    ----------
    name:
        One word for machines.
    statement:
        What is checked, as a sentence that is true if it holds.
    evidence:
        What it rests on; of a check that is not applicable, why.
    named:
        What speaks against it; of a check that holds, what a reader should know nevertheless.
    """

    name: str
    statement: str
    outcome: Outcome
    evidence: str
    named: tuple[Named, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "statement": self.statement,
            "outcome": self.outcome,
            "evidence": self.evidence,
            "named": [named.as_dict() for named in self.named],
        }


def judged(name: str, statement: str, evidence: str, faults: Iterable[Named]) -> Check:
    """A check that holds if there are no ``faults``."""
    found = tuple(faults)
    return Check(name, statement, "does not hold" if found else "holds", evidence, found)


def not_applicable(name: str, statement: str, why: str) -> Check:
    """A check for which the evidence is not there."""
    return Check(name, statement, "not applicable", why)


def count(number: int, noun: str) -> str:
    """``1 entry``, ``2 entries``."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
