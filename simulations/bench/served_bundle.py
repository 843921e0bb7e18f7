"""A bundle of a student's size with random numbers in it, for measuring how fast one is served, not how well it recommends.

Student, compression and file are those of a run's bundle; only nobody taught it. Its recommendations mean nothing, and its card
says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from common.bundle.card import Card, DataFacts, ModelFacts, PrivacyFacts, TrainingFacts
from common.bundle.contents import ItemTable
from common.config_sections import DistillationConfig
from common.data.catalogue import Catalogue
from common.model.student import Shape, Student
from server.bundling import compress
from server.student_store import n_parameters

DECAY = 0.9


@dataclass(frozen=True)
class Size:
    """What decides the cost of an answer. Defaults: MovieLens-100K and the settings of ``[distillation]``."""

    items: int = 1_682
    window: int = 32
    settings: DistillationConfig = field(default_factory=DistillationConfig)

    @property
    def shape(self) -> Shape:
        chosen = self.settings
        return Shape(
            n_items=self.items,
            text_dim=chosen.text_dim,
            item_dim=chosen.item_dim,
            window=self.window,
            layers=chosen.layers,
            width=chosen.width,
            heads=chosen.heads,
            feed_forward=chosen.feed_forward,
            pooling_decay=DECAY,
            normalise_query=True,
        )


def random_parts(size: Size, seed: int = 0) -> tuple[Card, Catalogue, ItemTable, bytes]:
    """Card, catalogue, items and int8 model of a bundle; equal arguments give equal parts."""
    shape = size.shape
    student = random_student(shape, seed)
    compressed = compress(student)
    catalogue = Catalogue(
        ids=tuple(str(i) for i in range(size.items)),
        titles=tuple(f"Item {i}" for i in range(size.items)),
        categories=((),) * size.items,
        name="random",
    )
    facts = ModelFacts(
        window=shape.window, layers=shape.layers, width=shape.width, parameters=n_parameters(student), precision="int8"
    )
    card = Card(
        name="random",
        created="2024-01-01T00:00:00+00:00",
        data=DataFacts(name="random", items=size.items, silos=1, declared_users=1),
        training=TrainingFacts(rounds=0, backbone="none", encoder="none", licence="none"),
        privacy=PrivacyFacts(mode="none", unit="nobody", statement="random numbers, no data", trust="nobody"),
        model=facts,
        notes=("Random numbers of a student's size, to measure speed with.",),
    )
    return card, catalogue, compressed.items, compressed.model


def random_student(shape: Shape, seed: int = 0) -> Student:
    """One whose answers depend on all that they can depend on: no part of it is zero, as some are before it is taught."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = torch.nn.functional.normalize(torch.randn(shape.n_items, shape.text_dim), dim=1)
        student = Student(shape, text)
        with torch.no_grad():
            student.factors.normal_(std=0.1)
            student.correction.weight.normal_(std=shape.width**-0.5)
            student.bias.weight.normal_()
    return student.eval()
