"""Dealing one data set out to silos, for simulations.

Every user belongs to exactly one silo and no silo is empty. Four ways, each a stand-in for how real federations differ: *column*
(an attribute of the user names the silo), *taste* (silos attract different tastes: label skew by a Dirichlet distribution,
Hsu et al. 2019, arXiv 1909.06335), *size* (a few large silos, many small ones) and *catalogue* (silos sell different items).

A partition is drawn from the true data, which no real silo could see of another: nothing of it may reach the apps, except
what an operator would declare when enrolling (:func:`declare_users`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.config import PartitionConfig
from common.data.interactions import Dataset
from common.data.split import leave_one_out
from common.errors import ConfigError, DataError

Users: TypeAlias = NDArray[np.int64]

REDRAWS = 100
# A draw by taste that leaves a silo with less than this share of an even one is drawn again: a silo is an organisation with a
# user base, and the delta of a run comes from the smallest.
COMFORTABLE = 0.25


@dataclass(frozen=True, eq=False)
class SiloAssignment:
    """One silo: its name, its users, and the items that it sells.

    Parameters
    ----------
    name:
        Unique in the partition.
    users:
        int64, ascending codes of the data set's users.
    items:
        bool ``(n_items,)``; all True unless catalogues differ.
    """

    name: str
    users: Users
    items: NDArray[np.bool_]

    def take(self, dataset: Dataset) -> Dataset:
        """The silo's own data: its users, renumbered, and their interactions with items that it sells.

        The catalogue and the item codes stay those of ``dataset``; a user may be left with few interactions or none.
        """
        own = dataset.users(self.users)
        if not self.items.all():
            own = replace(own, interactions=own.interactions.rows(self.items[own.interactions.item]))
        return replace(own, name=f"{dataset.name}/{self.name}")


@dataclass(frozen=True, eq=False)
class Partition:
    """The silos, in the order in which everything else numbers them; at least one, none without users."""

    silos: tuple[SiloAssignment, ...]
    n_users: int

    def __post_init__(self) -> None:
        dealt = np.sort(np.concatenate([silo.users for silo in self.silos])) if self.silos else np.zeros(0)
        if not np.array_equal(dealt, np.arange(self.n_users)):
            raise DataError("partition: every user must be in exactly one silo")
        for silo in self.silos:
            if len(silo.users) == 0:
                raise DataError(f"partition: silo {silo.name} has no user")

    def __len__(self) -> int:
        return len(self.silos)

    @property
    def sizes(self) -> tuple[int, ...]:
        """True numbers of users, which are private: see :func:`declare_users`."""
        return tuple(len(silo.users) for silo in self.silos)

    def silo_of_user(self) -> NDArray[np.int32]:
        """int32 ``(n_users,)``: position of each user's silo."""
        out = np.empty(self.n_users, dtype=np.int32)
        for position, silo in enumerate(self.silos):
            out[silo.users] = position
        return out


def partition(dataset: Dataset, config: PartitionConfig, seed: int, *, attribute: Mapping[str, str] | None = None) -> Partition:
    """Deal the users of ``dataset`` to silos; the same arguments give the same partition.

    Parameters
    ----------
    attribute:
        User id to the silo's name, for ``by = "column"``; ``config.silos`` is not used then.

    Raises
    ------
    ConfigError
        If there are fewer users than silos, or ``by = "column"`` and no attribute was given.
    DataError
        If the data lack what the way of dealing needs: categories, a user's attribute, enough items.
    """
    n_users = dataset.interactions.n_users
    if n_users < 1:
        raise DataError(f"{dataset.name}: no users to deal to silos")
    if config.by == "column":
        return _by_column(dataset, config, attribute)
    if n_users < config.silos:
        raise ConfigError(f"partition.silos = {config.silos}: {dataset.name} has only {n_users} users; ask for fewer silos")
    rng = np.random.default_rng(seed)
    return _WAYS[config.by](dataset, config, rng)


def declare_users(n: int) -> int:
    """What a simulated operator declares when enrolling a silo with ``n`` users: two significant digits, halves up.

    The declared number is public and is used wherever a number of users is needed; the true one is not.
    """
    if n < 1:
        raise DataError(f"a silo of {n} users cannot enrol")
    unit = 10 ** max(0, len(str(n)) - 2)
    return (n + unit // 2) // unit * unit


def _assign(dataset: Dataset, names: list[str], groups: list[Users], items: list[NDArray[np.bool_]] | None = None) -> Partition:
    everything = np.ones(len(dataset.catalogue), dtype=np.bool_)
    silos = (
        SiloAssignment(name, np.sort(users), everything if items is None else items[i])
        for i, (name, users) in enumerate(zip(names, groups, strict=True))
    )
    return Partition(tuple(silos), dataset.interactions.n_users)


def _names(silos: int) -> list[str]:
    return [f"silo-{i}" for i in range(silos)]


def _by_column(dataset: Dataset, config: PartitionConfig, attribute: Mapping[str, str] | None) -> Partition:
    """Silos in the order of their names."""
    if attribute is None:
        raise ConfigError(f"partition.by = 'column': {dataset.name} has no user attribute {config.column!r}")
    without = [user for user in dataset.interactions.user_ids if not attribute.get(user)]
    if without:
        raise DataError(
            f"{dataset.name}: {len(without)} users have no {config.column or 'silo'} (one of them is {without[0]!r}); "
            "give each one, or leave these users out"
        )
    values = np.array([attribute[user] for user in dataset.interactions.user_ids])
    names, which = np.unique(values, return_inverse=True)
    return _assign(dataset, [str(name) for name in names], [np.flatnonzero(which == i) for i in range(len(names))])


def _by_taste(dataset: Dataset, config: PartitionConfig, rng: np.random.Generator) -> Partition:
    """Group users by dominant category; each category's users go to the silos in shares drawn from Dirichlet(alpha).

    The whole deal is drawn again, at most ``REDRAWS`` times, until every silo has ``COMFORTABLE`` of an even share. If none
    has, the draw with the largest smallest silo is taken, and a silo that is still empty gets a random user of the largest one.
    """
    taste = dominant_category(dataset)
    floor = max(1, int(COMFORTABLE * dataset.interactions.n_users / config.silos))
    best: list[Users] = []
    for _ in range(REDRAWS):
        parts: list[list[Users]] = [[] for _ in range(config.silos)]
        for category in np.unique(taste):
            users = rng.permutation(np.flatnonzero(taste == category))
            shares = rng.dirichlet(np.full(config.silos, config.alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(users)).astype(np.int64)
            for part, piece in zip(parts, np.split(users, cuts), strict=True):
                part.append(piece)
        drawn = [np.concatenate(part) for part in parts]
        if not best or min(map(len, drawn)) > min(map(len, best)):
            best = drawn
        if min(map(len, best)) >= floor:
            break
    return _assign(dataset, _names(config.silos), _fill_empty(best, rng))


def _fill_empty(groups: list[Users], rng: np.random.Generator) -> list[Users]:
    groups = list(groups)
    for i, group in enumerate(groups):
        if len(group) == 0:
            largest = max(range(len(groups)), key=lambda j: len(groups[j]))
            moved = rng.integers(len(groups[largest]))
            groups[i] = groups[largest][moved : moved + 1]
            groups[largest] = np.delete(groups[largest], moved)
    return groups


def _by_size(dataset: Dataset, config: PartitionConfig, rng: np.random.Generator) -> Partition:
    """Silo ``r`` (from 1) gets users in proportion to ``r ** -alpha``, at least one; largest first, users at random."""
    n, silos = dataset.interactions.n_users, config.silos
    weights = np.arange(1, silos + 1, dtype=np.float64) ** -config.alpha
    exact = weights / weights.sum() * (n - silos)  # one user each is set aside
    sizes = 1 + np.floor(exact).astype(np.int64)
    short = n - int(sizes.sum())
    sizes[np.argsort(-(exact - np.floor(exact)), kind="stable")[:short]] += 1
    return _assign(dataset, _names(silos), np.split(rng.permutation(n), np.cumsum(sizes)[:-1]))


def _by_catalogue(dataset: Dataset, config: PartitionConfig, rng: np.random.Generator) -> Partition:
    """All silos sell the same ``overlap`` of the items, and each an equal own part of the rest; users are dealt evenly."""
    n, silos = len(dataset.catalogue), config.silos
    shuffled = rng.permutation(n)
    shared = int(np.rint(config.overlap * n))
    if shared == 0 and n < silos:
        raise DataError(f"{dataset.name}: {n} items are too few for {silos} silos that share none; raise partition.overlap")
    items = []
    for own in np.array_split(shuffled[shared:], silos):
        sold = np.zeros(n, dtype=np.bool_)
        sold[shuffled[:shared]] = True
        sold[own] = True
        items.append(sold)
    groups = np.array_split(rng.permutation(dataset.interactions.n_users), silos)
    return _assign(dataset, _names(silos), [g.astype(np.int64) for g in groups], items)


_WAYS: dict[str, Callable[[Dataset, PartitionConfig, np.random.Generator], Partition]] = {
    "taste": _by_taste,
    "size": _by_size,
    "catalogue": _by_catalogue,
}


def dominant_category(dataset: Dataset) -> NDArray[np.int64]:
    """int64 ``(n_users,)``: the category that occurs most often in each user's training items under leave-one-out.

    Positions in the sorted category names, the first on a tie; ``n_categories`` for users none of whose items has a category.

    Raises
    ------
    DataError
        If the catalogue has no categories.
    """
    member, names = dataset.catalogue.category_matrix()
    if not names:
        raise DataError(f"{dataset.name}: the catalogue names no categories to deal users by; use partition.by = 'size'")
    train = leave_one_out(dataset.interactions).train
    counts = np.zeros((train.n_users, len(names)), dtype=np.int64)
    for j in range(len(names)):
        counts[:, j] = np.bincount(train.user[member[train.item, j]], minlength=train.n_users)
    return np.where(counts.any(axis=1), counts.argmax(axis=1), len(names))
