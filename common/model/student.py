"""The student: a small causal transformer over item vectors that answers as the recommender does, without a language model.

An item is ``v_i = [x_i, e_i]``: its text vector, which is frozen, and a trainable factor, zero for an item of which nothing is
known but its text. With ``h_t`` the hidden state of a few narrow layers at item position ``t``::

    q_t      = [s · n(w · pool(x_1..x_t) + M h_t), C h_t]        n: to length 1 where the teacher does so, else nothing
    score(i) = <q_t, v_i> + b_i

So a catalogue's scores are one product with a table, and the share that an item of the history has in the query by way of the
pool is known exactly. Pooling weights, ``w``, ``s``, ``e`` and ``b`` start as the teacher's, ``M`` at zero: an untrained student
already ranks by similarity and popularity.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from common.errors import ModelError
from common.model.layers import ItemBias, Scale
from common.model.recommender import Batch, recency_pool

NEVER = -1e9
"""Attention's score of what may not be looked at."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a student, and what it takes over from its teacher unchanged.

    ``pooling_decay`` and ``normalise_query`` are the teacher's settings of these names; ``feed_forward`` is the width inside a
    layer's second half.
    """

    n_items: int
    text_dim: int
    item_dim: int
    window: int
    layers: int
    width: int
    heads: int
    feed_forward: int
    pooling_decay: float
    normalise_query: bool

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ModelError(f"a student of width {self.width} cannot have {self.heads} heads: the width must be a multiple")

    @property
    def dim(self) -> int:
        """Width of an item vector."""
        return self.text_dim + self.item_dim

    def as_dict(self) -> dict[str, int | float | bool]:
        return asdict(self)


class Layer(nn.Module):
    """Causal self-attention and a feed-forward net, each on the normalised input and added to it (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, last: Tensor | None = None) -> Tensor:
        """``(B, T, width)`` to the same; with ``last`` ``(B,)``, the last position of each row, ``(B, 1, width)`` of it alone."""
        normal = self.norm_attention(x)
        key, value = self.key_value(normal).chunk(2, dim=-1)
        length = x.shape[1]
        if last is None:
            asking = normal
            later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        else:
            x, asking = take(x, last), take(normal, last)
            later = (torch.arange(length, device=x.device) > last.unsqueeze(1)).reshape(-1, 1, 1, length)
        x = x + self.dropout(self.out(self._attend(self.query(asking), key, value, later)))
        return x + self.dropout(self.down(nn.functional.gelu(self.up(self.norm_forward(x)))))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, later: Tensor) -> Tensor:
        query, key, value = (self._by_head(part) for part in (query, key, value))
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).masked_fill(later, NEVER).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2)

    def _by_head(self, x: Tensor) -> Tensor:
        """``(B, T, width)`` to ``(B, heads, T, width of a head)``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Student(nn.Module):
    """See the module's text. Call it with a :class:`~common.model.recommender.Batch` for scores, as a recommender.

    Parameters
    ----------
    text:
        float32 ``(n_items, text_dim)``, the items' text vectors.
    dropout:
        Share of numbers left out inside layers in training.
    """

    text: Tensor

    def __init__(self, shape: Shape, text: Tensor, dropout: float = 0.0) -> None:
        super().__init__()
        if text.shape != (shape.n_items, shape.text_dim):
            raise ModelError(f"text vectors are {tuple(text.shape)}, the student's shape says {shape.n_items, shape.text_dim}")
        self.shape = shape
        self.register_buffer("text", text.detach().clone(), persistent=False)
        self.factors = nn.Parameter(torch.zeros(shape.n_items, shape.item_dim))
        self.token = nn.Linear(shape.dim, shape.width)
        self.place = nn.Parameter(0.02 * torch.randn(shape.window, shape.width))
        self.layers = nn.ModuleList(Layer(shape.width, shape.heads, shape.feed_forward, dropout) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.correction = nn.Linear(shape.width, shape.text_dim)
        self.factor_out = nn.Linear(shape.width, shape.item_dim, bias=False) if shape.item_dim else None
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)
        self.pool_weight, self.scale, self.bias = Scale(1.0), Scale(1.0), ItemBias(shape.n_items)

    @property
    def item_vectors(self) -> Tensor:
        """``v``, ``(n_items, dim)``."""
        return torch.cat([self.text, self.factors], dim=1)

    def forward(self, batch: Batch, last_only: bool = False) -> Tensor:
        """Scores ``(B, T, n_items)``, or ``(B, n_items)`` after each history's last item with ``last_only``."""
        vectors = self.vectors_of(batch.items)
        if last_only:
            query, _ = self.last_query(vectors, (batch.items >= 0).sum(1).clamp(min=1))
            return self.bias(query @ self.item_vectors.T)
        return self.bias(self.queries(vectors) @ self.item_vectors.T)

    def vectors_of(self, items: Tensor) -> Tensor:
        """``(B, T, dim)`` of item positions ``(B, T)``, zero for the padding ``-1``."""
        return self.item_vectors[items.clamp(min=0)] * (items >= 0).unsqueeze(-1)

    def queries(self, history: Tensor) -> Tensor:
        """``(B, T, dim)``, after every item of histories of item vectors ``(B, T, dim)``."""
        hidden = self._read(history)
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = self.norm(hidden)
        pooled = recency_pool(history[..., : self.shape.text_dim], self.shape.pooling_decay)
        return self._joined(self._compare(pooled, hidden)[0], hidden)

    def last_query(self, history: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """What a bundle's model computes.

        Parameters
        ----------
        history:
            float32 ``(B, T, dim)`` item vectors, oldest first, anything after the end.
        length:
            int64 ``(B,)``, in 1 … T.

        Returns
        -------
        The query ``(B, dim)`` after the last item, and ``(B, T)``, the share of each item's text vector in it.
        """
        last = length - 1
        hidden = self._read(history)
        for layer in self.layers[:-1]:
            hidden = layer(hidden)
        hidden = self.norm(self.layers[-1](hidden, last))
        age = (last.unsqueeze(1) - torch.arange(history.shape[1], device=history.device)).to(history.dtype)
        weights = torch.where(age >= 0, self.shape.pooling_decay ** age.clamp(min=0), 0.0)
        weights = (weights / weights.sum(1, keepdim=True)).unsqueeze(1)
        query, share = self._compare(weights @ history[..., : self.shape.text_dim], hidden)
        return self._joined(query, hidden).squeeze(1), (weights * share).squeeze(1)

    def _read(self, history: Tensor) -> Tensor:
        return self.token(history) + self.place[: history.shape[1]]

    def _joined(self, query: Tensor, hidden: Tensor) -> Tensor:
        """The part that meets text vectors, and the part that meets factors, where there are some."""
        return query if self.factor_out is None else torch.cat([query, self.factor_out(hidden)], dim=-1)

    def _compare(self, pooled: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The part of the query that meets text vectors, and how much of ``pooled`` is in it, ``(..., 1)``."""
        query = self.pool_weight(pooled) + self.correction(hidden)
        if not self.shape.normalise_query:
            return self.scale(query), self.scale(self.pool_weight(torch.ones_like(query[..., :1])))
        length = query.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return self.scale(query / length), self.scale(self.pool_weight(1.0 / length))


def take(x: Tensor, last: Tensor) -> Tensor:
    """``(B, 1, width)``, of ``(B, T, width)`` the position ``last`` ``(B,)`` of each row."""
    return x.gather(1, last.reshape(-1, 1, 1).expand(-1, 1, x.shape[2]))
