"""Which formats there are, and which of them a path is.

A format is a name, a sentence, a cheap test of a path and a function that reads it. It is added by a decorator:

    @reader("movielens-100k", about="a folder with u.data and u.item", detect=_detect)
    def read(path: Path, reading: Reading) -> Dataset: ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.data.interactions import Dataset
from common.data.readers.reading import Reading
from common.errors import DataError

Read = Callable[[Path, Reading], Dataset]


@dataclass(frozen=True)
class Reader:
    """One format; ``detect`` looks at names and existence of files only, and never raises for a readable path."""

    name: str
    about: str
    detect: Callable[[Path], bool]
    read: Read
    takes_columns: bool = False


READERS: dict[str, Reader] = {}


def reader(name: str, *, about: str, detect: Callable[[Path], bool], takes_columns: bool = False) -> Callable[[Read], Read]:
    """Register the decorated function as the reader of a format.

    Parameters
    ----------
    name:
        What the user calls the format.
    about:
        How its files look, for messages and help.
    detect:
        Whether a path is of this format.
    takes_columns:
        Whether the reader understands a column mapping.
    """

    def register(read: Read) -> Read:
        if name in READERS:
            raise ValueError(f"two readers are called {name!r}")
        READERS[name] = Reader(name, about, detect, read, takes_columns)
        return read

    return register


def choose(path: Path, format: str = "auto") -> Reader:
    """The reader of ``path``: the one that is named, or the only one that recognises it.

    Raises
    ------
    DataError
        If the path does not exist, the name is unknown, or not exactly one reader recognises the path.
    """
    if not path.exists():
        raise DataError("no such file or folder", path)
    if format != "auto":
        if format not in READERS:
            raise DataError(f"unknown format {format!r}; known are: {', '.join(sorted(READERS))}")
        return READERS[format]
    found = [candidate for candidate in READERS.values() if candidate.detect(path)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(candidate.name for candidate in found))
        raise DataError(f"several formats match ({names}): choose one by naming the format", path)
    known = "; ".join(f"{candidate.name} ({candidate.about})" for candidate in sorted(READERS.values(), key=lambda r: r.name))
    raise DataError(f"no known format matches. Known are: {known}", path)
