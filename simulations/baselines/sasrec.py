"""SASRec (Kang and McAuley, arXiv 1808.09781) with the full softmax instead of one sampled negative.

A causal transformer over learnt item embeddings; at each position it predicts the next item by a cross-entropy over the
whole catalogue, with input and output embeddings shared and output biases that start from log counts. That loss, not the
architecture, is what lifts it above the published figures (Klenitskiy and Vasilev, arXiv 2309.07602).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from common.data.catalogue import Catalogue
from common.errors import ModelError
from simulations.baselines import Histories, Progress, register
from simulations.baselines._matrix import counts

# Cells of logits that exist at a time while the loss is computed; 4 MB stay in the processor's cache.
_LOGIT_CELLS = 1_000_000
# Users that are scored together.
_USERS = 256


@register("sasrec")
@dataclass
class SASRec:
    """Next-item prediction by a small causal transformer.

    Parameters
    ----------
    width, layers, heads, dropout:
        Of the transformer; the feed-forward part is four times as wide.
    window:
        Most recent items that are read.
    epochs, batch_size, learning_rate, weight_decay:
        Of AdamW. One window per user and epoch.
    random_windows:
        Share of the windows that end somewhere within the history; the others end with it.
    """

    width: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.2
    window: int = 50
    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    random_windows: float = 0.5
    _network: _Network | None = field(default=None, init=False, repr=False)

    def fit(
        self,
        train: Histories,
        catalogue: Catalogue,
        item_vectors: NDArray[np.float32] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """As in :class:`~simulations.baselines.Reference`; ``progress`` counts epochs and may call :meth:`score`."""
        users = [history for history in train if len(history) > 1]
        if not users:
            raise ModelError("sasrec: no history has two items, so there is no next item to learn from")
        rng = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _Network(len(catalogue), self.width, self.layers, self.heads, self.dropout, self.window)
            with torch.no_grad():
                network.bias.copy_(torch.from_numpy(np.log1p(counts(train, len(catalogue)))))
            optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
            self._network = network
            for epoch in range(self.epochs):
                network.train()
                for items, following in self._batches(users, rng):
                    known = following >= 0
                    hidden = network(items)[known]
                    loss = _SoftmaxLoss.apply(hidden, network.items.weight, network.bias, following[known])  # type: ignore[no-untyped-call]
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                    optimizer.step()
                if progress is not None:
                    progress(epoch + 1, self.epochs)

    @torch.no_grad()
    def score(self, histories: Histories) -> NDArray[np.float32]:
        """As in :class:`~simulations.baselines.Reference`; a user without history gets the output biases."""
        if self._network is None:
            raise ModelError("sasrec: call fit before score")
        network, n_items = self._network.eval(), self._network.items.num_embeddings
        out = np.empty((len(histories), n_items), dtype=np.float32)
        for start in range(0, len(histories), _USERS):
            block = [history[-self.window :] for history in histories[start : start + _USERS]]
            lengths = torch.tensor([len(history) for history in block])
            hidden = network(_pad(block, 0))[torch.arange(len(block)), (lengths - 1).clamp_min(0)]
            hidden = hidden * (lengths > 0)[:, None]
            out[start : start + len(block)] = F.linear(hidden, network.items.weight, network.bias).numpy()
        return out

    def _batches(self, users: Histories, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch: right-padded items ``(batch, steps)``, and the items that follow them, -1 where there is none."""
        span = self.window + 1
        windows = []
        for history in users:
            end = len(history)
            if end > span and rng.random() < self.random_windows:
                end = int(rng.integers(span, end + 1))
            windows.append(history[max(0, end - span) : end])
        order = rng.permutation(len(windows))
        for start in range(0, len(order), self.batch_size):
            batch = [windows[i] for i in order[start : start + self.batch_size]]
            yield _pad([w[:-1] for w in batch], 0), _pad([w[1:] for w in batch], -1)


class _Network(nn.Module):
    """Item positions to hidden states; items and positions are learnt, all of one width."""

    def __init__(self, n_items: int, width: int, layers: int, heads: int, dropout: float, window: int) -> None:
        super().__init__()
        self.items, self.positions = nn.Embedding(n_items, width), nn.Embedding(window, width)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.dropout = dropout
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, items: Tensor) -> Tensor:
        """Hidden states ``(users, steps, width)`` of right-padded item positions ``(users, steps)``."""
        # Scaled as in the paper's code: with the small start that the output side wants, items would drown in positions.
        x = self.items(items) * self.items.embedding_dim**0.5 + self.positions.weight[: items.shape[1]]
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out


class _Block(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        users, steps, width = x.shape
        p = self.dropout if self.training else 0.0
        q, k, v = self.qkv(self.norm1(x)).view(users, steps, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # Causal and padded on the right: no real position ever sees padding.
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).reshape(users, steps, width)), p)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), p)


class _SoftmaxLoss(torch.autograd.Function):
    """Mean cross-entropy of ``hidden @ items.T + bias``, with its gradient, without ever holding all logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, items: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        grad_hidden, grad_items, grad_bias = torch.empty_like(hidden), torch.zeros_like(items), torch.zeros_like(bias)
        loss = hidden.new_zeros(())
        n = len(hidden)
        rows = max(1, _LOGIT_CELLS // len(items))
        for start in range(0, n, rows):
            part, wanted = hidden[start : start + rows], target[start : start + rows, None]
            logits = torch.addmm(bias, part, items.T)
            total = torch.logsumexp(logits, dim=1, keepdim=True)
            loss += (total - logits.gather(1, wanted)).sum()
            error = logits.sub_(total).exp_()
            error.scatter_add_(1, wanted, -torch.ones_like(total))
            error /= n
            torch.mm(error, items, out=grad_hidden[start : start + rows])
            grad_items.addmm_(error.T, part)
            grad_bias += error.sum(dim=0)
        ctx.save_for_backward(grad_hidden, grad_items, grad_bias)
        return loss / n

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (*(gradients[0] * saved for saved in ctx.saved_tensors), None)


def _pad(histories: Histories, filler: int) -> Tensor:
    """int64 ``(users, longest)``, at least one step long."""
    lengths = np.array([len(history) for history in histories])
    out = np.full((len(histories), max(1, lengths.max())), filler, dtype=np.int64)
    out[np.arange(out.shape[1]) < lengths[:, None]] = np.concatenate(histories)
    return torch.from_numpy(out)
