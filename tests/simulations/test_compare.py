"""References that are our own model: each silo alone, and all data in one place."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import client.trainer
import common.data.population
from common.config import Config
from common.data.population import Population, load_population
from common.errors import ConfigError
from common.model.resident import resident
from common.privacy.ledger import Ledger
from common.privacy.plan import plan_for
from simulations import baselines, compare
from simulations.compare import TITLES, check_references
from simulations.evaluate import Evaluator
from simulations.result import figures
from simulations.watch import Silent
from tests import tiny
from tests.simulations import small_run

BOTH = {"evaluation__references": ("local-only", "centralised"), "evaluation__bootstrap": 20}


def evaluator(config: Config) -> Evaluator:
    home = resident(config)
    return Evaluator(config, load_population(config), home.model, home.manifest)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, ...], np.ndarray]:
    """The adapters that a comparison trains, by the silos that took part."""
    train, out = compare._train, {}

    def recorded(config, silos, *rest):
        vector = train(config, silos, *rest)
        out[(len(config.federation.declared_users), *silos)] = vector
        return vector

    monkeypatch.setattr(compare, "_train", recorded)
    return out


def with_other_histories(population: Population, silo: int) -> Population:
    """The same people, but those of one silo met other items."""
    rows = population.dataset.interactions
    theirs = np.isin(rows.user, population.partition.silos[silo].users)
    item = np.where(theirs, (rows.item + 7) % len(population.dataset.catalogue), rows.item).astype(np.int32)
    return Population(replace(population.dataset, interactions=replace(rows, item=item)), population.partition)


def test_every_reference_that_was_asked_for_is_in_the_table_under_the_same_protocol() -> None:
    config = tiny.config(**{**BOTH, "evaluation__references": ("tf-idf", "local-only", "popularity", "centralised")})
    judge = evaluator(config)
    entries = compare.compare(config, judge, Silent())
    assert [entry["name"] for entry in entries] == ["tf-idf", "local-only", "popularity", "centralised"]
    assert [entry["title"] for entry in entries] == [TITLES[entry["name"]] for entry in entries]
    assert all(entry["seconds"] > 0 for entry in entries)
    counts = np.bincount(judge.population.split.train.item, minlength=24)
    by_hand = judge.rank(np.tile(counts.astype(np.float32), (len(judge.users), 1)), "test")
    assert {key: value for key, value in entries[2].items() if key not in ("name", "title", "seconds")} == figures(
        config, by_hand
    )


def test_every_known_reference_has_a_title_and_an_unknown_one_is_refused() -> None:
    assert set(TITLES) == {*baselines.names(), "local-only", "centralised"}
    check_references(tiny.config(evaluation__references=tuple(TITLES)))
    with pytest.raises(ConfigError, match=r"evaluation.references: unknown recommender 'svd'; there are: .*centralised"):
        check_references(tiny.config(evaluation__references=("popularity", "svd")))


def test_local_only_learns_from_that_silos_users_alone(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(**{**BOTH, "evaluation__references": ("local-only",)})
    judge = evaluator(config)
    compare.compare(config, judge, Silent())
    before = dict(trained)
    assert before.keys() == {(2, 0), (2, 1)}
    assert not np.array_equal(before[2, 0], before[2, 1])
    changed = with_other_histories(load_population(config), 1)
    monkeypatch.setattr(common.data.population, "load_population", lambda _: changed)
    compare.compare(config, judge, Silent())
    np.testing.assert_array_equal(trained[2, 0], before[2, 0])
    assert not np.array_equal(trained[2, 1], before[2, 1])


def test_each_silo_alone_is_judged_on_its_own_users(trained) -> None:
    config = tiny.config(**{**BOTH, "evaluation__references": ("local-only",)})
    judge = evaluator(config)
    (entry,) = compare.compare(config, judge, Silent())
    histories = judge.histories("test")
    own = np.stack([judge.scores(trained[2, silo], histories)[user] for user, silo in enumerate(judge.silo)])
    assert entry["mrr"] == pytest.approx(judge.rank(own, "test").summary(10)["mrr"], abs=1e-9)


def test_centralised_is_a_run_with_one_silo(trained, tmp_path: Path) -> None:
    config = tiny.config(**{**BOTH, "evaluation__references": ("centralised",)})
    (entry,) = compare.compare(config, evaluator(config), Silent())
    folder = small_run.run(tmp_path, "partition.silos=1")
    np.testing.assert_array_equal(trained[1, 0], small_run.adapter(folder))
    assert entry["ndcg@10"] == pytest.approx(small_run.result(folder)["ndcg@10"], abs=1e-9)


def test_centralised_does_not_learn_test_items_that_a_silos_own_catalogue_hid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's latest interactions may be with items that the silo does not sell, so an earlier one is held out."""
    config = tiny.config(partition__by="catalogue", data__synthetic__interactions_per_user=12.0, **BOTH)
    seen, train = [], client.trainer.train_round

    def recorded(model, data, *arguments, **options):
        seen.append(data.histories)
        return train(model, data, *arguments, **options)

    monkeypatch.setattr(client.trainer, "train_round", recorded)
    judge = evaluator(config)
    compare._centralised(config, judge)
    assert len(seen) == config.federation.rounds
    expected = judge.population.split.train.histories()
    for histories in seen:
        assert [history.tolist() for history in histories] == [history.tolist() for history in expected]


def test_references_of_a_private_run_keep_its_budget_and_say_nothing_in_every_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny.config(privacy__mode="silo", **BOTH)
    charged, reserve = [], Ledger.reserve
    monkeypatch.setattr(
        Ledger, "reserve", lambda self, asked, q: (charged.append((self.path, asked.event)), reserve(self, asked, q))[1]
    )
    with caplog.at_level(logging.WARNING):
        compare.compare(config, evaluator(config), Silent())
    assert not caplog.records
    declared = config.federation.declared_users
    alone = plan_for(config, declared[0], min(declared)).all_events()
    events = [event for _, event in charged]
    assert len({path for path, _ in charged}) == 3
    assert events[: len(alone)] == events[len(alone) : 2 * len(alone)] == alone
    everybody = sum(declared)
    merged = tiny.config(privacy__mode="silo", partition__silos=1, federation__declared_users=[everybody], **BOTH)
    assert events[2 * len(alone) :] == plan_for(merged, everybody, everybody).all_events()


def test_the_round_of_a_reference_is_chosen_as_in_the_run(trained) -> None:
    settings = {"evaluation__references": ("centralised",), "evaluation__bootstrap": 0, "training__learning_rate": 0.1}
    chosen = {}
    for select in ("last", "validation"):
        config = tiny.config(evaluation__select=select, **settings)
        compare.compare(config, evaluator(config), Silent())
        judge = evaluator(config)
        chosen[select] = judge.judge(trained[1, 0], "validation").evaluation.summary(10)["ndcg@10"]
    start = tiny.config(federation__rounds=0, **settings)
    compare.compare(start, evaluator(start), Silent())
    at_start = evaluator(start).judge(trained[1, 0], "validation").evaluation.summary(10)["ndcg@10"]
    assert chosen["validation"] >= max(chosen["last"], at_start) > chosen["last"]


@pytest.mark.parametrize("settings", [{}, {"privacy__mode": "distributed", "federation__server_optimizer": "adam-bc"}])
def test_a_silo_by_itself_is_not_asked_for_sums(settings: dict[str, str], trained: dict[tuple[int, ...], np.ndarray]) -> None:
    """Of three silos, which together aggregate securely; in mode distributed each has all of its noise when it is alone."""
    settings = {"federation__server_learning_rate": 0.01, "training__local_steps": 1, **settings}
    config = tiny.config(partition__silos=3, federation__declared_users=(14, 13, 13), **BOTH, **settings)
    assert config.is_secure
    entries = compare.compare(config, evaluator(config), Silent())
    assert [entry["name"] for entry in entries] == ["local-only", "centralised"]
    assert set(trained) == {(3, 0), (3, 1), (3, 2), (1, 0)}
    assert all(np.isfinite(vector).all() for vector in trained.values())
