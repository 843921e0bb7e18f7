"""Who gets which rows: nothing is lost, nothing is in two places, and what silos declare is public."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.config import Config, load
from common.data.own import own_data
from common.data.population import enrolled, load_catalogue, load_population
from common.errors import ConfigError, DataError


def made_up(**settings: object) -> Config:
    base = {"source": "synthetic", "synthetic": {"users": 60, "items": 30, "categories": 3, "interactions_per_user": 8.0}}
    return load({"data": base}, {key.replace("__", "."): value for key, value in settings.items()})


@pytest.mark.parametrize("by", ["taste", "size", "catalogue"])
def test_silos_learn_from_all_training_rows_once(by: str) -> None:
    population = load_population(made_up(partition__by=by))
    parts = [population.training_data(silo) for silo in range(4)]
    rows = [
        (part.interactions.user_ids[u], int(i), int(t))
        for part in parts
        for u, i, t in zip(part.interactions.user, part.interactions.item, part.interactions.time, strict=True)
    ]
    train = population.split.train
    expected = [(train.user_ids[u], int(i), int(t)) for u, i, t in zip(train.user, train.item, train.time, strict=True)]
    assert sorted(rows) == sorted(expected)
    assert len(set(rows)) == len(rows)


def test_no_silo_learns_from_a_validation_or_test_row() -> None:
    population = load_population(made_up())
    for silo in range(4):
        split = population.silo_split(silo)
        learnt = population.training_data(silo).interactions
        assert len(learnt) == len(split.train)
        for user, held in enumerate(split.test_target):
            if held >= 0:
                assert held not in learnt.item[learnt.user == user]


def test_where_silos_sell_different_items_each_row_is_one_that_the_users_silo_sells() -> None:
    population = load_population(made_up(partition__by="catalogue"))
    for silo in range(4):
        mask = population.item_mask(silo)
        assert mask is not None
        assert not mask.all()
        assert mask[population.silo_split(silo).interactions.item].all()
    assert load_population(made_up()).item_mask(0) is None


def test_a_population_is_read_once_and_the_same_in_every_process() -> None:
    assert load_population(made_up()) is load_population(made_up())
    assert load_population(made_up()) is load_population(made_up(federation__rounds=9))
    assert load_population(made_up()) is not load_population(made_up(run__seed=1))
    assert load_catalogue(made_up()) is load_population(made_up()).dataset.catalogue


def test_enrolment_declares_rounded_numbers_for_the_silos_that_there_are() -> None:
    config = enrolled(made_up(partition__silos=3, data__synthetic__users=700))
    sizes = load_population(config).partition.sizes
    assert config.federation.declared_users == tuple(int(n / 10 + 0.5) * 10 if n >= 100 else n for n in sizes)
    assert enrolled(config) == config


def write_shop(path: Path, users: str = "abcdef") -> Path:
    """Six users in two regions; each buys the items 0..4 in an order of its own."""
    rows = [
        f"{user},i{(n + k) % 5},{k},{'north' if n % 2 else 'south'},g{(n + k) % 2}"
        for n, user in enumerate(users)
        for k in range(4)
    ]
    path.write_text("\n".join(["user,item,time,region,category", *rows]) + "\n")
    return path


def test_a_column_of_the_source_names_the_silos(tmp_path: Path) -> None:
    source = write_shop(tmp_path / "shop.csv")
    config = enrolled(load({"data.source": str(source), "partition.by": "column", "partition.column": "region"}))
    parts = load_population(config).partition.silos
    assert [part.name for part in parts] == ["north", "south"]
    ids = load_population(config).dataset.interactions.user_ids
    assert [{ids[u] for u in part.users} for part in parts] == [set("bdf"), set("ace")]
    assert config.partition.silos == 2
    assert config.federation.declared_users == (3, 3)


def test_impossible_sources_are_named(tmp_path: Path) -> None:
    source = write_shop(tmp_path / "shop.csv")
    with pytest.raises(ConfigError, match=r"data\.source = '/no/such': neither a data set"):
        load_population(load({"data.source": "/no/such"}))
    with pytest.raises(ConfigError, match=r"partition\.column = 'town': .* \(it has: user, item, time, region, category\)"):
        load_population(load({"data.source": str(source), "partition.by": "column", "partition.column": "town"}))
    with pytest.raises(ConfigError, match=r"set partition\.column"):
        load_population(load({"data.source": str(source), "partition.by": "column"}))
    with pytest.raises(ConfigError, match="made-up users have no attributes"):
        load_population(made_up(partition__by="column", partition__column="region"))


def test_attributes_are_read_from_recbole_ml_100k_and_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    from common.data.attributes import user_attribute

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.user").write_text("user_id:token\toccupation:token\nu1\tdoctor\nu2\t\n")
    assert user_attribute(tmp_path / "a", "occupation") == {"u1": "doctor"}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "u.user").write_bytes("1|24|M|étudiant|85711\n".encode("latin-1"))
    assert user_attribute(tmp_path / "b", "occupation") == {"1": "étudiant"}
    table = pa.table({"uid": ["u1", "u1", "u2"], "item": [1, 2, 3], "shop": ["s", "t", None]})
    parquet.write_table(table, tmp_path / "c.parquet")
    assert user_attribute(tmp_path / "c.parquet", "shop", {"user": "uid"}) == {"u1": "s"}


def test_own_data_are_matched_by_item_id(tmp_path: Path) -> None:
    source = write_shop(tmp_path / "shop.csv")
    config = load({"data.source": str(source), "partition.silos": 2})
    own = tmp_path / "own.csv"
    own.write_text("user,item,time\nx,i3,1\nx,unknown,2\nx,i1,3\n")
    dataset, sold = own_data(config, own)
    assert [dataset.catalogue.ids[i] for i in dataset.interactions.item] == ["i3", "i1"]
    assert dataset.catalogue is load_catalogue(config)
    assert sold is not None
    assert {dataset.catalogue.ids[i] for i in np.flatnonzero(sold)} == {"i1", "i3"}
    own.write_text("user,item,time\nx,unknown,2\n")
    with pytest.raises(DataError, match="no item of these data is in the run's catalogue"):
        own_data(config, own)
