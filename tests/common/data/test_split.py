"""Splits by time, checked against loops over plain tuples."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.interactions import Interactions
from common.data.split import Split, leave_one_out, temporal
from common.errors import DataError

Row = tuple[int, int, int]  # user, item, time


def when(row: Row) -> tuple[int, int]:
    """What a user's rows are sorted by: time, then item."""
    return row[2], row[1]


def interactions(rows: list[Row], n_users: int) -> Interactions:
    user, item, time = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.zeros(0),) * 3
    return Interactions(
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        time=time.astype(np.int64),
        user_ids=tuple(f"u{i}" for i in range(n_users)),
        text=[f"row {i}" for i in range(len(rows))],
    )


def plain(part: Interactions) -> list[Row]:
    return list(zip(part.user.tolist(), part.item.tolist(), part.time.tolist(), strict=True))


rows_of_users = st.integers(1, 6).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, 9), st.integers(0, 5)), max_size=40))
)


def loop_leave_one_out(rows: list[Row], n_users: int, at_least: int) -> tuple[list[Row], list[Row], list[Row]]:
    """The oracle: each user's rows sorted; the parts in the order of the source."""
    part = {}
    for u in range(n_users):
        mine = sorted((i for i, row in enumerate(rows) if row[0] == u), key=lambda i: when(rows[i]))
        for i in mine:
            part[i] = "train"
        if len(mine) >= at_least:
            part[mine[-1]], part[mine[-2]] = "test", "validation"
    return tuple([rows[i] for i in range(len(rows)) if part[i] == name] for name in ("train", "validation", "test"))  # type: ignore[return-value]


@given(rows_of_users, st.integers(3, 5))
def test_leave_one_out_equals_a_loop(case: tuple[int, list[Row]], at_least: int) -> None:
    n, rows = case
    split = leave_one_out(interactions(rows, n), at_least)
    train, validation, test = loop_leave_one_out(rows, n, at_least)
    assert (plain(split.train), plain(split.validation), plain(split.test)) == (train, validation, test)
    for u in range(n):
        assert split.validation_target[u] == next((i for v, i, _ in validation if v == u), -1)
        assert split.test_target[u] == next((i for v, i, _ in test if v == u), -1)
        known = sorted([r for r in rows if r[0] == u], key=when)
        history = [i for _, i, _ in known]
        held = 2 if len(known) >= at_least else 0
        assert split.histories("validation")[u].tolist() == history[: len(history) - held]
        assert split.histories("test")[u].tolist() == history[: len(history) - held // 2]


@given(rows_of_users)
def test_leave_one_out_never_shows_anything_later_than_its_target(case: tuple[int, list[Row]]) -> None:
    n, rows = case
    split = leave_one_out(interactions(rows, n))
    for u in range(n):
        times = [part.time[part.user == u] for part in (split.train, split.validation, split.test)]
        for earlier, later in pairwise(times):
            if len(earlier) and len(later):
                assert earlier.max() <= later.min()
        assert len(times[1]) == len(times[2]) <= 1


def test_ties_in_time_are_ordered_by_item_whatever_the_order_of_the_source() -> None:
    split = leave_one_out(interactions([(0, 7, 5), (0, 3, 5), (0, 9, 5), (0, 1, 5)], 1))
    assert split.histories("validation")[0].tolist() == [1, 3]
    assert (split.targets("validation")[0], split.targets("test")[0]) == (7, 9)


def test_users_with_too_few_rows_are_learnt_from_but_not_measured() -> None:
    split = leave_one_out(interactions([(0, 1, 1), (0, 2, 2), (1, 3, 1), (1, 4, 2), (1, 5, 3)], 3))
    assert plain(split.train) == [(0, 1, 1), (0, 2, 2), (1, 3, 1)]
    assert split.test_target.tolist() == [-1, 5, -1]
    with pytest.raises(DataError, match="3 interactions"):
        leave_one_out(split.interactions, 2)


def test_texts_follow_their_rows() -> None:
    split = leave_one_out(interactions([(0, 1, 3), (0, 2, 1), (0, 3, 2)], 1))
    assert (split.train.text, split.validation.text, split.test.text) == (["row 1"], ["row 2"], ["row 0"])


@given(rows_of_users, st.data())
def test_splitting_some_users_is_the_same_as_selecting_from_the_split(case: tuple[int, list[Row]], data: st.DataObject) -> None:
    n, rows = case
    codes = np.array(data.draw(st.permutations(range(n)))[: data.draw(st.integers(1, n))])
    whole = interactions(rows, n)
    selected, again = leave_one_out(whole).users(codes), leave_one_out(whole.users(codes))
    for part in ("train", "validation", "test"):
        assert plain(getattr(selected, part)) == plain(getattr(again, part))


@given(rows_of_users, st.floats(0.05, 0.9), st.floats(0.01, 0.5))
def test_temporal_split_is_one_cut_in_time_for_everybody(case: tuple[int, list[Row]], validation: float, more: float) -> None:
    n, rows = case
    test = min(0.99, validation + more)
    try:
        split = temporal(interactions(rows, n), validation, test)
    except DataError:
        return
    assert split.train.time.max() < split.validation.time.min()
    assert split.validation.time.max() < split.test.time.min()
    assert sorted(plain(split.train) + plain(split.validation) + plain(split.test)) == sorted(rows)
    assert len(split.train) <= validation * len(rows)
    assert len(split.before_test) <= test * len(rows)


def test_temporal_split_of_distinct_times_has_the_shares_that_were_asked_for() -> None:
    rows = [(i % 7, i, (i * 37) % 1000) for i in range(1000)]
    split = temporal(interactions(rows, 7), 0.7, 0.9)
    assert (len(split.train), len(split.validation), len(split.test)) == (700, 200, 100)
    assert split.train.time.max() == 699
    first = {u: min((t, i) for v, i, t in rows if v == u and t >= 900)[1] for u in range(7)}
    assert split.test_target.tolist() == [first[u] for u in range(7)]


def test_temporal_split_refuses_what_it_cannot_do() -> None:
    same = interactions([(0, 1, 5)] * 10, 1)
    with pytest.raises(DataError, match="share a time"):
        temporal(same)
    with pytest.raises(DataError, match="no interactions"):
        temporal(interactions([], 1))
    for bad in [(0.9, 0.8), (0.0, 0.5), (0.5, 1.0)]:
        with pytest.raises(DataError, match="expected 0 < validation < test < 1"):
            temporal(same, *bad)


def test_parts_are_disjoint_and_whole_at_scale() -> None:
    rng = np.random.default_rng(0)
    n = 200_000
    data = Interactions(
        user=rng.integers(0, 5_000, n).astype(np.int32),
        item=rng.integers(0, 300, n).astype(np.int32),
        time=rng.integers(0, 10_000, n).astype(np.int64),
        user_ids=tuple(map(str, range(5_000))),
    )
    split: Split = leave_one_out(data)
    counts = np.bincount(data.user, minlength=5_000)
    assert len(split.test) == len(split.validation) == (counts >= 3).sum()
    assert len(split.train) + 2 * len(split.test) == n
