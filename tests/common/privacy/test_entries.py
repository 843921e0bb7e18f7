"""An exported ledger is whole or it is refused, byte by byte; and what it says is held against its own policy."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import LedgerError
from common.privacy.entries import Chain, Verifier, export, read_export
from common.privacy.entry import (
    NOTHING,
    Amendment,
    Closing,
    Commitment,
    Countersignature,
    Entry,
    Opening,
    Reservation,
    countersign,
    countersigned,
)
from common.privacy.events import NEIGHBOURS, UNIT, Event, GaussianCount, Unprotected, event_to_dict
from common.privacy.filter import epsilon_at, rdp_at
from common.privacy.policy import Policy
from common.privacy.signing import SigningKey
from tests.common.privacy.ledgers import (
    AUDITOR,
    COORDINATOR,
    COUNT,
    DAY,
    RUN,
    SILO,
    START,
    digest,
    full_ledger,
    key_of,
    policy,
    quick_folder,
    shared_step,
    steps,
)

DELTA = 1e-5


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    place = quick_folder()
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def exported(folder: Path) -> bytes:
    return full_ledger(folder / "north").export()


@pytest.fixture(scope="module")
def others(folder: Path) -> list[bytes]:
    """Exports of another silo, of the same silo's other ledger, and of a ledger that went the same way for a while."""
    return [
        full_ledger(folder / "south", silo=key_of("south")).export(),
        full_ledger(folder / "second", epsilon_per_run=7.0).export(),
        full_ledger(folder / "longer", rounds=4).export(),
    ]


class Forger:
    """Writes a ledger by hand, with the silo's key, whatever it says."""

    def __init__(self, limits: Policy | None = None, key: SigningKey = SILO) -> None:
        self.key, self.entries, self.time = key, list[Entry](), int(START)
        self.limits = (limits or policy()).resolved()
        self.rdp = 0.0
        self.say(Opening(self.limits.silo, key.public_key, self.limits.to_dict(), UNIT, NEIGHBOURS, "a forger"))

    def say(self, what: Any, **place: Any) -> Entry:
        last = self.entries[-1] if self.entries else None
        where = {"seq": len(self.entries), "time": self.time, "previous": last.hash if last else NOTHING, **place}
        entry = Entry.signed(where["seq"], where["time"], where["previous"], what, self.key)
        self.entries.append(entry)
        return entry

    def reserve(self, event: Event, **said: Any) -> Entry:
        order = self.limits.order
        assert order is not None
        self.rdp += rdp_at(event, order)
        right = epsilon_at(self.rdp, order, self.limits.delta)
        fields: dict[str, Any] = {
            "run": RUN,
            "coordinator": COORDINATOR.public_key,
            "mode": "silo",
            "declared_users": None,
            "action": "train",
            "round": event.round,
            "question": digest("question"),
            "event": event_to_dict(event),
            "epsilon": right if right < float("inf") else None,
        }
        return self.say(Reservation(**{**fields, **said}))

    def export(self) -> bytes:
        return export(Chain(tuple(self.entries)), self.key)

    def read(self) -> Chain:
        return read_export(self.export())


def lines_of(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def named(error: LedgerError) -> int:
    """The entry that a message names; the head line is called by the entry before it."""
    text = str(error)
    for start, shift in (("entry ", 0), ("head line, after entry ", 1), ("after entry ", 1)):
        if text.startswith(start):
            return int(text.removeprefix(start).split(":")[0]) + shift
    raise AssertionError(f"no entry is named: {text}")


def broken(data: bytes) -> int:
    """The entry at which reading ``data`` stops."""
    with pytest.raises(LedgerError) as caught:
        read_export(data)
    return named(caught.value)


def test_an_export_is_read_back_whole(exported: bytes, folder: Path) -> None:
    chain = read_export(exported)
    assert [entry.type for entry in chain.entries] == [
        "opening", "reservation", "commitment", "reservation", "commitment", "reservation", "commitment", "reservation",
        "countersignature", "amendment", "reservation", "closing", "countersignature",
    ]  # fmt: skip
    assert export(chain, SILO) == exported
    assert (chain.silo, chain.public_key, chain.closed, chain.findings) == ("north", SILO.public_key, True, ())
    assert (chain.policies[0][1].epsilon, chain.policies[1][0], chain.policy.epsilon) == (8.0, 9, 9.0)
    assert [entry.seq for entry in chain.open_reservations] == [7, 10]
    assert {seq: entry.seq for seq, entry in chain.commitments.items()} == {1: 2, 3: 4, 5: 6}
    assert len(chain.spending().charges) == len(chain.reservations) == 5


def test_hash_and_signature_are_what_the_format_says(exported: bytes) -> None:
    """With hashlib, json and cryptography alone."""
    previous = "0" * 64
    *lines, head = [json.loads(line) for line in lines_of(exported)]
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(lines[0]["entry"]["public_key"]))

    def canonical(value: Any) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    for line in lines:
        assert line["entry"]["previous"] == previous
        previous = hashlib.sha256(b"silorec-ledger-entry-1\0" + canonical(line["entry"])).hexdigest()
        assert line["hash"] == previous
        public.verify(bytes.fromhex(line["signature"]), bytes.fromhex(previous))
    assert head["head"] == {"entries": len(lines), "hash": previous, "silo": "north"}
    signed = hashlib.sha256(b"silorec-ledger-head-1\0" + canonical(head["head"])).digest()
    public.verify(bytes.fromhex(head["signature"]), signed)
    with pytest.raises(InvalidSignature):
        public.verify(bytes.fromhex(head["signature"]), signed[::-1])


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_byte_that_is_changed_is_found_and_its_entry_named(exported: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(exported) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != exported[place]))
    altered = exported[:place] + bytes([value]) + exported[place + 1 :]
    assert broken(altered) == exported[:place].count(b"\n")


def test_every_byte_of_an_entry_and_of_the_head_line_counts(exported: bytes) -> None:
    """One bit of each byte of the shortest entry, and of the head line; a different one from byte to byte."""
    lines = lines_of(exported)
    for number in (min(range(len(lines) - 1), key=lambda n: len(lines[n])), len(lines) - 1):
        start = sum(map(len, lines[:number]))
        for place in range(len(lines[number])):
            altered = bytearray(exported)
            altered[start + place] ^= 1 << place % 8
            assert broken(bytes(altered)) == number


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_byte_that_is_put_in_or_taken_out_is_found(exported: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(exported) - 1))
    if data.draw(st.booleans()):
        altered = exported[:place] + data.draw(st.binary(min_size=1, max_size=3)) + exported[place:]
    else:
        altered = exported[:place] + exported[place + 1 :]
    if altered == exported:
        return
    assert abs(broken(altered) - exported[:place].count(b"\n")) <= 1


@pytest.mark.parametrize(
    ("written", "otherwise"),
    [
        (b'"delta":1e-05', b'"delta":1E-05'),
        (b'"delta":1e-05', b'"delta":0.00001'),
        (b'"epsilon":8.0', b'"epsilon":8.00'),
        (b'"format":1,', b'"format": 1,'),
        (b'"format":1,', b'"format":1 ,'),
        (b'"format":1,', b'"format":1,"format":1,'),
        (b'"silo":"north"', b'"silo":"\\u006eorth"'),
        (b'"silo":"north"', b'"silo":\t"north"'),
        (b'{"entry"', b' {"entry"'),
        (b'{"entry"', b'\xef\xbb\xbf{"entry"'),
        (b"}\n", b"}\r\n"),
        (b"}\n", b"} \n"),
    ],
)
def test_the_same_said_in_other_bytes_is_found(exported: bytes, written: bytes, otherwise: bytes) -> None:
    """JSON has many ways to write a value; hash and signature are of what is said, so the form is checked by itself."""
    assert exported.index(written) <= exported.index(b"\n")
    assert broken(exported.replace(written, otherwise, 1)) == 0


def test_any_cut_is_found(exported: bytes) -> None:
    for end in {*range(0, len(exported), 97), *(len(exported) - n for n in range(1, 400))}:
        with pytest.raises(LedgerError):
            read_export(exported[:end])


def test_a_line_that_is_removed_is_found_where_it_was(exported: bytes) -> None:
    lines = lines_of(exported)
    for number in range(len(lines)):
        at = broken(b"".join(lines[:number] + lines[number + 1 :]))
        assert at == number if number < len(lines) - 1 else at == number - 1


def test_lines_that_change_places_are_found_at_the_first(exported: bytes) -> None:
    lines = lines_of(exported)
    for one in range(len(lines)):
        for two in range(one + 1, len(lines)):
            swapped = list(lines)
            swapped[one], swapped[two] = swapped[two], swapped[one]
            assert broken(b"".join(swapped)) == one


def test_a_line_that_is_there_twice_is_found_wherever_it_is_put(exported: bytes) -> None:
    lines = lines_of(exported)
    for number in range(len(lines)):
        for place in range(len(lines) + 1):
            twice = [*lines[:place], lines[number], *lines[place:]]
            differs = next(i for i, line in enumerate(twice) if i >= len(lines) or line != lines[i])
            assert broken(b"".join(twice)) == min(differs, len(lines) - 1)


def test_a_line_of_another_ledger_is_found_wherever_it_is_put(exported: bytes, others: list[bytes]) -> None:
    """Of another silo; of another ledger with the same key; of a ledger with the same key, policy and first entries."""
    lines = lines_of(exported)
    for other in others:
        for foreign in lines_of(other):
            for place in range(len(lines)):
                if foreign == lines[place]:
                    continue
                assert broken(b"".join([*lines[:place], foreign, *lines[place + 1 :]])) in (place, place + 1)
                assert broken(b"".join([*lines[:place], foreign, *lines[place:]])) in (place, place + 1)


def test_the_removal_of_the_last_entries_shows_unless_the_silo_itself_signs_it(exported: bytes) -> None:
    *lines, head = lines_of(exported)
    for kept in range(1, len(lines)):
        assert broken(b"".join([*lines[:kept], head])) == kept
        verifier = Verifier()
        for line in lines[:kept]:
            verifier.accept(verifier.check(line))
        again = read_export(export(verifier.chain(), SILO))
        assert read_export(exported).extends(again)
        assert not again.extends(read_export(exported))
        with pytest.raises(LedgerError, match=rf"head line, after entry {kept - 1}: the signature is not that of the silo"):
            read_export(export(verifier.chain(), AUDITOR))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\n\n\n",
        b"{}\n{}\n",
        b"[]\n[]\n",
        b"null\n1\n",
        b'{"entry":{},"hash":"","signature":""}\n{}\n',
        b'{"entry":[],"hash":"","signature":""}\n{}\n',
        b"[" * 100_000 + b"\n{}\n",
        b'{"entry":{"format":1e999}}\n{}\n',
        b'{"entry":{"format":NaN}}\n{}\n',
        b'{"entry":{"format":' + b"9" * 5000 + b"}}\n{}\n",
        b"\xff\xfe{\x00}\x00\n\n",
        b"\x00" * 4096,
        b"SQLite format 3\x00",
    ],
    ids=range(15),
)
def test_what_is_no_export_is_a_sentence(data: bytes) -> None:
    with pytest.raises(LedgerError):
        read_export(data)


def as_entry(value: Any) -> bytes:
    line = {"entry": value, "hash": "", "signature": ""}
    return json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n{}\n"


json_values = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


@given(st.binary(max_size=300) | json_values.map(as_entry))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_reader_stumble(data: bytes) -> None:
    with pytest.raises(LedgerError):
        read_export(data)


def signed_anyway(exported: bytes, change: Callable[[dict[str, Any]], None], number: int) -> bytes:
    """The export with entry ``number`` changed, hashed and signed again by the silo; what follows is left out."""
    verifier = Verifier()
    for line in lines_of(exported)[:number]:
        verifier.accept(verifier.check(line))
    body = json.loads(lines_of(exported)[number])["entry"]
    change(body)
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    hashed = hashlib.sha256(b"silorec-ledger-entry-1\0" + text).hexdigest()
    line = {"entry": body, "hash": hashed, "signature": SILO.sign(bytes.fromhex(hashed)).hex()}
    written = json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    return b"".join([*lines_of(exported)[:number], written, b"{}\n"])


@pytest.mark.parametrize(
    ("number", "change", "said"),
    [
        (0, {"format": 2}, "format = 2 is not known to this version"),
        (0, {"format": 1.0}, "format = 1.0"),
        (0, {"format": True}, "format = True"),
        (0, {"seq": -1}, "seq = -1"),
        (0, {"seq": False}, "seq = False"),
        (0, {"time": 1.5}, "time = 1.5"),
        (0, {"type": "beginning"}, "type = 'beginning', must be one of opening, amendment, reservation"),
        (0, {"type": []}, "type = "),
        (0, {"unit": "one rating"}, "unit = 'one rating'"),
        (0, {"neighbours": "replace one"}, "neighbours = 'replace one'"),
        (0, {"silo": "south"}, "the policy is that of silo 'north'"),
        (0, {"software": "a\nb"}, "software = "),
        (0, {"public_key": SILO.public_key.upper()}, "public_key = "),
        (0, {"policy": {}}, "policy: silo is missing"),
        (0, {"policy": {**policy().to_dict()}}, "policy: a limit has no Rényi order"),
        (0, {"policy": {**policy().resolved().to_dict(), "epsilon": "8"}}, "policy: not in the one form"),
        (0, {"policy": {**policy().resolved().to_dict(), "free": True}}, "policy: unknown setting 'free'"),
        (0, {"extra": 1}, "opening has unknown fields extra"),
        (1, {"previous": "0" * 64}, "it does not hold the hash of the entry before"),
        (1, {"previous": "0" * 63}, "previous = "),
        (1, {"time": int(START) - 1}, "its time, 1749999999, is before that of the entry before, 1750000000"),
        (1, {"seq": 2}, "its seq is 2"),
        (1, {"run": "abc"}, "run = 'abc'"),
        (1, {"question": "A" * 64}, "question = "),
        (1, {"coordinator": "x"}, "coordinator = 'x'"),
        (1, {"mode": "open"}, "mode = 'open'"),
        (1, {"declared_users": -1}, "declared_users = -1"),
        (1, {"action": "a b"}, "action = 'a b'"),
        (1, {"round": 1}, "round = 1"),
        (1, {"epsilon": 3}, "epsilon = 3 "),
        (1, {"epsilon": -0.5}, "epsilon = -0.5"),
        (1, {"event": {"kind": "free lunch"}}, "event: unknown kind"),
        (1, {"event": {**event_to_dict(COUNT), "noise_multiplier": -1.0}}, "event: gaussian-count: noise_multiplier"),
        (1, {"event": {**event_to_dict(COUNT), "noise_multiplier": 5}}, "event: not in the one form"),
        (1, {"event": {**event_to_dict(COUNT), "unit": "one rating"}}, "event: privacy event 'gaussian-count': unit"),
        (1, {"event": 5}, "event: "),
        (2, {"reservation": 0}, "it commits to entry 0, which is not an open reservation"),
        (2, {"reservation": 7}, "it commits to entry 7, which is not an open reservation"),
        (4, {"reservation": 1}, "it commits to entry 1, which is not an open reservation"),
        (2, {"answer": None}, "answer = None"),
        (8, {"head": digest("never seen")}, "the countersignature is not that of"),
        (8, {"by": SILO.public_key}, "the countersignature is not that of"),
        (8, {"signature": "0" * 128}, "the countersignature is not that of"),
        (8, {"signature": "0" * 127}, "signature = "),
        (9, {"reason": ""}, "reason = ''"),
        (9, {"reason": "\x1b[2J"}, "reason = "),
        (11, {"reason": 7}, "reason = 7"),
    ],
)
def test_what_cannot_be_is_refused_though_the_silo_signed_it(
    exported: bytes, number: int, change: dict[str, Any], said: str
) -> None:
    data = signed_anyway(exported, lambda body: body.update(change), number)
    with pytest.raises(LedgerError) as caught:
        read_export(data)
    assert str(caught.value).startswith(f"entry {number}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("number", range(13))
def test_no_field_may_be_missing(exported: bytes, number: int) -> None:
    for name in json.loads(lines_of(exported)[number])["entry"]:
        data = signed_anyway(exported, lambda body, name=name: body.pop(name), number)  # type: ignore[misc]
        assert broken(data) == number


def test_entries_must_come_in_an_order_that_makes_sense() -> None:
    second = Forger()
    second.say(Opening("north", SILO.public_key, second.limits.to_dict(), UNIT, NEIGHBOURS, "x"))
    with pytest.raises(LedgerError, match="entry 1: a ledger has one opening"):
        second.read()
    headless = Forger()
    headless.entries.clear()
    headless.say(Closing("x"))
    with pytest.raises(LedgerError, match="entry 0: a ledger has one opening, and begins with it"):
        Verifier().check(headless.entries[0].line)
    after = Forger()
    after.say(Closing("x"))
    after.reserve(COUNT)
    with pytest.raises(LedgerError, match="entry 2: a reservation after the closing"):
        after.read()
    twice = Forger()
    twice.say(Closing("x"))
    twice.say(Closing("x"))
    with pytest.raises(LedgerError, match="entry 2: a closing after the closing"):
        twice.read()
    again = Forger()
    again.reserve(COUNT)
    again.say(Commitment(1, digest("a")))
    again.say(Commitment(1, digest("a")))
    with pytest.raises(LedgerError, match="entry 3: it commits to entry 1, which is not an open reservation"):
        again.read()
    alone = Forger()
    head = alone.entries[0].hash
    alone.say(Countersignature(head, SILO.public_key, countersign(head, SILO)))
    with pytest.raises(LedgerError, match="entry 1: it is the silo's own"):
        alone.read()
    unseen = Forger()
    unseen.say(Countersignature(digest("x"), AUDITOR.public_key, countersign(digest("x"), AUDITOR)))
    with pytest.raises(LedgerError, match="entry 1: it countersigns a hash that no entry before it has"):
        unseen.read()


def test_a_ledger_of_another_key_is_not_taken_for_ours(exported: bytes) -> None:
    first = lines_of(exported)[0]
    Verifier(SILO.public_key).check(first)
    with pytest.raises(LedgerError, match=f"the ledger is that of key {SILO.public_key}, not of {AUDITOR.public_key}"):
        Verifier(AUDITOR.public_key).check(first)
    theirs = Forger(key=AUDITOR)
    theirs.entries[0] = Entry.signed(0, theirs.time, NOTHING, read_export(exported).entries[0].what, AUDITOR)
    with pytest.raises(LedgerError, match="entry 0: the signature is not that of the silo"):
        theirs.read()


def test_a_countersignature_is_of_one_head_and_never_passes_for_an_entry() -> None:
    head = digest("head")
    signature = countersign(head, AUDITOR)
    assert countersigned(head, AUDITOR.public_key, signature)
    assert not countersigned(digest("other"), AUDITOR.public_key, signature)
    assert not countersigned(head, SILO.public_key, signature)
    assert signature != AUDITOR.sign(bytes.fromhex(head)).hex()


def test_a_countersignature_may_be_of_any_entry_that_was_there() -> None:
    book = Forger()
    early = book.entries[0].hash
    book.reserve(COUNT)
    book.say(Countersignature(early, AUDITOR.public_key, countersign(early, AUDITOR)))
    assert book.read().findings == ()


def test_a_forger_who_keeps_to_the_policy_is_no_finding() -> None:
    book = Forger(policy(epsilon_per_run=6.0, epsilon_per_day=6.0))
    for number in range(1, 6):
        book.reserve(steps(number))
    assert book.read().findings == ()


def finding(book: Forger) -> str:
    """The only finding; the chain itself is whole."""
    (found,) = book.read().findings
    assert found.seq == len(book.entries) - 1
    return str(found)


def test_a_passed_limit_is_found_with_its_entry() -> None:
    book = Forger(policy(epsilon=6.0))
    for number in range(1, 40):
        book.reserve(steps(number))
        if found := book.read().findings:
            break
    order = book.limits.order
    assert order is not None
    fits = [n for n in range(1, 60) if epsilon_at(n * rdp_at(steps(1), order), order, DELTA) <= 6.0]
    assert [f.seq for f in found] == [len(fits) + 1]
    assert str(found[0]).startswith(f"entry {len(fits) + 1}: passes the policy: epsilon: epsilon would be 6.")


def test_every_limit_of_the_policy_is_held_against_every_entry() -> None:
    def book(**limits: Any) -> Forger:
        return Forger(policy(**limits))

    forged: list[tuple[Forger, Callable[[Forger], Any], str]] = [
        (book(min_noise_multiplier=3.0), lambda b: b.reserve(steps(1)), "min_noise_multiplier"),
        (book(max_sampling_probability=0.1), lambda b: b.reserve(steps(1)), "max_sampling_probability"),
        (book(max_steps_per_round=3), lambda b: b.reserve(steps(1)), "max_steps_per_round"),
        (book(max_rounds_per_run=3), lambda b: b.reserve(steps(4)), "max_rounds_per_run"),
        (book(declared_users=9), lambda b: b.reserve(steps(4), declared_users=8), "declared_users"),
        (book(), lambda b: b.reserve(steps(1), coordinator=""), "coordinators"),
        (book(), lambda b: b.reserve(shared_step(1), mode="distributed"), "modes"),
        (book(), lambda b: b.reserve(steps(1), mode="distributed"), "does not go with a release"),
        (
            book(modes=("distributed",), max_honest_silos=3),
            lambda b: b.reserve(shared_step(1), mode="distributed"),
            "max_honest_silos",
        ),
        (
            book(modes=("distributed",), min_share_noise_multiplier=1.5),
            lambda b: b.reserve(shared_step(1), mode="distributed"),
            "min_share_noise_multiplier",
        ),
        (book(epsilon_per_run=2.0), lambda b: b.reserve(GaussianCount(1.0, 1.0)), "epsilon_per_run"),
        (book(epsilon_per_day=2.0), lambda b: b.reserve(GaussianCount(1.0, 1.0)), "epsilon_per_day"),
        (book(epsilon=2.0), lambda b: b.reserve(GaussianCount(1.0, 1.0)), "epsilon"),
        (book(epsilon=None, modes=("none",)), lambda b: b.reserve(Unprotected("update")), "does not go with a release"),
    ]
    for made, forge, name in forged:
        forge(made)
        assert f"entry 1: passes the policy: {name}" in finding(made) or name in finding(made)
    days = book(epsilon_per_day=2.0)
    event = GaussianCount(2.5, 1.0)
    days.reserve(event)
    days.time += int(DAY)
    days.reserve(event)
    assert days.read().findings == ()
    days.reserve(event)
    assert "epsilon_per_day: epsilon would be" in finding(days)


def test_an_unprotected_release_is_a_finding_unless_there_is_no_limit() -> None:
    limited = Forger(policy(modes=("silo", "none")))
    limited.reserve(Unprotected("update"), mode="none")
    assert "epsilon: epsilon would be infinite" in finding(limited)
    unlimited = Forger(policy(epsilon=None, modes=("none",)))
    unlimited.reserve(Unprotected("update"), mode="none")
    assert unlimited.read().findings == ()


@pytest.mark.parametrize(("factor", "wrong"), [(1 + 1e-10, False), (1 + 1e-8, True), (0.9, True), (0.0, True)])
def test_a_recorded_epsilon_that_is_not_the_sum_is_found(factor: float, wrong: bool) -> None:
    book = Forger()
    book.reserve(steps(1))
    right = book.entries[-1].body["epsilon"]
    book.reserve(steps(2), epsilon=0.0 if factor == 0 else epsilon_at(2 * rdp_at(steps(1), 4.0), 4.0, DELTA) * factor)
    assert right < epsilon_at(2 * rdp_at(steps(1), 4.0), 4.0, DELTA)
    if wrong:
        assert "the recorded epsilon is" in finding(book)
    else:
        assert book.read().findings == ()


def test_infinite_and_finite_epsilon_are_not_confused() -> None:
    hidden = Forger()
    hidden.reserve(steps(1), epsilon=None)
    assert "the recorded epsilon is inf, the entries up to here come to" in finding(hidden)
    claimed = Forger(policy(epsilon=None, modes=("none",)))
    claimed.reserve(Unprotected("update"), mode="none", epsilon=1.0)
    assert "the recorded epsilon is 1, the entries up to here come to inf" in finding(claimed)


def test_all_findings_are_seen_and_the_policy_in_force_at_the_time_counts() -> None:
    book = Forger(policy(min_noise_multiplier=3.0, max_steps_per_round=2))
    book.reserve(steps(1))
    book.say(Amendment(policy(max_steps_per_round=2).resolved().to_dict(), "less noise"))
    book.reserve(steps(2))
    book.say(Amendment(policy(epsilon=20.0).resolved(before=book.limits).to_dict(), "all"))
    book.reserve(steps(3))
    assert [(found.seq, found.what.split(":")[1].strip()) for found in book.read().findings] == [
        (1, "min_noise_multiplier"),
        (3, "max_steps_per_round"),
    ]


def test_a_policy_that_changes_what_must_stay_is_a_finding() -> None:
    for changed, said in ((policy(order=7.0), "order = 7: it was fixed at 4"), (policy(silo="south"), "silo = 'south'")):
        book = Forger()
        book.say(Amendment(changed.resolved().to_dict(), "because"))
        assert f"entry 1: the policy was changed in what must stay: {said}" in finding(book)


def test_parameters_can_be_checked_without_computing_epsilon() -> None:
    book = Forger(policy(min_noise_multiplier=3.0))
    book.reserve(steps(1), epsilon=0.0)
    assert len(book.read().findings) == 2
    (found,) = book.read().check(recompute=False)
    assert "min_noise_multiplier" in found.what


WITHOUT = """
import sys
class Absent:
    def find_spec(name, *_):
        if name.split('.')[0] in {absent!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name.split('.')[0])
sys.meta_path.insert(0, Absent)
from common.privacy.entries import read_export
from common.errors import LedgerError
chain = read_export(sys.stdin.buffer.read())
print(len(chain.entries), chain.head, chain.check(recompute=False))
try:
    print(chain.findings)
except LedgerError as error:
    print(error)
print([name for name in ('sqlite3', '_sqlite3', 'torch', 'scipy', 'numpy') if name in sys.modules])
"""


@pytest.mark.parametrize("absent", [("sqlite3", "_sqlite3"), ("sqlite3", "_sqlite3", "dp_accounting", "scipy", "torch", "flwr")])
def test_an_export_is_verified_without_sqlite_and_its_chain_without_dp_accounting(
    exported: bytes, absent: tuple[str, ...]
) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT.format(absent=absent)], input=exported, capture_output=True, check=True)
    first, second, third = done.stdout.decode().splitlines()
    chain = read_export(exported)
    assert first == f"{len(chain.entries)} {chain.head} ()"
    if "dp_accounting" in absent:
        assert "dp_accounting is not installed" in second
        assert third == "[]"
    else:
        assert second == "()"
        assert "sqlite3" not in third
