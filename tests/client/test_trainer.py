"""A round of local training: its noise, its samples, what it leaves behind, and that it learns."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import client.dp_steps
import client.trainer
from client.dp_steps import poisson_sample
from client.silo_data import SiloData, user_losses
from client.trainer import LocalResult, release_counts, train_round
from common.data.catalogue import Catalogue
from common.model.adapter import from_vector, manifest_of, to_vector
from common.model.recommender import Batch, Recommender
from common.privacy.plan import COUNT_MAX_NORM, PrivacyPlan, plan_for
from common.privacy.rounding import grid
from common.protocol import TRAIN, check_reply
from tests.client import small_silo

ALARM = 1e-7


def nobody(data: SiloData) -> SiloData:
    return replace(data, histories=(), text=())


def standardised_noise(catalogue: Catalogue, steps: int, users: bool = False, probability: float = 1.0) -> np.ndarray:
    """The update of a run without users, in units of the claimed standard deviation."""
    config = small_silo.config(training__local_steps=steps, training__sampling_probability=probability)
    plan = small_silo.plan(config, noise_multiplier=1.7, max_grad_norm=0.5, expected_batch_size=2.0)
    model = small_silo.model(config, catalogue)
    data = small_silo.data() if users else nobody(small_silo.data())
    result = train_round(model, data, config, plan, round_number=1, silo_seed=3)
    assert result.steps == steps
    return result.update.astype(np.float64) * 2.0 / (1.7 * 0.5 * np.sqrt(steps))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_noise_of_a_step_has_the_claimed_standard_deviation(steps: int, catalogue: Catalogue) -> None:
    """SGD with rate 1 and nobody there leaves the noise alone: chi-square, mean and shape; false alarm once in 3 million."""
    z = standardised_noise(catalogue, steps)
    n = len(z)
    assert n > 2000
    assert stats.chi2.ppf(ALARM / 2, n) < (z**2).sum() < stats.chi2.isf(ALARM / 2, n)
    assert abs(z.sum()) / np.sqrt(n) < stats.norm.isf(ALARM / 2)
    assert stats.kstest(z, "norm").pvalue > ALARM


def test_an_empty_sample_still_takes_noisy_steps(catalogue: Catalogue) -> None:
    """Users are there, none is drawn (chance of one: 2e-11 per run). False alarm about once in 5 million.

    Noise lies on a grid (common/privacy/rounding.py), so some of it is 0: about one number of the thousands here."""
    z = standardised_noise(catalogue, steps=2, users=True, probability=1e-12)
    share_of_zeros = stats.norm.pdf(0) * grid(1.0) / np.sqrt(2)  # of two steps on the coarsest grid there is
    assert (z == 0).sum() <= stats.poisson.isf(ALARM, len(z) * share_of_zeros)
    assert stats.chi2.ppf(ALARM / 2, len(z)) < (z**2).sum() < stats.chi2.isf(ALARM / 2, len(z))


def test_the_same_seed_does_not_bring_the_noise_back(catalogue: Catalogue) -> None:
    first, second = standardised_noise(catalogue, 1), standardised_noise(catalogue, 1)
    assert (first == second).mean() < 0.01  # float32 rounding of a parameter near 10 may agree by chance
    assert abs(np.corrcoef(first, second)[0, 1]) * np.sqrt(len(first)) < 5.5  # 1 in 26 million


def test_nothing_in_a_private_round_follows_the_public_seed(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody is sampled and no noise is added: what differs between two runs are windows alone, then dropout alone. Were they
    drawn from a seed that others know, one user more would shift the draws of all users after."""
    small_silo.no_noise(monkeypatch)
    config = small_silo.config()
    plan = small_silo.plan(config)

    def update(dropout: bool) -> np.ndarray:
        model = small_silo.model(config, catalogue, dropout=dropout)
        return train_round(model, small_silo.data(), config, plan, round_number=1, silo_seed=3).update

    windows = {update(dropout=False).tobytes() for _ in range(8)}
    assert len(windows) > 1  # all eight alike by chance: about 1 in a billion
    small_silo.latest_windows(monkeypatch)
    assert len({update(dropout=False).tobytes() for _ in range(2)}) == 1
    assert len({update(dropout=True).tobytes() for _ in range(2)}) == 2


@pytest.mark.parametrize("probability", [0.03, 0.25, 0.9])
def test_samples_are_independent_coins_for_each_user(probability: float) -> None:
    """Sizes against Binomial, each user's and each pair's share against its expectation; false alarm about once in a million."""
    n_users, draws = 60, 4000
    drawn = np.zeros((draws, n_users), dtype=bool)
    for row in drawn:
        row[poisson_sample(n_users, probability)] = True
    sizes = drawn.sum(1)
    low, high = int(stats.binom.ppf(0.02, n_users, probability)), int(stats.binom.ppf(0.98, n_users, probability))
    edges = np.arange(low, high + 1)
    observed = np.array([(sizes <= low).sum(), *((sizes == k).sum() for k in edges[1:]), (sizes > high).sum()])
    cumulative = stats.binom.cdf(edges, n_users, probability)
    expected = draws * np.diff([0.0, *cumulative, 1.0])
    assert stats.chisquare(observed, expected).pvalue > 1e-7
    deviation = np.sqrt(draws * probability * (1 - probability))
    assert np.abs(drawn.sum(0) - draws * probability).max() < 6.5 * deviation
    together = drawn.T.astype(float) @ drawn
    pair = probability**2
    off = ~np.eye(n_users, dtype=bool)
    assert np.abs(together - draws * pair)[off].max() < 6.5 * np.sqrt(draws * pair * (1 - pair))


def test_certain_and_empty_samples() -> None:
    np.testing.assert_array_equal(poisson_sample(5, 1.0), np.arange(5))
    assert len(poisson_sample(0, 0.5)) == 0
    assert len(poisson_sample(1000, 1e-15)) == 0
    assert poisson_sample(10, 0.5).dtype == np.int64


def test_counts_are_plain_without_protection() -> None:
    config = small_silo.config(privacy__mode="none")
    data = small_silo.data()
    expected = np.zeros(small_silo.N_ITEMS)
    for history in data.histories:
        for item in history:
            expected[item] += 1
    np.testing.assert_array_equal(release_counts(data, config, small_silo.plan(config)), expected)


def test_one_user_moves_the_counts_by_at_most_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    small_silo.no_noise(monkeypatch)
    config = small_silo.config()
    plan = small_silo.plan(config)
    everybody = release_counts(small_silo.data(), config, plan).astype(np.float64)
    for user in range(9):
        others = [u for u in range(9) if u != user]
        moved = np.linalg.norm(everybody - release_counts(small_silo.data(others), config, plan))
        expected = COUNT_MAX_NORM if len(small_silo.histories()[user]) else 0.0
        assert moved == pytest.approx(expected, abs=1e-5)


def test_the_noise_of_counts_has_the_claimed_standard_deviation() -> None:
    """Chi-square; false alarm once in 10 million. Two releases differ."""
    config = small_silo.config()
    plan = small_silo.plan(config, count_noise_multiplier=2.3)
    data = replace(nobody(small_silo.data()), n_items=5000)
    first, second = (release_counts(data, config, plan) for _ in range(2))
    z = first.astype(np.float64) / plan.count_noise_std
    assert plan.count_noise_std == 2.3 * COUNT_MAX_NORM
    assert stats.chi2.ppf(ALARM / 2, 5000) < (z**2).sum() < stats.chi2.isf(ALARM / 2, 5000)
    assert (first != second).mean() > 0.99  # both lie on a grid of a thousand steps to a standard deviation
    assert first.dtype == np.float32


@pytest.mark.parametrize("mode", ["none", "silo"])
def test_one_user_more_changes_nothing_that_is_public(mode: str, catalogue: Catalogue) -> None:
    """Without the user with a thousand interactions, without another, without anybody."""
    config = small_silo.config(privacy__mode=mode, training__sampling_probability=0.5, training__local_steps=3)

    def public(users: range) -> dict[str, Any]:
        model, data = small_silo.model(config, catalogue), small_silo.data(users)
        plan = plan_for(config, 10, 10)
        result = train_round(model, data, config, plan, round_number=1, silo_seed=0)
        check_reply(TRAIN, {"update": result.update}, manifest_of(model).n_parameters)
        counts = release_counts(data, config, plan)
        return {
            "plan": plan,
            "events": plan.all_events(),
            "manifest": manifest_of(model).hash,
            "fields": [(f.name, type(getattr(result, f.name)).__name__) for f in fields(result)],
            "update": (result.update.shape, result.update.dtype),
            "steps": result.steps if mode == "silo" else None,
            "counts": (counts.shape, counts.dtype),
        }

    assert public(range(9)) == public(range(8)) == public(range(1, 9))
    if mode == "silo":
        assert public(range(9)) == public(range(0))


def test_a_private_round_tells_no_loss(catalogue: Catalogue) -> None:
    config = small_silo.config()
    result = train_round(
        small_silo.model(config, catalogue), small_silo.data(), config, small_silo.plan(config), round_number=1, silo_seed=0
    )
    assert result.loss is None
    assert np.isfinite(result.update).all()


def traces(model: Recommender) -> list[tuple[str, list[str]]]:
    """Everything that hangs on parameters and modules besides their values."""
    of_parameters = [(name, sorted(vars(p))) for name, p in model.named_parameters()]
    of_modules = [
        (name, [*sorted(vars(m)), f"{len(m._forward_hooks)} {len(m._backward_hooks)} {len(m._forward_pre_hooks)} {m.training}"])
        for name, m in model.named_modules()
    ]
    return of_parameters + of_modules


def run(model: Recommender, start: np.ndarray, mode: str, seed: int = 1) -> LocalResult:
    config = small_silo.config(
        privacy__mode=mode, training__optimizer="adamw", training__learning_rate=0.01, training__local_steps=3
    )
    from_vector(model, start, manifest_of(model))
    return train_round(model, small_silo.data(), config, small_silo.plan(config), round_number=1, silo_seed=seed)


@pytest.mark.parametrize("broken_off", [False, True])
def test_a_round_leaves_nothing_behind_in_the_model(
    broken_off: bool, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_silo.model(small_silo.config(), catalogue)
    start, before = to_vector(model), traces(model)
    for mode in ("silo", "none"):
        if broken_off:
            with monkeypatch.context() as broken:
                broken.setattr(client.dp_steps if mode == "silo" else client.trainer, "user_losses", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    run(model, start, mode)
        else:
            run(model, start, mode)
        assert traces(model) == before
        assert all(p.grad is None for p in model.parameters())


def interrupted(model: Recommender, batch: Any, *others: Any) -> torch.Tensor:
    """Ctrl-C between the forward and the backward pass."""
    model(batch)
    raise KeyboardInterrupt


@pytest.mark.parametrize("between", ["none", "silo", "broken off"])
def test_a_used_model_is_as_good_as_new(between: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another silo that trains with the same model gets the very update that a fresh model gives, in both modes."""
    config = small_silo.config()
    fresh = small_silo.model(config, catalogue, dropout=True)
    start = to_vector(fresh)
    expected = run(fresh, start, "none")
    used = small_silo.model(config, catalogue, dropout=True)
    if between == "broken off":
        with monkeypatch.context() as broken:
            broken.setattr(client.dp_steps, "user_losses", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(used, start, "silo")
    else:
        run(used, start, between, seed=99)
    assert np.isfinite(run(used, start, "silo").update).all()
    again = run(used, start, "none")
    np.testing.assert_array_equal(again.update, expected.update)
    assert again.loss == expected.loss


def test_without_protection_a_round_is_determined_by_its_seed(catalogue: Catalogue) -> None:
    config = small_silo.config()
    model = small_silo.model(config, catalogue, dropout=True)
    start = to_vector(model)
    torch.manual_seed(1)
    first = run(model, start, "none", seed=5)
    torch.manual_seed(2)
    np.testing.assert_array_equal(run(model, start, "none", seed=5).update, first.update)
    assert (run(model, start, "none", seed=6).update != first.update).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"training__local_steps": 5, "training__learning_rate": 0.1},
        {"training__local_epochs": 2, "training__optimizer": "adamw", "training__learning_rate": 0.01},
        {"training__local_steps": 2, "training__label_smoothing": 0.2, "training__gradient_clip": 0.05},
    ],
    ids=["sgd", "adamw", "smoothed"],
)
def test_without_protection_a_round_is_this_loop_to_the_bit(settings: dict[str, Any], catalogue: Catalogue) -> None:
    """Nine users in batches of four, two of which fit into memory: what is drawn from the seed, in which order, and each step."""
    config = small_silo.config(
        privacy__mode="none", training__batch_size=4, training__physical_batch_size=2, training__weight_decay=0.1, **settings
    )
    training = config.training
    model, data = small_silo.model(config, catalogue, dropout=True), small_silo.data(mask=True)
    start = to_vector(model)
    result = train_round(model, data, config, small_silo.plan(config), round_number=1, silo_seed=5)
    from_vector(model, start, manifest_of(model))
    parameters = list(small_silo.trainable(model).values())
    optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=training.learning_rate)
    if training.optimizer == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=0.1)
    rng, loss, predictions, steps = np.random.default_rng(5), 0.0, 0, 0
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        while steps < (6 if training.local_epochs else training.local_steps):
            if steps % 3 == 0:
                order = rng.permutation(9)
            users = order[4 * (steps % 3) :][:4]
            lengths = np.array([len(data.histories[u]) for u in users])
            anywhere = rng.integers(np.minimum(2, lengths), lengths + 1)
            batch, targets = data.batch(users, np.where(rng.random(len(users)) < 0.5, anywhere, lengths))
            known = int((targets >= 0).sum())
            for rows in (slice(0, 2), slice(2, 4))[: (len(users) + 1) // 2]:
                part = Batch(batch.items[rows], batch.text[rows])
                summed = user_losses(model, part, targets[rows], data, training.label_smoothing).sum() * small_silo.WINDOW
                (summed / max(known, 1)).backward()
                loss += float(summed.detach())
            torch.nn.utils.clip_grad_norm_(parameters, training.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()
            predictions, steps = predictions + known, steps + 1
    model.eval()
    assert result.update.any()
    np.testing.assert_array_equal(result.update, to_vector(model) - start)
    assert (result.steps, result.loss) == (steps, loss / predictions)


def test_a_round_leaves_the_generators_of_others_alone(catalogue: Catalogue) -> None:
    model = small_silo.model(small_silo.config(), catalogue, dropout=True)
    start = to_vector(model)
    for mode in ("none", "silo"):
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        run(model, start, mode)
        assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("mode", ["none", "silo"])
@pytest.mark.parametrize("frozen", [{}, {"model__train_scale": False, "model__train_bias": False, "model__lora_layers": 1}])
def test_only_what_is_trainable_changes(mode: str, frozen: dict[str, Any], catalogue: Catalogue) -> None:
    config = small_silo.config(privacy__mode=mode, **frozen)
    model = small_silo.model(config, catalogue)
    before = {name: value.clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
    train_round(model, small_silo.data(), config, small_silo.plan(config), round_number=1, silo_seed=0)
    trained = set(small_silo.trainable(model))
    changed = {n for n, value in (*model.named_parameters(), *model.named_buffers()) if not torch.equal(value, before[n])}
    assert changed <= trained
    assert {n for n in trained if not n.startswith("backbone.")} <= changed
    assert any(n.startswith("backbone.") for n in changed)


def test_the_update_is_the_difference_that_training_made(catalogue: Catalogue) -> None:
    model = small_silo.model(small_silo.config(), catalogue)
    start = to_vector(model)
    for mode in ("none", "silo"):
        result = run(model, start, mode)
        assert result.update.any()
        np.testing.assert_array_equal(result.update, to_vector(model) - start)


@pytest.mark.parametrize("settings", [{"training__local_steps": 5}, {"training__local_epochs": 2}])
def test_steps_without_protection(settings: dict[str, Any], catalogue: Catalogue) -> None:
    """Nine users in batches of four are three batches an epoch."""
    config = small_silo.config(privacy__mode="none", training__batch_size=4, **settings)
    seen: list[int] = []
    real = SiloData.batch

    def watched(self: SiloData, users: Any, ends: Any = None) -> Any:
        seen.extend(int(u) for u in users)
        return real(self, users, ends)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SiloData, "batch", watched)
        plan = small_silo.plan(config)
        result = train_round(small_silo.model(config, catalogue), small_silo.data(), config, plan, round_number=1, silo_seed=0)
    assert result.steps == (5 if "training__local_steps" in settings else 6)
    assert sorted(seen[:9]) == list(range(9))


def test_physical_batches_change_nothing_without_protection(catalogue: Catalogue) -> None:
    def update(size: int) -> np.ndarray:
        config = small_silo.config(privacy__mode="none", training__physical_batch_size=size, training__batch_size=9)
        plan = small_silo.plan(config)
        return train_round(
            small_silo.model(config, catalogue), small_silo.data(), config, plan, round_number=1, silo_seed=0
        ).update

    np.testing.assert_allclose(update(2), update(100), atol=2e-5)


def circle(n_users: int, n_items: int) -> SiloData:
    """Everybody walks the catalogue in the same circle, from anywhere."""
    histories = tuple(((u + np.arange(10)) % n_items).astype(np.int32) for u in range(n_users))
    return SiloData(histories, ((),) * n_users, n_items, small_silo.WINDOW)


@pytest.fixture
def learnable() -> dict[str, Any]:
    return {
        "training__optimizer": "adamw",
        "training__learning_rate": 0.005,
        "training__local_epochs": 25,
        "training__batch_size": 12,
        "model__user_text": False,
    }


@pytest.mark.parametrize("backbone", ["tiny-bert", "tiny-llama"])
def test_what_can_be_learnt_is_learnt(backbone: str, learnable: dict[str, Any], catalogue: Catalogue) -> None:
    config = small_silo.config(privacy__mode="none", model__backbone=backbone, **learnable)
    model, data = small_silo.model(config, catalogue, dropout=True, shake=0.0), circle(24, small_silo.N_ITEMS)

    def hits() -> float:
        batch, targets = data.batch(range(24))
        with torch.inference_mode():
            return float((model(batch).argmax(-1) == targets)[targets >= 0].float().mean())

    at_start = hits()
    first = train_round(model, data, config, small_silo.plan(config), round_number=1, silo_seed=0)
    second = train_round(model, data, config, small_silo.plan(config), round_number=2, silo_seed=1)
    assert first.loss is not None
    assert second.loss is not None
    assert second.loss < 0.5 * first.loss
    assert at_start < 0.5
    assert hits() > 0.95


def test_private_training_learns_when_noise_is_small(learnable: dict[str, Any], catalogue: Catalogue) -> None:
    """The same path as under protection, with its noise at a hundredth: the loss falls, so sign and scale are right."""
    settings = {**learnable, "training__local_steps": 40}
    config = small_silo.config(**settings)
    model, data = small_silo.model(config, catalogue, shake=0.0), circle(24, small_silo.N_ITEMS)
    plan = small_silo.plan(config, noise_multiplier=0.01, expected_batch_size=24.0)

    def loss() -> float:
        with torch.inference_mode():
            return float(user_losses(model, *data.batch(range(24)), data).mean())

    before = loss()
    train_round(model, data, config, plan, round_number=1, silo_seed=0)
    assert loss() < 0.5 * before


def test_the_plan_of_a_test_is_a_real_plan() -> None:
    """Guards the tests above: they change a plan's numbers, never its kind."""
    assert isinstance(small_silo.plan(small_silo.config()), PrivacyPlan)
    assert small_silo.plan(small_silo.config()).mode == "silo"
