"""The vector goes round exactly, and only into the model it belongs to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from common.data.catalogue import Catalogue
from common.errors import ModelError
from common.model.adapter import Manifest, from_vector, load_adapter, manifest_of, save_adapter, to_vector
from common.model.backbone import load_backbone
from common.model.recommender import Recommender
from tests.common.model import small_model
from tests.common.model.small_model import build

SMALL = Manifest(("a", "b.c"), ((2, 3), (4,)), "tiny-bert", "w" * 64, "hashing", "f" * 64)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def model(catalogue: Catalogue) -> Recommender:
    return build(catalogue)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_vector_goes_into_the_model_and_comes_back_bit_for_bit(data: st.DataObject, model: Recommender) -> None:
    manifest = manifest_of(model)
    vector = data.draw(hnp.arrays(np.float32, manifest.n_parameters, elements=finite))
    from_vector(model, vector, manifest)
    assert to_vector(model).tobytes() == vector.tobytes()


@given(hnp.arrays(np.float32, 10, elements=st.floats(width=32)))
@settings(max_examples=60, deadline=None)
def test_a_file_gives_back_every_bit(tmp_path_factory: pytest.TempPathFactory, vector: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("adapter") / "deep" / "adapter.safetensors"
    save_adapter(path, vector, SMALL)
    back, manifest = load_adapter(path)
    assert back.tobytes() == vector.tobytes()
    assert back.dtype == np.float32
    assert manifest == SMALL
    assert manifest.hash == SMALL.hash
    assert [p.name for p in path.parent.iterdir()] == ["adapter.safetensors"]


def test_the_vector_is_a_copy(model: Recommender) -> None:
    before = to_vector(model)
    taken = to_vector(model)
    taken += 1.0
    np.testing.assert_array_equal(to_vector(model), before)
    given_away = before.copy()
    from_vector(model, given_away, manifest_of(model))
    given_away += 1.0
    np.testing.assert_array_equal(to_vector(model), before)


def test_the_manifest_names_what_is_where(model: Recommender) -> None:
    manifest, vector = manifest_of(model), to_vector(model)
    parameters = dict(model.named_parameters())
    assert set(manifest.names) == {name for name, p in parameters.items() if p.requires_grad}
    for name, shape in zip(manifest.names, manifest.shapes, strict=True):
        part = vector[manifest.slice(name)]
        np.testing.assert_array_equal(part.reshape(shape), parameters[name].detach().numpy())
    assert sum(manifest.sizes) == manifest.n_parameters == len(vector)
    with pytest.raises(ModelError, match=r"no parameter 'bias'; it has .*bias\.weight"):
        manifest.slice("bias")


def test_biases_travel_even_when_they_are_not_trained(catalogue: Catalogue) -> None:
    """They start from the private count, which the coordinator puts in."""
    assert "bias.weight" in manifest_of(build(catalogue, model__train_bias=False)).names


def test_other_weights_under_the_same_name_make_another_manifest(tmp_path: Path, catalogue: Catalogue) -> None:
    """One folder, whose weights are exchanged."""
    folder = small_model.save_model(tmp_path, "bert")
    first = manifest_of(build(catalogue, model__backbone=str(folder)))
    assert manifest_of(build(catalogue, model__backbone=str(folder))).hash == first.hash
    changed = load_backbone(str(folder), causal=False).model
    with torch.no_grad():
        next(changed.parameters()).add_(1e-3)
    changed.save_pretrained(folder)
    second = manifest_of(build(catalogue, model__backbone=str(folder)))
    assert (second.backbone, second.names) == (first.backbone, first.names)
    assert "weights is" in str(first.difference(second))


def test_a_manifest_goes_round_through_json_and_its_hash_covers_all_of_it() -> None:
    assert Manifest.from_json(SMALL.to_json()) == SMALL
    changes: list[dict[str, Any]] = [
        {"names": ("a", "b.d")},
        {"shapes": ((3, 2), (4,))},
        {"backbone": "x"},
        {"weights": "x"},
        {"encoder": "x"},
        {"catalogue": "x"},
        {"dtype": "float16"},
    ]
    hashes = {replace(SMALL, **change).hash for change in changes} | {SMALL.hash}
    assert len(hashes) == len(changes) + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone": "minilm"}, "backbone is 'minilm' instead of 'tiny-bert'"),
        ({"weights": "0" * 64}, "weights is '000"),
        ({"encoder": "minilm"}, "encoder is 'minilm' instead of 'hashing'"),
        ({"catalogue": "0" * 64}, "catalogue is '000"),
        ({"dtype": "float16"}, "dtype is 'float16' instead of 'float32'"),
        ("missing", r"parameter 'backbone\..*' is missing"),
        ("extra", "there is an unknown parameter 'zzz'"),
        ("shape", r"parameter 'bias\.weight' has shape \(13,\) instead of \(12,\)"),
        ("order", "the parameters are in another order"),
    ],
)
def test_a_vector_of_another_model_is_refused_with_the_difference(
    change: dict[str, str] | str, words: str, model: Recommender
) -> None:
    own, vector = manifest_of(model), to_vector(model)
    names, shapes = own.names, own.shapes
    if isinstance(change, dict):
        other = replace(own, **change)
    elif change == "missing":
        other = replace(own, names=names[1:], shapes=shapes[1:])
    elif change == "extra":
        other = replace(own, names=(*names, "zzz"), shapes=(*shapes, (1,)))
    elif change == "shape":
        other = replace(own, shapes=tuple((13,) if n == "bias.weight" else s for n, s in zip(names, shapes, strict=True)))
    else:
        other = replace(own, names=names[::-1], shapes=shapes[::-1])
    with pytest.raises(ModelError, match=f"the adapter does not fit this model: {words}"):
        from_vector(model, np.zeros(other.n_parameters, dtype=np.float32), other)
    np.testing.assert_array_equal(to_vector(model), vector)
    assert own.difference(own) is None


def test_models_that_differ_have_different_manifests(catalogue: Catalogue, model: Recommender) -> None:
    for settings_ in ({"model__backbone": "tiny-llama"}, {"model__lora_rank": 3}, {"model__input_map": False}):
        other = build(catalogue, **settings_)
        with pytest.raises(ModelError, match="does not fit"):
            from_vector(other, to_vector(model), manifest_of(model))
    with pytest.raises(ModelError, match="catalogue is"):
        from_vector(build(catalogue.select(range(11, -1, -1))), to_vector(model), manifest_of(model))


def test_a_vector_of_another_length_or_kind_is_refused(model: Recommender) -> None:
    manifest = manifest_of(model)
    n = manifest.n_parameters
    for wrong in (np.zeros(n - 1, np.float32), np.zeros(n + 1, np.float32), np.zeros(n), np.zeros((n, 1), np.float32)):
        with pytest.raises(ModelError, match=rf"expected float32\({n},\)"):
            from_vector(model, wrong, manifest)


def test_a_manifest_that_contradicts_itself_is_refused() -> None:
    for names, shapes in ((("a",), ((1,), (2,))), (("a", "a"), ((1,), (2,)))):
        with pytest.raises(ModelError, match="one shape for each name"):
            Manifest(names, shapes, "b", "w", "e", "c")


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    good = {"adapter": np.zeros(10, dtype=np.float32)}
    if how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(whole[:-5])
    elif how == "garbage":
        path.write_bytes(b"not a tensor file, but some text that is long enough")
    elif how == "no manifest":
        save_file(good, path)
    elif how == "no vector":
        save_file({"other": good["adapter"]}, path, metadata={"manifest": SMALL.to_json()})
    elif how == "manifest no json":
        save_file(good, path, metadata={"manifest": "{"})
    elif how == "manifest a list":
        save_file(good, path, metadata={"manifest": "[]"})
    elif how == "manifest of the future":
        save_file(good, path, metadata={"manifest": json.dumps({**json.loads(SMALL.to_json()), "colour": "red"})})


@pytest.mark.parametrize(
    "how",
    ["empty", "cut", "garbage", "no manifest", "no vector", "manifest no json", "manifest a list", "manifest of the future"],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, how: str) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, np.zeros(10, dtype=np.float32), SMALL)
    damage(path, how)
    with pytest.raises(ModelError, match=r"adapter\.safetensors: not an adapter, or damaged"):
        load_adapter(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.safetensors: no such adapter"):
        load_adapter(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="not an adapter, or damaged"):
        load_adapter(tmp_path)


@pytest.mark.parametrize("backbone", small_model.BACKBONES)
def test_after_training_saving_and_loading_a_new_model_scores_the_same(
    backbone: str, tmp_path: Path, catalogue: Catalogue
) -> None:
    """Opacus and peft were once reported to train models that could not be used again: gradients, file, new model, scores."""
    from client.silo_data import SiloData
    from client.trainer import train_round
    from common.privacy.plan import plan_for

    settings_ = {"model__backbone": backbone, "training__local_steps": 2, "training__sampling_probability": 1.0}
    config = small_model.config(**settings_)
    histories = tuple(np.arange(u, u + 5, dtype=np.int32) % 12 for u in range(6))
    data = SiloData(histories, ((),) * 6, 12, 6)
    users = small_model.batch([[0, 1, 2], [5], [9, 9]])
    trained = build(catalogue, **settings_)
    start = small_model.scores(trained, users)
    train_round(trained, data, config, plan_for(config, 6, 6), round_number=1, silo_seed=0)
    lora = [name for name, p in trained.named_parameters() if "lora_B" in name and p.detach().any()]
    assert len(lora) == sum("lora_B" in name for name, _ in trained.named_parameters()) > 0
    expected = small_model.scores(trained, users)
    assert (expected - start).abs().max() > 1e-3
    save_adapter(tmp_path / "a.safetensors", to_vector(trained), manifest_of(trained))
    new = build(catalogue, **settings_)
    from_vector(new, *load_adapter(tmp_path / "a.safetensors"))
    assert torch.equal(small_model.scores(new, users), expected)
