"""A planted canary goes the way of a real user: in the sample, clipped, summed, noised; and disturbs nobody."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from client.trainer import train_round
from common.errors import PrivacyError
from common.model.adapter import from_vector, to_vector
from common.model.resident import resident
from simulations.attacks.planting import (
    GradientCanaries,
    choose_canaries,
    log_likelihood_ratio,
    made_up_histories,
    places_for,
    step_of,
    train_with_canaries,
    with_users,
)
from simulations.watch import Silent
from tests.client.small_silo import latest_windows, no_noise
from tests.simulations.attacks import canary_run


def half(n: int) -> np.ndarray:
    return np.arange(n) % 2 == 0


@pytest.mark.parametrize("physical", [7, 512])
def test_without_noise_a_canary_moves_its_own_number_by_one_clip_a_step(physical: int, monkeypatch: pytest.MonkeyPatch) -> None:
    no_noise(monkeypatch)
    config, plan = canary_run.run(training__physical_batch_size=physical, training__local_steps=3, federation__rounds=2)
    rng = np.random.default_rng(0)
    canaries = choose_canaries(config, plan, 40, rng)
    seen = train_with_canaries(config, plan, canaries, half(40), rng, watch=Silent())
    np.testing.assert_allclose(seen, np.broadcast_to(3.0 * half(40), (2, 40)), atol=1e-3)


def test_numbers_without_a_canary_do_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of what moved is one clip for each canary: what the model itself would have learnt from its history is gone."""
    no_noise(monkeypatch)
    config, plan = canary_run.run(federation__rounds=1)
    rng = np.random.default_rng(1)
    canaries, home = choose_canaries(config, plan, 20, rng), resident(config)
    from_vector(home.model, home.start, home.manifest)
    data = with_users(config, made_up_histories(20, 2, home.model.n_items, None, rng), None)
    plant = canaries.plant(home.manifest, np.arange(20))
    update = train_round(home.model, data, config, plan, round_number=1, silo_seed=0, plant=plant).update
    from_vector(home.model, home.start, home.manifest)
    expected = np.zeros(home.manifest.n_parameters)
    expected[canaries.places] = -step_of(config, plan) * canaries.signs
    np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-9)
    plain = train_round(home.model, data, config, plan, round_number=1, silo_seed=0).update
    from_vector(home.model, home.start, home.manifest)
    assert (plain != 0).sum() > 1000, "without canaries these users would have moved the model"


def test_real_users_beside_canaries_contribute_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise: the update with real users and canaries is the sum of the updates with each alone."""
    no_noise(monkeypatch)
    latest_windows(monkeypatch)
    config, plan = canary_run.run(federation__rounds=1, model__lora_dropout=0.0, training__physical_batch_size=5)
    rng = np.random.default_rng(2)
    home = resident(config)
    for module in home.model.modules():
        if type(module).__name__ == "Dropout":
            monkeypatch.setattr(module, "p", 0.0)
    people = with_users(config, made_up_histories(9, 3, home.model.n_items, None, rng), None)
    canaries = choose_canaries(config, plan, 8, rng)

    def update(data: object, who: np.ndarray) -> np.ndarray:
        from_vector(home.model, home.start, home.manifest)
        plant = canaries.plant(home.manifest, who)
        out = train_round(home.model, data, config, plan, round_number=1, silo_seed=0, plant=plant).update  # type: ignore[arg-type]
        from_vector(home.model, home.start, home.manifest)
        return out.astype(np.float64)

    nobody = np.full(9, -1, dtype=np.int64)
    histories = made_up_histories(8, 2, home.model.n_items, None, rng)
    both = update(with_users(config, histories, people), np.concatenate([nobody, np.arange(8)]))
    alone, planted = update(people, nobody), update(with_users(config, histories, None), np.arange(8))
    assert np.linalg.norm(alone) > 0
    np.testing.assert_allclose(both, alone + planted, atol=2e-9 + 1e-4 * np.abs(both).max())


def test_an_audit_leaves_the_model_as_it_was() -> None:
    config, plan = canary_run.run(federation__rounds=1)
    home, rng = resident(config), np.random.default_rng(3)
    train_with_canaries(config, plan, choose_canaries(config, plan, 10, rng), half(10), rng, watch=Silent())
    np.testing.assert_array_equal(to_vector(home.model), home.start)


def test_canaries_keep_to_what_is_trained_and_exact_enough() -> None:
    config, plan = canary_run.run()
    home = resident(config)
    assert len(places_for(config, plan)) == home.manifest.n_parameters
    frozen, plan = canary_run.run(model__train_bias=False, model__train_scale=False)
    bias = home.manifest.slice("bias.weight")
    places = places_for(frozen, plan)
    assert len(places) == resident(frozen).manifest.n_parameters - 60
    assert "scale.weight" not in resident(frozen).manifest.names
    assert not ((places >= bias.start) & (places < bias.stop)).any()
    slow, plan = canary_run.run(training__learning_rate=1e-5)
    exact = places_for(slow, plan)
    start = np.abs(resident(slow).start)
    assert 1000 < len(exact) < len(start)
    assert start[exact].max() < np.delete(start, exact).min()
    adam, plan = canary_run.run(training__optimizer="adam", training__learning_rate=1e-5)
    assert len(places_for(adam, plan)) == len(start)


def test_more_canaries_than_numbers_are_refused_with_how_many_fit() -> None:
    config, plan = canary_run.run()
    fit = len(places_for(config, plan))
    assert len(np.unique(choose_canaries(config, plan, fit, np.random.default_rng(0)).places)) == fit
    with pytest.raises(PrivacyError, match=f"at most {fit} canaries"):
        choose_canaries(config, plan, fit + 1, np.random.default_rng(0))


def test_canaries_that_share_a_number_are_refused() -> None:
    with pytest.raises(PrivacyError, match="different places"):
        GradientCanaries(np.array([3, 3]), np.ones(2, dtype=np.float32), 10.0)
    with pytest.raises(PrivacyError, match="norm"):
        GradientCanaries(np.array([3]), np.ones(1, dtype=np.float32), 0.0)


@pytest.mark.parametrize(("steps", "q", "sigma"), [(1, 0.25, 1.8), (4, 0.25, 1.2), (3, 1.0, 2.0), (5, 0.9, 0.7)])
def test_the_score_is_the_ratio_of_the_two_densities(steps: int, q: float, sigma: float) -> None:
    """Against the densities written down with SciPy's normal and binomial."""
    _, plan = canary_run.run()
    plan = replace(plan, steps_per_round=steps, sampling_probability=q, noise_multiplier=sigma)
    seen = np.random.default_rng(4).normal(1.0, 3.0, (3, 50))
    spread = sigma * np.sqrt(steps)
    inside = sum(stats.binom.pmf(k, steps, q) * stats.norm.pdf(seen, k, spread) for k in range(steps + 1))
    expected = np.log(inside / stats.norm.pdf(seen, 0, spread)).sum(axis=0)
    np.testing.assert_allclose(log_likelihood_ratio(seen, plan), expected, rtol=1e-8, atol=1e-10)
