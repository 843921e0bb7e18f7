"""A bundle that a person can look at: made-up titles in themes, and vectors in which a theme and its words lie together.

For tests of the page, and for the picture of it in the docs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.bundle.card import Card, DataFacts, Measured, ModelFacts, PrivacyFacts, TrainingFacts
from common.bundle.contents import Bundle, ItemTable
from common.bundle.files import read_bundle, write_bundle
from common.data.synthetic import make_catalogue
from common.privacy.signing import SigningKey
from tests.bundles import tiny_model

TEXT_DIM, DIM = 48, 56


def shop_bundle(
    path: Path,
    key: SigningKey,
    n_items: int = 400,
    *,
    mode: str = "distributed",
    seed: int = 3,
    text_dim: int = TEXT_DIM,
    **card: Any,
) -> Bundle:
    """Write the bundle ``path``; it is read again and returned.

    ``text_dim`` says how many columns count as text: with few of them the sequence model decides. ``card`` changes fields of its
    card.
    """
    random = np.random.default_rng(seed)
    catalogue = make_catalogue(n_items, 14, random)
    names = sorted({name for row in catalogue.categories for name in row})
    themes = dict(zip(names, random.standard_normal((len(names), TEXT_DIM)), strict=True))
    words: dict[str, Any] = {}
    text = np.zeros((n_items, TEXT_DIM))
    for row, (title, categories) in enumerate(zip(catalogue.titles, catalogue.categories, strict=True)):
        for name in categories:
            text[row] += themes[name] / len(categories)
        for word in title.split():
            text[row] += 0.35 * words.setdefault(word, random.standard_normal(TEXT_DIM))
    own = 0.15 * random.standard_normal((n_items, DIM - TEXT_DIM))
    vectors = np.concatenate([text / np.linalg.norm(text, axis=1, keepdims=True), own], axis=1).astype(np.float32)
    biases = np.log(0.2 + random.zipf(2.0, n_items).clip(max=40)).astype(np.float32) / 4
    items = ItemTable.quantised(vectors, biases, text_dim)
    model = tiny_model(DIM, text_dim)
    write_bundle(path, card=_card(n_items, mode, **card), catalogue=catalogue, items=items, model=model, key=key)
    return read_bundle(path, {key.public_key})


def _card(n_items: int, mode: str, **changes: Any) -> Card:
    protected = mode != "none"
    privacy = PrivacyFacts(
        mode=mode,  # type: ignore[arg-type]
        epsilon=7.9 if protected else None,
        delta=1e-6 if protected else None,
        unit="one user of one silo, add/remove",
        statement="What the model knows would be nearly the same without any one person: epsilon is 7.90 at delta 1e-06."
        if protected
        else "Trained without noise.",
        trust="4 of the 5 silos add their noise; the coordinator need not be trusted" if protected else "everybody",
    )
    fields: dict[str, Any] = {
        "name": "Made-up library",
        "created": "2024-05-01T12:00:00+00:00",
        "data": DataFacts(name="made-up library", items=n_items, silos=5, declared_users=12_000),
        "training": TrainingFacts(rounds=40, backbone="minilm", encoder="minilm", licence="Apache-2.0"),
        "privacy": privacy,
        "model": ModelFacts(window=6, layers=2, width=64, parameters=261_000, precision="int8"),
        "quality": (
            Measured(name="NDCG@10", value=0.0412, low=0.0371, high=0.0454, note="made up, as all of this card"),
            Measured(name="HR@10", value=0.0811, low=0.0741, high=0.0888),
        ),
        **changes,
    }
    return Card(**fields)
