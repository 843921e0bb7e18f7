"""The evaluation protocol on MovieLens-100K, pinned by the figures that its reference recommenders must give.

Many people rated several films in one second (44 % of users have such a tie at their last one), so which interaction counts as
the last is decided by how ties are broken, and that moves every figure by more than the recommenders differ. The project breaks
ties by the place in the catalogue. Figures for ties in the order of the file are pinned as well, so that nobody compares the two.
"""

from __future__ import annotations

import numpy as np
import pytest

from common.data.split import leave_one_out
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


def ndcg_on_test(name, data, train, known, target):
    reference = baselines.create(name)
    reference.fit(train, data.catalogue, None, 0)
    return evaluate(reference.score(known), target, known).summary(10)["ndcg@10"]


def under_the_protocol(name, data):
    split = leave_one_out(data.interactions)
    return ndcg_on_test(name, data, split.histories("validation"), split.histories("test"), split.test_target)


def with_ties_as_in_the_file(name, data):
    rows = data.interactions
    histories = []
    for user in range(rows.n_users):
        own = np.flatnonzero(rows.user == user)
        histories.append(rows.item[own[np.argsort(rows.time[own], kind="stable")]])
    return ndcg_on_test(
        name, data, [h[:-2] for h in histories], [h[:-1] for h in histories], np.array([h[-1] for h in histories])
    )


@pytest.mark.parametrize(("name", "expected"), [("popularity", 0.0255), ("ease", 0.0426)])
def test_popularity_and_ease_give_the_known_figures(movielens, name, expected):
    assert under_the_protocol(name, movielens) == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize(("name", "expected"), [("popularity", 0.0441), ("ease", 0.0711)])
def test_breaking_ties_by_the_order_of_the_file_would_be_another_protocol(movielens, name, expected):
    assert with_ties_as_in_the_file(name, movielens) == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize("name", ["als", "bpr", "item-knn", "tf-idf"])
def test_every_other_reference_beats_popularity(movielens, name):
    assert under_the_protocol(name, movielens) > 0.0265


def test_sasrec_reaches_the_goal_after_sixty_epochs(movielens):
    assert under_the_protocol("sasrec", movielens) >= 0.085
