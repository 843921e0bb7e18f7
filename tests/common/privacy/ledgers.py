"""What the tests of the ledger share: keys, a policy, questions, and a ledger that has seen everything once."""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.privacy.events import Distributed, DistributedCount, DistributedStep, Event, GaussianCount, PoissonGaussianSteps
from common.privacy.ledger import Ledger
from common.privacy.policy import Policy, Proposal
from common.privacy.signing import SigningKey

START = 1_750_000_000.0  # 2025-06-15, 15:06:40 UTC
DAY = 86_400.0

COUNT = GaussianCount(5.0, 1.0)
SHARED_COUNT = DistributedCount(5.0, 1.0, honest=4)


def digest(text: str) -> str:
    """64 hex characters."""
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(name: str) -> SigningKey:
    """A key that is the same whenever the tests run."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


SILO, AUDITOR, COORDINATOR = key_of("silo"), key_of("auditor"), key_of("coordinator")
RUN = digest("a run")


def policy(**changes: Any) -> Policy:
    """8 at 1e-5, for one coordinator."""
    return Policy(**{"silo": "north", "epsilon": 8.0, "delta": 1e-5, "coordinators": (COORDINATOR.public_key,), **changes})


def steps(round_number: int, noise_multiplier: float = 2.0, sampling_probability: float = 0.2, steps: int = 4) -> Event:
    return PoissonGaussianSteps(noise_multiplier, sampling_probability, steps, 1.0, round_number)


def shared_step(round_number: int, noise_multiplier: float = 2.0, sampling_probability: float = 0.2, honest: int = 4) -> Event:
    """One step of mode ``distributed``."""
    return DistributedStep(noise_multiplier, sampling_probability, 1.0, round_number, honest=honest)


def asks(event: Event, **changes: Any) -> Proposal:
    """The coordinator's question that ``event`` answers."""
    action = "query.count" if isinstance(event, GaussianCount | DistributedCount) else "train"
    mode = "distributed" if isinstance(event, Distributed) else "silo"
    said: dict[str, Any] = {"run": RUN, "coordinator": COORDINATOR.public_key, "mode": mode, "action": action}
    return Proposal(**{**said, "round": event.round, "event": event, **changes})


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def quick_folder() -> Path:
    """A new folder in memory where the machine has one, because an fsync there costs nothing; to be removed by who asked."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="silorec-test-", dir=memory if memory.is_dir() else None))


def full_ledger(folder: Path, rounds: int = 3, silo: SigningKey = SILO, **changes: Any) -> Ledger:
    """A ledger with an entry of every type, closed and countersigned twice; the last round was not answered."""
    clock = Clock()
    ledger = Ledger.create(folder / "ledger.sqlite", policy(**changes), silo, clock=clock)
    entry = ledger.reserve(asks(COUNT), digest("count"))
    ledger.commit(entry.seq, digest("the count"))
    for number in range(1, rounds + 1):
        clock.now += 60
        entry = ledger.reserve(asks(steps(number)), digest(f"round {number}"))
        if number < rounds:
            ledger.commit(entry.seq, digest(f"the update of round {number}"))
    ledger.countersign(AUDITOR)
    ledger.amend(policy(epsilon=9.0), "one more season")
    clock.now += DAY
    ledger.reserve(asks(steps(1), run=digest("another run")), digest("another"))
    ledger.close("the data were deleted")
    ledger.countersign(AUDITOR)
    return ledger


def rows(path: Path) -> list[tuple[Any, ...]]:
    """What stands in a ledger's table, in order."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT * FROM entries ORDER BY seq").fetchall()
