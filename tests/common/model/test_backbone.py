"""Language models from presets and folders: causal, frozen, and refused by name when they cannot be used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.data.catalogue import Catalogue
from common.errors import ModelError
from common.model.backbone import ByteTokenizer, load_backbone, presets, weights_fingerprint
from tests.common.model import small_model
from tests.common.model.small_model import batch, build, moved, scores


def changes_the_past(model: Any, width: int) -> float:
    """How much the first three hidden states move when the fourth token does."""
    tokens = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(3))
    other = tokens.clone()
    other[0, 3] *= -1.0
    places, mask = torch.arange(4).unsqueeze(0), torch.ones(1, 4, dtype=torch.long)
    with torch.inference_mode():
        one, two = (model(inputs_embeds=t, attention_mask=mask, position_ids=places).last_hidden_state for t in (tokens, other))
    assert (one[0, 3] - two[0, 3]).abs().max() > 1e-3
    return float((one[0, :3] - two[0, :3]).abs().max())


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "roberta"])
def test_a_folder_is_loaded_frozen_and_causal(kind: str, tmp_path: Path) -> None:
    folder = small_model.save_model(tmp_path, kind)
    backbone = load_backbone(str(folder))
    assert (backbone.width, backbone.n_layers, backbone.name) == (16, 2, str(folder))
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert changes_the_past(backbone.model, 16) < 1e-5
    assert backbone.embedding().weight.shape == (13, 16)
    assert backbone.tokenizer is not None
    assert backbone.tokenizer("the harbour", add_special_tokens=False)["input_ids"] == [4, 6]


@pytest.mark.parametrize(("kind", "first"), [("bert", 0), ("llama", 0), ("gpt2", 0), ("roberta", 1)])
def test_positions_begin_where_the_model_was_trained_to_begin(kind: str, first: int, tmp_path: Path) -> None:
    """RoBERTa keeps the positions up to its padding token's for padding. The oracle is the model left to count by itself."""
    backbone = load_backbone(str(small_model.save_model(tmp_path, kind)))
    assert backbone.first_position == first
    tokens = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    mask, places = torch.ones(1, 5, dtype=torch.long), backbone.first_position + torch.arange(5).unsqueeze(0)
    with torch.inference_mode():
        ours = backbone.model(inputs_embeds=tokens, attention_mask=mask, position_ids=places).last_hidden_state
        theirs = backbone.model(inputs_embeds=tokens, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours, theirs)


def test_an_encoder_of_texts_may_look_ahead(tmp_path: Path) -> None:
    """The oracle of the test above sees it."""
    folder = small_model.save_model(tmp_path, "bert")
    assert changes_the_past(load_backbone(str(folder), causal=False).model, 16) > 1e-3


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("layers", [0, 1])
def test_a_recommender_on_a_folder(kind: str, layers: int, tmp_path: Path, catalogue: Catalogue) -> None:
    folder = small_model.save_model(tmp_path, kind)
    model = moved(build(catalogue, model__backbone=str(folder), model__lora_layers=layers))
    adapted = {n.split(".lora_A")[0] for n, _ in model.named_parameters() if "lora_A" in n}
    assert adapted
    assert all((".1." in name) or layers == 0 for name in adapted)
    users = batch([[1, 2, 3], [4]], [[4, 6], []])
    whole = scores(model, users)
    assert torch.isfinite(whole).all()
    torch.testing.assert_close(scores(model, batch([[1, 2, 9]], [[4, 6]]))[0, :2], whole[0, :2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["electra", "distilbert", "t5"])
def test_a_model_that_looks_ahead_or_reads_no_soft_tokens_is_refused(kind: str, tmp_path: Path) -> None:
    """Silently used, it would see the items that it has to predict."""
    folder = small_model.save_model(tmp_path, kind)
    with pytest.raises(ModelError, match=r"looks at later tokens|reads soft tokens"):
        load_backbone(str(folder))


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama"])
def test_presets_without_download_are_causal_and_the_same_every_time(name: str) -> None:
    assert name in presets()
    torch.manual_seed(1)
    one = load_backbone(name)
    torch.manual_seed(2)
    other = load_backbone(name)
    assert changes_the_past(one.model, one.width) < 1e-5
    assert weights_fingerprint(one.model) == weights_fingerprint(other.model)


def test_the_presets_of_the_design_are_there() -> None:
    assert {"minilm", "smollm2-135m"} <= set(presets())


def test_a_model_that_is_nowhere_is_refused_with_advice(tmp_path: Path) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    for name in ("no-such-model", "nobody/no-such-model", str(tmp_path / "nowhere")):
        with pytest.raises(
            ModelError, match=r"cannot load the language model .*give a preset \(.*minilm.*folder with config\.json"
        ):
            load_backbone(name)


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "garbage"])
def test_a_damaged_folder_is_refused_with_advice(broken: str, how: str, tmp_path: Path) -> None:
    folder = small_model.save_model(tmp_path, "bert")
    if how == "missing":
        (folder / broken).unlink()
    else:
        (folder / broken).write_bytes(b"" if how == "empty" else b"\x07 garbage {")
    with pytest.raises(ModelError, match="cannot load the language model"):
        load_backbone(str(folder))


def test_weights_have_a_fingerprint() -> None:
    def layer() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))  # with a number of no dimension in its state

    assert weights_fingerprint(layer()) == weights_fingerprint(layer())
    changed = layer()
    with torch.no_grad():
        changed[0].bias[1] += 1e-6  # type: ignore[index,operator]
    assert weights_fingerprint(changed) != weights_fingerprint(layer())


def test_bytes_are_tokens() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer("aé")["input_ids"] == [97, 63]
    assert tokenizer("abc", truncation=True, max_length=2)["input_ids"] == [97, 98]
