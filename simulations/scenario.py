"""Scenarios: named configurations that come with silorec, as TOML files in ``simulations/scenarios``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from common.config import Config, load
from common.errors import ConfigError

DEFAULT = "ml-100k"


def scenarios() -> dict[str, str]:
    """Name to the first comment line of each scenario."""
    out = {}
    for file in sorted(_folder().iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            first = file.read_text(encoding="utf-8").splitlines()[0]
            out[file.name.removesuffix(".toml")] = first.lstrip("# ")
    return out


def load_scenario(
    scenario: str | Path = DEFAULT, *, overrides: Iterable[str] = (), extra: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of a scenario, by name or path, with ``key=value`` overrides and then ``extra`` on top.

    Raises
    ------
    ConfigError
        If there is no such scenario, or a setting is wrong.
    """
    path = Path(scenario)
    if path.suffix != ".toml":
        path = Path(str(_folder() / f"{scenario}.toml"))
        if not path.is_file():
            raise ConfigError(
                f"no scenario {str(scenario)!r}; there are {', '.join(scenarios())}, or give the path of a .toml file"
            )
    named = {"name": path.stem}
    return load(named, path, *([extra] if extra else []), overrides=overrides)


def _folder() -> Any:
    return resources.files("simulations") / "scenarios"
