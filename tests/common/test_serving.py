"""Exchanging the bundle that answers: what takes over, what is refused, and what a request sees meanwhile."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.bundle.contents import POOLED, QUERY, Bundle
from common.bundle.files import write_bundle
from common.engine import Engine, Request
from common.errors import BundleError, ServingError
from common.privacy.signing import SigningKey, create_key
from common.serving import Live, newest
from tests.bundles import tiny_bundle, write_tiny


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return create_key(tmp_path_factory.mktemp("keys") / "signer.key")


def write(path: Path, key: SigningKey, bundle: Bundle, *, created: str | None = None, model: bytes | None = None) -> None:
    """``bundle`` under another date or with another model."""
    card = bundle.card if created is None else bundle.card.model_copy(update={"created": created})
    write_bundle(path, card=card, catalogue=bundle.catalogue, items=bundle.items, model=model or bundle.model, key=key)


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


def test_a_request_in_hand_keeps_its_engine_while_the_next_one_takes_over(tmp_path: Path, key: SigningKey) -> None:
    first = write_tiny(tmp_path / "a.bundle", key, seed=0)
    second = write_tiny(tmp_path / "b.bundle", key, seed=1)
    live = Live(tmp_path / "a.bundle", {key.public_key})
    with live.use() as engine:
        before = engine.recommend(Request(history=(1, 2)))
        assert live.swap(tmp_path / "b.bundle")
        assert engine.bundle.digest == first.digest
        assert engine.recommend(Request(history=(1, 2))) == before
    assert live.engine.bundle.digest == second.digest
    assert live.engine.recommend(Request(history=(1, 2))) == Engine(second).recommend(Request(history=(1, 2)))
    assert (live.status.swaps, live.status.refused, live.status.back_to) == (1, 0, first.digest)


def test_what_is_prepared_for_an_engine_changes_with_it(tmp_path: Path, key: SigningKey) -> None:
    write_tiny(tmp_path / "a.bundle", key, n_items=40)
    write_tiny(tmp_path / "b.bundle", key, n_items=50)
    live = Live(tmp_path / "a.bundle", {key.public_key}, prepare=lambda engine: len(engine.bundle.items))
    assert live.current.prepared == 40
    live.swap(tmp_path / "b.bundle")
    assert live.current.prepared == len(live.current.engine.bundle.items) == 50


def test_the_same_bundle_is_not_taken_twice(tmp_path: Path, key: SigningKey) -> None:
    write_tiny(tmp_path / "a.bundle", key)
    live = Live(tmp_path / "a.bundle", {key.public_key})
    engine = live.engine
    assert not live.swap()
    assert live.engine is engine
    assert live.status.swaps == 0


def sums_of(bundle: Bundle) -> NDArray[np.float32]:
    """``(n_items,)``: the sum of each item's vector."""
    return bundle.items.rows(np.arange(len(bundle.items))).sum(axis=1)


def nan_model(dim: int) -> bytes:
    """A model that an engine accepts: the logarithm of the sum of all numbers of a history, which is none below zero."""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    graph = helper.make_graph(
        [
            node("ReduceSum", ["history", "axes"], ["pooled"], keepdims=0),
            node("ReduceSum", ["pooled", "first"], ["total"], keepdims=1),
            node("Log", ["total"], ["log"]),
            node("Mul", ["log", "ones"], ["query"]),
        ],
        "not a number",
        [
            helper.make_tensor_value_info("history", TensorProto.FLOAT, ["B", "T", dim]),
            helper.make_tensor_value_info("length", TensorProto.INT64, ["B"]),
        ],
        [
            helper.make_tensor_value_info(QUERY, TensorProto.FLOAT, ["B", dim]),
            helper.make_tensor_value_info(POOLED, TensorProto.FLOAT, ["B", "T"]),
        ],
        [
            numpy_helper.from_array(np.array([2], dtype=np.int64), "axes"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "first"),
            numpy_helper.from_array(np.ones((1, dim), dtype=np.float32), "ones"),
        ],
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


# item 0, which a fresh engine tries, has a positive sum, and the last one, which is tried before it takes over, a negative one
SEED = next(seed for seed in range(100) if (s := sums_of(tiny_bundle(seed=seed)))[0] > 0 > s[-1])


def spoil(path: Path, key: SigningKey, how: str) -> None:
    """Put at ``path`` what must not be taken."""
    made = tiny_bundle(seed=SEED)
    if how == "cut off":
        write(path, key, made)
        path.write_bytes(path.read_bytes()[:-500])
    elif how == "a byte changed":
        write(path, key, made)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "a stranger's":
        write(path, create_key(path.with_name("stranger.key")), made)
    elif how == "older":
        write(path, key, made, created="2023-04-30T12:00:00+00:00")
    elif how == "without a date":
        write(path, key, made, created="in spring")
    elif how == "not finite":
        model = nan_model(made.items.dim)
        Engine(replace(made, model=model))  # which tries item 0 alone
        write(path, key, made, model=model)
    else:
        path.unlink()


SPOILT = {
    "cut off": "",
    "a byte changed": "",
    "a stranger's": "not among the 1 trusted",
    "older": "made 2023-04-30T12:00:00+00:00, before the bundle that answers (2024-05-01T12:00:00+00:00)",
    "without a date": "'in spring' is not a time in ISO 8601",
    "not finite": "not finite",
    "gone": "",
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_does_not_hold_is_refused_and_the_old_one_goes_on(
    tmp_path: Path, key: SigningKey, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    path = tmp_path / "shop.bundle"
    first = write_tiny(path, key, seed=0)
    live = Live(path, {key.public_key})
    expected = live.engine.recommend(Request(history=(3, 4)))
    spoil(path, key, how)
    with caplog.at_level(logging.ERROR), pytest.raises(BundleError) as refused:
        live.swap()
    assert str(path) in str(refused.value)
    assert SPOILT[how] in str(refused.value)
    assert live.engine.bundle.digest == first.digest
    assert live.engine.recommend(Request(history=(3, 4))) == expected
    status = live.status
    assert (status.swaps, status.refused, status.back_to) == (0, 1, None)
    assert status.last_refusal is not None
    assert status.last_refusal.reason == str(refused.value)
    assert str(refused.value) in caplog.text


def test_a_bundle_whose_companion_cannot_be_made_is_refused(tmp_path: Path, key: SigningKey) -> None:
    write_tiny(tmp_path / "a.bundle", key, n_items=40)
    write_tiny(tmp_path / "b.bundle", key, n_items=50)

    def prepare(engine: Engine) -> None:
        if len(engine.bundle.items) == 50:
            raise RuntimeError("a fault")

    live = Live(tmp_path / "a.bundle", {key.public_key}, prepare=prepare)
    with pytest.raises(RuntimeError):
        live.swap(tmp_path / "b.bundle")
    assert len(live.engine.bundle.items) == 40
    assert live.status.refused == 1


def test_an_older_bundle_is_taken_where_that_is_allowed(tmp_path: Path, key: SigningKey) -> None:
    write_tiny(tmp_path / "new.bundle", key)
    spoil(tmp_path / "old.bundle", key, "older")
    live = Live(tmp_path / "new.bundle", {key.public_key}, allow_older=True)
    assert live.swap(tmp_path / "old.bundle")


def test_nothing_from_before_a_given_time_is_taken_the_first_bundle_included(tmp_path: Path, key: SigningKey) -> None:
    write_tiny(tmp_path / "a.bundle", key)
    Live(tmp_path / "a.bundle", {key.public_key}, not_before=datetime(2024, 5, 1, 12, tzinfo=UTC))
    with pytest.raises(BundleError, match=r"none is taken from before 2024-05-01T12:00:01"):
        Live(tmp_path / "a.bundle", {key.public_key}, not_before=datetime(2024, 5, 1, 12, 0, 1, tzinfo=UTC))


def test_the_way_back_leads_to_the_last_good_one_and_the_left_one_stays_out(tmp_path: Path, key: SigningKey) -> None:
    path = tmp_path / "shop.bundle"
    first = write_tiny(path, key, seed=0)
    live = Live(path, {key.public_key})
    with pytest.raises(ServingError, match="no earlier bundle"):
        live.rollback()
    second = write_tiny(path, key, seed=1)
    assert live.look()
    assert live.rollback() == first.digest == live.engine.bundle.digest
    with pytest.raises(ServingError, match="no earlier bundle"):
        live.rollback()
    os.utime(path)
    assert not live.look()  # touched, but it is the one that was left
    assert live.engine.bundle.digest == first.digest
    assert live.swap()  # asked for by a person
    assert live.engine.bundle.digest == second.digest
    third = write_tiny(path, key, seed=2)
    assert live.look()
    assert live.engine.bundle.digest == third.digest
    assert live.rollback() == second.digest
    assert live.status.rollbacks == 2


def test_a_replaced_file_is_taken_by_the_watcher_and_a_bad_one_is_reported_once(
    tmp_path: Path, key: SigningKey, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "shop.bundle"
    write_tiny(path, key, seed=0)
    live = Live(path, {key.public_key})
    live.watch(0.02)
    try:
        second = write_tiny(path, key, seed=1)
        assert eventually(lambda: live.engine.bundle.digest == second.digest)
        spoil(path, key, "a stranger's")
        assert eventually(lambda: live.status.refused == 1)
        time.sleep(0.2)
        assert live.status.refused == 1
        path.unlink()
        assert eventually(lambda: live.status.refused == 2)
        third = write_tiny(path, key, seed=2)
        assert eventually(lambda: live.engine.bundle.digest == third.digest)
    finally:
        live.close()
    assert [thread for thread in threading.enumerate() if thread.name == "bundle-watcher"] == []


def test_in_a_folder_the_bundle_that_was_changed_last_counts(tmp_path: Path, key: SigningKey) -> None:
    folder = tmp_path / "bundles"
    folder.mkdir()
    with pytest.raises(BundleError, match=r"no \*\.bundle in this folder"):
        Live(folder, {key.public_key})
    first = write_tiny(folder / "z.bundle", key, seed=0)
    live = Live(folder, {key.public_key})
    assert live.engine.bundle.digest == first.digest
    (folder / "notes.txt").write_text("nothing")
    assert not live.look()
    second = write_tiny(folder / "a.bundle", key, seed=1)
    assert newest(folder) == folder / "a.bundle"
    assert live.look()
    assert live.engine.bundle.digest == second.digest


def test_a_bundle_that_is_a_folder_is_a_bundle(tmp_path: Path, key: SigningKey) -> None:
    written = write_tiny(tmp_path / "a.bundle", key)
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(tmp_path / "a.bundle", unpacked, "zip")
    assert newest(unpacked) == unpacked
    assert Live(unpacked, {key.public_key}).engine.bundle.digest == written.digest


def test_many_threads_see_whole_bundles_through_many_swaps(tmp_path: Path, key: SigningKey) -> None:
    paths = [tmp_path / "a.bundle", tmp_path / "b.bundle"]
    request = Request(history=(1, 2, 3))
    expected = {}
    for seed, path in enumerate(paths):
        bundle = write_tiny(path, key, seed=seed)
        expected[bundle.digest] = Engine(bundle).recommend(request)
    live = Live(paths[0], {key.public_key})
    stop, wrong, seen = threading.Event(), [], set()

    def ask() -> None:
        while not stop.is_set():
            with live.use() as engine:
                digest = engine.bundle.digest
                seen.add(digest)
                if engine.recommend(request) != expected[digest]:
                    wrong.append(digest)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(10):
        assert live.swap(paths[(turn + 1) % 2])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert seen == set(expected)
