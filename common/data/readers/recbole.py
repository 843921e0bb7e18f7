"""RecBole's atomic files: ``NAME.inter``, and beside it ``NAME.item`` and ``NAME.user`` if there are any.

Tab separated, unquoted, with a header of ``name:type``, where the type is ``token``, ``token_seq`` (words between blanks),
``float`` or ``float_seq``. Column names differ from data set to data set (``class``, ``genre``): they are read from the header,
and a column mapping overrules what is known about names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.data.catalogue import Catalogue
from common.data.interactions import Dataset
from common.data.readers import items
from common.data.readers.accumulate import Accumulator
from common.data.readers.blocks import lines
from common.data.readers.columns import ColumnMapping
from common.data.readers.delimited import Layout, Role, read_delimited, read_header
from common.data.readers.profile import profile_line, profile_lines
from common.data.readers.reading import Reading
from common.data.readers.registry import reader
from common.errors import DataError

_TYPES = ("token", "token_seq", "float", "float_seq")


@dataclass(frozen=True)
class _Header:
    names: tuple[str, ...]
    types: tuple[str, ...]

    def at(self, name: str | None) -> int | None:
        return None if name is None else self.names.index(name)


def _inter_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".inter" else []
    return sorted(path.glob("*.inter"))


@reader(
    "recbole", about="NAME.inter, with NAME.item and NAME.user, or their folder",
    detect=lambda path: bool(_inter_files(path)), takes_columns=True,
)  # fmt: skip
def read(path: Path, reading: Reading) -> Dataset:
    """Interactions; items and a profile line per user where their files are there."""
    inter = _inter_file(path)
    item, user = inter.with_suffix(".item"), inter.with_suffix(".user")
    reading.expect(*(file for file in (inter, item, user) if file.is_file()))
    mapping = ColumnMapping(reading.columns)
    catalogue = _items(item, mapping, reading) if item.is_file() else None
    rows = Accumulator(reading, catalogue, inter.stem)
    read_delimited(inter, _layout(inter, mapping, reading), reading, rows)
    interactions, catalogue = rows.finish(inter)
    profiles = profile_lines(interactions.user_ids, _users(user, mapping, reading)) if user.is_file() else None
    return Dataset(catalogue, interactions, profiles, reading.dropped(), inter.stem)


def _inter_file(path: Path) -> Path:
    found = _inter_files(path)
    if not found:
        raise DataError("there is no .inter file", path)
    named = [file for file in found if file.stem == path.name]
    if len(found) > 1 and not named:
        raise DataError(f"several .inter files ({', '.join(file.name for file in found)}): give the path of one", path)
    return (named or found)[0]


def _header(file: Path, reading: Reading) -> _Header:
    names, types = [], []
    for field in read_header(file, "\t", reading, quoted=False):
        name, _, kind = field.partition(":")
        if kind not in _TYPES:
            raise DataError(f"the header has {field!r}; expected name:type with a type of {', '.join(_TYPES)}", file, 1)
        names.append(name)
        types.append(kind)
    return _Header(tuple(names), tuple(types))


def _layout(file: Path, mapping: ColumnMapping, reading: Reading) -> Layout:
    header = _header(file, reading)
    roles: dict[Role, int] = {}
    required: tuple[Role, ...] = ("user", "item", "time")
    optional: tuple[Role, ...] = ("value", "text")
    for role in (*required, *optional):
        at = header.at(mapping.find(role, header.names, file, required=role in required))
        if at is not None:
            roles[role] = at
    return Layout(header.names, roles, separator="\t", header=True, time_unit=mapping.time_unit)


def _items(file: Path, mapping: ColumnMapping, reading: Reading) -> Catalogue:
    header = _header(file, reading)
    builder = items.CatalogueBuilder(reading, file.stem)
    id_at = header.at(mapping.find("item", header.names, file, required=True, key=True))
    at = {ours: header.at(mapping.find(ours, header.names, file)) for ours in ("title", "categories", "year", "description")}
    separator = mapping.category_separator
    if separator is None and at["categories"] is not None:
        separator = " " if header.types[at["categories"]].endswith("_seq") else "\n"  # a token is one name, blanks and all
    for line, text in lines(file, reading):
        if line == 1:
            continue
        fields = text.split("\t")
        if len(fields) != len(header.names):
            reading.refuse("wrong number of fields", file, line, f"{len(fields)} instead of {len(header.names)}")
            continue
        found = {ours: "" if position is None else fields[position] for ours, position in at.items()}
        title, year = items.title_and_year(found["title"])
        builder.add(
            file, line, fields[id_at or 0], title, items.categories(found["categories"], separator),
            year=items.year(found["year"]) or year, description=items.clip(found["description"]),
        )  # fmt: skip
    return builder.build(file)


def _users(file: Path, mapping: ColumnMapping, reading: Reading) -> dict[str, str]:
    header = _header(file, reading)
    id_at = header.at(mapping.find("user", header.names, file, required=True, key=True)) or 0
    at = {name: header.names.index(name) for name in ("age", "gender", "occupation") if name in header.names}
    profiles = {}
    for line, text in lines(file, reading):
        if line == 1:
            continue
        fields = text.split("\t")
        if len(fields) != len(header.names):
            reading.refuse("wrong number of fields", file, line, f"{len(fields)} instead of {len(header.names)}")
            continue
        profiles[fields[id_at]] = profile_line(**{name: fields[position] for name, position in at.items()})
    return profiles
