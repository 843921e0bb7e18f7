"""MovieLens-100K as GroupLens publishes it: ``u.data`` (tabs), ``u.item`` and ``u.user`` (``|``), Latin-1."""

from __future__ import annotations

from pathlib import Path

from common.data.catalogue import Catalogue
from common.data.interactions import Dataset
from common.data.readers import items
from common.data.readers.accumulate import Accumulator
from common.data.readers.blocks import lines
from common.data.readers.delimited import Layout, read_delimited
from common.data.readers.profile import profile_line, profile_lines
from common.data.readers.reading import Reading
from common.data.readers.registry import reader

# The order of the flags in u.item, from the data set's README; u.genre says the same.
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_LAYOUT = Layout(
    columns=("user", "item", "rating", "timestamp"), roles={"user": 0, "item": 1, "value": 2, "time": 3}, separator="\t"
)
_BEFORE_FLAGS = 5  # id, title, release date, video release date, IMDb address


def _detect(path: Path) -> bool:
    return (path / "u.data").is_file() and (path / "u.item").is_file()


@reader("movielens-100k", about="folder with u.data and u.item", detect=_detect)
def read(path: Path, reading: Reading) -> Dataset:
    """Ratings, titles with year and genres, and a profile line per user where there is ``u.user``."""
    data, users = path / "u.data", path / "u.user"
    reading.expect(path / "u.item", data, *([users] if users.is_file() else []))
    catalogue = _items(path, reading)
    rows = Accumulator(reading, catalogue)
    read_delimited(data, _LAYOUT, reading, rows)
    interactions, catalogue = rows.finish(data)
    profiles = profile_lines(interactions.user_ids, _users(users, reading)) if users.is_file() else None
    return Dataset(catalogue, interactions, profiles, reading.dropped(), path.name)


def _items(path: Path, reading: Reading) -> Catalogue:
    genres, file = _genres(path / "u.genre", reading), path / "u.item"
    builder = items.CatalogueBuilder(reading, path.name)
    for line, text in lines(file, reading, legacy=True):
        fields = text.split("|")
        if len(fields) != _BEFORE_FLAGS + len(genres):
            what = f"{len(fields)} instead of {_BEFORE_FLAGS + len(genres)} separated by |"
            reading.refuse("wrong number of fields", file, line, what)
            continue
        flags = fields[_BEFORE_FLAGS:]
        if not set(flags) <= {"0", "1"}:
            reading.refuse("genre flag is neither 0 nor 1", file, line, repr(next(f for f in flags if f not in ("0", "1"))))
            continue
        title, year = items.title_and_year(fields[1])
        names = items.unique([genre for genre, flag in zip(genres, flags, strict=True) if flag == "1"])
        builder.add(file, line, fields[0], title, names, year=year)
    return builder.build(file)


def _genres(file: Path, reading: Reading) -> tuple[str, ...]:
    """Genre names in the order of their flags; from ``u.genre`` (``name|number``) if it is there."""
    if not file.is_file():
        return GENRES
    found: dict[int, str] = {}
    for line, text in lines(file, reading, legacy=True):
        name, _, number = text.partition("|")
        if not number.strip().isdigit():
            reading.refuse("expected genre|number", file, line, repr(text))
            continue
        found[int(number)] = name
    return tuple(found[number] for number in sorted(found))


def _users(file: Path, reading: Reading) -> dict[str, str]:
    profiles = {}
    for line, text in lines(file, reading, legacy=True):
        fields = text.split("|")
        if len(fields) != 5:
            reading.refuse("wrong number of fields", file, line, f"{len(fields)} instead of 5 separated by |")
            continue
        user, age, gender, occupation, _zip_code = fields
        profiles[user] = profile_line(age, gender, occupation)
    return profiles
