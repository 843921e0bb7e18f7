"""The signed roster: whole, still valid, and what it says of this silo, or of all."""

from __future__ import annotations

from collections.abc import Iterator

from common.consortium.expiry import Expiry
from common.consortium.roster import Member, read_signed
from common.doctor.finding import Check, Finding, NotChecked, ok, problem, warning
from common.doctor.keys import of_expiry
from common.doctor.subject import COORDINATOR, HOMES, SILO, Subject
from common.errors import SilorecError
from common.privacy.audit.check import count

_AUTHORITY = "ask the authority for a new one: silorec consortium rotate DIR --roster"
_EXTEND = "ask the authority to extend it: silorec consortium rotate DIR --extend {}"


def look_at_roster(subject: Subject) -> Iterator[Finding]:
    """Signature, form and validity."""
    home, now = subject.home, subject.now
    if not home.roster.exists():
        seen = f"{home.roster}: there is no roster: this side has not been admitted yet"
        yield problem(
            "roster",
            seen,
            f"send the .request file here to the authority, then: silorec consortium roster {home.folder} --import roster.toml",
        )
        return
    try:
        roster = read_signed(home.roster, home.authority)
    except SilorecError as error:
        yield problem(
            "roster", str(error), "restore roster.toml and authority.pem from your invitation, or fetch the roster anew"
        )
        return
    valid = Expiry(f"version {roster.version} of the roster", roster.issued, roster.valid_until, _AUTHORITY)
    if found := of_expiry("roster", valid, now):
        yield found
    else:
        seen = f"version {roster.version} of {roster.name!r}, {count(len(roster.members), 'silo')}, signed by its authority"
        yield ok("roster", f"{seen}, valid until {roster.valid_until:%Y-%m-%d}")


def look_at_own_standing(subject: Subject) -> Iterator[Finding]:
    """This silo's own entry."""
    member, now = subject.member, subject.now
    if refusal := member.why_refused(now):
        yield problem("standing", refusal, "the silo takes no part until the authority has signed a roster that says otherwise")
        return
    yield of_expiry("standing", _admission(member), now) or ok(
        "standing", f"silo {member.name!r} is valid until {member.valid_until:%Y-%m-%d}"
    )
    if (name := _named(subject)) != member.name:
        seen = f"silo.toml calls this silo {name!r}, the roster calls its key {member.name!r}"
        yield warning("standing", seen, f'put name = "{member.name}" into silo.toml')


def look_at_address(subject: Subject) -> Iterator[Finding]:
    """Whether the silo connects to where the roster says that the coordinator is."""
    ours, theirs = subject.silo_settings.coordinator, subject.roster.address
    if ours == theirs:
        yield ok("address", f"the coordinator is at {theirs}")
    else:
        seen = f"silo.toml connects to {ours}, and the roster says that the coordinator is at {theirs}"
        yield warning("address", seen, f'put coordinator = "{theirs}" into silo.toml, unless there is a reason for the other one')


def look_at_everybody(subject: Subject) -> Iterator[Finding]:
    """All silos, for the coordinator."""
    roster, now = subject.roster, subject.now
    valid = [member for member in roster.members if member.standing(now) == "valid"]
    for member in roster.members:
        if member.revoked is not None:
            continue  # that is as it should be
        if refusal := member.why_refused(now):
            yield warning("standing", refusal, "without that the silo takes no part")
        elif found := of_expiry("standing", _admission(member), now):
            yield found
    if not valid:
        yield problem(
            "standing", f"none of {len(roster.members)} silos is valid", "invite silos: silorec consortium invite --help"
        )
    else:
        yield ok("standing", f"{len(valid)} of {len(roster.members)} silos are valid")


def look_at_newer_roster(subject: Subject) -> Iterator[Finding]:
    """Whether the coordinator has the same roster."""
    theirs, ours = subject.told().facts.get("roster_version"), subject.roster.version
    if not isinstance(theirs, int):
        return
    if theirs > ours:
        do = "nothing: silorec client up takes it, and refuses it if it is not the authority's"
        yield warning("newer roster", f"the coordinator has version {theirs} of the roster, this silo {ours}", do)
    elif theirs < ours:
        seen = f"the coordinator still has version {theirs} of the roster, this silo {ours}"
        yield warning("newer roster", seen, "tell the coordinator's operator to put the newer one in place")
    else:
        yield ok("newer roster", f"the coordinator has the same version {ours}")


def _admission(member: Member) -> Expiry:
    remedy = _EXTEND.format(member.name)
    return Expiry(f"the admission of silo {member.name!r}", member.valid_from, member.valid_until, remedy)


def _named(subject: Subject) -> str:
    try:
        return subject.silo_settings.name
    except NotChecked:
        return subject.member.name


CHECKS = (
    Check("roster", HOMES, look_at_roster),
    Check("standing", SILO, look_at_own_standing),
    Check("address", SILO, look_at_address),
    Check("standing", COORDINATOR, look_at_everybody),
    Check("newer roster", SILO, look_at_newer_roster),
)
