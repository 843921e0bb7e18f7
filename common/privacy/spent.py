"""What a ledger's reservations come to: the filter's figure, and tighter ones for who wants to know."""

from __future__ import annotations

from dataclasses import dataclass

from common.privacy.entries import Chain
from common.privacy.filter import day_of


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
    best_rdp = pld = None
    if tighter:
        from common.privacy.accountant import epsilon

        events = [charge.event for charge in spending.charges]
        best_rdp = min(epsilon(events, delta, "rdp"), spending.epsilon(order, delta))
        pld = epsilon(events, delta, "pld")
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
    )
