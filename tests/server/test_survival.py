"""Rounds that survive: tried again, without silos that fail or are removed, and with somebody who watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

import server.exchange
from common.errors import ConfigError, ErrorCode, FederationError, RoundFailed
from common.privacy.transcript import FILE, read_transcript
from common.protocol import ADVERTISE, BUDGET, ENROL, MASK, REVEAL, SHARE, SIGN, TRAIN
from common.secagg.roster import KeyRoster
from server.exchange import Roster
from server.federation import FederationResult, Start, run_federation
from server.post import AT_ONCE
from server.secagg import SecureSum
from simulations.grid import Fault
from tests.server import fake_silos
from tests.server.fake_silos import DECLARED, TARGETS
from tests.server.masking_silos import MaskingSilos, constant, settings
from tests.server.slow_grid import SlowGrid

START = Start(np.zeros(3, dtype=np.float32), "manifest")
FIXED = np.average(TARGETS, axis=0, weights=DECLARED)

Event = Mapping[str, Any]


def run(
    grid=None, folder: Path | None = None, tell: Callable[[Event], None] | None = None, **federation: Any
) -> FederationResult:
    config = fake_silos.config(**federation)
    return run_federation(grid or fake_silos.grid(), config, START, Roster.of(config.federation), folder=folder, tell=tell)


def answered(result: FederationResult) -> list[list[int]]:
    """Who was in rounds 1, 2, …"""
    return [entry["answered"] for entry in result.history[1:]]


def failing(*silos: int, until: int = 99, code: ErrorCode = ErrorCode.INTERNAL):
    """These silos refuse in every round before ``until``."""
    return lambda silo, number: code if silo in silos and number < until else None


# Rounds that are tried again


def lost_first(times: int, *silos: int) -> Callable[[int, Message], Fault | None]:
    """These silos' first answers to training are lost."""
    asked = dict.fromkeys(silos, 0)

    def fault(silo: int, message: Message) -> Fault | None:
        if message.metadata.message_type != TRAIN or silo not in asked:
            return None
        asked[silo] += 1
        return Fault.LOST_REPLY if asked[silo] <= times else None

    return fault


def test_a_round_that_misses_its_quorum_is_tried_again_and_the_run_is_as_if_it_never_had() -> None:
    """Each try of a round asks a silo three times, so the fourth answer is the first of the second try."""
    result = run(fake_silos.grid(faults=lost_first(3, 0, 1)), round_attempts=2)
    np.testing.assert_array_equal(result.vector, run().vector)
    assert answered(result) == [[0, 1, 2]] * 3
    with pytest.raises(FederationError, match="round 1: 1 of 3 silos answered, the quorum is 2"):
        run(fake_silos.grid(faults=lost_first(6, 0, 1)), round_attempts=2)


def test_between_two_tries_of_a_round_there_is_a_pause() -> None:
    began = time.monotonic()
    run(fake_silos.grid(faults=lost_first(3, 0, 1)), rounds=1, round_attempts=3, round_pause=0.4)
    assert 0.4 <= time.monotonic() - began < 5.0


def test_a_round_whose_quorum_is_out_of_reach_is_not_tried_again() -> None:
    """Two of three have spent their budget: no pause of an hour brings it back."""
    spoil = failing(1, 2, code=ErrorCode.BUDGET_EXHAUSTED)
    with pytest.raises(RoundFailed, match=r"round 1: 1 of 3 silos answered, .*silo 2: BUDGET_EXHAUSTED") as raised:
        run(fake_silos.grid(spoil), round_attempts=3, round_pause=3600.0)
    assert not raised.value.again


def test_a_restarted_coordinator_asks_a_silo_whose_budget_was_spent_once_more(tmp_path: Path) -> None:
    with pytest.raises(RoundFailed):
        run(fake_silos.grid(failing(1, 2, code=ErrorCode.BUDGET_EXHAUSTED)), tmp_path)
    assert answered(run(folder=tmp_path)) == [[0, 1, 2]] * 3


# Silos that fail


def test_a_silo_that_fails_is_left_out_of_one_round_then_of_two_and_comes_back() -> None:
    asked: list[tuple[int, int]] = []
    spoil = failing(1, until=4)

    def spied(silo: int, number: int) -> ErrorCode | None:
        asked.append((silo, number))
        return spoil(silo, number)

    told: list[Event] = []
    result = run(fake_silos.grid(spied), tell=told.append, rounds=8)
    assert [number for silo, number in asked if silo == 1] == [1, 3, 6, 7, 8]
    assert answered(result) == [[0, 2]] * 5 + [[0, 1, 2]] * 3
    about = [event for event in told if event["event"] in ("left_out", "invited")]
    assert about == [
        {"event": "left_out", "silo": 1, "reason": "INTERNAL", "until_round": 3},
        {"event": "invited", "silo": 1},
        {"event": "left_out", "silo": 1, "reason": "INTERNAL", "until_round": 6},
        {"event": "invited", "silo": 1},
    ]


def test_no_round_waits_for_a_silo_that_is_left_out() -> None:
    grid = SlowGrid(fake_silos.grid(), lambda silo, action: None if (silo, action) == (2, TRAIN) else 0.0)
    began = time.monotonic()
    result = run(grid, rounds=3, deadline=0.5)
    assert answered(result) == [[0, 1]] * 3
    assert [asked for asked in grid.sent if asked == (2, TRAIN)] == [(2, TRAIN)] * 2  # rounds 1 and 3
    assert 1.0 <= time.monotonic() - began < 4.0


def test_silos_that_are_left_out_are_asked_where_the_quorum_needs_them() -> None:
    """With a quorum of all three nobody can be left out."""
    result = run(fake_silos.grid(faults=lost_first(1, 1)), rounds=3, quorum=1.0)
    assert answered(result) == [[0, 1, 2]] * 3
    spoil = failing(1, until=2)
    with pytest.raises(FederationError, match="round 1: 2 of 3 silos answered, the quorum is 3"):
        run(fake_silos.grid(spoil), quorum=1.0)


def test_a_silo_whose_budget_is_spent_is_asked_no_more() -> None:
    asked: list[int] = []
    spoil = failing(1, code=ErrorCode.BUDGET_EXHAUSTED)

    def spied(silo: int, number: int) -> ErrorCode | None:
        asked.append(silo)
        return spoil(silo, number)

    told: list[Event] = []
    result = run(fake_silos.grid(spied), tell=told.append, rounds=12)
    assert asked.count(1) == 1
    assert answered(result) == [[0, 2]] * 12
    assert [event for event in told if event["event"] == "left_out"] == [
        {"event": "left_out", "silo": 1, "reason": "BUDGET_EXHAUSTED", "until_round": None}
    ]


def test_a_silo_that_goes_and_comes_back_is_in_the_next_round() -> None:
    """It fails in rounds 1 and 3 and would be out of 4 and 5; but its node goes and comes: somebody has started it again."""
    grid = SlowGrid(fake_silos.grid(failing(1, until=4)))

    def tell(event: Event) -> None:
        if event["event"] == "left_out" and event["until_round"] == 6:
            grid.gone.add(1)
        if event["event"] == "round" and event["round"] == 4:
            grid.gone.clear()

    assert answered(run(grid, tell=tell, rounds=6)) == [[0, 2]] * 4 + [[0, 1, 2]] * 2


def test_a_silo_that_was_started_again_is_taken_when_its_old_node_is_gone() -> None:
    """Node 3 is silo 1 again. Until Flower strikes node 1 off, silo 1 has two nodes, and the first one is asked."""
    grid = SlowGrid(fake_silos.grid(n=4, places={3: 1}), lambda silo, action: None if (silo, action) == (1, TRAIN) else 0.0)
    grid.gone.add(3)

    def tell(event: Event) -> None:
        if event["event"] == "round":
            grid.gone = {0: set(), 1: {1}}.get(event["round"], grid.gone)

    result = run(grid, tell=tell, rounds=3, deadline=0.3)
    assert answered(result) == [[0, 2], [0, 1, 2], [0, 1, 2]]
    assert [node for node, action in grid.sent if action == TRAIN] == [0, 1, 2, 0, 2, 3, 0, 2, 3]


def test_a_silo_whose_answers_do_not_fit_into_a_sum_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(4, federation__rounds=2)
    silos = MaskingSilos(config, constant({silo: np.full(3, silo, np.float32) for silo in range(4)}))
    masked = silos._mask
    monkeypatch.setattr(
        silos,
        "_mask",
        lambda silo, asked: masked(silo, asked) | ({"masked": np.zeros(3, np.uint64)} if silo == 1 and asked.round == 1 else {}),
    )
    told: list[Event] = []
    result = run_federation(
        silos.grid(), config, START, Roster.of(config.federation), key_roster=silos.consortium.roster, tell=told.append
    )
    assert answered(result) == [[0, 2, 3]] * 2
    assert [event["reason"] for event in told if event["event"] == "left_out"] == ["its answers did not fit"]


def test_in_a_secure_sum_a_silo_that_fails_at_a_stage_is_left_out_of_the_next_round() -> None:
    for stage in (ADVERTISE, SHARE, MASK):
        config = settings(4, federation__rounds=3)
        silos = MaskingSilos(config, constant({silo: np.full(3, silo, np.float32) for silo in range(4)}))

        def fault(silo: int, message: Message, stage: str = stage) -> Fault | None:
            said = message.content["request"]
            first = message.metadata.message_type == stage and said["round"] == 1
            return Fault.LOST_REPLY if first and silo == 2 else None

        result = run_federation(
            silos.grid(fault), config, START, Roster.of(config.federation), key_roster=silos.consortium.roster
        )
        assert answered(result) == [[0, 1, 3], [0, 1, 3], [0, 1, 2, 3]], stage
        assert (ADVERTISE, 2) in {(asked_stage, silo) for asked_stage, silo, asked in silos.asked if asked.round == 3}
        assert not [asked for _, silo, asked in silos.asked if silo == 2 and asked.round == 2]


# Silos that are removed


def test_a_silo_that_is_removed_between_rounds_is_asked_for_nothing_from_the_next_one_on() -> None:
    config = settings(4, federation__rounds=4)
    silos = MaskingSilos(config, constant({silo: np.full(3, silo, np.float32) for silo in range(4)}))
    whole = silos.consortium.roster
    done: list[int] = []

    def roster() -> KeyRoster:
        return KeyRoster(whole.names, whole.keys, frozenset({1} if len(done) > 2 else ()))

    result = run_federation(
        silos.grid(),
        config,
        START,
        Roster.of(config.federation),
        key_roster=roster,
        on_round=lambda report: done.append(report.round),
    )
    assert answered(result) == [[0, 1, 2, 3]] * 2 + [[0, 2, 3]] * 2
    assert {asked.round for _, silo, asked in silos.asked if silo == 1} == {1, 2}


def test_where_too_many_are_removed_the_run_ends_and_says_so() -> None:
    config = settings(4, federation__rounds=1, federation__round_attempts=3, federation__round_pause=3600.0)
    silos = MaskingSilos(config, constant({silo: np.zeros(3, np.float32) for silo in range(4)}))
    whole = silos.consortium.roster
    gone = KeyRoster(whole.names, whole.keys, frozenset({0, 3}))
    with pytest.raises(
        RoundFailed, match=r"2 of 4 silos can be asked, the quorum is 3 \(silo 0: no longer valid in the roster, silo 3"
    ):
        run_federation(silos.grid(), config, START, Roster.of(config.federation), key_roster=gone)


def test_an_advertisement_of_a_removed_silo_is_not_let_in() -> None:
    config = settings(4)
    silos = MaskingSilos(config, constant({}))
    consortium, name = silos.consortium, bytes(32)
    roster = KeyRoster(consortium.roster.names, consortium.roster.keys, frozenset({2}))
    replies = {silo: consortium.participant(silo).advertise(name) for silo in range(4)}
    one = SecureSum(consortium.context(name), consortium.rules, roster, np.uint32, 3)
    one.advertised(replies)
    assert sorted(one.ads) == [0, 1, 3]


def test_silos_that_were_admitted_after_the_run_began_take_no_part_in_it() -> None:
    """A roster that has grown is the run's roster with more at its end."""
    config = settings(3, federation__rounds=1)
    silos = MaskingSilos(config, constant({silo: np.full(3, silo, np.float32) for silo in range(3)}))
    whole, more = silos.consortium.roster, MaskingSilos(settings(5), constant({})).consortium.roster
    grown = KeyRoster((*whole.names, "late"), (*whole.keys, more.keys[4]), frozenset({3}))
    assert grown.first(3) == whole
    assert grown.first(3).digest == whole.digest
    result = run_federation(silos.grid(), config, START, Roster.of(config.federation), key_roster=grown)
    assert answered(result) == [[0, 1, 2]]
    with pytest.raises(ConfigError, match="the roster has 2 silos, the configuration 3"):
        run_federation(silos.grid(), config, START, Roster.of(config.federation), key_roster=whole.first(2))


# Who watches


def test_a_run_tells_what_happens_in_the_order_in_which_it_does(tmp_path: Path) -> None:
    import json

    told: list[Event] = []
    result = run(tell=told.append, folder=tmp_path, rounds=1)
    assert [event["event"] for event in told] == ["run", "round", "stage_begins", "stage", "round", "finished"]
    first, count, begins, stage, one, last = told
    assert (first["name"], first["mode"], first["silos"], first["rounds"], first["from_round"]) == ("run", "none", 3, 1, 0)
    assert first["config"] == read_transcript(tmp_path / FILE).run["config"]
    assert (count["round"], count["answered"]) == (0, [])
    assert (stage["round"], stage["stage"], stage["asked"], stage["answered"]) == (1, TRAIN, [0, 1, 2], [0, 1, 2])
    assert (stage["refused"], stage["deadline"]) == ({}, 1.0)
    assert begins == {"event": "stage_begins", **{key: stage[key] for key in ("round", "stage", "asked", "deadline")}}
    assert 0 <= stage["seconds"] <= one["seconds"]
    assert one["update_norm"] == result.history[-1]["update_norm"] > 0
    assert one["budget_left"] == {"0": None, "1": None, "2": None}
    assert last == {"event": "finished", "round": 1}
    assert json.loads(json.dumps(told)) == told


def test_a_run_that_is_stopped_tells_after_which_round() -> None:
    told: list[Event] = []
    config = fake_silos.config(rounds=3)
    result = run_federation(
        fake_silos.grid(),
        config,
        START,
        Roster.of(config.federation),
        tell=told.append,
        stop=lambda: any(event["event"] == "round" and event["round"] == 2 for event in told),
    )
    assert (result.stopped, told[-1]) == (True, {"event": "stopped", "round": 2})


def test_a_run_that_fails_tells_why_and_one_that_is_taken_up_where_it_goes_on(tmp_path: Path) -> None:
    told: list[Event] = []
    spoil = lambda silo, number: ErrorCode.LEDGER_UNAVAILABLE if number == 2 and silo else None  # noqa: E731
    with pytest.raises(FederationError):
        run(fake_silos.grid(spoil), tmp_path, told.append)
    (stage,) = [event for event in told if event["event"] == "stage" and event["round"] == 2]
    assert stage["refused"] == {"1": "LEDGER_UNAVAILABLE", "2": "LEDGER_UNAVAILABLE"}
    assert told[-1]["event"] == "failed"
    assert told[-1]["reason"].startswith("round 2: 1 of 3 silos answered, the quorum is 2 (silo 1: LEDGER_UNAVAILABLE")
    told.clear()
    run(folder=tmp_path, tell=told.append)
    assert told[0]["from_round"] == 2


def test_an_exception_of_whoever_listens_changes_nothing() -> None:
    def broken(event: Event) -> None:
        raise ZeroDivisionError

    np.testing.assert_array_equal(run(tell=broken).vector, run().vector)


def test_the_stages_of_a_secure_sum_have_the_short_deadline_where_silos_compute_nothing() -> None:
    config = settings(4, federation__rounds=1, federation__deadline=500.0, federation__stage_deadline=7.0)
    silos = MaskingSilos(config, constant({silo: np.zeros(3, np.float32) for silo in range(4)}))
    told: list[Event] = []
    run_federation(
        silos.grid(), config, START, Roster.of(config.federation), key_roster=silos.consortium.roster, tell=told.append
    )
    deadlines = {event["stage"]: event["deadline"] for event in told if event["event"] == "stage"}
    assert deadlines == {ADVERTISE: 7.0, SHARE: 7.0, MASK: 500.0, SIGN: 7.0, REVEAL: 7.0}


# Budgets


def budget_grid(told: list[int]):
    """Silo 0 shows 1.25, silo 1 refuses, silo 2 never answers."""
    silos = fake_silos.app()
    from flwr.app import ConfigRecord, Error, RecordDict

    @silos.query("budget")
    def _(message: Message, context: Any) -> Message:
        silo = int(context.node_config["partition-id"])
        told.append(silo)
        if silo == 1:
            return Message(Error(int(ErrorCode.POLICY_REFUSED), ""), reply_to=message)
        return Message(RecordDict({"public": ConfigRecord({"budget": 1250})}), reply_to=message)

    from simulations.grid import InProcessGrid

    lost = lambda silo, message: Fault.LOST_REPLY if message.metadata.message_type == BUDGET and silo == 2 else None  # noqa: E731
    return InProcessGrid(silos, 3, faults=lost)


def test_budgets_are_asked_only_where_the_configuration_says_so(tmp_path: Path) -> None:
    asked: list[int] = []
    told: list[Event] = []
    result = run(budget_grid(asked), tell=told.append, rounds=2)
    assert asked == []
    with_budgets = run(budget_grid(asked), tmp_path, told.append, rounds=2, ask_budgets=True)
    np.testing.assert_array_equal(with_budgets.vector, result.vector)
    left = [event["budget_left"] for event in told if event["event"] == "round"]
    assert left[-2:] == [{"0": 1.25, "1": None, "2": None}] * 2
    # once in each round, whoever refuses or is silent; that is no failure, and no answer that a ledger must hold
    assert asked == [0, 1, 2] * 2
    assert not [event for event in told if event["event"] == "left_out"]
    assert {entry.action for entry in read_transcript(tmp_path / FILE).answers} == {TRAIN}


# Memory


def test_masked_vectors_are_added_up_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twelve silos' vectors no two are held at once: the last one is gone when the next one is added."""
    import weakref

    config = settings(12, federation__rounds=1)
    silos = MaskingSilos(config, constant({silo: np.zeros(3, np.float32) for silo in range(12)}))
    seen: list[weakref.ref[Any]] = []
    alive: list[int] = []
    add = SecureSum.add

    def watched(one: SecureSum, silo: int, words: Any) -> None:
        add(one, silo, words)
        seen.append(weakref.ref(words))
        alive.append(sum(ref() is not None for ref in seen))

    monkeypatch.setattr(SecureSum, "add", watched)
    run_federation(silos.grid(), config, START, Roster.of(config.federation), key_roster=silos.consortium.roster)
    assert len(alive) == 12
    assert max(alive) <= 2


def test_however_many_silos_have_answered_few_answers_are_fetched_at_once() -> None:
    """Over a grid that has all of them at the same moment, as one has whose silos compute for equally long."""
    config = settings(30, federation__rounds=1, federation__deadline=30.0)
    silos = MaskingSilos(config, constant({silo: np.zeros(3, np.float32) for silo in range(30)}))
    start = time.monotonic()
    grid = SlowGrid(silos.grid(), lambda silo, action: max(0.0, start + 4.0 - time.monotonic()) if action == MASK else 0.0)
    result = run_federation(grid, config, START, Roster.of(config.federation), key_roster=silos.consortium.roster)
    assert answered(result) == [list(range(30))]
    assert grid.held == AT_ONCE == 8


def test_light_questions_are_those_for_which_a_silo_computes_nothing() -> None:
    assert {ENROL, ADVERTISE, SHARE, SIGN, REVEAL, BUDGET} == server.exchange.LIGHT
