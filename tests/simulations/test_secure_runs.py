"""Whole runs with secure sums: repeatable, as exact as is said, resumable, charged once, and in order for an auditor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client.place import LEDGER, folder_of
from common.config import Config, to_toml
from common.errors import FederationError
from common.model.resident import resident
from common.privacy.audit.evidence import load_evidence
from common.privacy.audit.verify import Verified, verify
from common.privacy.entries import Chain
from common.privacy.ledger import read_ledger
from common.privacy.plan import plan_for
from common.privacy.signing import create_key
from common.privacy.transcript import FILE, read_transcript
from common.protocol import MASK, REVEAL, TRAIN, config_hash
from common.secagg.coding import coding_of, weights_of
from common.secagg.roster import ROSTER, read_roster
from server.app import start_of
from server.exchange import Roster, Sign
from server.federation import FederationResult, run_federation
from simulations.grid import Fault, Faults
from tests import tiny

N = 4


def config(**settings: Any) -> Config:
    """Four silos, so a sum takes three."""
    run = {"partition__silos": N, "data__synthetic__users": 60, "training__local_steps": 1}
    return tiny.config(**(run | settings))


def run(config: Config, out: Path, faults: Faults | None = None, sign: Sign | None = None) -> FederationResult:
    """As a simulation does it, up to the last adapter."""
    grid = tiny.grid(config, out, faults=faults)
    keys = read_roster(out / ROSTER) if config.is_secure else None
    (out / "config.toml").parent.mkdir(parents=True, exist_ok=True)
    (out / "config.toml").write_text(to_toml(config))
    roster = Roster.of(config.federation)
    return run_federation(grid, config, start_of(config), roster, folder=out, sign=sign, key_roster=keys)


def ledger(out: Path, silo: int) -> Chain:
    return read_ledger(folder_of(out, silo) / LEDGER)


def audit(out: Path) -> Verified:
    verified = verify(load_evidence(out))
    assert verified.holds, "; ".join(f"{check.name}: {check.named}" for check in verified.broken)
    assert verified.check("sums").outcome == "holds", verified.check("sums").evidence
    return verified


def lost_once(stage: str, *silos: int) -> Faults:
    """These silos' answers to ``stage`` are lost in the first attempt at the sum of round 1, however often they are asked."""
    nonces: list[bytes] = []

    def fault(silo: int, message: Message) -> Fault | None:
        said = message.content["request"]
        if said.get("sum") != TRAIN or said["round"] != 1:
            return None
        if said["nonce"] not in nonces:
            nonces.append(said["nonce"])
        return Fault.LOST_REPLY if len(nonces) == 1 and message.metadata.message_type == stage and silo in silos else None

    return fault


@pytest.mark.parametrize("bits", [32, 64])
def test_a_run_in_mode_none_is_repeated_bit_for_bit_under_other_keys(bits: int, tmp_path: Path) -> None:
    settings = config(aggregation__bits=bits)
    first, again = (run(settings, tmp_path / name) for name in "ab")
    np.testing.assert_array_equal(first.vector, again.vector)
    assert first.history == again.history
    nonces = [{one["nonce"] for one in read_transcript(tmp_path / name / FILE).sums} for name in "ab"]
    assert [len(of_a_run) for of_a_run in nonces] == [3, 3]
    assert not nonces[0] & nonces[1]
    other = run(config(aggregation__bits=bits, run__seed=1), tmp_path / "c")
    assert not np.array_equal(first.vector, other.vector)


def test_an_attempt_that_failed_changes_nothing_of_a_run_in_mode_none(tmp_path: Path) -> None:
    """The second attempt rounds as the first did, so that the run is the same bit for bit."""
    whole = run(config(), tmp_path / "whole")
    tried = run(config(), tmp_path / "tried", lost_once(REVEAL, 0, 1))
    np.testing.assert_array_equal(whole.vector, tried.vector)
    outcomes = [one["outcome"] for one in read_transcript(tmp_path / "tried" / FILE).sums]
    assert len(outcomes) == 4
    assert outcomes.count("sum") == 3


@pytest.mark.parametrize("bits", [32, 64])
def test_a_round_of_secure_sums_is_a_plain_one_up_to_the_documented_bound(bits: int, tmp_path: Path) -> None:
    """One round without item biases, so both train from the same adapter; the federation's mean is then off by less than a step
    per silo, over the sum of the weights, and by the rounding of the adapter to float32.
    """
    same = {"model__bias_weight": 0.0, "federation__rounds": 1, "aggregation__bits": bits}
    secure, plain = config(**same), config(**same, aggregation__method="plain")
    masked, bare = run(secure, tmp_path / "secure").vector, run(plain, tmp_path / "plain").vector
    weights = weights_of(TRAIN, secure)
    assert len(set(weights)) > 1
    bound = coding_of(TRAIN, secure, len(masked)).error_bound(N) / sum(weights)
    float32 = 2.0**-23 * np.abs(bare.astype(np.float64)).max()
    error = np.abs(masked.astype(np.float64) - bare).max()
    assert error <= bound + float32
    assert np.linalg.norm(bare - resident(plain).start) > 1000 * (bound + float32), "nothing was trained"


def test_a_secure_run_that_is_stopped_and_resumed_is_the_same_as_one_that_is_not(tmp_path: Path) -> None:
    whole = run(config(), tmp_path / "whole")
    settings, out = config(), tmp_path / "stopped"
    calls = iter([False, False, True])
    grid, start, roster = tiny.grid(settings, out), start_of(settings), Roster.of(settings.federation)
    keys = read_roster(out / ROSTER)
    stopped = run_federation(grid, settings, start, roster, folder=out, key_roster=keys, stop=lambda: next(calls))
    assert stopped.stopped
    assert stopped.round == 1
    np.testing.assert_array_equal(run(settings, out).vector, whole.vector)
    assert len(read_transcript(out / FILE).sums) == 3


def test_a_secure_run_in_mode_silo_is_charged_as_a_plain_one_and_passes_the_audit(tmp_path: Path) -> None:
    settings = config(privacy__mode="silo", privacy__metrics_share=0.1)
    result = run(settings, tmp_path)
    declared = settings.federation.declared_users
    for silo in range(N):
        chain = ledger(tmp_path, silo)
        expected = plan_for(settings, declared[silo], min(declared)).all_events()
        assert [what.released for _, what in chain.reservations] == expected
        assert not chain.open_reservations
    assert result.metrics["hr_std"] > 0
    audit(tmp_path)


@pytest.mark.parametrize("stage", [MASK, REVEAL])
def test_in_mode_silo_an_attempt_that_is_made_again_is_not_charged_again(stage: str, tmp_path: Path) -> None:
    settings = config(privacy__mode="silo")
    run(settings, tmp_path, lost_once(stage, 0, 1))
    record = read_transcript(tmp_path / FILE)
    assert [(one["round"], one["outcome"] == "sum") for one in record.sums] == [(0, True), (1, False), (1, True), (2, True)]
    declared = settings.federation.declared_users
    for silo in range(N):
        chain = ledger(tmp_path, silo)
        plan = plan_for(settings, declared[silo], min(declared))
        assert [what.released for _, what in chain.reservations] == plan.all_events()
        told = {answer.answer for answer in record.answers if answer.silo == silo and answer.round == 1}
        assert len(told) == 1, "the two attempts were of two answers"
    audit(tmp_path)


def test_in_mode_distributed_an_attempt_that_was_paid_for_ends_the_run_and_a_resumed_one_is_charged_anew(tmp_path: Path) -> None:
    """A simulated silo's policy has room for the run and no more, so the round that was lost is missing at the end."""
    settings = config(privacy__mode="distributed", federation__rounds=3)
    with pytest.raises(FederationError, match=r"round 1, query\.reveal: 2 of 4 silos answered"):
        run(settings, tmp_path, lost_once(REVEAL, 0, 1))
    charged = [len(ledger(tmp_path, silo).reservations) for silo in range(N)]
    assert charged == [2] * N
    with pytest.raises(FederationError, match=r"round 3, query\.mask: .*silo 0: BUDGET_EXHAUSTED"):
        run(settings, tmp_path)
    for silo in range(N):
        chain = ledger(tmp_path, silo)
        rounds = [what.round for _, what in chain.reservations]
        assert rounds == [0, 1, 1, 2]
        questions = {what.question for _, what in chain.reservations}
        assert len(questions) == 4, "each attempt is a question of its own"
    audit(tmp_path)


def test_a_run_in_mode_distributed_is_charged_by_the_sums_and_passes_the_audit(tmp_path: Path) -> None:
    settings = config(privacy__mode="distributed", privacy__metrics_share=0.1, federation__rounds=3)
    result = run(settings, tmp_path)
    declared = settings.federation.declared_users
    for silo in range(N):
        chain = ledger(tmp_path, silo)
        assert [what.released for _, what in chain.reservations] == plan_for(settings, declared[silo], min(declared)).all_events()
    assert [entry["answered"] for entry in result.history] == [[0, 1, 2, 3]] * 4
    audit(tmp_path)


@pytest.mark.parametrize("mode", ["none", "silo", "distributed"])
def test_a_coordinator_that_signs_its_questions_gets_secure_sums(mode: str, tmp_path: Path) -> None:
    key = create_key(tmp_path / "coordinator.key")
    settings = config(privacy__mode=mode, federation__rounds=1, federation__coordinator=key.public_key)
    result = run(settings, tmp_path / "run", sign=key.sign)
    assert result.history[-1]["answered"] == [0, 1, 2, 3]
    if mode != "none":
        audit(tmp_path / "run")
    with pytest.raises(FederationError, match="POLICY_REFUSED"):
        run(settings, tmp_path / "unsigned")


def test_the_transcript_holds_each_silos_answer_to_each_question_once_for_each_attempt_that_it_was_in(tmp_path: Path) -> None:
    settings = config(federation__backoff_rounds=0)
    run(settings, tmp_path, lost_once(MASK, 2))
    record = read_transcript(tmp_path / FILE)
    assert record.run["config"] == config_hash(settings)
    assert [(one["round"], one["survivors"]) for one in record.sums] == [(0, [0, 1, 2, 3]), (1, [0, 1, 3]), (2, [0, 1, 2, 3])]
    assert [(a.round, a.silo) for a in record.answers] == [
        (one["round"], silo) for one in record.sums for silo in one["survivors"]
    ]
    assert not record.refusals
