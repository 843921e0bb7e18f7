"""Laying the coordinator's transcript beside the silos' ledgers: which answer was paid for by which entry.

An answer in the transcript and a commitment in a ledger belong together if run, action, round, question and the digest of the
answer are the same. Digests of protected answers never meet by chance, so this also tells whose ledger is whose, without names
or folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from common.privacy.audit.evidence import Evidence
from common.privacy.entry import Commitment, Entry, Reservation
from common.privacy.events import Event
from common.privacy.plan import PrivacyPlan, plan_for
from common.privacy.transcript import Answered
from common.protocol import COUNT, METRICS, TRAIN, config_hash

NO_TRANSCRIPT = "there is no transcript: what the coordinator received is not known here"


@dataclass(frozen=True)
class Paid:
    """In ``ledger``, ``commitment`` says that an answer left under ``reservation``."""

    ledger: str
    reservation: Entry
    commitment: Entry


@dataclass(frozen=True)
class Matching:
    """One run's transcript, configuration and ledgers together."""

    evidence: Evidence

    @cached_property
    def run(self) -> str | None:
        """The run that is audited: the transcript's, else the configuration's."""
        if self.evidence.transcript is not None:
            return str(self.evidence.transcript.run.get("config", ""))
        return None if self.evidence.config is None else config_hash(self.evidence.config)

    @cached_property
    def answers(self) -> dict[Answered, int]:
        """Distinct answers of the transcript, each with its number, from 1.

        A silo that is asked the same question again gives the same answer, at no cost: the two are one.
        """
        found: dict[Answered, int] = {}
        for number, answer in enumerate(self.evidence.transcript.answers if self.evidence.transcript else (), start=1):
            found.setdefault(answer, number)
        return found

    @cached_property
    def paid(self) -> dict[Answered, list[Paid]]:
        """For each distinct answer, every commitment that fits it."""
        fitting: dict[tuple[object, ...], list[Paid]] = {}
        for ledger, entry, what in self.reservations():
            commitment = self.evidence.current[ledger].commitments.get(entry.seq)
            if commitment is not None and isinstance(commitment.what, Commitment):
                key = (what.action, what.round, what.question, commitment.what.answer)
                fitting.setdefault(key, []).append(Paid(ledger, entry, commitment))
        return {a: fitting.get((a.action, a.round, a.question, a.answer), []) for a in self.answers}

    @cached_property
    def ledgers_of(self) -> dict[int, list[str]]:
        """By silo: the ledgers that answers of it are found in, those with most first."""
        found: dict[int, dict[str, int]] = {}
        for answer, paid in self.paid.items():
            of_silo = found.setdefault(answer.silo, {})
            for each in paid:
                of_silo[each.ledger] = of_silo.get(each.ledger, 0) + 1
        return {silo: sorted(of, key=lambda ledger: -of[ledger]) for silo, of in sorted(found.items())}

    @cached_property
    def silo_of(self) -> dict[str, int]:
        """By ledger: its silo's place in the roster, from the transcript, else from the folder, where one of them tells."""
        out = dict(self.evidence.places)
        for silo, ledgers in reversed(self.ledgers_of.items()):
            if ledgers:
                out[ledgers[0]] = silo
        return {ledger: silo for ledger, silo in out.items() if ledger in self.evidence.current}

    def ledger_of(self, silo: int) -> str | None:
        """The ledger of the silo at that place."""
        by_answers = self.ledgers_of.get(silo)
        if by_answers:
            return by_answers[0]
        return next((ledger for ledger, place in self.silo_of.items() if place == silo), None)

    def reservations(self, ledger: str | None = None) -> Iterator[tuple[str, Entry, Reservation]]:
        """Of this run, in one ledger or in all."""
        for name, chain in self.evidence.current.items():
            if ledger in (None, name):
                yield from ((name, entry, what) for entry, what in chain.reservations if what.run == self.run)

    def events(self, ledger: str) -> list[Event]:
        """What this run's reservations in one ledger charge."""
        return [what.released for _, _, what in self.reservations(ledger)]

    def events_before(self, ledger: str) -> list[Event]:
        """What one ledger charges for the runs that this one went on from, as its transcript names them."""
        before = self.evidence.transcript.predecessors if self.evidence.transcript else ()
        return [what.released for _, what in self.evidence.current[ledger].reservations if what.run in before]

    def plan(self, silo: int | None) -> PrivacyPlan | None:
        """What the configuration demands of a silo, the same of all; None where it does not know the silo or is not the run's."""
        if self._plan is None:
            return None
        plan, n_silos = self._plan
        return plan if silo is None or 0 <= silo < n_silos else None

    @cached_property
    def _plan(self) -> tuple[PrivacyPlan, int] | None:
        config = self.evidence.config
        if config is None or not config.federation.declared_users or config_hash(config) != self.run:
            return None
        declared = config.federation.declared_users
        return plan_for(config, min(declared), min(declared)), len(declared)


def demanded(plan: PrivacyPlan, action: str, round_number: int) -> Event | None:
    """What the plan charges for an answer; None if it has no such answer."""
    if action == COUNT and round_number == 0:
        return plan.count_event()
    if action == TRAIN and 1 <= round_number <= plan.rounds:
        return plan.train_event(round_number)
    if action == METRICS and round_number == plan.rounds and not plan.withholds_metrics:
        return plan.metrics_event()
    return None
