"""The consortium's roster: a file that people compare, and that is read strictly."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.privacy.signing import fingerprint
from common.secagg.roster import KeyRoster, read_roster, write_roster

NORTH, SOUTH, EAST = (f"{i:064x}" for i in (1, 2, 0xABCDEF))
ROSTER = KeyRoster(("north", "south", "east"), (NORTH, SOUTH, EAST))


def test_silo_number_i_is_the_entry_number_i(tmp_path: Path) -> None:
    read = read_roster(write_roster(tmp_path / "roster.toml", ROSTER))
    assert read == ROSTER
    assert dict(read.by_silo) == {0: NORTH, 1: SOUTH, 2: EAST}
    assert len(read) == 3


def test_a_roster_that_a_person_wrote_is_read(tmp_path: Path) -> None:
    entries = [f'[[silo]]\nname = "north"\nkey = "{NORTH}"', f'[[silo]]\nkey = "{SOUTH}"\nname = "south"']
    (tmp_path / "roster.toml").write_text("\n\n".join(["# agreed on the phone\nformat = 1", *entries]))
    assert read_roster(tmp_path / "roster.toml") == KeyRoster(("north", "south"), (NORTH, SOUTH))


def test_the_digest_is_of_the_keys_in_their_order() -> None:
    """Names are the operators' own; a key that is another one, or stands elsewhere, is another roster."""
    assert ROSTER.digest == hashlib.sha256(b"silorec-roster-1\0" + (NORTH + SOUTH + EAST).encode()).hexdigest()
    assert KeyRoster(("n", "s", "e"), ROSTER.keys).digest == ROSTER.digest
    others = [(SOUTH, NORTH, EAST), (NORTH, SOUTH), (NORTH, SOUTH, "0" * 64), (NORTH, SOUTH, EAST, "0" * 64)]
    assert len({ROSTER.digest, *(KeyRoster(tuple("abcd"[: len(keys)]), keys).digest for keys in others)}) == 5


def test_an_absent_silo_keeps_its_number_and_the_digest() -> None:
    without = KeyRoster(ROSTER.names, ROSTER.keys, frozenset({1}))
    assert without.digest == ROSTER.digest
    assert without.by_silo == ROSTER.by_silo
    assert len(without) == 3
    assert [line.endswith("(absent)") for line in without.describe().splitlines()] == [False, True, False]
    for beyond in (3, -1):
        with pytest.raises(ConfigError, match=f"silo {beyond} is said to be absent, and the roster has 3 silos"):
            KeyRoster(ROSTER.names, ROSTER.keys, frozenset({beyond}))


def test_a_roster_is_shown_with_fingerprints() -> None:
    lines = ROSTER.describe().splitlines()
    assert lines == [
        f"{i}: {name} {fingerprint(key)}" for i, (name, key) in enumerate(zip(ROSTER.names, ROSTER.keys, strict=True))
    ]


@pytest.mark.parametrize(
    ("names", "keys", "why"),
    [
        ((), (), "a name and a key for each silo, not 0 and 0"),
        (("a",), (NORTH, SOUTH), "a name and a key for each silo, not 1 and 2"),
        (("a", " "), (NORTH, SOUTH), "a silo of the roster has no name"),
        (("a", 5), (NORTH, SOUTH), "a silo of the roster has no name"),
        (("a", "b"), (NORTH, SOUTH.replace("0", "A")), "the roster's key of 'b' is no public key"),
        (("a", "b"), (NORTH, SOUTH[:-1]), "the roster's key of 'b' is no public key"),
        (("a", "b"), (NORTH, SOUTH + "\n"), "the roster's key of 'b' is no public key"),
        (("a", "b"), (NORTH, 7), "the roster's key of 'b' is no public key"),
        (("a", "b"), (NORTH, NORTH), f"the roster has the key '{NORTH}' more than once"),
        (("a", "a"), (NORTH, SOUTH), "the roster has the name 'a' more than once"),
    ],
)
def test_what_is_no_roster_is_refused(names: tuple[str, ...], keys: tuple[str, ...], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        KeyRoster(names, keys)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a roster of format 1"),
        ("format = 2\n[[silo]]\nname = 'a'\nkey = 'b'\n", "not a roster of format 1"),
        ("format = 1\n", "not a roster of format 1"),
        ("format = 1\nsilo = 'a'\n", "not a roster of format 1"),
        ("format = 1\nsilo = [1]\n", "not a roster of format 1"),
        ("format = 1\n[[silo]]\nname = 'a'\n", "not a roster of format 1"),
        ("format = 1\n[[silo]]\nname = 'a'\nkey = 'b'\nweight = 3\n", "not a roster of format 1"),
        ("format = 1\n[[silo]]\nname = 'a'\nkey = 'b'\n", "the roster's key of 'a' is no public key"),
        ("format = 1\n[[silo]]\nname = 'a'\nkey = 5\n", "the roster's key of 'a' is no public key"),
        ("format = 1\nsilo = []\n", "a name and a key for each silo, not 0 and 0"),
        ("format = ", "not a TOML file"),
    ],
)
def test_a_file_that_is_no_roster_is_refused_by_name(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "roster.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=why) as refusal:
        read_roster(path)
    assert str(path) in str(refusal.value)


def test_a_roster_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        read_roster(tmp_path / "nowhere.toml")


rosters = st.lists(
    st.tuples(st.text(min_size=1, max_size=20).filter(str.strip), st.binary(min_size=32, max_size=32).map(bytes.hex)),
    min_size=1,
    max_size=8,
    unique_by=(lambda entry: entry[0], lambda entry: entry[1]),
).map(lambda entries: KeyRoster(*map(tuple, zip(*entries, strict=True))))


@settings(max_examples=100, deadline=None)
@given(roster=rosters)
def test_a_roster_is_read_as_it_was_written(roster: KeyRoster, tmp_path_factory: pytest.TempPathFactory) -> None:
    read = read_roster(write_roster(tmp_path_factory.getbasetemp() / "written.toml", roster))
    assert read == roster
    assert read.digest == roster.digest
