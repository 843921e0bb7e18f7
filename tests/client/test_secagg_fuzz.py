"""Whatever bytes a coordinator sends at any stage: a silo answers what could be honest, and refuses the rest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from client.secagg import RamMemory
from common.errors import SecAggError
from common.secagg.context import MAX_SILOS
from tests.secure_silos import Attempt, Consortium

#: Six silos: a sum takes four, a secret four shares, and the survivors four signatures.
N, LEAST = 6, 4
STAGES = ("share", "mask", "sign", "reveal")


@dataclass(frozen=True)
class Open:
    """Silo 0 before one stage: what it remembers, the honest records of the stage's message, and others that fit its form.

    ``needed`` of the honest records make a message that a coordinator could send in good faith; ``own`` must be among them.
    """

    silos: Consortium
    attempt: Attempt
    state: dict[str, Any]
    ask: Callable[[bytes], object]
    honest: Sequence[bytes]
    others: Sequence[bytes]
    needed: int
    own: bytes | None = None

    @property
    def size(self) -> int:
        return len(self.honest[0])

    def could_be_honest(self, payload: bytes) -> bool:
        records = records_of(payload, self.size)
        in_order = [record for record in self.honest if record in records]
        return (
            len(payload) % self.size == 0
            and records == in_order
            and len(records) >= self.needed
            and (self.own is None or self.own in records)
        )


def records_of(payload: bytes, size: int) -> list[bytes]:
    return [payload[start : start + size] for start in range(0, len(payload), size)]


def opened(stage: str) -> Open:
    """A consortium that has come as far as ``stage``, after a round that it went through to the end."""
    silos = Consortium(N)
    old = Attempt(silos).until("reveal")
    attempt = Attempt(silos).until(stage)
    silo, words = silos.participant(0), np.arange(5, dtype=np.uint32)

    def mask(payload: bytes) -> object:
        vector = words.copy()
        try:
            silo.mask(attempt.round_id, payload, vector)
        except SecAggError:
            np.testing.assert_array_equal(vector, words)
            raise
        return vector

    asks: dict[str, Callable[[bytes], object]] = {
        "share": lambda payload: silo.share(attempt.round_id, payload),
        "mask": mask,
        "sign": lambda payload: silo.sign(attempt.round_id, payload),
        "reveal": lambda payload: silo.reveal(attempt.round_id, payload),
    }
    honest, others, needed, own = {
        "share": (attempt.advertisements, old.advertisements, LEAST, 0),
        "mask": (attempt.boxes.get(0, b""), attempt.boxes.get(1, b"") + old.boxes[0], LEAST - 1, None),
        "sign": (attempt.survivors, b"".join(i.to_bytes(4, "big") for i in (6, 7, 65535, 65536, 2**32 - 1)), LEAST, 0),
        "reveal": (b"".join(silo.to_bytes(4, "big") + s for silo, s in attempt.signed.items()), old.signatures, LEAST, None),
    }[stage]
    size = {"share": 132, "mask": 172, "sign": 4, "reveal": 68}[stage]
    records = records_of(honest, size)
    assert len(records) == (N - 1 if stage == "mask" else N)
    return Open(
        silos,
        attempt,
        silos.state(0),
        asks[stage],
        records,
        records_of(others, size),
        needed,
        None if own is None else records[own],
    )


OPEN = {stage: opened(stage) for stage in STAGES}

anything = st.binary(max_size=800)
picks = st.lists(st.integers(0, 15), max_size=10)
bits = st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=3)
cuts = st.integers(0, 200)


@st.composite
def payloads(draw: st.DrawFn, stage: str) -> bytes:
    """Noise; or honest and other records in any choice and order, often all honest ones, with bytes changed and cut off."""
    at = OPEN[stage]
    kind = draw(st.sampled_from(["noise", "mixed", "mixed", "fewer", "changed"]))
    if kind == "noise":
        return draw(anything)
    pool = [*at.honest, *at.others]
    if kind == "mixed":
        chosen = [pool[i % len(pool)] for i in draw(picks)]
    elif kind == "fewer":
        gone = draw(st.sets(st.integers(0, N), max_size=3))
        chosen = [record for i, record in enumerate(at.honest) if i not in gone]
    else:
        chosen = list(at.honest)
    payload = bytearray(b"".join(chosen))
    if kind == "changed" and payload:
        for place, change in draw(bits):
            payload[place % len(payload)] ^= change
        if draw(st.booleans()):
            payload = payload[: -draw(cuts)]
    return bytes(payload)


def check(stage: str, payload: bytes) -> bool:
    """One message to a silo that is as it was before the stage; whether it answered."""
    at = OPEN[stage]
    memory = at.silos.memories[0]
    assert isinstance(memory, RamMemory)
    memory._state = copy.deepcopy(at.state)
    if at.could_be_honest(payload):
        assert at.ask(payload) is not None
        assert at.silos.state(0) != at.state
        return True
    with pytest.raises(SecAggError, match=r"\w \w"):
        at.ask(payload)
    assert at.silos.state(0) == at.state
    return False


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_answers_honest_messages_and_those_with_silos_left_out(stage: str) -> None:
    """So the properties below do not hold because everything is refused."""
    at = OPEN[stage]
    assert check(stage, b"".join(at.honest))
    assert check(stage, b"".join(at.honest[: at.needed]))
    assert not check(stage, b"".join(at.honest[: at.needed - 1]))


@settings(max_examples=250, deadline=None)
@given(payloads("share"))
@example(b"")
def test_no_list_of_keys_but_an_honest_one_is_taken(payload: bytes) -> None:
    check("share", payload)


@settings(max_examples=250, deadline=None)
@given(payloads("mask"))
@example(b"")
def test_no_sealed_shares_but_honest_ones_are_taken(payload: bytes) -> None:
    check("mask", payload)


@settings(max_examples=250, deadline=None)
@given(payloads("sign"))
@example(b"")
def test_no_survivors_but_possible_ones_are_signed(payload: bytes) -> None:
    check("sign", payload)


@settings(max_examples=250, deadline=None)
@given(payloads("reveal"))
@example(b"")
def test_nothing_but_a_quorum_of_signatures_opens_anything(payload: bytes) -> None:
    check("reveal", payload)


@pytest.mark.parametrize("stage", STAGES)
def test_enormous_messages_are_refused(stage: str) -> None:
    size = OPEN[stage].size
    numbers = [i.to_bytes(4, "big") for i in range(MAX_SILOS + 1)]
    for payload in (
        bytes(size * (MAX_SILOS + 1)),
        b"\xff" * (size * 1000),
        b"".join(OPEN[stage].honest) * 1000,
        b"".join(number + bytes(size - 4) for number in numbers),
        b"".join(number + bytes(size - 4) for number in numbers[:-1]),
    ):
        assert not check(stage, payload)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=70), st.sampled_from(STAGES))
def test_no_other_name_of_a_round_is_taken(name: bytes, stage: str) -> None:
    at = OPEN[stage]
    silo, honest = at.silos.participant(0), b"".join(at.honest)
    memory = at.silos.memories[0]
    assert isinstance(memory, RamMemory)
    memory._state = copy.deepcopy(at.state)
    for ask in (
        lambda: silo.share(name, honest),
        lambda: silo.receive(name, honest),
        lambda: silo.mask(name, honest, np.zeros(5, np.uint32)),
        lambda: silo.sign(name, honest),
        lambda: silo.reveal(name, honest),
    ):
        with pytest.raises(SecAggError, match=r"no round of this name is open here|round_id: must be 32 bytes"):
            ask()
    if len(name) != 32:
        with pytest.raises(SecAggError, match="round_id: must be 32 bytes"):
            silo.advertise(name)
    assert at.silos.state(0) == at.state
