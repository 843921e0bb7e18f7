"""The data of a run, composed from its configuration: read, filtered, dealt out to silos, split.

In a simulation every silo reads its part from here, and so does the evaluation; one process reads the source once. A silo that
is deployed has data of its own (:func:`common.data.own.own_data`) and takes only the public catalogue from the run's source.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.config import Config, DataConfig, load, to_dict
from common.data.attributes import user_attribute
from common.data.catalogue import Catalogue
from common.data.interactions import Dataset
from common.data.partition import Partition, declare_users, partition
from common.data.split import Split, leave_one_out
from common.errors import ConfigError

CATALOGUE_VARIABLE = "SILOREC_CATALOGUE"
"""Names the file with a run's public catalogue on this machine, where it does not lie at the path that the configuration says.
That it is the right one shows in the adapter's manifest, which holds the catalogue's fingerprint."""

CATALOGUE_FILE = "catalogue.jsonl"


@dataclass(frozen=True, eq=False)
class Population:
    """Everybody's data, as only a simulation may hold them.

    Where silos sell different items, ``dataset`` has lost the rows that a user's own silo could not have seen, so the split of
    a silo is its part of the whole split.
    """

    dataset: Dataset
    partition: Partition

    @cached_property
    def split(self) -> Split:
        """Leave-one-out by time over all users."""
        return leave_one_out(self.dataset.interactions)

    def silo_split(self, silo: int) -> Split:
        """The split of one silo's users."""
        return self.split.users(self.partition.silos[silo].users)

    def training_data(self, silo: int) -> Dataset:
        """What one silo learns from: its users, renumbered, without their validation and test rows."""
        own = self.dataset.users(self.partition.silos[silo].users)
        return replace(own, interactions=self.silo_split(silo).train)

    def item_mask(self, silo: int) -> NDArray[np.bool_] | None:
        """bool ``(n_items,)``: what the silo sells; None means everything."""
        items = self.partition.silos[silo].items
        return None if items.all() else items


def load_population(config: Config) -> Population:
    """The data set of a simulation, dealt out to its silos; cached for the last few configurations.

    Raises
    ------
    DataError, AssetError, ConfigError
        If the source cannot be had, is malformed, or cannot be dealt out as asked.
    """
    return _population(_key(config, "data", "partition", "run"))


def load_catalogue(config: Config) -> Catalogue:
    """The public catalogue of a run: of its source, which may be a catalogue alone, a file ``….catalogue.jsonl`` or
    ``catalogue.jsonl`` as runs and ``silorec data catalogue`` write it. A deployment needs no more.
    """
    if config.data.source.endswith(CATALOGUE_FILE):
        return _catalogue(_path(config.data))
    return _dataset(_key(config, "data", "run")).catalogue


def enrolled(config: Config) -> Config:
    """The configuration with the numbers of users that simulated operators declare (and the silos that there are)."""
    declared = [declare_users(n) for n in load_population(config).partition.sizes]
    return load(to_dict(config), {"partition.silos": len(declared), "federation.declared_users": declared})


def _key(config: Config, *sections: str) -> str:
    tree = to_dict(config)
    return json.dumps({section: tree[section] for section in sections}, sort_keys=True)


@lru_cache(maxsize=4)
def _dataset(key: str) -> Dataset:
    from common.data.load import filter_users

    config = load(json.loads(key))
    dataset = _source(config.data, config.run.seed)
    return filter_users(dataset, config.data.min_user_interactions)


@lru_cache(maxsize=4)
def _population(key: str) -> Population:
    config = load(json.loads(key))
    dataset = _dataset(_key(config, "data", "run"))
    attribute = _attribute(config) if config.partition.by == "column" else None
    parts = partition(dataset, config.partition, config.run.seed, attribute=attribute)
    if not all(silo.items.all() for silo in parts.silos):
        sold = np.stack([silo.items for silo in parts.silos])
        known = sold[parts.silo_of_user()[dataset.interactions.user], dataset.interactions.item]
        dataset = replace(dataset, interactions=dataset.interactions.rows(known))
    return Population(dataset, parts)


@lru_cache(maxsize=4)
def _catalogue(path: Path) -> Catalogue:
    from common.data.catalogue_file import read_catalogue

    return read_catalogue(path)


def _source(data: DataConfig, seed: int) -> Dataset:
    from common.data.load import read_dataset
    from common.data.synthetic import generate

    if data.source == "synthetic":
        return generate(data.synthetic, seed)
    return read_dataset(_path(data), format=data.format, columns=data.columns, malformed=data.malformed, min_value=data.min_value)


def _path(data: DataConfig) -> Path:
    from common.assets import ASSETS, asset_path

    path = asset_path(data.source) if data.source in ASSETS else Path(data.source).expanduser()
    if not path.exists() and os.environ.get(CATALOGUE_VARIABLE):
        path = Path(os.environ[CATALOGUE_VARIABLE])
    if not path.exists():
        raise ConfigError(
            f"data.source = {data.source!r}: neither a data set that can be fetched, nor 'synthetic', nor a path that exists"
        )
    return path


def _attribute(config: Config) -> dict[str, str] | None:
    if config.data.source == "synthetic":
        raise ConfigError("partition.by = 'column': made-up users have no attributes; use another partition.by")
    if config.partition.column is None:
        raise ConfigError("partition.by = 'column': set partition.column to the attribute that names the silo")
    return user_attribute(_path(config.data), config.partition.column, config.data.columns)
