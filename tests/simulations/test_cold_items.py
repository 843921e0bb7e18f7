"""What is held out as cold is nowhere in what is trained on."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.data.interactions import Dataset, Interactions
from common.data.load import read_dataset
from common.errors import DataError
from simulations.cold_items import INTERACTIONS, ITEMS, LEAST_HISTORY, NEW_ITEMS, ColdSplit, hold_out, write_files


@pytest.fixture(scope="module")
def split(dataset: Dataset) -> ColdSplit:
    return hold_out(dataset, share=0.25, seed=1)


def test_a_share_of_the_items_is_cold_and_the_seed_decides_which(dataset: Dataset, split: ColdSplit) -> None:
    assert split.cold.sum() == 3
    assert np.array_equal(split.cold, hold_out(dataset, share=0.25, seed=1).cold)
    assert any(not np.array_equal(split.cold, hold_out(dataset, share=0.25, seed=seed).cold) for seed in range(2, 6))


def test_neither_cold_items_nor_what_follows_a_question_is_trained_on(split: ColdSplit) -> None:
    interactions = split.dataset.interactions
    assert not split.cold[interactions.item[split.kept]].any()
    asked = 0
    for user in range(interactions.n_users):
        rows = sorted(np.flatnonzero(interactions.user == user), key=lambda r: (interactions.time[r], interactions.item[r]))
        cold = [place for place, row in enumerate(rows) if split.cold[interactions.item[row]]]
        warm_before = (
            [int(interactions.item[r]) for r in rows[: cold[-1]] if not split.cold[interactions.item[r]]] if cold else []
        )
        if len(warm_before) < LEAST_HISTORY:
            assert all(split.kept[r] != split.cold[interactions.item[r]] for r in rows)
            continue
        case = split.cases[asked]
        asked += 1
        assert case.history.tolist() == warm_before
        assert case.target == interactions.item[rows[cold[-1]]]
        assert set(case.met.tolist()) == {int(interactions.item[r]) for r in rows[: cold[-1]]}
        assert not split.kept[rows[cold[-1] :]].any()
    assert asked == len(split.cases) > 0


def test_the_files_hold_the_same_and_no_id_of_a_cold_item_is_in_what_is_trained_on(split: ColdSplit, tmp_path: Path) -> None:
    write_files(split, tmp_path)
    read = read_dataset(tmp_path / INTERACTIONS, columns={"items": ITEMS})
    catalogue, warm = split.dataset.catalogue, np.flatnonzero(~split.cold)
    assert read.catalogue.ids == tuple(catalogue.ids[i] for i in warm)
    assert read.catalogue.texts == tuple(catalogue.texts[i] for i in warm)
    kept = split.dataset.interactions.rows(split.kept)
    theirs, ours = read.interactions, kept
    assert {
        (theirs.user_ids[u], read.catalogue.ids[i], t) for u, i, t in zip(theirs.user, theirs.item, theirs.time, strict=True)
    } == {(ours.user_ids[u], catalogue.ids[i], t) for u, i, t in zip(ours.user, ours.item, ours.time, strict=True)}
    with open(tmp_path / NEW_ITEMS, newline="", encoding="utf-8") as file:
        new = [row["item"] for row in csv.DictReader(file)]
    assert new == [catalogue.ids[i] for i in np.flatnonzero(split.cold)]
    trained_on = (tmp_path / INTERACTIONS).read_text() + (tmp_path / ITEMS).read_text()
    assert not any(f",{item}," in trained_on or trained_on.startswith(f"{item},") for item in new)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_that_leaves_nothing_on_one_side_is_refused(dataset: Dataset, share: float) -> None:
    with pytest.raises(DataError, match="some must be cold and some warm"):
        hold_out(dataset, share=share)


def test_without_a_single_case_there_is_nothing_to_measure(dataset: Dataset) -> None:
    short = Interactions(
        np.arange(4, dtype=np.int32), np.arange(4, dtype=np.int32), np.zeros(4, dtype=np.int64), tuple(f"u{i}" for i in range(4))
    )
    with pytest.raises(DataError, match="nobody met 3 warm items and then a cold one"):
        hold_out(replace(dataset, interactions=short, user_text=None), share=0.25)
