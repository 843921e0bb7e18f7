"""The bytes of each stage: one spelling for each list, and nothing else is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import SecAggError
from common.secagg.context import MAX_SILOS, RoundContext
from common.secagg.keys import Advertisement
from common.secagg.messages import (
    BOX_RECORD,
    SIGNATURE_RECORD,
    Secret,
    pack,
    pack_advertisements,
    pack_revealed,
    pack_survivors,
    round_id,
    survivors_statement,
    unpack,
    unpack_advertisements,
    unpack_revealed,
    unpack_survivors,
)
from common.secagg.shamir import P, Share

numbers = st.integers(0, MAX_SILOS - 1)
keys = st.binary(min_size=32, max_size=32)
ads = st.lists(
    st.builds(Advertisement, numbers, keys, keys, st.binary(min_size=64, max_size=64)), max_size=8, unique_by=lambda ad: ad.silo
)
revealed = st.dictionaries(
    numbers, st.tuples(st.sampled_from(Secret), st.builds(Share, numbers, st.integers(0, P - 1))), max_size=8
)

READERS: dict[str, Callable[[bytes], object]] = {
    "advertisements": unpack_advertisements,
    "boxes": lambda data: unpack(data, BOX_RECORD, "boxes"),
    "survivors": unpack_survivors,
    "signatures": lambda data: unpack(data, SIGNATURE_RECORD, "signatures"),
    "revealed": unpack_revealed,
}
WRITERS: dict[str, Callable[..., bytes]] = {
    "advertisements": pack_advertisements,
    "boxes": pack,
    "survivors": pack_survivors,
    "signatures": pack,
    "revealed": pack_revealed,
}
SIZES = {"advertisements": 132, "boxes": 172, "survivors": 4, "signatures": 68, "revealed": 75}


@given(ads, st.randoms(use_true_random=False))
def test_advertisements_are_read_as_they_were_written_in_one_order(list_: list[Advertisement], shuffle: object) -> None:
    written = pack_advertisements(list_)
    shuffle.shuffle(list_)  # type: ignore[attr-defined]
    assert pack_advertisements(list_) == written
    assert list(unpack_advertisements(written)) == sorted(list_, key=lambda ad: ad.silo)
    assert len(written) == 132 * len(list_)


@given(st.dictionaries(numbers, st.binary(min_size=168, max_size=168), max_size=8))
def test_records_are_read_as_they_were_written(records: dict[int, bytes]) -> None:
    read = unpack(pack(records), BOX_RECORD, "boxes")
    assert read == records
    assert list(read) == sorted(records)


@given(st.sets(numbers, max_size=12))
def test_survivors_are_read_as_they_were_written(survivors: set[int]) -> None:
    assert unpack_survivors(pack_survivors(survivors)) == tuple(sorted(survivors))


@given(revealed)
def test_revealed_shares_are_read_as_they_were_written(shares: dict[int, tuple[Secret, Share]]) -> None:
    written = pack_revealed(shares)
    assert unpack_revealed(written) == shares
    assert len(written) == 75 * len(shares)


@settings(max_examples=300)
@given(st.sampled_from(sorted(READERS)), st.data())
def test_what_is_read_has_one_spelling(kind: str, data: st.DataObject) -> None:
    """Any bytes are refused, or are just what is written for what was read: so two silos that compare bytes compare meanings."""
    small = st.integers(0, 3).map(lambda i: bytes([0, 0, 0, i]))
    record = st.tuples(small, st.binary(min_size=SIZES[kind] - 4, max_size=SIZES[kind] - 4)).map(b"".join)
    content = data.draw(st.one_of(st.binary(max_size=300), st.lists(record, max_size=4).map(b"".join)))
    try:
        read = READERS[kind](content)
    except SecAggError:
        return
    assert WRITERS[kind](read) == content


@pytest.mark.parametrize("kind", READERS)
def test_lists_out_of_order_with_repeats_cut_off_or_of_silos_that_cannot_be_are_refused(kind: str) -> None:
    size = SIZES[kind]

    def record(number: int) -> bytes:
        return number.to_bytes(4, "big") + bytes(size - 4)

    read = READERS[kind]
    read(b"")
    read(record(1) + record(2) + record(65535))
    for bad in (record(2) + record(1), record(1) + record(1), record(0) + record(2) + record(1)):
        with pytest.raises(SecAggError, match="silos are not in the order of their numbers, each once"):
            read(bad)
    for bad in (record(1)[:-1], record(1) + b"\0", b"\0", record(1) + record(2)[:-3]):
        with pytest.raises(SecAggError, match=f"not a list of records of {size} bytes"):
            read(bad)
    for number in (65536, 2**32 - 1):
        with pytest.raises(SecAggError, match="a silo's number is whole, from 0 to 65535"):
            read(record(number))
    for other in (None, "text", bytearray(record(1)), 5):
        with pytest.raises(SecAggError, match="not a list of records"):
            read(other)  # type: ignore[arg-type]


def test_a_revealed_share_is_of_one_of_two_kinds_and_of_the_field() -> None:
    good = pack_revealed({3: (Secret.SEED, Share(1, 5))})
    assert unpack_revealed(good) == {3: (Secret.SEED, Share(1, 5))}
    with pytest.raises(SecAggError, match="a revealed share of silo 3 is of no known kind"):
        unpack_revealed(good[:4] + b"\2" + good[5:])
    with pytest.raises(SecAggError, match="the share of silo 1 is no element of the field"):
        unpack_revealed(good[:9] + P.to_bytes(66, "big"))


def test_numbers_that_are_none_are_not_packed() -> None:
    for bad in (-1, MAX_SILOS, True, 1.0, "1"):
        with pytest.raises(SecAggError, match="a silo's number is whole"):
            pack_survivors([bad])  # type: ignore[list-item]


def test_the_name_of_an_attempt_is_a_hash_of_nonce_and_question() -> None:
    nonce, question = bytes(range(32)), "ab" * 32
    name = round_id(nonce, question)
    assert name == hashlib.sha256(b"silorec-secagg-round-1\0" + nonce + bytes.fromhex(question)).digest()
    assert len({name, round_id(bytes(32), question), round_id(nonce, "ac" * 32)}) == 3


@pytest.mark.parametrize(
    ("nonce", "question", "why"),
    [
        (bytes(31), "ab" * 32, "the nonce of a round has 32 bytes"),
        (bytes(33), "ab" * 32, "the nonce of a round has 32 bytes"),
        ("x" * 32, "ab" * 32, "the nonce of a round has 32 bytes"),
        (bytes(32), "ab" * 31, "a question's digest has 64 hex characters"),
        (bytes(32), "", "a question's digest has 64 hex characters"),
        (bytes(32), "xy" * 32, "a question's digest has 64 hex characters"),
        (bytes(32), None, "a question's digest has 64 hex characters"),
        (bytes(32), bytes(32), "a question's digest has 64 hex characters"),
    ],
)
def test_a_name_is_made_of_nothing_else(nonce: bytes, question: str, why: str) -> None:
    with pytest.raises(SecAggError, match=why):
        round_id(nonce, question)


def test_no_two_sets_graphs_rounds_or_runs_have_the_same_statement() -> None:
    context = RoundContext("ab" * 32, bytes(32))
    said = [
        survivors_statement(context, bytes(32), (0, 1, 2)),
        survivors_statement(context, bytes(32), (0, 1)),
        survivors_statement(context, bytes(32), (0, 1, 3)),
        survivors_statement(context, bytes(32), (0, 1, 2, 3)),
        survivors_statement(context, bytes([1]) + bytes(31), (0, 1, 2)),
        survivors_statement(RoundContext("ac" * 32, bytes(32)), bytes(32), (0, 1, 2)),
        survivors_statement(RoundContext("ab" * 32, bytes([1]) + bytes(31)), bytes(32), (0, 1, 2)),
        context.bind("advertisement", bytes(32), *(bytes([0, 0, 0, i]) for i in range(3))),
    ]
    assert len(set(said)) == len(said)
    assert survivors_statement(context, bytes(32), (2, 0, 1)) == said[0]
