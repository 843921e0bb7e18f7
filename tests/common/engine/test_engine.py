"""The engine against loops that compute the same scores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest

from common.bundle.contents import Bundle, ItemTable
from common.engine import Engine, Request
from common.engine.search import ExactSearch, top_of
from common.errors import BundleError, ServingError
from tests.bundles import reference_scores, tiny_bundle, tiny_model

HISTORIES: list[list[int]] = [[3], [1, 2], [5, 5, 9], [], [0, 39, 20, 7, 8], [11, 12, 13, 14, 15, 16, 17, 18, 19]]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle()


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return Engine(bundle)


def order(scores: np.ndarray) -> list[int]:
    """Positions by falling score, equal ones by position."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


def test_scores_are_those_of_plain_loops(engine: Engine, bundle: Bundle) -> None:
    together = engine.scores(HISTORIES)
    for row, history in zip(together, HISTORIES, strict=True):
        np.testing.assert_allclose(row, reference_scores(bundle, history), atol=2e-6)
        np.testing.assert_allclose(engine.scores([history])[0], row, atol=1e-6)


@pytest.mark.parametrize("history", HISTORIES, ids=str)
def test_the_best_unseen_items_come_back_in_order(engine: Engine, bundle: Bundle, history: list[int]) -> None:
    scores = reference_scores(bundle, history)
    answer = engine.recommend(Request(tuple(history), k=7))
    assert [item.position for item in answer] == [i for i in order(scores) if i not in history][:7]
    for item in answer:
        assert item.score == pytest.approx(scores[item.position], abs=2e-6)
        assert (item.id, item.title) == (bundle.catalogue.ids[item.position], bundle.catalogue.titles[item.position])


def test_top_is_the_same_ranking_with_seen_items(engine: Engine, bundle: Bundle) -> None:
    positions, scores = engine.top(HISTORIES, 9)
    assert positions.dtype == np.int32
    assert scores.dtype == np.float32
    for history, row, best in zip(HISTORIES, positions, scores, strict=True):
        reference = reference_scores(bundle, history)
        assert row.tolist() == order(reference)[:9]
        np.testing.assert_allclose(best, reference[row], atol=2e-6)


def test_somebody_of_whom_nothing_is_known_gets_what_is_popular(engine: Engine, bundle: Bundle) -> None:
    answer = engine.recommend(Request(k=5, explain=True))
    assert [item.position for item in answer] == order(bundle.items.biases)[:5]
    for item in answer:
        assert (item.score, item.pool, item.sequence, item.reasons) == (item.popularity, 0.0, 0.0, ())


def test_a_history_longer_than_the_window_is_read_at_its_end_and_seen_as_a_whole(engine: Engine, bundle: Bundle) -> None:
    window = bundle.card.model.window
    long = tuple(range(20))
    answer = engine.recommend(Request(long, k=40))
    short = engine.recommend(Request(long[-window:], k=40, deny=frozenset(long)))
    assert [item.position for item in answer] == [item.position for item in short]
    assert not {item.position for item in answer} & set(long)


def test_many_requests_at_once_are_answered_as_alone(engine: Engine) -> None:
    requests = [Request(tuple(history), k=k, explain=True) for history, k in zip(HISTORIES, (1, 5, 10, 3, 40, 8), strict=True)]
    together = engine.recommend_many(requests)
    for request, answer in zip(requests, together, strict=True):
        alone = engine.recommend(request)
        assert [item.position for item in answer] == [item.position for item in alone]
        assert [item.score for item in answer] == pytest.approx([item.score for item in alone], abs=1e-6)
    assert engine.recommend_many([]) == []


def test_more_than_there_is_gives_all_there_is(engine: Engine, bundle: Bundle) -> None:
    assert len(engine.recommend(Request((3, 4), k=1000))) == 38
    positions, scores = engine.top([[1], [2]], 50)
    assert (positions[:, 40:] == -1).all()
    assert np.isneginf(scores[:, 40:]).all()
    assert sorted(positions[0, :40].tolist()) == list(range(40))
    assert engine.top([], 5)[0].shape == (0, 5)


def test_equal_scores_come_in_the_order_of_the_catalogue(bundle: Bundle) -> None:
    flat = replace(bundle, items=replace(bundle.items, biases=np.zeros(40, dtype=np.float32)))
    engine = Engine(flat)
    assert [item.position for item in engine.recommend(Request(k=6))] == [0, 1, 2, 3, 4, 5]
    assert engine.top([[], []], 6)[0].tolist() == [[0, 1, 2, 3, 4, 5]] * 2


@pytest.mark.parametrize("n", [1, 7, 99, 400, 5_000, 70_000])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_the_best_of_an_array_are_found_whatever_its_size(n: int, k: int) -> None:
    random = np.random.default_rng(n + k)
    for scores in (random.standard_normal(n), random.integers(0, 20, n), np.zeros(n)):
        values = scores.astype(np.float32)
        assert top_of(values, k).tolist() == order(values)[:k]
    values[random.random(n) < 0.9] = -np.inf
    assert top_of(values, k).tolist() == [i for i in order(values) if values[i] > -np.inf][:k]


@pytest.mark.parametrize("n", [50, 700])
def test_widening_int8_in_blocks_gives_the_scores_of_a_float_copy(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    items = tiny_bundle(n).items
    queries = np.random.default_rng(1).standard_normal((3, items.dim)).astype(np.float32)
    copied = ExactSearch(items)
    monkeypatch.setattr("common.engine.search.COPY_BYTES", 0)
    monkeypatch.setattr("common.engine.search._BLOCK_BYTES", 40 * 4 * items.dim)  # blocks of 40 rows
    monkeypatch.setattr("common.engine.search._SCORES_BYTES", 4 * n)  # one query at a time
    widened = ExactSearch(items)
    assert (copied.copy_bytes, widened.copy_bytes) == (4 * n * items.dim, 0)
    rows = items.vectors.astype(np.float64) * items.scales[:, None]
    expected = queries @ rows.T + items.biases
    for search in (copied, widened):
        np.testing.assert_allclose(search.scores(queries), expected, atol=1e-5)
        np.testing.assert_allclose(search.scores(queries[:1]), expected[:1], atol=1e-5)
        np.testing.assert_allclose(search.scores_at(queries, np.array([7, 3])), expected[:, [7, 3]], atol=1e-5)
        each = np.array([[1, 2], [3, 4], [5, 6]])
        np.testing.assert_allclose(search.scores_at(queries, each), np.take_along_axis(expected, each, axis=1), atol=1e-5)
        assert search.top(queries, 5)[0].tolist() == [order(row)[:5] for row in expected]


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        ({"history": (1, 40)}, "history: no item has position 40"),
        ({"history": (-1,)}, "history: no item has position -1"),
        ({"history": (2**70,)}, f"history: no item has position {2**70}"),
        ({"history": (99, 1, 2, 3, 4, 5, 6, 7)}, "history: no item has position 99"),  # seen, though no longer read
        ({"deny": {41}}, "deny: no item has position 41"),
        ({"allow": {-2}}, "allow: no item has position -2"),
        ({"boost": {40: 1.0}}, "boost: no item has position 40"),
        ({"categories": {"Drama"}}, "no item is of 'Drama'; did you mean 'drama'"),
    ],
)
def test_what_the_catalogue_lacks_is_refused_by_name(engine: Engine, wishes: dict[str, Any], named: str) -> None:
    with pytest.raises(ServingError, match=named):
        engine.recommend(Request(**wishes))


@pytest.mark.parametrize("wrong", [40, -1, 2**70])
def test_top_refuses_what_the_catalogue_lacks(engine: Engine, wrong: int) -> None:
    with pytest.raises(ServingError, match=f"no item has position {wrong}"):
        engine.top([[1], [2, wrong]], 3)
    with pytest.raises(ServingError, match="k = 0"):
        engine.top([[1]], 0)


def test_many_threads_ask_one_engine(engine: Engine, bundle: Bundle) -> None:
    random = np.random.default_rng(5)
    histories = [random.integers(0, 40, int(random.integers(0, 9))).tolist() for _ in range(200)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda history: engine.recommend(Request(tuple(history), k=5)), histories))
    for history, answer in zip(histories, answers, strict=True):
        scores = reference_scores(bundle, history)
        assert [item.position for item in answer] == [i for i in order(scores) if i not in history][:5]


def test_memory_does_not_grow_with_the_shapes_that_were_seen(bundle: Bundle) -> None:
    """Batches and lengths of all sizes, twice: the second time over, no more than a megabyte is left behind."""
    engine, process = Engine(bundle), psutil.Process()

    def ask_everything() -> int:
        for size in range(1, 80):
            for length in (1, 2, 3, 5, 6):
                engine.top([[1] * length] * size, 10)
        return int(process.memory_info().rss)

    ask_everything()
    before = ask_everything()
    assert ask_everything() - before < 2**20


def test_a_model_that_is_none_or_does_not_fit_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="cannot be loaded"):
        Engine(replace(bundle, model=b"not a model"))
    with pytest.raises(BundleError, match="does not run"):
        Engine(replace(bundle, model=tiny_model(16, 8)))
    from onnx import helper, load_from_string

    renamed = load_from_string(bundle.model)
    renamed.graph.output.pop()
    with pytest.raises(BundleError, match="expected"):
        Engine(replace(bundle, model=renamed.SerializeToString()))
    broken = load_from_string(bundle.model)
    for tensor in broken.graph.initializer:
        if tensor.name == "strength":
            tensor.CopyFrom(helper.make_tensor("strength", 1, [], [float("nan")]))
    with pytest.raises(BundleError, match="not finite"):
        Engine(replace(bundle, model=broken.SerializeToString()))


def test_one_item_is_a_catalogue() -> None:
    engine = Engine(tiny_bundle(1))
    assert [item.position for item in engine.recommend(Request((0,), exclude_seen=False, diversity=1.0, explain=True))] == [0]
    assert engine.recommend(Request((0,))) == []


def test_an_item_without_a_vector_is_scored_by_its_popularity() -> None:
    bundle = tiny_bundle(10)
    vectors = bundle.items.vectors.copy()
    vectors[4] = 0
    items = ItemTable(vectors, bundle.items.scales, bundle.items.biases, bundle.items.text_dim)
    engine = Engine(replace(bundle, items=items))
    assert engine.scores([[1, 2]])[0, 4] == bundle.items.biases[4]
    assert len(engine.recommend(Request((1, 4), k=10, diversity=0.5, explain=True))) == 8
