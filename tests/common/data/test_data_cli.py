"""``silorec data``: what a person and a machine see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.data.cli import data_app
from common.data.load import formats, read_dataset
from common.data.summary import summary
from common.errors import ConfigError, DataError
from tests.common.data import made_up


def run(*arguments: str) -> str:
    result = CliRunner().invoke(data_app, list(arguments), catch_exceptions=False, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_inspect_prints_format_counts_span_and_density(tmp_path: Path) -> None:
    out = run("inspect", str(made_up.movielens_100k(tmp_path / "ml")))
    for piece in (
        "ml (movielens-100k)",
        "4, of which 3 touched",
        "1997-12-04T15:55:49",
        "50.0000%",
        "75.0%",
        "Nothing was dropped",
    ):
        assert piece in out


def test_inspect_as_json_is_only_json_and_agrees_with_the_data(tmp_path: Path) -> None:
    path = made_up.movielens_100k(tmp_path / "ml")
    found = json.loads(run("inspect", str(path), "--json"))
    dataset = read_dataset(path)
    assert found == {"path": str(path), "format": "movielens-100k", **summary(dataset)}
    assert found["users"] == 3
    assert found["items"] == 4
    assert found["items_touched"] == 3
    assert found["interactions"] == 6
    assert found["density"] == pytest.approx(6 / 12)
    assert found["days"] == pytest.approx(4 / 86_400)
    assert found["interactions_per_user"] == {"min": 2, "25%": 2, "median": 2, "75%": 2, "95%": 2, "max": 2}
    assert found["share_of_items_with_category"] == 0.75
    assert found["share_of_users_with_profile"] == 1
    assert found["share_with_text"] == 0
    assert found["values"] == [1, 5]


def test_inspect_shows_what_was_dropped_and_why(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("customer,item,time\na,x,1\na,y,soon\nb,x,2\nb,x,2\n")
    out = run("inspect", str(path), "--malformed", "skip", "--column", "user=customer")
    for piece in ("time is not a number", "t.csv:3: time is 'soon'", "same user, item and time as an earlier row"):
        assert piece in out
    found = json.loads(run("inspect", str(path), "--malformed", "skip", "--column", "user=customer", "--json"))
    assert found["dropped"]["time is not a number"] == {"count": 1, "example": "t.csv:3: time is 'soon'"}
    assert found["values"] is None


def test_density_counts_a_pair_that_meets_twice_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("user,item,time\na,x,1\na,x,2\nb,y,1\n")
    assert summary(read_dataset(path))["density"] == pytest.approx(2 / 4)


def test_bad_input_comes_out_as_an_error_for_people(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("user,item,time\na,x,soon\n")
    with pytest.raises(DataError, match=r"t\.csv:2: time is not a number"):
        run("inspect", str(path))
    with pytest.raises(DataError, match="no such file"):
        run("inspect", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="--column 'uid': expected OURS=THEIRS"):
        run("inspect", str(path), "--column", "uid")


def test_formats_are_listed() -> None:
    assert json.loads(run("formats", "--json")) == formats()
    out = run("formats")
    assert all(name in out for name in formats())


@pytest.mark.parametrize("command", ["inspect", "formats"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    assert f"Example: silorec data {command}" in run(command, "--help")
