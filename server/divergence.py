"""How far a student's distribution is from what is kept of its teacher's: the first items one by one, all others as one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOOR = 1e-6
"""No probability of all other items together counts as less."""


class _TailDivergence(torch.autograd.Function):
    """Loss and gradient in one pass over the scores, whose memory is used again: at full catalogues that is most of the work."""

    @staticmethod
    def forward(context: Any, scores: Tensor, best: Tensor, log_shares: Tensor, log_tail: Tensor) -> Tensor:
        chances = scores - scores.amax(1, keepdim=True)
        chances.exp_()
        chances /= chances.sum(1, keepdim=True)
        of_best = chances.gather(1, best)
        rest = (1.0 - of_best.sum(1, keepdim=True)).clamp(min=FLOOR)
        shares, tail = log_shares.exp(), log_tail.exp().unsqueeze(1)
        loss = (shares * (log_shares - of_best.clamp(min=1e-30).log())).sum(1) + (
            tail * (log_tail.unsqueeze(1) - rest.log())
        ).squeeze(1)
        if context.needs_input_grad[0]:
            chances *= 1.0 - tail / rest
            chances.scatter_(1, best, of_best - shares)
            context.save_for_backward(chances)
        return loss

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, None, None, None]:
        (slope,) = context.saved_tensors
        return slope * gradients[0].unsqueeze(1), None, None, None


def tail_divergence(scores: Tensor, best: Tensor, log_shares: Tensor, log_tail: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(teacher ‖ student) over ``k`` items and "any other", nats, ``(R,)``.

    Parameters
    ----------
    scores:
        float32 ``(R, n_items)``, the student's.
    best:
        int64 ``(R, k)``, positions of the teacher's first items, all different in a row.
    log_shares, log_tail:
        float32 ``(R, k)`` and ``(R,)``, logarithms of the teacher's probabilities of these and of all other items together.

    Notes
    -----
    With probabilities ``q`` of the student, ``p`` of the teacher, the derivative by a score is ``q_i - p_i`` for the ``k`` items
    and ``q_i (1 - p_tail / q_tail)`` for the others.
    """
    return _TailDivergence.apply(scores, best, log_shares, log_tail)
