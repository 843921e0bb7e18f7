"""MovieLens-1M and -10M as GroupLens publishes them: ``.dat`` files with ``::`` between the fields, no header.

1M is in Latin-1 and has ``users.dat``; 10M is in UTF-8 and has ``tags.dat``. A line that is valid UTF-8 is read as that in both.
"""

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
from common.data.readers.tags import tag_texts

# Codes of users.dat, from the README of MovieLens-1M.
AGES = {"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56+"}
OCCUPATIONS = (
    "other", "academic or educator", "artist", "clerk or administrator", "college or graduate student", "customer service agent",
    "doctor or health care worker", "executive or manager", "farmer", "homemaker", "K-12 student", "lawyer", "programmer",
    "retiree", "sales or marketing person", "scientist", "self-employed person", "technician or engineer",
    "tradesman or craftsman", "unemployed person", "writer",
)  # fmt: skip
_RATINGS = Layout(
    columns=("user", "movie", "rating", "timestamp"), roles={"user": 0, "item": 1, "value": 2, "time": 3}, separator="::"
)
_TAGS = Layout(columns=("user", "movie", "tag", "timestamp"), roles={"user": 0, "item": 1, "text": 2, "time": 3}, separator="::")


def _is_dat(path: Path) -> bool:
    return (path / "ratings.dat").is_file() and (path / "movies.dat").is_file()


@reader(
    "movielens-1m",
    about="folder with ratings.dat, movies.dat and users.dat",
    detect=lambda path: _is_dat(path) and (path / "users.dat").is_file(),
)
def read_1m(path: Path, reading: Reading) -> Dataset:
    """Ratings, titles with year and genres, and a profile line per user."""
    users = path / "users.dat"
    reading.expect(users)
    dataset = _read(path, reading, legacy=True)
    profiles = profile_lines(dataset.interactions.user_ids, _users(users, reading))
    return Dataset(dataset.catalogue, dataset.interactions, profiles, reading.dropped(), path.name)


@reader(
    "movielens-10m",
    about="folder with ratings.dat and movies.dat, without users.dat",
    detect=lambda path: _is_dat(path) and not (path / "users.dat").is_file(),
)
def read_10m(path: Path, reading: Reading) -> Dataset:
    """Ratings, titles with year and genres; a user's tags of a film are the text of that interaction."""
    return _read(path, reading, legacy=False)


def _read(path: Path, reading: Reading, *, legacy: bool) -> Dataset:
    ratings, tags = path / "ratings.dat", path / "tags.dat"
    reading.expect(path / "movies.dat", ratings, *([tags] if tags.is_file() else []))
    catalogue = _movies(path / "movies.dat", reading, legacy=legacy)
    rows = Accumulator(reading, catalogue)
    read_delimited(ratings, _RATINGS, reading, rows)
    interactions, catalogue = rows.finish(ratings)
    if tags.is_file():
        interactions = tag_texts(tags, _TAGS, reading, interactions, catalogue)
    return Dataset(catalogue, interactions, dropped=reading.dropped(), name=path.name)


def _movies(file: Path, reading: Reading, *, legacy: bool) -> Catalogue:
    builder = items.CatalogueBuilder(reading, file.parent.name)
    for line, text in lines(file, reading, legacy=legacy):
        fields = text.split("::")
        if len(fields) < 3:
            reading.refuse("wrong number of fields", file, line, f"{len(fields)} instead of 3 separated by ::")
            continue
        # titles may hold '::' themselves: the first field is the id and the last one the genres
        title, year = items.title_and_year("::".join(fields[1:-1]))
        builder.add(file, line, fields[0], title, items.categories(fields[-1]), year=year)
    return builder.build(file)


def _users(file: Path, reading: Reading) -> dict[str, str]:
    profiles = {}
    for line, text in lines(file, reading, legacy=True):
        fields = text.split("::")
        if len(fields) != 5:
            reading.refuse("wrong number of fields", file, line, f"{len(fields)} instead of 5 separated by ::")
            continue
        user, gender, age, code, _zip_code = fields
        occupation = OCCUPATIONS[int(code)] if code.isdigit() and int(code) < len(OCCUPATIONS) else ""
        profiles[user] = profile_line(AGES.get(age, age), gender, occupation)
    return profiles
