"""MIND, the Microsoft News data set: ``behaviors.tsv`` and ``news.tsv``, tab separated, unquoted, without header.

A row of behaviours holds what the user had clicked before (the history, without times) and the news that were shown, each with
``-1`` if it was clicked and ``-0`` if not. What is read as an interaction:

- every clicked impression, at the time of the impression;
- the history, once per user (MIND repeats it in each row; the longest one is taken). It is older than all impressions, and
  its order is known but its times are not. So its entries are placed one second apart, the last one a second before the
  user's first impression. Orders and leave-one-out splits are right; spans of time inside the history mean nothing.

News shown and not clicked are no interactions.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from common.data.catalogue import Catalogue
from common.data.interactions import Dataset
from common.data.readers import items
from common.data.readers.accumulate import Accumulator, Coded, Rows
from common.data.readers.blocks import lines
from common.data.readers.reading import Reading
from common.data.readers.registry import reader

_BATCH = 1 << 18


@dataclass
class _History:
    items: str
    line: int
    first_seen: int


def _detect(path: Path) -> bool:
    return (path / "behaviors.tsv").is_file() and (path / "news.tsv").is_file()


@reader("mind", about="folder with behaviors.tsv and news.tsv", detect=_detect)
def read(path: Path, reading: Reading) -> Dataset:
    """Clicks and history; news with title, category, sub-category and abstract."""
    behaviours = path / "behaviors.tsv"
    reading.expect(path / "news.tsv", behaviours)
    catalogue = _news(path / "news.tsv", reading)
    collected = Accumulator(reading, catalogue)
    _behaviours(behaviours, reading, collected)
    interactions, catalogue = collected.finish(behaviours)
    return Dataset(catalogue, interactions, dropped=reading.dropped(), name=path.name)


def _news(file: Path, reading: Reading) -> Catalogue:
    builder = items.CatalogueBuilder(reading, file.parent.name)
    for line, text in lines(file, reading):
        fields = text.split("\t")
        if len(fields) != 8:
            reading.refuse("wrong number of fields", file, line, f"{len(fields)} instead of 8")
            continue
        news_id, category, subcategory, title, abstract = fields[:5]
        builder.add(file, line, news_id, title, items.unique([category, subcategory]), description=items.clip(abstract))
    return builder.build(file)


class _Clicks:
    """Clicks on their way into the accumulator, a batch at a time."""

    def __init__(self, into: Accumulator) -> None:
        self._into = into
        self._users: list[str] = []
        self._items: list[str] = []
        self._times: list[int] = []

    def add(self, user: str, item: str, time: int) -> None:
        self._users.append(user)
        self._items.append(item)
        self._times.append(time)
        if len(self._users) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        if self._users:
            self._into.append(Rows(Coded.of(self._users), Coded.of(self._items), np.array(self._times, dtype=np.int64)))
        self._users, self._items, self._times = [], [], []


def _behaviours(file: Path, reading: Reading, into: Accumulator) -> None:
    clicks = _Clicks(into)
    histories: dict[str, _History] = {}
    for line, text in lines(file, reading):
        fields = text.split("\t")
        if len(fields) != 5:
            reading.refuse("wrong number of fields", file, line, f"{len(fields)} instead of 5")
            continue
        _impression_id, user, when, history, impressions = fields
        time = _seconds(when)
        if not user:
            reading.refuse("empty user id", file, line)
            continue
        if time is None:
            reading.refuse("time is not a date", file, line, f"{when!r}; expected such as '11/15/2019 8:55:22 AM'")
            continue
        known = histories.get(user)
        if known is None:
            histories[user] = _History(history, line, time)
        else:
            known.first_seen = min(known.first_seen, time)
            if len(history) > len(known.items):
                known.items, known.line = history, line
        for shown in impressions.split():
            item, _, label = shown.rpartition("-")
            if label not in ("0", "1"):
                reading.refuse("impression without a label", file, line, f"{shown!r}; expected -1 or -0 (a test set has none)")
            elif not into.knows(item):
                reading.refuse("unknown item", file, line, f"{item!r} is not in news.tsv")
            elif label == "1":
                clicks.add(user, item, time)
    for user, found in histories.items():
        past = found.items.split()
        for age, item in zip(range(len(past), 0, -1), past, strict=True):
            if into.knows(item):
                clicks.add(user, item, found.first_seen - age)
            else:
                reading.refuse("unknown item", file, found.line, f"{item!r} of the history is not in news.tsv")
    clicks.flush()


def _seconds(when: str) -> int | None:
    """``"11/15/2019 8:55:22 AM"`` as seconds since 1970; MIND does not name a zone, UTC is taken."""
    try:
        date, clock, half = when.split(" ")
        hour, minute, second = (int(part) for part in clock.split(":"))
        if half not in ("AM", "PM") or not (1 <= hour <= 12 and 0 <= minute < 60 and 0 <= second < 60):
            return None
        return _midnight(date) + (hour % 12 + (12 if half == "PM" else 0)) * 3600 + minute * 60 + second
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def _midnight(date: str) -> int:
    month, day, year = (int(part) for part in date.split("/"))
    return int(datetime(year, month, day, tzinfo=UTC).timestamp())
