"""Whatever a coordinator asks, in whatever order: the silo stays within its operator's policy, and a refusal costs nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

import client.trainer
from client.place import KEY, LEDGER, Place
from client.silo import Silo
from common.config import Config, load, to_dict
from common.errors import BudgetExhausted, ErrorCode, PolicyRefused
from common.model.resident import resident
from common.privacy.ledger import Ledger, read_ledger
from common.privacy.policy import Policy
from common.privacy.signing import create_key
from common.protocol import AdapterRequest, Refusal, Request, config_hash
from tests import tiny

LIMIT, DELTA = 4.0, 1e-3
#: What a coordinator may ask for; ``honest`` is within the policy below, the others each pass one of its limits.
RUNS = {
    "honest": {"privacy__epsilon": 3.0},
    "another honest run": {"privacy__epsilon": 3.0, "name": "second"},
    "less noise": {"privacy__epsilon": 40.0},
    "a larger sampling probability": {"privacy__epsilon": 3.0, "training__sampling_probability": 0.9},
    "more rounds": {"privacy__epsilon": 3.0, "federation__rounds": 9},
    "other declared users": {"privacy__epsilon": 3.0},
}
#: Training under these; of the count, which nobody is sampled for, the noise may be enough.
ALWAYS_REFUSED = {"less noise", "a larger sampling probability", "other declared users"}


@lru_cache(maxsize=len(RUNS))
def run(name: str) -> Config:
    base = {"privacy__mode": "silo", "privacy__delta": DELTA, "federation__rounds": 4, "training__sampling_probability": 0.5}
    config = tiny.config(**(base | RUNS[name]))
    return load(to_dict(config), {"federation.declared_users": [90, 90]}) if name == "other declared users" else config


@dataclass(frozen=True)
class Asked:
    """One request: which run, ``round`` (0 is the count), which adapter, and whether its manifest is the silo's."""

    run: str
    round: int
    shift: int
    right_manifest: bool


asked = st.builds(
    Asked,
    run=st.sampled_from(sorted(RUNS)),
    round=st.integers(0, 10),
    shift=st.integers(0, 1),
    right_manifest=st.sampled_from([True, True, True, False]),
)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_trained() -> Iterator[None]:
    """What is decided is under test here, not what is computed."""
    with pytest.MonkeyPatch.context() as patch:
        answers = np.random.default_rng(0)

        def update(model: object, data: object, config: Config, *args: object, **kwargs: object) -> SimpleNamespace:
            return SimpleNamespace(update=answers.standard_normal(resident(config).manifest.n_parameters).astype(np.float32))

        patch.setattr(client.trainer, "train_round", update)
        patch.setattr(client.trainer, "release_counts", lambda *_: answers.standard_normal(24).astype(np.float32))
        patch.setattr(Silo, "data", property(lambda self: None))
        yield


def ask(silo: Silo, config: Config, what: Asked) -> np.ndarray:
    home = resident(config)
    if what.round == 0:
        return silo.count(Request(config_hash=config_hash(config)))["count"]
    manifest = home.manifest.hash if what.right_manifest else "0" * 64
    vector = (home.start + np.float32(what.shift)).astype(np.float32)
    request = AdapterRequest(config_hash=config_hash(config), round=what.round, manifest_hash=manifest, vector=vector)
    return silo.train(request)["update"]


def rdp_by_dp_accounting(events: list[dict[str, float]], order: float) -> float:
    accountant = RdpAccountant(orders=[order])
    for event in events:
        one = dp_accounting.GaussianDpEvent(event["noise_multiplier"])
        if "steps" in event:
            one = dp_accounting.PoissonSampledDpEvent(event["sampling_probability"], one)
        accountant.compose(one, int(event.get("steps", 1)))
    return float(accountant.get_epsilon(DELTA)) if events else 0.0


@settings(max_examples=500, deadline=None)
@given(st.lists(asked, min_size=1, max_size=12))
def test_no_sequence_of_requests_passes_the_policy(requests: list[Asked]) -> None:
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
    try:
        check(folder, requests)
    finally:
        shutil.rmtree(folder)


def check(folder: Path, requests: list[Asked]) -> None:
    honest = run("honest")
    plan = Silo(honest, Place(0, folder, simulated=True)).plan
    policy = Policy(
        silo="shop",
        epsilon=LIMIT,
        delta=DELTA,
        epsilon_per_run=3.5,
        min_noise_multiplier=0.9 * plan.noise_multiplier,
        max_sampling_probability=0.5,
        max_rounds_per_run=6,
        declared_users=honest.federation.declared_users[0],
        coordinators=("any",),
    )
    Ledger.create(folder / LEDGER, policy, create_key(folder / KEY))
    silos = {name: Silo(run(name), Place(0, folder, Path("unused"))) for name in RUNS}
    answered: dict[tuple[str, int], tuple[int, bytes]] = {}
    furthest: dict[str, int] = {}
    before = read_ledger(folder / LEDGER)
    for what in requests:
        said, refusal = None, None
        try:
            said = ask(silos[what.run], run(what.run), what).tobytes()
        except (Refusal, PolicyRefused, BudgetExhausted) as error:
            refusal = error
        after = read_ledger(folder / LEDGER)
        if refusal is not None or said is None:
            assert refusal is not None
            assert after.head == before.head, "a refusal was charged"
            check_reason(what, refusal, furthest)
            continue
        assert what.run not in ALWAYS_REFUSED or (what.round == 0 and what.run != "other declared users")
        assert what.round <= policy.max_rounds_per_run  # type: ignore[operator]
        assert what.right_manifest or what.round == 0
        key, answer = (what.run, what.round), (what.shift if what.round else 0, said)
        if key in answered:  # a round that was answered is answered again with the same bytes only
            assert answered[key] == answer
            assert after.head == before.head
        else:
            assert what.round >= furthest.get(what.run, 0) or what.round == 0
            assert len(after.reservations) == len(before.reservations) + 1
        answered[key] = answer
        furthest[what.run] = max(furthest.get(what.run, 0), what.round)
        before = after
    events = [dict(reservation.event) for _, reservation in before.reservations]
    assert len(events) == len(answered)
    assert before.policy.order is not None
    assert rdp_by_dp_accounting(events, before.policy.order) <= LIMIT * (1 + 1e-6)
    assert not before.findings


def check_reason(what: Asked, refusal: Exception, furthest: dict[str, int]) -> None:
    """Each refusal is for what is wrong with the request."""
    if isinstance(refusal, Refusal):
        if refusal.code is ErrorCode.MANIFEST_MISMATCH:
            assert not what.right_manifest
        elif refusal.code is ErrorCode.BAD_REQUEST:
            assert what.round > run(what.run).federation.rounds
        else:
            assert refusal.code is ErrorCode.REPLAYED
            assert what.round <= furthest[what.run]
    elif isinstance(refusal, PolicyRefused):
        assert what.run in ALWAYS_REFUSED or what.round > 6


def test_a_request_within_the_policy_is_answered(tmp_path: Path) -> None:
    """So the property does not hold because everything is refused."""
    check(tmp_path, [])
    config = run("honest")
    for number in range(config.federation.rounds + 1):
        ask(Silo(config, Place(0, tmp_path, Path("unused"))), config, Asked("honest", number, 0, True))
    assert len(read_ledger(tmp_path / LEDGER).commitments) == 5
    second, refused = run("another honest run"), 0
    for number in range(5):
        try:
            ask(Silo(second, Place(0, tmp_path, Path("unused"))), second, Asked("another honest run", number, 0, True))
        except BudgetExhausted:
            refused += 1
    assert 0 < refused < 5
