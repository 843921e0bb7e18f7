"""One data set dealt out to silos as files, to try a deployment with: what each operator would have on a machine of their own."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from common.config import PartitionConfig
from common.data.catalogue_file import write_catalogue
from common.data.interactions import Dataset
from common.data.partition import declare_users, partition
from common.durable import write_durably

CATALOGUE = "catalogue.jsonl"


@dataclass(frozen=True)
class Dealt:
    """One silo's file, and the number of users that its operator would declare."""

    name: str
    path: Path
    declared_users: int


def deal(dataset: Dataset, settings: PartitionConfig, out: Path, seed: int = 0) -> list[Dealt]:
    """Write ``out/catalogue.jsonl``, which is public, and for each silo ``out/<silo>.csv`` with columns user, item and time.

    Parameters
    ----------
    settings:
        How many silos there are, and what decides a user's.

    Raises
    ------
    ConfigError, DataError
        If the data cannot be dealt out so.
    """
    parts = partition(dataset, settings, seed)
    write_catalogue(out / CATALOGUE, dataset.catalogue)
    dealt = []
    for silo in parts.silos:
        own = silo.take(dataset)
        path = out / f"{silo.name}.csv"
        write_durably(path, _csv(own).encode(), mode=0o600)
        dealt.append(Dealt(silo.name, path, declare_users(len(silo.users))))
    return dealt


def _csv(dataset: Dataset) -> str:
    rows, catalogue, text = dataset.interactions, dataset.catalogue, io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["user", "item", "time"])
    order, _ = rows.by_user
    for row in order:
        writer.writerow([rows.user_ids[rows.user[row]], catalogue.ids[rows.item[row]], int(rows.time[row])])
    return text.getvalue()
