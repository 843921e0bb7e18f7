"""Items that nobody has ever touched: held out of training altogether, added to the finished bundle, then asked for.

A share of the catalogue is cold: the federation is trained on a data set in which these items do not exist, not even as
entries of the catalogue. Of each user who met a cold item, the last such meeting is a case: the question is what the user had met
before, warm items only, and the answer should hold that item. Nothing that this user did from then on is trained on either.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.catalogue import Catalogue
from common.data.interactions import Dataset
from common.errors import DataError

LEAST_HISTORY = 3
"""Warm items that a case needs before its cold one; as many as a user needs to be trained on."""

INTERACTIONS, ITEMS, NEW_ITEMS = "interactions.csv", "items.csv", "new-items.csv"
_SEPARATOR = "|"


@dataclass(frozen=True, eq=False)
class Case:
    """One question: ``history`` of warm items, oldest first, everything ``met`` before, and the cold ``target``; positions."""

    history: NDArray[np.int32]
    met: NDArray[np.int32]
    target: int


@dataclass(frozen=True, eq=False)
class ColdSplit:
    """A data set without its cold items, and the cases that ask for them.

    Parameters
    ----------
    dataset:
        The whole data set.
    cold:
        bool ``(n_items,)``.
    kept:
        bool ``(n_interactions,)``, what is trained on.
    cases:
        One for each user who met a cold item after enough warm ones.
    """

    dataset: Dataset
    cold: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    cases: tuple[Case, ...]


def hold_out(dataset: Dataset, share: float = 0.1, seed: int = 0) -> ColdSplit:
    """Make a random ``share`` of the items cold.

    Raises
    ------
    DataError
        If no item is cold or none is warm, or nobody's history leads to a cold one.
    """
    n = len(dataset.catalogue)
    n_cold = round(share * n)
    if not 0 < n_cold < n:
        raise DataError(f"{share:g} of {n} items are {n_cold}: some must be cold and some warm")
    cold = np.zeros(n, dtype=np.bool_)
    cold[np.random.default_rng(seed).choice(n, n_cold, replace=False)] = True
    interactions = dataset.interactions
    order, starts = interactions.by_user
    is_cold = cold[interactions.item]
    kept = ~is_cold
    cases = []
    for user in range(interactions.n_users):
        rows = order[starts[user] : starts[user + 1]]
        places = np.flatnonzero(is_cold[rows])
        if not len(places):
            continue
        before, after = rows[: places[-1]], rows[places[-1] :]
        history = interactions.item[before[~is_cold[before]]]
        if len(history) < LEAST_HISTORY:
            continue
        kept[after] = False
        cases.append(Case(history, np.unique(interactions.item[before]), int(interactions.item[after[0]])))
    if not cases:
        raise DataError(f"{dataset.name}: nobody met {LEAST_HISTORY} warm items and then a cold one")
    return ColdSplit(dataset, cold, kept, tuple(cases))


def write_files(split: ColdSplit, folder: Path) -> None:
    """What a shop would have: interactions and items for training, and the items that arrive later, as three CSV files."""
    folder.mkdir(parents=True, exist_ok=True)
    catalogue, interactions = split.dataset.catalogue, split.dataset.interactions
    _write_items(folder / ITEMS, catalogue, np.flatnonzero(~split.cold))
    _write_items(folder / NEW_ITEMS, catalogue, np.flatnonzero(split.cold))
    order, _ = interactions.by_user  # of what happened within one second the order stays the data set's own
    with open(folder / INTERACTIONS, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "time"])
        for row in order[split.kept[order]]:
            writer.writerow(
                [
                    interactions.user_ids[interactions.user[row]],
                    catalogue.ids[interactions.item[row]],
                    int(interactions.time[row]),
                ]
            )


def _write_items(path: Path, catalogue: Catalogue, positions: Sequence[int] | NDArray[np.integer]) -> None:
    texts = [name for name in ("year", "description") if name in catalogue.fields]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item", "title", "categories", *texts])
        for i in positions:
            names = _SEPARATOR.join(catalogue.categories[i])
            writer.writerow([catalogue.ids[i], catalogue.titles[i], names, *(catalogue.fields[name][i] for name in texts)])
