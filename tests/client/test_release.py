"""Everything that leaves a silo: each reply of each handler, in success and in failure, holds listed fields only."""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto

import client
import client.silo
from client.release import answer, code_of
from common.errors import (
    AssetError,
    BudgetExhausted,
    ConfigError,
    DataError,
    ErrorCode,
    LedgerError,
    ModelError,
    PolicyRefused,
    PrivacyError,
    SecAggError,
)
from common.model.resident import resident
from common.protocol import (
    ADVERTISE,
    BUDGET,
    COUNT,
    ENROL,
    MASK,
    METRICS,
    PROTOCOL_VERSION,
    RELEASED,
    REVEAL,
    SHARE,
    SIGN,
    TRAIN,
    AdapterRequest,
    Refusal,
    Request,
    SumRequest,
    config_hash,
)
from server.wire import request_content
from tests import tiny
from tests.client.secure_apps import STAGES, Attempt, Coordinator, secure

SECRET = "user u017 watched 'The Secret Film' on 1998-02-03"


def walk(reply: Message) -> Iterator[tuple[str, Any]]:
    """Every leaf of a reply's content by record/key, and of its error."""
    if reply.has_error():
        yield "error/code", reply.error.code
        yield "error/reason", reply.error.reason
        return
    for name, record in reply.content.items():
        assert isinstance(record, ArrayRecord | ConfigRecord | MetricRecord)
        for key, value in record.items():
            yield f"{name}/{key}", value


def assert_only_listed(action: str, reply: Message, *, n_items: int, n_parameters: int, masked: int = 0) -> None:
    """A secure sum is over four silos, and of vectors of ``masked`` numbers."""
    if reply.has_error():
        assert dict(walk(reply)) == {
            "error/code": int(ErrorCode(reply.error.code)),
            "error/reason": ErrorCode(reply.error.code).name,
        }
        return
    leaves = dict(walk(reply))
    records = {"integer": "public", "bytes": "public", "digest": "public", "vector": "protected", "words": "protected"}
    assert set(leaves) == {f"{records[kind]}/{name}" for name, kind in RELEASED[action].items()}
    for name, kind in RELEASED[action].items():
        value = leaves[f"{records[kind]}/{name}"]
        if kind == "vector":
            assert isinstance(value, Array)
            assert value.numpy().dtype == np.float32
            assert value.numpy().shape == ({"count": n_items, "update": n_parameters, "metrics": 2}[name],)
        elif kind == "words":
            assert isinstance(value, Array)
            assert value.numpy().dtype in (np.uint32, np.uint64)
            assert value.numpy().shape == (masked,)
        elif kind == "integer":
            assert type(value) is int
        else:
            assert type(value) is bytes
            assert (
                len(value) == {"release": 32, "advertisement": 132, "shares": 3 * 172, "signature": 64, "revealed": 4 * 75}[name]
            )


def requests(config: Any) -> dict[str, Request]:
    """One for each handler; those of secure sums are well-formed, and no silo would go on from them."""
    home = resident(config)
    said = {"config_hash": config_hash(config)}
    train = AdapterRequest(**said, round=1, manifest_hash=home.manifest.hash, vector=home.start)
    metrics = replace(train, round=config.federation.rounds)
    stage = SumRequest(**said, action=COUNT, round=0, question="0" * 64, nonce=bytes(32), roster="0" * 64)
    plain = {ENROL: Request(**said), COUNT: Request(**said), TRAIN: train, METRICS: metrics, BUDGET: Request(**said)}
    return plain | dict.fromkeys(STAGES, stage)


def test_every_handler_of_the_app_is_on_the_list() -> None:
    """Nothing can be asked that :data:`RELEASED` does not name, and the tests below ask all of it."""
    from client.app import app

    handlers = {name.removesuffix(".default") for name in app._registered_funcs}
    assert handlers == set(RELEASED) == set(requests(tiny.config()))


@pytest.mark.parametrize("mode", ["none", "silo"])
def test_every_reply_holds_listed_fields_only(tmp_path: Path, mode: str) -> None:
    config = tiny.config(privacy__mode=mode, privacy__metrics_share=0.1)
    grid = tiny.grid(config, tmp_path)
    sizes = {"n_items": 24, "n_parameters": resident(config).manifest.n_parameters}
    for action, request in requests(config).items():
        if action in STAGES or action == BUDGET:
            continue
        replies = grid.send_and_receive([Message(request_content(request), node, action) for node in grid.get_node_ids()])
        assert len(replies) == config.partition.silos
        for reply in replies:
            assert not reply.has_error()
            assert_only_listed(action, reply, **sizes)
    assert all(len(grid.context(silo).state) == 0 for silo in range(config.partition.silos))


@pytest.mark.parametrize("action", [COUNT, TRAIN, METRICS])
@pytest.mark.parametrize("mode", ["none", "silo", "distributed"])
def test_every_reply_in_a_secure_sum_holds_listed_fields_only(tmp_path: Path, mode: str, action: str) -> None:
    """All stages of all silos; asked again, and after a refusal, too."""
    config = secure(privacy__mode=mode, privacy__metrics_share=0.1, training__local_steps=1)
    coordinator = Coordinator(config, tmp_path)
    replies = overheard(coordinator)
    asked = requests(config)[action]
    length = {COUNT: 24, METRICS: 2}.get(action, resident(config).manifest.n_parameters)
    sizes = {"n_items": 24, "n_parameters": resident(config).manifest.n_parameters, "masked": length}
    attempt = Attempt(coordinator, asked, action)
    for stage in STAGES:
        attempt.play(stage)
        attempt.put(stage)
        assert attempt.put(stage, roster="0" * 64) is ErrorCode.SECAGG_REFUSED
    assert len(replies) == len(STAGES) * (len(coordinator.roster) + 2)
    for stage, reply in replies:
        assert_only_listed(stage, reply, **sizes)
    assert sum(reply.has_error() for _, reply in replies) == len(STAGES)
    assert all(len(coordinator.grid.context(silo).state) == 0 for silo in range(len(coordinator.roster)))


def overheard(coordinator: Coordinator) -> list[tuple[str, Message]]:
    """What comes back to the coordinator from now on, with the action that was asked."""
    grid, heard = coordinator.grid, []
    send_and_receive = grid.send_and_receive

    def listen(messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        sent = list(messages)
        replies = send_and_receive(sent, timeout=timeout)
        heard.extend(zip((message.metadata.message_type for message in sent), replies, strict=True))
        return replies

    grid.send_and_receive = listen  # type: ignore[method-assign]
    return heard


HANDLERS = {action: action.removeprefix("query.") for action in RELEASED}
FAILURES = {
    "a bug": ZeroDivisionError(SECRET),
    "data": DataError(SECRET, "/home/clinic/private.csv", 17),
    "disk": OSError(28, SECRET),
    "privacy": PrivacyError(SECRET),
    "model": ModelError("the adapter does not fit"),
    "a sum": SecAggError("two sets of survivors in one round"),
    "a refusal": Refusal(ErrorCode.BUDGET_EXHAUSTED, "spent"),
}


@pytest.mark.parametrize("what", FAILURES)
@pytest.mark.parametrize("action", sorted(RELEASED))
def test_an_exception_leaves_as_a_code_only_whatever_it_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, action: str, what: str
) -> None:
    config = tiny.config()
    grid = tiny.grid(config)

    def fail(*args: Any) -> Any:
        raise FAILURES[what]

    monkeypatch.setattr(client.silo.Silo, HANDLERS[action], fail)
    node = grid.get_node_ids()[0]
    with caplog.at_level(logging.DEBUG):
        (reply,) = grid.send_and_receive([Message(request_content(requests(config)[action]), node, action)])
    assert reply.has_error()
    assert_only_listed(action, reply, n_items=24, n_parameters=0)
    sent = message_to_proto(reply).SerializeToString()
    assert b"Secret" not in sent
    assert b"private.csv" not in sent
    assert "Secret" not in caplog.text
    assert "private.csv" not in caplog.text
    assert "refused with" in caplog.text


SAID = {"config": "x", "protocol": PROTOCOL_VERSION, "signature": "", "round": 1, "manifest": "m"}
OF_A_SUM = {**SAID, "sum": COUNT, "question": "0" * 64, "nonce": bytes(32), "roster": "0" * 64, "payload": b""}
BAD_REQUESTS = {
    "nothing": RecordDict(),
    "no adapter": RecordDict({"request": ConfigRecord(SAID)}),
    "a sum that is not named": RecordDict({"request": ConfigRecord({**OF_A_SUM, "nonce": bytes(31)})}),
    "a sum of no question": RecordDict({"request": ConfigRecord({**OF_A_SUM, "question": "what is it"})}),
    "a sum of another run": RecordDict({"request": ConfigRecord(OF_A_SUM)}),
    "wrong types": RecordDict({"request": ConfigRecord({"config": 1, "protocol": "x"})}),
    "wrong record": RecordDict({"request": MetricRecord({"config": 1})}),
    "a pickle": RecordDict(
        {
            "request": ConfigRecord(SAID),
            "adapter": ArrayRecord({"vector": Array("object", (1,), "numpy.ndarray", b"\x80\x04N.")}),
        }
    ),
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
@pytest.mark.parametrize("action", sorted(RELEASED))
def test_a_malformed_request_is_a_bad_request(action: str, what: str) -> None:
    grid = tiny.grid(tiny.config())
    (reply,) = grid.send_and_receive([Message(BAD_REQUESTS[what], grid.get_node_ids()[0], action)])
    assert (reply.error.code, reply.error.reason) == (1001, "BAD_REQUEST")


def test_settings_that_cannot_be_read_leave_as_a_code() -> None:
    grid = tiny.grid(tiny.config())
    grid.context(0).run_config["privacy.epsilom"] = 3
    (reply,) = grid.send_and_receive([Message(RecordDict(), grid.get_node_ids()[0], ENROL)])
    assert reply.error.reason == "BAD_REQUEST"


def test_a_handler_that_computes_too_much_releases_nothing() -> None:
    grid = tiny.grid(tiny.config())
    message = Message(RecordDict(), grid.get_node_ids()[0], TRAIN)
    for fields in (
        {"update": np.zeros(3, np.float32), "loss": 0.5},
        {"update": np.array([np.nan], np.float32)},
        {"update": np.zeros(3, np.float64)},
    ):
        reply = answer(message, lambda fields=fields: fields)
        assert (reply.error.code, reply.error.reason) == (1000, "INTERNAL")


@pytest.mark.parametrize(
    ("stage", "fields"),
    [
        (ADVERTISE, {"advertisement": bytes(132), "private": bytes(64)}),
        (SHARE, {"shares": bytes(171)}),
        (MASK, {"masked": np.zeros(3, np.uint32), "release": bytes(32), "salt": bytes(32)}),
        (MASK, {"masked": np.zeros(3, np.float32), "release": bytes(32)}),
        (MASK, {"update": np.zeros(3, np.float32)}),
        (SIGN, {"signature": bytes(64), "survivors": bytes(4)}),
        (REVEAL, {"revealed": bytes(70)}),
        (REVEAL, {"revealed": b""}),
    ],
)
def test_a_stage_that_gives_too_much_releases_nothing(stage: str, fields: dict[str, Any]) -> None:
    grid = tiny.grid(tiny.config())
    reply = answer(Message(RecordDict(), grid.get_node_ids()[0], stage), lambda: fields)
    assert (reply.error.code, reply.error.reason) == (1000, "INTERNAL")
    assert not reply.has_content()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refusal(ErrorCode.MANIFEST_MISMATCH, ""), ErrorCode.MANIFEST_MISMATCH),
        (ConfigError(""), ErrorCode.BAD_REQUEST),
        (PrivacyError(""), ErrorCode.POLICY_REFUSED),
        (PolicyRefused(""), ErrorCode.POLICY_REFUSED),
        (SecAggError(""), ErrorCode.SECAGG_REFUSED),
        (BudgetExhausted(""), ErrorCode.BUDGET_EXHAUSTED),
        (LedgerError(""), ErrorCode.LEDGER_UNAVAILABLE),
        (DataError(""), ErrorCode.DATA_UNAVAILABLE),
        (AssetError(""), ErrorCode.DATA_UNAVAILABLE),
        (FileNotFoundError(), ErrorCode.DATA_UNAVAILABLE),
        (KeyError("u017"), ErrorCode.INTERNAL),
        (MemoryError(), ErrorCode.INTERNAL),
    ],
)
def test_exceptions_have_codes(error: Exception, code: ErrorCode) -> None:
    assert code_of(error) is code


def test_only_the_door_makes_messages() -> None:
    """No module of the client but ``release`` calls ``Message`` or ``Error``, or touches the context's state."""
    for path in sorted(Path(client.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        made = calls & {Message.__name__, Error.__name__}
        assert not made or path.name == "release.py", path
        assert not attributes & {"state", "create_reply", "create_error_reply"} or path.name == "trainer.py", path


def test_flower_itself_would_send_the_text() -> None:
    """Why the door is needed: the same failure outside of it leaks."""
    from flwr.clientapp import ClientApp

    from simulations.grid import InProcessGrid

    app = ClientApp()

    @app.train()
    def _(message: Message, context: Context) -> Message:
        raise ZeroDivisionError(SECRET)

    grid = InProcessGrid(app, 1)
    (reply,) = grid.send_and_receive([Message(RecordDict(), grid.get_node_ids()[0], TRAIN)])
    assert SECRET in str(reply.error.reason)
