"""The recommender: a frozen causal language model that reads items as soft tokens and predicts the next one.

A user is ``[user text tokens] [item 1] … [item T]``. With ``x_i`` the unit vector of item ``i``'s text and ``h_t`` the
hidden state at item position ``t``::

    q_t      = w · pool(x_1..x_t) + M h_t          pool: recency-weighted mean; M starts at zero
    score(i) = s · <q_t, x_i> + <C h_t, e_i> + b_i

so that before any training the model ranks by similarity to the recent history and by popularity. LoRA adapters, ``M``,
``C``, the item factors ``e``, the biases ``b``, ``w`` and ``s`` are what is trained; the backbone and ``x`` never are.

Nothing here mixes users: every operation before the loss works on one user's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config import Config, ModelConfig
from common.data.catalogue import Catalogue
from common.errors import ModelError
from common.model.backbone import Backbone, load_backbone, weights_fingerprint
from common.model.encoder import Progress, item_vectors
from common.model.layers import ItemBias, ItemFactors, Scale


@dataclass(frozen=True)
class Batch:
    """Users side by side.

    Parameters
    ----------
    items:
        int64 ``(B, T)`` positions in the catalogue, oldest first, right-padded with ``-1``.
    text:
        int64 ``(B, P)`` token ids of the users' text, right-padded with ``-1``; ``P`` may be 0.
    """

    items: Tensor
    text: Tensor

    def __post_init__(self) -> None:
        if self.items.ndim != 2 or self.text.ndim != 2 or len(self.items) != len(self.text):
            raise ModelError(
                f"a batch needs items (B, T) and text (B, P), got {tuple(self.items.shape)}, {tuple(self.text.shape)}"
            )

    def to(self, device: torch.device) -> Batch:
        return Batch(self.items.to(device), self.text.to(device))

    @classmethod
    def of_histories(
        cls, histories: Sequence[NDArray[np.integer]], window: int, text: Sequence[Sequence[int]] | None = None
    ) -> Batch:
        """The last ``window`` items of each history, and each user's text tokens; None for people without text."""
        text = [()] * len(histories) if text is None else text
        return cls(
            padded([history[-window:] for history in histories], window),
            padded(text, max((len(tokens) for tokens in text), default=0)),
        )


def padded(rows: Sequence[Sequence[int] | NDArray[np.integer]], width: int) -> Tensor:
    """int64 ``(len(rows), width)``, each row filled up with ``-1`` on the right."""
    out = np.full((len(rows), width), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        out[number, : len(row)] = row
    return torch.from_numpy(out)


@dataclass(frozen=True, eq=False)
class Read:
    """What is kept of histories that were read so far, all of one length, so that the next item costs one token, not all again.

    ``keys`` are the backbone's keys and values, ``total`` ``(B, dim)`` the sum of item vectors, each weighing ``pooling_decay``
    per newer one, ``weight`` the sum of these weights, ``length`` the number of items.
    """

    keys: Any
    total: Tensor
    weight: float
    length: int


class Recommender(nn.Module):
    """See the module's text. Call it with a :class:`Batch` for scores ``(B, T, n_items)`` at every item position."""

    item_vectors: Tensor

    def __init__(self, config: ModelConfig, backbone: Backbone, vectors: NDArray[np.float32], catalogue_fingerprint: str) -> None:
        super().__init__()
        n_items, dim = vectors.shape
        self.config = config
        self.name = backbone.name
        self.encoder_name = config.encoder
        self.catalogue_fingerprint = catalogue_fingerprint
        self.register_buffer("item_vectors", torch.from_numpy(np.ascontiguousarray(vectors)), persistent=False)
        self.tokenizer = backbone.tokenizer
        self.first_position = backbone.first_position
        self.weights = weights_fingerprint(backbone.model)  # before LoRA is put into it
        self.soft_token_norm = float(backbone.embedding().weight.norm(dim=-1).mean())
        self.backbone = _with_lora(backbone, config)
        width = backbone.width

        self.input_map: nn.Linear | None = None
        if config.input_map:
            self.input_map = nn.Linear(dim, width)
            with torch.no_grad():
                self.input_map.weight.copy_(_embed_matrix(dim, width).T * self.soft_token_norm)
                self.input_map.bias.zero_()
        else:
            self.register_buffer("input_matrix", _embed_matrix(dim, width) * self.soft_token_norm, persistent=False)

        self.item_factors: ItemFactors | None = None
        if config.item_dim:
            self.item_factors = ItemFactors(n_items, config.item_dim)
            self.factor_in = nn.Linear(config.item_dim, width, bias=False)
            self.factor_out = nn.Linear(width, config.item_dim, bias=False)
            nn.init.normal_(self.factor_in.weight, std=0.02)
            nn.init.normal_(self.factor_out.weight, std=0.02)

        rank = config.correction_rank
        if rank:
            down, up = nn.Linear(width, rank, bias=False), nn.Linear(rank, dim, bias=False)
            nn.init.normal_(down.weight, std=width**-0.5)
            nn.init.zeros_(up.weight)
            self.correction: nn.Module = nn.Sequential(down, up)
        else:
            self.correction = nn.Linear(width, dim)
            nn.init.zeros_(self.correction.weight)
            nn.init.zeros_(self.correction.bias)
        self.pool_weight = Scale(config.pooling_weight)
        self.scale = Scale(config.scale)
        self.bias = ItemBias(n_items)
        self.pool_weight.requires_grad_(config.train_scale)
        self.scale.requires_grad_(config.train_scale)
        self.bias.requires_grad_(config.train_bias)

    @property
    def n_items(self) -> int:
        return int(self.item_vectors.shape[0])

    @property
    def device(self) -> torch.device:
        return self.item_vectors.device

    def query(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Queries ``(B, T, dim)`` and hidden states ``(B, T, width)`` at every item position."""
        known = batch.items >= 0
        positions = batch.items.clamp(min=0)
        vectors = self.item_vectors[positions] * known.unsqueeze(-1)
        hidden = self._hidden(batch, positions, vectors, known)
        return self._query(recency_pool(vectors, self.config.pooling_decay), hidden), hidden

    def forward(self, batch: Batch, last_only: bool = False) -> Tensor:
        """Scores ``(B, T, n_items)``, or ``(B, n_items)`` after each user's last item with ``last_only``."""
        query, hidden = self.query(batch)
        if last_only:
            last = (batch.items >= 0).sum(1).clamp(min=1) - 1
            rows = torch.arange(len(last), device=last.device)
            query, hidden = query[rows, last].unsqueeze(1), hidden[rows, last].unsqueeze(1)
        scores = self.score(query, hidden)
        return scores.squeeze(1) if last_only else scores

    def score(self, query: Tensor, hidden: Tensor) -> Tensor:
        """Scores ``(B, T, n_items)`` of queries ``(B, T, dim)`` and hidden states ``(B, T, width)``."""
        scores = self.scale(query) @ self.item_vectors.T
        if self.item_factors is not None:
            scores = scores + self.item_factors(self.factor_out(hidden))
        return self.bias(scores)

    def read(self, items: Tensor, before: Read | None = None) -> tuple[Tensor, Tensor, Read]:
        """One more item of each history; what :meth:`query` says of its last position, from keys and values that were kept.

        Parameters
        ----------
        items:
            int64 ``(B,)`` positions in the catalogue; all histories have the same length and no text before them.
        before:
            What was read before, None at the start. It must not be used again.

        Returns
        -------
        Queries ``(B, 1, dim)``, hidden states ``(B, 1, width)``, and what to keep for the next item.

        Raises
        ------
        ModelError
            If the backbone keeps no keys and values.
        """
        positions = items.unsqueeze(1)
        vectors = self.item_vectors[positions]
        length = 0 if before is None else before.length
        place = torch.full_like(positions, self.first_position + length)
        output = self.backbone(
            inputs_embeds=self._tokens(positions, vectors),
            position_ids=place,
            past_key_values=None if before is None else before.keys,
            use_cache=True,
        )
        if getattr(output, "past_key_values", None) is None:
            raise ModelError(f"{self.name} keeps no keys and values of what it has read; use a Llama- or BERT-like backbone")
        total, weight = vectors.squeeze(1), 1.0
        if before is not None:
            total = total + self.config.pooling_decay * before.total
            weight += self.config.pooling_decay * before.weight
        hidden = output.last_hidden_state
        query = self._query((total / weight).unsqueeze(1), hidden)
        return query, hidden, Read(output.past_key_values, total, weight, length + 1)

    def _query(self, pooled: Tensor, hidden: Tensor) -> Tensor:
        query = self.pool_weight(pooled) + self.correction(hidden)
        return nn.functional.normalize(query, dim=-1) if self.config.normalise_query else query

    def _tokens(self, positions: Tensor, vectors: Tensor) -> Tensor:
        if self.input_map is not None:
            tokens = self.input_map(vectors)
        else:
            tokens = vectors @ self.input_matrix  # type: ignore[operator]
        if self.item_factors is not None:
            tokens = tokens + self.factor_in(self.item_factors(positions))
        return tokens

    def _hidden(self, batch: Batch, positions: Tensor, vectors: Tensor, known: Tensor) -> Tensor:
        tokens = self._tokens(positions, vectors)
        mask = known
        prefix = batch.text.shape[1]
        if prefix:
            mask = torch.cat([batch.text >= 0, known], dim=1)
            embed = self.backbone.get_input_embeddings()  # type: ignore[operator]
            tokens = torch.cat([embed(batch.text.clamp(min=0)), tokens.to(embed.weight.dtype)], dim=1)
        place = self.first_position + (mask.long().cumsum(1) - 1).clamp(min=0)
        output = self.backbone(inputs_embeds=tokens, attention_mask=mask.long(), position_ids=place, use_cache=False)
        return output.last_hidden_state[:, prefix:]


def recency_pool(vectors: Tensor, decay: float) -> Tensor:
    """Mean of ``vectors`` (B, T, d) up to each position, older ones weighing ``decay`` per step; same shape."""
    length = vectors.shape[1]
    age = torch.arange(length, device=vectors.device)
    age = age.unsqueeze(1) - age.unsqueeze(0)
    weights = torch.where(age >= 0, decay ** age.clamp(min=0).to(torch.float32), 0.0)
    weights = weights / weights.sum(1, keepdim=True)
    return torch.einsum("ts,bsd->btd", weights.to(vectors.dtype), vectors)


def build_recommender(
    config: Config, catalogue: Catalogue, *, device: torch.device | None = None, progress: Progress | None = None
) -> Recommender:
    """A recommender over ``catalogue`` with trainable parameters initialised from ``config.run.seed``, in evaluation mode.

    Two processes with equal configuration and catalogue build equal models.

    Raises
    ------
    ModelError
        If the backbone or the encoder cannot be loaded, or the backbone is too short for the window and the user's text.
    """
    device = device or pick_device(config.run.device)
    vectors = item_vectors(catalogue, config.model.encoder, device=device, progress=progress)
    backbone = load_backbone(config.model.backbone)
    _check_length(backbone, config.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        model = Recommender(config.model, backbone, vectors, catalogue.fingerprint)
    return model.to(device).eval()


def _check_length(backbone: Backbone, config: ModelConfig) -> None:
    room = getattr(backbone.model.config, "max_position_embeddings", None)
    needed = config.window + (config.text_tokens if config.user_text else 0)
    if room is not None and needed > (room := room - backbone.first_position):
        raise ModelError(f"{backbone.name} reads {room} tokens, model.window and model.text_tokens ask for {needed}: lower them")


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("run.device = 'cuda', but PyTorch sees no GPU here; use run.device = 'cpu' or 'auto'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The arithmetic of forward passes: bfloat16 on CUDA and where asked for, else float32."""
    wanted = config.run.precision
    half = wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda")
    return torch.autocast(device_type=device.type, dtype=torch.bfloat16, enabled=half)


def biases_from_counts(counts: NDArray[np.float64], noise_std: float, config: ModelConfig) -> NDArray[np.float32]:
    """Item biases ``(n_items,)``: ``bias_weight`` times the log share of interactions, smoothed.

    Parameters
    ----------
    counts:
        ``(n_items,)`` noised interaction mass per item, possibly negative.
    noise_std:
        Standard deviation of the noise in each count; 0 for exact counts.

    Notes
    -----
    With noise, each count is first shrunk to what items in general have: with prior ``N(m, v)`` over items estimated by moments
    (``v = max(var - noise², 0)``), the posterior mean is ``m + v / (v + noise²) (count - m)`` (James & Stein 1961; Efron &
    Morris 1973). All of it is post-processing of a private release and costs no budget.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if noise_std > 0:
        mean = max(float(counts.mean()), 0.0)
        signal = max(float(counts.var()) - noise_std**2, 0.0)
        counts = mean + signal / (signal + noise_std**2) * (counts - mean)
        floor = max(noise_std, 0.05 * mean, 1e-9)
    else:
        floor = 1.0
    mass = np.maximum(counts, 0.0) + floor
    log_share = np.log(mass / mass.sum())
    return (config.bias_weight * (log_share - log_share.mean())).astype(np.float32)


def _embed_matrix(dim: int, width: int) -> Tensor:
    """A fixed isometry ``(dim, width)``: the identity where the sizes agree, else orthonormal rows or columns."""
    if dim == width:
        return torch.eye(dim)
    generator = torch.Generator().manual_seed(dim * 100_003 + width)  # fixed and public, the same in every process
    q, _ = torch.linalg.qr(torch.randn(max(dim, width), min(dim, width), generator=generator))
    return q if dim > width else q.T


def _linear_layers_of_top(backbone: Backbone, n_layers: int) -> list[str]:
    """Full names of what LoRA adapts in the last ``n_layers`` layers.

    peft's own ``layers_to_transform`` misses layers whose list is not nested in anything, as in ``LlamaModel.layers``.
    """
    chosen = []
    for name, module in backbone.model.named_modules():
        *path, last = name.split(".")
        layer = next((int(part) for part in path if part.isdigit()), -1)
        wanted = backbone.lora_targets == "all-linear" or last in backbone.lora_targets
        if wanted and layer >= backbone.n_layers - n_layers and isinstance(module, (nn.Linear, _transposed_linear())):
            chosen.append(name)
    return chosen


def _transposed_linear() -> type[nn.Module]:
    """The linear layer of GPT-2, which holds its weight the other way round."""
    from transformers.pytorch_utils import Conv1D

    return Conv1D


def _with_lora(backbone: Backbone, config: ModelConfig) -> nn.Module:
    """Put trainable LoRA adapters (Hu et al. 2021) on the backbone, or return it frozen when the rank is 0."""
    if config.lora_rank == 0:
        return backbone.model
    from peft import LoraConfig, inject_adapter_in_model

    transposed = any(isinstance(module, _transposed_linear()) for module in backbone.model.modules())
    if config.lora_layers > backbone.n_layers:
        raise ModelError(f"model.lora_layers = {config.lora_layers}, but {backbone.name} has {backbone.n_layers} layers")
    targets = _linear_layers_of_top(backbone, config.lora_layers) if config.lora_layers else backbone.lora_targets
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
        fan_in_fan_out=transposed,
    )
    return inject_adapter_in_model(lora, backbone.model)
