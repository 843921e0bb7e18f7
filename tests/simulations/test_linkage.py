"""The adversary finds what can be found, and no more."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from scipy.stats import hypergeom

from client.private_history import Protection
from common.data.interactions import Interactions
from common.errors import DataError
from simulations.linkage.choice import above_chord, distinctive, grid, knee, pareto
from simulations.linkage.matching import Linked, linked, one_to_one, trained
from simulations.linkage.plot import Mark, tradeoff
from simulations.linkage.recorded import Compared, ask, compare
from simulations.linkage.repeats import told_apart
from simulations.linkage.visits import apart, as_between_visits, real_visits, visit_sizes
from tests.simulations.page import Page

N_ITEMS, PEOPLE = 400, 120


@pytest.fixture(scope="module")
def histories():
    rng = np.random.default_rng(0)
    popular = 1 / np.arange(1, N_ITEMS + 1)
    popular /= popular.sum()
    return [rng.choice(N_ITEMS, 30, replace=False, p=popular).astype(np.int32) for _ in range(PEOPLE)]


def questions(visits, protection, seed=0):
    rng = Random(seed)
    return ask(visits.first, N_ITEMS, protection, rng), ask(visits.second, N_ITEMS, protection, rng)


def test_same_history_again_is_linked_and_strangers_are_not(histories):
    noise = np.random.default_rng(0)
    same = compare(*questions(apart(histories, 0), Protection(10, (1, 3), 0.0)))
    assert linked(same.nearest, noise).success() == 1.0
    visits = apart(histories, 0)
    other = compare(questions(visits, Protection(10, (), 0.0))[0], questions(visits, Protection(10, (), 0.0))[1])
    shuffled = other.nearest[:, np.random.default_rng(1).permutation(PEOPLE)]
    # Columns of strangers: at most 8 of 120 right with probability above 1 - 2e-6 (Poisson of mean 1).
    assert linked(shuffled, noise).success() <= 8 / PEOPLE


def test_two_questions_that_hold_nothing_are_linked_by_guessing():
    scores = np.zeros((400, 400))
    found = linked(scores, np.random.default_rng(0)).success() * 400
    # Poisson of mean 1: above 8 with probability 1e-6.
    assert found <= 8


def test_trained_matcher_does_not_learn_who_is_who():
    """Features without any signal give guessing: a matcher that was tested on its own people would remember them."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(200, 200, 4)).astype(np.float32)
    scores = trained(Compared(features, ("a", "b", "c", "d"), rng.normal(size=(200, 200))), seed=0)
    assert linked(scores, rng).success() <= 8 / 200


def test_trained_matcher_uses_what_the_nearest_neighbour_does_not_see():
    rng = np.random.default_rng(3)
    n = 150
    signal = rng.normal(size=(n, n)) + 6 * np.eye(n)
    compared = Compared(signal[..., None].astype(np.float32), ("signal",), rng.normal(size=(n, n)))
    assert linked(trained(compared, seed=0), rng).success() > 0.7
    assert linked(compared.nearest, rng).success() <= 8 / n


def test_shared_items_are_weighted_as_a_loop_does(histories):
    first, second = questions(apart(histories[:20], 2), Protection(10, (1, 3), 0.0))
    compared = compare(first, second)
    rows_a, rows_b = ([set(row.tolist()) for row in day.histories()] for day in (first, second))
    frequency = {i: sum(i in row for row in rows_a + rows_b) for i in range(N_ITEMS)}
    for a, left in enumerate(rows_a):
        for b, right in enumerate(rows_b):
            weight = sum(np.log(41 / frequency[i]) for i in left & right)
            assert compared.features[a, b, compared.names.index("weight of shared items")] == pytest.approx(weight, rel=1e-5)
            assert compared.features[a, b, compared.names.index("Jaccard")] == pytest.approx(
                len(left & right) / len(left | right)
            )


def test_ages_say_what_buckets_leave(histories):
    day = ask([histories[0]], N_ITEMS, Protection(6, (1, 2)), Random(0))
    assert day.ages[0, :6].tolist() == [4.0, 4.0, 4.0, 1.5, 1.5, 0.0]


def test_kept_order_ages_evenly(histories):
    first, second = questions(apart(histories, 3), Protection(20, (1,) * 20, 0.0))
    compared = compare(first, second)
    right = np.arange(PEOPLE)
    assert compared.features[right, right, compared.names.index("ageing")] == pytest.approx(3.0, abs=1e-4)
    assert compared.features[right, right, compared.names.index("uneven ageing")] == pytest.approx(0.0, abs=1e-3)


def test_pool_success_is_that_of_drawn_pools():
    above = np.array([0, 1, 5, 30, 49])
    many = Linked(np.concatenate([above, np.zeros(45, dtype=np.int64)]), np.zeros(50))
    for pool in (1, 2, 10, 50):
        oracle = [hypergeom(49, k, pool - 1).pmf(0) for k in many.above]
        assert many.chance_in(pool) == pytest.approx(oracle, abs=1e-9)
    assert many.success() == pytest.approx(46 / 50)
    with pytest.raises(DataError):
        many.chance_in(51)


def test_assignment_finds_everybody_where_rows_alone_do_not():
    scores = np.array([[2.0, 2.5, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
    assert linked(scores, np.random.default_rng(0)).success() == pytest.approx(2 / 3)
    assert one_to_one(scores).all()


def test_surest_links_are_those_with_the_largest_margin():
    found = Linked(np.array([0, 3, 0, 2]), np.array([0.9, 0.1, 0.8, 0.2]))
    assert found.surest(0.5) == 1.0
    assert found.surest(1.0) == 0.5


def interactions(times_of):
    rows = [(u, i, t) for u, times in enumerate(times_of) for i, t in enumerate(times)]
    user, item, time = (np.array(column) for column in zip(*rows, strict=True))
    return Interactions(
        user.astype(np.int32), item.astype(np.int32), time.astype(np.int64), tuple(f"u{u}" for u in range(len(times_of)))
    )


def test_visits_are_parted_by_half_a_day_of_nothing():
    day = 86_400
    data = interactions([[0, 1, 2, day, day + 1, 3 * day], [0, 1], [0, 43_199, 2 * day]])
    assert sorted(visit_sizes(data).tolist()) == [1, 1, 2]
    visits = real_visits(data)
    assert [len(h) for h in visits.first] == [5, 2]
    assert visits.between.tolist() == [1, 1]


def test_first_day_is_where_the_second_begins(histories):
    visits = as_between_visits(histories, np.array([1, 4, 9, 400]), seed=0)
    for a, b in zip(visits.first, visits.second, strict=True):
        assert np.array_equal(a, b[: len(a)])
    assert set(visits.between.tolist()) == {1, 4, 9}, "400 items do not leave half of 30"
    with pytest.raises(DataError, match="too short"):
        as_between_visits([np.arange(3, dtype=np.int32)], np.array([5]), seed=0)


def test_many_questions_average_fresh_replacements_out_and_permanent_ones_not(histories):
    protection = Protection(10, (1, 3), 0.2)
    fresh = [told_apart(histories, N_ITEMS, protection, n, permanent=False, seed=0) for n in (1, 10)]
    kept = [told_apart(histories, N_ITEMS, protection, n, permanent=True, seed=0) for n in (1, 10)]
    assert fresh[1] > 0.99 > fresh[0]
    # The same false items are shown in each: only how popular they are tells, as in one question (120 people, 240 false items).
    assert abs(kept[1] - kept[0]) < 0.1


def test_knee_is_farthest_from_the_chord():
    points = [(0.0, 0.0), (0.2, 0.8), (0.5, 0.9), (1.0, 1.0), (0.3, 0.7), (0.6, 0.2)]
    assert pareto(points) == [0, 1, 2, 3]
    assert knee(points) == 1
    assert knee([(10 * a, 3 + 5 * b) for a, b in points]) == 1, "units do not matter"
    heights = above_chord(points)
    assert heights[1] == max(heights) == pytest.approx(0.6)
    with pytest.raises(DataError, match="no knee"):
        knee([(0.1, 0.9), (0.5, 0.5)])


def test_default_is_in_the_grid_and_settings_differ():
    settings = grid()
    assert len({s.name for s in settings}) == len(settings)
    shown = [(s.protection, ask([range(30)], 30, s.protection, Random(0)).ages.tobytes()) for s in settings]
    assert len({(p.cap, p.replacement, ages) for p, ages in shown}) == len(settings), "no two settings show the same"
    assert any(s.protection == Protection() for s in settings)


def test_distinctive_people_are_those_with_rare_items():
    common = [np.array([0, 1, 2], dtype=np.int32)] * 9
    assert distinctive([*common, np.array([7, 8, 9], dtype=np.int32)], 10).tolist() == [False] * 9 + [True]


def test_picture_shows_every_setting_where_it_stands():
    marks = [Mark("1+3", 3, 0.0, 0.25, 0.05), Mark("1+3", 5, 0.0, 0.75, 0.1, True), Mark("order kept", 5, 0.0, 0.5, 0.1)]
    tags = Page(tradeoff(marks, nothing=(0.0, 0.0))).tags
    own = [(float(a["cx"] or ""), float(a["cy"] or "")) for tag, a in tags if tag == "circle" and a.get("class") == "own"]
    dots = own[1:]  # the first is in the legend
    assert len(dots) == 2
    left, bottom, width, height = 66, 464, 714, 390
    for (x, y), mark in zip(dots, marks, strict=False):
        assert x == pytest.approx(left + width * mark.linked, abs=0.1)
        assert y == pytest.approx(bottom - height * mark.ndcg / 0.1, abs=0.1)
    rings = [a for tag, a in tags if tag == "circle" and a.get("class") == "chosen"]
    assert [float(a["cx"] or "") for a in rings] == [pytest.approx(dots[1][0])]
