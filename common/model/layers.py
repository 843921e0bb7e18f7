"""Small trainable layers of the recommender.

Each takes a batch first and touches one user's row with that row's input only, so that per-user gradients exist.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """Multiply by one trainable number."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([float(start)]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class ItemBias(nn.Module):
    """Add one trainable number per item to scores ``(B, L, n_items)``."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_items))

    def forward(self, scores: Tensor) -> Tensor:
        return scores + self.weight


class ItemFactors(nn.Module):
    """One trainable vector per item, used both ways.

    Item positions ``(B, L)`` (integers) look vectors up, ``(B, L, dim)``; vectors ``(B, L, dim)`` (floats) are scored against
    all items, ``(B, L, n_items)``.
    """

    def __init__(self, n_items: int, dim: int, std: float = 0.05) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_items, dim) * std)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            return nn.functional.linear(x, self.weight)
        return nn.functional.embedding(x, self.weight)
