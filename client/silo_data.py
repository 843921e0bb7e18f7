"""What a silo trains on: its users' histories and texts, cut into windows, and one loss for each user. All of it is private."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config import Config
from common.data.interactions import Dataset
from common.errors import ModelError
from common.model.recommender import Batch, Recommender, padded


@dataclass(frozen=True, eq=False)
class SiloData:
    """One silo's users, ready for training. Private.

    Parameters
    ----------
    histories:
        Items of each user, oldest first, int32.
    text:
        Token ids of each user's text; empty where there is none.
    item_mask:
        bool ``(n_items,)``: what this silo sells; None means everything.
    held_out:
        int32, one per user: the item after the history, which is never trained on and by which quality is measured; -1 where
        there is none. None means that this silo holds nothing out.
    """

    histories: tuple[NDArray[np.int32], ...]
    text: tuple[tuple[int, ...], ...]
    n_items: int
    window: int
    item_mask: NDArray[np.bool_] | None = None
    held_out: NDArray[np.int32] | None = None

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        config: Config,
        item_mask: NDArray[np.bool_] | None = None,
        tokenizer: object | None = None,
        held_out: NDArray[np.int32] | None = None,
    ) -> SiloData:
        """The users of ``dataset``; their text is used when ``model.user_text`` is on, which needs a tokenizer."""
        histories = tuple(dataset.interactions.histories())
        text: tuple[tuple[int, ...], ...] = ((),) * len(histories)
        if config.model.user_text:
            text = tuple(tokenise(line, tokenizer, config.model.text_tokens) for line in user_texts(dataset))
        return cls(histories, text, len(dataset.catalogue), config.model.window, item_mask, held_out)

    def batch(self, users: Sequence[int] | NDArray[np.integer], ends: NDArray[np.int64] | None = None) -> tuple[Batch, Tensor]:
        """Inputs and next-item targets of some users.

        Parameters
        ----------
        ends:
            For each user, where the window ends in the history (exclusive); None takes the latest.

        Returns
        -------
        batch:
            ``items`` (B, T): the window without its last item.
        targets:
            int64 (B, T): the item after each position, ``-1`` where there is none.
        """
        windows = []
        for row, user in enumerate(users):
            history = self.histories[int(user)]
            end = len(history) if ends is None else int(ends[row])
            windows.append(history[max(0, end - self.window - 1) : end])
        items = padded(windows, self.window + 1)
        inputs, targets = items[:, :-1].clone(), items[:, 1:].clone()
        inputs[targets < 0] = -1
        text = [self.text[int(u)] for u in users]
        return Batch(inputs, padded(text, max((len(tokens) for tokens in text), default=0))), targets

    def inputs(self, users: Sequence[int] | NDArray[np.integer]) -> Batch:
        """The latest window of some users, to be asked what comes next."""
        return Batch.of_histories([self.histories[int(u)] for u in users], self.window, [self.text[int(u)] for u in users])

    def random_ends(self, users: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Where each user's window ends, int64 ``(len(users),)``: for half of the users anywhere, else at the latest item."""
        lengths = np.array([len(self.histories[int(u)]) for u in users], dtype=np.int64)
        anywhere = rng.integers(np.minimum(2, lengths), lengths + 1) if len(users) else lengths
        return np.where(rng.random(len(users)) < 0.5, anywhere, lengths)


def user_texts(dataset: Dataset) -> Iterator[str]:
    """Each user's text: the profile line, then what they wrote, newest first."""
    order, starts = dataset.interactions.by_user
    written = dataset.interactions.text
    for user in range(dataset.interactions.n_users):
        parts = [dataset.user_text[user]] if dataset.user_text is not None else []
        if written is not None:
            parts += [written[int(row)] for row in order[starts[user] : starts[user + 1]][::-1] if written[int(row)]]
        yield ". ".join(part for part in parts if part)


def tokenise(line: str, tokenizer: object | None, limit: int) -> tuple[int, ...]:
    """At most ``limit`` token ids of a user's text, opened by the tokenizer's first special token where it has one."""
    if not callable(tokenizer):
        raise ModelError("model.user_text is on, but the backbone has no tokenizer")
    if not line:
        return ()
    special = (getattr(tokenizer, name, None) for name in ("cls_token_id", "bos_token_id"))
    first = [token for token in special if token is not None][:1]
    ids = tokenizer(line, add_special_tokens=False, truncation=True, max_length=limit)["input_ids"]
    return tuple(first + list(ids))[:limit]


def rows_of(batch: Batch, targets: Tensor, rows: Tensor, device: torch.device) -> tuple[Batch, Tensor]:
    """Some rows of what :meth:`SiloData.batch` gave, on ``device``."""
    return Batch(batch.items[rows], batch.text[rows]).to(device), targets[rows].to(device)


def user_losses(model: Recommender, batch: Batch, targets: Tensor, data: SiloData, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the next item, one number per user ``(B,)``: summed over positions, divided by the window.

    The denominator is the public ``window``, not the user's own length. Only items that the silo sells compete, and only they
    share the ``smoothing``.
    """
    scores, wanted = model(batch).flatten(0, 1).float(), targets.flatten()
    sold = torch.ones_like(scores[:1], dtype=torch.bool)
    if data.item_mask is not None:
        sold = torch.from_numpy(data.item_mask).to(scores.device).unsqueeze(0)
        scores = scores.masked_fill(~sold, torch.finfo(scores.dtype).min)
    losses = nn.functional.cross_entropy(scores, wanted, ignore_index=-1, reduction="none")
    if smoothing:
        even = scores.logsumexp(-1) - scores.masked_fill(~sold, 0.0).sum(-1) / sold.sum()
        losses = (1 - smoothing) * losses + smoothing * even.masked_fill(wanted < 0, 0.0)
    return losses.view(targets.shape).sum(1) / data.window
