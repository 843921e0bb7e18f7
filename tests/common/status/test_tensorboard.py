"""Scalars of a run, read back with TensorBoard's own reader."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import DataError
from common.status.tensorboard import TensorBoardWriter, export
from tests.common.status import story


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """By tag: round and value."""
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(one.step, one.value) for one in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_a_deployed_runs_scalars_are_its_events(tmp_path: Path) -> None:
    folder, count = export(story.write(tmp_path / "run"))
    found = scalars(folder)
    assert folder == tmp_path / "run" / "tensorboard"
    assert found["seconds"] == [(0, 3.0), (1, 10.0), (2, 20.0), (3, 12.0), (4, 11.0)]
    assert found["answered"] == [(0, 4.0), (1, 4.0), (2, 3.0), (3, 2.0), (4, 3.0)]
    assert found["refused"][3] == (3, 1.0)
    assert [value for _, value in found["update_norm"]] == pytest.approx([0.5, 0.4, 0.3, 0.2])
    assert found["budget_left/north"] == [(1, 7.5), (2, 7.0)]
    assert "budget_left/south" not in found
    assert found["stage_seconds/train"] == [(number, 8.0) for number in (1, 2, 3, 4)]
    assert count == sum(map(len, found.values()))


def test_a_simulated_runs_scalars_are_its_rounds(tmp_path: Path) -> None:
    records = [
        {
            "round": number, "seconds": 2.0, "silos": 4, "loss": None if number == 1 else 5.0 - number, "epsilon": number / 2,
            "validation": {"ndcg@10": 0.05 + number / 100, "hr@10": 0.1, "users": 943}, "test": None, "answered": 4,
            "update_norm": None if number == 0 else 0.25, "selected": True,
        }
        for number in range(3)
    ]  # fmt: skip
    (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"round": 3, "sec')
    found = scalars(export(tmp_path, tmp_path / "out")[0])
    assert found["loss"] == [(0, 5.0), (2, 3.0)]
    assert found["epsilon"] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert [value for _, value in found["validation/ndcg@10"]] == pytest.approx([0.05, 0.06, 0.07])
    assert found["update_norm"] == [(1, 0.25), (2, 0.25)]
    assert "validation/users" not in found
    read = EventAccumulator(str(tmp_path / "out"))
    read.Reload()
    times = [one.wall_time for one in read.Scalars("seconds")]
    assert [later - sooner for sooner, later in pairwise(times)] == pytest.approx([2.0, 2.0])


def test_scalars_are_there_while_the_run_goes_on(tmp_path: Path) -> None:
    with TensorBoardWriter(tmp_path) as writer:
        for event in story.STORY[:5]:
            writer.tell(event)
        live = scalars(tmp_path)
    assert live["seconds"] == [(0, 3.0), (1, 10.0)]
    with TensorBoardWriter(tmp_path) as writer:  # after a restart
        for event in (story.begins(to_do=2), *story.STORY[5:]):
            writer.tell(event)
    assert [number for number, _ in scalars(tmp_path)["seconds"]] == [0, 1, 2, 3, 4]
    assert scalars(tmp_path)["budget_left/north"] == [(1, 7.5), (2, 7.0)]


def test_exporting_again_replaces_what_was_exported_and_nothing_else(tmp_path: Path) -> None:
    run = story.write(tmp_path / "run")
    first = scalars(export(run)[0])
    (run / "tensorboard" / "notes.txt").write_text("mine")
    time.sleep(0.01)
    assert scalars(export(run)[0]) == first
    assert sorted(path.suffix for path in (run / "tensorboard").iterdir()) == [".silorec", ".txt"]


def test_a_folder_without_rounds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rounds\.jsonl"):
        export(tmp_path)
