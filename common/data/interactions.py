"""Who met what, when: the private side of the data, as columns.

Users and items are held as integer codes, so that ten million interactions take some 200 MB. Nothing in here is public;
objects of this module never leave a silo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.data.catalogue import Catalogue
from common.errors import DataError


@dataclass(frozen=True, eq=False)
class Interactions:
    """Columns of equal length ``n``; rows keep the order of the source.

    Parameters
    ----------
    user:
        int32 ``(n,)``, position in ``user_ids``.
    item:
        int32 ``(n,)``, position in the catalogue that the interactions were read against.
    time:
        int64 ``(n,)``, seconds since 1970-01-01 UTC; any monotone clock will do for sorting.
    user_ids:
        Unique user ids of the source.
    value:
        float32 ``(n,)`` (a rating, a count) or None.
    text:
        ``n`` texts (a review) or None; ``""`` where the user wrote nothing.

    Raises
    ------
    DataError
        If lengths, dtypes or codes do not fit.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64]
    user_ids: tuple[str, ...]
    value: NDArray[np.float32] | None = None
    text: Sequence[str] | None = None

    def __post_init__(self) -> None:
        n = len(self.user)
        for name, column, dtype in (
            ("user", self.user, np.int32),
            ("item", self.item, np.int32),
            ("time", self.time, np.int64),
            ("value", self.value, np.float32),
        ):
            if column is None:
                continue
            if column.shape != (n,) or column.dtype != dtype:
                raise DataError(f"interactions: column {name} is {column.dtype}{column.shape}, expected {dtype.__name__}({n},)")
        if self.text is not None and len(self.text) != n:
            raise DataError(f"interactions: {len(self.text)} texts for {n} rows")
        if n and (self.user.min() < 0 or self.user.max() >= len(self.user_ids)):
            raise DataError("interactions: a user code lies outside user_ids")
        if n and self.item.min() < 0:
            raise DataError("interactions: a negative item code")

    def __len__(self) -> int:
        return len(self.user)

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @cached_property
    def by_user(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(order, starts)``: rows sorted by user, then time, then item; user ``u`` owns ``order[starts[u]:starts[u + 1]]``.

        Of what a user did within one second the item's place in the catalogue decides, not the order of the source: files of
        the same data set differ in the latter, and some are shuffled.
        """
        order = np.lexsort((self.item, self.time, self.user)).astype(np.int64)
        starts = np.searchsorted(self.user[order], np.arange(self.n_users + 1)).astype(np.int64)
        return order, starts

    def histories(self) -> list[NDArray[np.int32]]:
        """Each user's items, oldest first; one array per user."""
        order, starts = self.by_user
        items = self.item[order]
        return [items[starts[u] : starts[u + 1]] for u in range(self.n_users)]

    def rows(self, keep: NDArray[np.bool_] | NDArray[np.integer]) -> Interactions:
        """The rows under a mask or at positions; ``user_ids`` stay as they are."""
        text = None
        if self.text is not None:
            positions = np.flatnonzero(keep) if keep.dtype == np.bool_ else keep
            text = [self.text[int(i)] for i in positions]
        return replace(
            self,
            user=self.user[keep],
            item=self.item[keep],
            time=self.time[keep],
            value=None if self.value is None else self.value[keep],
            text=text,
        )

    def users(self, codes: Sequence[int] | NDArray[np.integer]) -> Interactions:
        """Only the given users' rows, users renumbered in the given order."""
        codes = np.asarray(codes, dtype=np.int64)
        renumber = np.full(self.n_users, -1, dtype=np.int32)
        renumber[codes] = np.arange(len(codes), dtype=np.int32)
        kept = self.rows(renumber[self.user] >= 0)
        return replace(kept, user=renumber[kept.user], user_ids=tuple(self.user_ids[int(c)] for c in codes))


@dataclass(frozen=True, eq=False)
class Dropped:
    """Why rows of the source did not become interactions: reason to count, with one example each."""

    counts: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A catalogue, the interactions against it, and what users say of themselves.

    ``user_text`` maps a position in ``interactions.user_ids`` to a profile line and may be None.
    """

    catalogue: Catalogue
    interactions: Interactions
    user_text: tuple[str, ...] | None = None
    dropped: Dropped = field(default_factory=Dropped)
    name: str = "dataset"

    def __post_init__(self) -> None:
        if len(self.interactions) and int(self.interactions.item.max()) >= len(self.catalogue):
            raise DataError(f"{self.name}: an interaction names an item outside the catalogue")
        if self.user_text is not None and len(self.user_text) != self.interactions.n_users:
            raise DataError(f"{self.name}: {len(self.user_text)} profile lines for {self.interactions.n_users} users")

    def users(self, codes: Sequence[int] | NDArray[np.integer]) -> Dataset:
        """The data of some users only, renumbered in the given order."""
        text = None if self.user_text is None else tuple(self.user_text[int(c)] for c in codes)
        return replace(self, interactions=self.interactions.users(codes), user_text=text)
