"""The recommender looks at one user's past only, works before it is trained, and is built the same everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Config
from common.data.catalogue import Catalogue
from common.errors import ModelError
from common.model.adapter import manifest_of, to_vector
from common.model.recommender import (
    Batch,
    Recommender,
    autocast,
    biases_from_counts,
    build_recommender,
    pick_device,
    recency_pool,
)
from tests.common.model import small_model
from tests.common.model.small_model import BACKBONES, batch, build, moved, scores

HISTORIES = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3], [], [7, 7]]
TEXTS = [[104, 105], [], [97, 98, 99, 100], [120], []]


@pytest.fixture(scope="module", params=BACKBONES)
def model(request: pytest.FixtureRequest, catalogue: Catalogue) -> Recommender:
    """As after training, so that every part has a say."""
    return moved(build(catalogue, model__backbone=request.param))


with_and_without_text = pytest.mark.parametrize("texts", [None, TEXTS], ids=["no text", "text"])


@with_and_without_text
def test_later_items_do_not_change_earlier_scores(texts: list[list[int]] | None, model: Recommender) -> None:
    text = texts[:1] if texts else None
    whole = scores(model, batch(HISTORIES[:1], text))[0]
    for known in range(1, 6):
        for other in (0, 11):
            changed = HISTORIES[0][:known] + [other] * (6 - known)
            again = scores(model, batch([changed], text))[0]
            torch.testing.assert_close(again[:known], whole[:known], rtol=1e-4, atol=1e-4)
            assert (again[known:] - whole[known:]).abs().max() > 1e-2, "what changed must show"


@with_and_without_text
def test_other_users_and_padding_do_not_change_scores(texts: list[list[int]] | None, model: Recommender) -> None:
    together = scores(model, batch(HISTORIES, texts))
    wider = scores(model, batch(HISTORIES, texts, width=9, text_width=7 if texts else 0))
    for user, history in enumerate(HISTORIES):
        alone = scores(model, batch([history], texts and [texts[user]], width=1))[0]
        n = len(history)
        torch.testing.assert_close(together[user, :n], alone[:n], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(wider[user, :n], alone[:n], rtol=1e-4, atol=1e-4)


def test_other_users_have_no_gradient(model: Recommender) -> None:
    """Of one user's scores with respect to everybody's input tokens."""
    tokens: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        options["inputs_embeds"].retain_grad()
        tokens.append(options["inputs_embeds"])

    hook = model.backbone.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model(batch(HISTORIES, TEXTS))[2, :3].sum().backward()
    finally:
        hook.remove()
        model.zero_grad(set_to_none=True)
    gradient = tokens[0].grad
    assert gradient is not None
    assert gradient[2].abs().max() > 0
    assert not gradient[[0, 1, 3, 4]].any()


@with_and_without_text
def test_the_last_scores_are_those_at_the_last_item(texts: list[list[int]] | None, model: Recommender) -> None:
    users = batch(HISTORIES, texts)
    whole, last = scores(model, users), scores(model, users, last_only=True)
    assert last.shape == (5, 12)
    for user, history in enumerate(HISTORIES):
        if history:
            torch.testing.assert_close(last[user], whole[user, len(history) - 1], rtol=1e-5, atol=1e-5)


def test_a_user_without_history_gets_finite_scores(model: Recommender) -> None:
    for users in (batch([[]], width=3), batch([[], [1]], [[], [5]]), batch([[]], [[104]], width=1)):
        assert torch.isfinite(scores(model, users)).all()
        assert torch.isfinite(scores(model, users, last_only=True)).all()


def test_text_has_a_say(model: Recommender) -> None:
    one, other = scores(model, batch(HISTORIES[:1], [[104, 105]])), scores(model, batch(HISTORIES[:1], [[122, 101]]))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("extras", [{"model__item_dim": 0}, {"model__item_dim": 0, "model__correction_rank": 2}])
def test_before_training_it_ranks_by_likeness_to_the_recent_history(
    backbone: str, extras: dict[str, Any], catalogue: Catalogue
) -> None:
    """A loop over items: cosine of the recency-weighted mean and each item, times the scale; then popularity on top."""
    model = build(catalogue, model__backbone=backbone, model__scale=7.0, model__pooling_decay=0.8, **extras)
    x = model.item_vectors.double().numpy()
    bias = np.linspace(-1, 1, 12)
    with torch.no_grad():
        model.bias.weight.copy_(torch.from_numpy(bias))
    for history in HISTORIES:
        if not history:  # nothing is known but what is popular
            np.testing.assert_allclose(scores(model, batch([[]], width=1), last_only=True)[0].numpy(), bias, atol=1e-6)
            continue
        taste = sum(0.8**age * x[item] for age, item in enumerate(reversed(history)))
        taste = np.asarray(taste) / np.linalg.norm(taste)
        expected = [7.0 * float(taste @ x[i]) + bias[i] for i in range(12)]
        np.testing.assert_allclose(scores(model, batch([history]), last_only=True)[0].numpy(), expected, atol=1e-5)


def test_item_factors_hardly_disturb_the_start(catalogue: Catalogue) -> None:
    plain, factors = build(catalogue, model__item_dim=0), build(catalogue, model__item_dim=64)
    users = batch(HISTORIES[:3])
    difference = scores(plain, users, last_only=True) - scores(factors, users, last_only=True)
    assert difference.abs().max() < 0.5  # of scores that span 20


@given(
    st.integers(1, 4),
    st.integers(1, 8),
    st.floats(0.05, 1.0),
)
@settings(max_examples=30, deadline=None)
def test_the_pool_is_a_loop_over_the_past(users: int, length: int, decay: float) -> None:
    vectors = torch.randn(users, length, 3, dtype=torch.float64)
    pooled = recency_pool(vectors, decay)
    for u in range(users):
        for t in range(length):
            weights = [decay ** (t - s) for s in range(t + 1)]
            mean = sum(w * vectors[u, s] for s, w in enumerate(weights)) / sum(weights)
            torch.testing.assert_close(pooled[u, t], mean, rtol=1e-5, atol=1e-6)


def test_two_builds_are_equal_and_another_seed_is_not(catalogue: Catalogue) -> None:
    for backbone in BACKBONES:
        torch.manual_seed(1)
        one = build(catalogue, model__backbone=backbone)
        torch.manual_seed(2)
        other = build(catalogue, model__backbone=backbone)
        state = dict(other.state_dict())
        assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
        assert manifest_of(one) == manifest_of(other)
        assert (to_vector(build(catalogue, model__backbone=backbone, run__seed=7)) != to_vector(one)).any()


def test_building_leaves_the_generator_of_others_alone_and_dropout_off(catalogue: Catalogue) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model = build(catalogue, model__lora_dropout=0.5)
    assert torch.equal(torch.rand(3), expected)
    assert not any(module.training for module in model.modules())


def test_the_language_model_is_frozen_but_for_lora(catalogue: Catalogue) -> None:
    for backbone in BACKBONES:
        model = build(catalogue, model__backbone=backbone)
        for name, parameter in model.backbone.named_parameters():
            assert parameter.requires_grad == ("lora_" in name), name
        none = build(catalogue, model__backbone=backbone, model__lora_rank=0)
        assert not any(p.requires_grad for p in none.backbone.parameters())


@pytest.mark.parametrize(
    ("backbone", "list_name", "targets"),
    [
        ("tiny-bert", "encoder.layer", {"query", "value", "dense"}),
        ("tiny-llama", "layers", {"q_proj", "v_proj", "o_proj", "up_proj", "down_proj"}),
    ],
)
def test_lora_adapts_the_named_matrices_of_the_top_layers(
    backbone: str, list_name: str, targets: set[str], catalogue: Catalogue
) -> None:
    per_layer = 5  # BERT: query, value and three dense ones
    for chosen, layers in ((0, {0, 1}), (1, {1}), (2, {0, 1})):
        model = build(catalogue, model__backbone=backbone, model__lora_layers=chosen)
        adapted = [n.split(".lora_A")[0] for n, _ in model.backbone.named_parameters() if "lora_A" in n]
        assert len(adapted) == len(set(adapted)) == per_layer * len(layers)
        assert {n.split(".")[-1] for n in adapted} == targets
        assert {int(n.removeprefix(f"{list_name}.").split(".")[0]) for n in adapted} == layers
    with pytest.raises(ModelError, match=rf"model.lora_layers = 3, but {backbone} has 2 layers"):
        build(catalogue, model__backbone=backbone, model__lora_layers=3)


def test_what_is_switched_off_is_not_trained(catalogue: Catalogue) -> None:
    def names(**settings_: Any) -> set[str]:
        return {n for n, p in build(catalogue, **settings_).named_parameters() if p.requires_grad and "lora" not in n}

    everything = names()
    assert everything == {
        *("input_map.weight", "input_map.bias", "item_factors.weight", "factor_in.weight", "factor_out.weight"),
        *("correction.weight", "correction.bias", "pool_weight.weight", "scale.weight", "bias.weight"),
    }
    assert everything - names(model__input_map=False) == {"input_map.weight", "input_map.bias"}
    assert everything - names(model__item_dim=0) == {"item_factors.weight", "factor_in.weight", "factor_out.weight"}
    assert everything - names(model__train_scale=False) == {"pool_weight.weight", "scale.weight"}
    assert everything - names(model__train_bias=False) == {"bias.weight"}
    low_rank = names(model__correction_rank=2)
    assert low_rank - everything == {"correction.0.weight", "correction.1.weight"}


def test_a_window_longer_than_the_backbone_is_refused(catalogue: Catalogue) -> None:
    build(catalogue, model__window=128)
    with pytest.raises(ModelError, match=r"tiny-bert reads 128 tokens, model.window and model.text_tokens ask for 129"):
        build(catalogue, model__window=129)
    with pytest.raises(ModelError, match="ask for 132"):
        build(catalogue, model__window=100, model__user_text=True, model__text_tokens=32)


def test_a_batch_is_two_matrices_of_the_same_users() -> None:
    with pytest.raises(ModelError, match=r"items \(B, T\) and text \(B, P\)"):
        Batch(torch.zeros(2, 3), torch.zeros(1, 0))
    with pytest.raises(ModelError, match=r"items \(B, T\)"):
        Batch(torch.zeros(3), torch.zeros(3, 0))


def test_bfloat16_runs_on_a_cpu_and_stays_close(model: Recommender) -> None:
    users, cpu = batch(HISTORIES, TEXTS), torch.device("cpu")
    full = scores(model, users)
    with autocast(small_model.config(run__precision="bfloat16"), cpu):
        half = scores(model, users)
    assert (half.float() - full).abs().max() > 0, "nothing was rounded"
    known = users.items >= 0
    assert (half.float() - full)[known].abs().max() < 0.05 * full[known].abs().max()
    for precision in ("auto", "float32"):
        with autocast(small_model.config(run__precision=precision), cpu):
            assert torch.equal(scores(model, users), full)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ModelError, match=r"run\.device = 'cuda', but PyTorch sees no GPU here"):
        pick_device("cuda")


CONFIG = Config().model


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_biases_of_exact_counts_are_their_centred_logarithms(counts: list[int]) -> None:
    bias = biases_from_counts(np.array(counts, dtype=np.float64), 0.0, CONFIG)
    expected = np.log(np.array(counts) + 1.0)
    np.testing.assert_allclose(bias, expected - expected.mean(), atol=1e-5)
    assert bias.dtype == np.float32


def test_the_weight_of_biases() -> None:
    counts = np.array([1.0, 5.0, 90.0])
    whole = biases_from_counts(counts, 0.0, CONFIG)
    half = biases_from_counts(counts, 0.0, CONFIG.model_copy(update={"bias_weight": 0.5}))
    np.testing.assert_allclose(half, whole / 2, rtol=1e-6)


@pytest.mark.parametrize("noise_std", [1.0, 4.0, 15.0])
@pytest.mark.parametrize("skew", [0.0, 0.6, 1.0])
def test_biases_of_noisy_counts_are_closer_to_the_truth_than_without_shrinking(noise_std: float, skew: float) -> None:
    """Mean over 20 draws of 400 items with Zipf popularity; against the same noisy counts taken at face value."""
    rng = np.random.default_rng(1)
    truth = 4000 * (np.arange(1, 401) ** -skew) / (np.arange(1, 401) ** -skew).sum()
    right = biases_from_counts(truth, 0.0, CONFIG)

    def error(noisy: np.ndarray, std: float) -> float:
        return float(((biases_from_counts(noisy, std, CONFIG) - right) ** 2).mean())

    draws = [truth + noise_std * rng.standard_normal(400) for _ in range(20)]
    assert np.mean([error(noisy, noise_std) for noisy in draws]) < np.mean([error(noisy, 0.0) for noisy in draws])


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1e4))
@settings(max_examples=40, deadline=None)
def test_biases_of_noisy_counts_are_finite_centred_and_keep_the_order(seed: int, noise_std: float) -> None:
    counts = np.random.default_rng(seed).normal(0, noise_std, 30)
    bias = biases_from_counts(counts, noise_std, CONFIG).astype(np.float64)
    assert np.isfinite(bias).all()
    assert abs(bias.mean()) < 1e-5
    assert (np.diff(bias[np.argsort(counts, kind="stable")]) >= 0).all()


def test_biases_of_pure_noise_say_little() -> None:
    """No signal in the variance: within a factor of two of even, where the raw counts would span a hundred."""
    noisy = np.random.default_rng(0).normal(3.0, 50.0, 2000)
    assert np.abs(biases_from_counts(noisy, 50.0, CONFIG)).max() < np.log(2.0)


def test_build_needs_no_download(catalogue: Catalogue) -> None:
    """Guards this file: the presets in use are made on the spot."""
    assert build_recommender(small_model.config(), catalogue).tokenizer is not None
