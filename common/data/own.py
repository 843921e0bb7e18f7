"""A deployed silo's own data: where its operator says they are, and how they are read against the run's public catalogue.

They stay where they are. A silo points at a file or folder, or at a database and a query; either is only read, and nothing of it
is copied to the silo's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.data.interactions import Dataset
from common.data.load import Malformed, read_dataset
from common.data.population import load_catalogue
from common.errors import ConfigError, DataError


@dataclass(frozen=True)
class OwnSource:
    """Either a path, or the URL of a database and a query.

    URL and queries are in no ``repr``: they may hold a password, and names that are nobody else's business.

    Parameters
    ----------
    path:
        A file or folder.
    format:
        A name from :func:`common.data.load.formats`, or ``auto``; None takes what the run says of its public source.
    columns:
        Our column names to the source's; a mapping is taken, and kept as sorted pairs. None takes, for a path, what the run says
        of its public source.
    url, query, items_query, password_file:
        See :func:`common.data.sql.read_sql`.
    folder:
        Where relative names of files are looked up; None is the working folder.

    Raises
    ------
    ConfigError
        If it is neither the one nor the other, or both.
    """

    path: Path | None = None
    format: str | None = None
    columns: Mapping[str, str] | tuple[tuple[str, str], ...] | None = None
    url: str | None = field(default=None, repr=False)
    query: str | None = field(default=None, repr=False)
    items_query: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.url is None):
            raise ConfigError("a silo's data are either a path (file or folder), or url and query (a database): give one of them")
        if self.url is not None and not (self.query or "").strip():
            raise ConfigError("the silo's data are in a database: give the query, a SELECT that gives one row an interaction")
        if self.url is not None and self.format not in (None, "auto"):
            raise ConfigError(f"format = {self.format!r} is for files; a database has none")
        if self.path is not None:
            for name in ("query", "items_query", "password_file"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{name} goes with the url of a database, not with a path")
        if isinstance(self.columns, Mapping):
            object.__setattr__(self, "columns", tuple(sorted(self.columns.items())))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> OwnSource:
        """From ``data``, which is a URL (it has ``://``) or a path, and ``query``, ``items_query`` and ``password_file``; more is
        not looked at.
        """
        name = str(settings["data"])
        url, path = (name, None) if "://" in name else (None, Path(name).expanduser())
        query, items_query, password = (str(settings.get(key) or "") or None for key in ("query", "items_query", "password_file"))
        password_file = Path(password).expanduser() if password else None
        return cls(path, url=url, query=query, items_query=items_query, password_file=password_file)

    @property
    def place(self) -> str:
        """Where the data are, without user, password and query."""
        from common.data.sql_url import place_of

        return str(self._file) if self.url is None else place_of(self.url)

    def read(
        self,
        *,
        format: str = "auto",
        columns: Mapping[str, str] | None = None,
        malformed: Malformed = "strict",
        min_value: float | None = None,
        ordered: bool = True,
    ) -> Dataset:
        """The data, as they are; ``format`` and ``columns`` count for a path that says nothing of its own.

        Raises
        ------
        DataError
            If they cannot be had or are malformed.
        """
        from common.data.sql import read_sql

        own = None if self.columns is None else dict(self.columns)
        if self.url is not None:
            return read_sql(
                self.url,
                self.query or "",
                items_query=self.items_query,
                password_file=self.password_file,
                columns=own,
                folder=self.folder,
                malformed=malformed,
                min_value=min_value,
                ordered=ordered,
            )
        return read_dataset(
            self._file,
            format=self.format or format,
            columns=columns if own is None else own,
            malformed=malformed,
            min_value=min_value,
            ordered=ordered,
        )

    @property
    def _file(self) -> Path:
        return (self.folder or Path()) / (self.path or Path())


def own_data(config: Config, source: OwnSource | Path) -> tuple[Dataset, NDArray[np.bool_] | None]:
    """A deployed silo's data against the run's public catalogue, and what it sells (None: everything).

    Items are matched by id; rows of items that the public catalogue does not name are left out. Users are in the order of their
    ids, rows in that of user, time and item: the same data give the same training, from whichever source and in whichever order.

    Raises
    ------
    DataError
        If the data cannot be had or are malformed, or no item of them is in the catalogue.
    """
    source = OwnSource(path=source) if isinstance(source, Path) else source
    data = config.data
    own = source.read(format=data.format, columns=data.columns, malformed=data.malformed, min_value=data.min_value)
    catalogue = load_catalogue(config)
    place = np.array([catalogue.index.get(item_id, -1) for item_id in own.catalogue.ids], dtype=np.int32)
    if not (place >= 0).any():
        raise DataError("no item of these data is in the run's catalogue: the item ids must agree", source.place)
    rows = own.interactions.rows(place[own.interactions.item] >= 0)
    sold = np.zeros(len(catalogue), dtype=np.bool_)
    sold[place[place >= 0]] = True
    dataset = replace(own, catalogue=catalogue, interactions=replace(rows, item=place[rows.item]))
    return dataset, None if sold.all() else sold
