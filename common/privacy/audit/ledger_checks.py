"""Checks that a ledger passes or fails by itself: is it whole, was its policy kept, does it add up?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import groupby

from common.errors import BudgetExhausted
from common.privacy.audit.check import Check, Named, count, judged, not_applicable
from common.privacy.audit.evidence import Evidence
from common.privacy.entries import SAME_EPSILON, Chain, charge_of
from common.privacy.entry import Amendment, Countersignature, Entry, Opening, Reservation, countersigned
from common.privacy.filter import Spending
from common.privacy.signing import fingerprint

_ENTRY = re.compile(r"\bentry (\d+)\b")


def ledger_checks(evidence: Evidence) -> list[Check]:
    """All of them, over every ledger."""
    return [
        check_chains(evidence),
        check_copies(evidence),
        check_countersignatures(evidence),
        check_policy(evidence),
        check_totals(evidence),
    ]


def check_chains(evidence: Evidence) -> Check:
    """Hashes, signatures, order and form: done while reading, told here."""
    name, statement = "chain", "Every ledger's hash chain is whole, and every entry is signed with its silo's key."
    faults = []
    for problem in evidence.problem_with("ledger"):
        entry = _ENTRY.search(problem.what)
        faults.append(Named(problem.what, problem.name, int(entry[1]) if entry else None))
    if not evidence.ledgers and not faults:
        return not_applicable(name, statement, "there is no ledger")
    told = [
        f"{chain.silo}: {count(len(chain.entries), 'entry')}, key {fingerprint(chain.public_key)}"
        for chain in evidence.ledgers.values()
    ]
    return judged(name, statement, "; ".join(told) or "no ledger could be read", faults)


def check_copies(evidence: Evidence) -> Check:
    """Copies of a ledger are beginnings of each other, and no silo has two ledgers."""
    name, statement = "copies", "No silo has two ledgers, and earlier copies of a ledger are its beginning."
    if not evidence.ledgers:
        return not_applicable(name, statement, "there is no ledger")
    faults: list[Named] = []
    longest = {chain.public_key: (where, chain) for where, chain in evidence.current.items()}
    copies = 0
    for where, chain in evidence.ledgers.items():
        other, whole = longest[chain.public_key]
        if where == other:
            continue
        copies += 1
        if not whole.extends(chain):
            at = next(ours.seq for ours, theirs in zip(whole.entries, chain.entries, strict=False) if ours.hash != theirs.hash)
            faults.append(Named(f"it went another way than {other} from here on: one silo signed two histories", where, at))
    by_name = sorted(longest.values(), key=lambda found: found[1].silo)
    for silo, found in groupby(by_name, key=lambda pair: pair[1].silo):
        files = [where for where, _ in found]
        if len(files) > 1:
            faults.append(Named(f"silo {silo} has another ledger with another key: {', '.join(files[1:])}", files[0], 0))
    told = f"{count(len(evidence.current), 'ledger')}, {count(copies, 'earlier copy')}"
    return judged(name, statement, told, faults)


def check_countersignatures(evidence: Evidence) -> Check:
    """Who else has seen how much of the ledgers; those kept by auditors show an older copy for what it is."""
    name = "countersignatures"
    statement = "Every countersignature is that of its key, and every entry that somebody has signed to have seen is still there."
    faults = [Named(f"{problem.name}: {problem.what}") for problem in evidence.problem_with("countersignature")]
    told = []
    places = {entry.hash: (where, entry.seq) for where, chain in evidence.current.items() for entry in chain.entries}
    for where, chain in evidence.current.items():
        for entry in chain.entries:
            what = entry.what
            if isinstance(what, Countersignature):
                told.append(f"{chain.silo}: {fingerprint(what.by)} has seen it up to entry {places[what.head][1]}")
                if not countersigned(what.head, what.by, what.signature):
                    faults.append(Named(f"the countersignature is not that of {what.by}", where, entry.seq))
    for seen in evidence.seen:
        if not countersigned(seen.head, seen.by, seen.signature):
            faults.append(Named(f"{seen.name}: the countersignature is not that of {seen.by} over {seen.head}"))
        elif seen.head in places:
            told.append(f"{seen.name}: {fingerprint(seen.by)} has seen {seen.silo} up to entry {places[seen.head][1]}")
        else:
            at = next(((where, c.entries[-1].seq) for where, c in evidence.current.items() if c.silo == seen.silo), (None, None))
            text = f"{seen.name}: an entry with hash {seen.head} was seen, and is not here: an older copy, or another history"
            faults.append(Named(text, *at))
    if not told and not faults:
        why = "nobody has countersigned: that nothing was cut off at the end, only a transcript or an earlier copy can show"
        return not_applicable(name, statement, why)
    return judged(name, statement, "; ".join(told) or "none holds", faults)


def check_policy(evidence: Evidence) -> Check:
    """Parameters and limits of the policy that was in force."""
    name, statement = "policy", "No reservation passes the policy that was in force when it was made."
    if not evidence.current:
        return not_applicable(name, statement, "there is no ledger")
    faults, told = [], []
    for where, chain in evidence.current.items():
        faults += [Named(finding.what, where, finding.seq) for finding in chain.check(recompute=False)]
        faults += [Named(f"passes the policy: {over}", where, entry.seq) for entry, _, over in _replayed(chain) if over]
        limits = ", ".join(f"{limit.name} {limit.epsilon:g}" for limit in chain.policy.limits) or "no limit"
        told.append(f"{chain.silo}: {limits} at delta {chain.policy.delta:g}, {count(len(chain.reservations), 'reservation')}")
    return judged(name, statement, "; ".join(told), sorted(faults, key=lambda found: (found.ledger or "", found.entry or 0)))


def check_totals(evidence: Evidence) -> Check:
    """The running total that each reservation recorded, computed again from the first entry on."""
    name, statement = "totals", "Every recorded epsilon is what all reservations up to there come to."
    if not any(chain.reservations for chain in evidence.current.values()):
        return not_applicable(name, statement, "nothing was reserved")
    faults, told = [], []
    for where, chain in evidence.current.items():
        right = 0.0
        for entry, right, _ in _replayed(chain):
            assert isinstance(entry.what, Reservation)
            said = math.inf if entry.what.epsilon is None else entry.what.epsilon
            if said != right and not abs(said - right) <= SAME_EPSILON * right:
                faults.append(Named(f"records epsilon {said:.9g}; all entries up to here come to {right:.9g}", where, entry.seq))
        told.append(f"{chain.silo}: epsilon {right:.9g} at delta {chain.policy.delta:g}, Rényi order {chain.policy.order:g}")
    return judged(name, statement, "; ".join(told), faults)


def _replayed(chain: Chain) -> Iterator[tuple[Entry, float, str]]:
    """Each reservation with the epsilon of everything up to it, and the limit that it passes, in words."""
    spending, policies = Spending(), dict(chain.policies)
    policy = chain.policies[0][1]
    for entry in chain.entries:
        what = entry.what
        if isinstance(what, Opening | Amendment):
            policy = policies[entry.seq]
        elif isinstance(what, Reservation):
            charge, over = charge_of(entry, what), ""
            try:
                spending.check(policy.limits, charge)
            except BudgetExhausted as error:
                over = str(error)
            spending.add(charge)
            yield entry, spending.epsilon(policy.order or 0.0, policy.delta), over
