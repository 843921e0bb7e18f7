"""Item vectors: one unit vector per text, computed once, never another model's or catalogue's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import common.model.encoder
from common.data.catalogue import Catalogue
from common.model.backbone import load_backbone
from common.model.encoder import hashing_vectors, item_vectors
from tests.common.model import small_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SILOREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of texts whenever the encoder really runs."""
    runs: list[int] = []
    real = common.model.encoder._encode

    def counted(texts: object, *arguments: object) -> object:
        runs.append(len(texts))  # type: ignore[arg-type]
        return real(texts, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(common.model.encoder, "_encode", counted)
    return runs


@given(st.lists(st.text(max_size=60), max_size=8))
@settings(max_examples=80, deadline=None)
def test_hashed_texts_are_unit_vectors(texts: list[str]) -> None:
    vectors = hashing_vectors(texts)
    assert vectors.shape == (len(texts), 64)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(vectors, hashing_vectors(texts))


def test_hashed_texts_are_alike_when_words_are() -> None:
    """Signs make collisions cancel: over many made-up words, likeness is the share of words in common."""
    one, same, near, far = (
        hashing_vectors([text.format(*(f"w{i}x{j}" for j in range(6))) for i in range(400)])
        for text in ("{0} {1} {2}", "{2}, {1}. {0}", "{0} {1} {3}", "{3} {4} {5}")
    )
    np.testing.assert_allclose((one * same).sum(1), 1.0, atol=1e-6)
    assert (one * near).sum(1).mean() == pytest.approx(2 / 3, abs=0.05)
    assert (one * far).sum(1).mean() == pytest.approx(0.0, abs=0.05)
    np.testing.assert_array_equal(hashing_vectors(["Red fox"]), hashing_vectors(["red FOX,"]))


def test_hashing_needs_no_cache(cache: Path, catalogue: Catalogue) -> None:
    np.testing.assert_array_equal(item_vectors(catalogue, "hashing"), hashing_vectors(catalogue.texts))
    assert not cache.exists()


@pytest.mark.parametrize("encoder", ["tiny-bert", "tiny-llama"])
def test_vectors_are_normalised_means_over_the_tokens_of_each_text(encoder: str, cache: Path, catalogue: Catalogue) -> None:
    """A loop over single texts, without padding."""
    vectors = item_vectors(catalogue, encoder)
    backbone = load_backbone(encoder, causal=False)
    assert backbone.tokenizer is not None
    assert len({len(text) for text in catalogue.texts}) > 3, "texts of one length would not test the padding"
    for text, vector in zip(catalogue.texts, vectors, strict=True):
        ids = torch.tensor([backbone.tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            mean = backbone.model(input_ids=ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)


def test_vectors_are_computed_once(cache: Path, computed: list[int], catalogue: Catalogue) -> None:
    first = item_vectors(catalogue, "tiny-bert")
    second = item_vectors(catalogue, "tiny-bert")
    assert computed == [12]
    np.testing.assert_array_equal(first, second)
    assert len(list((cache / "item-vectors").iterdir())) == 1


def test_another_text_order_or_model_is_another_entry(cache: Path, computed: list[int], catalogue: Catalogue) -> None:
    item_vectors(catalogue, "tiny-bert")
    item_vectors(catalogue, "tiny-llama")
    item_vectors(catalogue.select(range(11, -1, -1)), "tiny-bert")
    item_vectors(replace(catalogue, titles=("Another", *catalogue.titles[1:])), "tiny-bert")
    assert computed == [12] * 4


def test_the_same_name_with_other_weights_is_another_entry(
    cache: Path, computed: list[int], tmp_path: Path, catalogue: Catalogue
) -> None:
    folder = small_model.save_model(tmp_path / "model", "bert")
    before = item_vectors(catalogue, str(folder))
    model = load_backbone(str(folder), causal=False).model
    with torch.no_grad():
        next(model.parameters())[5] += 1.0
    model.save_pretrained(folder)  # type: ignore[operator]
    after = item_vectors(catalogue, str(folder))
    assert computed == [12, 12]
    assert (before != after).any()


@pytest.mark.parametrize("how", ["empty", "cut", "garbage", "too few"])
def test_a_damaged_entry_is_computed_again(how: str, cache: Path, computed: list[int], catalogue: Catalogue) -> None:
    expected = item_vectors(catalogue, "tiny-bert")
    (path,) = (cache / "item-vectors").iterdir()
    whole = path.read_bytes()
    if how == "too few":
        common.model.encoder._write(path, expected[:5])
    else:
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "garbage": b"\x00" * 500}[how])
    np.testing.assert_array_equal(item_vectors(catalogue, "tiny-bert"), expected)
    assert computed == [12, 12]
    assert path.read_bytes() == whole


def test_progress_counts_texts(cache: Path, catalogue: Catalogue) -> None:
    seen: list[tuple[int, int]] = []
    item_vectors(catalogue, "tiny-bert", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12)


def test_an_encoder_from_a_folder(cache: Path, tmp_path: Path, catalogue: Catalogue) -> None:
    for kind in ("bert", "gpt2", "distilbert"):
        vectors = item_vectors(catalogue, str(small_model.save_model(tmp_path / kind, kind)))
        assert vectors.shape == (12, 16)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
