"""Versions: Python's and the packages' against what the installed silorec asks for, and against the coordinator's."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from common.doctor.finding import Check, Finding, ok, problem, warning
from common.doctor.subject import ALL, SILO, Role, Subject
from common.protocol import PROTOCOL_VERSION

#: The extra that brings what a role runs.
EXTRAS: dict[Role, tuple[str, ...]] = {"installation": (), "silo": ("client",), "coordinator": ("server",)}


def requirements(extras: tuple[str, ...]) -> list[Requirement]:
    """What the installed silorec asks for in this environment, its own extras followed; each package once for each extra."""
    wanted, done, found = ["", *extras], set[str](), dict[str, Requirement]()
    declared = [Requirement(line) for line in importlib.metadata.requires("silorec") or []]
    while wanted:
        extra = wanted.pop()
        done.add(extra)
        for requirement in declared:
            marker = requirement.marker
            if marker is not None and not marker.evaluate({"extra": extra}):
                continue
            if (extra == "") != (marker is None or "extra" not in str(marker)):
                continue
            if requirement.name == "silorec":
                wanted += [other for other in requirement.extras if other not in done]
            else:
                found[str(requirement)] = requirement
    return list(found.values())


def look_at_python(subject: Subject) -> Iterator[Finding]:
    """The interpreter."""
    wanted = importlib.metadata.metadata("silorec")["Requires-Python"]
    have = ".".join(str(part) for part in subject.machine.python_version)
    if SpecifierSet(wanted).contains(have):
        yield ok("python", f"Python {have}")
    else:
        seen = f"Python {have} runs this, silorec needs {wanted}"
        yield problem("python", seen, "make a virtual environment with a newer Python and install silorec there")


def look_at_packages(subject: Subject) -> Iterator[Finding]:
    """Every package of the role that is missing, unsuitable or unreadable."""
    extras = EXTRAS[subject.role]
    named = f"silorec[{','.join(extras)}]" if extras else "silorec"
    wrong, found = [], requirements(extras)
    for requirement in found:
        have = subject.machine.version_of(requirement.name)
        if have is None:
            wrong.append(f"{requirement.name} is not installed ({_asked(requirement)})")
        elif not _suits(requirement, have):
            wrong.append(f"{requirement.name} is {have}, {named} needs {requirement.specifier}")
    for line in wrong:
        yield problem("packages", line, f"pip install -c constraints.txt '{named}'")
    if not wrong:
        names = len({requirement.name for requirement in found})
        flower = subject.machine.version_of("flwr")
        told = f", Flower {flower}" if flower else ""
        yield ok("packages", f"silorec {subject.machine.version_of('silorec')}{told}: {names} packages suit {named}")


def look_at_the_other_side(subject: Subject) -> Iterator[Finding]:
    """What the coordinator runs: one protocol, one Flower up to the minor version."""
    facts, wrong = subject.told().facts, False
    install = "install the same silorec on both sides; the coordinator says which"
    if facts.get("protocol") != PROTOCOL_VERSION:
        wrong = True
        yield problem(
            "other side", f"the coordinator speaks protocol {facts.get('protocol')!r}, this silo {PROTOCOL_VERSION}", install
        )
    theirs, ours = str(facts.get("flwr")), subject.machine.version_of("flwr")
    if ours is not None and theirs != ours:
        wrong = True
        seen = f"the coordinator runs Flower {_short(theirs)}, this silo {ours}"
        if _minor(theirs) == _minor(ours):
            yield warning("other side", seen, f"pip install 'flwr=={ours}' on both sides, when convenient")
        else:
            yield problem("other side", f"{seen}: they do not speak the same protocol", install)
    theirs, own = str(facts.get("version")), subject.machine.version_of("silorec")
    if theirs != own:
        wrong = True
        yield warning("other side", f"the coordinator runs silorec {_short(theirs)}, this silo {own}", install)
    if not wrong:
        yield ok(
            "other side", f"the coordinator runs silorec {theirs} and Flower {facts.get('flwr')}, protocol {PROTOCOL_VERSION}"
        )


def _suits(requirement: Requirement, have: str) -> bool:
    try:
        return requirement.specifier.contains(Version(have), prereleases=True)
    except (InvalidVersion, InvalidRequirement):
        return False


def _asked(requirement: Requirement) -> str:
    return f"{requirement.specifier} is needed" if requirement.specifier else "any version is needed"


def _minor(version: str) -> tuple[int, ...] | str:
    match = re.match(r"(\d+)\.(\d+)", version)
    return version if match is None else (int(match[1]), int(match[2]))


def _short(text: str) -> str:
    """What another machine says, made fit to print."""
    return re.sub(r"[^\w.+-]", "?", text[:40])


CHECKS = (
    Check("python", ALL, look_at_python),
    Check("packages", ALL, look_at_packages),
    Check("other side", SILO, look_at_the_other_side),
)
