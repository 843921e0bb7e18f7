"""What many questions of one person on one day tell: whether replaced items can be told from true ones.

Somebody who knows that questions are of one person (they come over one connection, or were linked) counts how often each item
occurs. With fresh coins a true item comes again and a false one does not: replacement averages out. With permanent replacement a
false item comes as often as a true one (Erlingsson et al. 2014), but then links questions as well as a true one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from client.private_history import Protection, secret_of
from simulations.linkage.recorded import ask
from simulations.linkage.visits import History


def secrets_for(n: int, rng: Random) -> list[bytes]:
    """A secret for each of ``n`` people of a silo with a key of its own."""
    key = rng.randbytes(32)
    return [secret_of(key, str(user)) for user in range(n)]


def told_apart(
    histories: Sequence[History], n_items: int, protection: Protection, questions: int, *, permanent: bool, seed: int
) -> float:
    """Probability that a true item is held likelier than a false one (AUC, ties half; 0.5 is guessing) after so many questions.

    The adversary goes by how often an item was shown, then by how many people it was shown for: a random item is seldom popular.
    """
    rng = Random(seed)
    secrets = secrets_for(len(histories), rng) if permanent else None
    days = [ask(histories, n_items, replace(protection, fill=False), rng, secrets).histories() for _ in range(questions)]
    popular: Counter[int] = Counter(int(item) for rows in days for row in rows for item in row)
    scores, true = [], []
    for person, history in enumerate(histories):
        shown = Counter(int(item) for rows in days for item in set(rows[person].tolist()))
        own = set(history[-protection.cap :].tolist())
        for item, times in shown.items():
            scores.append(times + popular[item] / (sum(popular.values()) + 1))
            true.append(item in own)
    return _auc(np.array(scores), np.array(true))


def _auc(scores: NDArray[np.float64], true: NDArray[np.bool_]) -> float:
    """Mann-Whitney's statistic over the number of pairs; nan without pairs."""
    yes, no = int(true.sum()), int((~true).sum())
    if not yes or not no:
        return float("nan")
    return float((rankdata(scores)[true].sum() - yes * (yes + 1) / 2) / (yes * no))
