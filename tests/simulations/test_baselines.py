"""Reference recommenders against closed forms, loops, and tasks whose answer is known."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from common.data.catalogue import Catalogue
from common.errors import ConfigError, ModelError
from common.metrics import evaluate
from simulations import baselines

EMPTY = np.zeros(0, dtype=np.int32)


def made_up(n_items, categories=("Drama",)):
    return Catalogue(
        ids=tuple(str(i + 1) for i in range(n_items)),
        titles=tuple(f"Film {i}" for i in range(n_items)),
        categories=tuple((categories[i % len(categories)],) for i in range(n_items)),
    )


def random_histories(n_users, n_items, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.permutation(n_items)[: rng.integers(2, n_items)].astype(np.int32) for _ in range(n_users)]


def matrix(histories, n_items):
    out = np.zeros((len(histories), n_items))
    for row, history in zip(out, histories, strict=True):
        row[history] = 1
    return out


def two_worlds(n_users=80, n_items=40, length=8, seed=0):
    """Users who meet even items only or odd items only; the held-out item is of their own kind."""
    rng = np.random.default_rng(seed)
    own = [rng.permutation(np.arange(u % 2, n_items, 2))[: length + 1].astype(np.int32) for u in range(n_users)]
    return [h[:-1] for h in own], np.array([h[-1] for h in own])


FAST = {"sasrec": {"epochs": 2, "width": 8, "window": 6}, "bpr": {"iterations": 5}, "als": {"factors": 4}}


def fitted(name, histories, catalogue, seed=0, **options):
    reference = baselines.create(name, **{**FAST.get(name, {}), **options})
    reference.fit(histories, catalogue, None, seed)
    return reference


@pytest.mark.parametrize("name", baselines.names())
class TestEveryReference:
    def test_scores_are_float32_finite_and_of_the_catalogues_width(self, name):
        histories = random_histories(20, 12)
        got = fitted(name, histories, made_up(12)).score(histories)
        assert (got.shape, got.dtype) == ((20, 12), np.float32)
        assert np.isfinite(got).all()

    def test_a_users_scores_do_not_depend_on_the_company_or_on_having_been_trained_on(self, name):
        reference = fitted(name, random_histories(20, 12), made_up(12))
        strangers = [*random_histories(9, 12, seed=5), EMPTY]
        together = reference.score(strangers)
        alone = np.concatenate([reference.score([h]) for h in strangers])
        assert_allclose(together, alone, atol=2e-5)
        assert np.isfinite(together).all()

    def test_the_seed_alone_decides_what_is_random(self, name):
        histories = random_histories(20, 12)
        first, again = (fitted(name, histories, made_up(12), seed=3).score(histories) for _ in range(2))
        assert_array_equal(first, again)

    def test_no_users_have_no_scores(self, name):
        assert fitted(name, random_histories(20, 12), made_up(12)).score([]).shape == (0, 12)

    def test_nothing_is_warned_of(self, name):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fitted(name, random_histories(20, 12), made_up(12))


def test_every_reference_of_the_table_is_there():
    assert baselines.names() == ("als", "bpr", "ease", "item-knn", "popularity", "sasrec", "tf-idf")


def test_an_unknown_reference_is_refused_with_those_that_exist():
    with pytest.raises(ConfigError, match=r"'svd'; there are: als, bpr, ease"):
        baselines.create("svd")


def test_popularity_counts_interactions_and_is_the_same_for_everybody():
    histories = [np.array(h, dtype=np.int32) for h in ([0, 1, 1], [1, 2], [1])]
    got = fitted("popularity", histories, made_up(4)).score(histories[:2])
    assert got.tolist() == [[1, 4, 1, 0]] * 2


def test_ease_solves_one_ridge_regression_per_item_without_that_item_as_a_predictor():
    from sklearn.linear_model import Ridge

    histories = random_histories(30, 9)
    met = matrix(histories, 9)
    expected = np.zeros((9, 9))
    for item in range(9):
        others = np.delete(np.arange(9), item)
        expected[others, item] = Ridge(alpha=2.5, fit_intercept=False).fit(met[:, others], met[:, item]).coef_
    got = fitted("ease", histories, made_up(9), regularization=2.5).score(histories)
    assert_allclose(got, met @ expected, atol=1e-5)


@pytest.mark.parametrize(("neighbours", "shrinkage"), [(3, 0.0), (3, 10.0), (100, 2.0)])
def test_item_knn_equals_a_loop_over_pairs_of_items(neighbours, shrinkage, monkeypatch):
    monkeypatch.setattr("simulations.baselines.item_knn._ROWS", 4)
    histories = random_histories(30, 11)
    met = matrix(histories, 11)
    expected = np.zeros((30, 11))
    for i in range(11):
        similarity = {}
        for j in range(11):
            both, count_i, count_j = (met[:, i] * met[:, j]).sum(), met[:, i].sum(), met[:, j].sum()
            if i != j:
                similarity[j] = both / (np.sqrt(count_i * count_j) + shrinkage)
        # Rounded: float32 cannot tell apart what differs in the last digits only.
        near = sorted(similarity, key=lambda j: (-round(similarity[j], 6), j))[:neighbours]
        expected[:, i] = sum(met[:, j] * similarity[j] for j in near)
    got = fitted("item-knn", histories, made_up(11), neighbours=neighbours, shrinkage=shrinkage).score(histories)
    assert_allclose(got, expected, atol=1e-5)


def test_als_users_minimise_the_weighted_least_squares_of_the_paper():
    histories = random_histories(25, 10)
    reference = fitted("als", histories, made_up(10), factors=3, regularization=0.7, alpha=4.0)
    items = reference._items.astype(float)
    met = matrix(histories, 10)
    confidence = 1 + 3.0 * met
    for u in range(25):
        weight = np.diag(confidence[u])
        user = np.linalg.solve(items.T @ weight @ items + 0.7 * np.eye(3), items.T @ weight @ met[u])
        assert_allclose(reference.score([histories[u]])[0], items @ user, rtol=1e-4, atol=1e-6)


def test_als_folds_a_user_in_as_implicit_does():
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    histories = random_histories(25, 10)
    reference = fitted("als", histories, made_up(10), factors=4, alpha=3.0, regularization=0.5)
    with threadpool_limits(1, "blas"):
        oracle = AlternatingLeastSquares(factors=4, alpha=3.0, regularization=0.5, num_threads=1, random_state=0)
        met = csr_matrix(matrix(histories, 10).astype(np.float32))
        oracle.fit(met, show_progress=False)
        users = oracle.recalculate_user(np.arange(25), met)
    assert_allclose(reference.score(histories), users @ oracle.item_factors.T, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["als", "bpr", "ease", "item-knn", "sasrec"])
def test_collaborative_references_tell_two_worlds_apart_where_popularity_cannot(name):
    histories, target = two_worlds()
    options = {"als": {"factors": 8}, "bpr": {"factors": 8, "iterations": 100}, "sasrec": {"epochs": 60, "width": 16}}
    scores = fitted(name, histories, made_up(40), **options.get(name, {})).score(histories)
    own_kind = np.arange(40)[None] % 2 == np.arange(80)[:, None] % 2
    assert evaluate(scores, target, histories).auc().mean() > 0.6
    assert (np.where(own_kind, scores, 0).sum(1) > np.where(own_kind, 0, scores).sum(1)).mean() > 0.95
    alike = fitted("popularity", histories, made_up(40)).score(histories)
    assert evaluate(alike, target, histories).auc().mean() < 0.6


def test_tf_idf_puts_items_of_the_same_genre_first():
    catalogue = made_up(12, ("Western", "Musical", "Horror"))
    scores = fitted("tf-idf", [np.array([0], dtype=np.int32)], catalogue).score([np.array([0, 3], dtype=np.int32)])[0]
    assert set(np.argsort(-scores, kind="stable")[:4]) == {0, 3, 6, 9}


def test_tf_idf_follows_a_taste_that_changes():
    catalogue = made_up(12, ("Western", "Musical", "Horror"))
    reference = fitted("tf-idf", [EMPTY], catalogue)
    then, now = reference.score([np.array([1, 4, 0, 3], dtype=np.int32), np.array([0, 3, 1, 4], dtype=np.int32)])
    assert then[6] > then[7]
    assert now[7] > now[6]


def test_sasrec_learns_a_cycle_from_the_order_alone():
    """In a -> b -> c -> a all items are equally popular and always met together; only the last one tells what comes next."""
    rng = np.random.default_rng(0)
    histories = [(np.arange(7) + rng.integers(0, 3)).astype(np.int32) % 3 for _ in range(60)]
    reference = fitted("sasrec", histories, made_up(3), width=16, heads=2, window=5, epochs=40, batch_size=16)
    for last in range(3):
        history = (np.arange(5) + last - 4).astype(np.int32) % 3
        assert reference.score([history])[0].argmax() == (last + 1) % 3


def test_sasrec_loss_and_gradient_equal_those_of_torch(monkeypatch):
    import torch
    from torch.nn import functional

    from simulations.baselines import sasrec

    monkeypatch.setattr(sasrec, "_LOGIT_CELLS", 44)  # four rows of logits at a time
    generator = torch.Generator().manual_seed(0)
    sizes = ((37, 5), (11, 5), (11,))
    ours = [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in sizes]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    target = torch.randint(0, 11, (37,), generator=generator)
    loss = sasrec._SoftmaxLoss.apply(*ours, target)
    expected = functional.cross_entropy(functional.linear(theirs[0], theirs[1], theirs[2]), target)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    (3 * loss).backward()
    (3 * expected).backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert_allclose(mine.grad.numpy(), other.grad.numpy(), atol=1e-12)


def test_sasrec_never_looks_ahead_nor_at_padding():
    import torch

    histories = random_histories(20, 12)
    network = fitted("sasrec", histories, made_up(12))._network.eval()
    items = torch.randint(0, 12, (4, 6), generator=torch.Generator().manual_seed(1))
    other = items.clone()
    other[:, 3:] = (other[:, 3:] + 5) % 12
    assert_allclose(network(items)[:, :3].detach().numpy(), network(other)[:, :3].detach().numpy(), atol=1e-6)
    assert not np.allclose(network(items)[:, 3:].detach().numpy(), network(other)[:, 3:].detach().numpy(), atol=1e-3)


def test_sasrec_trains_on_items_and_those_that_follow_them():
    from simulations.baselines.sasrec import SASRec

    users = [np.arange(10, dtype=np.int32), np.arange(20, 23, dtype=np.int32)]
    ends = set()
    for seed in range(30):
        ((items, following),) = SASRec(window=4)._batches(users, np.random.default_rng(seed))
        for x, y in zip(items.tolist(), following.tolist(), strict=True):
            known = [(a, b) for a, b in zip(x, y, strict=True) if b >= 0]
            assert all(b == a + 1 for a, b in known)
            assert len(known) == (4 if x[0] < 20 else 2)
            ends.add(known[-1][1])
    assert ends == {4, 5, 6, 7, 8, 9, 22}


def test_sasrec_reports_its_progress_and_can_score_meanwhile():
    histories, seen = random_histories(20, 12), []
    reference = baselines.create("sasrec", **{**FAST["sasrec"], "epochs": 3})
    reference.fit(histories, made_up(12), None, 0, lambda done, total: seen.append((done, total, reference.score(histories))))
    assert [s[:2] for s in seen] == [(1, 3), (2, 3), (3, 3)]
    assert not np.array_equal(seen[0][2], seen[2][2])
    assert_array_equal(seen[2][2], reference.score(histories))


def test_sasrec_without_any_pair_of_items_says_so():
    with pytest.raises(ModelError, match="no history has two items"):
        fitted("sasrec", [np.array([1], dtype=np.int32)], made_up(3))
