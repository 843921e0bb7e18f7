"""The index: what it finds, how its recall is known, and its file."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.bundle.contents import Bundle
from common.engine import Engine, Request, approximate
from common.engine.approximate import Cells, Searcher, best_of, candidates, measured_depths, recall
from common.engine.search import ExactSearch
from common.engine.walks import tastes, walks
from tests.bundles import tiny_bundle

N = 3000


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle(N, dim=16, text_dim=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@pytest.fixture(scope="module")
def engine(bundle: Bundle, folder: Path) -> Engine:
    """In 3,000 items that are noise an index pays for nobody, but it has to be right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approximate, "MOST_CELLS", 1.0)
        return Engine(bundle, search="approximate", index_folder=folder)


@pytest.fixture(scope="module")
def exact(bundle: Bundle) -> Engine:
    return Engine(bundle)


def histories(count: int) -> list[list[int]]:
    random = np.random.default_rng(9)
    return [random.integers(0, N, int(random.integers(0, 8))).tolist() for _ in range(count)]


def test_small_catalogues_are_searched_exactly_unless_asked(engine: Engine, exact: Engine) -> None:
    assert (engine.search, exact.search) == ("approximate", "exact")
    assert exact.index is None


@pytest.mark.parametrize("k", [1, 10, 64, 400])
def test_what_is_found_is_what_exact_search_finds_but_for_a_hundredth(engine: Engine, exact: Engine, k: int) -> None:
    """Fresh histories, not those that the effort was set with."""
    asked = histories(300)
    found, scores = engine.top(asked, k)
    true, best = exact.top(asked, k)
    shares = recall(found, true)
    assert shares.mean() >= 0.99
    same = found == true
    np.testing.assert_allclose(scores[same], best[same], atol=1e-5)  # scores are exact, whatever was missed
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == k for row in found.tolist())


def test_more_than_was_measured_is_searched_exactly(engine: Engine, exact: Engine) -> None:
    assert engine.index is not None
    k = engine.index.most + 1
    for got, expected in zip(engine.top([[1, 2]], k), exact.top([[1, 2]], k), strict=True):
        assert (got == expected).all()


def test_somebody_of_whom_nothing_is_known_gets_exactly_what_is_popular(engine: Engine, exact: Engine) -> None:
    for k in (1, 10, 100):
        assert engine.top([[], [3]], k)[0][0].tolist() == exact.top([[]], k)[0][0].tolist()
    assert [item.position for item in engine.recommend(Request())] == [item.position for item in exact.recommend(Request())]


@pytest.mark.parametrize(
    "wishes",
    [
        {},
        {"k": 40, "exclude_seen": False},
        {"deny": frozenset(range(0, N, 2))},
        {"categories": frozenset({"drama"})},
        {"categories": frozenset({"drama"}), "k": 300},
        {"allow": frozenset(range(100, 107))},
        {"allow": frozenset(range(100, 107)), "categories": frozenset({"western"}), "k": 50},
        {"allow": frozenset()},
        {"boost": {17: 50.0, 18: 40.0}},
        {"boost": dict.fromkeys(range(60), -30.0), "k": 20},
        {"diversity": 0.4},
        {"diversity": 0.4, "k": 90},
        {"k": 1000},
    ],
    ids=str,
)
def test_filters_leave_as_many_as_exact_search_and_the_same_scores(engine: Engine, exact: Engine, wishes: dict[str, Any]) -> None:
    missed, all_of_them = 0, 0
    for history in histories(25):
        request = Request(tuple(history), **wishes)
        got, expected = engine.recommend(request), exact.recommend(request)
        assert len(got) == len(expected)
        allowed = exact._filters.mask(request)
        assert allowed is None or all(allowed[item.position] for item in got)
        scores = dict(enumerate(exact.scores([history])[0]))
        for item in got:
            assert item.score == pytest.approx(scores[item.position] + request.boost.get(item.position, 0.0), abs=1e-5)
        missed += len({item.position for item in expected} - {item.position for item in got})
        all_of_them += len(expected)
    assert missed <= (0.05 if "diversity" in wishes else 0.02) * all_of_them


def test_where_filters_leave_the_unlikely_only_they_are_still_found(engine: Engine, exact: Engine) -> None:
    """What the index gives is then all refused: exact search has to answer."""
    history = (3, 4, 5)
    scores = exact.scores([history])[0]
    unlikely = frozenset(np.argsort(scores)[: N // 2].tolist())
    got, expected = (e.recommend(Request(history, allow=unlikely)) for e in (engine, exact))
    assert len(got) == 10
    assert [item.position for item in got] == [item.position for item in expected]


def test_what_is_refused_is_made_up_for_by_the_index_itself(
    engine: Engine, exact: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = (3, 4, 5)
    best = exact.top([history], 80)[0][0].tolist()
    expected = [item.position for item in exact.recommend(Request(history, deny=frozenset(best)))]
    monkeypatch.setattr(engine._exact, "scores", None)  # would be called, and fail
    got = [item.position for item in engine.recommend(Request(history, deny=frozenset(best)))]
    assert not set(got) & set(best)
    assert len(set(got) & set(expected)) >= 9


def test_equals_come_in_the_order_of_the_catalogue(exact: Engine) -> None:
    flat = ExactSearch(replace(exact.bundle.items, biases=np.zeros(N, dtype=np.float32)))
    near = np.array([[9, 2, -1, 5]])
    assert best_of(flat, np.zeros((1, 16), dtype=np.float32), near, 4)[0].tolist() == [[2, 5, 9, -1]]


def test_many_threads_ask_one_index(engine: Engine) -> None:
    asked = histories(120)
    alone = [engine.top([history], 10)[0][0].tolist() for history in asked]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda history: engine.top([history], 10)[0][0].tolist(), asked)) == alone


@pytest.fixture(scope="module")
def cells(bundle: Bundle) -> Cells:
    return Cells.of(bundle.items, lambda what, share: None)


def test_every_item_is_in_one_place_the_popular_ones_before_all_cells(bundle: Bundle, cells: Cells) -> None:
    assert sorted(cells.order.tolist()) == list(range(N))
    head = cells.order[: cells.starts[0]]
    assert len(head) == round(approximate.HEAD * N)
    assert bundle.items.biases[head].min() >= bundle.items.biases[cells.order[cells.starts[0] :]].max()
    assert (np.diff(cells.starts) >= 0).all()
    assert cells.starts[-1] == N
    rows = bundle.items.rows(np.arange(N))
    for cell in range(0, len(cells), 7):
        for item in cells.order[cells.starts[cell] : cells.starts[cell + 1]]:
            distances = ((cells.centres - rows[item]) ** 2).sum(1)
            assert distances[cell] == pytest.approx(distances.min(), abs=1e-4)


def test_the_same_catalogue_is_always_divided_alike(bundle: Bundle, cells: Cells) -> None:
    again = Cells.of(bundle.items, lambda what, share: None)
    assert np.array_equal(again.order, cells.order)
    assert np.array_equal(again.promise, cells.promise)


def test_with_all_cells_it_is_exact_search(exact: Engine, cells: Cells) -> None:
    queries = exact._model.queries(*exact._model.padded(histories(60)))
    queries = queries[queries.any(axis=1)]
    found = candidates(Searcher(cells, exact.bundle.items), queries, 50, len(cells))
    true = exact._exact.top(queries, 50)[0]
    assert recall(found, true).min() >= 0.98  # two that are equal but for the order of a sum may change places at the end
    assert recall(found, true).mean() > 0.999


def test_the_promise_of_a_cell_is_about_its_best_items(exact: Engine, cells: Cells) -> None:
    """Cells with the best items come before others: the ten best are in the first eighth of the cells, most often."""
    queries = exact._model.queries(*exact._model.padded(walks(exact._model, 100)))
    place = np.full(N, -1)
    for cell in range(len(cells)):
        place[cells.order[cells.starts[cell] : cells.starts[cell + 1]]] = cell
    inside = []
    for query, best in zip(queries, exact._exact.top(queries, 10)[0], strict=True):
        chosen = set(cells.promising(query, len(cells) // 8).tolist())
        inside += [place[item] in chosen for item in best if place[item] >= 0]
    assert np.mean(inside) > 0.9


def test_recall_is_the_share_of_the_best_that_is_found() -> None:
    found = np.array([[1, 2, 3], [4, 5, -1], [7, 8, 9]])
    true = np.array([[3, 2, 1], [4, 6, 7], [7, -1, -1]])
    assert recall(found, true).tolist() == [1.0, 1 / 3, 1.0]


class Forgetful:
    """Cells that hold the right items only with enough effort."""

    def __init__(self, best: np.ndarray, enough: int) -> None:
        self.best, self.enough, self.cells = best, enough, range(4000)
        self.tried = [0]

    def best_of_row(self, row: int, count: int, effort: int) -> np.ndarray:
        found = self.best[row, :count].copy()
        if effort < self.enough and row in range(0, 80, 20):  # one of ten is another in every 20th answer: recall 0.995
            found[0] = N - 1 - found[0]
        return found


@pytest.mark.parametrize(("enough", "depths"), [(200, 1), (10**6, 0)])
def test_the_effort_is_raised_until_recall_holds_with_a_margin_or_there_is_no_index(
    exact: Engine, monkeypatch: pytest.MonkeyPatch, enough: int, depths: int
) -> None:
    monkeypatch.setattr(approximate, "DEPTHS", (10,))
    monkeypatch.setattr(approximate, "RECALL", 0.9945)
    queries = exact._model.queries(*exact._model.padded(walks(exact._model, 160)))
    searcher = Forgetful(exact._exact.top(queries, 40)[0], enough)

    def found(searcher: Any, queries: np.ndarray, count: int, effort: int) -> np.ndarray:
        searcher.tried.append(effort)
        return np.stack([searcher.best_of_row(row, count, effort) for row in range(len(queries))])

    monkeypatch.setattr(approximate, "candidates", found)
    kinds = [queries[:80], queries[80:]]  # the second kind would do with any effort: the worse one counts
    measured = measured_depths(searcher, exact._exact, kinds, lambda what, share: None)  # type: ignore[arg-type]
    assert len(measured) == depths
    if measured:
        assert (measured[0].cells, measured[0].recall) == (256, 1.0)
    assert searcher.tried[1:] == [effort for effort in approximate.EFFORTS if effort <= (256 if measured else 2000)]


def test_without_a_good_effort_search_is_exact_and_says_so(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(approximate, "EFFORTS", (4,))
    engine = Engine(bundle, search="approximate", index_folder=tmp_path)
    assert engine.search == "exact"
    assert "search is exact" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_an_index_is_kept_by_its_bundle_and_used_again(
    engine: Engine, bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.index is not None
    assert {path.name for path in folder.iterdir()} == {f"{bundle.digest}.npz", f"{bundle.digest}.json"}
    monkeypatch.setattr(approximate, "_build", None)  # would be called, and fail
    again = Engine(bundle, search="approximate", index_folder=folder)
    assert again.index is not None
    assert again.index.facts == engine.index.facts
    asked = histories(50)
    assert (again.top(asked, 10)[0] == engine.top(asked, 10)[0]).all()


@pytest.mark.parametrize("damage", ["a byte", "cut", "facts", "empty facts", "another's", "format"])
def test_a_damaged_index_is_built_again(
    engine: Engine, bundle: Bundle, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    graph, about = tmp_path / f"{bundle.digest}.npz", tmp_path / f"{bundle.digest}.json"
    content, facts = bytearray(graph.read_bytes()), json.loads(about.read_text())
    if damage == "a byte":
        content[len(content) // 2] ^= 1
        graph.write_bytes(content)
    elif damage == "cut":
        graph.write_bytes(content[:-1000])
    elif damage == "facts":
        about.write_text('{"format"')
    elif damage == "empty facts":
        about.write_text(json.dumps(facts | {"facts": {}}))
    elif damage == "another's":
        about.write_text(json.dumps(facts | {"facts": facts["facts"] | {"digest": "00" * 32}}))
    else:
        about.write_text(json.dumps(facts | {"format": {"version": 0}}))
    with caplog.at_level(logging.WARNING):
        again = Engine(bundle, search="approximate", index_folder=tmp_path)
    assert again.search == "approximate"
    assert ("built again" in caplog.text) == (damage != "format")
    whole = json.loads(about.read_text())
    assert whole["facts"]["digest"] == bundle.digest
    assert whole["format"] == facts["format"]
    assert Engine(bundle, search="approximate", index_folder=tmp_path).index.facts == again.index.facts  # type: ignore[union-attr]


def test_a_folder_that_cannot_be_written_costs_the_file_only(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    engine = Engine(bundle, search="approximate", index_folder=tmp_path / "taken")
    assert engine.search == "approximate"
    assert "not kept" in caplog.text


def test_progress_is_told(bundle: Bundle) -> None:
    told: list[tuple[str, float]] = []
    Engine(replace(bundle, digest="other"), search="approximate", progress=lambda what, share: told.append((what, share)))
    assert {"drawing histories", "building the index", "measuring recall"} == {what for what, _ in told}
    assert ("building the index", 1.0) in told
    assert all(0 <= share <= 1 for _, share in told)


def test_drawn_histories_are_walks_of_all_lengths_over_the_catalogue(exact: Engine) -> None:
    drawn = walks(exact._model, 60, seed=4)
    assert drawn == walks(exact._model, 60, seed=4)
    assert drawn != walks(exact._model, 60, seed=5)
    assert sorted({len(history) for history in drawn}) == [1, 2, 3, 4, 5, 6]
    assert all(0 <= position < N for history in drawn for position in history)
    scores = exact.scores([history[:-1] for history in drawn if len(history) > 1])
    steps = [history[-1] for history in drawn if len(history) > 1]
    ranks = [(row > row[step]).mean() for row, step in zip(scores, steps, strict=True)]
    assert np.mean(ranks) < 0.35  # what the model gives, not just anything (0.5)


def test_people_of_a_few_tastes_have_items_that_are_alike_known_or_not(exact: Engine) -> None:
    drawn = tastes(exact._model, exact._exact, 60, seed=4)
    assert drawn == tastes(exact._model, exact._exact, 60, seed=4) != tastes(exact._model, exact._exact, 60, seed=5)
    assert sorted({len(history) for history in drawn}) == [1, 2, 3, 4, 5, 6]
    items = exact.bundle.items
    text = items.rows(np.arange(N))[:, : items.text_dim]
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    nearest = []
    for history in (history for history in drawn if len(set(history)) >= 4):
        cosines = text[list(set(history))] @ text[list(set(history))].T
        nearest.append((cosines - 2 * np.eye(len(cosines))).max(axis=1).mean())
    assert np.mean(nearest) > 0.5  # of any four items the nearest two are at about 0.3
    assert abs(items.biases[np.concatenate(drawn)].mean() - items.biases.mean()) < 0.1
