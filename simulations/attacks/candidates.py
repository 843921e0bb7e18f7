"""Of a pool of people whose histories the coordinator knows: who was in the silo? Read off one update.

Each candidate is put into the silo by a fair coin, and nobody else is in it. Two readers: the *cosine* of the candidate's clipped
gradient with the update, and the *regression* of the update on all candidates' gradients. Chance is an AUC of 0.5, whatever the
model and the data, because the coins know nothing of either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.privacy.audit.roc import roc
from common.privacy.plan import PrivacyPlan
from simulations.attacks.gradients import cosines, regressed, ridge_for, user_gradients
from simulations.attacks.members import thinned
from simulations.attacks.target import some_users
from simulations.attacks.views import Mask, View, updates

if TYPE_CHECKING:
    from client.silo_data import SiloData

UserReader = Literal["cosine", "regression"]
READERS: tuple[UserReader, ...] = ("cosine", "regression")


@dataclass(frozen=True)
class Users:
    """How well one reader told from one view which of ``candidates`` were among the ``present``.

    Intervals are simultaneous for both readers.

    Parameters
    ----------
    precision:
        Of the ``present`` highest-ranked candidates, the share that was there; ``present / candidates`` is chance.
    p_value:
        Chance that a random order reaches this AUC (Mann & Whitney), times the number of readers.
    false_positive_rate, true_positive_rate:
        The ROC, thinned for plots.
    """

    view: View
    reader: UserReader
    candidates: int
    present: int
    precision: float
    auc: float
    auc_low: float
    auc_high: float
    p_value: float
    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]


def attack_candidates(
    config: Config,
    data: SiloData,
    plan: PrivacyPlan,
    start: NDArray[np.float32],
    pool: NDArray[np.int64],
    *,
    confidence: float,
    seed: int,
    mask: Mask,
    rng: np.random.Generator,
) -> tuple[Users, ...]:
    """Toss the coins for ``pool``, make one update of those who are in, and look for them in each view."""
    present = rng.random(len(pool)) < 0.5
    while not 0 < present.sum() < len(pool):
        present = rng.random(len(pool)) < 0.5
    gradients = user_gradients(config, some_users(data, pool), start, plan.max_grad_norm)
    seen = updates(config, some_users(data, pool[present]), plan, start, seed=seed, mask=mask)
    return tuple(_tell(seen, gradients, present, plan, confidence))


def _tell(
    seen: dict[View, NDArray[np.float64]],
    gradients: NDArray[np.float32],
    present: NDArray[np.bool_],
    plan: PrivacyPlan,
    confidence: float,
) -> Iterator[Users]:
    from scipy.stats import mannwhitneyu

    n = int(present.sum())
    for view, update in seen.items():
        ridge = ridge_for(plan.noise_multiplier if view == "private" else 0.0, plan.steps_per_round)
        scores_of = {"cosine": cosines(update, gradients), "regression": regressed(update, gradients, ridge)}
        for reader in READERS:
            scores = scores_of[reader]
            curve = roc(scores, present, confidence=1 - (1 - confidence) / len(READERS))
            luck = float(mannwhitneyu(scores[present], scores[~present], alternative="greater").pvalue)
            fpr, tpr = thinned(curve)
            yield Users(
                view=view,
                reader=reader,
                candidates=len(present),
                present=n,
                precision=float(present[np.argsort(-scores, kind="stable")[:n]].mean()),
                auc=curve.auc,
                auc_low=curve.auc_low,
                auc_high=curve.auc_high,
                p_value=min(1.0, len(READERS) * luck),
                false_positive_rate=fpr,
                true_positive_rate=tpr,
            )
