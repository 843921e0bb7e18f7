"""The evaluation protocol on MovieLens-100K, pinned by the figures that its reference recommenders must give.

Many people rated several films in one second (44 % of users have such a tie at their last one), so which interaction counts as
the last is decided by how ties are broken, and that moves every figure by more than the recommenders differ. The figures that
the project compares with break ties by film number; a reader that keeps the order of the file gets the second row.
"""

from __future__ import annotations

import numpy as np
import pytest

from common.metrics import evaluate
from simulations import baselines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def movielens():
    from common.assets import asset_path
    from common.data.load import read_dataset

    data = read_dataset(asset_path("ml-100k"))
    assert (data.interactions.n_users, len(data.catalogue), len(data.interactions)) == (943, 1682, 100_000)
    assert data.catalogue.ids == tuple(str(i) for i in range(1, 1683))
    return data


def ordered(data, ties):
    """Histories, those of one second by film number or as in the file."""
    rows = data.interactions
    return rows.rows(np.argsort(rows.item, kind="stable")).histories() if ties == "film number" else rows.histories()


def ndcg_on_test(name, data, ties):
    histories = ordered(data, ties)
    reference = baselines.create(name)
    reference.fit([h[:-2] for h in histories], data.catalogue, None, 0)
    known = [h[:-1] for h in histories]
    return evaluate(reference.score(known), np.array([h[-1] for h in histories]), known).summary(10)["ndcg@10"]


@pytest.mark.parametrize(
    ("name", "ties", "expected"),
    [
        ("popularity", "film number", 0.0255),
        ("ease", "film number", 0.0426),
        ("popularity", "file", 0.0441),
        ("ease", "file", 0.0711),
    ],
)
def test_popularity_and_ease_give_the_known_figures(movielens, name, ties, expected):
    assert ndcg_on_test(name, movielens, ties) == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize("name", ["als", "bpr", "item-knn", "tf-idf"])
def test_every_other_reference_beats_popularity(movielens, name):
    assert ndcg_on_test(name, movielens, "film number") > 0.0265


def test_sasrec_reaches_the_goal_after_sixty_epochs(movielens):
    assert ndcg_on_test("sasrec", movielens, "film number") >= 0.085
