"""What a question shows of a history, and what it does not."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from client.private_history import PAD, SECRET_BYTES, SLOTS, Protection, protect, secret_of
from common.errors import ServingError

# False alarm of each statistical test below: 1e-6 (its p-value against this). All are seeded.
ALARM = 1e-6

N_ITEMS = 500
histories = st.lists(st.integers(0, N_ITEMS - 1), max_size=60)
protections = st.builds(
    Protection,
    cap=st.integers(1, SLOTS),
    buckets=st.lists(st.integers(1, 12), max_size=5).map(tuple),
    replacement=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    fill=st.booleans(),
)
secrets = st.none() | st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)


def shown(question):
    return [item for item in question if item != PAD]


def cut_by_hand(items, sizes):
    """Newest bucket first, by popping from the end."""
    left, out = list(items), []
    for size in sizes:
        out.append([left.pop() for _ in range(min(size, len(left)))])
    return [*out, left]


@given(histories, protections, secrets, st.integers(0, 2**32))
def test_question_has_every_slot_and_pads_only_at_the_end(history, protection, secret, seed):
    question = protect(history, N_ITEMS, protection, Random(seed), secret=secret)
    assert len(question) == SLOTS
    items = shown(question)
    assert question == (*items, *[PAD] * (SLOTS - len(items)))
    assert all(0 <= item < N_ITEMS for item in items)
    wanted = protection.cap if protection.fill and history else min(protection.cap, len(history))
    assert len(items) == wanted


@given(histories, protections.map(lambda p: Protection(p.cap, p.buckets, 0.0)), st.integers(0, 2**32))
def test_without_replacement_each_bucket_keeps_its_items_and_its_place(history, protection, seed):
    left = shown(protect(history, N_ITEMS, protection, Random(seed)))
    for bucket in cut_by_hand(history[-protection.cap :], protection.buckets):
        end = len(left) - len(bucket)
        assert Counter(left[end:]) == Counter(bucket)
        left = left[:end]
    assert not left


@given(histories, st.integers(1, SLOTS), st.integers(0, 2**32))
def test_buckets_of_one_item_keep_the_whole_order(history, cap, seed):
    assert shown(protect(history, N_ITEMS, Protection(cap, (1,) * cap, 0.0), Random(seed))) == history[-cap:]


def test_what_is_older_than_the_cap_changes_nothing():
    protection = Protection(4, (1,), 0.3, fill=True)
    assert protect(range(50), N_ITEMS, protection, Random(3)) == protect([9, 9, 46, 47, 48, 49], N_ITEMS, protection, Random(3))


def test_all_orders_in_a_bucket_are_equally_likely():
    rng = Random(11)
    seen = Counter(tuple(shown(protect([1, 2, 3, 4], N_ITEMS, Protection(4, (), 0.0), rng))) for _ in range(24_000))
    assert chisquare([seen[order] for order in permutations([1, 2, 3, 4])]).pvalue > ALARM


@pytest.mark.parametrize("permanent", [False, True])
def test_replacement_is_randomised_response_over_the_catalogue(permanent):
    n_items, p, draws, rng = 8, 0.4, 24_000, Random(5)
    key = rng.randbytes(32)
    seen = Counter(
        protect([3], n_items, Protection(1, (), p), rng, secret=secret_of(key, str(i)) if permanent else None)[0]
        for i in range(draws)
    )
    expected = [draws * (p / n_items + (1 - p) * (item == 3)) for item in range(n_items)]
    assert chisquare([seen[item] for item in range(n_items)], expected).pvalue > ALARM


@given(st.integers(2, 10_000), st.floats(0.01, 0.99))
def test_epsilon_is_the_log_of_the_largest_likelihood_ratio(n_items, p):
    stays, becomes = 1 - p + p / n_items, p / n_items
    assert Protection(5, (), p).epsilon_per_item(n_items) == pytest.approx(math.log(stays / becomes), abs=1e-9)


def test_epsilon_is_infinite_without_replacement_and_nothing_when_all_is_replaced():
    assert Protection(5, (), 0.0).epsilon_per_item(100) == math.inf
    assert Protection(5, (), 1.0).epsilon_per_item(100) == 0.0


def test_permanent_replacement_is_the_same_in_every_question_and_differs_between_people():
    history, protection, key = list(range(100, 120)), Protection(20, (), 0.5), b"k" * 32
    ann, bob = secret_of(key, "ann"), secret_of(key, "bob")
    asked = [sorted(shown(protect(history, N_ITEMS, protection, Random(seed), secret=ann))) for seed in range(5)]
    assert all(question == asked[0] for question in asked)
    assert asked[0] != sorted(history)
    assert asked[0] != sorted(shown(protect(history, N_ITEMS, protection, Random(0), secret=bob)))
    longer = shown(protect([*history, 7], N_ITEMS, Protection(21, (), 0.5), Random(9), secret=ann))
    assert not Counter(asked[0]) - Counter(longer), "what was replaced stays replaced when the history grows"


def test_fresh_replacement_differs_between_questions():
    rng, protection = Random(1), Protection(20, (), 0.5)
    assert len({tuple(sorted(protect(range(20), N_ITEMS, protection, rng))) for _ in range(20)}) == 20


def test_filling_hides_the_length_behind_the_real_items():
    protection = Protection(10, (1, 2), 0.0, fill=True)
    question = shown(protect([5, 6, 7], N_ITEMS, protection, Random(0)))
    assert len(question) == 10
    assert question[-1] == 7
    assert set(question[-3:-1]) == {5, 6}


def test_empty_history_stays_empty():
    assert protect([], N_ITEMS, Protection(10, fill=True, replacement=0.5), Random(0)) == (PAD,) * SLOTS


def test_production_draws_from_the_operating_system(monkeypatch):
    drawn = []
    real = __import__("os").urandom
    monkeypatch.setattr("random._urandom", lambda n: drawn.append(n) or real(n))
    protect(range(10), N_ITEMS, Protection(10, (), 0.5))
    assert drawn


@pytest.mark.parametrize(
    "wrong", [{"cap": 0}, {"cap": SLOTS + 1}, {"buckets": (0,)}, {"replacement": -0.1}, {"replacement": 1.1}]
)
def test_impossible_protection_is_refused(wrong):
    with pytest.raises(ServingError):
        Protection(**wrong)


def test_item_outside_the_catalogue_is_refused_without_being_named():
    with pytest.raises(ServingError) as error:
        protect([1, 77_777], N_ITEMS)
    assert "77777" not in str(error.value).replace(",", "")


def test_short_secrets_are_refused():
    with pytest.raises(ServingError, match="32 bytes"):
        protect([1], N_ITEMS, secret=b"short")
    with pytest.raises(ServingError, match="32 bytes"):
        secret_of(b"short", "ann")
