"""The fused divergence is the textbook one, and so is its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.divergence import tail_divergence


def by_the_book(scores: torch.Tensor, best: torch.Tensor, log_shares: torch.Tensor, log_tail: torch.Tensor) -> torch.Tensor:
    """KL of (k items, all others) in float64, left to autograd."""
    log_q = scores.double().log_softmax(1)
    of_best = log_q.gather(1, best)
    others = torch.ones_like(log_q, dtype=torch.bool).scatter(1, best, False)
    rest = log_q.masked_fill(~others, -torch.inf).logsumexp(1)
    p, tail = log_shares.double(), log_tail.double()
    return (p.exp() * (p - of_best)).sum(1) + tail.exp() * (tail - rest)


def questions(seed: int, rows: int, n_items: int, k: int, spread: float) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    teacher = torch.from_numpy(rng.normal(0, spread, (rows, n_items))).log_softmax(1)
    best = teacher.topk(k, dim=1)
    tail = torch.log1p(-best.values.exp().sum(1))
    scores = torch.from_numpy(rng.normal(0, spread, (rows, n_items))).float()
    return scores, best.indices, best.values.float(), tail.float()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 9), st.floats(0.1, 3.0))
def test_value_and_gradient(seed: int, rows: int, k: int, spread: float) -> None:
    scores, best, log_shares, log_tail = questions(seed, rows, 12, k, spread)
    weights = torch.linspace(0.5, 2.0, rows)
    mine, book = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    loss, expected = tail_divergence(mine, best, log_shares, log_tail), by_the_book(book, best, log_shares, log_tail)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    (loss * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(mine.grad, book.grad, rtol=1e-3, atol=1e-5)


def test_it_is_zero_for_the_teacher_itself_and_leaves_the_scores_alone() -> None:
    scores, best, log_shares, log_tail = questions(0, 4, 30, 5, 2.0)
    own = scores.log_softmax(1)
    top = own.topk(5, dim=1)
    kept = scores.clone()
    loss = tail_divergence(scores, top.indices, top.values, torch.log1p(-top.values.exp().sum(1)))
    assert loss.abs().max() < 1e-5
    assert torch.equal(scores, kept)
    assert (tail_divergence(scores, best, log_shares, log_tail) > 0.01).all()


@pytest.mark.parametrize("score", [80.0, -80.0])
def test_certainty_stays_finite(score: float) -> None:
    scores = torch.zeros(1, 10)
    scores[0, 0] = score
    scores.requires_grad_()
    loss = tail_divergence(scores, torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.4]]).log(), torch.tensor([0.1]).log())
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(scores.grad).all()
