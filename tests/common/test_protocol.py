"""What may be asked and what may be answered, without any Flower."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import Config, load, to_dict, to_run_config
from common.errors import ConfigError, ErrorCode, FederationError
from common.privacy.signing import SigningKey, create_key
from common.protocol import (
    ADVERTISE,
    COUNT,
    ENROL,
    MASK,
    METRICS,
    RECORDS,
    RELEASED,
    REVEAL,
    SHARE,
    SIGN,
    TRAIN,
    AdapterRequest,
    Refusal,
    Request,
    SumRequest,
    answer_digest,
    check_adapter,
    check_reply,
    check_request,
    config_hash,
    question_digest,
    read_run_config,
    release_question,
    silo_seed,
    statement,
)

CONFIG = load(
    {"federation.rounds": 5, "data.columns": {"user": "u"}, "federation.declared_users": [1, 2, 3, 4], "privacy.delta": 1e-5}
)
GOOD = AdapterRequest(config_hash=config_hash(CONFIG), round=5, manifest_hash="m", vector=np.zeros(3, np.float32))


def refusal(action: str = TRAIN, **changes: Any) -> ErrorCode:
    with pytest.raises(Refusal) as caught:
        check_both(replace(GOOD, **changes), action, CONFIG, "m", 3)
    return caught.value.code


def check_both(request: AdapterRequest, action: str, config: Config, manifest_hash: str, n_parameters: int) -> None:
    """As a silo that is asked plainly."""
    check_request(request, action, config)
    check_adapter(request, action, config, manifest_hash, n_parameters)


def test_what_leaves_a_silo_is_on_this_list_and_nothing_else() -> None:
    """The list itself: whoever adds to it changes what leaves a silo, and has to change this test."""
    assert {action: dict(fields) for action, fields in RELEASED.items()} == {
        "query.enrol": {"silo": "integer", "protocol": "integer"},
        "query.count": {"count": "vector"},
        "train": {"update": "vector"},
        "query.metrics": {"metrics": "vector"},
        "query.budget": {"budget": "integer"},
        "query.advertise": {"advertisement": "bytes"},
        "query.share": {"shares": "bytes"},
        "query.mask": {"masked": "words", "release": "digest"},
        "query.sign": {"signature": "bytes"},
        "query.reveal": {"revealed": "bytes"},
    }
    assert RECORDS == {
        "advertisement": (132, 1),
        "shares": (172, 2**16),
        "signature": (64, 1),
        "revealed": (75, 2**16),
    }


def test_a_good_request_passes_and_each_fault_has_its_code() -> None:
    check_both(GOOD, TRAIN, CONFIG, "m", 3)
    check_both(GOOD, METRICS, CONFIG, "m", 3)
    assert refusal(config_hash="other") is ErrorCode.BAD_REQUEST
    assert refusal(protocol=1) is ErrorCode.BAD_REQUEST
    assert refusal(round=0) is ErrorCode.BAD_REQUEST
    assert refusal(round=6) is ErrorCode.BAD_REQUEST
    assert refusal(METRICS, round=4) is ErrorCode.BAD_REQUEST
    assert refusal(manifest_hash="n") is ErrorCode.MANIFEST_MISMATCH
    assert refusal(vector=np.zeros(4, np.float32)) is ErrorCode.BAD_REQUEST
    assert refusal(vector=np.array([0, np.inf, 0], np.float32)) is ErrorCode.BAD_REQUEST
    assert refusal(vector=np.zeros(3)) is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize(
    ("action", "fields", "complaint"),
    [
        (TRAIN, {"update": np.zeros(3, np.float32), "loss": 1.0}, r"has the fields \['loss', 'update'\], allowed are exactly"),
        (TRAIN, {}, "has the fields"),
        (TRAIN, {"update": np.zeros(3)}, "update is not a float32 vector"),
        (TRAIN, {"update": np.zeros((3, 1), np.float32)}, "update is not a float32 vector"),
        (TRAIN, {"update": [0.0, 0.0, 0.0]}, "update is not a float32 vector"),
        (TRAIN, {"update": np.zeros(4, np.float32)}, "update has 4 numbers, expected 3"),
        (TRAIN, {"update": np.array([1, np.nan, 0], np.float32)}, "update holds numbers that are not finite"),
        (COUNT, {"update": np.zeros(3, np.float32)}, "allowed are exactly"),
        (ENROL, {"silo": True, "protocol": 1}, "silo is not an integer"),
        (ENROL, {"silo": -1, "protocol": 1}, "silo is not an integer from 0"),
        (ENROL, {"silo": "clinic", "protocol": 1}, "silo is not an integer"),
        ("evaluate", {}, "no reply to 'evaluate' is defined"),
        (ADVERTISE, {"advertisement": b"k" * 131}, "advertisement is not a list of 1 to 1 records of 132 bytes"),
        (ADVERTISE, {"advertisement": b"k" * 264}, "advertisement is not a list of 1 to 1 records"),
        (ADVERTISE, {"advertisement": "k" * 132}, "advertisement is not a list"),
        (SHARE, {"shares": b""}, "shares is not a list of 1 to 65536 records of 172 bytes"),
        (SHARE, {"shares": bytearray(172)}, "shares is not a list"),
        (MASK, {"masked": np.zeros(3, np.uint32)}, r"has the fields \['masked'\], allowed are exactly"),
        (MASK, {"masked": np.zeros(3, np.float32), "release": b"d" * 32}, "masked is not a vector of uint32 or uint64"),
        (MASK, {"masked": np.zeros(3, np.int64), "release": b"d" * 32}, "masked is not a vector of uint32 or uint64"),
        (MASK, {"masked": np.zeros((1, 3), np.uint32), "release": b"d" * 32}, "masked is not a vector"),
        (MASK, {"masked": np.zeros(4, np.uint32), "release": b"d" * 32}, "masked has 4 numbers, expected 3"),
        (MASK, {"masked": np.zeros(3, np.uint32), "release": b"d" * 64}, "release is not a list of 1 to 1 records of 32 bytes"),
        (SIGN, {"signature": b"s" * 63}, "signature is not a list of 1 to 1 records of 64 bytes"),
        (REVEAL, {"revealed": b"r" * 76}, "revealed is not a list of 1 to 65536 records of 75 bytes"),
        (REVEAL, {"revealed": b"r" * 75, "seed": b"s" * 32}, "allowed are exactly"),
    ],
)
def test_replies_outside_the_list_are_refused(action: str, fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FederationError, match=complaint):
        check_reply(action, fields, 3)


def test_replies_on_the_list_pass() -> None:
    check_reply(TRAIN, {"update": np.zeros(3, np.float32)}, 3)
    check_reply(COUNT, {"count": np.zeros(7, np.float32)})
    check_reply(ENROL, {"silo": 0, "protocol": 1})
    check_reply(ADVERTISE, {"advertisement": bytes(132)})
    check_reply(SHARE, {"shares": bytes(2 * 172)})
    check_reply(MASK, {"masked": np.zeros(3, np.uint32), "release": bytes(32)}, 3)
    check_reply(MASK, {"masked": np.zeros(3, np.uint64), "release": bytes(32)}, 3)
    check_reply(SIGN, {"signature": bytes(64)})
    check_reply(REVEAL, {"revealed": bytes(3 * 75)})


def test_a_configuration_survives_flowers_flat_settings_with_its_hash() -> None:
    config, app = read_run_config({**to_run_config(CONFIG), "app.out": "/somewhere"})
    assert config == CONFIG
    assert config_hash(config) == config_hash(CONFIG)
    assert app == {"out": "/somewhere"}
    check_request(Request(config_hash=config_hash(config)), ENROL, CONFIG)


def signed(config: Config, key: SigningKey, action: str, request: AdapterRequest) -> AdapterRequest:
    return replace(request, signature=key.sign(statement(action, request)).hex())


def test_a_request_is_answered_only_with_the_signature_of_the_coordinator_whom_the_configuration_names(tmp_path: Path) -> None:
    key, other = create_key(tmp_path / "key"), create_key(tmp_path / "other")
    config = load(to_dict(CONFIG), {"federation.coordinator": key.public_key})
    asked = replace(GOOD, config_hash=config_hash(config))
    good = signed(config, key, TRAIN, asked)
    check_both(good, TRAIN, config, "m", 3)
    for bad in (
        asked,
        replace(good, signature="zz"),
        signed(config, other, TRAIN, asked),
        signed(config, key, METRICS, asked),
        replace(good, round=4),
        replace(good, vector=np.ones(3, np.float32)),
    ):
        with pytest.raises(Refusal, match="not signed by the coordinator") as caught:
            check_both(bad, TRAIN, config, "m", 3)
        assert caught.value.code is ErrorCode.POLICY_REFUSED


def test_questions_are_the_same_when_they_ask_the_same_and_answers_when_they_hold_the_same_bytes() -> None:
    assert question_digest(TRAIN, GOOD) == question_digest(TRAIN, replace(GOOD, signature="ab", vector=GOOD.vector.copy()))
    changed = [replace(GOOD, round=4), replace(GOOD, vector=np.ones(3, np.float32)), replace(GOOD, config_hash="x")]
    assert len({question_digest(TRAIN, r) for r in (GOOD, *changed)} | {question_digest(METRICS, GOOD)}) == 5
    zero, minus_zero = np.zeros(2, np.float32), np.array([0.0, -0.0], np.float32)
    assert answer_digest(TRAIN, {"update": zero}) == answer_digest(TRAIN, {"update": zero.copy()})
    assert answer_digest(TRAIN, {"update": zero}) != answer_digest(TRAIN, {"update": minus_zero})
    assert answer_digest(TRAIN, {"update": zero}) != answer_digest(METRICS, {"update": zero})


def a_sum(**changes: Any) -> SumRequest:
    good: dict[str, Any] = {
        "config_hash": "c" * 64,
        "action": TRAIN,
        "round": 5,
        "question": question_digest(TRAIN, GOOD),
        "nonce": bytes(32),
        "roster": "d" * 64,
        "payload": b"all keys",
    }
    return SumRequest(**(good | changes))


def test_a_stage_of_a_sum_asks_for_one_thing_only() -> None:
    """Stage, sum, round, question, attempt, roster and payload: whichever is changed, it is another statement to sign."""
    changes = [
        {"action": METRICS},
        {"round": 4},
        {"question": "0" * 64},
        {"nonce": b"n" * 32},
        {"roster": "e" * 64},
        {"payload": b"other keys"},
        {"config_hash": "x"},
        {"protocol": 2},
    ]
    requests = [a_sum(), *(a_sum(**change) for change in changes)]
    assert len({statement(SHARE, r) for r in requests} | {statement(SIGN, a_sum())}) == len(requests) + 1


def test_an_attempt_is_named_by_its_nonce_and_its_question() -> None:
    expected = hashlib.sha256(b"silorec-secagg-round-1\0" + bytes(32) + bytes.fromhex(question_digest(TRAIN, GOOD))).digest()
    assert a_sum().round_id == expected
    assert len({a_sum().round_id, a_sum(nonce=b"n" * 32).round_id, a_sum(question="0" * 64).round_id}) == 3
    assert a_sum(payload=b"x", roster="e" * 64).round_id == expected


def test_what_is_asked_under_a_mask_is_what_would_be_asked_plainly() -> None:
    """So the digest that was shown when the attempt began can be compared with the question that comes at last."""
    asked = a_sum(config_hash=GOOD.config_hash, manifest_hash="m", vector=GOOD.vector).asked()
    assert isinstance(asked, AdapterRequest)
    assert question_digest(TRAIN, asked) == question_digest(TRAIN, GOOD)
    count = a_sum(config_hash=GOOD.config_hash, action=COUNT, round=0).asked()
    assert question_digest(COUNT, count) == question_digest(COUNT, Request(config_hash=GOOD.config_hash))


def test_attempts_share_a_charge_where_their_answer_is_the_same_and_not_where_each_draws_new_noise() -> None:
    first, again = a_sum(), a_sum(nonce=b"n" * 32)
    for mode in ("none", "silo"):
        assert release_question(mode, first) == release_question(mode, again) == first.question
    assert len({release_question("distributed", r) for r in (first, again)} | {first.question}) == 3


def test_a_salted_digest_tells_nothing_to_those_who_know_the_answer() -> None:
    fields = {"update": np.zeros(2, np.float32)}
    digests = {answer_digest(TRAIN, fields, salt) for salt in (b"", bytes(32), b"s" * 32)}
    assert len(digests) == 3
    assert answer_digest(TRAIN, fields, b"s" * 32) in digests


def test_every_setting_is_in_the_hash() -> None:
    assert config_hash(CONFIG) != config_hash(load({"run.seed": 1}))
    assert config_hash(load({"privacy.epsilon": 8})) == config_hash(load({"privacy.epsilon": 8.0}))


def test_unknown_settings_are_refused_with_and_without_the_app_prefix() -> None:
    allowed = r"app\.home, app\.key, app\.out, app\.roster"
    with pytest.raises(ConfigError, match=rf"unknown setting 'app\.outt' \(allowed in app: {allowed}\)"):
        read_run_config({"app.outt": "x"})
    with pytest.raises(ConfigError, match=r"unknown setting 'privacy\.epsilom'; did you mean 'epsilon'"):
        read_run_config({"privacy.epsilom": 1})


def test_seeds_are_as_written_down_and_differ_by_silo_and_round() -> None:
    expected = int.from_bytes(hashlib.sha256(b"silorec/7/2/3").digest(), "big") >> (256 - 63)
    assert silo_seed(7, 2, 3) == expected
    seeds = {silo_seed(run, silo, number) for run in range(5) for silo in range(12) for number in range(12)}
    assert len(seeds) == 5 * 12 * 12


def test_the_protocol_knows_no_flower() -> None:
    code = "import sys, common.protocol; sys.exit(any(name.split('.')[0] in ('flwr', 'torch') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
