"""The card for programs and the card for people."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.bundle.card import Card
from common.bundle.card_text import NOBODY
from common.errors import BundleError
from tests.bundles import tiny_card


def card(**changes: Any) -> Card:
    """The tiny card with other values, by dotted names."""
    raw = tiny_card(40).model_dump(mode="json")
    for name, value in changes.items():
        part = raw
        *path, last = name.split("__")
        for step in path:
            part = part[step]
        part[last] = value
    return Card.from_json(json.dumps(raw).encode())


def test_a_card_comes_back_from_its_json() -> None:
    assert Card.from_json(tiny_card(40).to_json()) == tiny_card(40)


def test_the_words_of_schema_1_do_not_change() -> None:
    """Bundles that were signed with them would be refused: other words need another schema."""
    full = card(
        quality=[
            {"name": "NDCG@10", "value": 0.08, "low": 0.07, "high": 0.09, "note": "on test"},
            {"name": "HR@10", "value": 0.1},
        ],
        notes=["a note"],
        added_items=3,
        privacy__epsilon=7.9912,
    )
    unprotected = card(privacy__mode="none", privacy__epsilon=None, privacy__delta=None, quality=[])
    found = [hashlib.sha256(one.to_markdown().encode()).hexdigest() for one in (full, unprotected)]
    assert found == [
        "4a1b3a859fc7385732e69884706eb9f08a89bf9d9a90cb380db57ee2df357c30",
        "fc019377b87a54b9fd2b45d2dc46bb71e6f61db4e52afc07c8842cf00a38f16b",
    ]


def test_the_words_say_all_that_matters() -> None:
    text = card(privacy__epsilon=7.991, added_items=2).to_markdown()
    for said in (
        "# tiny", "42 items", "epsilon 8.00 at delta 1e-05", "one user of one silo", "Who must be trusted: nobody beside",
        "licence Apache-2.0", "| ndcg@10 | 0.08 | 0.07 to 0.09 | made up |", "silorec bundle verify", "added after training: 2",
    ):  # fmt: skip
        assert said in text
    assert NOBODY not in text


def test_a_guarantee_is_never_rounded_to_look_better() -> None:
    assert "epsilon 8.01 at" in card(privacy__epsilon=8.0001).to_markdown()


@pytest.mark.parametrize("mode", ["none", "silo", "distributed"])
def test_a_card_that_protects_nobody_says_so_first(mode: str) -> None:
    lines = card(privacy__mode=mode, privacy__epsilon=None, privacy__delta=None).to_markdown().splitlines()
    assert lines[2].startswith(f"> **WARNING. {NOBODY}")
    assert sum(NOBODY in line for line in lines) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"privacy__mode": "none"}, "nobody is protected"),
        ({"privacy__delta": None}, "epsilon and delta go together"),
        ({"privacy__mode": "local"}, "privacy.mode"),
        ({"privacy__epsilon": -1.0}, "privacy.epsilon"),
        ({"privacy__delta": 1.0}, "privacy.delta"),
        ({"data__items": 0}, "data.items"),
        ({"data__items": "40"}, "data.items"),
        ({"data__items": 40.0}, "data.items"),
        ({"schema_version": 2}, "schema_version"),
        ({"more": 1}, "more"),
        ({"name": "two\nlines"}, "name: must be one line without control characters"),
        ({"name": "\x1b[31mred"}, "name: must be one line"),
        ({"name": "‮gnp.elbon"}, "name: must be one line"),
        ({"notes": ["x" * 5000]}, "notes.0"),
        ({"quality": [{"name": "x", "value": 1.0, "low": 0.5}]}, "an interval has a low end and a high end"),
        ({"quality": [{"name": "x", "value": 1.0, "low": 2.0, "high": 1.0}]}, "an interval has"),
    ],
    ids=str,
)
def test_what_is_no_card_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        card(**change)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{",
        b"[" * 100_000,
        b'{"name":' * 20_000,
        b'{"name": "a", "name": "b"}',
        b"9" * 5000,
        b"NaN",
    ],
    ids=lambda content: repr(content[:20]),
)
def test_broken_json_is_refused_in_one_sentence(content: bytes) -> None:
    with pytest.raises(BundleError) as error:
        Card.from_json(content)
    assert "\n" not in str(error.value)


def test_a_key_that_appears_twice_is_refused() -> None:
    content = tiny_card(40).to_json().replace(b'"epsilon": 8.0', b'"epsilon": 8.0, "epsilon": 0.1')
    with pytest.raises(BundleError, match="a key appears twice"):
        Card.from_json(content)


def test_not_a_number_is_no_figure() -> None:
    for value in (b"NaN", b"Infinity", b"1e999"):
        with pytest.raises(BundleError):
            Card.from_json(tiny_card(40).to_json().replace(b'"value": 0.08', b'"value": ' + value))


@given(text=st.text(max_size=60))
def test_no_text_becomes_markup(text: str) -> None:
    """A name cannot end its line, begin a heading, close the table or open a tag."""
    try:
        made = card(name="n", notes=[f"x{text}"], quality=[{"name": f"q{text}", "value": 1.0}])
    except BundleError:
        return
    reference = card(name="n", notes=["x"], quality=[{"name": "q", "value": 1.0}])
    lines, plain = made.to_markdown().split("\n"), reference.to_markdown().split("\n")
    assert len(lines) == len(plain)
    different = [(one, other) for one, other in zip(lines, plain, strict=True) if one != other]
    for one, other in different:
        bare = one.replace("\\\\", "")
        for mark in "<[`*_|#":
            assert bare.count(mark) - bare.count(f"\\{mark}") == other.count(mark)


JSON = st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda value: json.dumps(value).encode())


@given(content=st.binary(max_size=100) | JSON)
def test_no_bytes_make_the_parser_fail_otherwise(content: bytes) -> None:
    with pytest.raises(BundleError):
        Card.from_json(content)
