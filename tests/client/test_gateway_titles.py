"""Finding items by what people type."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.gateway import titles as module
from client.gateway.titles import Titles, folded
from common.data.catalogue import Catalogue

NAMES = (
    "The Matrix (1999)", "Amélie", "Spider-Man: Homecoming", "Spider-Man 2", "The Spider", "Alien", "Aliens", "Alien (2030)",
    "Star Wars: Episode IV", "Wars of the Stars", "!!!", "Twin", "twin", "El Niño",
)  # fmt: skip


def made(names: tuple[str, ...], weights: list[float] | None = None) -> Titles:
    ids = tuple(f"n{i}" for i in range(len(names)))
    catalogue = Catalogue(ids, names, ((),) * len(names))
    return Titles(catalogue, np.array(weights or [0.0] * len(names)))


TITLES = made(NAMES)


def found(text: str, limit: int = 10) -> list[str]:
    return [NAMES[i] for i in TITLES.search(text, limit)]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("amelie", ["Amélie"]), ("AMÉLIE", ["Amélie"]), ("el nino", ["El Niño"]), ("spiderman homecoming", [NAMES[2]]),
        ("spider man", ["Spider-Man: Homecoming", "Spider-Man 2"]), ("matrix", ["The Matrix (1999)"]),
        ("alien", ["Alien", "Aliens", "Alien (2030)"]), ("stars wars", ["Wars of the Stars"]), ("n9", ["Wars of the Stars"]),
        ("!!!", ["!!!"]), ("matirx", ["The Matrix (1999)"]), ("homecomming", ["Spider-Man: Homecoming"]), ("qqqq", []),
    ],
)  # fmt: skip
def test_titles_are_found_however_they_are_typed(text: str, first: list[str]) -> None:
    assert found(text)[: len(first)] == first


def test_beginnings_come_before_words_before_parts_and_popular_ones_first() -> None:
    titles = made(("a rest", "forest", "rest a", "rest b", "the rest"), [0, 9, 1, 2, 5])
    assert titles.search("rest", 9) == [3, 2, 4, 0, 1]
    assert titles.search("rest", 2) == [3, 2]


def test_a_whole_title_is_enough_to_be_understood_and_a_part_is_not() -> None:
    assert [NAMES[i] for i in TITLES.called("the matrix")] == ["The Matrix (1999)"]  # the year may be missing
    assert TITLES.called("matrix") == []
    assert [NAMES[i] for i in TITLES.called("alien")] == ["Alien"]  # a title without a year comes before one with it
    assert [NAMES[i] for i in TITLES.called("TWIN")] == ["Twin", "twin"]
    assert TITLES.called("n3") == [3]


def test_an_id_comes_before_a_title() -> None:
    catalogue = Catalogue(("x", "y"), ("y", "z"), ((), ()))
    assert Titles(catalogue, np.zeros(2)).called("y") == [1]


@settings(max_examples=150, deadline=None)
@given(
    names=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=12), text=st.text(max_size=12), limit=st.integers(1, 5)
)
def test_search_agrees_with_a_loop_over_the_titles(names: list[str], text: str, limit: int) -> None:
    titles = made(tuple(names))
    hits = titles.search(text, limit)
    wanted = folded(text)
    assert len(hits) == len(set(hits)) <= limit
    holding = {i for i, name in enumerate(names) if wanted and wanted in folded(name)}
    assert set(hits) >= holding or len(hits) == limit
    for i, name in enumerate(names):
        assert i in titles.called(name) or name.startswith("n") or name in titles.catalogue.index
        assert (i in titles.search(name, len(names))) or name in titles.catalogue.index


def test_many_titles_are_searched_in_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(f"the title number {i}" for i in range(30_000))
    titles = made(names)
    began = time.process_time()
    for text in ("title", "number 599", "titel nubmer", "e", "zzz"):
        assert len(titles.search(text, 10)) <= 10
    assert time.process_time() - began < 2.0
    monkeypatch.setattr(module, "FUZZY_MOST", 0)
    assert made(NAMES).search("matirx", 10) == []
