"""Does the evidence bear out what is claimed? Every check, in one list.

What can be found without trusting anybody: an entry that was altered, a policy that was passed, a total that does not add up, an
answer that nobody paid for, or that was paid for with less than the configuration demands, an older copy of a ledger, a
configuration that was changed.

What cannot be found here: a silo that computed something else than its entry says. Its signed entry is a statement;
``silorec audit attack`` tests what training really does. And a silo and a coordinator that agree to leave an answer out of both
books leave no trace in either.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.privacy.audit.check import Check
from common.privacy.audit.cost_checks import cost_checks
from common.privacy.audit.evidence import Evidence, load_evidence
from common.privacy.audit.ledger_checks import ledger_checks
from common.privacy.audit.matching import Matching
from common.privacy.audit.run_checks import run_checks
from common.privacy.signing import fingerprint


@dataclass(frozen=True)
class Verified:
    """The outcome of :func:`verify`."""

    checks: tuple[Check, ...]
    ledgers: tuple[dict[str, Any], ...]
    run: str | None

    @property
    def holds(self) -> bool:
        """No check failed. Some may not have been applicable: see :attr:`skipped`."""
        return not self.broken

    @property
    def broken(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.outcome == "does not hold")

    @property
    def skipped(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.outcome == "not applicable")

    def check(self, name: str) -> Check:
        """By its name."""
        return next(check for check in self.checks if check.name == name)

    def as_dict(self) -> dict[str, Any]:
        return {
            "holds": self.holds,
            "run": self.run,
            "checks": [check.as_dict() for check in self.checks],
            "ledgers": [dict(ledger) for ledger in self.ledgers],
        }


def audit(path: str | Path) -> Verified:
    """Every check on what lies at ``path``: a run's folder, a folder of exported ledgers, or one ledger.

    Raises
    ------
    SilorecError
        If there is nothing to audit.
    """
    return verify(load_evidence(Path(path)))


def verify(evidence: Evidence) -> Verified:
    """Every check on ``evidence``; what it lacks makes a check not applicable, what is damaged makes one fail."""
    run = Matching(evidence)
    ledgers = [
        {
            "name": name,
            "silo": chain.silo,
            "place": run.silo_of.get(name),
            "public_key": chain.public_key,
            "fingerprint": fingerprint(chain.public_key),
            "entries": len(chain.entries),
            "head": chain.head,
            "reservations": len(chain.reservations),
            "open": len(chain.open_reservations),
            "of_this_run": len(run.events(name)),
            "software": chain.opening.software,
            "closed": chain.closed,
        }
        for name, chain in evidence.current.items()
    ]
    return Verified((*ledger_checks(evidence), *run_checks(run), *cost_checks(run)), tuple(ledgers), run.run)
