"""Until when things of a consortium are valid, and a warning in time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from common.consortium.certificates import read_certificate
from common.consortium.home import AuthorityHome, CoordinatorHome, SiloHome
from common.consortium.roster import CLOCKS_APART, Consortium, day, minute

#: How long ahead an expiry is warned of.
AHEAD: Final = timedelta(days=30)

SET_THE_CLOCK: Final = "set the clock right (timedatectl set-ntp true); if it is right, wait"


@dataclass(frozen=True)
class Expiry:
    """What is valid, from when until when, and what its owner does about it."""

    what: str
    since: datetime
    until: datetime
    remedy: str

    def has_expired(self, now: datetime) -> bool:
        """Whether it counts no more."""
        return now >= self.until

    def has_begun(self, now: datetime) -> bool:
        """Whether it counts by now; if not, the machine's clock is the first suspect."""
        return now >= self.since

    def fault(self, now: datetime) -> str:
        """What is wrong with it: it has expired, does so within :data:`AHEAD`, or is not valid yet; empty if nothing is."""
        if self.has_expired(now):
            return f"{self.what} expired on {minute(self.until)}"
        if not self.has_begun(now):
            return f"{self.what} is valid from {minute(self.since)} on, and this machine's clock says {minute(now)}"
        if self.until - now < AHEAD:
            left = days_left(self.until, now)
            return f"{self.what} expires in {left} {'day' if left == 1 else 'days'}, on {day(self.until)}"
        return ""

    def remedy_for(self, now: datetime) -> str:
        """What to do about the fault."""
        return self.remedy if self.has_begun(now) else SET_THE_CLOCK

    def warning(self, now: datetime) -> str:
        """The fault and its remedy in a sentence; empty if there is none."""
        fault = self.fault(now)
        return f"{fault}; {self.remedy_for(now)}" if fault else ""


def days_left(until: datetime, now: datetime) -> int:
    """Whole days, negative for what has expired."""
    return math.floor((until - now) / timedelta(days=1))


def expiries(home: AuthorityHome | CoordinatorHome | SiloHome, consortium: Consortium) -> Iterator[Expiry]:
    """All that expires in a folder: the authority, the coordinator's certificate where it is there, the roster, each silo."""
    remedy = "found a new consortium in time: silorec consortium init"
    yield _of_certificate("the authority's certificate", home.authority, remedy)
    server = home.coordinator if isinstance(home, AuthorityHome) else home
    if isinstance(server, CoordinatorHome) and server.tls_certificate.exists():
        remedy = "the authority renews it: silorec consortium rotate DIR --server"
        yield _of_certificate("the coordinator's certificate", server.tls_certificate, remedy)
    remedy = "the authority signs it anew: silorec consortium rotate DIR --roster"
    yield Expiry("the roster", consortium.issued - CLOCKS_APART, consortium.valid_until, remedy)
    for member in consortium.members:
        if member.revoked is None:
            remedy = f"the authority extends it: silorec consortium rotate DIR --extend {member.name}"
            yield Expiry(f"silo {member.name!r}", member.valid_from, member.valid_until, remedy)


def _of_certificate(what: str, path: Path, remedy: str) -> Expiry:
    certificate = read_certificate(path)
    return Expiry(what, certificate.not_valid_before_utc, certificate.not_valid_after_utc, remedy)
