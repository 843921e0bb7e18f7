"""One update of a silo, as a curious coordinator gets it: bare, behind a mask, or with noise.

All three come from :func:`client.trainer.train_round` at the adapter that the coordinator handed out.

* ``unprotected``: mode ``none``, one step of plain SGD over all the silo's users, so the update is their mean gradient.
* ``masked``: the same update as secure aggregation shows it while at least one other mask is unknown (Bonawitz et al. 2017):
  fixed point in the integers modulo 2^32, plus a uniformly random word for each number. What follows from the *sum* over silos is
  not in this view.
* ``private``: the silo's own round as the configuration and the plan say: sampling, clipping, noise, all its local steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import Config, load, to_dict
from common.errors import PrivacyError
from common.privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from client.silo_data import SiloData

View = Literal["unprotected", "masked", "private"]
VIEWS: tuple[View, ...] = ("unprotected", "masked", "private")

#: Makes the mask of a vector: so many words, uint32, each uniform and independent of the others.
Mask = Callable[[int], NDArray[np.uint32]]

#: A number ``x`` of an update is sent as ``round(x * FIXED_POINT)`` modulo 2^32: numbers up to 2,048 with six decimals.
FIXED_POINT = 2**20


def uniform_words(n: int) -> NDArray[np.uint32]:
    """A mask from the operating system's cryptographic generator."""
    return np.frombuffer(os.urandom(4 * n), dtype=np.uint32)


def through_mask(update: NDArray[np.float64], mask: Mask) -> NDArray[np.float64]:
    """What the coordinator reads off masked words, taken as signed numbers.

    Raises
    ------
    PrivacyError
        If ``mask`` gives something other than one uint32 word a number.
    """
    words = mask(len(update))
    if words.shape != update.shape or words.dtype != np.uint32:
        raise PrivacyError(f"the mask is {words.dtype}{words.shape}, expected uint32{update.shape}")
    sent = np.rint(update * FIXED_POINT).astype(np.int64).astype(np.uint32) + words  # both wrap modulo 2^32
    return sent.view(np.int32) / FIXED_POINT


def updates(
    config: Config, data: SiloData, plan: PrivacyPlan, start: NDArray[np.float32], *, seed: int, mask: Mask = uniform_words
) -> dict[View, NDArray[np.float64]]:
    """One update of this silo from adapter ``start`` in each view, float64 ``(n_parameters,)``.

    ``seed`` decides the windows of the unprotected update. Masked is the very update that is unprotected.
    """
    plain = _plain(config, len(data.histories))
    bare = _round(plain, data, replace(plan, mode="none"), start, seed)
    return {"unprotected": bare, "masked": through_mask(bare, mask), "private": _round(config, data, plan, start, seed)}


def _plain(config: Config, n_users: int) -> Config:
    """One step of SGD over everybody, without protection."""
    changes = {"optimizer": "sgd", "local_epochs": 0, "local_steps": 1, "batch_size": max(1, n_users)}
    return load(to_dict(config), {"privacy.mode": "none", **{f"training.{key}": value for key, value in changes.items()}})


def _round(config: Config, data: SiloData, plan: PrivacyPlan, start: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    from client.trainer import train_round
    from common.model.adapter import from_vector
    from common.model.resident import resident

    home = resident(config)
    from_vector(home.model, start, home.manifest)
    return train_round(home.model, data, config, plan, round_number=1, silo_seed=seed).update.astype(np.float64)
