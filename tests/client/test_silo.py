"""A silo guards its own budget, gives the same answer to the same question, and does not let silos meet in the model."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client.silo
from client.place import KEY, LEDGER, Place
from client.releases import Kept, kept_answer, write_kept
from client.silo import Silo, open_silo
from common.config import Config, load, to_dict
from common.data.own import OwnSource
from common.errors import BudgetExhausted, ConfigError, ErrorCode, LedgerError, PolicyRefused
from common.model.adapter import from_vector
from common.model.resident import resident
from common.privacy.accountant import epsilon
from common.privacy.entries import Chain
from common.privacy.events import Event
from common.privacy.ledger import Ledger, read_ledger
from common.privacy.policy import Policy
from common.privacy.signing import create_key
from common.protocol import TRAIN, AdapterRequest, Refusal, Request, answer_digest, config_hash, question_digest
from common.secagg.coding import coding_of
from tests import tiny


def _fail(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("power cut")


def ask_train(config: Config, number: int = 1, shift: float = 0.0) -> AdapterRequest:
    home = resident(config)
    vector = (home.start + np.float32(shift)).astype(np.float32)
    return AdapterRequest(config_hash=config_hash(config), round=number, manifest_hash=home.manifest.hash, vector=vector)


def ask_count(config: Config) -> Request:
    return Request(config_hash=config_hash(config))


def ledger(folder: Path) -> Chain:
    return read_ledger(folder / LEDGER)


def charged(folder: Path) -> list[Event]:
    return [what.released for _, what in ledger(folder).reservations]


def simulated(config: Config, folder: Path | None = None, index: int = 0) -> Silo:
    return Silo(config, Place(index, folder, simulated=True))


def operated(config: Config, folder: Path, **policy: Any) -> Silo:
    """A silo with an operator behind it, who made a ledger with a policy of their own."""
    plan = simulated(config, folder).plan
    settings = {"silo": "shop", "epsilon": 8.0, "delta": plan.delta, "coordinators": ("any",)} | policy
    Ledger.create(folder / LEDGER, Policy(**settings), create_key(folder / KEY))
    silo = Silo(config, Place(0, folder, Path("unused")))
    silo.data = simulated(config, folder).data
    return silo


def test_a_whole_run_fits_the_budget_and_one_more_release_does_not(tmp_path: Path) -> None:
    config = tiny.config(privacy__mode="silo")
    silo = simulated(config, tmp_path)
    silo.count(ask_count(config))
    for number in (1, 2):
        silo.train(ask_train(config, number, shift=number))
    assert charged(tmp_path) == silo.plan.all_events()
    assert epsilon(charged(tmp_path), silo.plan.delta) == pytest.approx(config.privacy.epsilon, rel=1e-4)
    again = tiny.config(privacy__mode="silo", name="again")
    with pytest.raises(BudgetExhausted, match=r"epsilon would be 10\.5691 .*the policy allows 8 .*; 8 is spent"):
        simulated(again, tmp_path).train(ask_train(again, 2, shift=3))
    assert len(charged(tmp_path)) == 3


def test_the_budget_outlives_the_process_and_the_run(tmp_path: Path) -> None:
    """Another run, with another name, by a process that knows nothing but the folder."""
    first = tiny.config(privacy__mode="silo")
    simulated(first, tmp_path).count(ask_count(first))
    second = tiny.config(privacy__mode="silo", name="again")
    silo = simulated(second, tmp_path)
    silo.count(ask_count(second))
    silo.train(ask_train(second, 1))
    with pytest.raises(BudgetExhausted):
        silo.train(ask_train(second, 2))


def test_the_same_question_gets_the_same_answer_and_costs_nothing(tmp_path: Path) -> None:
    config = tiny.config(privacy__mode="silo")
    first = simulated(config, tmp_path).train(ask_train(config))["update"]
    again = simulated(config, tmp_path).train(ask_train(config))["update"]
    np.testing.assert_array_equal(first, again)
    assert len(charged(tmp_path)) == 1


def test_a_silo_whose_operator_names_a_roster_answers_in_sums_only(tmp_path: Path) -> None:
    config = tiny.config(privacy__mode="silo", aggregation__method="plain")
    roster = tmp_path / "roster.toml"
    with pytest.raises(Refusal, match="names a roster, so it answers in secure sums only") as caught:
        Silo(config, Place(0, tmp_path, tmp_path / "shop.csv", roster))
    assert caught.value.code is ErrorCode.POLICY_REFUSED
    Silo(config, Place(0, tmp_path, tmp_path / "shop.csv"))
    Silo(config, Place(0, tmp_path, roster=roster, simulated=True))


def test_a_run_goes_forward_only(tmp_path: Path) -> None:
    """Another question for a round that was answered, and any question for a round before it, get a refusal and cost nothing."""
    config = tiny.config(privacy__mode="silo", federation__rounds=4)
    silo = simulated(config, tmp_path)
    silo.train(ask_train(config, 1))
    silo.train(ask_train(config, 2))
    before = ledger(tmp_path)
    for number, shift in ((2, 1e-3), (1, 0.0), (1, 1e-3)):
        with pytest.raises(Refusal, match="a new run needs another name or seed") as caught:
            simulated(config, tmp_path).train(ask_train(config, number, shift))
        assert caught.value.code is ErrorCode.REPLAYED
    assert ledger(tmp_path).head == before.head
    silo.train(ask_train(config, 4))


def test_a_round_whose_answer_was_lost_in_a_crash_may_be_asked_again_and_is_paid_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config(privacy__mode="silo", federation__rounds=4)
    silo = simulated(config, tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr("client.trainer.train_round", _fail)
        with pytest.raises(RuntimeError):
            silo.train(ask_train(config, 1))
    silo.train(ask_train(config, 1, shift=1e-3))
    assert len(charged(tmp_path)) == 2
    assert len(ledger(tmp_path).open_reservations) == 1


def test_an_answer_that_was_kept_before_a_crash_is_committed_and_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between keeping the answer and noting it: the next process notes it and charges nothing."""
    config = tiny.config(privacy__mode="silo")
    with monkeypatch.context() as broken:
        broken.setattr(Ledger, "commit", _fail)
        with pytest.raises(RuntimeError):
            simulated(config, tmp_path).train(ask_train(config))
    assert len(ledger(tmp_path).open_reservations) == 1
    update = simulated(config, tmp_path).train(ask_train(config))
    chain = ledger(tmp_path)
    assert (len(chain.reservations), chain.open_reservations) == (1, ())
    assert chain.commitments[1].what.answer == answer_digest(TRAIN, update)  # type: ignore[union-attr]


def test_a_damaged_answer_is_computed_and_charged_anew(tmp_path: Path) -> None:
    config = tiny.config(privacy__mode="silo")
    simulated(config, tmp_path).train(ask_train(config))
    kept_answer(tmp_path, config_hash(config), TRAIN).write_bytes(b"torn")
    simulated(config, tmp_path).train(ask_train(config))
    assert len(charged(tmp_path)) == 2


def test_an_answer_that_somebody_put_there_does_not_leave(tmp_path: Path) -> None:
    """What is kept must be what the ledger says was released."""
    config = tiny.config(privacy__mode="silo", federation__rounds=4)
    first = simulated(config, tmp_path).train(ask_train(config))["update"]
    question = question_digest(TRAIN, ask_train(config))
    write_kept(kept_answer(tmp_path, config_hash(config), TRAIN), question, Kept({"update": first + 1}))
    other = simulated(config, tmp_path).train(ask_train(config))["update"]
    assert not np.array_equal(other, first + 1)
    assert len(charged(tmp_path)) == 2


def test_a_release_is_charged_before_the_data_are_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def crash(self: Silo) -> Any:
        seen.append(len(charged(tmp_path)))
        raise RuntimeError("power cut")

    monkeypatch.setattr(Silo, "data", property(crash))
    config = tiny.config(privacy__mode="silo")
    with pytest.raises(RuntimeError):
        simulated(config, tmp_path).train(ask_train(config))
    assert seen == [1]
    assert len(charged(tmp_path)) == 1


def test_nothing_is_computed_or_charged_for_a_request_that_does_not_fit(tmp_path: Path) -> None:
    config = tiny.config(privacy__mode="silo")
    silo = simulated(config, tmp_path)
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
    assert not (tmp_path / LEDGER).exists()


LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception]]] = {
    "mode": ({"privacy__mode": "none"}, {}, PolicyRefused),
    "less noise": ({"privacy__epsilon": 30.0}, {"min_noise_multiplier": 1.0}, PolicyRefused),
    "a larger sampling probability": ({}, {"max_sampling_probability": 0.5}, PolicyRefused),
    "more steps": ({"training__local_steps": 3}, {"max_steps_per_round": 2}, PolicyRefused),
    "other declared users": ({}, {"declared_users": 7}, PolicyRefused),
    "an unknown coordinator": ({}, {"coordinators": ("ab" * 32,)}, PolicyRefused),
    "more than the budget": ({"privacy__epsilon": 9.0, "federation__rounds": 1}, {}, BudgetExhausted),
}


@pytest.mark.parametrize("what", LIMITS)
def test_what_the_operator_does_not_allow_is_refused_before_the_data_are_touched(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, policy, error = LIMITS[what]
    config = tiny.config(**({"privacy__mode": "silo"} | settings))
    silo = operated(config, tmp_path, **policy)
    monkeypatch.setattr(Silo, "data", property(_fail))
    before = ledger(tmp_path).head
    with pytest.raises(error):
        silo.train(ask_train(config))
    assert ledger(tmp_path).head == before


def test_a_coordinator_that_asks_for_more_rounds_is_stopped_by_the_operators_budget(tmp_path: Path) -> None:
    """Runs follow on each other, each within its own epsilon; the operator's total holds over all of them."""
    config = tiny.config(privacy__mode="silo", privacy__epsilon=4.0)
    operated(config, tmp_path, epsilon=10.0)
    answered = 0
    for number in range(10):
        config = tiny.config(privacy__mode="silo", privacy__epsilon=4.0, name=f"run-{number}")
        silo = Silo(config, Place(0, tmp_path, Path("unused")))
        silo.data = simulated(config, tmp_path).data
        for round_number in (1, 2):
            with contextlib.suppress(BudgetExhausted):
                silo.train(ask_train(config, round_number))
                answered += 1
    assert 2 < len(charged(tmp_path)) == answered < 20
    assert epsilon(charged(tmp_path), silo.plan.delta) <= 10.0 * (1 + 1e-6)


def test_a_private_silo_without_a_folder_answers_nothing() -> None:
    with pytest.raises(Refusal, match="there is no folder for the ledger"):
        Silo(tiny.config(privacy__mode="silo"), Place(0))


def test_a_deployed_silo_without_a_ledger_answers_nothing(tmp_path: Path) -> None:
    config = tiny.config(privacy__mode="silo")
    create_key(tmp_path / KEY)
    with pytest.raises(LedgerError, match="silorec ledger init"):
        Silo(config, Place(0, tmp_path, Path("unused"))).train(ask_train(config))


def test_a_damaged_ledger_stops_the_silo(tmp_path: Path) -> None:
    config = tiny.config(privacy__mode="silo")
    (tmp_path / LEDGER).write_text("not a ledger\n")
    create_key(tmp_path / KEY)
    grid = tiny.grid(config, None, silo=0, state=str(tmp_path), data="unused")
    from flwr.app import Message

    from server.wire import request_content

    (reply,) = grid.send_and_receive([Message(request_content(ask_train(config)), grid.get_node_ids()[0], "train")])
    assert reply.error.code == ErrorCode.LEDGER_UNAVAILABLE


def test_mode_none_is_reproducible_and_leaves_its_mark_in_the_ledger(tmp_path: Path) -> None:
    config = tiny.config()
    first, second = (simulated(config, tmp_path / name) for name in "ab")
    np.testing.assert_array_equal(first.train(ask_train(config))["update"], second.train(ask_train(config))["update"])
    assert not np.array_equal(first.train(ask_train(config, 1))["update"], first.train(ask_train(config, 2))["update"])
    assert ledger(tmp_path / "a").reservations[-1][1].epsilon is None


def test_counts_in_mode_none_are_those_of_the_training_rows() -> None:
    from common.data.population import load_population

    config = tiny.config()
    place = Place(1, simulated=True)
    train = load_population(config).training_data(1).interactions
    np.testing.assert_array_equal(Silo(config, place).count(ask_count(config))["count"], np.bincount(train.item, minlength=24))


def test_silos_that_share_a_model_do_not_meet_in_it() -> None:
    """A silo's update is the same whether or not another silo trained in the same model before."""
    config = tiny.config()
    alone = Silo(config, Place(1, simulated=True)).train(ask_train(config))["update"]
    Silo(config, Place(0, simulated=True)).train(ask_train(config))
    after = Silo(config, Place(1, simulated=True)).train(ask_train(config))["update"]
    np.testing.assert_array_equal(alone, after)
    home = resident(config)
    from_vector(home.model, home.start, home.manifest)


def test_no_configuration_makes_a_silo_with_an_operator_draw_weaker_noise(tmp_path: Path) -> None:
    for noise in ("auto", "hardened", "fast"):
        config = tiny.config(privacy__mode="silo", privacy__noise=noise)
        assert Silo(config, Place(0, tmp_path, Path("unused"))).plan.hardened
        assert simulated(config, tmp_path).plan.hardened == (noise == "hardened")


def test_a_process_keeps_the_silos_of_one_run_open() -> None:
    config, other = tiny.config(), tiny.config(name="other")
    place = Place(0, simulated=True)
    first = open_silo(config, place)
    assert open_silo(config, place) is first
    open_silo(other, place)
    assert {key[0] for key in client.silo._OPEN} == {config_hash(other)}
    assert resident(config) is resident(other)


def test_a_simulated_silo_takes_its_place_from_flower_and_a_deployed_one_from_its_operator(tmp_path: Path) -> None:
    simulated = Place.of({"partition-id": 3, "num-partitions": 4}, str(tmp_path))
    assert simulated == Place(3, tmp_path / "silos" / "3", roster=tmp_path / "roster.toml", simulated=True)
    own = {"silo": 2, "data": "shop.csv", "state": "/var/lib/silorec", "partition-id": 0}
    deployed = Place(2, Path("/var/lib/silorec"), OwnSource(path=Path("shop.csv")))
    assert Place.of(own, "/of/the/coordinator") == deployed
    mine = replace(deployed, roster=Path("/etc/silorec/roster.toml"))
    assert Place.of({**own, "roster": "/etc/silorec/roster.toml"}, "/of/the/coordinator") == mine
    database = {**own, "data": "postgresql://silo@db/shop", "query": "SELECT 1", "password_file": "pw"}
    source = OwnSource(url="postgresql://silo@db/shop", query="SELECT 1", password_file=Path("pw"))
    assert Place.of(database) == replace(deployed, data=source)
    with pytest.raises(ConfigError, match="--node-config lacks 'state'"):
        Place.of({"silo": 2, "data": "shop.csv"})
    with pytest.raises(ConfigError, match="this node is no silo"):
        Place.of({})


@pytest.mark.parametrize("mode", ["none", "silo"])
def test_an_answer_in_a_secure_sum_is_weighed_exactly_and_rounded_once(mode: str, tmp_path: Path) -> None:
    """Less than a step off, however large the numbers; a product in float32 may be off by eight steps."""
    config = load(to_dict(tiny.config(privacy__mode=mode, partition__silos=4)), {"federation.declared_users": [9, 11, 13, 17]})
    value = np.random.default_rng(1).uniform(-8, 8, 2000).astype(np.float32)
    coding = coding_of(TRAIN, config, 2000)
    assert coding.scale == 2.0**25
    for index, users in enumerate(config.federation.declared_users):
        words = simulated(config, tmp_path / str(index), index)._words(TRAIN, 1, {"update": value})
        exact = value.astype(np.float64) * (users / 17)
        assert np.abs(coding.decode(words, 1) - exact).max() < 1 / coding.scale
    again = [simulated(config, tmp_path / "1", 1)._words(TRAIN, number, {"update": value}) for number in (1, 1, 2)]
    assert np.array_equal(again[0], again[1]) == (mode == "none"), "a run without privacy is repeated, the others are not"
    assert not np.array_equal(again[0], again[2])


def test_a_deployed_silo_reads_its_own_data_against_the_public_catalogue(tmp_path: Path) -> None:
    from common.data.population import load_catalogue

    config = tiny.config()
    ids = load_catalogue(config).ids
    rows = [f"{user},{item},{time}" for user in "abc" for time, item in enumerate((ids[5], ids[2], ids[9]))]
    (tmp_path / "own.csv").write_text("\n".join(["user,item,time", *rows, "a,not-in-the-catalogue,99"]) + "\n")
    silo = Silo(config, Place(1, tmp_path, tmp_path / "own.csv", simulated=True))
    expected = np.zeros(24)
    expected[[5, 2, 9]] = 3
    np.testing.assert_array_equal(silo.count(ask_count(config))["count"], expected)
    assert silo.data.item_mask is not None
    np.testing.assert_array_equal(np.flatnonzero(silo.data.item_mask), [2, 5, 9])
    assert silo.train(ask_train(config))["update"].any()
