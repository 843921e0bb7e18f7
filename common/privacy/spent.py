"""What a ledger's reservations come to: the filter's figure, and tighter ones for who wants to know."""

from __future__ import annotations

from dataclasses import dataclass

from common.privacy.entries import Chain
from common.privacy.events import Distributed
from common.privacy.filter import Spending, day_of


@dataclass(frozen=True)
class Collusion:
    """What a ledger's reservations come to if all other silos collude with the coordinator, at the same orders and delta.

    Parameters
    ----------
    epsilon, runs, best_rdp, pld:
        As in :class:`Spent`. Releases of mode ``distributed`` count with the noise of this silo's own share, others as they are.
    honest:
        Most honest silos that a release counted on.
    """

    epsilon: float
    runs: dict[str, float]
    honest: int
    best_rdp: float | None = None
    pld: float | None = None


@dataclass(frozen=True)
class Spent:
    """What a ledger's reservations come to, over all runs.

    Parameters
    ----------
    epsilon, rdp:
        At the policy's order (and delta): what the filter holds against the limit. Infinite after an unprotected release.
    share:
        Of the sum of costs that the limit has room for; this is what grows evenly. None without a limit.
    reservations, open:
        How many releases were paid for, and for how many of these no answer was noted.
    runs:
        Epsilon of each run alone, at the order of its limit if there is one.
    today:
        Epsilon of the releases of the last entry's day (UTC), likewise.
    best_rdp, pld:
        Tighter figures, on request: Rényi DP at the best order, and PLD. They hold where parameters were fixed in advance.
    if_others_collude:
        All figures here hold against whoever sees what left: in mode ``distributed``, sums over silos. This one holds whatever
        the other silos tell. None where nothing of mode ``distributed`` was released.
    """

    epsilon: float
    rdp: float
    order: float
    delta: float
    limit: float | None
    share: float | None
    reservations: int
    open: int
    runs: dict[str, float]
    today: float
    best_rdp: float | None = None
    pld: float | None = None
    if_others_collude: Collusion | None = None


def spent_by(chain: Chain, *, tighter: bool = False) -> Spent:
    """What all reservations in ``chain`` come to.

    Parameters
    ----------
    tighter:
        Also give the figures at the best order and by PLD, which takes seconds for many different events.
    """
    policy, spending = chain.policy, chain.spending()
    order, delta = policy.order or 0.0, policy.delta
    rdp = spending.rdp(order)
    limits = {limit.name: limit for limit in policy.limits}
    whole = limits.get("epsilon")
    per_run, per_day = (limits[name].order if name in limits else order for name in ("epsilon_per_run", "epsilon_per_day"))
    best_rdp, pld = _tighter(spending, order, delta) if tighter else (None, None)
    shared = [charge.event for charge in spending.charges if isinstance(charge.event, Distributed)]
    left = None
    if shared:
        others = spending.if_others_collude()
        tighter_left = _tighter(others, order, delta) if tighter else (None, None)
        runs = {run: others.epsilon(per_run, delta, run=run) for run in others.runs()}
        left = Collusion(others.epsilon(order, delta), runs, max(event.honest for event in shared), *tighter_left)
    return Spent(
        epsilon=spending.epsilon(order, delta),
        rdp=rdp,
        order=order,
        delta=delta,
        limit=policy.epsilon,
        share=None if whole is None else rdp / whole.rdp_budget,
        reservations=len(chain.reservations),
        open=len(chain.open_reservations),
        runs={run: spending.epsilon(per_run, delta, run=run) for run in spending.runs()},
        today=spending.epsilon(per_day, delta, day=day_of(chain.entries[-1].time)),
        best_rdp=best_rdp,
        pld=pld,
        if_others_collude=left,
    )


def _tighter(spending: Spending, order: float, delta: float) -> tuple[float, float]:
    """Epsilon of everything by Rényi DP at the best order, and by PLD."""
    from common.privacy.accountant import epsilon

    events = [charge.event for charge in spending.charges]
    return min(epsilon(events, delta, "rdp"), spending.epsilon(order, delta)), epsilon(events, delta, "pld")
