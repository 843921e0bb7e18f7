"""What a silo's ledger says is spent and left of each limit, for the silo's own operator."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from common.errors import SilorecError


class Budget:
    """The ledger at ``path``, read again only when its file has changed, because every signature in it is checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[Any, ...] = ()
        self._facts: dict[str, Any] = {}

    def facts(self, now: float | None = None) -> dict[str, Any]:
        """What is spent, limit by limit.

        Returns
        -------
        ``limits``, by the policy's key ``epsilon``, ``epsilon_per_run`` and ``epsilon_per_day`` those that are set, each with
        ``limit``, ``spent`` and ``left`` (null for an epsilon without bound), the run being the one that was charged last and the
        day today (UTC); ``delta``, ``reservations``, ``open``, ``closed``, ``spent``. Or only ``error``, where it cannot be read.
        """
        today = int((time.time() if now is None else now) // 86_400)
        seen = (today, *(_state(self.path.with_name(self.path.name + end)) for end in ("", "-wal")))
        if seen != self._seen:
            try:
                self._facts = _read(self.path, today)
            except SilorecError as error:
                self._facts = {"error": str(error)}
            self._seen = seen
        return self._facts


def _read(path: Path, today: int) -> dict[str, Any]:
    from common.privacy.ledger import read_ledger

    chain = read_ledger(path)
    policy, spending = chain.policy, chain.spending()
    runs = spending.runs()
    run = spending.charges[-1].run if runs else ""
    limits = {}
    for limit in policy.limits:
        wholes: dict[str, dict[str, Any]] = {"epsilon_per_run": {"run": run}, "epsilon_per_day": {"day": today}}
        whole = wholes.get(limit.name, {})
        spent = spending.epsilon(limit.order, limit.delta, **whole)
        limits[limit.name] = {"limit": limit.epsilon, "spent": _finite(spent), "left": max(0.0, limit.epsilon - spent)}
    everything = spending.epsilon(policy.order or 0.0, policy.delta) if policy.order else math.inf if runs else 0.0
    return {
        "silo": chain.silo,
        "limits": limits,
        "spent": _finite(everything),
        "delta": policy.delta,
        "reservations": len(chain.reservations),
        "open": len(chain.open_reservations),
        "runs": len(runs),
        "closed": chain.closed,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _state(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)
