"""Which interactions are learnt from, which choose the round, and which are only looked at in the end.

Two protocols. *Leave-one-out by time*: of each user the last interaction is the test, the one before it the validation, the rest
training. *Global temporal*: everything before one moment is training, up to a second moment validation, the rest test, as a
deployed system would meet it. In both, what a user did at one and the same second is ordered as
:attr:`Interactions.by_user` orders it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.data.interactions import Dataset, Interactions
from common.errors import DataError

TRAIN, VALIDATION, TEST = 0, 1, 2

Held = Literal["validation", "test"]


@dataclass(frozen=True, eq=False)
class Split:
    """Interactions and the part that each row belongs to.

    User and item codes are those of ``interactions`` in every part.

    Parameters
    ----------
    interactions:
        All rows, ``n``.
    part:
        int8 ``(n,)``: 0 training, 1 validation, 2 test.
    """

    interactions: Interactions
    part: NDArray[np.int8]

    @cached_property
    def train(self) -> Interactions:
        """The rows to learn from."""
        return self.interactions.rows(self.part == TRAIN)

    @cached_property
    def validation(self) -> Interactions:
        """The rows by which a round is chosen."""
        return self.interactions.rows(self.part == VALIDATION)

    @cached_property
    def test(self) -> Interactions:
        """The rows of the final figures."""
        return self.interactions.rows(self.part == TEST)

    @cached_property
    def before_test(self) -> Interactions:
        """Training and validation together: what is known of a user when the test is asked."""
        return self.interactions.rows(self.part < TEST)

    @cached_property
    def validation_target(self) -> NDArray[np.int32]:
        """int32 ``(n_users,)``: the item of each user's first validation row, -1 where there is none."""
        return _first_items(self.validation)

    @cached_property
    def test_target(self) -> NDArray[np.int32]:
        """int32 ``(n_users,)``: the item of each user's first test row, -1 where there is none."""
        return _first_items(self.test)

    def targets(self, held: Held) -> NDArray[np.int32]:
        """:attr:`validation_target` or :attr:`test_target`."""
        return self.validation_target if held == "validation" else self.test_target

    def histories(self, held: Held) -> list[NDArray[np.int32]]:
        """Each user's items before that part, oldest first: training for validation, training and validation for test."""
        return (self.train if held == "validation" else self.before_test).histories()

    def users(self, codes: NDArray[np.integer]) -> Split:
        """The split of some users only, renumbered in the given order; no row changes its part."""
        codes = np.asarray(codes, dtype=np.int64)
        kept = np.zeros(self.interactions.n_users, dtype=np.bool_)
        kept[codes] = True
        return Split(self.interactions.users(codes), self.part[kept[self.interactions.user]])


def leave_one_out(interactions: Interactions, min_interactions: int = 3) -> Split:
    """Last interaction of each user to test, the one before to validation, the rest to training.

    Users with fewer than ``min_interactions`` (at least 3) rows are learnt from but not measured: all their rows are training.
    """
    if min_interactions < 3:
        raise DataError(f"leave-one-out needs 3 interactions of a user to make three parts, not {min_interactions}")
    order, starts = interactions.by_user
    ends = starts[1:][np.diff(starts) >= min_interactions]
    part = np.full(len(interactions), TRAIN, dtype=np.int8)
    part[order[ends - 1]] = TEST
    part[order[ends - 2]] = VALIDATION
    return Split(interactions, part)


def without_last(dataset: Dataset) -> tuple[Dataset, NDArray[np.int32]]:
    """The data without each user's last interaction, and its item: int32 ``(n_users,)``, -1 for users with a single one.

    This is how a silo measures quality: the item is never trained on.
    """
    interactions = dataset.interactions
    order, starts = interactions.by_user
    measured = np.diff(starts) > 1
    last = order[starts[1:][measured] - 1]
    held_out = np.full(interactions.n_users, -1, dtype=np.int32)
    held_out[measured] = interactions.item[last]
    kept = np.ones(len(interactions), dtype=np.bool_)
    kept[last] = False
    return replace(dataset, interactions=interactions.rows(kept)), held_out


def temporal(interactions: Interactions, validation: float = 0.8, test: float = 0.9) -> Split:
    """Split all rows at two moments: those at which the shares ``validation`` and ``test`` of all interactions have passed.

    Rows of exactly a boundary's second belong to the later part, so the earlier parts are at most as large as named.

    Raises
    ------
    DataError
        If not ``0 < validation < test < 1``, or so many rows share a second that a part would be empty.
    """
    if not 0 < validation < test < 1:
        raise DataError(f"temporal split at {validation} and {test}: expected 0 < validation < test < 1")
    n = len(interactions)
    times = np.sort(interactions.time)
    if n == 0:
        raise DataError("temporal split: there are no interactions")
    first, second = times[int(validation * n)], times[int(test * n)]
    part = np.full(n, TRAIN, dtype=np.int8)
    part[interactions.time >= first] = VALIDATION
    part[interactions.time >= second] = TEST
    sizes = np.bincount(part, minlength=3)
    if not sizes.all():
        raise DataError(
            f"temporal split at {validation} and {test}: {sizes[TRAIN]} training, {sizes[VALIDATION]} validation and "
            f"{sizes[TEST]} test rows; too many interactions share a time, choose other shares"
        )
    return Split(interactions, part)


def _first_items(interactions: Interactions) -> NDArray[np.int32]:
    order, starts = interactions.by_user
    out = np.full(interactions.n_users, -1, dtype=np.int32)
    has = np.diff(starts) > 0
    out[has] = interactions.item[order[starts[:-1][has]]]
    return out
