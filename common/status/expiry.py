"""What in a party's folder expires when, under short names for tables and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from common.consortium.expiry import Expiry, days_left, expiries
from common.consortium.home import CoordinatorHome, SiloHome
from common.consortium.roster import Consortium, read_signed
from common.errors import ConsortiumError

_SHORT = {"the authority's certificate": "authority", "the coordinator's certificate": "certificate", "the roster": "roster"}


@dataclass(frozen=True)
class Ending:
    """``what`` is ``authority``, ``certificate``, ``roster``, or ``silo`` with the silo's name."""

    what: str
    expiry: Expiry

    @property
    def until(self) -> float:
        """Seconds since 1970."""
        return self.expiry.until.timestamp()

    @property
    def is_of_a_silo(self) -> bool:
        """Whether it is a silo's membership."""
        return self.what.startswith("silo ")

    def days(self, now: float) -> int:
        """Whole days that are left, negative for what has expired."""
        return days_left(self.expiry.until, moment(now))


def endings(home: SiloHome | CoordinatorHome, consortium: Consortium | None, silo: str = "") -> list[Ending]:
    """All that expires in ``home``, and of silos only ``silo`` where one is named; nothing where the roster cannot be read."""
    if consortium is None:
        return []
    try:
        found = list(expiries(home, consortium))
    except ConsortiumError:
        return []
    own = f"silo {silo!r}"
    mine = (one for one in found if not silo or not one.what.startswith("silo ") or one.what == own)
    return [Ending(_SHORT.get(one.what, one.what.replace("'", "")), one) for one in mine]


def roster_of(home: SiloHome | CoordinatorHome) -> Consortium | None:
    """The roster in ``home``; None where there is none that the authority signed."""
    try:
        return read_signed(home.roster, home.authority)
    except (ConsortiumError, OSError):
        return None


def moment(now: float) -> datetime:
    """Seconds since 1970 as a time in UTC."""
    return datetime.fromtimestamp(now, UTC)
