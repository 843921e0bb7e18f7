"""All checks, in the order in which an operator mends things, and the examination that goes through them."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from common.doctor import budget, keys, network, resources, sources, standing, versions
from common.doctor.finding import Check, Finding, NotChecked, problem
from common.doctor.subject import Subject
from common.errors import SilorecError

CHECKS: tuple[Check, ...] = (
    *versions.CHECKS,
    *sources.CHECKS,
    *keys.CHECKS,
    *standing.CHECKS,
    *budget.CHECKS,
    *resources.CHECKS,
    *network.CHECKS,
)


@dataclass(frozen=True)
class Examination:
    """What was found, in order."""

    role: str
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        return tuple(found for found in self.findings if found.outcome == "problem")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(found for found in self.findings if found.outcome == "warning")

    def of(self, name: str) -> tuple[Finding, ...]:
        """The findings of one check."""
        return tuple(found for found in self.findings if found.name == name)

    def as_dict(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "problems": len(self.problems),
            "warnings": len(self.warnings),
            "checks": [found.as_dict() for found in self.findings],
        }


def examine(subject: Subject) -> Examination:
    """Go through every check that makes sense; none of them ends the examination."""
    return Examination(subject.role, tuple(findings(subject)))


def findings(subject: Subject, only: Container[str] | None = None) -> Iterator[Finding]:
    """As :func:`examine`, each finding as soon as it is there; ``only`` holds the names of checks to be made."""
    for check in CHECKS:
        if subject.role not in check.roles or (only is not None and check.name not in only):
            continue
        try:
            yield from check.look(subject)
        except NotChecked as why:
            yield Finding(check.name, "not checked", str(why))
        except SilorecError as error:
            yield problem(check.name, str(error), "")
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            yield problem(check.name, f"{where}{error.strerror or error}", "mend the rights or the disk")
