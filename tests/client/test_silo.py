"""A silo guards its own budget, gives the same answer to the same question, and does not let silos meet in the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client.silo
from client.silo import Place, Silo, open_silo
from common.config import Config
from common.errors import ConfigError, ErrorCode
from common.model.adapter import from_vector
from common.model.resident import resident
from common.privacy.events import GaussianCount
from common.privacy.journal import Journal
from common.protocol import Refusal, Request, TrainRequest, config_hash
from tests import tiny


def ask_train(config: Config, number: int = 1, shift: float = 0.0) -> TrainRequest:
    home = resident(config)
    vector = (home.start + np.float32(shift)).astype(np.float32)
    return TrainRequest(config_hash=config_hash(config), round=number, manifest_hash=home.manifest.hash, vector=vector)


def ask_count(config: Config) -> Request:
    return Request(config_hash=config_hash(config))


def journal(folder: Path) -> Journal:
    return Journal(folder / "journal.jsonl")


def test_a_whole_run_fits_the_budget_and_one_more_release_does_not(tmp_path: Path) -> None:
    config = tiny.config(privacy__mode="silo")
    silo = Silo(config, Place(0, tmp_path))
    silo.count(ask_count(config))
    for number in (1, 2):
        silo.train(ask_train(config, number, shift=number))
    spent = journal(tmp_path)
    assert list(spent.events) == silo.plan.all_events()
    assert spent.epsilon(silo.plan.delta) == pytest.approx(config.privacy.epsilon, rel=1e-4)
    with pytest.raises(Refusal, match=r"silo 0: epsilon would be 10\.4\d* .*the budget is 8 .* 8 is spent") as caught:
        silo.train(ask_train(config, 2, shift=3))
    assert caught.value.code is ErrorCode.BUDGET_EXHAUSTED
    assert len(journal(tmp_path).events) == 3


def test_the_budget_outlives_the_process_and_the_run(tmp_path: Path) -> None:
    """Another run, with another seed, by a process that knows nothing but the folder."""
    first = tiny.config(privacy__mode="silo")
    Silo(first, Place(0, tmp_path)).count(ask_count(first))
    second = tiny.config(privacy__mode="silo", name="again")
    silo = Silo(second, Place(0, tmp_path))
    silo.count(ask_count(second))
    silo.train(ask_train(second, 1))
    with pytest.raises(Refusal):
        silo.train(ask_train(second, 2))


def test_the_same_question_gets_the_same_answer_and_costs_nothing(tmp_path: Path) -> None:
    config = tiny.config(privacy__mode="silo")
    first = Silo(config, Place(0, tmp_path)).train(ask_train(config))["update"]
    again = Silo(config, Place(0, tmp_path)).train(ask_train(config))["update"]
    np.testing.assert_array_equal(first, again)
    assert len(journal(tmp_path).events) == 1
    fresh = Silo(config, Place(0, tmp_path)).train(ask_train(config, shift=1e-3))["update"]
    assert not np.array_equal(first, fresh)
    assert len(journal(tmp_path).events) == 2


def test_a_damaged_answer_is_computed_and_charged_anew(tmp_path: Path) -> None:
    config = tiny.config(privacy__mode="silo")
    Silo(config, Place(0, tmp_path)).train(ask_train(config))
    (tmp_path / "train.released.safetensors").write_bytes(b"torn")
    Silo(config, Place(0, tmp_path)).train(ask_train(config))
    assert len(journal(tmp_path).events) == 2


def test_a_release_is_charged_before_it_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import client.trainer

    seen: list[int] = []

    def crash(*args: Any, **kwargs: Any) -> Any:
        seen.append(len(journal(tmp_path).events))
        raise RuntimeError("power cut")

    monkeypatch.setattr(client.trainer, "train_round", crash)
    config = tiny.config(privacy__mode="silo")
    with pytest.raises(RuntimeError):
        Silo(config, Place(0, tmp_path)).train(ask_train(config))
    assert seen == [1]
    assert len(journal(tmp_path).events) == 1


def test_nothing_is_computed_or_charged_for_a_request_that_does_not_fit(tmp_path: Path) -> None:
    config = tiny.config(privacy__mode="silo")
    silo = Silo(config, Place(0, tmp_path))
    good = ask_train(config)
    for bad in (
        replace(good, config_hash="x"),
        replace(good, manifest_hash="x"),
        replace(good, round=3),
        replace(good, vector=good.vector[:-1]),
    ):
        with pytest.raises(Refusal):
            silo.train(bad)
    with pytest.raises(Refusal):
        silo.count(Request(config_hash="x"))
    assert not (tmp_path / "journal.jsonl").exists()


def test_a_private_silo_without_a_journal_answers_nothing() -> None:
    with pytest.raises(Refusal, match="there is no folder for the journal"):
        Silo(tiny.config(privacy__mode="silo"), Place(0))


def test_a_damaged_journal_stops_the_silo(tmp_path: Path) -> None:
    config = tiny.config(privacy__mode="silo")
    (tmp_path / "journal.jsonl").write_text("not an event\n")
    grid = tiny.grid(config, None, silo=0, state=str(tmp_path), data="unused")
    from flwr.app import Message

    from server.wire import request_content

    (reply,) = grid.send_and_receive([Message(request_content(ask_train(config)), grid.get_node_ids()[0], "train")])
    assert reply.error.code == ErrorCode.POLICY_REFUSED


def test_what_was_spent_elsewhere_counts(tmp_path: Path) -> None:
    """Events that another tool charged to the same journal, here all of the budget."""
    config = tiny.config(privacy__mode="silo")
    silo = Silo(config, Place(0, tmp_path))
    journal(tmp_path).charge(GaussianCount(noise_multiplier=0.4, max_norm=1.0))
    with pytest.raises(Refusal):
        silo.count(ask_count(config))


def test_mode_none_is_reproducible_and_leaves_its_mark_in_the_journal(tmp_path: Path) -> None:
    config = tiny.config()
    first, second = (Silo(config, Place(0, tmp_path / name, allow_unprotected=True)) for name in "ab")
    np.testing.assert_array_equal(first.train(ask_train(config))["update"], second.train(ask_train(config))["update"])
    assert not np.array_equal(first.train(ask_train(config, 1))["update"], first.train(ask_train(config, 2))["update"])
    assert journal(tmp_path / "a").epsilon(1e-5) == float("inf")


def test_counts_in_mode_none_are_those_of_the_training_rows() -> None:
    from common.data.population import load_population

    config = tiny.config()
    place = Place(1, allow_unprotected=True)
    train = load_population(config).training_data(1).interactions
    np.testing.assert_array_equal(Silo(config, place).count(ask_count(config))["count"], np.bincount(train.item, minlength=24))


def test_silos_that_share_a_model_do_not_meet_in_it() -> None:
    """A silo's update is the same whether or not another silo trained in the same model before."""
    config = tiny.config()
    alone = Silo(config, Place(1, allow_unprotected=True)).train(ask_train(config))["update"]
    Silo(config, Place(0, allow_unprotected=True)).train(ask_train(config))
    after = Silo(config, Place(1, allow_unprotected=True)).train(ask_train(config))["update"]
    np.testing.assert_array_equal(alone, after)
    home = resident(config)
    from_vector(home.model, home.start, home.manifest)


def test_a_process_keeps_the_silos_of_one_run_open() -> None:
    config, other = tiny.config(), tiny.config(name="other")
    place = Place(0, allow_unprotected=True)
    first = open_silo(config, place)
    assert open_silo(config, place) is first
    open_silo(other, place)
    assert {key[0] for key in client.silo._OPEN} == {config_hash(other)}
    assert resident(config) is resident(other)


def test_a_simulated_silo_takes_its_place_from_flower_and_a_deployed_one_from_its_operator(tmp_path: Path) -> None:
    simulated = Place.of({"partition-id": 3, "num-partitions": 4}, str(tmp_path))
    assert simulated == Place(3, tmp_path / "silos" / "3", allow_unprotected=True)
    deployed = Place.of({"silo": 2, "data": "shop.csv", "state": "/var/lib/silorec", "partition-id": 0}, "/of/the/coordinator")
    assert deployed == Place(2, Path("/var/lib/silorec"), Path("shop.csv"), allow_unprotected=False)
    with pytest.raises(ConfigError, match="--node-config lacks 'state'"):
        Place.of({"silo": 2, "data": "shop.csv"})
    with pytest.raises(ConfigError, match="this node is no silo"):
        Place.of({})


def test_a_deployed_silo_refuses_an_unprotected_run_unless_its_operator_allows_it(tmp_path: Path) -> None:
    config = tiny.config()
    with pytest.raises(Refusal, match="does not answer without protection") as caught:
        Silo(config, Place(0, tmp_path, tmp_path / "data.csv"))
    assert caught.value.code is ErrorCode.POLICY_REFUSED


def test_a_deployed_silo_reads_its_own_data_against_the_public_catalogue(tmp_path: Path) -> None:
    from common.data.population import load_catalogue

    config = tiny.config()
    ids = load_catalogue(config).ids
    rows = [f"{user},{item},{time}" for user in "abc" for time, item in enumerate((ids[5], ids[2], ids[9]))]
    (tmp_path / "own.csv").write_text("\n".join(["user,item,time", *rows, "a,not-in-the-catalogue,99"]) + "\n")
    silo = Silo(config, Place(1, tmp_path, tmp_path / "own.csv", allow_unprotected=True))
    expected = np.zeros(24)
    expected[[5, 2, 9]] = 3
    np.testing.assert_array_equal(silo.count(ask_count(config))["count"], expected)
    assert silo.data.item_mask is not None
    np.testing.assert_array_equal(np.flatnonzero(silo.data.item_mask), [2, 5, 9])
    assert silo.train(ask_train(config))["update"].any()
