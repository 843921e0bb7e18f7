"""What the tests of a deployment share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.privacy.audit.verify import Verified
from simulations.trial.audited import audited
from simulations.trial.consortium import Federation

NAMES = ("north", "south", "west")
UNPROTECTED: Mapping[str, Any] = {"modes": ["none"], "delta": 1e-4}
PROTECTED: Mapping[str, Any] = {"modes": ["silo"], "delta": 1e-3, "epsilon": 12.0}


def accepted_by_the_audit(trial: Federation, run: str = "run", names: tuple[str, ...] | None = None) -> Verified:
    """The audit of what an auditor would be sent: the run's configuration and transcript, and each silo's exported ledger.

    It holds, or this raises; so no silo's ledger says less than what the coordinator got from it.
    """
    verified = audited(trial, run, names)
    assert verified.holds, [check.as_dict() for check in verified.broken]
    return verified
