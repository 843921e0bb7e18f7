"""``silorec bench NAME``: measure, compare with the goals in ``goals.toml``, say whether all hold.

A benchmark is one file of this folder that registers a function which gives :class:`Figure` values; a new file is a new
benchmark.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from common.durable import write_durably
from common.errors import ConfigError
from simulations.result import versions
from simulations.watch import Watch


@dataclass(frozen=True)
class Figure:
    """One measured number; ``name`` is what goals refer to, ``unit`` what it counts, ``note`` how it came about."""

    name: str
    value: float
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Goal:
    """``least <= value <= most``; either may be missing."""

    figure: str
    least: float | None = None
    most: float | None = None

    def holds(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def describe(self) -> str:
        parts = [f">= {self.least:g}"] if self.least is not None else []
        return " and ".join(parts + ([f"<= {self.most:g}"] if self.most is not None else []))


@dataclass(frozen=True)
class Report:
    """What a benchmark measured, against its goals."""

    bench: str
    figures: tuple[Figure, ...]
    goals: tuple[Goal, ...]

    @property
    def missed(self) -> tuple[Goal, ...]:
        """Goals that do not hold; a goal for a figure that was not measured does not hold either."""
        values = {figure.name: figure.value for figure in self.figures}
        return tuple(goal for goal in self.goals if goal.figure not in values or not goal.holds(values[goal.figure]))

    @property
    def holds(self) -> bool:
        return not self.missed

    def as_dict(self) -> dict[str, Any]:
        return {
            "bench": self.bench,
            "holds": self.holds,
            "figures": [asdict(figure) for figure in self.figures],
            "goals": [asdict(goal) | {"holds": goal not in self.missed} for goal in self.goals],
            "versions": versions(),
        }

    def summary(self) -> str:
        """One line."""
        if self.holds:
            return f"{self.bench}: all {len(self.goals)} goals hold"
        return f"{self.bench}: {len(self.missed)} of {len(self.goals)} goals missed: " + ", ".join(
            f"{goal.figure} {goal.describe()}" for goal in self.missed
        )


Bench = Callable[..., list[Figure]]
"""``bench(out, watch)``; what else it takes, by keyword only, are settings with defaults."""

_registry: dict[str, Bench] = {}


def register(name: str) -> Callable[[Bench], Bench]:
    """Make a function available as ``silorec bench name``; it gets a folder for its files and somebody to tell."""

    def decorate(bench: Bench) -> Bench:
        _registry[name] = bench
        return bench

    return decorate


def benches() -> dict[str, str]:
    """Name to first line of what each does."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {name: (bench.__doc__ or "").strip().splitlines()[0] for name, bench in sorted(_registry.items())}


def goals_of(name: str) -> tuple[Goal, ...]:
    """The goals of a benchmark."""
    table = tomllib.loads((resources.files("simulations.bench") / "goals.toml").read_text(encoding="utf-8"))
    return tuple(Goal(figure, **limits) for figure, limits in table.get(name, {}).items())


def run_bench(name: str, out: Path, watch: Watch, **settings: int | str) -> Report:
    """Run one benchmark and keep its report as ``out/<name>.json``.

    ``settings`` change what it measures (sizes, repeats); the goals stay, and those for what was not measured count as missed.

    Raises
    ------
    ConfigError
        If there is none of that name, or it does not take one of the settings.
    """
    known = benches()
    if name not in known:
        raise ConfigError(f"no benchmark {name!r}; there are: {', '.join(known)}")
    takes = {key for key, part in inspect.signature(_registry[name]).parameters.items() if part.kind is part.KEYWORD_ONLY}
    for key in settings.keys() - takes:
        raise ConfigError(f"benchmark {name!r} takes no setting {key!r}; it takes: {', '.join(sorted(takes)) or 'none'}")
    report = Report(name, tuple(_registry[name](out / name, watch, **settings)), goals_of(name))
    write_durably(out / f"{name}.json", (json.dumps(report.as_dict(), indent=2) + "\n").encode())
    return report
