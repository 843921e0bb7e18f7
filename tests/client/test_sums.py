"""Sums over a silo's users before any noise: against loops over single users, with each user's part bounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import client.dp_steps
from client.silo_data import SiloData
from client.sums import count_sum, gradient_sum, metrics_sum
from client.trainer import release_counts, release_metrics, train_round
from common.data.catalogue import Catalogue
from common.errors import DataError
from common.model.adapter import Manifest, from_vector, manifest_of, to_vector
from common.model.recommender import Recommender
from common.privacy.plan import COUNT_MAX_NORM, METRICS_MAX_NORM
from tests.client import small_silo
from tests.client.test_trainer import interrupted, nobody, traces

LAST_BITS = 1e-12
"""Double precision over a handful of users leaves less than this of the bound."""


def by_hand(model: Recommender, data: SiloData, settings: Any, clip: float) -> tuple[dict[str, NDArray[np.float64]], list[float]]:
    """The oracle: each user alone with plain autograd, clipped over all parameters in double precision, added up.

    Gives the sum by parameter, and each user's norm before clipping.
    """
    total: dict[str, NDArray[np.float64]] = {}
    norms = []
    for gradient in small_silo.gradients_one_by_one(model, data, settings):
        double = {name: part.double().numpy() for name, part in gradient.items()}
        norms.append(float(np.sqrt(sum((part**2).sum() for part in double.values()))))
        factor = min(1.0, clip / norms[-1]) if norms[-1] else 1.0
        for name, part in double.items():
            total[name] = total.get(name, 0.0) + factor * part
    return total, norms


@pytest.mark.parametrize("mask", [False, True], ids=["sells all", "sells some"])
@pytest.mark.parametrize("physical", [1, 4, 100])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model__backbone": "tiny-llama", "training__label_smoothing": 0.2},
        {"model__train_scale": False, "model__train_bias": False, "model__lora_layers": 1},
    ],
    ids=["bert", "llama", "partly frozen"],
)
def test_a_steps_sum_is_that_of_a_loop_over_single_users(
    settings: dict[str, Any], physical: int, mask: bool, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_silo.latest_windows(monkeypatch)
    config = small_silo.config(training__physical_batch_size=physical, **settings)
    model, data = small_silo.model(config, catalogue), small_silo.data(mask=mask)
    _, norms = by_hand(model, data, config, 1.0)
    clip = float(np.median([n for n in norms if n]))
    expected, _ = by_hand(model, data, config, clip)
    assert sum(n > clip for n in norms) >= 2, "some are clipped"
    assert sum(0 < n < clip for n in norms) >= 2, "some are not"
    total = gradient_sum(model, data, config, small_silo.plan(config, max_grad_norm=clip))
    manifest = manifest_of(model)
    assert total.dtype == np.float64
    assert total.shape == (manifest.n_parameters,)
    for name, shape in zip(manifest.names, manifest.shapes, strict=True):
        part = total[manifest.slice(name)]
        if name in expected:
            np.testing.assert_allclose(part.reshape(shape), expected[name], rtol=0, atol=2e-5, err_msg=name)
            assert part.any()
        else:
            assert name == "bias.weight"
            assert not model.get_parameter(name).requires_grad
            assert not part.any()
    assert set(expected) <= set(manifest.names)


def test_the_sum_lies_in_the_order_in_which_an_adapter_is_loaded(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step taken in the vector is the step taken in each parameter."""
    small_silo.latest_windows(monkeypatch)
    config = small_silo.config()
    model, data = small_silo.model(config, catalogue), small_silo.data()
    expected, _ = by_hand(model, data, config, 1.0)
    stepped = {name: p.detach().double().numpy() - expected[name] for name, p in small_silo.trainable(model).items()}
    total = gradient_sum(model, data, config, small_silo.plan(config, max_grad_norm=1.0))
    from_vector(model, (to_vector(model) - total).astype(np.float32), manifest_of(model))
    for name, parameter in small_silo.trainable(model).items():
        np.testing.assert_allclose(parameter.detach().numpy(), stepped[name], rtol=0, atol=3e-5, err_msg=name)


def test_a_private_round_steps_along_this_very_sum(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGD with rate 1 and no noise: what mode ``silo`` does with it, up to float32 of the parameters."""
    small_silo.latest_windows(monkeypatch)
    small_silo.no_noise(monkeypatch)
    config = small_silo.config()
    model, data = small_silo.model(config, catalogue), small_silo.data()
    plan = small_silo.plan(config, max_grad_norm=0.3, expected_batch_size=4.0)
    total = gradient_sum(model, data, config, plan)
    update = train_round(model, data, config, plan, round_number=1, silo_seed=0).update
    np.testing.assert_allclose(-4.0 * update, total, rtol=0, atol=1e-5)


def planted(table: NDArray[np.float32], manifest: Manifest, users: list[int]) -> Callable[[Recommender, NDArray[np.int64]], None]:
    """Puts rows of ``table`` (all users, n_parameters) in the place of gradients; the silo holds ``users`` of them."""

    def plant(model: Recommender, sampled: NDArray[np.int64]) -> None:
        rows = table[np.array(users)[sampled]]
        for name, shape in zip(manifest.names, manifest.shapes, strict=True):
            part = torch.from_numpy(rows[:, manifest.slice(name)].reshape(-1, *shape))
            model.get_parameter(name).grad_sample = part  # type: ignore[attr-defined]

    return plant


@pytest.mark.parametrize("clip", [1e-3, 1.0, 50.0])
def test_no_user_moves_a_sum_by_more_than_the_clip_whatever_the_gradient(clip: float, catalogue: Catalogue) -> None:
    """From a millionth of the clip to the largest numbers that float32 holds."""
    config = small_silo.config(training__physical_batch_size=4)
    model = small_silo.model(config, catalogue)
    manifest = manifest_of(model)
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((9, manifest.n_parameters))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = np.array([1e-6 * clip, 0.5 * clip, clip, 1.000001 * clip, 3 * clip, 1e3, 1e10, 1e30, 3e38])
    table = (directions * lengths[:, None]).astype(np.float32)
    table[8] = np.finfo(np.float32).max
    plan = small_silo.plan(config, max_grad_norm=clip)

    def total(users: list[int]) -> NDArray[np.float64]:
        return gradient_sum(model, small_silo.data(users), config, plan, plant=planted(table, manifest, users))

    everybody = total(list(range(9)))
    for user in range(9):
        alone = np.linalg.norm(total([user]))
        moved = np.linalg.norm(everybody - total([u for u in range(9) if u != user]))
        true = float(np.linalg.norm(table[user].astype(np.float64)))
        assert alone <= clip * (1 + LAST_BITS)
        assert moved <= clip * (1 + LAST_BITS)
        assert alone == pytest.approx(min(true, clip), rel=1e-9), "and not shorter than it has to be"
        assert moved == pytest.approx(min(true, clip), rel=1e-6)


def test_an_empty_sample_is_a_sum_of_zeros(catalogue: Catalogue) -> None:
    """None of nine is drawn (chance of one: 9e-12), or there is nobody to draw from."""
    config = small_silo.config()
    model = small_silo.model(config, catalogue)
    for data, probability in ((small_silo.data(), 1e-12), (nobody(small_silo.data()), 1.0)):
        total = gradient_sum(model, data, config, small_silo.plan(config, sampling_probability=probability))
        assert total.shape == (manifest_of(model).n_parameters,)
        assert total.dtype == np.float64
        assert not total.any()


def test_two_sums_of_the_same_users_differ_by_windows_or_dropout_alone(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody is in every sample. Windows, then dropout, then neither; and no seed that others know decides about them."""
    config = small_silo.config()
    plan = small_silo.plan(config)

    def sums(n: int, dropout: bool) -> set[bytes]:
        model, data = small_silo.model(config, catalogue, dropout=dropout), small_silo.data()
        out = set()
        for _ in range(n):
            torch.manual_seed(1)
            out.add(gradient_sum(model, data, config, plan).tobytes())
        return out

    assert len(sums(8, dropout=False)) > 1  # all eight alike by chance: about 1 in a billion
    small_silo.latest_windows(monkeypatch)
    assert len(sums(3, dropout=True)) == 3
    assert len(sums(3, dropout=False)) == 1


def test_a_sum_is_over_those_who_were_drawn(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    small_silo.latest_windows(monkeypatch)
    config = small_silo.config()
    model, data = small_silo.model(config, catalogue), small_silo.data()
    manifest, plan = manifest_of(model), small_silo.plan(config, sampling_probability=0.5, max_grad_norm=0.3)
    everybody = replace(plan, sampling_probability=1.0)
    alone = np.stack([gradient_sum(model, small_silo.data([u]), config, everybody) for u in range(9)])
    real, drawn = client.dp_steps.poisson_sample, []

    def watched(n_users: int, probability: float) -> NDArray[np.int64]:
        assert (n_users, probability) == (9, 0.5)
        drawn.append(real(n_users, probability))
        return drawn[-1]

    monkeypatch.setattr(client.dp_steps, "poisson_sample", watched)
    for _ in range(30):
        total = gradient_sum(model, data, config, plan)
        np.testing.assert_allclose(total, alone[drawn[-1]].sum(0), rtol=0, atol=2e-5)
    assert len(drawn) == 30
    assert len({users.tobytes() for users in drawn}) > 1  # all thirty alike by chance: 2e-79
    assert alone.any()
    assert alone.shape == (9, manifest.n_parameters)


@pytest.mark.parametrize("broken_off", [False, True])
def test_a_sum_leaves_nothing_behind_in_the_model(
    broken_off: bool, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_silo.config(training__physical_batch_size=4)
    model = small_silo.model(config, catalogue, dropout=True)
    before = traces(model)
    values = {name: value.clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    if broken_off:
        monkeypatch.setattr(client.dp_steps, "user_losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gradient_sum(model, small_silo.data(), config, small_silo.plan(config))
    else:
        assert gradient_sum(model, small_silo.data(), config, small_silo.plan(config)).any()
    assert torch.equal(torch.rand(3), expected), "the generators of others are left alone"
    assert traces(model) == before
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, values[n]) for n, value in (*model.named_parameters(), *model.named_buffers()))


def test_each_user_has_one_vote_in_a_private_count() -> None:
    """Against a loop with Python's own floats; who met nothing adds nothing."""
    data = small_silo.data()
    expected = [0.0] * small_silo.N_ITEMS
    for user, history in enumerate(data.histories):
        distinct = set(history.tolist())
        for item in distinct:
            expected[item] += COUNT_MAX_NORM / len(distinct) ** 0.5
        alone = np.linalg.norm(count_sum(small_silo.data([user]), private=True))
        assert alone == pytest.approx(COUNT_MAX_NORM if distinct else 0.0, rel=LAST_BITS)
    total = count_sum(data, private=True)
    assert total.dtype == np.float64
    np.testing.assert_allclose(total, expected, rtol=1e-14)


def test_a_count_without_protection_counts_interactions() -> None:
    config = small_silo.config(privacy__mode="none")
    data = small_silo.data()
    total = count_sum(data, private=False)
    assert total.sum() == sum(len(h) for h in data.histories)
    np.testing.assert_array_equal(total, np.bincount(np.concatenate(data.histories), minlength=small_silo.N_ITEMS))
    np.testing.assert_array_equal(release_counts(data, config, small_silo.plan(config)), total.astype(np.float32))


def with_held_out(data: SiloData) -> SiloData:
    """The last of each history held out, but for users 1 and 4."""
    held_out = np.array([int(h[-1]) if len(h) else -1 for h in data.histories], dtype=np.int32)
    held_out[[1, 4]] = -1
    histories = tuple(h[:-1] if last >= 0 else h for h, last in zip(data.histories, held_out, strict=True))
    return replace(data, histories=histories, held_out=held_out)


def some(data: SiloData, users: list[int]) -> SiloData:
    assert data.held_out is not None
    histories, text = tuple(data.histories[u] for u in users), tuple(data.text[u] for u in users)
    return replace(data, histories=histories, text=text, held_out=data.held_out[users])


def test_the_figures_are_those_of_each_user_alone_added_up(catalogue: Catalogue) -> None:
    """NDCG of one item at rank r is 1/log2(r + 1), and a hit is a hit within k: what the model's own scores say."""
    config = small_silo.config(privacy__mode="none", evaluation__k=5)
    model, data = small_silo.model(config, catalogue), with_held_out(small_silo.data())
    assert data.held_out is not None
    expected, compared = np.zeros(2), 0
    for user, (history, last) in enumerate(zip(data.histories, data.held_out.tolist(), strict=True)):
        alone = metrics_sum(model, some(data, [user]), config)
        assert np.linalg.norm(alone) <= METRICS_MAX_NORM * (1 + LAST_BITS)
        if last < 0:
            assert not alone.any()
            continue
        with torch.inference_mode():
            scores = model(data.inputs([user]), last_only=True)[0].float().numpy().copy()
        scores[[item for item in set(history.tolist()) if item != last]] = -np.inf
        rank = int((scores >= scores[last]).sum())
        figures = np.array([1 / np.log2(rank + 1), 1.0]) if rank <= 5 else np.zeros(2)
        np.testing.assert_allclose(alone, figures, rtol=1e-12)
        compared += 1
        expected += alone
    assert compared >= 5
    total = metrics_sum(model, data, config)
    assert total.dtype == np.float64
    assert total.any()
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    released = release_metrics(model, data, config, small_silo.plan(config))
    np.testing.assert_array_equal(released, total.astype(np.float32))


def test_a_silo_that_holds_nothing_out_has_no_figures(catalogue: Catalogue) -> None:
    config = small_silo.config()
    with pytest.raises(DataError, match="holds no interactions out"):
        metrics_sum(small_silo.model(config, catalogue), small_silo.data(), config)
