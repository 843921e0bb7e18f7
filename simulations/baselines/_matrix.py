"""Histories as matrices and padded windows, shared by the reference recommenders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from simulations.baselines import Histories


def binary(histories: Histories, n_items: int) -> csr_matrix:
    """``(n_users, n_items)`` float32, 1 where the user met the item, however often."""
    from scipy.sparse import csr_matrix

    starts = np.concatenate([[0], np.cumsum([len(h) for h in histories], dtype=np.int64)])
    items = np.concatenate([*histories, np.zeros(0, dtype=np.int32)])
    out = csr_matrix((np.ones(len(items), dtype=np.float32), items, starts), shape=(len(histories), n_items))
    out.sum_duplicates()
    out.data[:] = 1.0
    return out


def counts(histories: Histories, n_items: int) -> NDArray[np.int64]:
    """How often each item was met, ``(n_items,)``."""
    items = np.concatenate([*histories, np.zeros(0, dtype=np.int32)])
    return np.bincount(items, minlength=n_items)


def dense(histories: Histories, n_items: int) -> NDArray[np.float32]:
    """:func:`binary` as an array."""
    return np.asarray(binary(histories, n_items).toarray(), dtype=np.float32)
