"""Flower's SuperNode with shorter pauses: where it sleeps, and for how long."""

from __future__ import annotations

import importlib
import inspect
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import start_client_internal as package

from client import supernode
from client.supernode import ANSWER, FLOWERS_PAUSE, IDLE, LONGEST, SHORTEST, InStep, Pauses, cleared_up, come_back


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
    assert not issubclass(RunNotRunningException, Exception)

    def pull(*arguments: object) -> None:
        raise RunNotRunningException

    with pytest.raises(RuntimeError, match="the run has ended"):
        cleared_up(pull)(["a"])
    assert cleared_up(lambda ids: {"a": b"1"})(["a"]) == {"a": b"1"}


class Node:
    """Flower's own state, store and functions of a SuperNode's loop, between a coordinator and an executor that are made up."""

    def __init__(self) -> None:
        from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
        from flwr.supercore.object_store.object_store_factory import ObjectStoreFactory
        from flwr.supercore.run import Run
        from flwr.supernode.nodestate import NodeStateFactory

        factory = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
        self.objects, self.state = factory.store(), NodeStateFactory(objectstore_factory=factory).state()
        self.state.set_node_id(7)
        self.state.store_run(Run.create_empty(1))
        self.sent: list[str] = []
        loop = importlib.import_module("flwr.supernode.start_client_internal")
        self.in_step = InStep(loop._pull_and_store_message, loop._push_messages)

    def ask(self, question: Message, confirm: Callable[..., None] = lambda *arguments: None) -> int | None:
        """The SuperNode gets a question, and so does the executor."""
        parts = {object_id: one.deflate() for object_id, one in get_all_nested_objects(question).items()}
        return self.in_step.pull(
            state=self.state,
            object_store=self.objects,
            node_config={},
            receive=lambda: (question, get_object_tree(question)),
            get_run=None,
            get_fab=None,
            pull_object=lambda run_id, object_id: parts[object_id],
            confirm_message_received=confirm,
            trusted_entities=None,
        )

    def answer(self, question: Message) -> str:
        """The executor has an answer; its id."""
        reply = Message(RecordDict({"public": ConfigRecord({"to": question.metadata.message_type})}), reply_to=question)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        self.objects.preregister(1, get_object_tree(reply))
        for object_id, one in get_all_nested_objects(reply).items():
            self.objects.put(object_id, one.deflate())
        self.state.record_message_processing_start(question.metadata.message_id)
        self.state.record_message_processing_end(question.metadata.message_id)
        self.state.store_message(reply)
        return str(reply.metadata.message_id)

    def push(self) -> None:
        """The SuperNode sends the answer, once there is one."""

        def send(message: Message, *more: object) -> tuple[set[str], str]:
            self.sent.append(message.metadata.message_id)
            return set(), "session"

        self.in_step.push(state=self.state, object_store=self.objects, send=send, push_object=None)


def question(action: str) -> Message:
    message = make_message(
        metadata=Metadata(
            run_id=1,
            message_id="",
            src_node_id=1,
            dst_node_id=7,
            reply_to_message_id="",
            group_id="",
            created_at=time.time(),
            ttl=60.0,
            message_type=action,
        ),
        content=RecordDict({"request": ConfigRecord({"action": action})}),
    )
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def test_a_node_answers_what_it_was_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The late answer to another question is there when it looks, and it goes on waiting for the one to the last question."""
    node, first, second = Node(), question("query.mask"), question("query.enrol")
    right: list[str] = []

    def ended(*arguments: object) -> None:
        raise RunNotRunningException

    assert node.ask(first, ended) is None
    assert node.ask(second) == 1
    late = node.answer(first)

    def sleep(seconds: float) -> None:
        assert (node.sent, right) == ([], [])
        right.append(node.answer(second))

    loop = importlib.import_module("flwr.supernode.start_client_internal")
    monkeypatch.setattr(loop, "time", SimpleNamespace(sleep=sleep))
    node.push()
    assert node.sent == right != [late]
    assert len(right) == 1
    assert (len(node.state.get_messages_legacy()), late in node.objects, right[0] in node.objects) == (0, False, False)
