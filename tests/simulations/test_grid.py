"""The in-process Grid keeps Flower's promises: its own strategies run on it unmodified, and silos stay apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAvg

from simulations.grid import Fault, InProcessGrid

TARGETS = np.array([[1.0, 2.0], [3.0, -1.0], [0.0, 5.0]], dtype=np.float32)
EXAMPLES = [10, 30, 60]


def ask(grid: InProcessGrid, action: str = "train", content: RecordDict | None = None) -> list[Message]:
    """One message to each node; all share one RecordDict, as Flower's strategies do."""
    content = content if content is not None else RecordDict()
    return grid.send_and_receive([Message(content, node, action) for node in grid.get_node_ids()])


def app_with(handler: Callable[[Message, Context], RecordDict]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def _(message: Message, context: Context) -> Message:
        return Message(handler(message, context), reply_to=message)

    return app


def halfway_app() -> ClientApp:
    """Each silo moves half of the way to its own target."""
    app = ClientApp()

    @app.train()
    def _(message: Message, context: Context) -> Message:
        silo = int(context.node_config["partition-id"])
        x = message.content["arrays"]["x"].numpy()
        return Message(
            RecordDict(
                {
                    "arrays": ArrayRecord({"x": Array(x + (TARGETS[silo] - x) / 2)}),
                    "metrics": MetricRecord({"num-examples": EXAMPLES[silo]}),
                }
            ),
            reply_to=message,
        )

    @app.evaluate()
    def _(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1, "first": float(message.content["arrays"]["x"].numpy()[0])})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def test_flowers_own_fedavg_runs_unmodified_and_gives_the_closed_form() -> None:
    grid = InProcessGrid(halfway_app(), 3)
    start = np.zeros(2, dtype=np.float32)
    result = FedAvg(fraction_evaluate=1.0).start(grid, ArrayRecord({"x": Array(start)}), num_rounds=4)
    # x_t = x* + (x_0 - x*) / 2^t with x* the weighted mean of the targets
    fixed = np.average(TARGETS, axis=0, weights=EXAMPLES)
    np.testing.assert_allclose(result.arrays["x"].numpy(), fixed * (1 - 0.5**4), rtol=1e-6)
    assert result.evaluate_metrics_clientapp[4]["first"] == pytest.approx(fixed[0] * (1 - 0.5**4), rel=1e-6)


def test_a_silo_that_changes_its_records_changes_nobody_elses() -> None:
    seen = []

    def greedy(message: Message, context: Context) -> RecordDict:
        seen.append(float(message.content["arrays"].pop("x").numpy()[0]))
        message.content["config"]["lr"] = 99.0
        del message.content["config"]
        return RecordDict()

    shared = RecordDict({"arrays": ArrayRecord({"x": Array(np.ones(1))}), "config": ConfigRecord({"lr": 0.5, "list": [1, 2]})})
    replies = ask(InProcessGrid(app_with(greedy), 3), content=shared)
    assert [reply.has_error() for reply in replies] == [False] * 3
    assert seen == [1.0, 1.0, 1.0]
    assert shared["config"]["lr"] == 0.5
    assert "x" in shared["arrays"]


def test_each_silo_keeps_its_own_state_between_messages() -> None:
    def count(message: Message, context: Context) -> RecordDict:
        before = int(context.state["calls"]["n"]) if "calls" in context.state else 0
        context.state["calls"] = ConfigRecord({"n": before + 1 + int(context.node_config["partition-id"])})
        return RecordDict({"calls": ConfigRecord({"n": context.state["calls"]["n"]})})

    grid = InProcessGrid(app_with(count), 2)
    ask(grid)
    assert [reply.content["calls"]["n"] for reply in ask(grid)] == [2, 4]


def test_nodes_know_their_place_and_the_settings() -> None:
    def who(message: Message, context: Context) -> RecordDict:
        facts = {"place": context.node_config["partition-id"], "of": context.node_config["num-partitions"]}
        return RecordDict(
            {"who": ConfigRecord(facts | {"seed": context.run_config["run.seed"], "x": context.node_config.get("x", "")})}
        )

    grid = InProcessGrid(app_with(who), 2, {"run.seed": 7}, node_configs={1: {"x": "own"}})
    said = [dict(reply.content["who"]) for reply in ask(grid)]
    assert said == [{"place": 0, "of": 2, "seed": 7, "x": ""}, {"place": 1, "of": 2, "seed": 7, "x": "own"}]


def test_an_exception_becomes_flowers_error_message_with_its_text() -> None:
    """The leak of the real runtimes is kept on purpose: a test of the apps must be able to see it."""

    def broken(message: Message, context: Context) -> RecordDict:
        raise ZeroDivisionError("user 17 has no items")

    (reply,) = ask(InProcessGrid(app_with(broken), 1))
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert reply.error.reason == "<class 'ZeroDivisionError'>:<'user 17 has no items'>"
    (reply,) = ask(InProcessGrid(app_with(broken), 1), action="train.unheard_of")
    assert reply.has_error()


def test_faults_lose_requests_and_replies() -> None:
    worked: list[int] = []

    def work(message: Message, context: Context) -> RecordDict:
        worked.append(int(context.node_config["partition-id"]))
        return RecordDict()

    lost = {0: Fault.LOST_REQUEST, 1: Fault.LOST_REPLY}
    grid = InProcessGrid(app_with(work), 3, faults=lambda partition, message: lost.get(partition))
    replies = ask(grid)
    assert worked == [1, 2]
    assert [reply.metadata.src_node_id for reply in replies] == [grid.get_node_ids()[2]]


def test_a_reply_names_the_message_that_it_answers_and_is_given_once() -> None:
    grid = InProcessGrid(app_with(lambda message, context: RecordDict()), 1)
    (node,) = grid.get_node_ids()
    ids = grid.push_messages([Message(RecordDict(), node, "train"), Message(RecordDict(), node, "train")])
    replies = grid.pull_messages(ids)
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert len({reply.metadata.message_id for reply in replies} | set(ids)) == 4
    assert grid.pull_messages(ids) == []
