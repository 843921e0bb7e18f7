"""A Rényi filter: what has been spent at one fixed order, and what would pass a limit.

The coordinator may choose each round's parameters after it has seen the last answer. Composition by Rényi DP stays valid then, as
long as the sum of the costs at *one order that was fixed in advance* is held below a fixed amount: a privacy filter
(Feldman & Zrnic 2021, "Individual Privacy Accounting via a Rényi Filter", Thm 4.3; Lécuyer 2021, "Practical Privacy Filters and
Odometers with Rényi Differential Privacy and Applications", Thm 1). Taking the best of many orders afterwards, as accountants do
for parameters that were fixed beforehand, is not covered by that proof; so each limit here has its order, and keeps it.

At its order α a limit (ε, δ) leaves room for a certain sum of costs, :func:`rdp_budget`. The conversion
ε = RDP + log(1 − 1/α) − log(δα)/(α − 1) (Canonne, Kamath & Steinke 2020, Prop. 12) has a part that does not depend on what was
spent: the first release pays for it. Therefore the order is chosen for the limit, by :func:`order_for`.

Releases of mode ``distributed`` are charged by what the coordinator sees; :meth:`Spending.if_others_collude` tells what it would
be if all other silos gave their shares of noise away. No limit is held against that figure; the policy bounds it by other means.

The mathematics is Google's ``dp_accounting``; only the choice of the order is done here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from common.errors import BudgetExhausted, LedgerError, PrivacyError
from common.logs import errors_only
from common.privacy.events import Distributed, Event, Unprotected, if_others_collude

#: Where orders are looked for: the list that ``dp_accounting`` uses by default, so that its best order is one of them.
ORDERS: tuple[float, ...] = (*(1 + x / 10.0 for x in range(1, 100)), *map(float, range(11, 64)), 128.0, 256.0, 512.0, 1024.0)

#: Where a default order is looked for. Between whole orders ``dp_accounting`` bounds a sampled release by a series without its
#: signs: too much where much noise meets a large sample (25 times at order 2.5 for noise 30 and probability 0.5), and infinite
#: for many parameters below order 2. At whole orders its figure is exact. (``test_whole_orders_are_the_better_ones``)
WHOLE_ORDERS: tuple[float, ...] = tuple(order for order in ORDERS if order.is_integer())

#: A budget that was calibrated to be met exactly may be passed by rounding, relative to the limit; and by nothing else.
ROUNDING = 1e-6

DAY = 86_400  # seconds


@dataclass(frozen=True)
class Charge:
    """A release that is paid for; its run and the second (UTC) of its reservation say under which limits it falls."""

    run: str
    time: int
    event: Event

    @property
    def day(self) -> int:
        """Whole days (UTC) since 1970."""
        return day_of(self.time)


@dataclass(frozen=True)
class Limit:
    """At most ``epsilon`` at ``delta``, kept by a filter at ``order``, over everything or over one run or one UTC day.

    Parameters
    ----------
    name:
        The policy's key: ``epsilon``, ``epsilon_per_run`` or ``epsilon_per_day``.
    """

    name: str
    epsilon: float
    delta: float
    order: float

    @property
    def rdp_budget(self) -> float:
        """The sum of costs that it has room for."""
        return rdp_budget(self.epsilon, self.delta, self.order)


class Spending:
    """The sums of all charges at any order: over everything, per run and per day. Charges are added, never taken back."""

    def __init__(self, charges: Iterable[Charge] = ()) -> None:
        self.charges: list[Charge] = []
        self._sums: dict[float, dict[tuple[str, str | int], float]] = {}
        for charge in charges:
            self.add(charge)

    def add(self, charge: Charge) -> None:
        """Count ``charge`` as spent, whatever the limits."""
        self.charges.append(charge)
        for order, sums in self._sums.items():
            _add(sums, charge, order)

    def rdp(self, order: float, *, run: str | None = None, day: int | None = None) -> float:
        """Rényi divergence of ``order`` spent by everything, by one run, or on one day."""
        return self._at(order).get(_key(run, day), 0.0)

    def epsilon(self, order: float, delta: float, *, run: str | None = None, day: int | None = None) -> float:
        """The same as epsilon at ``delta``; 0 before the first charge."""
        return epsilon_at(self.rdp(order, run=run, day=day), order, delta)

    def if_others_collude(self) -> Spending:
        """The same charges with what is left of each if all other silos collude with the coordinator."""
        return Spending(Charge(charge.run, charge.time, if_others_collude(charge.event)) for charge in self.charges)

    def runs(self) -> tuple[str, ...]:
        """The runs that were charged, in the order of their first charge."""
        return tuple(dict.fromkeys(charge.run for charge in self.charges))

    def check(self, limits: Sequence[Limit], charge: Charge) -> None:
        """Whether every limit has room for ``charge``, which is not added.

        Raises
        ------
        BudgetExhausted
            Naming the limit, what it would come to, and what is spent.
        """
        for limit in limits:
            whole: dict[str, Any] = {}
            if limit.name == "epsilon_per_run":
                whole = {"run": charge.run}
            elif limit.name == "epsilon_per_day":
                whole = {"day": charge.day}
            before = self.rdp(limit.order, **whole)
            after = epsilon_at(before + rdp_at(charge.event, limit.order), limit.order, limit.delta)
            if not after <= limit.epsilon * (1 + ROUNDING):
                over = {"epsilon_per_run": " in this run", "epsilon_per_day": " on this day (UTC)"}.get(limit.name, "")
                raise BudgetExhausted(
                    f"{limit.name}: epsilon would be {_figure(after)}{over} after this release, the policy allows "
                    f"{limit.epsilon:.10g} at delta = {limit.delta:g} (Rényi order {limit.order:g}); "
                    f"{_figure(epsilon_at(before, limit.order, limit.delta))} is spent"
                )

    def epsilon_after(self, charge: Charge, order: float, delta: float) -> float:
        """What :meth:`epsilon` over everything will be once ``charge`` is added."""
        return epsilon_at(self.rdp(order) + rdp_at(charge.event, order), order, delta)

    def _at(self, order: float) -> dict[tuple[str, str | int], float]:
        if order not in self._sums:
            sums: dict[tuple[str, str | int], float] = {}
            for charge in self.charges:
                _add(sums, charge, order)
            self._sums[order] = sums
        return self._sums[order]


def day_of(time: int) -> int:
    """The UTC day of a time in seconds, as whole days since 1970."""
    return time // DAY


def rdp_at(event: Event, order: float) -> float:
    """Rényi divergence of ``order`` that ``event`` costs: infinite without protection, and where it cannot be computed.

    The noise of mode ``distributed`` is discrete. At whole orders a continuous Gaussian costs exactly the same, sampled or not,
    in the worse direction, removal (Mironov, Talwar & Zhang 2019, theorem 5, whose mirror image the whole numbers have too).
    Between whole orders ``(a - 1) D_a``, the logarithm of a moment, is convex in a, and 0 at a = 1; so the chord between the
    whole orders on either side is an upper bound.
    """
    if isinstance(event, Unprotected):
        return math.inf
    _dp()
    dp_event = event.to_dp_event()
    if isinstance(event, Distributed) and not float(order).is_integer():
        below, above = float(math.floor(order)), float(math.ceil(order))
        low = (below - 1) * _rdp_of(dp_event, below) if below > 1 else 0.0
        high = (above - 1) * _rdp_of(dp_event, above)
        return ((above - order) * low + (order - below) * high) / (order - 1)
    return _rdp_of(dp_event, order)


def orders_for(events: Iterable[Event]) -> tuple[float, ...]:
    """Where to look for the best order of ``events``: whole orders only where one is of mode ``distributed``, because its cost is
    exact there and a bound elsewhere; else all :data:`ORDERS`."""
    return WHOLE_ORDERS if any(isinstance(event, Distributed) for event in events) else ORDERS


def epsilon_at(rdp: float, order: float, delta: float) -> float:
    """Epsilon at ``delta`` of a mechanism whose Rényi divergence of ``order`` is ``rdp``; infinite for an infinite one."""
    if math.isinf(rdp):
        return math.inf
    return float(_dp().compute_epsilon([order], [rdp], delta)[0])


def rdp_budget(epsilon: float, delta: float, order: float) -> float:
    """The sum of costs at ``order`` that comes to just ``epsilon`` at ``delta``; not positive where there is no room at all."""
    return epsilon - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)


def order_for(epsilon: float, delta: float) -> float:
    """The whole order at which Gaussian releases, each ``α / (2σ²)`` at order α, can spend most within ``(epsilon, delta)``.

    Raises
    ------
    PrivacyError
        If there is no room at any order.
    """
    order = max(WHOLE_ORDERS, key=lambda a: rdp_budget(epsilon, delta, a) / a)
    if not rdp_budget(epsilon, delta, order) > 0:
        raise PrivacyError(f"epsilon = {epsilon:g} at delta = {delta:g} leaves no room at any Rényi order; raise one of them")
    return order


def best_order(events: Sequence[Event], delta: float) -> float:
    """The order at which the planned ``events`` together come to the least epsilon, of :func:`orders_for` them.

    For a policy that is written for one plan: at this order the filter's epsilon is that of ``dp_accounting``'s RDP accountant.

    Raises
    ------
    PrivacyError
        If there are no events, or one is unprotected.
    """
    if not events or any(isinstance(event, Unprotected) for event in events):
        raise PrivacyError("an order can be chosen for a plan of protected releases only")
    _dp()
    times = Counter(event.to_dp_event() for event in events)
    orders = orders_for(events)
    sums = [math.fsum(n * _rdp_of(event, order) for event, n in times.items()) for order in orders]
    return float(_dp().compute_epsilon(orders, sums, delta)[1])


@lru_cache(maxsize=1 << 16)
def _rdp_of(dp_event: Any, order: float) -> float:
    with errors_only("absl"):
        try:
            rdp = float(_dp().RdpAccountant(orders=[order]).compose(dp_event).rdp[0])
        except (ArithmeticError, TypeError, ValueError):  # parameters so extreme that floating point gives up
            return math.inf
    return max(rdp, 0.0) if not math.isnan(rdp) else math.inf


@lru_cache(maxsize=1)
def _dp() -> Any:
    """``dp_accounting``'s module for RDP, loaded when first needed: it takes a second and a half."""
    try:
        from dp_accounting.rdp import rdp_privacy_accountant
    except ModuleNotFoundError as error:
        if error.name != "dp_accounting":
            raise
        raise LedgerError(
            "dp_accounting is not installed, so costs cannot be computed (signatures and hash chains can be checked without): "
            "pip install 'silorec[client]'"
        ) from None
    return rdp_privacy_accountant


def _key(run: str | None, day: int | None) -> tuple[str, str | int]:
    return ("run", run) if run is not None else ("day", day) if day is not None else ("all", "")


def _add(sums: dict[tuple[str, str | int], float], charge: Charge, order: float) -> None:
    cost = rdp_at(charge.event, order)
    for key in (_key(None, None), _key(charge.run, None), _key(None, charge.day)):
        sums[key] = sums.get(key, 0.0) + cost


def _figure(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.6g}"
