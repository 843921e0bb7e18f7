"""A silo is killed at fifty moments, and in secure sums; whatever has left it was charged, and it goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client import killing_in_sums
from tests.client.killing import PLACES

SEED, LIVES, LIVES_IN_SUMS = 20260422, 50, 24


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What the driver saw after each kill; in a process of its own, because it forks."""
    return driven("tests.client.killing", tmp_path_factory.mktemp("killed") / "silo", LIVES)


def driven(driver: str, folder: Path, lives: int, *arguments: str) -> list[dict[str, object]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", driver, str(folder), str(SEED), str(lives), *arguments]
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


@pytest.fixture(scope="module", params=["silo", "distributed"])
def lives_in_sums(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """As ``lives``, of a silo whose answers go into secure sums."""
    folder = tmp_path_factory.mktemp("killed-in-sums") / "silo"
    return driven("tests.client.killing_in_sums", folder, LIVES_IN_SUMS, request.param)


def test_in_secure_sums_whatever_left_was_charged_and_committed(lives_in_sums: list[dict[str, float]]) -> None:
    assert len(lives_in_sums) == LIVES_IN_SUMS
    for life in lives_in_sums:
        assert life["charged"] >= life["released"], life
        assert life["charged_rdp"] >= life["released_rdp"], life
        assert life["reservations"] >= life["held"], life
        assert life["all_committed"], life


def test_in_secure_sums_no_vector_leaves_under_masks_of_another_and_the_sum_is_what_was_committed(
    lives_in_sums: list[dict[str, object]],
) -> None:
    """Nor does a kill make the silo refuse to go on: each attempt that is not given up by the others becomes a sum."""
    for life in lives_in_sums:
        assert not life["faults"], life
        assert not life["findings"], life
    assert lives_in_sums[-1]["sums"] > LIVES_IN_SUMS // 4  # type: ignore[operator]


def test_in_secure_sums_the_kills_fell_around_every_step_and_attempts_were_made_anew(
    lives_in_sums: list[dict[str, object]],
) -> None:
    assert set(killing_in_sums.PLACES) <= {str(life["end"]) for life in lives_in_sums}
    last = lives_in_sums[-1]
    assert 0 < last["again"] < last["attempts"] <= last["sums"] + last["again"] + 1  # type: ignore[operator]
    assert any(life["reservations"] > life["held"] for life in lives_in_sums), "no kill cost anything"  # type: ignore[operator]


def test_in_mode_distributed_each_attempt_is_another_release_and_in_mode_silo_the_same(
    lives_in_sums: list[dict[str, object]], request: pytest.FixtureRequest
) -> None:
    last = lives_in_sums[-1]
    if request.node.callspec.params["lives_in_sums"] == "distributed":
        assert last["held"] == last["attempts"]
    else:
        assert last["held"] < last["attempts"]  # type: ignore[operator]
