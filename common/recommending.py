"""Sizes of an anonymous question and its answer, on which silos and the coordinator's service agree.

Every question has as many slots and every answer as many items, whoever asks: a message's length says nothing about a person.
"""

from __future__ import annotations

from typing import Final

SLOTS: Final = 32
"""Items in a question, unused ones filled with :data:`PAD`."""

PAD: Final = 0xFFFF_FFFF
"""No item; an item's position in the catalogue is below it."""

ANSWERS: Final = 100
"""Items in an answer, best first, padded where the catalogue has fewer. What the person has met is taken out by the silo."""
