"""Running one check, and what it says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.doctor.checklist import findings
from common.doctor.finding import Finding
from common.doctor.machine import Machine
from common.doctor.subject import Subject
from tests.common.doctor.deployment import SOUND, Deployment


def look(
    deployment: Deployment, name: str, at: str = "silo", config: Path | None = None, machine: Machine = SOUND, **changes: Any
) -> tuple[Finding, ...]:
    """What one check finds in the silo's home, or the coordinator's."""
    home = deployment.silo if at == "silo" else deployment.coordinator
    subject = Subject(home.folder, config=config, machine=replace(machine, **changes))
    found = tuple(finding for finding in findings(subject, only=(name,)))
    assert {finding.name for finding in found} <= {name}
    return found


def faults(found: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Warnings and problems among findings."""
    return tuple(finding for finding in found if finding.outcome in ("warning", "problem"))


def the_only(found: tuple[Finding, ...], outcome: str) -> Finding:
    """The only warning or problem there is."""
    (one,) = faults(found)
    assert one.outcome == outcome, one
    assert one.do, "a fault without a remedy"
    assert not one.seen.endswith(".")
    return one


def says(finding: Finding, seen: str, do: str = "") -> bool:
    """Whether a finding says these words (regular expressions)."""
    assert re.search(seen, finding.seen), finding
    assert re.search(do, finding.do), finding
    return True
