"""A marker in a silo's data, and a silo that breaks: the marker is in no reply, no log, no output and no file."""

from __future__ import annotations

import logging
import secrets
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.common.serde import message_to_proto

import client.dp_steps
import client.releases
import client.secagg
import client.silo
import client.silo_data
import client.trainer
import common.durable
from client.place import KEY, LEDGER
from client.silo_data import SiloData
from common.config import Config
from common.data.population import load_catalogue
from common.errors import ErrorCode
from common.model.backbone import ByteTokenizer
from common.privacy.ledger import Ledger
from common.privacy.policy import Policy
from common.privacy.signing import SigningKey, create_key
from common.protocol import (
    ADVERTISE,
    COUNT,
    MASK,
    METRICS,
    REVEAL,
    SHARE,
    SIGN,
    SUMMED,
    TRAIN,
    AdapterRequest,
    Fields,
    SumRequest,
    config_hash,
    question_digest,
    round_of,
)
from common.secagg.coding import coding_of
from common.secagg.fixed_point import FixedPoint
from common.secagg.roster import KeyRoster, write_roster
from server.secagg import SecureSum
from server.wire import read_reply, request_content
from tests import tiny
from tests.client.test_release import requests
from tests.secure_silos import Consortium

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


def a_full_disk_while_the_masked_vector_is_kept(patch: pytest.MonkeyPatch, data: Path) -> None:
    patch.setattr(client.silo, "write_kept", _raise(lambda: OSError(28, f"No space left for {MARKER}", MARKER)))


def a_full_disk_while_the_state_is_kept(patch: pytest.MonkeyPatch, data: Path) -> None:
    real, asked = common.durable.write_durably, Counter[str]()

    def fail(path: Path, content: bytes, **mode: int) -> Path:
        asked[path.suffix] += 1
        if path.suffix == ".json" and asked[path.suffix] == 4:  # the state of the first sum, as the vector is masked
            raise OSError(28, f"No space left for {MARKER}", MARKER)
        return real(path, content, **mode)

    patch.setattr(common.durable, "write_durably", fail)


def masks_that_quote_what_they_hide(patch: pytest.MonkeyPatch, data: Path) -> None:
    real, asked = client.secagg.apply_masks, Counter[str]()

    def fail(words: Any, masks: Any) -> None:
        asked["masks"] += 1
        if asked["masks"] == 1:  # the silo's own are the first; its peers use the same function
            raise ValueError(f"cannot mask {MARKER}")
        real(words, masks)

    patch.setattr(client.secagg, "apply_masks", fail)


def a_coding_that_quotes_its_input(patch: pytest.MonkeyPatch, data: Path) -> None:
    patch.setattr(FixedPoint, "encode", _raise(lambda: OverflowError(f"{MARKER} is beyond the range")))


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


#: What can break between an answer and its masks.
MASKING_BREAKS: tuple[Break, ...] = (
    a_full_disk_while_the_masked_vector_is_kept,
    a_full_disk_while_the_state_is_kept,
    masks_that_quote_what_they_hide,
    a_coding_that_quotes_its_input,
)


def settings(**others: Any) -> Config:
    said = {"privacy__mode": "silo", "privacy__metrics_share": 0.1, "model__user_text": True, "model__text_tokens": 16}
    return tiny.config(**(said | others))


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
    opened(tmp_path)
    grid = tiny.grid(config, None, silo=0, state=str(tmp_path / "state"), data=str(tmp_path / "data" / "shop.csv"))
    node = grid.get_node_ids()[0]
    client.silo._OPEN.clear()
    out = []
    for action, request in requests(config).items():
        if action in (COUNT, TRAIN, METRICS):
            (reply,) = grid.send_and_receive([Message(request_content(request), node, action)])
            out.append(message_to_proto(reply).SerializeToString())
    client.silo._OPEN.clear()
    return out


def opened(tmp_path: Path) -> SigningKey:
    """The silo's key and its ledger, under ``state``."""
    state = tmp_path / "state"
    state.mkdir()
    modes = ("silo", "distributed")
    policy = Policy(silo="shop", epsilon=50.0, delta=1e-3, modes=modes, coordinators=("any",))
    key = create_key(state / KEY)
    Ledger.create(state / LEDGER, policy, key)
    return key


def ask_everything_in_sums(config: Config, tmp_path: Path) -> list[bytes]:
    """The serialised replies to all stages of three secure sums. The silo's peers hold no data; their parts are played here."""
    n = config.partition.silos
    silos = Consortium(n)
    silos.run = config_hash(config)
    silos.keys = (opened(tmp_path), *silos.keys[1:])
    silos.roster = KeyRoster(silos.roster.names, tuple(key.public_key for key in silos.keys))
    roster = write_roster(tmp_path / "roster.toml", silos.roster)
    state, data = str(tmp_path / "state"), str(tmp_path / "data" / "shop.csv")
    grid = tiny.grid(config, None, silo=0, state=state, data=data, roster=str(roster))
    client.silo._OPEN.clear()
    out: list[bytes] = []

    def ask(stage: str, asked: SumRequest, payload: bytes) -> Fields | None:
        content = request_content(replace(asked, payload=payload))
        (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], stage)])
        out.append(message_to_proto(reply).SerializeToString())
        fields = read_reply(reply)
        return None if isinstance(fields, ErrorCode) else fields

    for action in SUMMED:
        request = requests(config)[action]
        adapter = request if isinstance(request, AdapterRequest) else None
        length = {COUNT: 24, METRICS: 2}.get(action) or len(adapter.vector)  # type: ignore[union-attr]
        asked = SumRequest(
            config_hash=silos.run,
            action=action,
            round=round_of(request),
            question=question_digest(action, request),
            nonce=secrets.token_bytes(32),
            roster=silos.roster.digest,
            manifest_hash=adapter.manifest_hash if adapter else "",
        )
        name, peers = asked.round_id, [silos.participant(peer) for peer in range(1, n)]
        summed = SecureSum(silos.context(name), silos.rules, silos.roster, coding_of(action, config, length).dtype, length)
        mine = ask(ADVERTISE, asked, b"")
        assert mine is not None
        keys = summed.advertised({0: mine["advertisement"]} | {peer.silo: peer.advertise(name) for peer in peers})
        mine = ask(SHARE, asked, keys)
        assert mine is not None
        boxes = summed.shared({0: mine["shares"]} | {peer.silo: peer.share(name, keys) for peer in peers})
        mine = ask(MASK, replace(asked, vector=adapter.vector if adapter else None), boxes[0])
        if mine is not None:
            summed.add(0, mine["masked"])
        for peer in peers:
            words = np.zeros_like(summed.total)
            peer.mask(name, boxes[peer.silo], words)
            summed.add(peer.silo, words)
        survivors = summed.summed()
        mine = ask(SIGN, asked, survivors)
        signed = {peer.silo: peer.sign(name, survivors) for peer in peers} | ({0: mine["signature"]} if mine else {})
        quorum = summed.signed(signed)
        mine = ask(REVEAL, asked, quorum)
        revealed = {peer.silo: peer.reveal(name, quorum) for peer in peers} | ({0: mine["revealed"]} if mine else {})
        coding_of(action, config, length).decode(summed.unmasked(revealed), len(summed.survivors))
    client.silo._OPEN.clear()
    return out


def named(break_it: Break | None) -> str:
    return "whole" if break_it is None else break_it.__name__


@pytest.mark.parametrize("break_it", [None, *BREAKS], ids=named)
def test_the_marker_stays_in_the_data(
    break_it: Break | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    replies = watched(settings(), ask_everything, break_it, tmp_path, monkeypatch, caplog, capfd)
    assert len(replies) == 3


@pytest.mark.parametrize("break_it", [None, *BREAKS, *MASKING_BREAKS], ids=named)
def test_the_marker_stays_in_the_data_when_answers_go_into_sums(
    break_it: Break | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = settings(partition__silos=4)
    replies = watched(config, ask_everything_in_sums, break_it, tmp_path, monkeypatch, caplog, capfd)
    assert len(replies) == 15


IN_MODE_SILO_ONLY = (a_library_that_warns_and_a_number_that_is_none,)


@pytest.mark.parametrize("break_it", [None, *(b for b in (*BREAKS, *MASKING_BREAKS) if b not in IN_MODE_SILO_ONLY)], ids=named)
def test_the_marker_stays_in_the_data_when_the_noise_is_shared(
    break_it: Break | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = settings(partition__silos=4, privacy__mode="distributed", training__local_steps=1)
    replies = watched(config, ask_everything_in_sums, break_it, tmp_path, monkeypatch, caplog, capfd)
    assert len(replies) == 15


def watched(
    config: Config,
    ask: Callable[[Config, Path], list[bytes]],
    break_it: Break | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> list[bytes]:
    """The replies to ``ask`` by a silo whose data are full of the marker, once it is in none of them nor anywhere else."""
    (tmp_path / "data").mkdir()
    data = tmp_path / "data" / "shop.csv"
    write_data(config, data)
    requests(config)  # the model, which is public, is loaded before anything breaks
    if break_it is not None:
        break_it(monkeypatch, data)
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        replies = ask(config, tmp_path)
    faults = (ErrorCode.INTERNAL, ErrorCode.DATA_UNAVAILABLE, ErrorCode.SECAGG_REFUSED)
    broken = [reply for reply in replies if any(code.name.encode() in reply for code in faults)]
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
    return replies


def test_the_search_finds_a_marker_that_leaks() -> None:
    with pytest.raises(AssertionError, match="the marker is in a reply"):
        assert_no_trace("a reply", f"KeyError: 'user {MARKER}'".encode())
