"""Silos whose data are in PostgreSQL: in the end the same adapter, to the last bit, as from files of the same rows."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client.app import app
from client.place import KEY, LEDGER
from common.config import Config, to_run_config
from common.data.population import load_population
from common.model.resident import resident
from common.privacy.ledger import Ledger
from common.privacy.policy import Policy
from common.privacy.signing import create_key
from common.secagg.roster import ROSTER, KeyRoster, write_roster
from server.app import app as server_app
from server.checkpoint import read_final
from simulations.grid import InProcessGrid
from tests import databases, tiny

SILOS = 3
QUERY = 'SELECT customer AS "user", sku AS item, bought_at AS time FROM sales_{0}'

Row = tuple[str, str, int]


@pytest.fixture(scope="module")
def server() -> Iterator[databases.Server]:
    with databases.postgresql() as running:
        yield running


def config(method: str = "plain") -> Config:
    return tiny.config(partition__silos=SILOS, privacy__metrics_share=0.1, aggregation__method=method)


def rows_of_silo(config: Config, silo: int) -> list[Row]:
    """The silo's part of the made-up population, in an order of no meaning."""
    population = load_population(config)
    dataset = population.dataset.users(population.partition.silos[silo].users)
    data = dataset.interactions
    rows = [
        (data.user_ids[user], dataset.catalogue.ids[item], int(time))
        for user, item, time in zip(data.user, data.item, data.time, strict=True)
    ]
    random.Random(silo).shuffle(rows)
    return rows


def federation(config: Config, out: Path, sources: Mapping[int, Mapping[str, Any]]) -> NDArray[np.float32]:
    """The adapter after a run of silos that operators have set up, each with a folder, a key and a ledger of its own."""
    nodes, keys = {}, []
    for silo, source in sources.items():
        home = out / f"home-{silo}"
        home.mkdir(parents=True)
        declared = config.federation.declared_users[silo]
        policy = Policy(
            silo=f"silo-{silo}", epsilon=None, delta=1e-6, modes=("none",), coordinators=("any",), declared_users=declared
        )
        keys.append(create_key(home / KEY))
        Ledger.create(home / LEDGER, policy, keys[silo])
        nodes[silo] = {"silo": silo, "state": str(home), **({"roster": str(out / ROSTER)} if config.is_secure else {}), **source}
    if config.is_secure:
        write_roster(out / ROSTER, KeyRoster(tuple(f"silo-{silo}" for silo in sources), tuple(key.public_key for key in keys)))
    server_app(
        InProcessGrid(app, SILOS, to_run_config(config) | {"app.out": str(out)}, node_configs=nodes),
        tiny.server_context(config, out),
    )
    return read_final(out)


def in_files(folder: Path, tables: Mapping[int, list[Row]]) -> dict[int, dict[str, str]]:
    folder.mkdir()
    for silo, rows in tables.items():
        lines = ["user,item,time", *(f"{user},{item},{time}" for user, item, time in rows)]
        (folder / f"{silo}.csv").write_text("\n".join(lines) + "\n")
    return {silo: {"data": str(folder / f"{silo}.csv")} for silo in tables}


def in_postgresql(
    server: databases.Server, folder: Path, tables: Mapping[int, list[Row]], seed: int = 7
) -> dict[int, dict[str, str]]:
    """In another order than in the files; the last silo's times are timestamps."""
    password = folder / "pw"
    password.write_text(databases.PASSWORD, encoding="utf-8")
    password.chmod(0o600)
    for silo, rows in tables.items():
        server.fill(f"sales_{silo}", "customer text, sku text, bought_at bigint", random.Random(seed).sample(rows, len(rows)))
    last = max(tables)
    server.run(f"ALTER TABLE sales_{last} ALTER bought_at TYPE timestamptz USING to_timestamp(bought_at)")
    return {silo: {"data": server.url, "query": QUERY.format(silo), "password_file": str(password)} for silo in tables}


@pytest.mark.parametrize("method", ["plain", "secure"])
def test_postgresql_and_files_give_the_same_final_vector(server: databases.Server, tmp_path: Path, method: str) -> None:
    settings = config(method)
    tables = {silo: rows_of_silo(settings, silo) for silo in range(SILOS)}
    from_files = federation(settings, tmp_path / "a", in_files(tmp_path / "files", tables))
    from_database = federation(settings, tmp_path / "b", in_postgresql(server, tmp_path, tables))
    assert from_files.tobytes() == from_database.tobytes()
    assert np.linalg.norm(from_files - resident(settings).start) > 0.1
    kept = server.run("SELECT " + ", ".join(f"(SELECT count(*) FROM sales_{silo})" for silo in tables))
    assert kept == [tuple(len(rows) for rows in tables.values())]


def test_one_user_fewer_in_postgresql_gives_another_vector(server: databases.Server, tmp_path: Path) -> None:
    """So the equality above is one of data that were read."""
    settings = config()
    tables = {silo: rows_of_silo(settings, silo) for silo in range(SILOS)}
    from_files = federation(settings, tmp_path / "a", in_files(tmp_path / "files", tables))
    gone = tables[1][0][0]
    fewer = {**tables, 1: [row for row in tables[1] if row[0] != gone]}
    from_database = federation(settings, tmp_path / "b", in_postgresql(server, tmp_path, fewer))
    assert not np.array_equal(from_files, from_database)
