"""Clipped sums: what one user moves is bounded in the numbers that were computed, not only on paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from torch import nn

from client.clipping import DoublePrecisionSums

CLIP = 0.3
SHAPES = ((40, 5), (30,))


def clipped_sum(kind: type[DPOptimizer], gradients: list[torch.Tensor], block: int) -> np.ndarray:
    """The sum over users of their clipped gradients, in blocks of users, flat."""
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    optimizer = kind(
        torch.optim.SGD(parameters, lr=1.0),
        noise_multiplier=1.0,
        max_grad_norm=CLIP,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    n = len(gradients[0])
    for start in range(0, max(n, 1), block):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad_sample = gradient[start : start + block].clone()  # type: ignore[attr-defined]
        optimizer.clip_and_accumulate()
    return torch.cat([p.summed_grad.double().flatten() for p in parameters]).numpy()  # type: ignore[attr-defined]


def gradients(n: int, scale: float = 1.0) -> list[torch.Tensor]:
    """Users who pull mostly the same way, so that the sum grows."""
    generator = torch.Generator().manual_seed(3)
    return [scale * (1.0 + 0.3 * torch.randn((n, *shape), generator=generator)) for shape in SHAPES]


def test_the_sum_is_that_of_a_loop_over_users() -> None:
    users = gradients(37)
    expected = np.zeros(230)
    for user in range(37):
        flat = torch.cat([g[user].flatten() for g in users]).double().numpy()
        expected += flat * min(1.0, CLIP / np.linalg.norm(flat))
    for block in (37, 8, 1):
        np.testing.assert_allclose(clipped_sum(DoublePrecisionSums, users, block), expected, rtol=1e-13)


@pytest.mark.parametrize("block", [500, 64])
def test_no_user_moves_the_computed_sum_by_more_than_the_clip(block: int) -> None:
    """Opacus' own sums in single precision pass the bound, which shows that this test can fail."""
    users = gradients(500)

    def most(kind: type[DPOptimizer]) -> float:
        whole = clipped_sum(kind, users, block)
        without = (clipped_sum(kind, [torch.cat([g[:u], g[u + 1 :]]) for g in users], block) for u in range(0, 500, 25))
        return max(float(np.linalg.norm(whole - rest)) / CLIP for rest in without)

    assert most(DoublePrecisionSums) <= 1 + 1e-11
    assert most(DPOptimizer) > 1 + 1e-6


def test_small_gradients_are_not_scaled_and_nothing_stays_nothing() -> None:
    small = gradients(3, scale=1e-6)
    expected = torch.cat([g.double().sum(0).flatten() for g in small]).numpy()
    np.testing.assert_allclose(clipped_sum(DoublePrecisionSums, small, 3), expected, rtol=1e-13)
    assert not clipped_sum(DoublePrecisionSums, [torch.zeros_like(g) for g in small], 3).any()


def test_nobody_adds_nothing() -> None:
    assert not clipped_sum(DoublePrecisionSums, [g[:0] for g in gradients(1)], 1).any()
