"""Flower's SuperNode with shorter pauses: where it sleeps, and for how long."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from unittest.mock import patch

import pytest
from flwr.supernode import start_client_internal as package

from client import supernode
from client.supernode import ANSWER, FLOWERS_PAUSE, IDLE, LONGEST, SHORTEST, Pauses, cleared_up, come_back


def slept(pauses: Pauses, seconds: float, now: float) -> float:
    """How long a call of ``sleep`` sleeps at a time."""
    with patch.object(supernode.time, "sleep") as sleep, patch.object(supernode.time, "monotonic", return_value=now):
        pauses.sleep(seconds)
    return float(sleep.call_args.args[0])


def pauses_at(now: float) -> Pauses:
    with patch.object(supernode.time, "monotonic", return_value=now):
        return Pauses()


def test_flower_sleeps_where_and_as_long_as_is_said_here() -> None:
    source = inspect.getsource(inspect.getmodule(package))  # type: ignore[arg-type]
    assert {float(found) for found in re.findall(r"time\.sleep\(([0-9.]+)\)", source)} == {0.5, float(FLOWERS_PAUSE)}


def test_it_looks_for_messages_often_while_there_are_some_and_seldom_after_a_minute_without() -> None:
    pauses = pauses_at(0.0)
    assert slept(pauses, FLOWERS_PAUSE, 0.0) == pytest.approx(SHORTEST)
    assert slept(pauses, FLOWERS_PAUSE, IDLE / 2) == pytest.approx((SHORTEST + LONGEST) / 2)
    assert slept(pauses, FLOWERS_PAUSE, 10 * IDLE) == pytest.approx(LONGEST)


def test_waiting_for_an_answer_counts_as_a_message() -> None:
    pauses = pauses_at(0.0)
    assert slept(pauses, 0.5, 10 * IDLE) == ANSWER
    assert slept(pauses, FLOWERS_PAUSE, 10 * IDLE) == pytest.approx(SHORTEST)


def test_a_shorter_sleep_than_ours_is_not_made_longer() -> None:
    assert slept(pauses_at(0.0), 0.01, 0.0) == 0.01


class Fleet:
    """Stands for Flower's client: what it was asked, in order."""

    asked: list[str]

    def ActivateNode(self, request: object) -> object:
        self.asked.append("activate")
        return type("Response", (), {"node_id": 7})()

    def DeactivateNode(self, request: object) -> None:
        self.asked.append(f"deactivate {request.node_id}")  # type: ignore[attr-defined]


def test_a_node_ends_the_session_before_which_it_remembers_and_no_other(tmp_path: Path) -> None:
    from flwr.supernode.fleet_http_client import FleetHttpClient

    assert callable(FleetHttpClient.ActivateNode)
    assert callable(FleetHttpClient.DeactivateNode)
    fleet_class = type("Fleet", (Fleet,), {"asked": []})
    come_back(fleet_class, tmp_path / "flower" / "node")
    fleet_class().ActivateNode("request")
    assert fleet_class.asked == ["activate"]
    fleet_class().ActivateNode("request")
    assert fleet_class.asked == ["activate", "deactivate 7", "activate"]
    (tmp_path / "flower" / "node").write_text("rubbish")
    fleet_class().ActivateNode("request")
    assert fleet_class.asked[3:] == ["activate"]


def test_a_run_that_ends_while_a_message_comes_is_an_exception_after_which_flower_clears_up() -> None:
    from flwr.supercore.run import RunNotRunningException

    assert not issubclass(RunNotRunningException, Exception)

    def pull(*arguments: object) -> None:
        raise RunNotRunningException

    with pytest.raises(RuntimeError, match="the run has ended"):
        cleared_up(pull)(["a"])
    assert cleared_up(lambda ids: {"a": b"1"})(["a"]) == {"a": b"1"}
