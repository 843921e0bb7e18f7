"""MovieLens 20M, 25M, 32M and "latest" as GroupLens publishes them: CSV in UTF-8 with headers."""

from __future__ import annotations

from pathlib import Path

from common.data.catalogue import Catalogue
from common.data.interactions import Dataset
from common.data.readers import items
from common.data.readers.accumulate import Accumulator
from common.data.readers.blocks import rows
from common.data.readers.delimited import Layout, Role, read_delimited, read_header
from common.data.readers.reading import Reading
from common.data.readers.registry import reader
from common.data.readers.tags import tag_texts
from common.errors import DataError


def _detect(path: Path) -> bool:
    return (path / "ratings.csv").is_file() and (path / "movies.csv").is_file()


@reader("movielens-csv", about="folder with ratings.csv and movies.csv", detect=_detect)
def read(path: Path, reading: Reading) -> Dataset:
    """Ratings, titles with year and genres; a user's tags of a film (``tags.csv``) are the text of that interaction."""
    ratings, tags = path / "ratings.csv", path / "tags.csv"
    reading.expect(path / "movies.csv", ratings, *([tags] if tags.is_file() else []))
    catalogue = _movies(path / "movies.csv", reading)
    collected = Accumulator(reading, catalogue)
    layout = _layout(ratings, {"user": "userId", "item": "movieId", "value": "rating", "time": "timestamp"}, reading)
    read_delimited(ratings, layout, reading, collected)
    interactions, catalogue = collected.finish(ratings)
    if tags.is_file():
        layout = _layout(tags, {"user": "userId", "item": "movieId", "text": "tag"}, reading)
        interactions = tag_texts(tags, layout, reading, interactions, catalogue)
    return Dataset(catalogue, interactions, dropped=reading.dropped(), name=path.name)


def _layout(file: Path, roles: dict[Role, str], reading: Reading) -> Layout:
    header = read_header(file, ",", reading)
    at = _positions(header, tuple(roles.values()), file)
    return Layout(header, dict(zip(roles, at, strict=True)), separator=",", quoted=True, header=True)


def _positions(header: tuple[str, ...], names: tuple[str, ...], file: Path) -> list[int]:
    for name in names:
        if name not in header:
            raise DataError(f"missing column {name!r}; the file has: {', '.join(header)}", file, 1)
    return [header.index(name) for name in names]


def _movies(file: Path, reading: Reading) -> Catalogue:
    builder = items.CatalogueBuilder(reading, file.parent.name)
    header = read_header(file, ",", reading)
    id_at, title_at, genres_at = _positions(header, ("movieId", "title", "genres"), file)
    for line, fields in rows(file, reading):
        if line == 1:
            continue
        if len(fields) != len(header):
            reading.refuse("wrong number of fields", file, line, f"{len(fields)} instead of {len(header)} ({', '.join(header)})")
            continue
        title, year = items.title_and_year(fields[title_at])
        builder.add(file, line, fields[id_at], title, items.categories(fields[genres_at]), year=year)
    return builder.build(file)
