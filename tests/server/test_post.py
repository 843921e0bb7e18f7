"""Asking a grid that takes its time: deadlines, patience, late and foreign answers, nodes that go, connections that fail."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import httpx
import pytest
from flwr.app import Message
from flwr.superlink.grid.http_grid import HttpGrid

import server.post
from common.errors import FederationError, RoundFailed
from common.protocol import ENROL, TRAIN, Request, config_hash
from server.exchange import Answers, Exchange, Roster
from server.post import Post, Wait
from simulations.grid import InProcessGrid
from tests.server import fake_silos
from tests.server.masking_silos import question
from tests.server.slow_grid import Delay, SlowGrid

HELLO = Request(config_hash=config_hash(fake_silos.config()))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter pauses than those that suit a deployment."""
    monkeypatch.setattr(server.post, "LOOK", 0.1)
    monkeypatch.setattr(server.post, "LEAST_PATIENCE", 0.2)
    monkeypatch.setattr(server.post, "RECONNECT", 0.02)


def slow(delay: Delay = lambda silo, action: 0.0) -> SlowGrid:
    return SlowGrid(fake_silos.grid(), delay)


def ask(grid: SlowGrid, **federation: Any) -> tuple[Answers, float]:
    """One round of training from zeros; the answers, and how long it took without enrolment."""
    config = fake_silos.config(**{"deadline": 0.5} | federation)
    exchange = Exchange(grid, Roster.of(config.federation), config, config_hash(config))
    exchange.enrol()
    began = time.monotonic()
    answers = exchange.ask(TRAIN, question(config, TRAIN), what="round 1", length=3)
    return answers, time.monotonic() - began


def delayed(**seconds: float | None) -> Delay:
    """``silo_1=0.3``: that silo trains for so long; the others answer at once, and all enrol at once."""
    return lambda silo, action: seconds.get(f"silo_{silo}", 0.0) if action == TRAIN else 0.0


def test_all_answers_end_a_stage_long_before_its_deadline() -> None:
    answers, seconds = ask(slow(delayed(silo_1=0.3)), deadline=60.0)
    assert list(answers.fields) == [0, 1, 2]
    assert 0.3 <= seconds < 5.0


def test_a_silo_that_does_not_answer_is_waited_for_until_the_deadline_and_no_longer() -> None:
    answers, seconds = ask(slow(delayed(silo_1=None)))
    assert list(answers.fields) == [0, 2]
    assert 0.5 <= seconds < 3.0


def test_with_patience_stragglers_are_waited_for_as_long_as_the_quorum_took_times_so_much() -> None:
    """Two of three answer, the second after 0.6 s; with a patience of 0.5 the third has 0.3 s more."""
    delays = delayed(silo_1=0.6, silo_2=None)
    answers, seconds = ask(slow(delays), deadline=30.0, patience=0.5)
    assert list(answers.fields) == [0, 1]
    assert 0.9 <= seconds < 5.0
    assert list(ask(slow(delayed(silo_1=0.6, silo_2=0.9)), deadline=30.0, patience=5.0)[0].fields) == [0, 1, 2]


def test_however_quick_the_quorum_was_stragglers_have_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.post, "LEAST_PATIENCE", 3.0)
    assert list(ask(slow(delayed(silo_2=0.1)), deadline=30.0, patience=1e-6)[0].fields) == [0, 1, 2]


def test_patience_never_goes_beyond_the_deadline() -> None:
    wait = Wait(10.0, patience=1000.0)
    wait.began -= 5.0
    wait.enough()
    assert wait.until <= time.monotonic() + 10.0


def test_a_node_that_the_grid_does_not_list_any_more_is_not_waited_for() -> None:
    grid = slow(delayed(silo_2=None))

    class Leaves(SlowGrid):
        def push_messages(self, messages: Any) -> list[str]:
            out = super().push_messages(messages)
            if (2, TRAIN) in self.sent:
                self.gone.add(2)
            return out

    answers, seconds = ask(Leaves(grid.inner, grid.delay), deadline=30.0)
    assert list(answers.fields) == [0, 1]
    assert seconds < 5.0


def test_a_node_that_goes_before_it_is_asked_is_not_waited_for() -> None:
    config = fake_silos.config(deadline=30.0)
    grid = slow()
    exchange = Exchange(grid, Roster.of(config.federation), config, config_hash(config))
    exchange.enrol()
    post = Post(grid, 30.0, "round 1")
    grid.gone.add(2)  # between the look for nodes and the question: Flower gives no message id
    began = time.monotonic()
    nodes = grid.inner.get_node_ids()
    found = [node for node, _ in post.answers(ENROL, dict.fromkeys(nodes, HELLO), Wait(30.0))]
    assert found == nodes[:2]
    assert time.monotonic() - began < 5.0


def test_an_answer_that_comes_after_its_stage_is_not_taken_for_one_to_a_later_one() -> None:
    """Silo 2 answers what it is asked first after a second, in one of the later rounds, and nothing else."""
    asked: list[int] = []

    def delay(silo: int, action: str) -> float | None:
        if action != TRAIN or silo != 2:
            return 0.0
        asked.append(silo)
        return 1.0 if len(asked) == 1 else None

    config = fake_silos.config(deadline=0.2)
    exchange = Exchange(slow(delay), Roster.of(config.federation), config, config_hash(config))
    began, number = time.monotonic(), 0
    while time.monotonic() < began + 1.5:
        number += 1
        answers = exchange.ask(TRAIN, question(config, TRAIN, number=number), what=f"round {number}", length=3)
        assert list(answers.fields) == [0, 1]
    assert number > 2


def test_an_answer_that_is_late_for_one_try_of_a_stage_is_good_for_the_next() -> None:
    """All answer what they are asked first after 0.4 s, of which they have 0.3, and nothing else."""
    asked: set[int] = set()

    def delay(silo: int, action: str) -> float | None:
        if action != TRAIN:
            return 0.0
        again = silo in asked
        asked.add(silo)
        return None if again else 0.4

    grid = slow(delay)
    assert list(ask(grid, deadline=0.3)[0].fields) == [0, 1, 2]
    assert grid.sent.count((0, TRAIN)) == 2


def test_an_answer_of_a_node_that_was_not_asked_is_not_taken() -> None:
    class Forging(InProcessGrid):
        """Silo 1's answers name the question that silo 0 was asked."""

        def pull_messages(self, message_ids: Any) -> list[Message]:
            found = super().pull_messages(message_ids)
            for message in found:
                message.metadata.__dict__["_src_node_id"] = self.get_node_ids()[1]
            return found

    grid = Forging(fake_silos.app(), 3)
    nodes = grid.get_node_ids()
    post = Post(grid, 1.0, "round 1")
    assert [node for node, _ in post.answers(ENROL, dict.fromkeys(nodes, HELLO), Wait(1.0))] == [nodes[1]]


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), ConnectionResetError(104, "reset")])
def test_a_connection_that_fails_for_a_while_costs_nothing_but_the_while(error: Exception) -> None:
    grid = slow()
    config = fake_silos.config(deadline=5.0)
    exchange = Exchange(grid, Roster.of(config.federation), config, config_hash(config))
    for _ in range(12):  # every call that the exchange makes fails once
        grid.failures = [error]
        assert list(exchange.ask(TRAIN, question(config, TRAIN), what="round 1", length=3).fields) == [0, 1, 2]
        grid.failures = [error] * 3
        assert list(exchange.ask(TRAIN, question(config, TRAIN), what="round 1", length=3).fields) == [0, 1, 2]


def test_a_connection_that_stays_away_fails_the_round_when_the_deadline_is_over() -> None:
    grid = slow()
    config = fake_silos.config(deadline=0.3)
    exchange = Exchange(grid, Roster.of(config.federation), config, config_hash(config))
    exchange.enrol()
    grid.failures = [httpx.ConnectError("refused")] * 10_000
    with pytest.raises(RoundFailed, match=r"the SuperLink could not be reached for 0\.3 s \(ConnectError\): is it running\?"):
        exchange.ask(TRAIN, question(config, TRAIN), what="round 1", length=3)


def test_flowers_own_grid_tries_no_longer_than_the_stage_lasts() -> None:
    """Left alone, it tries for ever."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        grid = HttpGrid(f"127.0.0.1:{nobody.getsockname()[1]}", insecure=True, token="none")
        failures: list[Exception] = []

        def ask() -> None:
            try:
                Post(grid, 0.5, "round 1").nodes()
            except RoundFailed as error:
                failures.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(20.0)
    (failure,) = failures
    assert "round 1: the SuperLink could not be reached for 0.5 s (ConnectError): is it running?" in str(failure)


def test_any_other_exception_of_the_grid_is_a_bug_and_shows() -> None:
    grid = slow()
    grid.failures = [ZeroDivisionError("a bug")]
    with pytest.raises(ZeroDivisionError):
        ask(grid)


def test_a_silo_that_is_slow_to_enrol_holds_up_no_stage_once_there_is_a_quorum() -> None:
    grid = slow(lambda silo, action: None if silo == 2 and action == ENROL else 0.0)
    config = fake_silos.config(deadline=30.0, enrolment_deadline=0.3)
    exchange = Exchange(grid, Roster.of(config.federation), config, config_hash(config))
    exchange.enrol()
    began = time.monotonic()
    for number in range(3):
        assert list(exchange.ask(TRAIN, question(config, TRAIN, number=number + 1), what="round", length=3).fields) == [0, 1]
    assert time.monotonic() - began < 3.0
    assert grid.sent.count((2, ENROL)) == 1, "asked again before its time was over"


def test_enrolment_has_a_deadline_of_its_own() -> None:
    config = fake_silos.config(deadline=60.0, enrolment_deadline=0.2)
    grid = SlowGrid(fake_silos.grid(n=1))
    with pytest.raises(FederationError, match=r"1 of 3 silos have enrolled, the quorum is 2, the deadline 0\.2 s"):
        Exchange(grid, Roster.of(config.federation), config, config_hash(config)).enrol()
