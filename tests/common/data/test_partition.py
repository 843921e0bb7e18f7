"""Every user in exactly one silo, none empty, and each way of dealing does what its name says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import PartitionConfig, SyntheticConfig
from common.data.catalogue import Catalogue
from common.data.interactions import Dataset, Interactions
from common.data.partition import Partition, SiloAssignment, declare_users, dominant_category, partition
from common.data.split import leave_one_out
from common.data.synthetic import generate
from common.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def population() -> Dataset:
    return generate(SyntheticConfig(users=600, items=120, interactions_per_user=12, categories=6), seed=1)


def small(users: int, seed: int = 0) -> Dataset:
    return generate(SyntheticConfig(users=users, items=30, interactions_per_user=6, categories=4), seed=seed)


def skew(dataset: Dataset, dealt: Partition) -> float:
    """Mean total variation distance between a silo's dominant categories and everybody's, weighted by users; in a loop."""
    taste = dominant_category(dataset).tolist()
    everybody = Counter(taste)
    total = 0.0
    for silo in dealt.silos:
        own = Counter(taste[u] for u in silo.users.tolist())
        distance = sum(abs(own[c] / len(silo.users) - everybody[c] / len(taste)) for c in everybody) / 2
        total += distance * len(silo.users) / len(taste)
    return total


@settings(max_examples=60, deadline=None)
@given(
    users=st.integers(1, 40),
    silos=st.integers(1, 40),
    by=st.sampled_from(["taste", "size", "catalogue"]),
    alpha=st.sampled_from([0.01, 0.5, 3.0, 100.0]),
    overlap=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_user_is_in_exactly_one_silo_and_no_silo_is_empty(
    users: int, silos: int, by: str, alpha: float, overlap: float, seed: int
) -> None:
    dataset = small(users)
    config = PartitionConfig.model_validate({"by": by, "silos": silos, "alpha": alpha, "overlap": overlap})
    if users < silos:
        with pytest.raises(ConfigError, match="fewer silos"):
            partition(dataset, config, seed)
        return
    if by == "catalogue" and round(overlap * 30) == 0 and silos > 30:
        with pytest.raises(DataError, match=r"raise partition\.overlap"):
            partition(dataset, config, seed)
        return
    dealt = partition(dataset, config, seed)
    assert len(dealt) == silos
    assert sorted(u for silo in dealt.silos for u in silo.users.tolist()) == list(range(users))
    assert min(dealt.sizes) >= 1
    where = dealt.silo_of_user()
    assert all(where[u] == i for i, silo in enumerate(dealt.silos) for u in silo.users.tolist())
    again = partition(dataset, config, seed)
    for one, two in zip(dealt.silos, again.silos, strict=True):
        assert one.name == two.name
        np.testing.assert_array_equal(one.users, two.users)
        np.testing.assert_array_equal(one.items, two.items)


def test_other_seeds_deal_otherwise(population: Dataset) -> None:
    for by in ("taste", "size", "catalogue"):
        config = PartitionConfig.model_validate({"by": by})
        one, two = (partition(population, config, seed).silo_of_user() for seed in (0, 1))
        assert (one != two).any()


def test_dominant_category_is_counted_over_training_items_only(population: Dataset) -> None:
    train = leave_one_out(population.interactions).train
    names = sorted({c for row in population.catalogue.categories for c in row})
    found = dominant_category(population)
    for u in range(0, population.interactions.n_users, 7):
        counts = Counter(c for i in train.item[train.user == u].tolist() for c in population.catalogue.categories[i])
        assert names[found[u]] == min(counts, key=lambda c: (-counts[c], c))


def test_small_alpha_is_more_skewed_than_large_alpha(population: Dataset) -> None:
    means = []
    for alpha in (0.1, 1.0, 1000.0):
        config = PartitionConfig(alpha=alpha)
        means.append(np.mean([skew(population, partition(population, config, seed)) for seed in range(12)]))
    assert means[0] > means[1] + 0.1 > means[2] + 0.2
    assert means[2] < 0.05, "with a large alpha every silo looks like the whole"


def test_taste_avoids_tiny_silos_while_it_can(population: Dataset) -> None:
    assert min(min(partition(population, PartitionConfig(alpha=0.3), seed).sizes) for seed in range(20)) >= 10


def test_taste_needs_categories() -> None:
    bare = Catalogue(ids=("a", "b"), titles=("A", "B"), categories=((), ()))
    rows = Interactions(np.zeros(3, np.int32), np.array([0, 1, 0], np.int32), np.arange(3), ("u",))
    with pytest.raises(DataError, match="no categories"):
        partition(Dataset(bare, rows), PartitionConfig(silos=1), 0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_sizes_follow_the_power_law(population: Dataset, alpha: float) -> None:
    sizes = partition(population, PartitionConfig(by="size", silos=5, alpha=alpha), 3).sizes
    weights = [(r + 1) ** -alpha for r in range(5)]
    for size, weight in zip(sizes, weights, strict=True):
        assert abs(size - (1 + 595 * weight / sum(weights))) < 1
    assert list(sizes) == sorted(sizes, reverse=True)


def test_column_puts_users_where_their_attribute_says(population: Dataset) -> None:
    attribute = {user: "north" if i % 3 else "south" for i, user in enumerate(population.interactions.user_ids)}
    dealt = partition(population, PartitionConfig(by="column", column="region"), 0, attribute=attribute)
    assert [silo.name for silo in dealt.silos] == ["north", "south"]
    for silo in dealt.silos:
        assert {attribute[population.interactions.user_ids[u]] for u in silo.users} == {silo.name}
    del attribute[population.interactions.user_ids[5]]
    with pytest.raises(DataError, match=r"1 users have no region \(one of them is 'u006'\)"):
        partition(population, PartitionConfig(by="column", column="region"), 0, attribute=attribute)
    with pytest.raises(ConfigError, match="no user attribute 'region'"):
        partition(population, PartitionConfig(by="column", column="region"), 0)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 1.0])
def test_catalogues_share_the_overlap_and_nothing_else(population: Dataset, overlap: float) -> None:
    dealt = partition(population, PartitionConfig(by="catalogue", silos=4, overlap=overlap), 5)
    sellers = np.sum([silo.items for silo in dealt.silos], axis=0)
    assert (sellers == 4).sum() == round(overlap * 120)
    assert (sellers == 1).sum() == 120 - round(overlap * 120)
    own = [int((silo.items & (sellers == 1)).sum()) for silo in dealt.silos]
    assert max(own) - min(own) <= 1
    assert max(dealt.sizes) - min(dealt.sizes) <= 1


def test_a_silo_takes_its_users_rows_of_items_that_it_sells(population: Dataset) -> None:
    dealt = partition(population, PartitionConfig(by="catalogue", silos=3, overlap=0.4), 2)
    everything = population.interactions
    for silo in dealt.silos:
        own = silo.take(population)
        expected = [
            (everything.user_ids[u], i, t)
            for u, i, t in zip(everything.user.tolist(), everything.item.tolist(), everything.time.tolist(), strict=True)
            if u in set(silo.users.tolist()) and silo.items[i]
        ]
        rows = own.interactions
        assert expected == [
            (rows.user_ids[u], i, t) for u, i, t in zip(rows.user.tolist(), rows.item.tolist(), rows.time.tolist(), strict=True)
        ]
        assert len(expected) < len(everything.users(silo.users))
        assert own.user_text is not None
        assert population.user_text is not None
        assert own.user_text[0] == population.user_text[silo.users[0]]
        assert own.catalogue is population.catalogue


def test_a_partition_refuses_users_twice_or_nowhere() -> None:
    items = np.ones(3, dtype=np.bool_)
    for groups in ([[0, 1], [1]], [[0], [2]], [[0, 1, 2], []]):
        silos = tuple(SiloAssignment(f"s{i}", np.array(g, dtype=np.int64), items) for i, g in enumerate(groups))
        with pytest.raises(DataError, match="partition"):
            Partition(silos, 3)


@pytest.mark.parametrize(
    ("n", "declared"),
    [(1, 1), (9, 9), (10, 10), (99, 99), (100, 100), (104, 100), (105, 110), (245, 250), (943, 940), (995, 1000), (6040, 6000)],
)
def test_declared_users_have_two_significant_digits(n: int, declared: int) -> None:
    assert declare_users(n) == declared


@given(st.integers(1, 10**9))
def test_declared_users_are_within_five_per_cent(n: int) -> None:
    declared = declare_users(n)
    assert abs(declared - n) <= 0.05 * n
    assert len(str(declared).rstrip("0")) <= 2


def test_nobody_declares_an_empty_silo() -> None:
    with pytest.raises(DataError, match="cannot enrol"):
        declare_users(0)
