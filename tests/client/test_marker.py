"""A marker in a silo's data, and a silo that breaks: the marker is in no reply, no log, no output and no file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.common.serde import message_to_proto

import client.dp_steps
import client.releases
import client.silo
import client.silo_data
import client.trainer
from client.silo import KEY, LEDGER
from client.silo_data import SiloData
from common.config import Config
from common.data.population import load_catalogue
from common.model.backbone import ByteTokenizer
from common.privacy.ledger import Ledger
from common.privacy.policy import Policy
from common.privacy.signing import create_key
from common.protocol import COUNT, METRICS, TRAIN
from server.wire import request_content
from tests import tiny
from tests.client.test_release import requests

MARKER = "zebra4711"
#: The marker as it may appear: as text, or as the bytes that the tokenizer of the tiny model makes of it.
TRACES = (MARKER.encode(), bytes(MARKER.upper(), "ascii"), " ".join(str(b) for b in MARKER.encode()).encode())

Break = Callable[[pytest.MonkeyPatch, Path], None]


def _raise(error: Callable[[], BaseException]) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error()

    return fail


def malformed_line(patch: pytest.MonkeyPatch, data: Path) -> None:
    data.write_text(data.read_text() + f"{MARKER},no such item,yesterday,{MARKER}\n")


def wrong_encoding(patch: pytest.MonkeyPatch, data: Path) -> None:
    data.write_bytes(data.read_bytes() + f"{MARKER},".encode() + b"\xff\xfe,3\n")


def missing_file(patch: pytest.MonkeyPatch, data: Path) -> None:
    data.rename(data.with_name(f"{MARKER}.csv"))


def a_bug_that_quotes_its_input(patch: pytest.MonkeyPatch, data: Path) -> None:
    patch.setattr(client.dp_steps, "user_losses", _raise(lambda: KeyError(f"user {MARKER}")))


def a_bug_while_another_error_is_handled(patch: pytest.MonkeyPatch, data: Path) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        try:
            raise ValueError(f"{MARKER} has no row")
        except ValueError as error:
            raise RuntimeError(f"could not batch {MARKER}") from error

    patch.setattr(SiloData, "batch", fail)
    patch.setattr(SiloData, "inputs", fail)


def several_errors_at_once(patch: pytest.MonkeyPatch, data: Path) -> None:
    patch.setattr(client.silo_data, "user_texts", _raise(lambda: ExceptionGroup(MARKER, [ValueError(MARKER), KeyError(MARKER)])))


def an_assertion_with_the_data_in_it(patch: pytest.MonkeyPatch, data: Path) -> None:
    patch.setattr(SiloData, "from_dataset", _raise(lambda: AssertionError({"user": MARKER, "text": MARKER})))


def out_of_memory(patch: pytest.MonkeyPatch, data: Path) -> None:
    patch.setattr(np, "unique", _raise(lambda: MemoryError(f"while looking at {MARKER}")))
    patch.setattr(torch, "isfinite", _raise(lambda: MemoryError(f"while looking at {MARKER}")))


def a_tokenizer_that_fails(patch: pytest.MonkeyPatch, data: Path) -> None:
    patch.setattr(ByteTokenizer, "__call__", _raise(lambda: UnicodeEncodeError("ascii", MARKER, 0, 1, f"cannot encode {MARKER}")))


def a_full_disk_in_the_middle_of_a_release(patch: pytest.MonkeyPatch, data: Path) -> None:
    patch.setattr(client.releases, "write_kept", _raise(lambda: OSError(28, f"No space left for {MARKER}", MARKER)))


def a_library_that_warns_and_a_number_that_is_none(patch: pytest.MonkeyPatch, data: Path) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        return np.full(3, np.nan, np.float64)

    patch.setattr(client.trainer, "release_counts", fail)
    patch.setattr(client.trainer, "to_vector", lambda model: np.full(5, np.nan, np.float32))


def an_endless_recursion(patch: pytest.MonkeyPatch, data: Path) -> None:
    patch.setattr(client.silo_data, "tokenise", _raise(lambda: RecursionError(f"maximum depth at {MARKER}")))


BREAKS: tuple[Break, ...] = (
    malformed_line,
    wrong_encoding,
    missing_file,
    a_bug_that_quotes_its_input,
    a_bug_while_another_error_is_handled,
    several_errors_at_once,
    an_assertion_with_the_data_in_it,
    out_of_memory,
    a_tokenizer_that_fails,
    a_full_disk_in_the_middle_of_a_release,
    a_library_that_warns_and_a_number_that_is_none,
    an_endless_recursion,
)


def settings() -> Config:
    return tiny.config(privacy__mode="silo", privacy__metrics_share=0.1, model__user_text=True, model__text_tokens=16)


def write_data(config: Config, path: Path) -> None:
    """Thirty users who all carry the marker: in their id and in what they wrote."""
    ids = load_catalogue(config).ids
    rows = [
        f"{MARKER}-{user},{ids[(7 * user + 3 * time) % len(ids)]},{100 * user + time},{MARKER} wrote this {time}"
        for user in range(30)
        for time in range(6)
    ]
    path.write_text("\n".join(["user,item,time,text", *rows]) + "\n")


def assert_no_trace(where: str, content: bytes) -> None:
    for trace in TRACES:
        assert trace not in content, f"the marker is in {where}"


def ask_everything(config: Config, tmp_path: Path) -> list[bytes]:
    """The serialised replies to all questions that touch data; a deployed silo with a ledger of its own."""
    state = tmp_path / "state"
    state.mkdir()
    policy = Policy(silo="shop", epsilon=50.0, delta=1e-3, coordinators=("any",))
    Ledger.create(state / LEDGER, policy, create_key(state / KEY))
    grid = tiny.grid(config, None, silo=0, state=str(state), data=str(tmp_path / "data" / "shop.csv"))
    node = grid.get_node_ids()[0]
    client.silo._OPEN.clear()
    out = []
    for action, request in requests(config).items():
        if action in (COUNT, TRAIN, METRICS):
            (reply,) = grid.send_and_receive([Message(request_content(request), node, action)])
            out.append(message_to_proto(reply).SerializeToString())
    client.silo._OPEN.clear()
    return out


@pytest.mark.parametrize("break_it", [None, *BREAKS], ids=lambda b: "whole" if b is None else b.__name__)
def test_the_marker_stays_in_the_data(
    break_it: Break | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = settings()
    (tmp_path / "data").mkdir()
    data = tmp_path / "data" / "shop.csv"
    write_data(config, data)
    requests(config)  # the model, which is public, is loaded before anything breaks
    if break_it is not None:
        break_it(monkeypatch, data)
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        replies = ask_everything(config, tmp_path)
    broken = [reply for reply in replies if b"INTERNAL" in reply or b"DATA_UNAVAILABLE" in reply]
    assert len(replies) == 3
    assert bool(broken) == (break_it is not None), "the break did not break anything"
    for number, reply in enumerate(replies):
        assert_no_trace(f"reply {number}", reply)
    assert_no_trace("the log", caplog.text.encode())
    assert_no_trace("a warning", " ".join(str(w.message) for w in warned).encode())
    output = capfd.readouterr()
    assert_no_trace("the output", (output.out + output.err).encode())
    for path in (tmp_path / "state").rglob("*"):
        if path.is_file():
            assert_no_trace(path.name, path.read_bytes())


def test_the_search_finds_a_marker_that_leaks() -> None:
    with pytest.raises(AssertionError, match="the marker is in a reply"):
        assert_no_trace("a reply", f"KeyError: 'user {MARKER}'".encode())
