"""As ``test_requests``, for secure sums: whatever attempts a coordinator makes, in whatever order, nothing passes the policy."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

import client.sums
import client.trainer
from client.place import KEY, LEDGER, Place
from client.silo import Silo
from common.config import Config, load, to_dict
from common.errors import BudgetExhausted, ErrorCode, PolicyRefused, SecAggError
from common.model.resident import resident
from common.privacy.ledger import Ledger, read_ledger
from common.privacy.policy import Policy
from common.privacy.signing import SigningKey, create_key
from common.protocol import (
    COUNT,
    TRAIN,
    AdapterRequest,
    Fields,
    Refusal,
    Request,
    SumRequest,
    config_hash,
    question_digest,
    release_question,
    round_of,
)
from common.secagg.coding import coding_of
from common.secagg.roster import KeyRoster, write_roster
from server.secagg import SecureSum
from tests import tiny
from tests.client.test_requests import ALWAYS_REFUSED, DELTA, LIMIT, RUNS
from tests.secure_silos import Consortium

N = 3
MODES = ("silo", "distributed")


@cache
def run(mode: str, name: str) -> Config:
    base = {"privacy__mode": mode, "privacy__delta": DELTA, "federation__rounds": 4, "training__sampling_probability": 0.5}
    config = tiny.config(**(base | {"partition__silos": N, "training__local_steps": 1} | RUNS[name]))
    return load(to_dict(config), {"federation.declared_users": [90] * N}) if name == "other declared users" else config


@dataclass(frozen=True)
class Asked:
    """One attempt at a sum: of which run and round (0 is the count), from which adapter; ``attempt`` tells two of them apart."""

    run: str
    round: int
    shift: int
    attempt: int


asked = st.builds(
    Asked, run=st.sampled_from(sorted(RUNS)), round=st.integers(0, 6), shift=st.integers(0, 1), attempt=st.integers(0, 1)
)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_trained() -> Iterator[None]:
    """What is decided is under test here, not what is computed."""
    with pytest.MonkeyPatch.context() as patch:
        answers = np.random.default_rng(0)

        def vector(model: object, data: object, config: Config, *_: object, **__: object) -> np.ndarray:
            return answers.standard_normal(resident(config).manifest.n_parameters)

        def trained(*args: object, **kwargs: object) -> SimpleNamespace:
            return SimpleNamespace(update=vector(*args[:3]).astype(np.float32))  # type: ignore[arg-type]

        patch.setattr(client.trainer, "train_round", trained)
        patch.setattr(client.sums, "gradient_sum", vector)
        patch.setattr(client.trainer, "release_counts", lambda *_: answers.standard_normal(24).astype(np.float32))
        patch.setattr(client.sums, "count_sum", lambda *_: answers.standard_normal(24))
        patch.setattr(Silo, "data", property(lambda self: None))
        yield


class Played:
    """The coordinator's side of one attempt, with the silo's peers; it may ask for the vector more than once."""

    def __init__(self, config: Config, what: Asked, key: SigningKey, roster: KeyRoster, peers: Consortium) -> None:
        self.config, self.peers = config, peers
        home = resident(config)
        question: Request = Request(config_hash=config_hash(config))
        self.action, length = COUNT, 24
        if what.round:
            vector = (home.start + np.float32(what.shift)).astype(np.float32)
            question = AdapterRequest(
                config_hash=config_hash(config), round=what.round, manifest_hash=home.manifest.hash, vector=vector
            )
            self.action, length = TRAIN, len(vector)
        self.question = question
        self.request = SumRequest(
            config_hash=config_hash(config),
            action=self.action,
            round=round_of(question),
            question=question_digest(self.action, question),
            nonce=hashlib.sha256(repr(what).encode()).digest(),
            roster=roster.digest,
            manifest_hash=home.manifest.hash if what.round else "",
        )
        self.others = [peers.participant(silo) for silo in range(1, N)]
        dtype = coding_of(COUNT, config, 24).dtype
        self.sum = SecureSum(peers.context(self.request.round_id), peers.rules, roster, dtype, length)
        self.boxes: bytes | None = None

    def masked(self, silo: Silo) -> Fields:
        """The silo's vector under masks, with all stages before that it has not gone through yet."""
        name = self.request.round_id
        if self.boxes is None:
            ad = silo.advertise(self.request)["advertisement"]
            keys = self.sum.advertised({0: ad} | {peer.silo: peer.advertise(name) for peer in self.others})
            mine = silo.share(replace(self.request, payload=keys))["shares"]
            self.boxes = self.sum.shared({0: mine} | {peer.silo: peer.share(name, keys) for peer in self.others})[0]
        vector = self.question.vector if isinstance(self.question, AdapterRequest) else None
        return silo.mask(replace(self.request, payload=self.boxes, vector=vector))


def rdp_by_dp_accounting(events: list[dict[str, float]], order: float) -> float:
    """At an order that is not whole the ledger counts more for sums: this is what it may not pass in any case."""
    accountant = RdpAccountant(orders=[order])
    for event in events:
        one = dp_accounting.GaussianDpEvent(event["noise_multiplier"])
        if "sampling_probability" in event:
            one = dp_accounting.PoissonSampledDpEvent(event["sampling_probability"], one)
        accountant.compose(one, int(event.get("steps", 1)))
    return float(accountant.get_epsilon(DELTA)) if events else 0.0


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=60, deadline=None)
@given(wanted=st.lists(asked, min_size=1, max_size=8))
def test_no_sequence_of_attempts_passes_the_policy(mode: str, wanted: list[Asked]) -> None:
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
    try:
        check(folder, mode, wanted)
    finally:
        shutil.rmtree(folder)


def check(folder: Path, mode: str, wanted: list[Asked]) -> list[Asked]:
    """Those that were answered, once the ledger has been found to cover them all."""
    honest = run(mode, "honest")
    plan = Silo(honest, Place(0, folder, simulated=True)).plan
    policy = Policy(
        silo="shop",
        epsilon=LIMIT,
        delta=DELTA,
        epsilon_per_run=3.5,
        modes=MODES,
        min_noise_multiplier=0.9 * plan.noise_multiplier,
        max_sampling_probability=0.5,
        max_rounds_per_run=6,
        declared_users=honest.federation.declared_users[0],
        coordinators=("any",),
    )
    key = create_key(folder / KEY)
    Ledger.create(folder / LEDGER, policy, key)
    consortium = Consortium(N)
    keys = (key, *consortium.keys[1:])
    roster = KeyRoster(consortium.roster.names, tuple(one.public_key for one in keys))
    path = write_roster(folder / "roster.toml", roster)
    silos, peers = {}, {}
    for name in RUNS:
        silos[name] = Silo(run(mode, name), Place(0, folder, Path("unused"), path))
        peers[name] = Consortium(N)
        peers[name].keys, peers[name].roster, peers[name].run = keys, roster, config_hash(run(mode, name))
    played: dict[Asked, Played] = {}
    paid: dict[str, str] = {}
    gave: dict[bytes, bytes] = {}
    answered: list[Asked] = []
    furthest: dict[str, int] = {}
    asked_about: dict[tuple[str, int], int] = {}
    before = read_ledger(folder / LEDGER)
    for what in wanted:
        if what not in played:
            played[what] = Played(run(mode, what.run), what, key, roster, peers[what.run])
        request, reply, refusal = played[what].request, None, None
        try:
            reply = played[what].masked(silos[what.run])
        except (Refusal, PolicyRefused, BudgetExhausted, SecAggError) as error:
            refusal = error
        after = read_ledger(folder / LEDGER)
        if reply is None:
            assert after.head == before.head, "a refusal was charged"
            check_reason(what, refusal, furthest)
            continue
        assert what.run not in ALWAYS_REFUSED or (what.round == 0 and what.run != "other declared users")
        question, release = release_question(mode, request), reply["release"].hex()
        assert len(after.reservations) == len(before.reservations) + (question not in paid)
        assert paid.setdefault(question, release) == release
        vector = reply["masked"].tobytes()
        assert gave.setdefault(request.round_id, vector) == vector, "two vectors under the same masks"
        committed = {
            after.commitments[entry.seq].what.answer  # type: ignore[union-attr]
            for entry, what_ in after.reservations
            if entry.seq in after.commitments and what_.question == question
        }
        assert release in committed
        if mode == "silo":
            adapter = asked_about.setdefault((what.run, what.round), what.shift)
            assert adapter == what.shift or what.round == 0, "a round was answered for two adapters"
        answered.append(what)
        furthest[what.run] = max(furthest.get(what.run, 0), what.round)
        before = after
    events = [dict(reservation.event) for _, reservation in before.reservations]
    assert len(events) == len(paid)
    assert before.policy.order is not None
    assert rdp_by_dp_accounting(events, before.policy.order) <= LIMIT * (1 + 1e-6)
    assert not before.findings
    return answered


def check_reason(what: Asked, refusal: Exception | None, furthest: dict[str, int]) -> None:
    """Each refusal is for what is wrong with the request."""
    if isinstance(refusal, PolicyRefused):
        assert what.run in ALWAYS_REFUSED or what.round > 6
    elif isinstance(refusal, Refusal) and refusal.code is ErrorCode.BAD_REQUEST:
        assert what.round > 4
    elif isinstance(refusal, Refusal):
        assert refusal.code is ErrorCode.REPLAYED
        assert what.round <= furthest[what.run]
    elif isinstance(refusal, SecAggError):
        assert "no round of this name is open here" in str(refusal), "only an attempt that another one has ended"
    else:
        assert isinstance(refusal, BudgetExhausted)


@pytest.mark.parametrize("mode", MODES)
def test_attempts_within_the_policy_are_answered_and_those_beyond_it_are_not(mode: str, tmp_path: Path) -> None:
    """So the property does not hold because everything is refused: every attempt of an honest run, and then some of another."""
    rounds = run(mode, "honest").federation.rounds + 1
    honest = [Asked("honest", number, 0, 0) for number in range(rounds)]
    again = [Asked("another honest run", number, 0, 0) for number in range(rounds)]
    answered = check(tmp_path, mode, [*honest, honest[-1], *again])
    assert answered[: rounds + 1] == [*honest, honest[-1]]
    assert 0 < len(answered) - rounds - 1 < rounds


def test_a_second_attempt_at_an_answer_is_free_in_mode_silo_and_paid_in_mode_distributed(tmp_path: Path) -> None:
    attempts = [Asked("honest", 1, 0, attempt) for attempt in (0, 1)]
    for mode, charges in (("silo", 1), ("distributed", 2)):
        folder = tmp_path / mode
        folder.mkdir()
        assert check(folder, mode, attempts) == attempts
        assert len(read_ledger(folder / LEDGER).reservations) == charges


def test_the_stages_before_the_vector_cost_nothing(tmp_path: Path) -> None:
    """However many attempts are begun, of whatever: no budget is spent on keys."""
    config = run("silo", "honest")
    key = create_key(tmp_path / KEY)
    Ledger.create(tmp_path / LEDGER, Policy(silo="shop", epsilon=LIMIT, delta=DELTA, coordinators=("any",)), key)
    consortium = Consortium(N)
    consortium.keys = (key, *consortium.keys[1:])
    consortium.roster = KeyRoster(consortium.roster.names, tuple(one.public_key for one in consortium.keys))
    consortium.run = config_hash(config)
    silo = Silo(config, Place(0, tmp_path, Path("unused"), write_roster(tmp_path / "roster.toml", consortium.roster)))
    for number in range(20):
        played = Played(config, Asked("honest", number % 5, 0, number), key, consortium.roster, consortium)
        assert len(silo.advertise(played.request)["advertisement"]) == 132
    assert not read_ledger(tmp_path / LEDGER).reservations
