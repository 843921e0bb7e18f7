"""A whole simulation: what it leaves, what it claims, and what is left of it after Ctrl-C."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant

from common.config import load
from common.data.population import enrolled
from common.data.split import Held
from common.errors import ConfigError
from common.privacy.ledger import read_ledger
from simulations.evaluate import Evaluator
from simulations.run import simulate
from simulations.scenario import load_scenario
from tests.simulations import made_up_run
from tests.simulations.small_run import PRIVATE, CtrlC, adapter, result, rounds, run

DOCUMENTS = Path(__file__).parents[2] / "docs" / "results.md"
#: From a start that knows nothing, with steps that are too long.
BEST_IN_THE_MIDDLE = (
    "evaluation.select=validation", "federation.rounds=4", "run.seed=1", "training.learning_rate=0.1", "model.pooling_weight=0",
    "model.bias_weight=0",
)  # fmt: skip


def charged(folder: Path, silo: int) -> list[dict[str, Any]]:
    chain = read_ledger(folder / "silos" / str(silo) / "ledger.sqlite")
    return [dict(what.event) for _, what in chain.reservations]


def composed(events: list[dict[str, Any]], delta: float) -> float:
    """Epsilon of a ledger by dp_accounting alone."""
    accountant = RdpAccountant()
    for event in events:
        one = dp_accounting.GaussianDpEvent(event["noise_multiplier"])
        if event["kind"] == "poisson-gaussian-steps":
            one = dp_accounting.PoissonSampledDpEvent(event["sampling_probability"], one)
        accountant.compose(one, event.get("steps", 1))
    return float(accountant.get_epsilon(delta))


Arm = Callable[[str, int], None]
JUDGE, SPENT, TRAIN = "simulations.evaluate.Evaluator.judge", "simulations.run.spent_in", "client.trainer.train_round"


@pytest.fixture
def ctrl_c_at(monkeypatch: pytest.MonkeyPatch) -> Arm:
    """Ctrl-C in the ``n``-th call (from 0) of a function, and in no other."""

    def arm(name: str, n: int) -> None:
        original, calls = resolve_name(name), itertools.count()

        def stopped(*arguments: Any, **options: Any) -> Any:
            if next(calls) == n:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        monkeypatch.setattr(name, stopped)

    return arm


def test_the_smoke_scenario_writes_every_documented_file(tmp_path: Path) -> None:
    folder = simulate("smoke", overrides=["run.device=cpu"], out=tmp_path)
    table = DOCUMENTS.read_text().split("With `--grid flower`")[0]
    documented = {name for row in re.findall(r"^\| (`.+?) \|", table, re.M) for name in re.findall(r"`([^`]+)`", row)}
    assert {"result.json", "report.html", "silos/<n>/ledger.sqlite", "transcript.jsonl"} <= documented
    for name in documented:
        for silo in range(3) if "<n>" in name else (0,):
            assert (folder / name.replace("<n>", str(silo))).stat().st_size > 0, name
    assert folder == tmp_path / "smoke"
    assert [entry["name"] for entry in result(folder)["references"]] == ["popularity", "item-knn"]
    assert load(folder / "config.toml") == enrolled(load_scenario("smoke", overrides=["run.device=cpu"]))


@pytest.mark.parametrize("mode", ["none", "silo"])
def test_the_result_has_exactly_the_documented_keys(plain: Path, private: Path, mode: str) -> None:
    folder = plain if mode == "none" else private
    mine, lines = result(folder), rounds(folder)
    expected, expected_lines = made_up_run.made_up(mode=mode)
    assert mine.keys() == expected.keys()
    for key in ("silos", "references", "examples"):
        assert {frozenset(entry) for entry in mine[key]} == {frozenset(expected[key][0])}, key
    for key in ("dataset", "seconds_by_part"):
        assert mine[key].keys() == expected[key].keys(), key
    assert mine["intervals"].keys() >= expected["intervals"].keys()
    without_intervals = expected["validation"].keys() | {"users"}
    assert mine["validation"].keys() == mine["before_training"].keys() == without_intervals
    assert {frozenset(line) for line in lines} == {frozenset(expected_lines[0])}
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert all(line["validation"].keys() == without_intervals for line in lines)
    assert lines[-1]["selected"]
    assert (mine["status"], mine["rounds"], mine["selected_round"], mine["mode"]) == ("finished", 2, 2, mode)
    for key in ("epsilon", "epsilon_pld", "delta"):
        assert (mine[key] is None) == (mode == "none")
        assert isinstance(mine[key], type(expected[key]))


def test_epsilon_is_what_the_ledgers_compose_to(private: Path) -> None:
    mine = result(private)
    declared = [silo["declared_users"] for silo in mine["silos"]]
    assert mine["delta"] == 1 / (10 * min(declared))
    spent = [composed(charged(private, silo), mine["delta"]) for silo in range(len(declared))]
    assert [silo["epsilon"] for silo in mine["silos"]] == pytest.approx(spent, abs=1e-6)
    assert mine["epsilon"] == pytest.approx(max(spent), abs=1e-6)
    assert 7.9 < mine["epsilon"] <= 8.0
    assert mine["epsilon_pld"] < mine["epsilon"]
    after = [composed(charged(private, 0)[: number + 1], mine["delta"]) for number in range(3)]
    assert [line["epsilon"] for line in rounds(private)] == pytest.approx(after, abs=1e-6)


def test_the_resolved_configuration_repeats_the_run(plain: Path, tmp_path: Path) -> None:
    again = simulate(plain / "config.toml", out=tmp_path)
    np.testing.assert_array_equal(adapter(again), adapter(plain))
    assert (again / "config.toml").read_text() == (plain / "config.toml").read_text()


def test_the_next_run_of_a_name_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = [run(tmp_path, "federation.rounds=0") for _ in range(3)]
    assert folders == [tmp_path / "small", tmp_path / "small-2", tmp_path / "small-3"]
    with pytest.raises(ConfigError, match="no unfinished run called 'small' to resume"):
        run(tmp_path, "federation.rounds=0", resume=True)


def test_before_training_is_all_there_is_after_no_round(tmp_path: Path) -> None:
    mine = result(run(tmp_path, "federation.rounds=0"))
    assert (mine["rounds"], mine["selected_round"]) == (0, 0)
    assert {key: mine[key] for key in ("ndcg@10", "mrr", "auc")} == {
        key: mine["before_training"][key] for key in ("ndcg@10", "mrr", "auc")
    }


def test_ctrl_c_leaves_a_usable_run_and_resume_finishes_it(plain: Path, tmp_path: Path) -> None:
    overrides = ['evaluation.references=["popularity"]']
    folder = run(tmp_path, *overrides, watch=CtrlC(1))
    kept = result(folder)
    assert (kept["status"], kept["rounds"], kept["selected_round"], kept["references"]) == ("interrupted", 1, 1, [])
    assert kept["ndcg@10"] is not None
    assert (folder / "report.html").is_file()
    assert not np.array_equal(adapter(folder), adapter(plain))

    with pytest.raises(ConfigError, match="other settings"):
        run(tmp_path, *overrides, "training.learning_rate=0.02", resume=True)
    assert run(tmp_path, *overrides, resume=True) == folder
    np.testing.assert_array_equal(adapter(folder), adapter(plain))
    finished, never_stopped = result(folder), result(plain)
    for key in ("status", "rounds", "selected_round", "ndcg@10", "validation", "before_training", "silos", "examples"):
        assert finished[key] == never_stopped[key], key
    assert [line["round"] for line in rounds(folder)] == [0, 1, 2]


@pytest.mark.parametrize("n", [1, 2])
def test_ctrl_c_while_a_finished_round_is_evaluated_loses_nothing(plain: Path, tmp_path: Path, ctrl_c_at: Arm, n: int) -> None:
    """The checkpoint of the round is written, its line is not; the last round is the hardest, for no other follows."""
    ctrl_c_at(JUDGE, n)
    overrides = ['evaluation.references=["popularity"]']
    folder = run(tmp_path, *overrides)
    assert (result(folder)["status"], len(rounds(folder))) == ("interrupted", n)
    run(tmp_path, *overrides, resume=True)
    np.testing.assert_array_equal(adapter(folder), adapter(plain))
    assert result(folder)["selected_round"] == 2
    lines = rounds(folder)
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert [line["seconds"] is None for line in lines] == [number == n for number in range(3)]
    assert [line["validation"] for line in lines] == [line["validation"] for line in rounds(plain)]


def test_ctrl_c_before_there_is_anything_to_keep_is_an_interrupt_that_can_be_resumed(
    plain: Path, tmp_path: Path, ctrl_c_at: Arm
) -> None:
    ctrl_c_at(JUDGE, 0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert not (tmp_path / "small" / "result.json").exists()
    folder = run(tmp_path, resume=True)
    np.testing.assert_array_equal(adapter(folder), adapter(plain))
    assert result(folder)["before_training"] == result(plain)["before_training"]


def test_a_line_that_was_torn_by_a_crash_is_written_again(plain: Path, tmp_path: Path) -> None:
    folder = run(tmp_path, watch=CtrlC(1))
    path = folder / "rounds.jsonl"
    path.write_text(path.read_text()[:-20])
    run(tmp_path, resume=True)
    assert [line["round"] for line in rounds(folder)] == [0, 1, 2]
    np.testing.assert_array_equal(adapter(folder), adapter(plain))


def test_a_resumed_private_run_goes_on_spending_where_it_stopped(private: Path, tmp_path: Path) -> None:
    folder = run(tmp_path, *PRIVATE, watch=CtrlC(1))
    before = [charged(folder, silo) for silo in range(2)]
    delta = result(folder)["delta"]
    assert result(folder)["epsilon"] == pytest.approx(max(composed(events, delta) for events in before), abs=1e-6)
    assert result(folder)["epsilon"] < result(private)["epsilon"] - 0.5
    run(tmp_path, *PRIVATE, resume=True)
    after = [charged(folder, silo) for silo in range(2)]
    assert [events[: len(old)] for events, old in zip(after, before, strict=True)] == before
    assert after == [charged(private, silo) for silo in range(2)]
    assert result(folder)["status"] == "finished"
    assert result(folder)["epsilon"] == result(private)["epsilon"]


def test_ctrl_c_in_the_middle_of_a_silos_training_counts_it_as_spent(tmp_path: Path, ctrl_c_at: Arm) -> None:
    """Silo 0 has answered round 2 and answers the same again; silo 1 was stopped after its charge, so its budget is gone."""
    ctrl_c_at(TRAIN, 3)
    folder = run(tmp_path, *PRIVATE)
    assert (result(folder)["status"], result(folder)["rounds"]) == ("interrupted", 1)
    spent = [charged(folder, silo) for silo in range(2)]
    assert [len(events) for events in spent] == [3, 3]
    run(tmp_path, *PRIVATE, resume=True)
    assert [charged(folder, silo) for silo in range(2)] == spent
    assert (result(folder)["status"], rounds(folder)[-1]["answered"]) == ("finished", 1)
    assert result(folder)["epsilon"] <= 8.0


def test_validation_chooses_the_round_and_the_test_items_have_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(tmp_path / "true", *BEST_IN_THE_MIDDLE)
    quality = [line["validation"]["ndcg@10"] for line in rounds(folder)]
    best = int(np.argmax(quality))
    mine = result(folder)
    assert mine["selected_round"] == best == 2
    assert mine["validation"]["ndcg@10"] == quality[best]
    assert [line["round"] for line in rounds(folder) if line["selected"]][-1] == best

    targets, asked = Evaluator.targets, []

    def scrambled(self: Evaluator, held: Held) -> np.ndarray:
        asked.append(held)
        return targets(self, held) if held == "validation" else (targets(self, held) + 5) % self.model.n_items

    monkeypatch.setattr(Evaluator, "targets", scrambled)
    other = run(tmp_path / "scrambled", *BEST_IN_THE_MIDDLE)
    assert "test" in asked
    assert "test" not in asked[: 2 * 5], "a round was judged by test items"
    np.testing.assert_array_equal(adapter(other), adapter(folder))
    assert result(other)["selected_round"] == best
    assert result(other)["ndcg@10"] != mine["ndcg@10"]


@pytest.mark.parametrize(("name", "n"), [(JUDGE, 3), (SPENT, 2), (SPENT, 3)])
def test_a_choice_by_validation_survives_a_stop_and_a_resume(tmp_path: Path, ctrl_c_at: Arm, name: str, n: int) -> None:
    """Round 2 is the best; when its epsilon is asked its adapter is on the disk already, and its line is not."""
    ctrl_c_at(name, n)
    folder = run(tmp_path, *BEST_IN_THE_MIDDLE)
    assert (result(folder)["status"], len(rounds(folder))) == ("interrupted", n)
    kept = adapter(folder)
    run(tmp_path, *BEST_IN_THE_MIDDLE, resume=True)
    assert result(folder)["selected_round"] == 2
    assert [line["selected"] for line in rounds(folder)] == [True, True, True, False, False]
    np.testing.assert_array_equal(adapter(folder), kept)


def test_only_every_second_round_is_evaluated_but_the_last_one_is_kept(tmp_path: Path) -> None:
    overrides = ("evaluation.every=2", "federation.rounds=3")
    folder = run(tmp_path, *overrides, watch=CtrlC(1))
    assert (result(folder)["selected_round"], result(folder)["rounds"]) == (1, 1)
    assert result(folder)["validation"]["users"] > 0
    run(tmp_path, *overrides, resume=True)
    assert [line["validation"] is not None for line in rounds(folder)] == [True, False, True, True]
    assert [line["loss"] is not None for line in rounds(folder)] == [True, False, True, True]
    assert result(folder)["selected_round"] == 3


def test_what_cannot_work_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown recommender 'eese'; there are: .*'?ease"):
        run(tmp_path, 'evaluation.references=["eese"]')
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file.small: the run's folder cannot be made .Not a directory"):
        simulate(tmp_path / "small.toml", out=tmp_path / "file")
    with pytest.raises(ConfigError, match=r"no scenario 'smok'; there are .*smoke"):
        simulate("smok", out=tmp_path)
