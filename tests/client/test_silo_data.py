"""What a silo's users become before training: windows, targets, text tokens, and one loss each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from client.silo_data import SiloData, tokenise, user_losses, user_texts
from common.data.catalogue import Catalogue
from common.data.interactions import Dataset, Interactions
from common.errors import ModelError
from tests.client import small_silo

ALARM = 1e-7


def test_losses_are_sums_over_the_public_window(catalogue: Catalogue) -> None:
    """Against a loop over positions with PyTorch's own cross-entropy, label smoothing included."""
    config = small_silo.config()
    model = small_silo.model(config, catalogue)
    for mask in (False, True):
        data = small_silo.data(mask=mask)
        sold = data.item_mask if data.item_mask is not None else np.ones(small_silo.N_ITEMS, dtype=bool)
        batch, targets = data.batch(range(9))
        with torch.inference_mode():
            scores = model(batch)[:, :, sold]
            for smoothing in (0.0, 0.3):
                losses = user_losses(model, batch, targets, data, smoothing)
                for user in range(9):
                    total = 0.0
                    for position, target in enumerate(targets[user].tolist()):
                        if target >= 0:
                            place = torch.tensor(int(sold[:target].sum()))
                            total += float(
                                torch.nn.functional.cross_entropy(scores[user, position], place, label_smoothing=smoothing)
                            )
                    assert float(losses[user]) == pytest.approx(total / small_silo.WINDOW, abs=1e-5)


def test_a_batch_holds_the_latest_window_and_the_item_after_each(catalogue: Catalogue) -> None:
    data = small_silo.data()
    batch, targets = data.batch(range(9))
    for user, history in enumerate(data.histories):
        latest = history[-(small_silo.WINDOW + 1) :].tolist()
        pad = [-1] * (small_silo.WINDOW - max(0, len(latest) - 1))
        assert batch.items[user].tolist() == latest[:-1] + pad
        assert targets[user].tolist() == latest[1:] + pad
        tokens = list(data.text[user])
        assert batch.text[user].tolist() == tokens + [-1] * (batch.text.shape[1] - len(tokens))
    earlier, _ = data.batch([8], np.array([500]))
    assert earlier.items[0].tolist() == data.histories[8][500 - small_silo.WINDOW - 1 : 499].tolist()


def test_windows_end_at_the_latest_item_or_anywhere_after_the_first(catalogue: Catalogue) -> None:
    """Half of the ends are anywhere in 2..n, the others at n: chi-square over the ends of one user, seeded."""
    data = small_silo.data()
    users = np.full(8000, 5)
    ends = data.random_ends(users, np.random.default_rng(0))
    n = len(data.histories[5])
    expected = np.full(n - 1, 0.5 / (n - 1))
    expected[-1] += 0.5
    assert stats.chisquare([(ends == e).sum() for e in range(2, n + 1)], expected * 8000).pvalue > ALARM
    lengths = [len(h) for h in data.histories]
    for _ in range(20):
        ends = data.random_ends(np.arange(9), np.random.default_rng())
        assert all(min(2, n) <= e <= n for e, n in zip(ends, lengths, strict=True))


def test_users_are_read_from_a_data_set(dataset: Dataset) -> None:
    config = small_silo.config(model__text_tokens=10)
    model_tokenizer = small_silo.ByteTokenizer()
    data = SiloData.from_dataset(dataset, config, None, model_tokenizer)
    assert [h.tolist() for h in data.histories] == [h.tolist() for h in dataset.interactions.histories()]
    assert bytes(data.text[3][1:]).decode() == "reader number 3"[:9]
    assert data.n_items == len(dataset.catalogue)
    assert SiloData.from_dataset(dataset, small_silo.config(model__user_text=False)).text == ((),) * 20
    with pytest.raises(ModelError, match="no tokenizer"):
        SiloData.from_dataset(dataset, config)


def test_what_users_wrote_comes_newest_first(catalogue: Catalogue) -> None:
    interactions = Interactions(
        user=np.array([0, 1, 0, 0], dtype=np.int32),
        item=np.array([0, 1, 2, 3], dtype=np.int32),
        time=np.array([5, 1, 9, 7], dtype=np.int64),
        user_ids=("a", "b"),
        text=["oldest", "other", "newest", ""],
    )
    assert list(user_texts(Dataset(catalogue, interactions, ("profile", "")))) == ["profile. newest. oldest", "other"]


def test_text_is_cut_to_its_tokens_and_opened_by_the_first_special_one() -> None:
    class Tokenizer(small_silo.ByteTokenizer):
        cls_token_id: int | None = None  # type: ignore[assignment]
        bos_token_id: int | None = None

    tokenizer = Tokenizer()
    assert tokenise("abc", tokenizer, 8) == (97, 98, 99)
    tokenizer.bos_token_id = 7
    assert tokenise("abc", tokenizer, 8) == (7, 97, 98, 99)
    tokenizer.cls_token_id = 0  # as in RoBERTa
    assert tokenise("abc", tokenizer, 3) == (0, 97, 98)
    assert tokenise("", tokenizer, 3) == ()
