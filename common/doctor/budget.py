"""The operator's policy and the ledger: readable, of this silo, agreeing with each other and the roster, and with budget left."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from common.doctor.finding import Check, Finding, NotChecked, ok, problem, warning
from common.doctor.subject import SILO, Subject
from common.errors import SilorecError
from common.privacy.audit.check import count
from common.privacy.ledger import CLOCK_SLACK, read_ledger
from common.privacy.policy import ANY, read_policy
from common.privacy.signing import fingerprint, load_key
from common.privacy.spent import spent_by

#: A budget of which less than this share is left, in Rényi terms, is warned of.
NEARLY_SPENT = 0.1

#: From this share on, no release is small enough to fit.
SPENT = 1 - 1e-6

#: Seconds for reading a ledger beyond which a silo's start is slow.
_SLOW = 10.0


def look_at_policy(subject: Subject) -> Iterator[Finding]:
    """``policy.toml`` by itself, and against the roster."""
    path, wrong = subject.silo.policy, False
    if not path.exists():
        yield problem("policy", f"{path}: there is no policy", "write one: docs/budgets.md shows how")
        return
    try:
        policy = read_policy(path)
    except SilorecError as error:
        yield problem("policy", str(error), f"mend {path}")
        return
    try:
        roster, member = subject.roster, subject.member
    except NotChecked:
        yield ok("policy", f"{path.name} is valid; not held against the roster, which is not there")
        return
    if ANY not in policy.coordinators and roster.coordinator not in policy.coordinators:
        wrong = True
        seen = f"the policy does not name this consortium's coordinator ({roster.coordinator}): every question would be refused"
        yield problem("policy", seen, f"if you trust it, add the key to coordinators in {path}, then: {_amend(subject)}")
    if policy.declared_users is not None and policy.declared_users != member.declared_users:
        wrong = True
        seen = f"the policy says declared_users = {policy.declared_users}, the roster {member.declared_users}"
        do = f"make them agree: every question would be refused; then: {_amend(subject)}"
        yield problem("policy", seen, do)
    if not wrong:
        limits = ", ".join(f"{limit.name} {limit.epsilon:g}" for limit in policy.limits) or "no limit"
        yield ok("policy", f"{path.name} is valid: {limits} at delta {policy.delta:g}, modes {', '.join(policy.modes)}")


def look_at_ledger(subject: Subject) -> Iterator[Finding]:
    """The ledger's chain, key and policy."""
    path, started = subject.silo.ledger, time.monotonic()
    try:
        chain = read_ledger(path)
    except SilorecError as error:
        begin = f"silorec ledger init {path.parent} --policy {subject.silo.policy}"
        restore = "restore all files of the ledger from the same copy, and compare with the last export that somebody else has"
        yield problem("ledger", str(error), restore if path.exists() else begin)
        return
    seconds, wrong = time.monotonic() - started, False
    try:
        mine = load_key(subject.silo.identity_key).public_key
    except SilorecError:
        mine = chain.public_key  # the keys' own check speaks of that
    if mine != chain.public_key:
        wrong = True
        seen = f"the ledger is that of key {fingerprint(chain.public_key)}, ledger.key is {fingerprint(mine)}"
        yield problem(
            "ledger", f"{seen}: nothing can be charged", "restore ledger.key and all files of the ledger from the same copy"
        )
    if chain.closed:
        wrong = True
        do = "nothing, if that is meant; another ledger is for other users"
        yield problem("ledger", "the ledger is closed: nothing is released any more", do)
    last = chain.entries[-1].time
    if subject.machine.clock() < last - CLOCK_SLACK:
        wrong = True
        seen = f"the last entry is {last - subject.machine.clock():.0f} s in the future: the clock has gone back"
        yield problem("ledger", seen, "set the clock right: timedatectl set-ntp true")
    if _differs(subject):
        wrong = True
        seen = "policy.toml is not the policy that the ledger has in force"
        yield warning("ledger", seen, f"if the new one is meant: {_amend(subject)}")
    if seconds > _SLOW:
        wrong = True
        seen = f"reading {count(len(chain.entries), 'entry')} took {seconds:.0f} s"
        yield warning("ledger", seen, "keep the ledger on a faster local disk; a start takes as long")
    if not wrong:
        yield ok("ledger", f"{count(len(chain.entries), 'entry')}, whole and signed, read in {seconds:.2f} s")


def look_at_budget(subject: Subject) -> Iterator[Finding]:
    """What is left."""
    chain = subject.chain
    spent = spent_by(chain)
    amend = "an operator who wants to go on records a new policy: silorec ledger amend --help"
    if spent.limit is None or spent.share is None:
        yield ok("budget", f"{spent.reservations} releases; the policy sets no limit")
        return
    # A ledger in which an unprotected release stands has an infinite epsilon, whatever its limit.
    told = "unbounded" if math.isinf(spent.epsilon) else f"{spent.epsilon:.4g}"
    share = f"{min(spent.share, 1):.0%} of the room in Rényi terms"
    seen = f"epsilon {told} of {spent.limit:g} is spent at delta {spent.delta:g}, {share}"
    if spent.share >= SPENT:
        yield problem("budget", f"{seen}: nothing more is released", amend)
    elif 1 - spent.share < NEARLY_SPENT:
        yield warning("budget", seen, amend)
    else:
        yield ok("budget", seen)


def _differs(subject: Subject) -> bool:
    """Whether the file sets something that is not in force; orders that it leaves open were fixed by the ledger."""
    try:
        wanted = subject.policy.to_dict()
    except NotChecked:
        return False
    force = subject.chain.policy.to_dict()
    return any(value != force[key] for key, value in wanted.items() if not (key.startswith("order") and value is None))


def _amend(subject: Subject) -> str:
    return f'silorec ledger amend {subject.silo.folder} --policy {subject.silo.policy} --reason "…"'


CHECKS = (
    Check("policy", SILO, look_at_policy),
    Check("ledger", SILO, look_at_ledger),
    Check("budget", SILO, look_at_budget),
)
