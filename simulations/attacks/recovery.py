"""Which items did the users of a small silo meet? Read off one update of it.

Three readers, as far as the model has the parameters for them:

* *biases*: the gradient of a softmax's biases is predicted less actual counts, so the update is positive only at items that came;
* *factors*: only the rows of items that were read or came move far;
* *matching*: the regression of the update on probe gradients of all items, which needs no item parameters.

In a silo of one user the coordinator is as well off as one who knows everybody else's data: the adversary of differential
privacy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.errors import PrivacyError
from common.privacy.audit.roc import roc
from common.privacy.plan import PrivacyPlan
from simulations.attacks.gradients import MOST_BYTES, item_gradients, regressed, ridge_for
from simulations.attacks.views import VIEWS, View

if TYPE_CHECKING:
    from client.silo_data import SiloData

ItemReader = Literal["biases", "factors", "matching"]


@dataclass(frozen=True)
class Items:
    """What one reader got out of one view about the items of ``silos`` silos with ``users`` users each.

    Intervals are simultaneous for all readers of a view; see :func:`mean_interval`.

    Parameters
    ----------
    named:
        How many items the coordinator named in each silo.
    precision:
        Share of named items that were met, mean over silos.
    auc:
        Chance that an item that was met is ranked above one that was not, mean over silos.
    p_value:
        Chance that names drawn at random are right at least as often, times the number of readers.
    """

    view: View
    users: int
    reader: ItemReader
    silos: int
    named: int
    precision: float
    precision_low: float
    precision_high: float
    auc: float
    auc_low: float
    auc_high: float
    p_value: float


@dataclass(frozen=True)
class Guessing:
    """Precision without any update, for silos of ``users`` users: by popularity among all other users, and at random."""

    users: int
    popularity: float
    random: float


@dataclass(frozen=True, eq=False)
class ItemReading:
    """How items are read off an update of this model.

    Parameters
    ----------
    items:
        Those that the silo sells, ``(n,)``; all arrays of scores follow them.
    biases, factors:
        Where the parameters lie in the update; None where they are not trained.
    probes:
        Gradients to match ``(n, n_parameters)``, None where they would not fit into memory.
    ridge:
        Of the regression, by view.
    left_out:
        Readers that are not there, with the reason.
    """

    items: NDArray[np.int64]
    n_items: int
    biases: slice | None
    factors: slice | None
    probes: NDArray[np.float32] | None
    ridge: dict[View, float]
    left_out: dict[str, str]

    @property
    def n_readers(self) -> int:
        return 3 - len(self.left_out)

    def scores(self, view: View, update: NDArray[np.float64]) -> Iterator[tuple[ItemReader, NDArray[np.float64]]]:
        """For each reader, how much each item on sale looks like one that was met, ``(n,)``."""
        if self.biases is not None:
            yield "biases", update[self.biases][self.items]
        if self.factors is not None:
            yield "factors", np.linalg.norm(update[self.factors].reshape(self.n_items, -1), axis=1)[self.items]
        if self.probes is not None:
            yield "matching", regressed(update, self.probes, self.ridge[view])


def item_reading(
    config: Config, data: SiloData, plan: PrivacyPlan, start: NDArray[np.float32], rng: np.random.Generator
) -> ItemReading:
    """All readers that this model allows. Of ``data`` only what is public is used.

    Raises
    ------
    PrivacyError
        If there is none.
    """
    from common.model.resident import resident

    home = resident(config)
    items = np.arange(data.n_items) if data.item_mask is None else np.flatnonzero(data.item_mask)
    trained = {name for name, parameter in home.model.named_parameters() if parameter.requires_grad}
    left_out: dict[str, str] = {}
    where: dict[str, slice | None] = {}
    for reader, name in (("biases", "bias.weight"), ("factors", "item_factors.weight")):
        where[reader] = home.manifest.slice(name) if name in trained else None
        if name not in trained:
            left_out[reader] = f"the model does not train {name}"
    probes = None
    if len(items) * len(start) * 4 <= MOST_BYTES:
        probes = item_gradients(config, data, items, start, rng)
    else:
        left_out["matching"] = f"{len(items)} gradients of {len(start)} parameters take more than {MOST_BYTES >> 30} GiB"
    if len(left_out) == 3:
        raise PrivacyError("the model trains no item parameters and is too large for gradient matching: attack a smaller one")
    noise = {view: plan.noise_multiplier if view == "private" else 0.0 for view in VIEWS}
    ridge = {view: ridge_for(noise[view], plan.steps_per_round) for view in VIEWS}
    return ItemReading(items, data.n_items, where["biases"], where["factors"], probes, ridge, left_out)


@dataclass(frozen=True, eq=False)
class AttackedSilo:
    """One silo: how many of ``of`` items were met, how many of ``named`` names are right, and the AUC, by view and reader.

    ``popular`` is the number of right names by popularity. Where everything was met there is nothing to tell
    apart, and the AUC is 0.5.
    """

    met: int
    of: int
    named: int
    popular: int
    right: dict[tuple[View, ItemReader], int]
    auc: dict[tuple[View, ItemReader], float]


def attack_silo(
    seen: dict[View, NDArray[np.float64]],
    met: NDArray[np.bool_],
    popularity: NDArray[np.float64],
    reading: ItemReading,
    named: int,
    rng: np.random.Generator,
) -> AttackedSilo:
    """Name items from each view of one update; ``met`` and ``popularity`` are ``(n_items,)``. Ties are broken at random."""
    truth = met[reading.items]
    luck = rng.random(len(truth))

    def right(scores: NDArray[np.float64]) -> int:
        return int(truth[np.lexsort((luck, -scores))[:named]].sum())

    hits, areas = {}, {}
    for view, update in seen.items():
        for reader, scores in reading.scores(view, update):
            hits[view, reader] = right(scores)
            areas[view, reader] = roc(scores, truth).auc if 0 < truth.sum() < len(truth) else 0.5
    return AttackedSilo(int(truth.sum()), len(truth), named, right(popularity[reading.items]), hits, areas)


def summarise(silos: Sequence[AttackedSilo], users: int, confidence: float) -> tuple[list[Items], Guessing]:
    """All silos of one size together."""
    named, found = silos[0].named, []
    keys = list(silos[0].right)
    n_readers = len({reader for _, reader in keys})
    each = 1 - (1 - confidence) / n_readers
    for view, reader in keys:
        right = np.array([silo.right[view, reader] for silo in silos])
        areas = np.array([silo.auc[view, reader] for silo in silos])
        found.append(
            Items(
                view,
                users,
                reader,
                len(silos),
                named,
                float(right.mean() / named),
                *mean_interval(right / named, each),
                float(areas.mean()),
                *mean_interval(areas, each),
                min(1.0, n_readers * chance_of(int(right.sum()), silos)),
            )
        )
    popularity = float(np.mean([silo.popular / named for silo in silos]))
    return found, Guessing(users, popularity, float(np.mean([silo.met / silo.of for silo in silos])))


def chance_of(right: int, silos: Sequence[AttackedSilo]) -> float:
    """Chance that names drawn at random are right at least ``right`` times in all; exact, a sum of hypergeometric numbers."""
    from scipy.stats import hypergeom

    total = np.ones(1)
    for silo in silos:
        total = np.convolve(total, hypergeom.pmf(np.arange(silo.named + 1), silo.of, silo.met, silo.named))
    return float(min(1.0, total[right:].sum()))


def mean_interval(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Interval for the expectation of independent numbers in [0, 1], two-sided, whatever their distribution.

    Hoeffding's (1963) theorem 1 in its first form: ``n KL(mean, μ) <= log(2 / (1 - confidence))``, ``KL`` of two coins.
    """
    from scipy.optimize import brentq

    mean, most = float(np.clip(np.mean(values), 0.0, 1.0)), math.log(2 / (1 - confidence)) / len(values)

    def excess(mu: float) -> float:
        divergence = 0.0
        if mean > 0:
            divergence += mean * math.log(mean / mu)
        if mean < 1:
            divergence += (1 - mean) * math.log((1 - mean) / (1 - mu))
        return divergence - most

    tiny = 1e-12
    low = 0.0 if mean <= tiny or excess(tiny) < 0 else float(brentq(excess, tiny, min(mean, 1 - tiny)))
    high = 1.0 if mean >= 1 - tiny or excess(1 - tiny) < 0 else float(brentq(excess, max(mean, tiny), 1 - tiny))
    return low, high
