"""A federation's evidence put together by hand, so that every fault can be planted: no ledger refuses anything here.

Entries are signed and chained as a silo does it; what they say is up to the test. An untouched :class:`Federation` is in order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.config import Config, load, to_toml
from common.privacy.accountant import epsilon
from common.privacy.entries import Chain, charge_of, export
from common.privacy.entry import Amendment, Commitment, Countersignature, Entry, Opening, Reservation, What, countersign
from common.privacy.events import NEIGHBOURS, UNIT, Event, event_to_dict
from common.privacy.filter import Spending, best_order
from common.privacy.plan import PrivacyPlan, plan_for
from common.privacy.policy import Policy
from common.privacy.signing import SigningKey
from common.privacy.transcript import Transcript
from common.protocol import COUNT, TRAIN, config_hash
from common.secagg.context import RoundContext
from common.secagg.messages import round_id, survivors_statement
from tests.common.privacy.ledgers import COORDINATOR, digest, key_of

DECLARED = (100, 80)
SHARING = (100, 80, 120, 90)  # of silos that add up
ROUNDS = 3
NAMES = ("north", "south", "east", "west")
NOTHING = "0" * 64

spent = lru_cache(epsilon)


def configuration(**settings: Any) -> Config:
    """Two silos, three rounds; ``section__key`` settings over it."""
    return load(
        {
            "name": "made-up",
            "partition.silos": len(DECLARED),
            "privacy.epsilon": 6.0,
            "training.local_steps": 4,
            "training.sampling_probability": 0.25,
            "federation.rounds": ROUNDS,
            "federation.declared_users": list(DECLARED),
            "federation.coordinator": COORDINATOR.public_key,
        },
        {key.replace("__", "."): value for key, value in settings.items()},
    )


def sharing(**settings: Any) -> Config:
    """Mode ``distributed`` of four silos: three at least in a sum, of which one may collude, so two are counted on."""
    return configuration(
        **{
            "privacy__mode": "distributed",
            "partition__silos": len(SHARING),
            "federation__declared_users": list(SHARING),
            "training__local_steps": 1,
            "aggregation__corrupt": 0.25,
            **settings,
        }
    )


class Book:
    """A silo's ledger that takes whatever it is told."""

    def __init__(self, silo: str, policy: Policy, key: SigningKey | None = None) -> None:
        self.policy, self.key = policy.resolved(), key or key_of(silo)
        self.entries: list[Entry] = []
        self.spending = Spending()
        self.add(Opening(silo, self.key.public_key, self.policy.to_dict(), UNIT, NEIGHBOURS, "silorec test"))

    def add(self, what: What) -> int:
        """Append an entry; its ``seq``."""
        previous = self.entries[-1].hash if self.entries else NOTHING
        entry = Entry.signed(len(self.entries), 1_750_000_000 + 60 * len(self.entries), previous, what, self.key)
        self.entries.append(entry)
        if isinstance(what, Reservation):
            self.spending.add(charge_of(entry, what))
        return entry.seq

    def reserve(self, run: str, action: str, event: Event, question: str, **said: Any) -> int:
        """With the right running total, unless ``said`` has another; the ``seq``."""
        values = {"coordinator": COORDINATOR.public_key, "mode": "silo", "declared_users": None, **said}
        if "epsilon" not in said:
            mode = values["mode"]
            charge = charge_of(
                self.entries[-1], Reservation(run, "", mode, None, action, event.round, question, event_to_dict(event), 0.0)
            )
            total = self.spending.epsilon_after(charge, self.policy.order or 0.0, self.policy.delta)
            values["epsilon"] = None if total == float("inf") else total
        event_dict = event_to_dict(event)
        return self.add(Reservation(run=run, action=action, round=event.round, question=question, event=event_dict, **values))

    def commit(self, reservation: int, answer: str) -> int:
        return self.add(Commitment(reservation, answer))

    def amend(self, policy: Policy) -> int:
        self.policy = policy.resolved(before=self.policy)
        return self.add(Amendment(self.policy.to_dict(), "a reason"))

    def countersign(self, by: SigningKey) -> int:
        head = self.entries[-1].hash
        return self.add(Countersignature(head, by.public_key, countersign(head, by)))

    @property
    def chain(self) -> Chain:
        return Chain(tuple(self.entries))

    def export(self, entries: int | None = None) -> bytes:
        """The first ``entries``, or all."""
        return export(Chain(tuple(self.entries[:entries])), self.key)


@dataclass(frozen=True)
class Answer:
    """As it will stand in the transcript."""

    action: str
    round: int
    silo: int
    question: str
    answer: str


@dataclass
class Federation:
    """A run in which everything is in order; change what a test is about, then :meth:`write`.

    Parameters
    ----------
    charged:
        What a silo writes down as the cost of an answer: ``charged(silo, action, event)``.
    recorded:
        Running total that a silo writes down, or None for the right one: ``recorded(silo, event)``.
    paid:
        Whether a silo reserves, and whether it commits: ``paid(silo, action, round) -> (bool, bool)``.
    """

    config: Config = field(default_factory=configuration)
    charged: Callable[[int, str, Event], Event] = lambda silo, action, event: event
    recorded: Callable[[int, Event], float | None] = lambda silo, event: None
    paid: Callable[[int, str, int], tuple[bool, bool]] = lambda silo, action, number: (True, True)
    policy_epsilon: float | None = None
    modes: tuple[Any, ...] = ()
    said: dict[str, Any] = field(default_factory=dict)
    books: list[Book] = field(init=False)
    answers: list[Answer] = field(init=False)

    def __post_init__(self) -> None:
        self.run = config_hash(self.config)
        self.declared = self.config.federation.declared_users
        self.modes = self.modes or (self.config.privacy.mode,)
        self.said = {"mode": self.config.privacy.mode, **self.said}
        self.plan: PrivacyPlan = plan_for(self.config, self.declared[0], min(self.declared))
        self.books = [Book(name, self.policy(name)) for name in NAMES[: len(self.declared)]]
        self.answers = []
        for action, event in [
            (COUNT, self.plan.count_event()),
            *((TRAIN, self.plan.train_event(r)) for r in range(1, ROUNDS + 1)),
        ]:
            for silo in range(len(self.books)):
                self.answer(silo, action, event)

    def policy(self, name: str) -> Policy:
        """Room for the run at its own best order, or for :attr:`policy_epsilon`."""
        allowed: dict[str, Any] = {"silo": name, "delta": self.plan.delta, "coordinators": ("any",), "modes": self.modes}
        if self.modes == ("none",):
            return Policy(**allowed)
        planned = self.plan.all_events()
        limit = self.policy_epsilon or max(self.plan.epsilon, spent(tuple(planned), self.plan.delta))
        return Policy(epsilon=limit, order=best_order(planned, self.plan.delta), **allowed)

    def answer(self, silo: int, action: str, event: Event) -> None:
        """One silo answers one question, and the coordinator notes it."""
        question = digest(f"{action} {event.round}")
        answer = digest(f"{silo} {action} {event.round}")
        reserves, commits = self.paid(silo, action, event.round)
        if reserves:
            said: dict[str, Any] = {"declared_users": self.declared[silo], **self.said}
            if (total := self.recorded(silo, event)) is not None:
                said["epsilon"] = total
            seq = self.books[silo].reserve(self.run, action, self.charged(silo, action, event), question, **said)
            if commits:
                self.books[silo].commit(seq, answer)
        self.answers.append(Answer(action, event.round, silo, question, answer))

    def seq(self, silo: int, round_number: int) -> int:
        """Of the reservation for a round; 0 is the count."""
        return next(e.seq for e, what in self.books[silo].chain.reservations if what.round == round_number)

    def facts(self, **changes: Any) -> dict[str, Any]:
        """The transcript's first line."""
        facts = {
            "config": self.run,
            "protocol": 2,
            "mode": self.config.privacy.mode,
            "coordinator": self.config.federation.coordinator,
            "declared_users": list(self.config.federation.declared_users),
            "manifest": digest("manifest"),
        }
        return {**facts, **changes}

    def result(self, **changes: Any) -> dict[str, Any]:
        """What ``result.json`` says of privacy."""
        events, delta = self.plan.all_events(), self.plan.delta
        figures = {"epsilon": spent(tuple(events), delta), "epsilon_pld": spent(tuple(events), delta, "pld")}
        counted_on = {}
        if self.plan.honest:
            left = tuple(self.plan.collusion_events())
            figures["epsilon_if_others_collude"] = spent(left, delta)
            figures["epsilon_pld_if_others_collude"] = spent(left, delta, "pld")
            counted_on = {"honest_silos": self.plan.honest}
        silos = [{"name": book.chain.silo, **figures} for book in self.books]
        told = {"schema": 1, "mode": self.plan.mode, "delta": delta, "silos": silos, "name": "made-up", **figures, **counted_on}
        return {**told, **changes}

    def sums(self) -> list[dict[str, Any]]:
        """What the coordinator notes of each secure sum, which all silos were in and signed."""
        if not self.config.is_secure:
            return []
        everybody, graph = range(len(self.books)), bytes.fromhex(digest("graph"))
        found = []
        for action, number, question in dict.fromkeys((a.action, a.round, a.question) for a in self.answers):
            nonce = bytes.fromhex(digest(f"nonce of {action} {number}"))
            context = RoundContext(self.run, round_id(nonce, question))
            statement = survivors_statement(context, graph, everybody)
            found.append(
                {
                    "action": action,
                    "round": number,
                    "question": question,
                    "nonce": nonce.hex(),
                    "advertised": list(everybody),
                    "graph": graph.hex(),
                    "survivors": list(everybody),
                    "signatures": {str(silo): self.books[silo].key.sign(statement).hex() for silo in everybody},
                    "outcome": "sum",
                }
            )
        return found

    def write(
        self,
        folder: Path,
        *,
        config: Config | None = None,
        facts: dict[str, Any] | None = None,
        result: dict[str, Any] | None = None,
        resumed_with: dict[str, Any] | None = None,
        only: Sequence[str] = ("exports", "transcript", "config"),
    ) -> Path:
        """A folder of exports."""
        folder.mkdir(parents=True, exist_ok=True)
        if "exports" in only:
            for book in self.books:
                (folder / f"{book.chain.silo}.jsonl").write_bytes(book.export())
        if "config" in only:
            (folder / "config.toml").write_text(to_toml(config or self.config))
        if "transcript" in only:
            write_transcript(folder / "transcript.jsonl", facts or self.facts(), self.answers, resumed_with, self.sums())
        if result is not None:
            (folder / "result.json").write_text(json.dumps(result))
        return folder


def write_transcript(
    path: Path,
    facts: dict[str, Any],
    answers: Sequence[Answer],
    resumed_with: dict[str, Any] | None = None,
    sums: Sequence[dict[str, Any]] = (),
) -> None:
    """As a coordinator writes it; ``resumed_with`` are the facts of a second start before the last answer."""
    transcript = Transcript(path, facts, clock=lambda: 1_750_000_000.0)
    for place, answer in enumerate(answers):
        if resumed_with is not None and place == len(answers) - 1:
            transcript = Transcript(path, resumed_with, clock=lambda: 1_750_000_000.0)
        transcript.record(answer.action, answer.round, answer.question, {answer.silo: answer.answer}, {})
    for one in sums:
        transcript.record_sum(one)
