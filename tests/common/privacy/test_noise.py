"""Noise is Gaussian with the claimed standard deviation, and nobody can make it again."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch
from scipy import stats

from common.privacy.noise import gaussian_noise


def test_the_draws_are_gaussian_with_the_claimed_standard_deviation() -> None:
    """Chi-square for the variance, z for the mean, Kolmogorov-Smirnov for the shape; together false alarm once in 3 million."""
    n, std = 200_000, 3.7
    z = gaussian_noise((n // 4, 4), std).reshape(-1) / std
    alarm = 1e-7
    assert stats.chi2.ppf(alarm / 2, n) < (z**2).sum() < stats.chi2.isf(alarm / 2, n)
    assert abs(z.sum()) / np.sqrt(n) < stats.norm.isf(alarm / 2)
    assert stats.kstest(z, "norm").pvalue > alarm


def test_neighbouring_draws_are_independent() -> None:
    """Sine and cosine of one angle, and one draw and the next: no correlation beyond 5.5 deviations (1 in 26 million each)."""
    n = 100_000
    z = gaussian_noise((n,), 1.0)
    half = n // 2
    for a, b in ((z[:half], z[half:]), (z[:-1], z[1:]), (z[:half] ** 2, z[half:] ** 2)):
        assert abs(np.corrcoef(a, b)[0, 1]) * np.sqrt(len(a)) < 5.5


def test_no_seed_brings_the_noise_back() -> None:
    def draw() -> np.ndarray:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  the global generator must not matter
        torch.manual_seed(0)
        return gaussian_noise((1000,), 1.0)

    first, second = draw(), draw()
    assert not (first == second).any()


def test_each_draw_takes_fresh_bits_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """53 bits for a radius and as many for an angle: 16 bytes for two draws."""
    asked: list[int] = []
    real = os.urandom

    def counted(n: int) -> bytes:
        asked.append(n)
        return real(n)

    monkeypatch.setattr(os, "urandom", counted)
    gaussian_noise((501,), 1.0)
    assert sum(asked) == 16 * 251


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_the_rarest_bits_give_a_number(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda n: word.to_bytes(8, "little") * (n // 8))
    draws = gaussian_noise((4,), 1.0)
    assert np.isfinite(draws).all()
    assert np.abs(draws).max() < 8.6


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (2, 3, 5)])
def test_every_shape(shape: tuple[int, ...]) -> None:
    draws = gaussian_noise(shape, 1.0)
    assert draws.shape == shape
    assert draws.dtype == np.float64


def test_no_deviation_is_no_noise() -> None:
    assert not gaussian_noise((10,), 0.0).any()
