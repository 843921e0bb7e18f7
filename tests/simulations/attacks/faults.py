"""Faults that an implementation of DP-SGD could have, planted in the real training: what an audit has to find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import client.dp_steps
import client.trainer
from client.clipping import DoublePrecisionSums

Fault = Callable[[pytest.MonkeyPatch], None]


def noise_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise at all."""
    _noise_times(monkeypatch, 0.0)


def noise_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the noise that is charged."""
    _noise_times(monkeypatch, 0.1)


def no_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients enter the sum at their own length."""
    _clip_at(monkeypatch, 1e9)


def clip_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clip is two percent wider than the one that is charged."""
    _clip_at(monkeypatch, 1.02)


def everybody_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each user's gradient enters the sum twice."""
    real = client.dp_steps.poisson_sample
    monkeypatch.setattr(client.dp_steps, "poisson_sample", lambda n, p: np.repeat(real(n, p), 2))


def one_user_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of one user, and no other's, enters the sum twice."""
    real = client.dp_steps.poisson_sample

    def sample(n: int, p: float) -> NDArray[np.int64]:
        users = real(n, p)
        return np.concatenate([users, users[users == 7]])

    monkeypatch.setattr(client.dp_steps, "poisson_sample", sample)


def shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over shuffled users in batches of equal size, charged as Poisson samples."""
    rng = np.random.default_rng(2)
    left: list[NDArray[np.int64]] = []

    def sample(n: int, p: float) -> NDArray[np.int64]:
        if not left:
            left.extend(np.array_split(rng.permutation(n), round(1 / p)))
        return left.pop()

    monkeypatch.setattr(client.dp_steps, "poisson_sample", sample)


def fixed_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step draws a batch of fixed size afresh, charged as a Poisson sample."""
    rng = np.random.default_rng(3)
    monkeypatch.setattr(client.dp_steps, "poisson_sample", lambda n, p: rng.choice(n, round(n * p), replace=False))


def more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users are drawn a quarter more often than is charged."""
    real = client.dp_steps.poisson_sample
    monkeypatch.setattr(client.dp_steps, "poisson_sample", lambda n, p: real(n, 1.25 * p))


def _noise_times(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    real = client.trainer.add_gaussian_noise

    def add(value: NDArray[np.float64], std: float, **settings: Any) -> NDArray[np.float64]:
        return real(value, factor * std, **settings) if factor else np.asarray(value, dtype=np.float64)

    monkeypatch.setattr(client.trainer, "add_gaussian_noise", add)


def _clip_at(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    real = DoublePrecisionSums.clip_and_accumulate

    def clip(self: DoublePrecisionSums, *arguments: Any) -> None:
        planned = self.max_grad_norm
        self.max_grad_norm = factor * planned
        try:
            real(self, *arguments)
        finally:
            self.max_grad_norm = planned

    monkeypatch.setattr(DoublePrecisionSums, "clip_and_accumulate", clip)
