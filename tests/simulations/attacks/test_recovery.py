"""Reading items off an update: exact where nothing protects it, and its statistics against enumeration and simulation."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from common.errors import PrivacyError
from common.model.resident import resident
from simulations.attacks import recovery
from simulations.attacks.recovery import AttackedSilo, ItemReading, attack_silo, chance_of, item_reading, mean_interval, summarise
from simulations.attacks.target import some_users
from simulations.attacks.views import updates
from tests.client import small_silo
from tests.simulations.attacks import attacked_silo


def reading(settings: dict[str, object], mask: np.ndarray | None = None) -> ItemReading:
    config = attacked_silo.config(privacy__mode="silo", **settings)
    data = replace(attacked_silo.data(config), item_mask=mask)
    return item_reading(config, data, attacked_silo.plan(config), resident(config).start, np.random.default_rng(0))


def test_an_unprotected_update_of_one_user_is_positive_only_at_items_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a softmax's biases is predicted less actual, so no statistics are needed to read it. An item that came is
    missed only where the model expected it more often than it came. Rows of item factors show all that were read or came."""
    small_silo.latest_windows(monkeypatch)
    config = attacked_silo.config(privacy__mode="silo")
    everybody, home = attacked_silo.data(config), resident(config)
    came = found = rows_right = rows_all = 0
    for user in range(8):
        silo = some_users(everybody, [user])
        seen = updates(config, silo, attacked_silo.plan(config), home.start, seed=0)["unprotected"]
        window = silo.histories[0][-(silo.window + 1) :]
        positive = np.flatnonzero(seen[home.manifest.slice("bias.weight")] > 0)
        assert set(positive) <= set(window[1:])
        came, found = came + len(np.unique(window[1:])), found + len(positive)
        rows = np.linalg.norm(seen[home.manifest.slice("item_factors.weight")].reshape(silo.n_items, -1), axis=1)
        largest = np.argsort(-rows)[: len(np.unique(window))]
        rows_right, rows_all = rows_right + len(np.intersect1d(largest, window)), rows_all + len(largest)
    assert found > 0.8 * came
    assert rows_right > 0.9 * rows_all


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"biases", "factors", "matching"}),
        ({"model__train_bias": False}, {"factors", "matching"}),
        ({"model__train_bias": False, "model__item_dim": 0}, {"matching"}),
    ],
)
def test_readers_are_those_that_the_model_has_parameters_for(settings: dict[str, object], expected: set[str]) -> None:
    ways = reading(settings)
    scores = dict(ways.scores("unprotected", np.ones(len(ways.probes[0]))))  # type: ignore[index]
    assert set(scores) == expected
    assert set(ways.left_out) == {"biases", "factors", "matching"} - expected
    assert ways.n_readers == len(expected)
    assert {len(values) for values in scores.values()} == {60}


def test_only_what_the_silo_sells_is_ranked() -> None:
    sold = np.arange(60) % 3 == 0
    ways = reading({}, sold)
    np.testing.assert_array_equal(ways.items, np.flatnonzero(sold))
    update = np.random.default_rng(0).normal(size=len(ways.probes[0]))  # type: ignore[index]
    scores = dict(ways.scores("private", update))
    np.testing.assert_array_equal(scores["biases"], update[ways.biases][sold])
    np.testing.assert_allclose(scores["factors"], np.linalg.norm(update[ways.factors].reshape(60, 8), axis=1)[sold])
    assert scores["matching"].shape == (20,)


def test_a_model_without_item_parameters_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "MOST_BYTES", 1000)
    with pytest.raises(PrivacyError, match="too large for gradient matching"):
        reading({"model__train_bias": False, "model__item_dim": 0})
    assert reading({}).left_out.keys() == {"matching"}


def made_up_reading(n: int) -> ItemReading:
    ridge = dict.fromkeys(("unprotected", "masked", "private"), 0.0)
    return ItemReading(np.arange(n), n, slice(0, n), None, None, ridge, {"factors": "", "matching": ""})  # type: ignore[arg-type]


def test_names_are_the_highest_scores_and_popularity_is_judged_alike() -> None:
    update = np.array([5.0, 4, 3, 2, 1, 0])
    met = np.array([True, False, True, False, False, True])
    popularity = np.array([0.0, 0, 9, 0, 0, 8])
    silo = attack_silo({"unprotected": update}, met, popularity, made_up_reading(6), 3, np.random.default_rng(0))
    key = ("unprotected", "biases")
    assert (silo.met, silo.of, silo.right[key]) == (3, 6, 2)
    assert silo.popular in (2, 3)  # the third name is drawn among four items that nobody has met
    assert silo.auc[key] == pytest.approx(5 / 9)


def test_equal_scores_are_broken_at_random() -> None:
    """A thousand silos without any signal: right as often as chance. False alarm once in a million."""
    met = np.arange(10) < 2
    rng = np.random.default_rng(1)
    silos = [attack_silo({"masked": np.zeros(10)}, met, np.zeros(10), made_up_reading(10), 1, rng) for _ in range(1000)]
    right = sum(silo.right["masked", "biases"] for silo in silos)
    assert stats.binomtest(right, 1000, 0.2).pvalue > 1e-6


def plain_silo(met: int, of: int, named: int, right: int = 0) -> AttackedSilo:
    return AttackedSilo(met, of, named, 0, {("masked", "biases"): right}, {("masked", "biases"): 0.5})


def test_the_chance_of_lucky_names_is_that_of_counting_all_ways() -> None:
    """Two silos, all pairs of sets of names that could have been drawn."""
    silos = [plain_silo(2, 5, 2), plain_silo(3, 6, 2)]
    ways = [
        sum(name < silo.met for name in first) + sum(name < other.met for name in second)
        for silo, other in [silos]
        for first, second in product(combinations(range(5), 2), combinations(range(6), 2))
    ]
    for right in range(5):
        assert chance_of(right, silos) == pytest.approx(np.mean(np.array(ways) >= right))


@pytest.mark.parametrize("mean", [0.02, 0.3, 0.97, 1.0])
@pytest.mark.parametrize("kind", ["coins", "thirds"])
def test_the_interval_covers_the_mean_of_bounded_numbers(mean: float, kind: str) -> None:
    """At 90 %, over 400 samples of 15: more than 79 misses are chance once in 5 million."""
    rng = np.random.default_rng(3)
    misses = 0
    for _ in range(400):
        values = (rng.random((15, 1 if kind == "coins" else 3)) < mean).mean(axis=1)
        low, high = mean_interval(values, 0.9)
        assert 0 <= low <= values.mean() <= high <= 1
        misses += not low <= mean <= high
    assert stats.binom.sf(79, 400, 0.1) < 2e-7
    assert misses <= 79


def test_the_interval_shrinks_with_the_sample() -> None:
    widths = [np.diff(mean_interval(np.tile([0.2, 0.6], n), 0.95))[0] for n in (5, 50, 500)]
    assert widths[0] > 2 * widths[1] > 4 * widths[2]
    assert mean_interval(np.ones(20), 0.95)[0] == pytest.approx(0.025 ** (1 / 20))


def test_a_summary_pays_for_the_number_of_readers() -> None:
    """With two readers, p-values double and intervals are those at 97.5 %."""
    keys = [("masked", "biases"), ("masked", "factors")]
    rng = np.random.default_rng(4)
    silos = [
        AttackedSilo(4, 20, 2, 1, {key: int(rng.integers(0, 2)) for key in keys}, dict.fromkeys(keys, 0.5))  # type: ignore[misc]
        for _ in range(30)
    ]
    found, guess = summarise(silos, 1, 0.95)
    right = np.array([silo.right["masked", "biases"] for silo in silos])
    assert found[0].p_value == pytest.approx(min(1.0, 2 * chance_of(int(right.sum()), silos)))
    assert (found[0].precision_low, found[0].precision_high) == mean_interval(right / 2, 0.975)
    assert (guess.popularity, guess.random) == pytest.approx((0.5, 0.2))
