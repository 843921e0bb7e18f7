"""Made-up populations have the taste, skew, drift and words that were asked for."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.config import SyntheticConfig
from common.data import synthetic, wording
from common.data.catalogue import Catalogue
from common.data.interactions import Dataset
from common.data.synthetic import generate, make_catalogue
from common.errors import DataError


def config(**settings_: Any) -> SyntheticConfig:
    return SyntheticConfig.model_validate(settings_)


def main_category(dataset: Dataset) -> NDArray[np.int64]:
    names = sorted({row[0] for row in dataset.catalogue.categories})
    return np.array([names.index(row[0]) for row in dataset.catalogue.categories])


@settings(max_examples=40, deadline=None)
@given(
    users=st.integers(1, 60),
    items=st.integers(3, 80),
    length=st.floats(1, 60),
    categories=st.integers(1, 40),
    taste=st.sampled_from([0.0, 1.0, 30.0]),
    skew=st.sampled_from([0.0, 1.0, 3.0]),
    drift=st.floats(0, 1),
    review=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_population_is_well_formed_and_repeatable(
    users: int, items: int, length: float, categories: int, taste: float, skew: float, drift: float, review: bool, seed: int
) -> None:
    wanted = config(
        users=users,
        items=items,
        interactions_per_user=length,
        categories=categories,
        taste=taste,
        popularity_skew=skew,
        drift=drift,
        review_text=review,
    )
    data = generate(wanted, seed)
    rows = data.interactions
    histories = rows.histories()
    assert len(histories) == users
    for history in histories:
        assert 3 <= len(history) <= max(3, items // 2)
        assert len(set(history.tolist())) == len(history), "nobody meets an item twice"
    assert (np.diff(rows.time) >= 0).all()
    assert len({(u, t) for u, t in zip(rows.user.tolist(), rows.time.tolist(), strict=True)}) == len(rows)
    assert (rows.text is not None) == review
    again = generate(wanted, seed)
    assert again.catalogue.fingerprint == data.catalogue.fingerprint
    for name in ("user", "item", "time"):
        np.testing.assert_array_equal(getattr(again.interactions, name), getattr(rows, name))
    assert (again.interactions.text, again.user_text) == (rows.text, data.user_text)


def test_other_seeds_give_other_people() -> None:
    one, two = (generate(config(users=50), seed).interactions for seed in (0, 1))
    assert len(one) != len(two) or (one.item != two.item).any()


@pytest.mark.parametrize("skew", [0.0, 0.5, 0.8])
def test_popularity_is_a_zipf_law_with_the_exponent_asked_for(skew: float) -> None:
    """Least squares on the 300 most popular of 5,000 items; short histories, so that hardly anything is drawn twice."""
    data = generate(config(users=60_000, items=5_000, interactions_per_user=4, taste=0, popularity_skew=skew), seed=3)
    counts = np.sort(np.bincount(data.interactions.item, minlength=5_000))[::-1][:300]
    slope = np.polyfit(np.log(np.arange(1, 301)), np.log(counts), 1)[0]
    assert slope == pytest.approx(-skew, abs=0.08)


def test_length_has_the_mean_asked_for() -> None:
    data = generate(config(users=20_000, items=2_000, interactions_per_user=20), seed=0)
    lengths = np.bincount(data.interactions.user)
    assert lengths.mean() == pytest.approx(20, rel=0.03)
    assert np.log(lengths).std() == pytest.approx(synthetic.LENGTH_SIGMA, rel=0.1)


def test_sampler_draws_what_the_formula_says() -> None:
    """First items of many users of one taste against softmax(log w + taste * z) written out; chi-square, false alarm 1e-4."""
    member = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]], dtype=np.bool_)
    weights = np.array([1.0, 0.5, 2.0, 0.3, 0.9, 0.4])
    taste, z, n = 1.3, np.array([0.7, -0.4, 0.2]), 60_000
    expected = np.zeros(6)
    for i in range(6):
        categories = np.flatnonzero(member[i]) if member[i].any() else [0]
        expected[i] = np.mean([weights[i] * np.exp(taste * z[c]) for c in categories])
    expected *= n / expected.sum()
    sampler = synthetic._Sampler(member, weights, taste)
    tastes = np.broadcast_to(z, (2, n, 3))
    drawn = sampler.histories(tastes, np.ones(n, dtype=np.int64), 0.0, np.random.default_rng(0))
    statistic = ((np.bincount(drawn, minlength=6) - expected) ** 2 / expected).sum()
    assert statistic < 25.7  # 5 degrees of freedom


def concentration(dataset: Dataset) -> float:
    """Mean share of a user's most frequent category."""
    category = main_category(dataset)
    shares = [Counter(category[h].tolist()).most_common(1)[0][1] / len(h) for h in dataset.interactions.histories()]
    return float(np.mean(shares))


def test_taste_concentrates_users_on_their_categories() -> None:
    found = [concentration(generate(config(users=500, items=800, taste=taste), seed=1)) for taste in (0, 1, 4)]
    assert found[0] + 0.05 < found[1] < found[2] - 0.2


def test_profile_names_the_categories_that_a_user_meets_most() -> None:
    data = generate(config(users=300, items=800, taste=4, drift=0, popularity_skew=0), seed=2)
    assert data.user_text is not None
    hits = 0
    for text, history in zip(data.user_text, data.interactions.histories(), strict=True):
        counts = Counter(data.catalogue.categories[i][0] for i in history.tolist())
        hits += counts.most_common(1)[0][0] in text
    assert hits / 300 > 0.9


@pytest.mark.parametrize("drift", [0.0, 0.3, 1.0])
def test_drift_is_the_share_of_taste_that_is_replaced_at_the_end(drift: float) -> None:
    """Categories of first, middle and last of three items against the formula's mixture; chi-square, false alarm 1e-4 each."""
    n, before, after = 40_000, np.array([1.0, 0.0, -1.0]), np.array([-1.5, 1.0, 0.5])
    category = np.arange(3_000) % 3
    member = category[:, None] == np.arange(3)
    sampler = synthetic._Sampler(member, np.ones(3_000), 1.0)
    tastes = np.broadcast_to(np.stack([before, after])[:, None], (2, n, 3))
    drawn = sampler.histories(tastes, np.full(n, 3), drift, np.random.default_rng(1)).reshape(n, 3)
    old, new = (np.exp(z) / np.exp(z).sum() for z in (before, after))
    for position, progress in enumerate((0.0, 0.5, 1.0)):
        expected = n * ((1 - drift * progress) * old + drift * progress * new)
        found = np.bincount(category[drawn[:, position]], minlength=3)
        assert ((found - expected) ** 2 / expected).sum() < 18.4  # 2 degrees of freedom


def test_reviews_name_the_item_and_a_category() -> None:
    data = generate(config(users=40, review_text=True), seed=0)
    assert data.interactions.text is not None
    for item, text in zip(data.interactions.item.tolist(), data.interactions.text, strict=True):
        assert data.catalogue.titles[item] in text
        assert any(c.lower() in text for c in data.catalogue.categories[item])


@pytest.mark.parametrize("categories", [1, 8, 40])
def test_title_alone_tells_the_category(categories: int) -> None:
    """A naive Bayes count of title words, fitted on half of the made-up items, names the category of the other half."""
    catalogue = make_catalogue(3_000, categories, np.random.default_rng(0))
    assert len(set(catalogue.titles)) == 3_000
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    right = 0
    for i, (title, category) in enumerate(zip(catalogue.titles, catalogue.categories, strict=True)):
        words = [w for w in re.findall(r"[A-Za-z]+", title) if w not in ("The", "of", "the", "and")]
        if i < 1_500:
            for word in words:
                seen[word].update(category)
        else:
            votes: Counter[str] = sum((seen[w] for w in words), Counter())
            right += bool(votes) and votes.most_common(1)[0][0] in category
    assert right / 1_500 > 0.95


def test_no_word_belongs_to_two_themes() -> None:
    themes = wording.themes(300)
    assert len({theme.name for theme in themes}) == 300
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for theme in themes:
        assert len(theme.adjectives) == len(theme.nouns) == 8
        for word in theme.adjectives + theme.nouns:
            owners[word].add(theme.name)
    assert max(map(len, owners.values())) == 1


def test_a_real_catalogue_is_used_as_it_is() -> None:
    catalogue = Catalogue(
        ids=("a", "b", "c", "d", "e", "f"),
        titles=("A", "B", "C", "D", "E", "F"),
        categories=(("x", "y"), ("x",), ("y",), (), ("z",), ("x", "z")),
    )
    data = generate(config(users=200, interactions_per_user=3, review_text=True), seed=0, catalogue=catalogue)
    assert data.catalogue is catalogue
    assert set(data.interactions.item.tolist()) == set(range(6))
    with pytest.raises(DataError, match="at least 3"):
        generate(config(), 0, catalogue.select([0, 1]))
    plain = Catalogue(catalogue.ids, catalogue.titles, ((),) * 6)
    assert len(generate(config(users=5), 0, plain).interactions.histories()) == 5


def test_dealing_in_chunks_changes_nothing_in_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "CELLS", 1_000)  # five users at a time
    data = generate(config(users=203), seed=0)
    assert concentration(data) > 0.4
    assert all(len(set(h.tolist())) == len(h) for h in data.interactions.histories())


def test_a_million_interactions_take_seconds() -> None:
    data = generate(config(users=20_000, items=1_682, interactions_per_user=50, categories=18), seed=0)
    assert 950_000 < len(data.interactions) < 1_050_000
