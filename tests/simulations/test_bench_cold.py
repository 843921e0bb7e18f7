"""``silorec bench cold``: from items held out of training to hit rates, in a small shop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tomli_w

from common.bundle.contents import Bundle
from common.bundle.files import read_bundle
from common.data.population import load_population
from common.engine import Engine, Request
from common.errors import ConfigError
from server.bundle_cli import KEY, signing_key
from simulations.bench import cold, goals_of, run_bench
from simulations.cold_items import ColdSplit, hold_out
from simulations.scenario import load_scenario
from simulations.watch import Silent
from tests.simulations import small_run
from tests.simulations.test_student import DISTILLATION

Measured = tuple[dict[str, float], ColdSplit, Bundle]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Figures of one run of the benchmark, what it asked, and the bundle that it asked."""
    folder = tmp_path_factory.mktemp("cold")
    scenario = folder / "shop.toml"
    settings = {**small_run.SETTINGS, "distillation": DISTILLATION}
    settings["data"] = {"source": "synthetic", "synthetic": {"users": 60, "items": 60, "categories": 3}}
    scenario.write_text(tomli_w.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold, "SCENARIO", str(scenario))
        patch.setattr(cold, "BACKBONES", {"tiny-bert": ("federation.rounds=1",)})
        patch.setattr(cold, "K", 5)
        patch.setattr(cold, "K_COLD", 2)
        report = run_bench("cold", folder, Silent(), backbones="tiny-bert")
        again = run_bench("cold", folder, Silent(), backbones="tiny-bert")
    assert again.figures == report.figures, "a finished run is taken as it is"
    split = hold_out(load_population(load_scenario(str(scenario))).dataset, cold.SHARE, cold.SEED)
    bundle = read_bundle(folder / "cold" / "tiny-bert.bundle", {signing_key(folder / "cold" / KEY).public_key})
    return {figure.name: figure.value for figure in report.figures}, split, bundle


def test_cold_items_come_into_the_bundle_after_training(measured: Measured) -> None:
    figures, split, bundle = measured
    assert bundle.card.added_items == split.cold.sum() == figures["cold items"] == 6
    assert set(bundle.catalogue.ids) == set(split.dataset.catalogue.ids)
    at = cold.places(split, bundle)
    assert sorted(at[split.cold]) == list(range(54, 60)), "after those that the model was trained on"
    assert [bundle.catalogue.titles[i] for i in at] == list(split.dataset.catalogue.titles)


def test_the_hit_rate_is_that_of_what_a_person_would_be_shown(measured: Measured) -> None:
    """Asked one by one as a shop asks: history in, everything met left out, the target among the five or not."""
    figures, split, bundle = measured
    engine, at = Engine(bundle, search="exact"), cold.places(split, bundle)
    hits, alone, by_chance = [], [], []
    for case in split.cases:
        history, met = tuple(at[case.history].tolist()), frozenset(at[case.met].tolist())
        shown = [item.position for item in engine.recommend(Request(history=history, k=5, deny=met))]
        hits.append(at[case.target] in shown)
        allowed = frozenset(at[split.cold].tolist())
        shown = [item.position for item in engine.recommend(Request(history=history, k=2, deny=met, allow=allowed))]
        alone.append(at[case.target] in shown)
        by_chance.append(5 / (len(at) - len(met)))
    assert figures["tiny-bert: hr@5 among all items"] == pytest.approx(np.mean(hits))
    assert figures["tiny-bert: hr@5 among all items, over random"] == pytest.approx(np.mean(hits) / np.mean(by_chance))
    assert figures["tiny-bert: hr@2 among cold items alone"] == pytest.approx(np.mean(alone))


def test_random_scores_hit_as_often_as_chance_has_it(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold, "K", 5)
    _, split, bundle = measured
    rng, ratios = np.random.default_rng(0), []
    for _ in range(400):
        scores = rng.normal(size=(len(split.cases), len(bundle.items))).astype(np.float32)
        values = {figure.name: figure.value for figure in cold.judged("noise", split, bundle, scores)}
        ratios.append(values["noise: hr@5 among all items, over random"])
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.06)


def test_goals_speak_of_figures_that_are_measured(measured: Measured) -> None:
    names = {name.replace("tiny-bert", "minilm").replace("hr@5", "hr@50") for name in measured[0]}
    assert goals_of("cold")
    assert {goal.figure for goal in goals_of("cold")} <= names


def test_a_model_without_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no settings for backbone 'gpt-2'"):
        run_bench("cold", tmp_path, Silent(), backbones="gpt-2")
