"""Two ways to one sum, against NumPy: weights, order, precision, who is in it, and what the coordinator has to see for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from common.config import Config
from common.errors import ConfigError, ErrorCode, FederationError
from common.privacy.transcript import Transcript, read_transcript
from common.protocol import COUNT, MASK, REVEAL, SUMMED, TRAIN, Fields, SumRequest, question_digest
from common.secagg.coding import coding_of, weights_of
from common.secagg.messages import round_id
from common.secagg.roster import KeyRoster
from server.aggregation import PlainAggregation, SecureAggregation, Sum, aggregation_of
from server.exchange import Exchange, Roster
from simulations.grid import Fault, InProcessGrid
from tests.secure_silos import Consortium
from tests.server import fake_silos
from tests.server.masking_silos import STAGES, MaskingSilos, Vector, constant, drawn, question, settings

N = 7
CONFIG = settings(N)


def ask(way: PlainAggregation | SecureAggregation, action: str = TRAIN, length: int = 3) -> Sum:
    return way.ask(action, question(way.config, action, length), what="round 1", length=length)


def lost(stage: str, *silos: int):
    return lambda silo, message: Fault.LOST_REPLY if message.metadata.message_type == stage and silo in silos else None


def backwards(grid: InProcessGrid) -> InProcessGrid:
    """The same silos, whose answers arrive in the opposite order."""

    def send_and_receive(messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return list(reversed(InProcessGrid.send_and_receive(grid, messages, timeout=timeout)))

    grid.send_and_receive = send_and_receive  # type: ignore[method-assign]
    return grid


def answers(vector: Vector, silos: Iterable[int], action: str = TRAIN, config: Config = CONFIG) -> np.ndarray:
    return np.stack([vector(silo, action, question(config, action)) for silo in silos]).astype(np.float64)


def test_the_plain_sum_weighs_updates_by_declared_users_of_those_who_answered() -> None:
    found = ask(MaskingSilos(CONFIG, drawn(3)).plain(lost(TRAIN, 1, 4)))
    there = [0, 2, 3, 5, 6]
    declared = np.array(CONFIG.federation.declared_users, dtype=np.float64)[there]
    assert found.silos == tuple(there)
    assert found.total.dtype == np.float64
    np.testing.assert_allclose(found.mean, np.average(answers(drawn(3), there), axis=0, weights=declared), rtol=1e-13)
    np.testing.assert_allclose(found.total, declared / declared.max() @ answers(drawn(3), there), rtol=1e-13)
    assert found.weight == pytest.approx((declared / max(CONFIG.federation.declared_users)).sum(), rel=1e-15)


def test_a_count_and_updates_of_uniform_weighting_are_added_up_as_they_are() -> None:
    uniform = settings(N, federation__weighting="uniform")
    for config, action in ((CONFIG, COUNT), (uniform, TRAIN)):
        found = ask(MaskingSilos(config, drawn(3)).plain(), action)
        np.testing.assert_allclose(found.total, answers(drawn(3), range(N), action, config).sum(axis=0), rtol=1e-13)
        assert found.weight == N


def test_the_plain_sum_does_not_depend_on_who_answered_first() -> None:
    rng = np.random.default_rng(0)
    vectors = {i: (rng.normal(size=1000) * 10.0 ** rng.integers(-6, 6)).astype(np.float32) for i in range(N)}
    silos = MaskingSilos(CONFIG, constant(vectors))
    forward = ask(silos.plain(), length=1000)
    other = Exchange(backwards(silos.grid()), Roster.of(CONFIG.federation), CONFIG, question(CONFIG, COUNT).config_hash)
    np.testing.assert_array_equal(forward.total, ask(PlainAggregation(other, CONFIG), length=1000).total)
    # floating-point addition does depend on it
    both = [sum(w * vectors[i].astype(np.float64) for i, w in order) for order in _orders(weights_of(TRAIN, CONFIG))]
    assert not np.array_equal(*both)
    np.testing.assert_array_equal(forward.total, both[0])


def _orders(weights: tuple[float, ...]) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    forward = list(enumerate(weights))
    return forward, forward[::-1]


def test_the_plain_sum_is_made_in_float64() -> None:
    big, small = np.float32(2**24), np.float32(1.0)  # in float32, 2^24 + 1 = 2^24
    vectors = {0: np.array([big]), 1: np.array([small]), 2: np.array([-big])}
    config = settings(3, federation__weighting="uniform")
    assert ask(MaskingSilos(config, constant(vectors)).plain(), length=1).mean[0] == pytest.approx(1 / 3, rel=1e-15)


def test_an_answer_of_another_length_is_not_in_the_sum() -> None:
    vectors = {i: np.ones(2 if i == 5 else 3, np.float32) for i in range(N)}
    found = ask(MaskingSilos(CONFIG, constant(vectors)).plain())
    assert found.silos == (0, 1, 2, 3, 4, 6)
    assert found.refusals == {5: ErrorCode.INTERNAL}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("action", [COUNT, TRAIN])
def test_the_secure_sum_is_the_plain_one_up_to_the_documented_bound(action: str, bits: int) -> None:
    config = settings(N, aggregation__bits=bits)
    silos = MaskingSilos(config, drawn(2000))
    plain, secure = ask(silos.plain(), action, 2000), ask(silos.secure(), action, 2000)
    coding = coding_of(action, config, 2000)
    error = np.abs(secure.total - plain.total)
    # NumPy's own multiplications and additions of float64 are off by 2^-53 of numbers below 16 each
    assert error.max() < coding.error_bound(N) + 2 * N * 2.0**-49
    assert (secure.silos, secure.weight, secure.refusals) == (plain.silos, plain.weight, {})
    if bits == 32:
        assert coding.error_bound(N) == N / coding.scale
        assert error.max() > 1 / coding.scale, "nothing was rounded"


def test_without_the_masks_off_nothing_of_a_vector_is_to_be_seen() -> None:
    """What the coordinator holds of each silo is uniform: of 256 values of a byte each is met as often as chance has it.

    Pearson's statistic of 7 x 2000 x 4 bytes has mean 255 and deviation 22.6; beyond 400 in one of 10^7 runs.
    """
    silos = MaskingSilos(CONFIG, constant({i: np.zeros(2000, np.float32) for i in range(N)}))
    found = ask(silos.secure(), length=2000)
    np.testing.assert_array_equal(found.total, 0)
    (plain,) = silos.words.values()
    masked = np.stack([words for (_, silo), words in sorted(silos._masked.items())])
    assert not any(words.any() for words in plain.values())
    seen = np.bincount(masked.view(np.uint8).ravel(), minlength=256)
    assert ((seen - seen.mean()) ** 2 / seen.mean()).sum() < 400


@pytest.mark.parametrize("stage", STAGES)
def test_silos_that_vanish_at_any_stage_leave_the_sum_of_those_whose_vectors_came(stage: str) -> None:
    silos = MaskingSilos(CONFIG, drawn(50))
    found = ask(silos.secure(lost(stage, 2, 5)), length=50)
    late = STAGES.index(stage) > STAGES.index(MASK)
    there = tuple(range(N)) if late else (0, 1, 3, 4, 6)
    assert found.silos == there
    weights = np.array(weights_of(TRAIN, CONFIG))[list(there)]
    np.testing.assert_allclose(found.total, weights @ answers(drawn(50), there), atol=N / coding_of(TRAIN, CONFIG, 50).scale)
    assert found.weight == pytest.approx(weights.sum(), rel=1e-15)


def test_a_silo_that_refuses_is_named_with_its_code_and_is_not_in_the_sum() -> None:
    silos = MaskingSilos(CONFIG, drawn(3))
    silos.consortium.keys = (*silos.consortium.keys[:6], silos.consortium.keys[0])  # silo 6 has another key than the roster's
    found = ask(silos.secure())
    assert found.silos == (0, 1, 2, 3, 4, 5)
    assert found.refusals == {6: ErrorCode.SECAGG_REFUSED}


def test_a_vector_of_another_kind_of_words_is_left_out_and_the_sum_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    silos = MaskingSilos(CONFIG, drawn(3))
    masked = silos._mask

    def wide(silo: int, asked: SumRequest) -> Fields:
        fields = masked(silo, asked)
        return {**fields, "masked": fields["masked"].astype(np.uint64)} if silo == 4 else fields

    monkeypatch.setattr(silos, "_mask", wide)
    found = ask(silos.secure())
    assert found.silos == (0, 1, 2, 3, 5, 6)
    assert found.refusals == {4: ErrorCode.INTERNAL}
    weights = np.array(weights_of(TRAIN, CONFIG))[list(found.silos)]
    np.testing.assert_allclose(found.total, weights @ answers(drawn(3), found.silos), atol=N / coding_of(TRAIN, CONFIG, 3).scale)
    assert len(silos.words) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_where_too_few_are_left_after_a_stage_there_is_no_sum(stage: str) -> None:
    silos = MaskingSilos(CONFIG, drawn(3))
    why = rf"round 1, {stage}: 4 of 7 silos answered, the quorum is 5 \(silo 1: no answer, silo 3: no answer, silo 6: no answer\)"
    with pytest.raises(FederationError, match=why):
        ask(silos.secure(lost(stage, 1, 3, 6)))


@pytest.mark.parametrize("stage", STAGES)
def test_silos_that_are_late_at_a_stage_are_asked_again_before_a_sum_is_given_up(stage: str) -> None:
    """Three of seven lose their first answer of the stage; the second one is the same, and all seven are in the sum."""
    silos, tries = MaskingSilos(CONFIG, drawn(3)), dict.fromkeys((1, 3, 6), 0)

    def late(silo: int, message: Message) -> Fault | None:
        if message.metadata.message_type != stage or silo not in tries:
            return None
        tries[silo] += 1
        return Fault.LOST_REPLY if tries[silo] == 1 else None

    assert ask(silos.secure(late)).silos == tuple(range(N))
    assert set(tries.values()) == {2}
    assert len(silos.words) == 1, "a second attempt was made"


def test_the_federations_own_quorum_holds_where_it_asks_for_more() -> None:
    config = settings(N, federation__quorum=0.9)
    assert ask(MaskingSilos(config, drawn(3)).secure()).silos == tuple(range(N))
    for stage in STAGES[:3]:
        with pytest.raises(FederationError, match=rf"{stage}: 6 of 7 silos answered, the quorum is 7"):
            ask(MaskingSilos(config, drawn(3)).secure(lost(stage, 0)))


def test_the_transcript_tells_of_each_attempt_who_was_in_it_and_of_no_vector(tmp_path: Path) -> None:
    silos = MaskingSilos(CONFIG, drawn(3))
    transcript = Transcript(tmp_path / "transcript.jsonl", {"config": "c"})
    found = ask(silos.secure(lost(MASK, 2), transcript))
    record = read_transcript(tmp_path / "transcript.jsonl")
    (one,) = record.sums
    asked = question_digest(TRAIN, question(CONFIG, TRAIN))
    assert (one["action"], one["round"], one["question"], one["outcome"]) == (TRAIN, 1, asked, "sum")
    assert (one["advertised"], one["shared"]) == (list(range(N)), list(range(N)))
    assert tuple(one["survivors"]) == found.silos == (0, 1, 3, 4, 5, 6)
    assert one["roster"] == silos.consortium.roster.digest
    assert (one["degree"], one["threshold"], one["quorum"]) == (6, 5, 4)
    assert len(one["signatures"]) == 4
    assert list(silos.words) == [round_id(bytes.fromhex(one["nonce"]), one["question"])]
    # the answers that are in the sum, by the digests under their masks; refusals and losses are no answers
    assert [(a.action, a.silo, a.question, a.answer) for a in record.answers] == [
        (TRAIN, silo, asked, bytes(32).hex()) for silo in found.silos
    ]
    text = (tmp_path / "transcript.jsonl").read_text()
    assert not any(word in text for word in ("masked", "shares", "revealed", "seed"))


def test_an_attempt_without_a_sum_is_in_the_transcript_with_its_reason(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path / "transcript.jsonl", {"config": "c"})
    with pytest.raises(FederationError):
        ask(MaskingSilos(CONFIG, drawn(3)).secure(lost(REVEAL, 0, 1, 2), transcript))
    sums = read_transcript(tmp_path / "transcript.jsonl").sums
    assert all("query.reveal: 4 of" in one["outcome"] for one in sums)
    assert len({one["nonce"] for one in sums}) == len(sums)


def test_the_configuration_chooses_the_way() -> None:
    exchange = MaskingSilos(CONFIG, drawn(3)).exchange()
    roster = Consortium(N).roster
    assert isinstance(aggregation_of(CONFIG, exchange, roster, None), SecureAggregation)
    assert isinstance(aggregation_of(fake_silos.config(), exchange, None, None), PlainAggregation)
    with pytest.raises(ConfigError, match=r"needs the consortium's roster: give app\.roster"):
        aggregation_of(CONFIG, exchange, None, None)
    with pytest.raises(ConfigError, match="the roster has 6 silos, the configuration 7"):
        aggregation_of(CONFIG, exchange, KeyRoster(roster.names[:6], roster.keys[:6]), None)


def test_what_is_summed_is_all_that_silos_answer_with_vectors() -> None:
    """A new kind of answer needs a coding and weights, or it could be asked plainly only."""
    for action in SUMMED:
        coding_of(action, CONFIG, 2)
        assert len(weights_of(action, CONFIG)) == N
