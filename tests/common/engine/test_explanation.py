"""Reasons: exact where they say so, differences where they say so."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from common.bundle.contents import Bundle, ItemTable
from common.engine import Engine, Request
from common.engine.explanation import mean_vector
from tests.bundles import DECAY, STRENGTH, reference_scores, tiny_bundle

HISTORY = (5, 9, 5, 30)
"""One item twice; four read by a window of six."""


@cache
def engine_with(strength: float) -> Engine:
    """A tiny engine whose pool counts for less or more; the reference loops know :data:`STRENGTH` only."""
    from onnx import load_from_string, numpy_helper

    bundle = tiny_bundle()
    model = load_from_string(bundle.model)
    for tensor in model.graph.initializer:
        if tensor.name == "strength":
            tensor.CopyFrom(numpy_helper.from_array(np.array(strength, dtype=np.float32), "strength"))
    return Engine(replace(bundle, model=model.SerializeToString()))


def text(bundle: Bundle, position: int) -> Any:
    return bundle.items.rows(np.array(position)).astype(np.float64)[: bundle.items.text_dim]


@pytest.mark.parametrize("strength", [0.05, STRENGTH])
def test_the_parts_of_a_score_add_up_to_it(strength: float) -> None:
    for item in engine_with(strength).recommend(Request(HISTORY, k=20, explain=True, boost={3: 0.7, 12: -0.2})):
        assert item.popularity + item.pool + item.sequence + item.boost == pytest.approx(item.score, abs=1e-5)


def test_reasons_of_the_pool_are_exact_shares() -> None:
    engine = engine_with(STRENGTH)
    total = sum(DECAY**age for age in range(4))
    answer = engine.recommend(Request(HISTORY, k=10, explain=True))
    for item in answer:
        assert {reason.kind for reason in item.reasons} == {"pool"}
        assert sum(reason.contribution for reason in item.reasons) == pytest.approx(item.pool, abs=1e-5)
        expected = dict.fromkeys(HISTORY, 0.0)
        for age, position in enumerate(reversed(HISTORY)):
            expected[position] += (
                STRENGTH * DECAY**age / total * (text(engine.bundle, position) @ text(engine.bundle, item.position))
            )
        assert {reason.position: reason.contribution for reason in item.reasons} == pytest.approx(expected, abs=1e-5)


def test_reasons_come_with_titles_and_the_largest_first() -> None:
    engine = engine_with(STRENGTH)
    for item in engine.recommend(Request(HISTORY, explain=True)):
        contributions = [reason.contribution for reason in item.reasons]
        assert contributions == sorted(contributions, reverse=True)
        assert {reason.position for reason in item.reasons} == set(HISTORY)
        for reason in item.reasons:
            catalogue = engine.bundle.catalogue
            assert (reason.id, reason.title) == (catalogue.ids[reason.position], catalogue.titles[reason.position])


def test_where_the_pool_decides_little_reasons_are_leave_one_out_differences() -> None:
    engine = engine_with(0.05)
    answer = engine.recommend(Request(HISTORY, k=10, explain=True))
    full = engine.scores([HISTORY])[0]
    for item in answer:
        assert {reason.kind for reason in item.reasons} == {"left out"}
        for reason in item.reasons:
            without = engine.scores([[i for i in HISTORY if i != reason.position]])[0]
            difference = full[item.position] - without[item.position]
            assert reason.contribution == pytest.approx(difference, abs=1e-5)


def test_leaving_out_the_only_item_leaves_popularity() -> None:
    for item in engine_with(0.05).recommend(Request((7,), k=5, explain=True)):
        assert [reason.position for reason in item.reasons] == [7]
        assert item.reasons[0].contribution == pytest.approx(item.score - item.popularity, abs=1e-5)


@pytest.mark.parametrize("strength", [0.05, 0.3, 1.0, STRENGTH])
def test_the_kind_is_that_of_the_part_that_sets_the_items_apart(strength: float) -> None:
    engine = engine_with(strength)
    history = (2, 6, 33)
    answer = engine.recommend(Request(history, k=10, explain=True))
    everything = engine.recommend(Request(history, k=40, exclude_seen=False))
    pool = {item.position: item.pool for item in everything}
    sequence = {item.position: item.sequence for item in everything}
    middle = sum(pool.values()) / 40, sum(sequence.values()) / 40
    by_pool = sum(abs(pool[item.position] - middle[0]) for item in answer)
    by_sequence = sum(abs(sequence[item.position] - middle[1]) for item in answer)
    assert {reason.kind for item in answer for reason in item.reasons} == {"pool" if by_pool >= by_sequence else "left out"}


def test_what_all_items_share_sets_none_apart() -> None:
    """With a column that is the same for all, the pool adds much to every score and decides as little as before."""
    plain = engine_with(0.05).bundle
    rows = plain.items.rows(np.arange(40))
    rows[:, 0] = 6.0
    engine = Engine(replace(plain, items=ItemTable.quantised(rows, plain.items.biases, plain.items.text_dim)))
    answer = engine.recommend(Request(HISTORY, k=10, explain=True))
    pools, sequences = ([getattr(item, part) for item in answer] for part in ("pool", "sequence"))
    assert np.mean(pools) > 1.0
    assert np.std(pools) < 0.1 < np.std(sequences)
    assert {reason.kind for item in answer for reason in item.reasons} == {"left out"}


def test_only_what_the_model_reads_is_a_reason() -> None:
    history = tuple(range(12))
    answer = engine_with(STRENGTH).recommend(Request(history, k=3, explain=True))
    assert all({reason.position for reason in item.reasons} == set(history[-6:]) for item in answer)


def test_no_reasons_unless_asked_for_and_the_same_items_with_them() -> None:
    engine = engine_with(STRENGTH)
    without, reasoned = (engine.recommend(Request(HISTORY, explain=explain)) for explain in (False, True))
    assert all(item.reasons == () for item in without)
    assert [replace(item, reasons=()) for item in reasoned] == without


def test_the_loops_and_the_engine_speak_of_the_same_model() -> None:
    np.testing.assert_allclose(engine_with(STRENGTH).scores([HISTORY])[0], reference_scores(tiny_bundle(), HISTORY), atol=2e-6)


def test_the_mean_item_is_the_mean_of_all() -> None:
    items = tiny_bundle(333).items
    np.testing.assert_allclose(mean_vector(items), items.rows(np.arange(333)).astype(np.float64).mean(axis=0), atol=1e-6)
