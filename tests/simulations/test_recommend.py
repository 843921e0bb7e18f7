"""Recommendations from a run's folder, for somebody the model has never seen."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.config import load
from common.data.catalogue import Catalogue
from common.data.catalogue_file import read_catalogue, write_catalogue
from common.data.lookup import find_item
from common.data.population import load_population
from common.errors import DataError, ModelError, SilorecError
from common.model.resident import resident
from simulations.evaluate import Evaluator
from simulations.recommend import RunModel, recommend
from tests.simulations import small_run


@pytest.fixture(scope="module")
def model(plain: Path) -> RunModel:
    return RunModel(plain)


@pytest.fixture
def shop(catalogue: Catalogue) -> Catalogue:
    """Titles that are hard to tell apart, or that break lines."""
    titles = ("Toy Story", "Toy Story 2", "Aladdin", "Heat\u2028wave", "12", "The Thing", "The Thing", *catalogue.titles[7:])
    return replace(catalogue, titles=titles)


def test_titles_and_ids_name_the_same_items(model: RunModel) -> None:
    items = [3, 11, 7]
    ids = [model.catalogue.ids[i] for i in items]
    titles = [model.catalogue.titles[i] for i in items]
    by_id = model.recommend(ids, 5)
    assert by_id == model.recommend([title.upper() for title in titles], 5)
    assert by_id.history == tuple(titles)
    assert len(by_id.recommendations) == 5
    for found in by_id.recommendations:
        assert model.catalogue.titles[model.catalogue.index[found.item]] == found.title


def test_the_answer_is_the_evaluations_best_without_the_history(plain: Path, model: RunModel) -> None:
    config = load(plain / "config.toml")
    home = resident(config)
    evaluator = Evaluator(config, load_population(config), home.model, home.manifest)
    items = np.array([20, 4, 9, 13])
    (scores,) = evaluator.scores_of([items], small_run.adapter(plain))
    expected = [int(i) for i in np.argsort(-scores, kind="stable") if i not in items][:6]
    answer = recommend(plain, [model.catalogue.ids[i] for i in items], 6)
    assert [found.item for found in answer.recommendations] == [model.catalogue.ids[i] for i in expected]
    assert [found.score for found in answer.recommendations] == pytest.approx(scores[expected].tolist(), abs=1e-5)


def test_a_history_longer_than_the_window_is_read_from_its_end_but_left_out_as_a_whole(model: RunModel) -> None:
    window, ids = model.config.model.window, model.catalogue.ids
    long = model.recommend(ids[: window + 6], 24)
    short = model.recommend(ids[6 : window + 6], 24)
    assert {found.item for found in long.recommendations} == set(ids[window + 6 :])
    scores = {found.item: found.score for found in short.recommendations}
    assert all(found.score == pytest.approx(scores[found.item], abs=1e-6) for found in long.recommendations)


@pytest.mark.parametrize("k", [1, 23, 24, 1000])
def test_k_is_a_most(model: RunModel, k: int) -> None:
    answer = model.recommend([model.catalogue.ids[5]] * 2, k)
    found = [entry.item for entry in answer.recommendations]
    assert len(found) == len(set(found)) == min(k, 23)
    assert model.catalogue.ids[5] not in found
    assert sorted((entry.score for entry in answer.recommendations), reverse=True) == [e.score for e in answer.recommendations]


def test_who_has_met_everything_gets_nothing_and_who_has_met_nothing_gets_something(model: RunModel) -> None:
    assert model.recommend(model.catalogue.ids, 5).recommendations == ()
    answer = model.recommend([], 5)
    assert answer.history == ()
    assert len(answer.recommendations) == 5
    assert np.isfinite([found.score for found in answer.recommendations]).all()
    with pytest.raises(DataError, match="k = 0"):
        model.recommend([], 0)


def test_items_are_found_by_id_by_title_or_by_a_part_that_only_one_title_has(shop: Catalogue) -> None:
    assert find_item(shop, "i1") == 1
    assert find_item(shop, "Toy Story") == 0
    assert find_item(shop, " toy story 2 ") == 1
    assert find_item(shop, "alad") == 2
    assert find_item(replace(shop, ids=("12", *shop.ids[1:])), "12") == 0
    assert find_item(shop, "the thing") == 5


def test_a_title_that_could_be_several_or_none_is_refused_with_the_nearest(shop: Catalogue) -> None:
    with pytest.raises(DataError, match=r"'oy story' could be 2 items, among them 'Toy Story', 'Toy Story 2'; give the whole"):
        find_item(shop, "oy story")
    with pytest.raises(DataError, match=r"no item is called 'Aladin'; did you mean 'Aladdin'\?"):
        find_item(shop, "Aladin")
    with pytest.raises(DataError, match=r"no item is called 'qqqqqqqq'$"):
        find_item(shop, "qqqqqqqq")
    with pytest.raises(DataError, match="no item is called ''"):
        find_item(shop, "")


def test_a_runs_catalogue_is_read_back_as_it_was(shop: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "catalogue.jsonl"
    write_catalogue(path, shop)
    again = read_catalogue(path)
    assert again.fingerprint == shop.fingerprint
    assert (again.ids, again.titles, again.categories, again.fields) == (shop.ids, shop.titles, shop.categories, shop.fields)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("catalogue.jsonl", None, "catalogue.jsonl is missing: not the folder of a run"),
        ("adapter.safetensors", None, "adapter.safetensors is missing: .*has not finished a round"),
        ("config.toml", "name = ", "config.toml: not a TOML file"),
        ("catalogue.jsonl", "", "not a run's catalogue, or damaged"),
        ("catalogue.jsonl", "[1, 2]\n", "not a run's catalogue, or damaged"),
        ("catalogue.jsonl", '{"id": "a"}\n', "not a run's catalogue, or damaged"),
        ("catalogue.jsonl", '{"id": "a", "title": "b", "categories": [], "fields": {}}\n', "adapter does not fit this model"),
        ("adapter.safetensors", "junk", "not an adapter, or damaged"),
    ],
)
def test_a_damaged_run_is_one_sentence(plain: Path, tmp_path: Path, name: str, content: str | None, why: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for needed in ("config.toml", "catalogue.jsonl", "adapter.safetensors"):
        shutil.copy(plain / needed, folder)
    assert RunModel(folder).catalogue.ids == RunModel(plain).catalogue.ids
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(SilorecError, match=why) as refused:
        RunModel(folder)
    assert "\n" not in str(refused.value)
    assert isinstance(refused.value, ModelError) or str(folder) in str(refused.value)
