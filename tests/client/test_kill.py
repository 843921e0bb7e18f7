"""A silo is killed at fifty moments; whatever has left it was charged, and it goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.killing import PLACES

SEED, LIVES = 20260422, 50


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What the driver saw after each kill; in a process of its own, because it forks."""
    folder = tmp_path_factory.mktemp("killed") / "silo"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.client.killing", str(folder), str(SEED), str(LIVES)]
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    print(f"seed {SEED}:\n{done.stdout}")  # noqa: T201  shown with -s, and when a test fails
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_ledger_is_never_below_what_the_other_side_holds(lives: list[dict[str, float]]) -> None:
    assert len(lives) == LIVES
    for life in lives:
        assert life["charged"] >= life["released"], life
        assert life["charged_rdp"] >= life["released_rdp"], life
        assert life["reservations"] >= life["held"], life


def test_every_answer_that_left_was_committed_before(lives: list[dict[str, object]]) -> None:
    assert all(life["all_committed"] for life in lives)


def test_no_kill_damages_the_ledger_and_the_run_goes_on(lives: list[dict[str, object]]) -> None:
    assert not any(life["findings"] for life in lives)
    assert lives[-1]["held"] > LIVES // 2  # type: ignore[operator]
    spent = [life["charged"] for life in lives]
    assert spent == sorted(spent)  # type: ignore[type-var]


def test_an_answer_that_left_is_never_given_again_with_other_noise(lives: list[dict[str, object]]) -> None:
    assert not any(life["repeated"] for life in lives)


def test_the_kills_fell_around_every_step_and_at_random(lives: list[dict[str, object]]) -> None:
    ends = [str(life["end"]) for life in lives]
    assert set(PLACES) <= set(ends)
    assert sum(end.startswith("after ") for end in ends) == LIVES // 2
