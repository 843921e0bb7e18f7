"""One way in for data: a path becomes a :class:`~common.data.interactions.Dataset`, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from common.data import readers  # noqa: F401  (registers the readers)
from common.data.interactions import Dataset, Dropped
from common.data.readers.reading import Progress, Reading
from common.data.readers.registry import READERS, choose
from common.errors import DataError

Malformed = Literal["strict", "skip"]


def formats() -> dict[str, str]:
    """Every registered format with one line about how its files look."""
    return {name: READERS[name].about for name in sorted(READERS)}


def detect_format(path: str | Path) -> str:
    """The name of the only format that recognises a path.

    Raises
    ------
    DataError
        If none does, or several do.
    """
    return choose(Path(path)).name


def read_dataset(
    path: str | Path,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    malformed: Malformed = "strict",
    min_value: float | None = None,
    progress: Progress | None = None,
    ordered: bool = False,
) -> Dataset:
    """Read interactions and their catalogue.

    Rows that repeat an earlier one in user, item and time are dropped and counted; the same user and item at another time
    stay. Items of the catalogue that nobody has touched stay: they can be recommended all the same.

    Parameters
    ----------
    path:
        A file or folder.
    format:
        A name from :func:`formats`, or ``auto`` to detect it.
    columns:
        Our column names to the file's, for formats without fixed columns; see
        :class:`common.data.readers.columns.ColumnMapping`.
    malformed:
        ``strict``: the first malformed row is an error; ``skip``: such rows are left out and counted in ``dropped``.
    min_value:
        Leave out interactions with a lower value (rating).
    progress:
        Called with ``(bytes read, bytes in total)``.
    ordered:
        Put users in the order of their ids, and rows in that of user id, time and item id, so that the result does not depend on
        the order of the source; else both keep the latter.

    Raises
    ------
    DataError
        Naming file, line and reason.
    """
    path = Path(path)
    if malformed not in ("strict", "skip"):
        raise DataError(f"malformed is {malformed!r}; allowed are 'strict' and 'skip'")
    chosen = choose(path, format)
    if columns and not chosen.takes_columns:
        able = ", ".join(sorted(name for name, known in READERS.items() if known.takes_columns))
        raise DataError(f"format {chosen.name} has fixed columns and takes no column mapping (these do: {able})")
    reading = Reading(strict=malformed == "strict", columns=columns, min_value=min_value, progress=progress, ordered=ordered)
    return chosen.read(path, reading)


def filter_users(dataset: Dataset, min_interactions: int) -> Dataset:
    """The data of users with at least ``min_interactions`` interactions, renumbered in the same order.

    The rows of the others are added to ``dropped``. The catalogue stays as it is.

    Raises
    ------
    DataError
        If no user is left.
    """
    counts = np.bincount(dataset.interactions.user, minlength=dataset.interactions.n_users)
    keep = np.flatnonzero(counts >= min_interactions)
    lost_users = dataset.interactions.n_users - len(keep)
    if not lost_users:
        return dataset
    if not len(keep):
        raise DataError(f"{dataset.name}: no user has {min_interactions} interactions or more")
    reason = f"user has fewer than {min_interactions} interactions"
    lost_rows = int(counts.sum() - counts[keep].sum())
    dropped = Dropped(
        counts={**dataset.dropped.counts, reason: dataset.dropped.counts.get(reason, 0) + lost_rows},
        examples={**dataset.dropped.examples, reason: f"{lost_users} users"},
    )
    return replace(dataset.users(keep), dropped=dropped)
