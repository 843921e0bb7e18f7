"""Checks of one run: do configuration, transcript and ledgers speak of the same, and was every answer paid for?"""

from __future__ import annotations

from typing import Any

from common.privacy.audit.check import Check, Named, count, judged, not_applicable
from common.privacy.audit.matching import NO_TRANSCRIPT, Matching
from common.privacy.audit.sum_checks import check_sums
from common.privacy.entry import Commitment
from common.privacy.transcript import Answered
from common.protocol import config_hash


def run_checks(run: Matching) -> list[Check]:
    """All of them."""
    return [
        check_configuration(run),
        check_transcript(run),
        check_declared(run),
        check_coordinator(run),
        check_answers(run),
        check_places(run),
        check_open(run),
        check_sums(run),
    ]


def check_configuration(run: Matching) -> Check:
    """The configuration is the one that coordinator and silos worked under."""
    name, statement = "configuration", "Transcript and ledgers name the hash of this configuration."
    evidence = run.evidence
    if problems := evidence.problem_with("configuration"):
        return judged(name, statement, "it could not be read", [Named(f"{p.name}: {p.what}") for p in problems])
    if evidence.config is None:
        return not_applicable(name, statement, "there is no configuration")
    digest = config_hash(evidence.config)
    faults = []
    for theirs in sorted({str(said.get("config")) for said in evidence.transcript.runs} if evidence.transcript else set()):
        if theirs != digest:
            faults.append(Named(f"the transcript's is {theirs}, this one's {digest}: it was changed, or belongs to another run"))
    if not evidence.transcript:
        others = {what.run for chain in evidence.current.values() for _, what in chain.reservations}
        if others and digest not in others:
            faults.append(Named(f"no ledger has a reservation for {digest}, but for {', '.join(sorted(others))}"))
    return judged(name, statement, f"hash {digest}", faults)


def check_transcript(run: Matching) -> Check:
    """The transcript's own chain, and that it speaks of one run."""
    name, statement = "transcript", "The transcript's hash chain is whole, and it is that of one run."
    evidence = run.evidence
    if problems := evidence.problem_with("transcript"):
        return judged(name, statement, "it could not be read", [Named(f"{p.name}: {p.what}") for p in problems])
    if evidence.transcript is None:
        return not_applicable(name, statement, "there is no transcript")
    first, *again = evidence.transcript.runs
    faults = [
        Named(f"{key} was {first.get(key)!r} first and {later.get(key)!r} when the run was taken up again")
        for later in again
        for key in ("config", "coordinator", "declared_users", "manifest", "mode")
        if later.get(key) != first.get(key)
    ]
    if evidence.config is not None and first.get("mode") != evidence.config.privacy.mode:
        faults.append(Named(f"its mode is {first.get('mode')!r}, the configuration's {evidence.config.privacy.mode!r}"))
    told = (
        f"{count(len(evidence.transcript.answers), 'answer')}, {count(len(evidence.transcript.refusals), 'refusal')}, "
        f"run {run.run}; it is the coordinator's own, and not signed"
    )
    return judged(name, statement, told, faults)


def check_declared(run: Matching) -> Check:
    """Denominators, rates and delta come from declared numbers: all must speak of the same."""
    name, statement = "declared users", "Configuration, transcript and ledgers name the same declared users."
    said: dict[str, tuple[int, ...]] = {}
    if run.evidence.config is not None and run.evidence.config.federation.declared_users:
        said["the configuration"] = run.evidence.config.federation.declared_users
    if run.evidence.transcript is not None:
        theirs = run.evidence.transcript.run.get("declared_users")
        said["the transcript"] = tuple(theirs) if isinstance(theirs, list) else ()
    if not said:
        return not_applicable(name, statement, "neither a configuration nor a transcript names them")
    first, declared = next(iter(said.items()))
    faults = [Named(f"{who} names {list(users)}, {first} {list(declared)}") for who, users in said.items() if users != declared]
    compared = 0
    for ledger, entry, what in run.reservations():
        silo = run.silo_of.get(ledger)
        right = declared[silo : silo + 1] if silo is not None else declared
        compared += 1
        if what.declared_users not in right:
            faults.append(Named(f"it names {what.declared_users}, {first} {', '.join(map(str, right))}", ledger, entry.seq))
    return judged(name, statement, f"{list(declared)}; {count(compared, 'reservation')} compared", faults)


def check_coordinator(run: Matching) -> Check:
    """Who asked."""
    name, statement = "coordinator", "Configuration, transcript and ledgers name the same key of the coordinator."
    said: dict[str, str] = {}
    if run.evidence.config is not None:
        said["the configuration"] = run.evidence.config.federation.coordinator
    if run.evidence.transcript is not None:
        said["the transcript"] = str(run.evidence.transcript.run.get("coordinator", ""))
    if not said:
        return not_applicable(name, statement, "there is neither a configuration nor a transcript")
    first, key = next(iter(said.items()))
    faults = [Named(f"{who} names {_key(theirs)}, {first} {_key(key)}") for who, theirs in said.items() if theirs != key]
    faults += [
        Named(f"it names {_key(what.coordinator)}, {first} {_key(key)}", ledger, entry.seq)
        for ledger, entry, what in run.reservations()
        if what.coordinator != key
    ]
    told = f"key {key}" if key else "no key is named: questions were not signed, so who asked is not known"
    return judged(name, statement, told, faults)


def check_answers(run: Matching) -> Check:
    """Nothing reached the coordinator that was not paid for."""
    name = "answers"
    statement = (
        "Every answer in the transcript has a commitment of its own, in one ledger, to the same answer, question, run, action "
        "and round."
    )
    if run.evidence.transcript is None:
        return not_applicable(name, statement, NO_TRANSCRIPT)
    faults, used = [], dict[tuple[str, int], int]()
    for answer, number in run.answers.items():
        paid = run.paid[answer]
        if not paid:
            faults.append(_unpaid(run, answer, number))
        elif len({each.ledger for each in paid}) > 1:
            where = ", ".join(f"entry {each.commitment.seq} of {each.ledger}" for each in paid)
            faults.append(Named(f"{_words(answer)} has commitments in more than one ledger: {where}", answer=number))
        else:
            place = (paid[0].ledger, paid[0].commitment.seq)
            if place in used:
                text = f"{_words(answer)} has the commitment that stands for answer {used[place]} already: one charge for two"
                faults.append(Named(text, *place, answer=number))
            used.setdefault(place, number)
    repeated = len(run.evidence.transcript.answers) - len(run.answers)
    told = f"{count(len(run.answers), 'answer')}" + (f", {repeated} of them given again unchanged" if repeated else "")
    return judged(name, statement, told, faults)


def check_places(run: Matching) -> Check:
    """Nobody answers in another's name or pays from another's budget."""
    name, statement = "places", "Each silo's answers are in one ledger, and each ledger holds one silo's answers."
    if run.evidence.transcript is None:
        return not_applicable(name, statement, NO_TRANSCRIPT)
    faults: list[Named] = []
    owner: dict[str, int] = {}
    for silo, ledgers in run.ledgers_of.items():
        if len(ledgers) > 1:
            faults.append(Named(f"answers of silo {silo} are in {len(ledgers)} ledgers: {', '.join(ledgers)}", ledgers[1]))
        for ledger in ledgers:
            if owner.setdefault(ledger, silo) != silo:
                faults.append(Named(f"it holds answers of silo {owner[ledger]} and of silo {silo}", ledger))
            place = run.evidence.places.get(ledger, silo)
            if place != silo:
                faults.append(Named(f"it lies in the folder of silo {place}, but holds answers of silo {silo}", ledger))
    told = ", ".join(f"silo {silo}: {', '.join(ledgers) or 'none'}" for silo, ledgers in run.ledgers_of.items())
    return judged(name, statement, told or "no answers", faults)


def check_open(run: Matching) -> Check:
    """Budget that is gone without an answer that anybody has: it stays spent."""
    name, statement = "open", "Reservations without an answer are known; they count as spent."
    if not any(chain.reservations for chain in run.evidence.current.values()):
        return not_applicable(name, statement, "nothing was reserved")
    named = []
    for ledger, chain in run.evidence.current.items():
        for entry in chain.open_reservations:
            what: Any = entry.what
            named.append(Named(f"{what.action} of round {what.round} was paid for, and nothing was released", ledger, entry.seq))
    received = {(each.ledger, each.commitment.seq) for paid in run.paid.values() for each in paid}
    lost = 0
    for ledger, entry, what in run.reservations() if run.evidence.transcript is not None else ():
        commitment = run.evidence.current[ledger].commitments.get(entry.seq)
        if commitment is not None and (ledger, commitment.seq) not in received:
            lost += 1
            text = f"{what.action} of round {what.round} was released and is not in the transcript: lost on its way, or left out"
            named.append(Named(text, ledger, commitment.seq))
    told = f"{count(len(named) - lost, 'open reservation')}" + (
        f", {count(lost, 'answer')} not in the transcript" if lost else ""
    )
    return Check(name, statement, "holds", told, tuple(named))


def _unpaid(run: Matching, answer: Answered, number: int) -> Named:
    """Why an answer has no commitment, as far as the ledgers tell."""
    for ledger, entry, what in run.reservations():
        commitment = run.evidence.current[ledger].commitments.get(entry.seq)
        if (what.action, what.round, what.question) == (answer.action, answer.round, answer.question):
            mine = run.ledger_of(answer.silo)
            if mine not in (None, ledger):
                continue
            if commitment is None:
                text = f"{_words(answer)}: the reservation is there, but no commitment: it left before its ledger knew"
                return Named(text, ledger, entry.seq, number)
            text = f"{_words(answer)}: the ledger commits to another answer to the same question: two answers for one charge"
            return Named(text, ledger, commitment.seq, number)
        if commitment is not None and isinstance(commitment.what, Commitment) and commitment.what.answer == answer.answer:
            text = (
                f"{_words(answer)}: the ledger commits to this answer for {what.action} of round {what.round}, and for another "
                "question: one commitment used for two answers"
            )
            return Named(text, ledger, commitment.seq, number)
    ledger_name = run.ledger_of(answer.silo)
    if ledger_name is None:
        return Named(f"{_words(answer)}: no ledger has a commitment to it", answer=number)
    last = run.evidence.current[ledger_name].entries[-1].seq
    text = (
        f"{_words(answer)}: no commitment, and the ledger ends with entry {last}: never charged, or an older copy of the ledger"
    )
    return Named(text, ledger_name, last, number)


def _words(answer: Answered) -> str:
    return f"{answer.action} of round {answer.round} by silo {answer.silo}"


def _key(text: str) -> str:
    return text or "none"
