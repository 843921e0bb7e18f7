"""Training inside one silo: plain, or with differential privacy for each user. No Flower here.

In mode ``silo`` a round is a few steps of DP-SGD (Abadi et al. 2016): users are Poisson-sampled, each user's whole
contribution is one gradient, clipped in L2, noise is added to the sum, and the sum is divided by the *declared* expected
batch size. An empty sample still takes a noisy step. What a round costs is ``PrivacyPlan.train_event``; the caller charges
it to the silo's ledger before calling :func:`train_round`.

In private modes every draw comes from secret randomness, never from the run's seed. For noise and sampling that is plain: a
coordinator who knows the seed must not be able to subtract the noise. But windows and dropout are drawn for users in their order
in the sample, so with a known seed one user more would change what everybody after them contributes, and the sum would move by
more than the clip. Drawn in secret they are independent of who else is there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config import Config, TrainingConfig
from common.data.interactions import Dataset
from common.errors import DataError, ModelError
from common.metrics import evaluate
from common.model.adapter import to_vector
from common.model.recommender import Batch, Recommender, autocast, padded
from common.privacy.noise import poisson_mask
from common.privacy.plan import COUNT_MAX_NORM, METRICS, METRICS_MAX_NORM, PrivacyPlan
from common.privacy.rounding import add_gaussian_noise

#: For audits of the training itself (``simulations.attacks``): told whose gradients now lie in ``grad_sample`` (B, *shape), not
#: yet clipped, and may put others in their place. No app passes one.
Plant = Callable[[Recommender, NDArray[np.int64]], None]


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


@dataclass(frozen=True, eq=False)
class LocalResult:
    """What a round of local training gives. In mode ``none`` everything is exact; else only ``update`` may leave.

    Parameters
    ----------
    update:
        float32 ``(n_parameters,)``: local minus global adapter.
    loss:
        Mean loss per prediction in nats, None in private modes: it was not protected.
    """

    update: NDArray[np.float32]
    steps: int
    loss: float | None


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


def release_counts(data: SiloData, config: Config, plan: PrivacyPlan) -> NDArray[np.float32]:
    """Interaction mass per item ``(n_items,)``, protected as ``plan.count_event()`` says; charge that first.

    In a private mode each user spreads a vector of L2 norm 1 over the distinct items of the whole history, and Gaussian
    noise is added; in mode ``none`` these are plain counts.
    """
    counts = np.zeros(data.n_items, dtype=np.float64)
    for history in data.histories:
        if plan.mode == "none":
            np.add.at(counts, history, 1.0)
            continue
        items = np.unique(history)
        if len(items):
            counts[items] += COUNT_MAX_NORM / np.sqrt(len(items))
    if plan.mode != "none":
        counts = add_gaussian_noise(counts, plan.count_noise_std, hardened=plan.hardened)
    return counts.astype(np.float32)


def release_metrics(model: Recommender, data: SiloData, config: Config, plan: PrivacyPlan) -> NDArray[np.float32]:
    """NDCG@k and HR@k summed over users, ``(2,)``, protected as ``plan.metrics_event()`` says; charge that first.

    Each user is measured on the held-out item alone, among all items that the silo sells and the user has not met; a user
    without one adds nothing. In a private mode Gaussian noise is added: a user's part has at most norm sqrt(2).
    """
    per_user = _quality(model, data, config)
    norms = np.linalg.norm(per_user, axis=1, keepdims=True)
    total = (per_user * np.minimum(1.0, METRICS_MAX_NORM / np.maximum(norms, 1e-12))).sum(axis=0)
    if plan.mode != "none":
        total = add_gaussian_noise(total, plan.metrics_noise_std, hardened=plan.hardened)
    return total.astype(np.float32)


def _quality(model: Recommender, data: SiloData, config: Config) -> NDArray[np.float64]:
    """``(n_users, 2)``: NDCG@k and HR@k of each user with a held-out item."""
    if data.held_out is None:
        raise DataError("this silo holds no interactions out, so quality cannot be measured")
    users = np.flatnonzero(data.held_out >= 0)
    if not len(users):
        return np.zeros((0, len(METRICS)))
    k = config.evaluation.k
    model.eval()

    def scores(positions: NDArray[np.int64]) -> NDArray[np.floating]:
        batch = data.inputs(users[positions]).to(model.device)
        with torch.inference_mode(), autocast(config, model.device):
            return np.asarray(model(batch, last_only=True).float().cpu().numpy())

    sold = None if data.item_mask is None else data.item_mask[None]
    ranked = evaluate(
        scores,
        data.held_out[users],
        [data.histories[int(u)] for u in users],
        depth=k,
        assortments=sold,
        assortment_of=None if sold is None else np.zeros(len(users), dtype=np.int64),
        block=config.training.physical_batch_size,
    )
    return np.stack([ranked.ndcg(k), ranked.hit_rate(k)], axis=1)


def train_round(
    model: Recommender,
    data: SiloData,
    config: Config,
    plan: PrivacyPlan,
    *,
    round_number: int,
    silo_seed: int,
    plant: Plant | None = None,
) -> LocalResult:
    """Train ``model`` in place from the state it is in, and give the difference.

    Parameters
    ----------
    silo_seed:
        Seeds shuffling, windows and dropout in mode ``none``; nothing in private modes depends on it.
    plant:
        An audit's canaries, for private modes; see :data:`Plant`.
    """
    if plan.mode != "none":
        silo_seed = int.from_bytes(os.urandom(8), "little") >> 1
    before = to_vector(model)
    device = model.device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(silo_seed)
        model.train()
        try:
            if plan.mode == "none":
                steps, loss = _train_plain(model, data, config, np.random.default_rng(silo_seed))
            else:
                steps, loss = _train_private(model, data, config, plan, np.random.default_rng(), plant), None
        finally:
            model.eval()
            for parameter in model.parameters():
                parameter.grad = None
    return LocalResult(update=to_vector(model) - before, steps=steps, loss=loss)


def poisson_sample(n_users: int, probability: float) -> NDArray[np.int64]:
    """Each of ``n_users`` independently with ``probability``, from a cryptographic stream."""
    return np.flatnonzero(poisson_mask(n_users, probability)).astype(np.int64)


def _train_plain(model: Recommender, data: SiloData, config: Config, rng: np.random.Generator) -> tuple[int, float]:
    training = config.training
    optimizer = _optimizer(model, training)
    trainable = [p for p in model.parameters() if p.requires_grad]
    total = predictions = 0.0
    steps = 0
    for users in _plain_batches(data, training, rng):
        batch, targets = data.batch(users, _random_ends(data, users, rng))
        optimizer.zero_grad(set_to_none=True)
        count = int((targets >= 0).sum())
        for rows in torch.arange(len(users)).split(training.physical_batch_size):
            part, part_targets = _rows(batch, targets, rows, model.device)
            with autocast(config, model.device):
                losses = user_losses(model, part, part_targets, data, training.label_smoothing)
            loss = losses.sum() * data.window
            (loss / max(count, 1)).backward()
            total += float(loss.detach())
        predictions += count
        nn.utils.clip_grad_norm_(trainable, training.gradient_clip)
        optimizer.step()
        steps += 1
    return steps, total / max(predictions, 1.0)


def _train_private(
    model: Recommender, data: SiloData, config: Config, plan: PrivacyPlan, rng: np.random.Generator, plant: Plant | None
) -> int:
    from opacus.grad_sample import GradSampleHooks

    from client import grad_samplers  # noqa: F401  registers the recommender's layers with Opacus
    from client.clipping import DoublePrecisionSums

    training = config.training
    hooks = GradSampleHooks(model, loss_reduction="sum", strict=False)
    optimizer = DoublePrecisionSums(
        _optimizer(model, training),
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.max_grad_norm,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    try:
        for _ in range(plan.steps_per_round):
            users = poisson_sample(len(data.histories), plan.sampling_probability)
            batch, targets = data.batch(users, _random_ends(data, users, rng))
            parts = torch.arange(len(users)).split(training.physical_batch_size) if len(users) else (torch.arange(0),)
            optimizer.zero_grad(set_to_none=True)
            for number, rows in enumerate(parts):
                per_user_gradients(model, *_rows(batch, targets, rows, model.device), data, config)
                if plant is not None:
                    plant(model, users[rows.numpy()])
                optimizer.clip_and_accumulate()
                if number < len(parts) - 1:
                    _drop_per_user_gradients(model)
            _add_noise(optimizer.params, plan)
            optimizer.original_optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    finally:
        hooks.cleanup()
        _drop_traces(model)
    return plan.steps_per_round


def _add_noise(parameters: Sequence[nn.Parameter], plan: PrivacyPlan) -> None:
    """From the sum of clipped gradients, float64, to the protected mean gradient of the step."""
    std = plan.noise_multiplier * plan.max_grad_norm
    for parameter in parameters:
        summed = parameter.summed_grad.cpu().numpy()  # type: ignore[attr-defined]
        noisy = torch.from_numpy(add_gaussian_noise(summed, std, hardened=plan.hardened))
        parameter.grad = (noisy / plan.expected_batch_size).to(parameter.device, parameter.dtype)


def per_user_gradients(model: Recommender, batch: Batch, targets: Tensor, data: SiloData, config: Config) -> None:
    """Leave each user's gradient in ``parameter.grad_sample`` (B, *shape), float32, of a model under Opacus' hooks.

    A gradient that is not finite becomes zero: it is still a function of its user alone, and clipping stays a bound.
    """
    if len(targets):
        with autocast(config, model.device):
            losses = user_losses(model, batch, targets, data, config.training.label_smoothing)
        with warnings.catch_warnings():
            # Layers that read item vectors have inputs without gradients: worth a warning to PyTorch, fine for Opacus.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            losses.sum().backward()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        gradient = getattr(parameter, "grad_sample", None)
        if gradient is None:  # nobody was sampled, or this parameter was not reached
            gradient = parameter.new_zeros((len(targets), *parameter.shape))
        gradient = gradient.float()
        finite = torch.isfinite(gradient.flatten(1)).all(1) if len(targets) else torch.ones(0, dtype=torch.bool)
        whole = bool(finite.all())
        parameter.grad_sample = gradient if whole else torch.nan_to_num(gradient, 0.0, 0.0, 0.0)  # type: ignore[attr-defined]


def _drop_per_user_gradients(model: Recommender) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter.grad = None


def _drop_traces(model: Recommender) -> None:
    """Take away what Opacus leaves on parameters and layers, above all activations of a step that was broken off."""
    for owner, names in [
        *((p, ("summed_grad",)) for p in model.parameters()),
        *((m, ("activations", "max_batch_len")) for m in model.modules()),
    ]:
        for name in names:
            if hasattr(owner, name):
                delattr(owner, name)


def _optimizer(model: Recommender, training: TrainingConfig) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=training.learning_rate)
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=training.learning_rate)
    return torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)


def _plain_batches(data: SiloData, training: TrainingConfig, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Shuffled batches: ``local_epochs`` passes, or ``local_steps`` batches when that is 0."""
    n, size = len(data.histories), training.batch_size
    steps, limit = 0, training.local_steps if training.local_epochs == 0 else None
    epoch = 0
    while n and (epoch < training.local_epochs if limit is None else steps < limit):
        order = rng.permutation(n)
        for start in range(0, n, size):
            if limit is not None and steps == limit:
                return
            yield order[start : start + size]
            steps += 1
        epoch += 1


def _random_ends(data: SiloData, users: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Where each user's window ends: for half of the users anywhere, else at the latest item."""
    lengths = np.array([len(data.histories[int(u)]) for u in users], dtype=np.int64)
    anywhere = rng.integers(np.minimum(2, lengths), lengths + 1) if len(users) else lengths
    return np.where(rng.random(len(users)) < 0.5, anywhere, lengths)


def _rows(batch: Batch, targets: Tensor, rows: Tensor, device: torch.device) -> tuple[Batch, Tensor]:
    return Batch(batch.items[rows], batch.text[rows]).to(device), targets[rows].to(device)
