"""Data-free distillation: a small student learns what a finished model says of histories that the model made up itself.

The teacher is the federation's model, or several of them (checkpoints, or silos' models; FedDF, Lin et al. 2020). Histories come
from :mod:`server.sampling`; at every item of them the student is pulled towards the teacher's probabilities (Hinton et al. 2015)
and towards the direction of its query. Nothing but public files and the released adapter is read, so the result is as private as
the adapter was.

A few histories in a hundred are held out. They are made up as well, so what is measured on them may be published.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config import Config, DistillationConfig
from common.model.recommender import Recommender
from common.model.student import Shape, Student
from server.compress import keep, prune
from server.divergence import tail_divergence
from server.sampling import Histories, sample_histories

HELD_OUT = 0.02
"""Share of the histories that nothing is learnt from."""

CLIP, WARM_UP = 1.0, 0.03
"""L2 bound of a step's gradient, and the share of all steps in which the rate rises."""

PRUNED_AFTER = 2 / 3
"""Share of the epochs before small weights are taken out; in the others the rest learns to do without them."""


@dataclass(frozen=True)
class Epoch:
    """Means over positions: divergence in nats and one minus the cosine, learnt and held out; seconds since the start."""

    number: int
    divergence: float
    cosine: float
    held_out_divergence: float
    held_out_cosine: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Distilled:
    """A student in evaluation mode and how it came about.

    ``axes`` is float32 ``(dim of the text encoder, text_dim)``, the main axes onto which text vectors were turned and cut, or
    None where they are as the encoder made them. ``agreement`` is the mean share of the teacher's first ten items that are among
    the student's, on held-out histories, each item of a history left out of its own lists.
    """

    student: Student
    axes: NDArray[np.float32] | None
    epochs: tuple[Epoch, ...]
    agreement: float
    sampling_seconds: float
    training_seconds: float


Told = Callable[[str, int, int, str], None]
"""``told(stage, done, total, note)``."""


def distil(
    teachers: Sequence[Recommender],
    config: Config,
    *,
    public: Sequence[NDArray[np.integer]] = (),
    told: Told | None = None,
) -> Distilled:
    """Sample histories from the teachers and fit a student to what they say.

    Parameters
    ----------
    teachers:
        In evaluation mode, over one catalogue; the student's own parts start as those of the first.
    config:
        Of the run: ``distillation``, ``model.window`` and ``run.seed`` count.
    public:
        Histories that anybody may see; made-up ones begin with them, see :func:`server.sampling.sample_histories`.

    Raises
    ------
    ModelError
        If the teachers do not fit together, or the catalogue is too small.
    """
    settings, told = config.distillation, told or (lambda stage, done, total, note: None)
    began = time.monotonic()
    length = min(config.model.window, teachers[0].n_items - 1) if teachers else 1
    histories = sample_histories(
        teachers,
        settings.histories,
        length,
        top_k=settings.top_k,
        seed=config.run.seed,
        temperature=settings.temperature,
        exploration=settings.exploration,
        starts=public,
        done=lambda done: told("making up histories", done, settings.histories, ""),
    )
    sampled = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        axes = main_axes(teachers[0].item_vectors.cpu(), settings.text_dim)
        student = student_of(teachers[0], config, axes)
        lesson = Lesson(student, histories, axes, settings, config.run.seed)
        epochs = lesson.all_epochs(told)
    training = time.monotonic() - sampled
    kept = None if axes is None else axes.numpy()
    return Distilled(student.eval(), kept, epochs, lesson.agreement(), sampled - began, training)


def student_of(teacher: Recommender, config: Config, axes: Tensor | None) -> Student:
    """An untrained student of ``teacher``; its text vectors are the teacher's, turned to ``axes`` where there are some."""
    settings, model = config.distillation, teacher.config
    vectors = teacher.item_vectors.cpu()
    text = vectors if axes is None else vectors @ axes
    shape = Shape(
        n_items=len(text),
        text_dim=text.shape[1],
        item_dim=settings.item_dim,
        window=model.window,
        layers=settings.layers,
        width=settings.width,
        heads=settings.heads,
        feed_forward=settings.feed_forward,
        pooling_decay=model.pooling_decay,
        normalise_query=model.normalise_query,
    )
    student = Student(shape, text)
    with torch.no_grad():
        student.bias.weight.copy_(teacher.bias.weight)
        student.pool_weight.weight.copy_(teacher.pool_weight.weight)
        student.scale.weight.copy_(teacher.scale.weight)
        nn.init.normal_(student.factors, std=0.05)
        if teacher.item_factors is not None:
            shared = min(settings.item_dim, teacher.item_factors.weight.shape[1])
            student.factors[:, :shared] = teacher.item_factors.weight[:, :shared].cpu()
    return student


def main_axes(vectors: Tensor, text_dim: int) -> Tensor | None:
    """The ``text_dim`` directions ``(dim, text_dim)`` that keep most of the products of ``vectors`` (Eckart & Young 1936).

    None where there is nothing to cut: for 0, where vectors are no longer than that, and where there are no more items than that,
    of which new items' texts would keep little. The directions are nested: the first ones are those of any smaller ``text_dim``.
    """
    if not 0 < text_dim < min(vectors.shape):
        return None
    _, _, axes = torch.linalg.svd(vectors.double(), full_matrices=False)
    return axes[:text_dim].T.float().contiguous()


def optimisers_of(student: Student, settings: DistillationConfig) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of the layers, AdamW for all else.

    Muon (Jordan et al. 2024) makes the steps of a matrix orthogonal. At the same number of epochs the divergence from a reference
    teacher of MovieLens-100K came to two thirds of that with AdamW alone.
    """
    turned: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        if parameter.ndim < 2 or name in ("factors", "place"):
            others.append(parameter)
        else:
            (turned if name.startswith("layers.") else matrices).append(parameter)
    decay = settings.weight_decay
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return (
        torch.optim.AdamW(groups, lr=settings.learning_rate),
        torch.optim.Muon(turned, lr=settings.matrix_learning_rate, weight_decay=decay),
    )


class Lesson:
    """A student, the histories that it learns from, and those on which it is asked."""

    def __init__(
        self, student: Student, histories: Histories, axes: Tensor | None, settings: DistillationConfig, seed: int
    ) -> None:
        self.generator = np.random.default_rng(seed)
        drawn = self.generator.permutation(len(histories))
        held = max(1, round(HELD_OUT * len(histories)))
        self.student, self.settings = student, settings
        self.axes = axes
        self.histories, self.held, self.taught = histories, histories.part(drawn[:held]), drawn[held:]
        self.masks: dict[str, Tensor] = {}
        self.optimisers = optimisers_of(student, settings)
        self.steps = settings.epochs * math.ceil(len(self.taught) / settings.batch_size)
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(one, self._rate) for one in self.optimisers]

    def all_epochs(self, told: Told) -> tuple[Epoch, ...]:
        """Every pass, measured on the held-out histories after each."""
        began, out = time.monotonic(), []
        for number in range(1, self.settings.epochs + 1):
            if self.settings.pruning and number == 1 + int(PRUNED_AFTER * self.settings.epochs):
                self.masks = prune(self.student, self.settings.pruning)
            divergence, cosine = self.epoch()
            held = self.measured()
            out.append(Epoch(number, divergence, cosine, *held, time.monotonic() - began))
            told("teaching the student", number, self.settings.epochs, f"divergence {held[0]:.4f}")
        return tuple(out)

    def epoch(self) -> tuple[float, float]:
        """One pass in an order of its own; mean divergence and cosine distance while learning."""
        self.student.train()
        order = self.generator.permutation(self.taught)
        sums = np.zeros(2)
        for start in range(0, len(order), self.settings.batch_size):
            rows = np.sort(order[start : start + self.settings.batch_size])
            divergence, cosine = self._distances(self.histories.part(rows), learning=True)
            loss = divergence.mean() + self.settings.cosine_weight * cosine.mean()
            self.student.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.student.parameters(), CLIP)
            for optimiser, schedule in zip(self.optimisers, self.schedules, strict=True):
                optimiser.step()
                schedule.step()
            keep(self.student, self.masks)
            sums += len(rows) * np.array([divergence.mean().item(), cosine.mean().item()])
        return float(sums[0] / len(order)), float(sums[1] / len(order))

    def measured(self) -> tuple[float, float]:
        """Mean divergence and cosine distance over all positions of the held-out histories."""
        self.student.eval()
        sums, size = np.zeros(2), self.settings.batch_size
        with torch.inference_mode():
            for start in range(0, len(self.held), size):
                distances = self._distances(self.held.part(slice(start, start + size)), learning=False)
                sums += [float(one.sum()) for one in distances]
        divergence, cosine = sums / self.held.items.size
        return float(divergence), float(cosine)

    def agreement(self, k: int = 10) -> float:
        """Share of the teacher's first ``k`` new items after each held-out history that are among the student's."""
        self.student.eval()
        items = torch.from_numpy(self.held.items).long()
        with torch.inference_mode():
            scores = self.student.bias(self.student.queries(self.student.vectors_of(items))[:, -1] @ self.student.item_vectors.T)
        mine = scores.scatter(1, items, -torch.inf).topk(min(k, scores.shape[1]), dim=1).indices.numpy()
        shares = []
        for row, history in enumerate(self.held.items):
            best = self.held.best[row, -1]
            theirs = best[~np.isin(best, history)][:k]
            shares.append(np.isin(theirs, mine[row]).mean() if len(theirs) else 1.0)
        return float(np.mean(shares))

    def _distances(self, histories: Histories, learning: bool) -> tuple[Tensor, Tensor]:
        """Divergence and cosine distance ``(rows,)`` at some positions of each history, at all of them unless ``learning``."""
        student, text_dim = self.student, self.student.shape.text_dim
        factors: Tensor = student.factors
        if learning and self.settings.factor_dropout:
            factors = factors * (torch.rand(len(factors), 1) >= self.settings.factor_dropout)
        items = torch.from_numpy(histories.items).long()
        query = student.queries(torch.cat([student.text, factors], dim=1)[items])
        chosen = self._positions(items.shape, learning)
        query = query.flatten(0, 1)[torch.from_numpy(chosen)]
        scores = torch.addmm(query[:, :text_dim] @ student.text.T, query[:, text_dim:], factors.T)
        divergence = tail_divergence(
            student.bias(scores),
            _rows(histories.best, chosen).long(),
            _rows(histories.log_shares, chosen).float(),
            _rows(histories.tail, chosen).float(),
        )
        theirs = _rows(histories.queries, chosen).float()
        theirs = theirs if self.axes is None else theirs @ self.axes
        return divergence, 1.0 - nn.functional.cosine_similarity(query[:, :text_dim], theirs, dim=-1)

    def _positions(self, shape: torch.Size, learning: bool) -> NDArray[np.int64]:
        """Rows of the flattened histories."""
        n, length = shape
        wanted = self.settings.positions if learning else 0
        if not 0 < wanted < length:
            return np.arange(n * length)
        drawn = np.argsort(self.generator.random((n, length)), axis=1)[:, :wanted]
        return np.sort((drawn + length * np.arange(n)[:, None]).reshape(-1))

    def _rate(self, step: int) -> float:
        """Rising from 0, then falling as half a cosine (Loshchilov & Hutter 2017)."""
        warm = max(1, round(WARM_UP * self.steps))
        return min((step + 1) / warm, 0.5 * (1.0 + math.cos(math.pi * step / self.steps)) + 0.005)


def _rows(values: NDArray[np.generic], chosen: NDArray[np.int64]) -> Tensor:
    """Of ``(n, length, …)`` the positions ``chosen``, ``(rows, …)``."""
    return torch.from_numpy(values.reshape(-1, *values.shape[2:])[chosen])
