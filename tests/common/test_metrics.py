"""Ranking metrics against a slow loop, scikit-learn, and properties that must hold for any scores."""

from __future__ import annotations

import math
import time
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import ndcg_score, roc_auc_score

from common.errors import DataError, ModelError
from common.metrics import bootstrap_interval, evaluate, intra_list_diversity, self_information, top_k

NOTHING = np.zeros(0, dtype=np.int32)


@st.composite
def problems(draw, ties=True):
    """Scores, held-out items and seen lists of a few users over a few items, with many equal scores if ``ties``."""
    n_users, n_items = draw(st.integers(1, 6)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.integers(1, 4)) if ties else 10**6
    scores = rng.integers(0, levels, (n_users, n_items)).astype(np.float32)
    if not ties:
        scores = np.argsort(rng.random((n_users, n_items)), axis=1).astype(np.float32)
    target = rng.integers(0, n_items, n_users)
    seen = [rng.choice(n_items, rng.integers(0, n_items), replace=True).astype(np.int32) for _ in range(n_users)]
    return scores, target, seen


def candidates_of(n_items, target, seen, sold=None):
    sold = range(n_items) if sold is None else np.flatnonzero(sold)
    return [i for i in sold if i == target or i not in set(seen.tolist())]


def loop(scores, target, seen, k, sold=None):
    """NDCG, hit rate, reciprocal rank and AUC of one user, in plain Python, as the mean over the possible ranks."""
    items = candidates_of(len(scores), target, seen, sold)
    above = sum(scores[i] > scores[target] for i in items)
    tied = sum(scores[i] == scores[target] for i in items if i != target)
    ranks = [above + 1 + t for t in range(tied + 1)]
    others = len(items) - 1
    return [
        sum(1 / math.log2(r + 1) if r <= k else 0 for r in ranks) / len(ranks),
        sum(r <= k for r in ranks) / len(ranks),
        sum(1 / r for r in ranks) / len(ranks),
        sum((len(items) - r) / others if others else 0.5 for r in ranks) / len(ranks),
    ]


@given(problems(), st.integers(1, 14))
def test_every_metric_equals_a_loop_over_users_and_items(problem, k):
    scores, target, seen = problem
    got = evaluate(scores, target, seen)
    expected = np.array([loop(s, t, x, k) for s, t, x in zip(scores, target, seen, strict=True)])
    assert_allclose(np.stack([got.ndcg(k), got.hit_rate(k), got.reciprocal_rank(), got.auc()], axis=1), expected, atol=1e-12)


@given(problems(), st.integers(1, 14))
def test_ndcg_and_auc_equal_scikit_learn_with_and_without_ties(problem, k):
    scores, target, seen = problem
    got = evaluate(scores, target, seen)
    for u in range(len(target)):
        items = candidates_of(scores.shape[1], target[u], seen[u])
        if len(items) < 2:  # scikit-learn defines neither for a single candidate
            continue
        relevant = (np.array(items) == target[u]).astype(int)
        assert got.ndcg(k)[u] == pytest.approx(ndcg_score([relevant], [scores[u, items]], k=k), abs=1e-9)
        assert got.auc()[u] == pytest.approx(roc_auc_score(relevant, scores[u, items]), abs=1e-9)


def test_tied_scores_give_the_mean_over_all_ways_to_break_the_tie():
    scores, target = np.array([3.0, 1.0, 1.0, 1.0, 0.0]), 2
    got = evaluate(scores[None], np.array([target]), [NOTHING])
    gains = []
    for order in permutations([1, 2, 3]):
        rank = 2 + order.index(target)
        gains.append([1 / math.log2(rank + 1) if rank <= 3 else 0, rank <= 3, 1 / rank])
    assert_allclose([got.ndcg(3)[0], got.hit_rate(3)[0], got.reciprocal_rank()[0]], np.mean(gains, axis=0))
    assert got.rank[0] == 3.0


@pytest.mark.parametrize("constant", [0.0, -7.5, 1e30, -np.inf])
def test_constant_scores_earn_what_a_random_ranking_earns(constant):
    n_items, k = 200, 10
    got = evaluate(np.full((50, n_items), constant, dtype=np.float32), np.arange(50), [NOTHING] * 50).summary(k)
    assert got["hr@10"] == pytest.approx(k / n_items)
    assert got["ndcg@10"] == pytest.approx(sum(1 / math.log2(r + 1) for r in range(1, k + 1)) / n_items)
    assert got["auc"] == 0.5


def test_nan_scores_are_refused_where_they_would_be_ranked():
    scores = np.zeros((2, 4), dtype=np.float32)
    scores[1, 2] = np.nan
    with pytest.raises(ModelError, match="NaN"):
        evaluate(scores, np.array([0, 0]), [NOTHING, NOTHING])
    assert len(evaluate(scores, np.array([0, 0]), [NOTHING, np.array([2])])) == 2  # a seen item is not ranked


@given(problems(ties=False), st.integers(1, 12))
def test_seen_items_are_neither_listed_nor_counted(problem, k):
    scores, target, seen = problem
    got = evaluate(scores, target, seen, depth=k)
    favoured = scores.copy()
    for u, items in enumerate(seen):
        favoured[u, np.setdiff1d(items, target[u])] = 1e9
    assert_array_equal(evaluate(favoured, target, seen, depth=k).lists, got.lists)
    assert_array_equal(evaluate(favoured, target, seen).above, got.above)
    for u, items in enumerate(seen):
        assert not set(got.lists[u].tolist()) & (set(items.tolist()) - {target[u]})
        assert got.candidates[u] == len(candidates_of(scores.shape[1], target[u], items))


@given(problems(), st.integers(0, 2**32 - 1), st.integers(1, 14))
def test_items_that_the_users_silo_does_not_sell_are_never_ranked(problem, seed, k):
    scores, target, seen = problem
    n_users, n_items = scores.shape
    rng = np.random.default_rng(seed)
    silo = rng.integers(0, 3, n_users)
    sold = rng.random((3, n_items)) < 0.5
    sold[silo, target] = True
    got = evaluate(scores, target, seen, depth=k, assortments=sold, assortment_of=silo)
    expected = [loop(scores[u], target[u], seen[u], k, sold[silo[u]]) for u in range(n_users)]
    assert_allclose(np.stack([got.ndcg(k), got.hit_rate(k), got.reciprocal_rank(), got.auc()], axis=1), expected, atol=1e-12)
    for u in range(n_users):
        listed = got.lists[u][got.lists[u] >= 0]
        assert sold[silo[u], listed].all()
        assert len(listed) == min(k, got.candidates[u])
    # And it is the same as evaluating each silo over a catalogue that has only its own items.
    for s in np.unique(silo):
        users, items = np.flatnonzero(silo == s), np.flatnonzero(sold[s])
        place = np.full(n_items, -1)
        place[items] = np.arange(len(items))
        own = evaluate(
            scores[np.ix_(users, items)], place[target[users]], [place[seen[u]][place[seen[u]] >= 0] for u in users], depth=k
        )
        assert_allclose(own.summary(k)["ndcg@" + str(k)], got.by_group(silo)[s].summary(k)["ndcg@" + str(k)])
        assert own.coverage(k) == pytest.approx(got.by_group(silo)[s].coverage(k))


def test_a_held_out_item_that_its_silo_does_not_sell_is_an_error_that_names_it():
    sold = np.array([[True, True, False]])
    with pytest.raises(DataError, match="held-out item 2 is not in assortment 0"):
        evaluate(np.zeros((1, 3)), np.array([2]), [NOTHING], assortments=sold, assortment_of=np.array([0]))


def test_a_scorer_is_asked_in_blocks_and_gives_the_same_evaluation():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(97, 40)).astype(np.float32)
    target, seen = rng.integers(0, 40, 97), [rng.integers(0, 40, rng.integers(0, 9)) for _ in range(97)]
    asked = []

    def scorer(users):
        asked.append(len(users))
        return scores[users]

    whole, blocks = evaluate(scores, target, seen), evaluate(scorer, target, seen, block=25)
    assert asked == [25, 25, 25, 22]
    assert_array_equal(whole.lists, blocks.lists)
    assert_array_equal(whole.above, blocks.above)


@given(problems(), st.integers(1, 14))
def test_top_k_is_the_stable_sort_of_the_allowed_items(problem, k):
    scores, target, seen = problem
    allowed = np.ones(scores.shape, dtype=bool)
    for u, items in enumerate(seen):
        allowed[u, items] = False
    got = top_k(scores, k, allowed)
    for u in range(len(target)):
        expected = sorted(np.flatnonzero(allowed[u]), key=lambda i: (-scores[u, i], i))[:k]
        assert got[u].tolist() == expected + [-1] * (k - len(expected))


@pytest.mark.parametrize(
    ("target", "seen", "message"),
    [
        ([3], [NOTHING], "held-out item lies outside the 3 items"),
        ([-1], [NOTHING], "held-out item lies outside"),
        ([0], [np.array([-1])], "seen item lies outside"),
        ([0], [NOTHING, NOTHING], "2 lists of seen items for 1"),
        ([0, 1], [NOTHING, NOTHING], r"expected \(2, n_items\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(target, seen, message):
    with pytest.raises(DataError, match=message):
        evaluate(np.zeros((1, 3)), np.array(target), seen)


def test_coverage_novelty_and_diversity_of_a_hand_made_case():
    scores = np.array([[9, 8, 7, 0, 0], [9, 8, 0, 7, 0]], dtype=np.float32)
    features = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [1, 0]], dtype=bool)
    got = evaluate(
        scores, np.array([4, 4]), [NOTHING] * 2, depth=3, item_counts=np.array([3, 1, 0, 0, 0]), count_users=3, features=features
    )
    assert got.lists.tolist() == [[0, 1, 2], [0, 1, 3]]
    assert got.coverage(3) == 4 / 5
    # -log2((count + 1) / (users + 1)): 0, 1 and 2 bits for 3, 1 and 0 of 3 users
    assert_allclose(got.novelty(3), [(0 + 1 + 2) / 3, (0 + 1 + 2) / 3])
    # Jaccard of the pairs: {a} {a,b} 1/2, {a} {b} 0, {a,b} {b} 1/2; with an item of no category 0
    assert_allclose(got.diversity(3), [1 - (0.5 + 0 + 0.5) / 3, 1 - 0.5 / 3])
    with pytest.raises(DataError, match="depth 3"):
        got.diversity(4)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_diversity_equals_a_loop_over_pairs(seed, categories):
    rng = np.random.default_rng(seed)
    features = rng.random((15, 4)) < 0.4 if categories else rng.normal(size=(15, 4)).astype(np.float32)
    lists = np.stack([rng.permutation(15)[:6] for _ in range(5)])
    lists[0, 4:], lists[1, 1:], lists[2] = -1, -1, -1

    def similarity(a, b):
        if categories:
            return (a & b).sum() / (a | b).sum() if (a | b).any() else 0.0
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    for row, got in zip(lists, intra_list_diversity(lists, features), strict=True):
        pairs = [similarity(features[i], features[j]) for i, j in combinations(row[row >= 0], 2)]
        assert got == pytest.approx(1 - np.mean(pairs) if pairs else 0.0, abs=1e-5)


def test_self_information_is_finite_and_falls_with_popularity():
    bits = self_information(np.array([0, 1, 50, 100]), 100)
    assert_allclose(bits, [math.log2(101), math.log2(101 / 2), math.log2(101 / 51), 0.0])


def test_groups_hold_the_same_per_user_figures_and_their_weighted_mean_is_the_total():
    rng = np.random.default_rng(3)
    scores, target = rng.normal(size=(60, 30)), rng.integers(0, 30, 60)
    silo = rng.choice(["north", "south", "west"], 60)
    whole = evaluate(scores, target, [NOTHING] * 60, item_counts=rng.integers(0, 60, 30), features=rng.normal(size=(30, 8)))
    groups = whole.by_group(silo)
    assert list(groups) == ["north", "south", "west"]
    for name in whole.per_user(10):
        assert_allclose(np.concatenate([groups[s].per_user(10)[name] for s in groups]).sum(), whole.per_user(10)[name].sum())
        assert_array_equal(groups["south"].per_user(10)[name], whole.per_user(10)[name][silo == "south"])
    total = sum(g.summary(10)["ndcg@10"] * len(g) for g in groups.values()) / 60
    assert total == pytest.approx(whole.summary(10)["ndcg@10"])


def test_bootstrap_equals_resampling_one_by_one_in_width_and_place():
    """Ends of two times 4,000 resamples differ by 0.06 standard errors (one sigma): 0.25 is a false-alarm rate below 1e-3."""
    rng = np.random.default_rng(0)
    values = (rng.random(300) < 0.2).astype(float)
    low, high = bootstrap_interval(values, resamples=4000, seed=1)
    means = [rng.choice(values, 300).mean() for _ in range(4000)]
    error = values.std() / math.sqrt(300)
    assert_allclose([low, high], np.quantile(means, [0.025, 0.975]), atol=0.25 * error)


def test_bootstrap_intervals_cover_the_mean_as_often_as_they_say():
    """95 % nominal, 400 trials: fewer than 360 covered has a probability below 1e-3 at a true coverage of 94 %."""
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(400):
        low, high = bootstrap_interval(rng.normal(size=80), resamples=400, seed=trial)
        covered += low <= 0 <= high
    assert 360 <= covered <= 398


def test_bootstrap_repeats_with_its_seed_keeps_columns_paired_and_does_not_depend_on_chunks(monkeypatch):
    rng = np.random.default_rng(2)
    a = rng.random((50, 1))
    both = np.hstack([a, a + 1])
    low, high = bootstrap_interval(both, seed=9)
    assert_allclose([low[1] - low[0], high[1] - high[0]], 1.0)
    monkeypatch.setattr("common.metrics._BLOCK_CELLS", 700)
    assert_allclose(bootstrap_interval(both, seed=9), (low, high), rtol=1e-12)
    assert not np.array_equal(bootstrap_interval(both, seed=10), (low, high))


def test_movielens_sized_evaluation_and_its_intervals_are_fast():
    """The goals are 2 s and 0.5 s on an idle core; CPU time, so that a busy machine does not fail the test."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(943, 1682)).astype(np.float32)
    target = rng.integers(0, 1682, 943)
    seen = [rng.integers(0, 1682, 104) for _ in range(943)]
    features = rng.normal(size=(1682, 384)).astype(np.float32)
    start = time.process_time()
    got = evaluate(scores, target, seen, item_counts=rng.integers(0, 943, 1682), features=features)
    got.summary(10)
    ranked = time.process_time()
    columns = np.stack(list(got.per_user(10).values()), axis=1)
    gathered = time.process_time()
    bootstrap_interval(columns, resamples=1000)
    assert ranked - start < 2.0
    assert time.process_time() - gathered < 0.5
    bounds = got.intervals(10, resamples=1000)
    assert bounds["ndcg@10"][0] <= got.summary(10)["ndcg@10"] <= bounds["ndcg@10"][1]
