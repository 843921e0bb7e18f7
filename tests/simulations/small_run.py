"""Whole simulations of :mod:`tests.tiny`'s federation, and ways to stop them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from common.model.adapter import load_adapter
from simulations.run import simulate
from simulations.watch import Silent, Watch
from tests import tiny

SETTINGS = {**tiny.SETTINGS, "name": "small", "evaluation": {"bootstrap": 20, "references": []}}
PRIVATE = ("privacy.mode=silo",)


def run(out: Path, *overrides: str, resume: bool = False, watch: Watch | None = None) -> Path:
    """The folder of a simulation in ``out``."""
    scenario = out / "small.toml"
    scenario.parent.mkdir(parents=True, exist_ok=True)
    scenario.write_text(tomli_w.dumps(SETTINGS))
    return simulate(scenario, overrides=overrides, out=out, resume=resume, watch=watch)


def result(folder: Path) -> dict[str, Any]:
    """``result.json``; NaN and infinity are errors."""
    return strict_json((folder / "result.json").read_text())


def rounds(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``rounds.jsonl``."""
    return [strict_json(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def adapter(folder: Path) -> np.ndarray:
    """The reported adapter."""
    return load_adapter(folder / "adapter.safetensors")[0]


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


class CtrlC(Silent):
    """Interrupts as soon as ``number`` rounds have been written down."""

    def __init__(self, number: int) -> None:
        self.number = number

    def step(self, done: int, note: str = "") -> None:
        if done == self.number and note:
            raise KeyboardInterrupt
