"""The three views of one update: the mean gradient, words behind a mask, and the silo's own private round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

import client.trainer
from common.errors import PrivacyError
from common.model.resident import resident
from simulations.attacks.target import some_users
from simulations.attacks.views import FIXED_POINT, through_mask, uniform_words, updates
from tests.client import small_silo
from tests.simulations.attacks import attacked_silo
from tests.simulations.attacks.test_gradients import one_by_one

PRIVATE = {"privacy__mode": "silo", "training__local_steps": 3, "training__optimizer": "adamw"}


def no_mask(n: int) -> np.ndarray:
    return np.zeros(n, dtype=np.uint32)


def test_the_unprotected_update_is_a_step_along_the_mean_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever optimiser, steps and epochs the silo's own rounds have."""
    small_silo.latest_windows(monkeypatch)
    config = attacked_silo.config(
        **PRIVATE, model__lora_dropout=0.0, training__local_epochs=2, training__gradient_clip=1e9, training__learning_rate=0.1
    )
    silo, start = some_users(attacked_silo.data(config), range(5)), attacked_silo.moved_start(config)
    for module in resident(config).model.modules():
        if hasattr(module, "p") and hasattr(module, "inplace"):
            monkeypatch.setattr(module, "p", 0.0)
    attention = [m for m in resident(config).model.modules() if hasattr(m, "attention_head_size")]
    for module in attention:
        if hasattr(module, "dropout"):
            monkeypatch.setattr(module.dropout, "p", 0.0)
    seen = updates(config, silo, attacked_silo.plan(config), start, seed=0)["unprotected"]
    predictions = sum(min(len(history), silo.window + 1) - 1 for history in silo.histories)
    expected = -0.1 * one_by_one(config, silo, start).sum(axis=0) * silo.window / predictions
    np.testing.assert_allclose(seen, expected, atol=2e-6 + 1e-4 * np.abs(expected).max())


def test_without_a_mask_fixed_point_keeps_six_decimals_and_signs() -> None:
    update = np.random.default_rng(0).normal(0, 100, 5000)
    np.testing.assert_allclose(through_mask(update, no_mask), update, atol=0.5 / FIXED_POINT)


def test_whoever_knows_the_mask_can_take_it_off() -> None:
    update = np.random.default_rng(0).normal(0, 100, 5000)
    words = uniform_words(5000)
    masked = np.rint(through_mask(update, lambda n: words) * FIXED_POINT).astype(np.int64).astype(np.uint32)
    bare = (masked - words).view(np.int32) / FIXED_POINT
    np.testing.assert_array_equal(bare, through_mask(update, no_mask))


@pytest.mark.parametrize("size", [0.0, 1e-3, 100.0])
def test_behind_a_mask_every_update_looks_alike(size: float) -> None:
    """Uniform words whatever was sent: Kolmogorov and Smirnov, and bytes by chi-square; each a false alarm once in 10 million."""
    update = np.full(20_000, size)
    seen = through_mask(update, uniform_words)
    words = np.rint(seen * FIXED_POINT).astype(np.int64).astype(np.uint32)
    assert stats.kstest(words / 2**32, "uniform").pvalue > 1e-7
    counts = np.bincount(words.view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-7
    assert (through_mask(update, uniform_words) != seen).mean() > 0.999


def test_masked_is_the_very_update_that_is_unprotected() -> None:
    config = attacked_silo.config(**PRIVATE)
    silo, start = some_users(attacked_silo.data(config), range(5)), resident(config).start
    seen = updates(config, silo, attacked_silo.plan(config), start, seed=0, mask=no_mask)
    np.testing.assert_allclose(seen["masked"], seen["unprotected"], atol=0.5 / FIXED_POINT)
    assert not np.allclose(seen["private"], seen["unprotected"], atol=1e-3)


def test_the_private_update_is_a_round_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    config = attacked_silo.config(**PRIVATE)
    plan, silo, start = attacked_silo.plan(config), attacked_silo.data(config), attacked_silo.moved_start(config)
    rounds: list[Any] = []
    real = client.trainer.train_round

    def watched(model: Any, data: Any, config: Any, plan: Any, **options: Any) -> Any:
        from common.model.adapter import to_vector

        rounds.append((config, plan, data, to_vector(model)))
        return real(model, data, config, plan, **options)

    monkeypatch.setattr(client.trainer, "train_round", watched)
    updates(config, silo, plan, start, seed=0)
    (plain, bare_plan, _, from_bare), (private, private_plan, users, from_private) = rounds
    assert (private, private_plan) == (config, plan)
    assert users is silo
    assert (plain.privacy.mode, bare_plan.mode, plain.training.optimizer) == ("none", "none", "sgd")
    np.testing.assert_array_equal(from_bare, start)
    np.testing.assert_array_equal(from_private, start)


@pytest.mark.parametrize("mask", [lambda n: np.zeros(n + 1, dtype=np.uint32), lambda n: np.zeros(n, dtype=np.int32)])
def test_a_mask_that_is_none_is_refused(mask: Any) -> None:
    with pytest.raises(PrivacyError, match="expected uint32"):
        through_mask(np.zeros(3), mask)
