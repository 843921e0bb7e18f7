"""A silo behind its app: a coordinator that cheats gets a code, nothing is charged, and the data are not touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

import client.silo
import client.trainer
from client.place import KEY, folder_of
from client.releases import kept_answer
from client.silo import Silo
from common.config import Config, load, to_dict
from common.errors import ErrorCode
from common.model.resident import resident
from common.privacy.signing import create_key
from common.protocol import (
    ADVERTISE,
    COUNT,
    ENROL,
    MASK,
    METRICS,
    REVEAL,
    SHARE,
    SIGN,
    TRAIN,
    AdapterRequest,
    Fields,
    config_hash,
    question_digest,
    statement,
)
from common.secagg.messages import pack
from common.secagg.roster import ROSTER, KeyRoster, read_roster, write_roster
from server.wire import request_content
from tests import tiny
from tests.client.secure_apps import FIELD, STAGES, Attempt, Coordinator, N, secure
from tests.secure_silos import new_key


@pytest.fixture(scope="module", autouse=True)
def nothing_is_trained() -> Iterator[None]:
    """What is decided is under test here, not how an update is computed: it is the silo's sample of users instead."""
    with pytest.MonkeyPatch.context() as patch:
        answers = np.random.default_rng(0)

        def update(model: object, data: object, config: Config, *_: object, **__: object) -> SimpleNamespace:
            return SimpleNamespace(update=answers.standard_normal(resident(config).manifest.n_parameters).astype(np.float32))

        patch.setattr(client.trainer, "train_round", update)
        yield


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The silos whose data were looked at, one entry each time."""
    seen: list[int] = []
    real = Silo.data

    def look(silo: Silo) -> Any:
        seen.append(silo.place.index)
        return real.fget(silo)  # type: ignore[attr-defined]

    monkeypatch.setattr(Silo, "data", property(look))
    return seen


def refused(coordinator: Coordinator, code: ErrorCode, answer: Fields | ErrorCode, before: object, silo: int = 0) -> None:
    """The answer is this code, and nothing is charged or remembered."""
    assert answer == code
    assert coordinator.kept(silo) == before


def test_a_count_through_the_app_is_summed_charged_once_and_hidden(tmp_path: Path) -> None:
    coordinator = Coordinator(secure(), tmp_path)
    attempt = Attempt(coordinator, coordinator.asked())
    attempt.finish(ADVERTISE)
    assert coordinator.charges() == [1] * N
    for silo, words in attempt.answers[MASK].items():
        plain = coordinator.answer(silo, COUNT, attempt.question.question)
        steps = attempt.coding.encode(plain).words
        assert not (np.abs((words - steps).astype(np.int32)) <= 1).any()  # encoding again moves a word by a step at most


def test_an_answer_that_was_lost_is_given_again_byte_for_byte_and_not_charged_again(tmp_path: Path, touched: list[int]) -> None:
    """In every stage, by the same process and by a new one."""
    coordinator = Coordinator(secure(), tmp_path)
    attempt = Attempt(coordinator, coordinator.asked())
    for stage in STAGES:
        attempt.play(stage)
        state, times = coordinator.kept(0), len(touched)
        for fresh in (False, True):
            if fresh:
                client.silo._OPEN.clear()
            again = attempt.put(stage)
            assert not isinstance(again, ErrorCode)
            np.testing.assert_array_equal(again[FIELD[stage]], attempt.answers[stage][0])
            assert coordinator.kept(0) == state
        assert len(touched) == times
    assert coordinator.charges() == [1] * N


def test_another_attempt_at_the_same_question_has_other_masks_and_the_same_charge(tmp_path: Path, touched: list[int]) -> None:
    coordinator = Coordinator(secure(), tmp_path)
    first = Attempt(coordinator, coordinator.asked()).until(SIGN)
    looked = len(touched)
    second = Attempt(coordinator, coordinator.asked(), nonce=bytes([1] * 32))
    second.finish(ADVERTISE)
    assert len(touched) == looked
    assert coordinator.charges() == [1] * N
    for silo in range(N):
        assert (first.answers[MASK][silo] != second.answers[MASK][silo]).all()
    for stage in (SHARE, MASK, SIGN):
        assert first.put(stage) == ErrorCode.SECAGG_REFUSED


def test_every_attempt_of_mode_distributed_is_charged_and_has_noise_of_its_own(tmp_path: Path) -> None:
    coordinator = Coordinator(secure(privacy__mode="distributed", training__local_steps=1), tmp_path)
    answers = []
    for number in range(2):
        attempt = Attempt(coordinator, coordinator.asked(), nonce=bytes([number] * 32)).until(SIGN)
        state = coordinator.kept(0)
        again = attempt.put(MASK)
        assert not isinstance(again, ErrorCode)
        np.testing.assert_array_equal(again["masked"], attempt.answers[MASK][0])
        assert coordinator.kept(0) == state
        answers.append(again["release"])
        if number == 0:
            assert coordinator.charges() == [1] * N
    assert coordinator.charges() == [2] * N
    assert len(set(answers)) == 2


def test_a_masked_vector_that_is_no_longer_kept_is_not_made_again(tmp_path: Path) -> None:
    """Rounding would differ: two vectors under one mask tell their difference."""
    coordinator = Coordinator(secure(), tmp_path)
    attempt = Attempt(coordinator, coordinator.asked()).until(SIGN)
    kept_answer(folder_of(tmp_path, 0), config_hash(coordinator.config), MASK).write_bytes(b"torn")
    before = coordinator.kept(0)
    refused(coordinator, ErrorCode.SECAGG_REFUSED, attempt.put(MASK), before)
    attempt.finish(SIGN)


# Another model for one silo.


def test_a_silo_that_is_shown_another_adapter_than_was_announced_does_nothing(tmp_path: Path, touched: list[int]) -> None:
    coordinator = Coordinator(secure(), tmp_path)
    attempt = Attempt(coordinator, coordinator.asked(TRAIN), TRAIN).until(MASK)
    other = coordinator.asked(TRAIN, shift=1e-3)
    assert isinstance(other, AdapterRequest)
    before = coordinator.kept(0)
    refused(coordinator, ErrorCode.BAD_REQUEST, attempt.put(MASK, vector=other.vector), before)
    refused(coordinator, ErrorCode.BAD_REQUEST, attempt.put(MASK, vector=None), before)
    refused(coordinator, ErrorCode.BAD_REQUEST, attempt.put(MASK, round=2), before)
    refused(coordinator, ErrorCode.BAD_REQUEST, attempt.put(MASK, action=METRICS), before)
    refused(coordinator, ErrorCode.BAD_REQUEST, attempt.put(MASK, action=COUNT, vector=None), before)
    matching = question_digest(TRAIN, other)  # names another attempt, of which this silo knows nothing
    refused(coordinator, ErrorCode.SECAGG_REFUSED, attempt.put(MASK, vector=other.vector, question=matching), before)
    assert touched == []
    assert coordinator.charges() == [0] * N
    assert len(attempt.finish(MASK)) == len(other.vector)


def test_silos_that_were_asked_different_questions_do_not_meet_in_a_round(tmp_path: Path, touched: list[int]) -> None:
    """The same nonce, but another model for silo 0: its keys and the others' are of two rounds."""
    coordinator = Coordinator(secure(), tmp_path)
    others = Attempt(coordinator, coordinator.asked(TRAIN), TRAIN)
    alone = Attempt(coordinator, coordinator.asked(TRAIN, shift=1e-3), TRAIN)
    assert alone.question.nonce == others.question.nonce
    assert alone.question.round_id != others.question.round_id
    ads = {silo: (alone if silo == 0 else others).put(ADVERTISE, silo) for silo in range(N)}
    listed = b"".join(fields["advertisement"] for fields in ads.values() if not isinstance(fields, ErrorCode))
    assert len(listed) == 132 * N
    for silo in range(N):
        before = coordinator.kept(silo)
        mine = alone if silo == 0 else others
        refused(coordinator, ErrorCode.SECAGG_REFUSED, mine.put(SHARE, silo, payload=listed), before, silo)
    assert touched == []


def test_the_vector_of_a_silo_that_was_asked_about_another_model_stays_hidden(tmp_path: Path) -> None:
    """All share for the one question; silo 0 answers it, the others answer another one. The masks of the two do not cancel, and
    what would take them off the first vector is not told any more.
    """
    coordinator = Coordinator(secure(), tmp_path)
    alone = Attempt(coordinator, coordinator.asked(TRAIN, shift=1e-3), TRAIN).until(MASK)
    single = alone.put(MASK)
    assert not isinstance(single, ErrorCode)
    others = Attempt(coordinator, coordinator.asked(TRAIN), TRAIN)
    others.finish(ADVERTISE, range(1, N))
    answers = [
        coordinator.answer(silo, TRAIN, one.question.question)
        for silo, one in ((0, alone), (1, others), (2, others), (3, others))
    ]
    both = single["masked"] + others.sum.total
    steps = sum(others.coding.encode(answer).words for answer in answers)
    assert not (np.abs((both - steps).astype(np.int32)) < N + 1).mean() > 1e-3
    survivors = b"".join(silo.to_bytes(4, "big") for silo in range(N))
    for silo in range(1, N):
        for stage in (SIGN, REVEAL):
            before = coordinator.kept(silo)
            refused(coordinator, ErrorCode.SECAGG_REFUSED, alone.put(stage, silo, payload=survivors), before, silo)


def test_a_count_that_comes_with_an_adapter_is_no_question(tmp_path: Path, touched: list[int]) -> None:
    """Else there would be as many counts of a run to ask for as there are adapters."""
    coordinator = Coordinator(secure(), tmp_path)
    adapter = coordinator.asked(TRAIN)
    assert isinstance(adapter, AdapterRequest)
    for number in (0, 1):
        attempt = Attempt(coordinator, replace(adapter, round=number), COUNT, nonce=bytes([number] * 32)).until(MASK)
        before = coordinator.kept(0)
        refused(coordinator, ErrorCode.BAD_REQUEST, attempt.put(MASK), before)
    assert touched == []


# Secure runs, plain runs, rosters.


def test_plain_questions_are_refused_in_a_secure_run(tmp_path: Path, touched: list[int]) -> None:
    coordinator = Coordinator(secure(privacy__metrics_share=0.1), tmp_path)
    train = coordinator.asked(TRAIN)
    assert isinstance(train, AdapterRequest)
    for action, asked in ((COUNT, coordinator.asked()), (TRAIN, train), (METRICS, replace(train, round=2))):
        assert coordinator.put(action, 0, asked) == ErrorCode.BAD_REQUEST
    assert touched == []
    assert coordinator.kept(0) == ({}, "", 0)


def test_stages_of_a_secure_sum_are_refused_in_a_plain_run(tmp_path: Path, touched: list[int]) -> None:
    coordinator = Coordinator(secure(aggregation__method="plain"), tmp_path)
    attempt = Attempt(coordinator, coordinator.asked())
    for stage in STAGES:
        assert attempt.put(stage) == ErrorCode.BAD_REQUEST
    assert touched == []
    assert coordinator.kept(0) == ({}, "", 0)


def test_a_coordinator_with_another_roster_is_refused_at_every_stage(tmp_path: Path) -> None:
    coordinator = Coordinator(secure(), tmp_path)
    attempt, keys = Attempt(coordinator, coordinator.asked()), coordinator.roster.keys
    forged = KeyRoster(coordinator.roster.names, (*keys[:3], new_key().public_key))
    turned = KeyRoster(coordinator.roster.names, (*keys[1:], keys[0]))
    for stage in STAGES:
        before = coordinator.kept(0)
        for digest in (forged.digest, turned.digest, "", "0" * 64):
            refused(coordinator, ErrorCode.SECAGG_REFUSED, attempt.put(stage, roster=digest), before)
        attempt.play(stage)


def test_a_silo_takes_no_part_with_a_roster_that_is_not_its_own(tmp_path: Path) -> None:
    coordinator = Coordinator(secure(), tmp_path)
    attempt, path, right = Attempt(coordinator, coordinator.asked()), tmp_path / ROSTER, coordinator.roster
    assert read_roster(path) == right

    def put(text: str | KeyRoster | None) -> Fields | ErrorCode:
        client.silo._OPEN.clear()
        path.unlink(missing_ok=True)
        if isinstance(text, KeyRoster):
            write_roster(path, text)
            return attempt.put(ADVERTISE, roster=text.digest)
        if text is not None:
            path.write_text(text)
        return attempt.put(ADVERTISE)

    stranger = new_key().public_key
    assert put(KeyRoster(right.names, (stranger, *right.keys[1:]))) == ErrorCode.SECAGG_REFUSED
    assert put(KeyRoster(right.names, (right.keys[1], right.keys[0], *right.keys[2:]))) == ErrorCode.SECAGG_REFUSED
    assert put(KeyRoster(right.names[:3], right.keys[:3])) == ErrorCode.SECAGG_REFUSED
    assert put(KeyRoster((*right.names, "fifth"), (*right.keys, stranger))) == ErrorCode.SECAGG_REFUSED
    repeated = f'format = 1\n[[silo]]\nname = "a"\nkey = "{stranger}"\n[[silo]]\nname = "b"\nkey = "{stranger}"\n'
    assert put(repeated) == ErrorCode.BAD_REQUEST
    assert put("format = ") == ErrorCode.BAD_REQUEST
    assert put(None) == ErrorCode.BAD_REQUEST
    assert coordinator.kept(0)[0] == {}
    put(right)
    attempt.finish(ADVERTISE)


def test_an_operators_silo_without_a_roster_or_without_a_key_takes_no_part(tmp_path: Path) -> None:
    config = secure()
    coordinator = Coordinator(config, tmp_path)
    attempt = Attempt(coordinator, coordinator.asked())
    coordinator.grid = tiny.grid(config, tmp_path, silo=0, data="unused", state=str(tmp_path / "operator"))
    assert attempt.put(ADVERTISE) == ErrorCode.POLICY_REFUSED
    client.silo._OPEN.clear()
    roster = str(tmp_path / ROSTER)
    coordinator.grid = tiny.grid(config, tmp_path, silo=0, data="unused", state=str(tmp_path / "operator"), roster=roster)
    assert attempt.put(ADVERTISE) == ErrorCode.LEDGER_UNAVAILABLE
    (tmp_path / "operator").mkdir()
    create_key(tmp_path / "operator" / KEY)  # a key that the consortium does not know
    assert attempt.put(ADVERTISE) == ErrorCode.SECAGG_REFUSED
    assert not list((tmp_path / "operator").rglob("*.json"))


# Wrong messages at the right time, right ones at the wrong time.


def test_stages_out_of_order_and_of_old_attempts_touch_nothing(tmp_path: Path, touched: list[int]) -> None:
    coordinator = Coordinator(secure(), tmp_path)
    old = Attempt(coordinator, coordinator.asked(TRAIN), TRAIN).until(MASK)
    attempt = Attempt(coordinator, coordinator.asked(TRAIN), TRAIN, nonce=bytes([1] * 32))
    for done in range(3):  # nothing asked for, then keys, then shares: whatever comes too early is refused
        before = coordinator.kept(0)
        for stage in STAGES[1:]:
            if STAGES.index(stage) > done or done == 0:
                late = {"payload": old.payloads.get(stage, {}).get(0, b"")}
                refused(coordinator, ErrorCode.SECAGG_REFUSED, attempt.put(stage, **late), before)
        if done:
            for stage in STAGES:
                refused(coordinator, ErrorCode.SECAGG_REFUSED, old.put(stage), before)
        if done < 2:
            attempt.play(STAGES[done])
    assert touched == []
    assert coordinator.charges() == [0] * N
    attempt.finish(MASK)


def test_sealed_shares_that_were_altered_cost_nothing(tmp_path: Path, touched: list[int]) -> None:
    coordinator = Coordinator(secure(), tmp_path)
    attempt = Attempt(coordinator, coordinator.asked()).until(MASK)
    good, before = attempt.payloads[MASK][0], coordinator.kept(0)
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[:-172], good[:172], attempt.payloads[MASK][1], good + good, b""):
        if bad != good[:-172]:  # one silo less is still enough
            refused(coordinator, ErrorCode.SECAGG_REFUSED, attempt.put(MASK, payload=bad), before)
    assert touched == []
    assert coordinator.charges() == [0] * N
    attempt.finish(MASK)


def test_shares_that_are_too_few_cost_nothing(tmp_path: Path, touched: list[int]) -> None:
    coordinator = Coordinator(secure(), tmp_path)
    attempt = Attempt(coordinator, coordinator.asked()).until(MASK)
    before = coordinator.kept(0)
    refused(coordinator, ErrorCode.SECAGG_REFUSED, attempt.put(MASK, payload=attempt.payloads[MASK][0][:172]), before)
    assert touched == []


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": bytes(31)},
        {"nonce": b""},
        {"question": "ab"},
        {"question": "xy" * 32},
        {"config_hash": "0" * 64},
        {"protocol": 2},
        {"action": ENROL},
        {"action": "no such thing"},
        {"manifest_hash": "0" * 64},
    ],
)
def test_a_request_that_names_no_round_or_no_answer_is_refused(
    change: dict[str, Any], tmp_path: Path, touched: list[int]
) -> None:
    coordinator = Coordinator(secure(), tmp_path)
    attempt = Attempt(coordinator, coordinator.asked(TRAIN), TRAIN).until(MASK)
    before = coordinator.kept(0)
    refused(coordinator, ErrorCode.BAD_REQUEST, attempt.put(MASK, **change), before)
    for action in (ENROL, "no such thing"):  # also where the digest is that of such a question
        odd = attempt.request(MASK, action=action)
        odd = replace(odd, question=question_digest(action, odd.asked()))
        refused(coordinator, ErrorCode.BAD_REQUEST, coordinator.put(MASK, 0, odd), before)
    assert touched == []


def test_messages_that_are_no_requests_are_refused(tmp_path: Path) -> None:
    coordinator = Coordinator(secure(), tmp_path)
    attempt = Attempt(coordinator, coordinator.asked()).until(SHARE)
    before = coordinator.kept(0)
    good = dict(request_content(attempt.request(SHARE))["request"])
    bad: list[RecordDict] = [RecordDict(), RecordDict({"request": ArrayRecord({"vector": Array(np.zeros(3))})})]
    for key in good:
        bad.append(RecordDict({"request": ConfigRecord({name: value for name, value in good.items() if name != key})}))
        for odd in (5.0, "text", b"bytes", [1, 2], True):
            if type(odd) is not type(good[key]):
                bad.append(RecordDict({"request": ConfigRecord(good | {key: odd})}))
    bad.append(RecordDict({"request": ConfigRecord(good), "adapter": ConfigRecord({})}))
    bad.append(RecordDict({"request": ConfigRecord(good), "adapter": ArrayRecord({"other": Array(np.zeros(3))})}))
    assert len(bad) > 40
    for content in bad:
        refused(coordinator, ErrorCode.BAD_REQUEST, coordinator.send(SHARE, 0, content), before)
    attempt.finish(SHARE)


@pytest.mark.parametrize("action", [COUNT, TRAIN])
def test_only_the_coordinator_whom_the_configuration_names_is_answered(action: str, tmp_path: Path) -> None:
    """The request is signed; the question that it holds in the stage of masking is bound to it by its digest."""
    key, thief = new_key(), new_key()
    coordinator = Coordinator(load(to_dict(secure()), {"federation.coordinator": key.public_key}), tmp_path, key)
    attempt = Attempt(coordinator, coordinator.asked(action), action)
    for stage in STAGES:
        before = coordinator.kept(0)
        unsigned = attempt.request(stage)
        signed = replace(unsigned, signature=key.sign(statement(stage, unsigned)).hex())
        for bad in (
            unsigned,
            replace(unsigned, signature=thief.sign(statement(stage, unsigned)).hex()),
            replace(signed, payload=signed.payload + b"\0"),
            replace(signed, nonce=bytes([1] * 32)),
            replace(signed, roster="0" * 64),
        ):
            refused(coordinator, ErrorCode.POLICY_REFUSED, coordinator.send(stage, 0, request_content(bad)), before)
        other = STAGES[(STAGES.index(stage) + 1) % 5]
        refused(coordinator, ErrorCode.POLICY_REFUSED, coordinator.send(other, 0, request_content(signed)), before)
        attempt.play(stage)


def test_a_question_that_the_coordinator_did_not_sign_is_not_answered_in_a_signed_request(tmp_path: Path) -> None:
    key = new_key()
    coordinator = Coordinator(load(to_dict(secure()), {"federation.coordinator": key.public_key}), tmp_path, key)
    attempt = Attempt(coordinator, coordinator.asked(TRAIN), TRAIN).until(MASK)
    signed, before = attempt.request(MASK), coordinator.kept(0)
    signed = replace(signed, signature=key.sign(statement(MASK, signed)).hex())
    other = coordinator.asked(TRAIN, shift=1e-3)
    assert isinstance(other, AdapterRequest)
    swapped = request_content(replace(signed, vector=other.vector))
    refused(coordinator, ErrorCode.BAD_REQUEST, coordinator.send(MASK, 0, swapped), before)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Attempt]:
    """An attempt that waits for each stage, each of a consortium of its own."""
    found = {}
    for stage in STAGES[1:]:
        coordinator = Coordinator(secure(), tmp_path_factory.mktemp(stage.removeprefix("query.")))
        found[stage] = Attempt(coordinator, coordinator.asked()).until(stage)
    return found


@settings(max_examples=60, deadline=None)
@given(
    stage=st.sampled_from(STAGES[1:]),
    payload=st.binary(max_size=600),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=3),
    honest=st.booleans(),
)
def test_garbage_at_any_stage_is_refused_as_such(
    stage: str, payload: bytes, edits: list[tuple[int, int]], honest: bool, opened: dict[str, Attempt]
) -> None:
    """Noise, or the honest payload with bytes that are others; never anything but this code, and nothing is charged."""
    attempt = opened[stage]
    if honest:
        changed = bytearray(attempt.payloads[stage][0])
        for place, change in edits or [(0, 1)]:
            changed[place % len(changed)] ^= change
        payload = bytes(changed)
        if payload == attempt.payloads[stage][0]:
            return
    before = attempt.to.kept(0)
    refused(attempt.to, ErrorCode.SECAGG_REFUSED, attempt.put(stage, payload=payload), before)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_enormous_payloads_are_refused_as_such(stage: str, opened: dict[str, Attempt]) -> None:
    attempt = opened[stage]
    size = {SHARE: 132, MASK: 172, SIGN: 4, REVEAL: 68}[stage]
    before = attempt.to.kept(0)
    for payload in (bytes(2**24), pack(dict.fromkeys(range(2**16), bytes(size - 4))), attempt.payloads[stage][0] * 5000):
        refused(attempt.to, ErrorCode.SECAGG_REFUSED, attempt.put(stage, payload=payload), before)
