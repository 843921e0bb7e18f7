"""Guesses from scores alone, and a bound that is false no more often than it says."""

from __future__ import annotations

import numpy as np
import pytest

from common.privacy.audit.one_run import Guesses, guess, guess_grid, steinke_bound
from simulations.attacks.guessing import guess_all, one_run_bound


def test_all_canaries_are_split_where_their_scores_part() -> None:
    scores = np.array([0.5, 5.0, 0.1, 5.2, 0.3])
    included = np.array([True, True, False, True, False])
    assert guess_all(scores, included) == Guesses(n_in=2, n_out=3, correct_in=2, correct_out=2)
    assert guess_all(1e6 - 3 * scores, ~included) == Guesses(n_in=3, n_out=2, correct_in=2, correct_out=2)


def test_the_split_is_the_best_of_all_splits() -> None:
    """Against trying each by hand."""
    rng = np.random.default_rng(0)
    scores = np.round(rng.normal(size=60) + 2.5 * (rng.random(60) < 0.3), 1)
    values = np.unique(scores)

    def within(threshold: float) -> float:
        parts = scores[scores <= threshold], scores[scores > threshold]
        return float(sum(((part - part.mean()) ** 2).sum() for part in parts))

    best = min(values[:-1], key=within)
    assert guess_all(scores, scores > best) == Guesses(int((scores > best).sum()), int((scores <= best).sum()), *(
        int((scores > best).sum()), int((scores <= best).sum())
    ))  # fmt: skip


def test_equal_scores_tell_nothing_by_their_place() -> None:
    included = np.arange(1000) < 500
    assert guess_all(np.zeros(1000), included) == guess(np.zeros(1000), included, 1000)
    assert 430 < guess_all(np.zeros(1000), included).correct < 570


def test_uneven_coins_do_not_spoil_perfect_scores() -> None:
    """530 of 1,000 included. Half and half is wrong 30 times; the split is right, and the bound is its ceiling."""
    included = np.arange(1000) < 530
    found = one_run_bound(np.where(included, 5.0, -5.0), included, delta=1e-5, confidence=0.95)
    assert guess(np.where(included, 5.0, -5.0), included, 1000).correct == 970
    assert found.best == Guesses(530, 470, 530, 470)
    assert found.epsilon == found.ceiling > 5.3
    assert [guesses.n for guesses in found.tried] == list(guess_grid(1000))


def test_each_number_of_guesses_is_paid_for() -> None:
    included = np.random.default_rng(1).random(1000) < 0.5
    scores = np.where(included, 1.0, -1.0) + np.random.default_rng(2).normal(0, 1.5, 1000)
    found = one_run_bound(scores, included, delta=1e-5, confidence=0.95)
    each = 1 - 0.05 / len(guess_grid(1000))
    best = max(steinke_bound(1000, made.n, made.correct, delta=1e-5, confidence=each) for made in found.tried)
    assert found.epsilon == best > 0.3


def test_the_bound_is_false_no_more_often_than_it_says() -> None:
    """Randomised response with epsilon = 1 on 200 canaries, 400 times: 20 false bounds are allowed, 40 have p < 1e-4."""
    rng = np.random.default_rng(3)
    false = 0
    for _ in range(400):
        included = rng.random(200) < 0.5
        honest = rng.random(200) < np.e / (1 + np.e)
        scores = np.where(honest == included, 1.0, -1.0) * (1 + rng.random(200))
        false += one_run_bound(scores, included, delta=0.0, confidence=0.95).epsilon > 1
    assert false < 40


@pytest.mark.parametrize("shift", [0.0, -50.0])
def test_where_nothing_is_told_nothing_is_refuted(shift: float) -> None:
    rng = np.random.default_rng(4)
    included = rng.random(1000) < 0.5
    found = one_run_bound(rng.normal(size=1000) + shift, included, delta=1e-5, confidence=0.95)
    assert found.epsilon == 0
    assert found.ceiling > 5
