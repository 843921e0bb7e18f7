"""The round loop: the right numbers, a quorum, silos that drop out, a coordinator that is killed, sums that fail."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from common.config import Config
from common.errors import ConfigError, ErrorCode, FederationError
from common.privacy.plan import plan_for
from common.privacy.transcript import FILE, read_transcript
from common.protocol import ADVERTISE, MASK, REVEAL, SHARE, SIGN, TRAIN, Request
from common.secagg.rules import Rules
from server.aggregation import ATTEMPTS as SUM_ATTEMPTS
from server.aggregation import Sum
from server.exchange import ATTEMPTS, Roster
from server.federation import FederationResult, RoundReport, Start, pseudo_gradient, run_federation
from simulations.grid import Fault
from tests.server import fake_silos
from tests.server.fake_silos import DECLARED, N_ITEMS, TARGETS
from tests.server.masking_silos import MaskingSilos, constant, settings

START = Start(np.zeros(3, dtype=np.float32), "manifest")
FIXED = np.average(TARGETS, axis=0, weights=DECLARED)


def run(grid=None, start: Start = START, folder: Path | None = None, on_round=None, stop=None, **federation) -> FederationResult:
    config = fake_silos.config(**federation)
    return run_federation(
        grid or fake_silos.grid(), config, start, Roster.of(config.federation), folder=folder, on_round=on_round, stop=stop
    )


def test_rounds_of_fedavg_give_the_closed_form() -> None:
    """Each silo moves half of the way to its target, so the mean target is approached by halves."""
    result = run(rounds=5)
    np.testing.assert_allclose(result.vector, FIXED * (1 - 0.5**5), rtol=1e-6)
    assert result.round == 5
    assert [entry["round"] for entry in result.history] == [0, 1, 2, 3, 4, 5]
    assert not result.stopped


def test_uniform_weights_count_every_silo_alike() -> None:
    np.testing.assert_allclose(run(rounds=1, weighting="uniform").vector, TARGETS.mean(axis=0) / 2, rtol=1e-6)


def test_round_0_sums_the_counts_and_says_how_much_noise_is_in_them() -> None:
    seen: list[tuple[NDArray[np.float64], float]] = []

    def biased(vector, counts, noise_std):
        seen.append((counts, noise_std))
        return vector + np.float32(100)

    start = Start(np.zeros(3, np.float32), "manifest", biased, count_noise_std=2.0, n_items=N_ITEMS)
    result = run(start=start, rounds=0)
    ((counts, noise_std),) = seen
    np.testing.assert_array_equal(counts, [0 + 1 + 2, 3 + 3, 6 + 3, 9 + 3])
    assert noise_std == pytest.approx((2.0**2 + 2.0**2 + 2.0**2) ** 0.5)
    np.testing.assert_array_equal(result.vector, np.full(3, 100, np.float32))


def test_a_silo_that_drops_out_leaves_the_weighted_mean_of_the_others() -> None:
    faults = lambda partition, message: Fault.LOST_REPLY if partition == 2 and message.metadata.message_type == "train" else None  # noqa: E731
    result = run(fake_silos.grid(faults=faults), rounds=1)
    np.testing.assert_allclose(result.vector, np.average(TARGETS[:2], axis=0, weights=DECLARED[:2]) / 2, rtol=1e-6)
    assert result.history[-1]["answered"] == [0, 1]


def test_a_round_without_a_quorum_fails_with_the_reasons_and_keeps_the_state(tmp_path: Path) -> None:
    spoil = lambda silo, number: ErrorCode.BUDGET_EXHAUSTED if number == 2 and silo > 0 else None  # noqa: E731
    with pytest.raises(
        FederationError, match=r"round 2: 1 of 3 silos answered, the quorum is 2 \(silo 1: BUDGET_EXHAUSTED, silo 2: BUDGET_EXH"
    ):
        run(fake_silos.grid(spoil), folder=tmp_path)
    reports: list[RoundReport] = []
    resumed = run(folder=tmp_path, on_round=reports.append)
    assert [report.round for report in reports] == [2, 3]
    np.testing.assert_array_equal(resumed.vector, run().vector)


def test_a_silo_is_asked_again_only_while_the_quorum_is_missing_and_its_refusal_is_not_final() -> None:
    asked: list[tuple[int, int]] = []

    def spoil(silo: int, number: int) -> ErrorCode | None:
        asked.append((silo, number))
        if number == 1:
            return {0: ErrorCode.INTERNAL, 1: ErrorCode.BUDGET_EXHAUSTED, 2: None}[silo]
        return None

    with pytest.raises(FederationError, match="silo 0: INTERNAL, silo 1: BUDGET_EXHAUSTED"):
        run(fake_silos.grid(spoil), rounds=1)
    assert asked.count((0, 1)) == ATTEMPTS
    assert asked.count((1, 1)) == 1
    assert asked.count((2, 1)) == 1
    asked.clear()
    run(fake_silos.grid(spoil), rounds=1, quorum=0.3)
    assert sorted(asked) == [(0, 1), (1, 1), (2, 1)]


def test_a_silo_that_recovers_when_asked_again_is_in_the_round() -> None:
    tries = {1: 0, 2: 0}

    def faults(partition: int, message: Message) -> Fault | None:
        if message.metadata.message_type != "train" or partition == 0:
            return None
        tries[partition] += 1
        return Fault.LOST_REQUEST if tries[partition] == 1 else None

    result = run(fake_silos.grid(faults=faults), rounds=1)
    np.testing.assert_allclose(result.vector, FIXED / 2, rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["fedavg", "fedadam"])
@pytest.mark.parametrize("averaging", [0.0, 0.6])
@pytest.mark.parametrize("killed_after", [0, 1, 2, 3])
def test_killed_after_any_round_and_resumed_is_the_same_as_never_killed(
    tmp_path: Path, optimizer: str, averaging: float, killed_after: int
) -> None:
    class Killed(Exception):
        pass

    def kill(report: RoundReport) -> None:
        if report.round == killed_after:
            raise Killed

    settings = {"rounds": 4, "server_optimizer": optimizer, "server_learning_rate": 0.3, "server_averaging": averaging}
    whole = run(**settings)
    with pytest.raises(Killed):
        run(folder=tmp_path, on_round=kill, **settings)
    after: list[int] = []
    resumed = run(folder=tmp_path, on_round=lambda report: after.append(report.round), **settings)
    assert after == list(range(killed_after + 1, 5))
    np.testing.assert_array_equal(resumed.vector, whole.vector)
    assert resumed.history == whole.history


def test_a_finished_federation_asks_nobody_again(tmp_path: Path) -> None:
    first = run(folder=tmp_path)
    spoil = lambda silo, number: pytest.fail("asked again")  # noqa: E731
    np.testing.assert_array_equal(run(fake_silos.grid(spoil), folder=tmp_path).vector, first.vector)


def test_a_stop_ends_between_rounds_and_can_be_resumed(tmp_path: Path) -> None:
    done: list[int] = []
    stopped = run(folder=tmp_path, on_round=lambda report: done.append(report.round), stop=lambda: len(done) == 2)
    assert stopped.stopped
    assert stopped.round == 1
    np.testing.assert_array_equal(run(folder=tmp_path).vector, run().vector)


BAD_REPLIES = {
    "an extra vector": RecordDict(
        {"protected": ArrayRecord({"update": Array(np.zeros(3, np.float32)), "raw": Array(np.zeros(3))})}
    ),
    "an extra record": RecordDict(
        {"protected": ArrayRecord({"update": Array(np.zeros(3, np.float32))}), "notes": ConfigRecord({"user": "u1"})}
    ),
    "another length": RecordDict({"protected": ArrayRecord({"update": Array(np.zeros(2, np.float32))})}),
    "another dtype": RecordDict({"protected": ArrayRecord({"update": Array(np.zeros(3, np.float64))})}),
    "not a number": RecordDict({"protected": ArrayRecord({"update": Array(np.array([0, np.nan, 0], np.float32))})}),
    "nothing": RecordDict(),
    "a pickle": RecordDict({"protected": ArrayRecord({"update": Array("object", (1,), "numpy.ndarray", b"\x80\x04N.")})}),
}


@pytest.mark.parametrize("what", BAD_REPLIES)
def test_a_reply_with_anything_but_the_listed_fields_is_not_used(what: str) -> None:
    spoil = lambda silo, number: BAD_REPLIES[what] if silo == 2 and number else None  # noqa: E731
    result = run(fake_silos.grid(spoil), rounds=1)
    assert result.history[-1]["answered"] == [0, 1]
    assert result.history[-1]["refused"] == {"2": "INTERNAL"}


def test_two_nodes_that_claim_one_place_are_refused() -> None:
    with pytest.raises(FederationError, match="two nodes call themselves silo 0"):
        run(fake_silos.grid(places={2: 0}))


def test_missing_silos_are_waited_for_until_the_deadline() -> None:
    began = time.monotonic()
    assert run(fake_silos.grid(n=2), rounds=1, deadline=0.3).history[-1]["answered"] == [0, 1]
    assert 0.3 <= time.monotonic() - began < 5
    with pytest.raises(FederationError, match=r"1 of 3 silos have enrolled, the quorum is 2, the deadline 0\.3 s: start the"):
        run(fake_silos.grid(n=1), rounds=1, deadline=0.3)


def test_a_node_that_is_not_in_the_roster_is_left_out_and_not_waited_for() -> None:
    began = time.monotonic()
    assert run(fake_silos.grid(places={2: 9}), rounds=1, deadline=60.0).history[-1]["answered"] == [0, 1]
    with pytest.raises(FederationError, match=r"2 nodes were turned away or refused \(silo 8 is not in .*, silo 9 is not in"):
        run(fake_silos.grid(places={1: 8, 2: 9}), rounds=1, deadline=60.0)
    assert time.monotonic() - began < 30


def test_declared_users_must_be_there() -> None:
    with pytest.raises(ConfigError, match=r"set federation\.declared_users"):
        Roster.of(fake_silos.config(declared_users=[1]).federation.model_copy(update={"declared_users": ()}))


# Secure sums


UPDATES = {silo: np.array([silo, -1.0, 2.0], np.float32) for silo in range(4)}
DISTRIBUTED = {
    "privacy__mode": "distributed",
    "aggregation__corrupt": 0.0,
    "privacy__epsilon": 4.0,
    "privacy__delta": 1e-3,
    "privacy__max_grad_norm": 2.0,
    "training__local_steps": 1,
    "training__sampling_probability": 0.5,
}


class LostInAttempt:
    """Loses the answers of half of all silos to ``stage`` in the first ``attempts`` attempts at a sum of training."""

    def __init__(self, stage: str, attempts: int) -> None:
        self.stage, self.attempts = stage, attempts
        self.nonces: list[bytes] = []

    def __call__(self, silo: int, message: Message) -> Fault | None:
        said = message.content["request"]
        if said.get("sum") != TRAIN:
            return None
        if said["nonce"] not in self.nonces:
            self.nonces.append(said["nonce"])
        early = len(self.nonces) <= self.attempts
        return Fault.LOST_REPLY if early and message.metadata.message_type == self.stage and silo < 2 else None


def run_secure(
    config: Config, silos: MaskingSilos, faults: LostInAttempt | None = None, folder: Path | None = None
) -> FederationResult:
    roster = Roster.of(config.federation)
    return run_federation(silos.grid(faults), config, START, roster, folder=folder, key_roster=silos.consortium.roster)


@pytest.mark.parametrize("stage", [ADVERTISE, SHARE, MASK, SIGN, REVEAL])
def test_a_sum_that_fails_is_made_again_under_new_keys(stage: str, tmp_path: Path) -> None:
    config = settings(4, federation__rounds=1)
    silos, faults = MaskingSilos(config, constant(UPDATES)), LostInAttempt(stage, 1)
    result = run_secure(config, silos, faults, tmp_path)
    mean = np.average(list(UPDATES.values()), axis=0, weights=config.federation.declared_users)
    np.testing.assert_allclose(result.vector, mean, atol=1e-6)
    assert result.history[-1]["answered"] == [0, 1, 2, 3]
    first, second = read_transcript(tmp_path / FILE).sums
    assert f"{stage}: 2 of 4 silos answered" in first["outcome"]
    assert second["outcome"] == "sum"
    assert first["question"] == second["question"]
    assert [first["nonce"], second["nonce"]] == [nonce.hex() for nonce in faults.nonces]
    keys = [read_keys(silos, nonce) for nonce in faults.nonces]
    assert not keys[0] & keys[1], "a key was used for two attempts"


def read_keys(silos: MaskingSilos, nonce: bytes) -> set[bytes]:
    """All public keys that were relayed in an attempt; none if it ended before."""
    from common.secagg.messages import unpack_advertisements

    lists = {asked.payload for stage, _, asked in silos.asked if stage == SHARE and asked.nonce == nonce}
    return {key for one in lists for ad in unpack_advertisements(one) for key in (ad.mask_key, ad.share_key)}


def test_three_attempts_are_made_and_no_fourth(tmp_path: Path) -> None:
    config = settings(4, federation__rounds=1)
    faults = LostInAttempt(REVEAL, SUM_ATTEMPTS)
    with pytest.raises(FederationError, match=r"round 1, query\.reveal: 2 of 4 silos answered, the quorum is 3"):
        run_secure(config, MaskingSilos(config, constant(UPDATES)), faults, tmp_path)
    assert len(faults.nonces) == SUM_ATTEMPTS == 3
    assert len(read_transcript(tmp_path / FILE).sums) == 3
    np.testing.assert_allclose(run_secure(config, MaskingSilos(config, constant(UPDATES))).vector[1], -1.0, atol=1e-6)


@pytest.mark.parametrize("stage", [MASK, SIGN, REVEAL])
def test_in_mode_distributed_no_silo_is_charged_for_another_attempt_by_itself(stage: str, tmp_path: Path) -> None:
    """Once a silo may have drawn its noise, also where its vector never came, a person has to take the run up again."""
    config = settings(4, federation__rounds=1, federation__round_attempts=3, **DISTRIBUTED)
    silos, faults = MaskingSilos(config, constant(UPDATES)), LostInAttempt(stage, 1)
    with pytest.raises(FederationError, match=rf"round 1, {stage}: 2 of 4 silos answered"):
        run_secure(config, silos, faults, tmp_path)
    assert len(faults.nonces) == len(silos.words) == 1
    run_secure(config, silos, LostInAttempt(stage, 0), tmp_path)
    assert len(silos.words) == 2


@pytest.mark.parametrize("stage", [ADVERTISE, SHARE])
def test_in_mode_distributed_an_attempt_that_cost_nothing_is_made_again(stage: str) -> None:
    config = settings(4, federation__rounds=1, **DISTRIBUTED)
    silos, faults = MaskingSilos(config, constant(UPDATES)), LostInAttempt(stage, 1)
    assert run_secure(config, silos, faults).history[-1]["answered"] == [0, 1, 2, 3]
    assert len(faults.nonces) == 2
    assert len(silos.words) == 1


def test_a_round_of_mode_none_moves_by_the_mean_update() -> None:
    config = settings(4)
    summed = Sum(np.array([3.0, -6.0, 0.0]), 1.5, (0, 2))
    update, noise_std = pseudo_gradient(summed, config)
    np.testing.assert_array_equal(update, [2.0, -4.0, 0.0])
    assert noise_std == 0.0


def test_a_round_of_mode_distributed_moves_against_the_mean_gradient_of_the_users_that_are_expected() -> None:
    """Silos 0, 2 and 3 declare 298 users, half of whom are expected in a step: 149."""
    config = settings(4, **DISTRIBUTED)
    assert [config.federation.declared_users[silo] for silo in (0, 2, 3)] == [20, 202, 76]
    summed = Sum(np.array([298.0, -14.9, 0.0]), 3.0, (0, 2, 3))
    update, noise_std = pseudo_gradient(summed, config)
    np.testing.assert_allclose(update, [-2.0, 0.1, 0.0], rtol=1e-15)
    # three silos are the fewest in a sum, and none colludes: together they have the noise of one Gaussian of C = 2, and a
    # thousandth more for what floating point may add
    z = plan_for(config, 20, 20).noise_multiplier
    assert Rules.of(config).honest == 3
    assert noise_std == pytest.approx(z * 2.0 * (1 + 2**-10) / 149.0, rel=1e-7)
    all_four, of_all = pseudo_gradient(Sum(summed.total, 4.0, (0, 1, 2, 3)), config)
    assert of_all * 0.5 * sum(config.federation.declared_users) == pytest.approx(noise_std * 149.0 * (4 / 3) ** 0.5, rel=1e-7)
    np.testing.assert_allclose(all_four, -summed.total / (0.5 * sum(config.federation.declared_users)), rtol=1e-15)


def test_a_round_of_mode_distributed_takes_the_step_and_tells_the_optimiser_of_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of gradients that the silos hold, to eight standard deviations: beyond that in one of 10^14 runs."""
    from server import optimisers

    config = settings(4, federation__rounds=1, **DISTRIBUTED)
    told: list[float] = []

    def fedavg(vector, update, state, config, noise_std=0.0):
        told.append(noise_std)
        return optimisers.fedavg(vector, update, state, config, noise_std)

    monkeypatch.setitem(optimisers.OPTIMISERS, "fedavg", fedavg)
    result = run_secure(config, MaskingSilos(config, constant(UPDATES)))
    users = 0.5 * sum(config.federation.declared_users)
    expected = -np.sum(list(UPDATES.values()), axis=0) / users
    assert len(told) == 1
    assert 0 < told[0] < 0.1
    np.testing.assert_allclose(result.vector, expected, atol=8 * told[0])
    assert not np.allclose(result.vector, expected, atol=told[0] / 1000)


def test_the_noise_in_a_count_of_mode_distributed_is_that_of_all_shares_together() -> None:
    config = settings(4, federation__rounds=0, **DISTRIBUTED)
    seen: list[tuple[NDArray[np.float64], float]] = []

    def biased(vector, counts, noise_std):
        seen.append((counts, noise_std))
        return vector

    silos = MaskingSilos(config, constant({silo: np.arange(3, dtype=np.float32) for silo in range(4)}))
    start = Start(np.zeros(3, np.float32), "manifest", biased, count_noise_std=99.0, n_items=3)
    run_federation(silos.grid(), config, start, Roster.of(config.federation), key_roster=silos.consortium.roster)
    ((counts, noise_std),) = seen
    z = plan_for(config, 20, 20).count_noise_multiplier
    assert noise_std == pytest.approx(z * (1 + 2**-10) * (4 / 3) ** 0.5, rel=1e-7)
    np.testing.assert_allclose(counts, [0.0, 4.0, 8.0], atol=8 * noise_std)


def test_what_a_secure_round_asks_is_one_question_of_all_silos() -> None:
    config = settings(4, federation__rounds=1)
    silos = MaskingSilos(config, constant(UPDATES))
    run_secure(config, silos)
    assert [stage for stage, silo, _ in silos.asked if silo == 0] == [ADVERTISE, SHARE, MASK, SIGN, REVEAL]
    assert len({(asked.nonce, asked.question) for _, _, asked in silos.asked}) == 1
    assert all(isinstance(asked, Request) and (asked.vector is not None) == (stage == MASK) for stage, _, asked in silos.asked)
