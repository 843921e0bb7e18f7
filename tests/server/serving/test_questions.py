"""A question is accepted in one encoding only, and has room for a catalogue and a history, nothing else."""

from __future__ import annotations

import gc
import struct

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.proto import BATCH_LIMIT
from common.proto import recommender_pb2 as messages
from common.recommending import PAD, SLOTS
from server.serving.questions import check_positions, read, read_batch, read_question
from server.serving.refusal import Refused

CATALOGUE = bytes(range(32))


def slots(*history: int) -> list[int]:
    return [*history, *[PAD] * (SLOTS - len(history))]


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field, by the rules of the wire format."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes((value & 127 | 128,)), value >> 7
    return out + bytes((value,))


def packed(values: list[int]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


HISTORY = slots(5, 6, 7)
GOOD = field(1, CATALOGUE) + field(2, packed(HISTORY))


def refused(raw: bytes) -> str:
    with pytest.raises(Refused) as caught:
        read_question(raw)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    return caught.value.sentence


def test_the_one_encoding_is_what_the_schema_makes() -> None:
    assert messages.RecommendRequest(catalogue=CATALOGUE, history=HISTORY).SerializeToString() == GOOD
    asked = read_question(GOOD)
    assert (asked.catalogue, asked.histories) == (CATALOGUE, ((5, 6, 7),))


@pytest.mark.parametrize(
    "raw",
    [
        GOOD + field(3, b"user 42"),
        field(3, b"user 42") + GOOD,
        GOOD + varint(4 << 3) + varint(42),
        GOOD + varint(77 << 3 | 5) + b"\x2a\0\0\0",
        GOOD + varint(7 << 3 | 3) + varint(7 << 3 | 4),
        GOOD + varint(536_870_911 << 3 | 1) + bytes(8),
    ],
    ids=["behind", "before", "number", "fixed32", "group", "highest"],
)
def test_a_field_that_the_schema_does_not_know_is_refused_wherever_it_is(raw: bytes) -> None:
    assert "fields that the schema does not know" in refused(raw)


@pytest.mark.parametrize(
    "raw",
    [
        field(2, packed(HISTORY)) + field(1, CATALOGUE),
        field(1, CATALOGUE) + field(1, CATALOGUE) + field(2, packed(HISTORY)),
        field(1, CATALOGUE) + field(2, packed(HISTORY[:10])) + field(2, packed(HISTORY[10:])),
        field(1, CATALOGUE) + b"".join(varint(2 << 3 | 5) + packed([value]) for value in HISTORY),
        b"\x8a\x00" + GOOD[1:],
        GOOD[:1] + b"\xa0\x00" + GOOD[2:],
        field(1, CATALOGUE) + field(2, packed(HISTORY)) + field(2, b""),
    ],
    ids=["other order", "twice", "two pieces", "not packed", "long tag", "long length", "an empty piece"],
)
def test_another_encoding_of_the_same_question_is_refused(raw: bytes) -> None:
    """Each of them parses, to the same fields: a choice among encodings could carry a mark."""
    parsed = messages.RecommendRequest.FromString(raw)
    assert (parsed.catalogue, list(parsed.history)) == (CATALOGUE, HISTORY)
    assert "must be encoded as the schema writes it" in refused(raw)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "a history has 32 slots, this one 0"),
        (b"\xff\xff\xff", "this is not a silorec.v1.RecommendRequest"),
        (GOOD[:-1], "this is not a silorec.v1.RecommendRequest"),
        (field(1, CATALOGUE) + field(2, packed(HISTORY[:-1])), "a history has 32 slots, this one 31"),
        (field(1, CATALOGUE) + field(2, packed([*HISTORY, PAD])), "a history has 32 slots, this one 33"),
        (field(1, CATALOGUE[:-1]) + field(2, packed(HISTORY)), "fingerprint has 32 bytes, this one 31"),
        (field(2, packed(HISTORY)), "fingerprint has 32 bytes, this one 0"),
        (field(1, CATALOGUE) + field(2, packed([PAD, 5, *[PAD] * 30])), "an item behind an unused slot"),
        (field(1, CATALOGUE) + field(2, packed([*[PAD] * 31, 5])), "an item behind an unused slot"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(raw: bytes, said: str) -> None:
    assert said in refused(raw)


def test_empty_and_full_histories_are_questions_too() -> None:
    for history in ((), tuple(range(SLOTS))):
        raw = messages.RecommendRequest(catalogue=CATALOGUE, history=slots(*history)).SerializeToString()
        assert len(raw) == len(GOOD)
        assert read_question(raw).histories == (history,)


def test_a_batch_has_one_to_sixty_four_histories() -> None:
    def batch(n: int, extra: int = 0) -> bytes:
        flat = [slot for place in range(n) for slot in slots(place, place + 1)] + [PAD] * extra
        return bytes(messages.RecommendBatchRequest(catalogue=CATALOGUE, histories=flat).SerializeToString())

    assert read_batch(batch(BATCH_LIMIT)).histories == tuple((place, place + 1) for place in range(BATCH_LIMIT))
    for raw, said in (
        (batch(0), "0 histories; a batch has 1 to 64"),
        (batch(BATCH_LIMIT + 1), "65 histories; a batch has 1 to 64"),
        (batch(2, 5), "69 slots make no whole number"),
    ):
        with pytest.raises(Refused, match=said):
            read_batch(raw)


def test_positions_outside_the_catalogue_are_refused_and_not_repeated() -> None:
    asked = read_question(messages.RecommendRequest(catalogue=CATALOGUE, history=slots(39, 40)).SerializeToString())
    check_positions(asked, 41)
    with pytest.raises(Refused, match="outside the catalogue, which has 40 items") as caught:
        check_positions(asked, 40)
    assert "39" not in caught.value.sentence


def test_a_request_without_fields_is_empty() -> None:
    assert read(messages.GetCardRequest, b"") == messages.GetCardRequest()
    for raw in (field(1, b"user 42"), b"\x08\x01"):
        with pytest.raises(Refused, match="fields that the schema does not know"):
            read(messages.GetCardRequest, raw)
    with pytest.raises(Refused, match="must be encoded"):
        read(messages.GetBundleRequest, b"\x10\x00")  # an offset of 0, which the schema does not write


def test_refusals_can_be_collected_as_garbage() -> None:
    """Exceptions that are kept hold their tracebacks; CPython 3.11 once crashed here on a view of the message's bytes."""
    raw = field(1, CATALOGUE) + field(2, packed([PAD, 5, *[PAD] * 30]))

    def refuse() -> None:
        try:
            read_question(raw)
        except Refused as error:
            kept = error  # noqa: F841  a circle: the exception, its traceback, this frame

    for _ in range(2):
        for _ in range(50):
            refuse()
        gc.collect()


@given(history=st.lists(st.integers(0, PAD - 1), max_size=SLOTS), catalogue=st.binary(min_size=32, max_size=32))
def test_every_history_comes_through(history: list[int], catalogue: bytes) -> None:
    raw = messages.RecommendRequest(catalogue=catalogue, history=slots(*history)).SerializeToString()
    asked = read_question(raw)
    assert (asked.catalogue, asked.histories) == (catalogue, (tuple(history),))


@given(at=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
def test_no_two_byte_strings_are_the_same_question(at: int, byte: int) -> None:
    """Whatever one byte is changed to: refused, or another question."""
    raw = GOOD[:at] + bytes((byte,)) + GOOD[at + 1 :]
    try:
        asked = read_question(raw)
    except Refused:
        return
    assert (asked.catalogue, asked.histories) != (CATALOGUE, ((5, 6, 7),)) or raw == GOOD


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_or_the_encoding_of_what_they_say(raw: bytes) -> None:
    try:
        asked = read_question(raw)
    except Refused:
        return
    assert raw == messages.RecommendRequest(catalogue=asked.catalogue, history=slots(*asked.histories[0])).SerializeToString()
