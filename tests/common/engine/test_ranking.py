"""Filters, boosts and diversity."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.bundle.contents import Bundle
from common.engine import Engine, Request
from tests.bundles import reference_scores, tiny_bundle

BUNDLE = tiny_bundle()
ENGINE = Engine(BUNDLE)
HISTORY = (4, 8, 15)
POSITIONS = st.integers(0, 39)


def positions(**wishes: Any) -> list[int]:
    return [item.position for item in ENGINE.recommend(Request(HISTORY, **wishes))]


def test_seen_items_come_back_only_when_they_may() -> None:
    assert not set(positions(k=40)) & set(HISTORY)
    assert set(HISTORY) < set(positions(k=40, exclude_seen=False))


def test_categories_are_any_of_those_named() -> None:
    for wanted in ({"drama"}, {"drama", "western"}):
        expected = {i for i, names in enumerate(BUNDLE.catalogue.categories) if wanted & set(names)} - set(HISTORY)
        assert set(positions(k=40, categories=wanted)) == expected
    assert ENGINE.categories == ("comedy", "drama", "mystery", "western")


def test_filters_that_leave_nothing_give_an_empty_answer() -> None:
    assert positions(allow=frozenset()) == []
    assert positions(allow={1, 2}, deny={1, 2}) == []
    assert positions(allow=set(HISTORY)) == []


@settings(max_examples=60, deadline=None)
@given(
    allow=st.none() | st.frozensets(POSITIONS),
    deny=st.frozensets(POSITIONS),
    categories=st.frozensets(st.sampled_from(["drama", "comedy"])),
    boost=st.dictionaries(POSITIONS, st.floats(-3, 3), max_size=5),
    exclude_seen=st.booleans(),
    k=st.integers(1, 45),
)
def test_any_filters_give_what_a_loop_over_all_items_gives(
    allow: frozenset[int] | None,
    deny: frozenset[int],
    categories: frozenset[str],
    boost: dict[int, float],
    exclude_seen: bool,
    k: int,
) -> None:
    scores = reference_scores(BUNDLE, HISTORY) + [boost.get(i, 0.0) for i in range(40)]
    left = [
        i
        for i in range(40)
        if (allow is None or i in allow)
        and i not in deny
        and (not categories or categories & set(BUNDLE.catalogue.categories[i]))
        and not (exclude_seen and i in HISTORY)
    ]
    answer = ENGINE.recommend(Request(HISTORY, k, exclude_seen, allow, deny, categories, 0.0, boost))
    best = sorted((scores[i] for i in left), reverse=True)[:k]
    assert len({item.position for item in answer}) == len(answer) == min(k, len(left))
    assert {item.position for item in answer} <= set(left)
    assert [item.score for item in answer] == pytest.approx(best, abs=5e-6)  # near ties may swap, their scores do not
    for item in answer:
        assert item.score == pytest.approx(scores[item.position], abs=5e-6)
        assert item.boost == boost.get(item.position, 0.0)


def test_a_boost_moves_an_item_and_nothing_else() -> None:
    plain = ENGINE.recommend(Request(HISTORY, k=40))
    last = plain[-1]
    lifted = ENGINE.recommend(Request(HISTORY, k=40, boost={last.position: 100.0}))
    assert lifted[0].position == last.position
    assert lifted[0].score == pytest.approx(last.score + 100.0, abs=1e-4)
    assert [item.position for item in lifted[1:]] == [item.position for item in plain[:-1]]
    assert positions(k=40) == [item.position for item in plain]  # nothing of a request is left behind


def chosen_by_loops(bundle: Bundle, scores: list[float], candidates: list[int], k: int, diversity: float) -> list[int]:
    """Equation 1 of Carbonell & Goldstein with scores brought to 0 … 1, item by item."""
    text = [bundle.items.rows(np.array(i))[: bundle.items.text_dim].astype(float) for i in candidates]

    def cosine(a: int, b: int) -> float:
        return float(text[a] @ text[b] / np.sqrt((text[a] @ text[a]) * (text[b] @ text[b])))

    low, high = min(scores), max(scores)
    chosen: list[int] = [max(range(len(scores)), key=lambda place: scores[place])]
    while len(chosen) < min(k, len(candidates)):
        gains = {
            place: (1 - diversity) * (scores[place] - low) / (high - low)
            - diversity * max(cosine(place, other) for other in chosen)
            for place in range(len(candidates))
            if place not in chosen
        }
        chosen.append(max(gains, key=lambda place: gains[place]))
    return [candidates[place] for place in chosen]


@pytest.mark.parametrize("diversity", [0.05, 0.3, 0.6, 1.0])
def test_diversity_is_maximal_marginal_relevance(diversity: float) -> None:
    candidates = [i for i in range(40) if i not in HISTORY]
    scores = reference_scores(BUNDLE, HISTORY)[candidates].tolist()
    assert positions(k=12, diversity=diversity) == chosen_by_loops(BUNDLE, scores, candidates, 12, diversity)


def test_the_more_diversity_the_less_alike_and_the_lower_the_scores() -> None:
    bundle = tiny_bundle(600, dim=24, text_dim=16, seed=3)
    engine, random = Engine(bundle), np.random.default_rng(0)
    alike, mean = [], []
    histories = [tuple(random.integers(0, 600, 4).tolist()) for _ in range(20)]
    for diversity in (0.0, 0.3, 0.7, 1.0):
        cosines, scores = [], []
        for history in histories:
            answer = engine.recommend(Request(history, k=8, diversity=diversity))
            text = bundle.items.rows(np.array([item.position for item in answer]))[:, :16]
            text /= np.linalg.norm(text, axis=1, keepdims=True)
            cosines += [float(text[a] @ text[b]) for a, b in itertools.combinations(range(8), 2)]
            scores += [item.score for item in answer]
        alike.append(np.mean(cosines))
        mean.append(np.mean(scores))
    assert alike == sorted(alike, reverse=True)
    assert mean == sorted(mean, reverse=True)
    assert alike[0] > alike[1] > alike[2]


def test_the_best_item_stays_first_and_filters_hold_with_diversity() -> None:
    plain = positions(k=10)
    for diversity in (0.2, 0.9):
        varied = positions(k=10, diversity=diversity, deny={plain[1]})
        assert varied[0] == plain[0]
        assert plain[1] not in varied
        assert len(set(varied)) == 10
