"""Reading what silos send, and refusing whatever could carry more than a question.

A protocol buffer has many encodings: fields that the schema does not know, fields twice, in another order or not packed, numbers
padded with zero bits. Each of them could hold a mark by which a person is known again. So a message is accepted only in the one
encoding that the schema makes of its fields.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from common.proto import BATCH_LIMIT
from common.proto import recommender_pb2 as messages
from common.recommending import PAD, SLOTS
from server.serving.refusal import malformed

FINGERPRINT_BYTES: Final = 32
_ROW: Final = struct.Struct(f"<{SLOTS}I")

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Questions:
    """Histories to be answered from one bundle.

    ``catalogue`` is the fingerprint of the catalogue in which they count, 32 bytes; each history has at most ``SLOTS`` positions,
    oldest first, which are not compared with a catalogue yet.
    """

    catalogue: bytes
    histories: tuple[tuple[int, ...], ...]


def read(kind: type[M], raw: bytes) -> M:
    """The message in ``raw``.

    Raises
    ------
    Refused
        If it is no such message, or not in the encoding that the schema makes of its fields.
    """
    try:
        message = kind.FromString(raw)
    except DecodeError:
        raise malformed(f"this is not a {kind.DESCRIPTOR.full_name}") from None
    if len(UnknownFieldSet(message)):  # of this message: a request has no message inside it
        raise malformed(f"a {kind.DESCRIPTOR.name} has fields that the schema does not know; send none but its own")
    if message.SerializeToString() != raw:
        raise malformed(
            f"a {kind.DESCRIPTOR.name} must be encoded as the schema writes it: fields in order, once, numbers packed"
        )
    return message


def read_question(raw: bytes) -> Questions:
    """A ``RecommendRequest``; :class:`Refused` if it is malformed."""
    message = read(messages.RecommendRequest, raw)
    if len(message.history) != SLOTS:
        raise malformed(f"a history has {SLOTS} slots, this one {len(message.history)}; fill unused ones with 0x{PAD:X}")
    return _questions(message.catalogue, raw, 1)


def read_batch(raw: bytes) -> Questions:
    """A ``RecommendBatchRequest``; :class:`Refused` if it is malformed."""
    message = read(messages.RecommendBatchRequest, raw)
    count, rest = divmod(len(message.histories), SLOTS)
    if rest:
        raise malformed(f"histories have {SLOTS} slots each; {len(message.histories)} slots make no whole number of them")
    if not 1 <= count <= BATCH_LIMIT:
        raise malformed(f"{count} histories; a batch has 1 to {BATCH_LIMIT}")
    return _questions(message.catalogue, raw, count)


def check_positions(questions: Questions, n_items: int) -> None:
    """Refuse a history with an item that the catalogue lacks."""
    for history in questions.histories:
        if history and max(history) >= n_items:
            raise malformed(f"a history holds a position outside the catalogue, which has {n_items} items, counted from 0")


def _questions(catalogue: bytes, raw: bytes, count: int) -> Questions:
    if len(catalogue) != FINGERPRINT_BYTES:
        raise malformed(f"a catalogue's fingerprint has {FINGERPRINT_BYTES} bytes, this one {len(catalogue)}")
    # The last field: its encoding was compared, and packed numbers end a message. A copy, not a view: CPython 3.11 crashes when
    # it collects a view in the traceback of an exception while something reads from it.
    packed = raw[-_ROW.size * count :]
    return Questions(catalogue, tuple(_history(row) for row in _ROW.iter_unpack(packed)))


def _history(row: tuple[int, ...]) -> tuple[int, ...]:
    shown = SLOTS - row.count(PAD)
    history = row[:shown]
    if PAD in history:
        raise malformed("a history's unused slots come last; one holds an item behind an unused slot")
    return history
