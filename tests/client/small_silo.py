"""A silo of awkward users and a tiny model, for tests of training: short, empty, repeated and very long histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.silo_data import SiloData, tokenise, user_losses
from common.config import Config, load
from common.data.catalogue import Catalogue
from common.model.adapter import from_vector, manifest_of, to_vector
from common.model.backbone import ByteTokenizer
from common.model.recommender import Recommender, build_recommender
from common.privacy.plan import PrivacyPlan, plan_for

N_ITEMS = 12
WINDOW = 6
TEXTS = ("night owl", "", "likes trains and very long journeys by sea", "a", "", "poet", "", "b c", "")

SETTINGS: dict[str, Any] = {
    "run": {"device": "cpu"},
    "model": {
        "encoder": "hashing",
        "backbone": "tiny-bert",
        "window": WINDOW,
        "lora_rank": 2,
        "item_dim": 3,
        "user_text": True,
        "text_tokens": 8,
    },
    "training": {"optimizer": "sgd", "learning_rate": 1.0, "weight_decay": 0.0, "local_steps": 1, "sampling_probability": 1.0},
    "federation": {"rounds": 2},
}


def config(**settings: Any) -> Config:
    """:data:`SETTINGS` with dotted ``section__key`` settings over them."""
    return load(SETTINGS, {key.replace("__", "."): value for key, value in settings.items()})


def histories() -> tuple[np.ndarray, ...]:
    """Nobody, one item, two, a full window, one more, the same item again and again, a thousand."""
    rng = np.random.default_rng(5)
    lengths = (7, 0, 1, 2, 3, WINDOW, WINDOW + 1)
    random = [rng.integers(0, N_ITEMS, n).astype(np.int32) for n in lengths]
    return (*random, np.full(9, 4, dtype=np.int32), rng.integers(0, N_ITEMS, 1000).astype(np.int32))


def data(users: Sequence[int] = range(9), *, text: bool = True, mask: bool = False) -> SiloData:
    """Some of the users; with ``mask`` the silo does not sell items 1 and 10, and nobody has met them."""
    chosen = [histories()[u] for u in users]
    item_mask = None
    if mask:
        chosen = [np.where(h == 1, 2, np.where(h == 10, 9, h)).astype(np.int32) for h in chosen]
        item_mask = ~np.isin(np.arange(N_ITEMS), (1, 10))
    tokens = tuple(tokenise(TEXTS[u], ByteTokenizer(), 8) if text else () for u in users)
    return SiloData(tuple(chosen), tokens, N_ITEMS, WINDOW, item_mask)


def plan(settings: Config, **changes: Any) -> PrivacyPlan:
    return replace(plan_for(settings, 10, 10), **changes)


def model(settings: Config, catalogue: Catalogue, *, dropout: bool = False, shake: float = 0.05) -> Recommender:
    """A model away from its start, where half of all gradients are zero; without dropout unless asked."""
    built = build_recommender(settings, catalogue)
    rng = np.random.default_rng(11)
    vector = to_vector(built)
    moved = vector + shake * rng.standard_normal(len(vector))
    from_vector(built, moved.astype(np.float32), manifest_of(built))
    if not dropout:
        for module in built.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return built


def trainable(built: Recommender) -> dict[str, nn.Parameter]:
    return {name: p for name, p in built.named_parameters() if p.requires_grad}


def gradients_one_by_one(built: Recommender, silo: SiloData, settings: Config) -> list[dict[str, torch.Tensor]]:
    """The oracle: each user alone, no hooks, ``loss.backward()``; only that user's own text width and row."""
    out = []
    built.train()
    for user in range(len(silo.histories)):
        built.zero_grad(set_to_none=True)
        batch, targets = silo.batch([user])
        user_losses(built, batch, targets, silo, settings.training.label_smoothing).sum().backward()
        out.append({n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in trainable(built).items()})
    built.zero_grad(set_to_none=True)
    built.eval()
    return out


def flat(gradient: dict[str, torch.Tensor]) -> np.ndarray:
    """In the adapter's order, double precision."""
    return torch.cat([gradient[name].reshape(-1) for name in sorted(gradient)]).double().numpy()


def latest_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user's window ends at the latest item."""
    monkeypatch.setattr("client.silo_data.SiloData.random_ends", lambda silo, users, rng: None)


def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.trainer.add_gaussian_noise", lambda value, std, **_: np.asarray(value, dtype=np.float64))
