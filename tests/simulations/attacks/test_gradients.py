"""Gradients that anybody can compute are those of a loop over single users, and regressions are those of least squares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.silo_data import SiloData, user_losses
from common.config import Config
from common.errors import PrivacyError
from common.model.adapter import from_vector
from common.model.resident import resident
from simulations.attacks import gradients
from simulations.attacks.gradients import cosines, item_gradients, regressed, ridge_for, user_gradients
from simulations.attacks.target import some_users
from tests.simulations.attacks import attacked_silo

FROZEN = {"model__train_bias": False, "model__lora_layers": 1, "model__input_map": False}


def one_by_one(config: Config, silo: SiloData, start: np.ndarray) -> np.ndarray:
    """No hooks, one user at a time."""
    home = resident(config)
    from_vector(home.model, start, home.manifest)
    home.model.eval()
    out = np.zeros((len(silo.histories), len(start)))
    for user in range(len(silo.histories)):
        home.model.zero_grad(set_to_none=True)
        user_losses(home.model, *silo.batch([user]), silo).sum().backward()
        for name, parameter in home.model.named_parameters():
            if name in home.manifest.names and parameter.grad is not None:
                out[user, home.manifest.slice(name)] = parameter.grad.double().numpy().ravel()
    home.model.zero_grad(set_to_none=True)
    return out


@pytest.mark.parametrize("settings", [{}, FROZEN])
def test_gradients_are_those_of_each_user_alone_clipped(settings: dict[str, Any]) -> None:
    config = attacked_silo.config(**settings, training__physical_batch_size=4)
    silo = some_users(attacked_silo.data(config), range(10))
    silo = replace(silo, histories=(*silo.histories[:9], silo.histories[9][:1]))
    start = attacked_silo.moved_start(config)
    expected = one_by_one(config, silo, start)
    norms = np.linalg.norm(expected, axis=1)
    clip = float(np.median(norms))
    found = user_gradients(config, silo, start, clip)
    assert norms.max() > clip > norms[norms > 0].min()
    np.testing.assert_allclose(found, expected * np.minimum(1, clip / np.maximum(norms, 1e-12))[:, None], atol=2e-5 * clip)
    assert not found[9].any()


def test_the_model_is_left_as_it_was() -> None:
    config = attacked_silo.config()
    model = resident(config).model

    def traces() -> list[Any]:
        of_parameters = [(name, p.grad is None, getattr(p, "grad_sample", None) is None) for name, p in model.named_parameters()]
        hooks = [
            (name, len(m._forward_hooks), len(m._backward_hooks), m.training, sorted(vars(m)))
            for name, m in model.named_modules()
        ]
        return of_parameters + hooks

    before = traces()
    user_gradients(config, some_users(attacked_silo.data(config), range(3)), resident(config).start, 1.0)
    assert traces() == before


def test_item_gradients_tell_items_apart_and_use_nothing_private() -> None:
    config = attacked_silo.config()
    silo, home = attacked_silo.data(config), resident(config)
    sold = np.arange(0, 60, 2)

    def probes(data: SiloData) -> np.ndarray:
        return item_gradients(config, data, sold, home.start, np.random.default_rng(0))

    found = probes(silo)
    assert found.shape == (30, len(home.start))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-6)
    biases = found[:, home.manifest.slice("bias.weight")][:, sold]
    assert (biases.argmin(axis=1) == np.arange(30)).all()
    np.testing.assert_array_equal(found, probes(some_users(silo, [0])))


def test_regression_is_ridge_regression() -> None:
    """Against least squares on the augmented matrix."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 50)).astype(np.float32)
    update = rng.normal(size=50)
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float64)
    for ridge in (0.05, 2.0):
        stacked = np.vstack([unit.T, np.sqrt(ridge) * np.eye(12)])
        expected = np.linalg.lstsq(stacked, np.concatenate([-update, np.zeros(12)]), rcond=None)[0]
        np.testing.assert_allclose(regressed(update, rows, ridge), expected, atol=1e-5)


def test_regression_finds_the_parts_of_an_update_among_similar_gradients() -> None:
    rng = np.random.default_rng(1)
    rows = (3 * rng.normal(size=300) + rng.normal(size=(40, 300))).astype(np.float32)  # all nearly the same direction
    present = np.arange(40) < 20
    found = regressed(-rows[present].sum(axis=0).astype(np.float64), rows, 0.05)
    assert found[present].min() > found[~present].max()


def test_cosines_are_cosines_with_the_way_that_the_update_went() -> None:
    rng = np.random.default_rng(2)
    rows, update = rng.normal(size=(5, 9)).astype(np.float32), rng.normal(size=9)
    expected = [-(row @ update) / (np.linalg.norm(row) * np.linalg.norm(update)) for row in rows]
    np.testing.assert_allclose(cosines(update, rows), expected, rtol=1e-5)
    assert cosines(np.zeros(9), np.zeros((2, 9), dtype=np.float32)).tolist() == [0, 0]


def test_the_ridge_grows_with_noise_and_shrinks_with_steps() -> None:
    assert ridge_for(0.0, 4) == gradients.RIDGE
    assert ridge_for(3.0, 1) == pytest.approx(36 + gradients.RIDGE)
    assert ridge_for(3.0, 4) == pytest.approx(9 + gradients.RIDGE)


def test_gradients_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "MOST_BYTES", 1000)
    config = attacked_silo.config()
    with pytest.raises(PrivacyError, match="attack with fewer candidates"):
        user_gradients(config, attacked_silo.data(config), resident(config).start, 1.0)
