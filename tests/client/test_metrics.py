"""Figures of quality that leave a silo: measured on what was held out, bounded for each user, noised, or withheld."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from client.place import Place
from client.silo import Silo
from client.silo_data import SiloData
from client.trainer import release_metrics
from common.config import Config
from common.data.population import load_population
from common.data.split import without_last
from common.errors import DataError, ErrorCode
from common.model.resident import resident
from common.privacy.events import GaussianMetrics
from common.privacy.plan import METRICS_MAX_NORM, PrivacyPlan, plan_for
from common.protocol import METRICS, Refusal
from simulations.evaluate import Evaluator
from tests import tiny
from tests.client import small_silo
from tests.client.test_silo import ask_train

ALARM = 1e-7


def silo_data(config: Config, index: int = 0) -> SiloData:
    return Silo(config, Place(index, simulated=True)).data


def unprotected(config: Config) -> PrivacyPlan:
    return plan_for(config, 10, 10)


@pytest.mark.parametrize("settings", [{}, {"partition__by": "catalogue", "partition__overlap": 0.5}], ids=["all", "assortments"])
def test_the_figures_are_those_that_an_evaluation_from_outside_finds(settings: dict[str, object]) -> None:
    config = tiny.config(**settings)
    home = resident(config)
    evaluator = Evaluator(config, load_population(config), home.model, home.manifest)
    judged = evaluator.judge(home.start, "validation").evaluation
    for silo in range(2):
        own = judged.users(evaluator.silo == silo)
        k = config.evaluation.k
        expected = [own.ndcg(k).sum(), own.hit_rate(k).sum()]
        np.testing.assert_allclose(
            release_metrics(home.model, silo_data(config, silo), config, unprotected(config)), expected, rtol=1e-5
        )


def test_no_held_out_item_is_trained_on() -> None:
    """The history ends before the held-out item: by the split, and by taking each user's last interaction away."""
    config = tiny.config()
    split = load_population(config).silo_split(0)
    data = silo_data(config)
    assert data.held_out is not None
    np.testing.assert_array_equal(data.held_out, split.validation_target)
    whole = load_population(config).dataset
    shorter, last = without_last(whole)
    for user, history in enumerate(whole.interactions.histories()):
        assert last[user] == history[-1]
        np.testing.assert_array_equal(shorter.interactions.histories()[user], history[:-1])


def test_one_user_moves_the_figures_by_at_most_the_norm() -> None:
    config = tiny.config()
    model, data = resident(config).model, silo_data(config)
    assert data.held_out is not None
    whole = release_metrics(model, data, config, unprotected(config)).astype(np.float64)
    for user in range(len(data.histories)):
        others = [u for u in range(len(data.histories)) if u != user]
        without = SiloData(
            tuple(data.histories[u] for u in others),
            tuple(data.text[u] for u in others),
            data.n_items,
            data.window,
            data.item_mask,
            data.held_out[others],
        )
        moved = whole - release_metrics(model, without, config, unprotected(config))
        assert np.linalg.norm(moved) <= METRICS_MAX_NORM * (1 + 1e-5)
        assert (moved > -1e-5).all()


def test_the_noise_of_the_figures_has_the_claimed_standard_deviation() -> None:
    """Chi-square of 400 releases; false alarm once in 10 million."""
    config = tiny.config(privacy__mode="silo", privacy__metrics_share=0.2)
    plan = small_silo.plan(config, metrics_noise_multiplier=2.3)
    nobody = replace(silo_data(tiny.config()), histories=(), text=(), held_out=np.zeros(0, np.int32))
    model = resident(config).model
    z = np.concatenate([release_metrics(model, nobody, config, plan) for _ in range(400)]) / plan.metrics_noise_std
    assert plan.metrics_noise_std == 2.3 * METRICS_MAX_NORM
    assert stats.chi2.ppf(ALARM / 2, 800) < (z.astype(np.float64) ** 2).sum() < stats.chi2.isf(ALARM / 2, 800)


def test_figures_are_withheld_unless_the_run_pays_for_them(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = tiny.config(privacy__mode="silo")
    with pytest.raises(Refusal, match=r"metrics_share = 0") as caught:
        Silo(config, Place(0, tmp_path, simulated=True)).metrics(ask_train(config, 2))
    assert caught.value.code is ErrorCode.BAD_REQUEST


def test_the_plan_pays_for_the_figures_out_of_the_same_budget() -> None:
    config = tiny.config(privacy__mode="silo", privacy__metrics_share=0.2)
    plan, without = plan_for(config, 20, 20), plan_for(tiny.config(privacy__mode="silo"), 20, 20)
    assert isinstance(plan.all_events()[-1], GaussianMetrics)
    assert plan.noise_multiplier > without.noise_multiplier
    assert plan.epsilon_after(config.federation.rounds + 1) == pytest.approx(config.privacy.epsilon, rel=1e-4)


def test_a_silo_that_holds_nothing_out_tells_nothing() -> None:
    config = tiny.config()
    with pytest.raises(DataError, match="holds no interactions out"):
        release_metrics(resident(config).model, replace(silo_data(config), held_out=None), config, unprotected(config))


def test_metrics_are_asked_of_the_last_round_only() -> None:
    config = tiny.config(privacy__metrics_share=0.1)
    with pytest.raises(Refusal, match=rf"{METRICS}: round 1 is outside 2..2"):
        Silo(config, Place(0, simulated=True)).metrics(ask_train(config, 1))
