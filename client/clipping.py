"""Clipping and summing per-user gradients in double precision.

The bound on what one user adds to a sum must hold for the number that was computed. In single precision it does not: one user
more changes how all later partial sums are rounded, and with hundreds of users these roundings add up to parts in a hundred
thousand of the clip (Casacuberta, Shoemate, Vadhan & Wagaman 2022, arXiv:2207.10635). In double precision they are below
``n² · 2⁻⁵³ · clip`` for ``n`` users in a step: 1e-8 of the clip for ten thousand.
"""

from __future__ import annotations

import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed
from torch import Tensor


class DoublePrecisionSums(DPOptimizer):
    """Opacus' optimiser, whose ``summed_grad`` is float64."""

    def clip_and_accumulate(self) -> None:
        """Add each user's gradient, clipped to ``max_grad_norm`` over all parameters, to ``parameter.summed_grad``."""
        factor = self._factors()
        for parameter in self.params:
            _check_processed_flag(parameter.grad_sample)
            gradients = self._get_flat_grad_sample(parameter)
            clipped = torch.einsum("i,i...", factor.to(gradients.device), gradients.double())
            parameter.summed_grad = clipped if parameter.summed_grad is None else parameter.summed_grad + clipped
            _mark_as_processed(parameter.grad_sample)

    def _factors(self) -> Tensor:
        """float64 ``(B,)``: what each user's gradient is multiplied by, at most 1."""
        squares = [self._get_flat_grad_sample(p).double().flatten(1).square().sum(1) for p in self.params]
        norms = torch.stack([s.to(squares[0].device) for s in squares]).sum(0).sqrt()
        return (self.max_grad_norm / norms.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1.0)
