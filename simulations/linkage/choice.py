"""What each protection is worth: how often its questions are linked, what quality it leaves, and which is the knee."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import mean
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.private_history import Protection
from common.data.split import Held
from common.errors import DataError
from simulations.linkage.answers import Asked
from simulations.linkage.matching import Linked, interval, linked, trained
from simulations.linkage.recorded import ask, compare
from simulations.linkage.repeats import secrets_for
from simulations.linkage.visits import History, Visits, apart

CAPS: Final = (3, 5, 8, 10, 15, 20, 30)
CUTS: Final[dict[str, tuple[int, ...] | None]] = {"all shuffled": (), "1+3": (1, 3), "1+3+6": (1, 3, 6), "order kept": None}
"""Names of recency buckets, newest first, and what is left; None for a bucket for each item."""
REPLACED_CAPS: Final = (3, 5, 10, 20)
REPLACEMENTS: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
DISTINCTIVE: Final = 0.1
"""Share of people with the rarest items, and of links of which the adversary is surest: where averages would hide harm."""
DISTINCTIVE_AT: Final = 2
"""Items between the days at which distinctive people are compared with others. Whoever has rare items has many, and met more in
between, so that their questions overlap less often: only at one distance for all is it their items that make the difference."""
POOLS: Final = (100, 10)


@dataclass(frozen=True)
class Setting:
    """A protection under the name of its buckets."""

    cut: str
    protection: Protection

    @property
    def name(self) -> str:
        return f"cap {self.protection.cap}, {self.cut}, replaced {self.protection.replacement:g}"


def setting(cap: int, cut: str, replacement: float = 0.0) -> Setting:
    """A setting of the grid."""
    sizes = CUTS[cut]
    return Setting(cut, Protection(cap, (1,) * cap if sizes is None else sizes, replacement))


def grid() -> list[Setting]:
    """All cuts without replacement for every cap, and all replacements with buckets 1+3 for some caps.

    Buckets 1+3+6 leave nothing over, and are buckets 1+3, where the cap is at most 10.
    """
    plain = [setting(cap, cut) for cut, sizes in CUTS.items() for cap in CAPS if cut != "1+3+6" or cap > sum(sizes or ())]
    return plain + [setting(cap, "1+3", p) for p in REPLACEMENTS if p > 0 for cap in REPLACED_CAPS]


def draws_for(wanted: Setting, repeats: int) -> int:
    """How often a setting is measured: thrice as often where few items are shown, which costs little and is where a knee lies."""
    return repeats * (3 if wanted.protection.cap <= 5 else 1)


@dataclass(frozen=True)
class Measured:
    """What one setting came to, means over draws.

    ``linked`` is the success of the better of the two adversaries who look at one person at a time, ``everybody`` that of the
    better one-to-one assignment, ``pools`` that of the trained one in smaller pools; ``unchanged`` is the nearest neighbour's if
    nobody has met anything in between, ``overlapping`` that of the better adversary against those who met fewer items than are
    shown, ``surest`` the share of right links among the tenth of which it was surest. ``ndcg_sent`` counts only what fits into
    one answer.
    """

    name: str
    cap: int
    cut: str
    replacement: float
    people: int
    nearest: float
    trained: float
    everybody: float
    pools: dict[int, float]
    overlapping: float
    surest: float
    unchanged: float
    ndcg_validation: float
    ndcg_test: float
    ndcg_sent: float

    @property
    def linked(self) -> float:
        return max(self.nearest, self.trained)

    @property
    def linked_interval(self) -> tuple[float, float]:
        """95 %, over people."""
        return interval(self.linked, self.people)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        low, high = self.linked_interval
        return vars(self) | {"linked": self.linked, "linked_low": low, "linked_high": high}


def measure(asked: Asked, visits: Visits, wanted: Setting, *, draws: int, seed: int) -> Measured:
    """Linkage between the two days, and quality on the validation and the test items.

    ``visits`` ends where the test begins, so the second day's questions are those whose quality is measured.
    """
    rows = [_draw(asked, visits, wanted.protection, seed + draw) for draw in range(draws)]
    p = wanted.protection
    means = {key: mean(row[key] for row in rows) for key in rows[0]}
    pools = {pool: means.pop(f"pool {pool}") for pool in POOLS}
    return Measured(wanted.name, p.cap, wanted.cut, p.replacement, len(visits), pools=pools, **means)


def _draw(asked: Asked, visits: Visits, protection: Protection, seed: int) -> dict[str, float]:
    rng, noise = Random(seed), np.random.default_rng(seed)
    second = ask(visits.second, asked.n_items, protection, rng)
    answers = asked.model(second.histories())
    first = ask(visits.first, asked.n_items, protection, rng)
    compared = compare(first, second, asked.vectors, answers)
    near = linked(compared.nearest, noise, assign=True)
    learnt = linked(trained(compared, seed), noise, assign=True)
    again = compare(ask(visits.second, asked.n_items, protection, rng), second, asked.vectors)
    validation = ask(asked.histories("validation"), asked.n_items, protection, rng)
    best = max((near, learnt), key=Linked.success)
    test, sent = asked.quality(answers, "test")
    return {
        "nearest": near.success(),
        "trained": learnt.success(),
        "everybody": max(_share(near.assigned), _share(learnt.assigned)),
        **{f"pool {pool}": learnt.success(min(pool, len(visits))) for pool in POOLS},
        "overlapping": best.among(visits.between < protection.cap),
        "surest": best.surest(DISTINCTIVE),
        "unchanged": linked(again.nearest, noise).success(),
        "ndcg_validation": asked.quality(asked.model(validation.histories()), "validation")[0],
        "ndcg_test": test,
        "ndcg_sent": sent,
    }


def _share(found: NDArray[np.bool_] | None) -> float:
    return 0.0 if found is None else float(found.mean())


def distinctive(histories: Sequence[History], n_items: int, share: float = DISTINCTIVE) -> NDArray[np.bool_]:
    """``(n,)``: the ``share`` of people whose newest 30 items are the rarest on average; the same people for every setting."""
    counts = np.zeros(n_items)
    for history in histories:
        counts[np.unique(history)] += 1
    rarity = np.array([-np.log(counts[history[-30:]]).mean() for history in histories])
    out = np.zeros(len(histories), dtype=np.bool_)
    out[np.argsort(-rarity, kind="stable")[: max(1, round(share * len(histories)))]] = True
    return out


def by_distance(asked: Asked, wanted: Setting, distances: Sequence[int], seed: int) -> dict[int, float]:
    """The better adversary's success when everybody has met exactly so many items between the days."""
    return {n: between(asked, apart(asked.histories("test"), n), wanted, seed) for n in distances}


def distinctive_and_others(asked: Asked, wanted: Setting, seed: int) -> tuple[float, float]:
    """The better adversary's success against the most distinctive people and against the rest, all equally long away."""
    visits = apart(asked.histories("test"), DISTINCTIVE_AT)
    chosen = distinctive(visits.second, asked.n_items)
    found = _better(asked, visits, wanted.protection, seed)
    return found.among(chosen), found.among(~chosen)


def between(asked: Asked, visits: Visits, wanted: Setting, seed: int, *, permanent: bool = False) -> float:
    """The better adversary's success on some visits."""
    return _better(asked, visits, wanted.protection, seed, permanent=permanent).success()


def _better(asked: Asked, visits: Visits, protection: Protection, seed: int, *, permanent: bool = False) -> Linked:
    rng, noise = Random(seed), np.random.default_rng(seed)
    secrets = secrets_for(len(visits), rng) if permanent else None
    second = ask(visits.second, asked.n_items, protection, rng, secrets)
    first = ask(visits.first, asked.n_items, protection, rng, secrets)
    compared = compare(first, second, asked.vectors, asked.model(second.histories()))
    return max(linked(compared.nearest, noise), linked(trained(compared, seed), noise), key=Linked.success)


def nothing_shown(asked: Asked, held: Held) -> float:
    """Quality when every question is empty: what is popular."""
    empty = asked.model([np.zeros(0, dtype=np.int32)])
    return asked.quality(np.repeat(empty, len(asked.people()), axis=0), held)[0]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points ``(linked, quality)`` that no other beats in both, by rising linkage."""
    out, best = [], -np.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            out.append(i)
            best = points[i][1]
    return out


def knee(points: Sequence[tuple[float, float]]) -> int:
    """Position of the point farthest above the chord of the Pareto front, both axes scaled to it (Satopaa et al. 2011).

    Raises
    ------
    DataError
        If the front is a single point: then nothing is traded.
    """
    return int(np.argmax(above_chord(points)))


def above_chord(points: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """``(n,)``: scaled quality less scaled linkage of each point; those off the Pareto front are below what is best there."""
    front = pareto(points)
    if len(front) < 2:
        raise DataError("one setting is best in both linkage and quality: there is no knee to choose")
    xy = np.array(points, dtype=np.float64)
    low, high = xy[front[0]], xy[front[-1]]
    scaled = (xy - low) / (high - low)
    return scaled[:, 1] - scaled[:, 0]
