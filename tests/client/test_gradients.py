"""Each user's gradient is that user's alone, is clipped as one, and nobody moves the sum by more than the clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleHooks

import client.dp_steps
from client import grad_samplers  # noqa: F401  registers layers
from client.dp_steps import per_user_gradients
from client.trainer import train_round
from common.data.catalogue import Catalogue
from tests.client import small_silo

BACKBONES = ("tiny-bert", "tiny-llama")
VARIANTS: dict[str, dict[str, Any]] = {
    "full correction": {},
    "low-rank correction": {"model__correction_rank": 4, "model__normalise_query": False},
    "no item factors, no input map": {"model__item_dim": 0, "model__input_map": False},
    "frozen scale and bias": {"model__train_scale": False, "model__train_bias": False},
    "top layer only": {"model__lora_layers": 1},
    "no LoRA": {"model__lora_rank": 0},
    "label smoothing": {"training__label_smoothing": 0.2},
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mask", [False, True], ids=["sells all", "sells some"])
def test_gradients_of_a_batch_are_those_of_a_loop_over_single_users(
    backbone: str, variant: str, mask: bool, catalogue: Catalogue
) -> None:
    config = small_silo.config(model__backbone=backbone, **VARIANTS[variant])
    model, data = small_silo.model(config, catalogue), small_silo.data(mask=mask)
    alone = small_silo.gradients_one_by_one(model, data, config)
    hooks = GradSampleHooks(model, loss_reduction="sum", strict=False)
    model.train()
    per_user_gradients(model, *data.batch(range(9)), data, config)
    for name, parameter in small_silo.trainable(model).items():
        together = parameter.grad_sample
        assert together.shape == (9, *parameter.shape)
        expected = torch.stack([g[name] for g in alone])
        assert expected.abs().max() > 1e-6, f"{name}: nothing to compare"
        assert (together - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max())), name
        assert not together[1].any(), "who met nothing has no gradient"
        assert not together[2].any(), "nor has who met one item: there is no next"
    hooks.cleanup()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("physical", [1, 2, 4, 100])
def test_a_step_is_the_sum_of_clipped_gradients_over_the_expected_batch(
    backbone: str, physical: int, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGD with rate 1: the update times the expected batch size is minus the clipped sum, however it is cut into batches."""
    small_silo.no_noise(monkeypatch)
    small_silo.latest_windows(monkeypatch)
    config = small_silo.config(model__backbone=backbone, training__physical_batch_size=physical)
    model, data = small_silo.model(config, catalogue), small_silo.data()
    alone = [small_silo.flat(g) for g in small_silo.gradients_one_by_one(model, data, config)]
    norms = [float(np.linalg.norm(g)) for g in alone]
    clip = float(np.median([n for n in norms if n]))
    expected = sum(g * min(1.0, clip / n) for g, n in zip(alone, norms, strict=True) if n)
    plan = small_silo.plan(config, max_grad_norm=clip, expected_batch_size=4.0)
    result = train_round(model, data, config, plan, round_number=1, silo_seed=0)
    np.testing.assert_allclose(-4.0 * result.update, expected, rtol=0, atol=2e-5)
    assert np.linalg.norm(expected) > 0.1 * clip


@pytest.mark.parametrize("clip", [1e-3, 0.1, 1e6])
def test_a_user_with_a_thousand_interactions_moves_the_sum_by_at_most_the_clip(
    clip: float, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_silo.no_noise(monkeypatch)
    small_silo.latest_windows(monkeypatch)
    config = small_silo.config()
    plan = small_silo.plan(config, max_grad_norm=clip, expected_batch_size=clip)
    assert len(small_silo.data().histories[8]) == 1000

    def moved(users: range) -> np.ndarray:
        model = small_silo.model(config, catalogue)
        return train_round(model, small_silo.data(users), config, plan, round_number=1, silo_seed=0).update.astype(np.float64)

    difference = float(np.linalg.norm(moved(range(9)) - moved(range(8))))
    assert 0 < difference <= 1.0 + 1e-3  # in units of the clip; float32 differences of parameters near 10 round at 1e-6 each
    if clip == 1e-3:
        assert difference > 0.9


def test_a_gradient_that_is_not_finite_is_dropped_and_harms_nobody(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_silo.config()
    model, data = small_silo.model(config, catalogue), small_silo.data()
    alone = small_silo.gradients_one_by_one(model, data, config)
    spoilt = torch.ones(9)
    spoilt[5], spoilt[6] = float("nan"), float("inf")
    real = client.dp_steps.user_losses
    monkeypatch.setattr(client.dp_steps, "user_losses", lambda *arguments: real(*arguments) * spoilt)
    hooks = GradSampleHooks(model, loss_reduction="sum", strict=False)
    model.train()
    per_user_gradients(model, *data.batch(range(9)), data, config)
    for name, parameter in small_silo.trainable(model).items():
        gradient = parameter.grad_sample
        assert torch.isfinite(gradient).all()
        assert not gradient[5].any()
        for user in (0, 3, 4, 7, 8):
            assert (gradient[user] - alone[user][name]).abs().max() <= 1e-5
    hooks.cleanup()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_half_precision_gives_float32_gradients_that_point_the_same_way(backbone: str, catalogue: Catalogue) -> None:
    config = small_silo.config(model__backbone=backbone, run__precision="bfloat16")
    model, data = small_silo.model(config, catalogue), small_silo.data()
    alone = small_silo.gradients_one_by_one(model, data, config)
    hooks = GradSampleHooks(model, loss_reduction="sum", strict=False)
    model.train()
    per_user_gradients(model, *data.batch(range(9)), data, config)
    parameters = small_silo.trainable(model)
    assert {p.grad_sample.dtype for p in parameters.values()} == {torch.float32}
    for user in (0, 4, 8):
        half = small_silo.flat({name: p.grad_sample[user] for name, p in parameters.items()})
        full = small_silo.flat(alone[user])
        assert half @ full / (np.linalg.norm(half) * np.linalg.norm(full)) > 0.99
    hooks.cleanup()


def test_the_oracle_sees_no_dropout(catalogue: Catalogue) -> None:
    """Guards the tests above: in training mode two passes are equal here, and differ where dropout is left on."""
    for backbone in BACKBONES:
        config = small_silo.config(model__backbone=backbone)
        for dropout in (False, True):
            model = small_silo.model(config, catalogue, dropout=dropout).train()
            batch, _ = small_silo.data().batch(range(9))
            assert torch.equal(model(batch), model(batch)) is not dropout
