"""Epsilon of a list of events, and the noise that a budget asks for. The mathematics is Google's ``dp_accounting``.

Two bounds: RDP (Mironov 2017; Poisson-sampled Gaussian by Mironov, Talwar & Zhang 2019), which stays valid when parameters
are chosen adaptively, and PLD (Koskela et al. 2020; Doroshenko et al. 2022), tighter, for parameters fixed in advance.

Where an event is of mode ``distributed``, RDP looks at whole orders only: there the cost of its discrete noise is exactly that of
continuous noise (:class:`common.privacy.events.Distributed`). PLD takes it as continuous.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

from common.errors import PrivacyError
from common.logs import errors_only
from common.privacy.events import Distributed, Event, Unprotected, if_others_collude
from common.privacy.filter import WHOLE_ORDERS

Method = Literal["rdp", "pld"]

#: Whose logger warns of Rényi orders that it leaves out; the bound over the others stands.
_LIBRARY = "absl"

#: Width in nats of the grid on which PLDs are rounded up: a bound at any width. Against 1e-4, dp_accounting's default, this one
#: gives up less than 0.001 % for tens of steps and some 1 % for a thousand of tiny loss, and takes a tenth of the time.
PLD_INTERVAL = 1e-3

#: No budget asks for less noise than this: below it nothing is hidden, and the bounds are numerically of no use.
LEAST_NOISE = 0.05


def epsilon(events: Sequence[Event], delta: float, method: Method = "rdp") -> float:
    """Epsilon of all ``events`` together at ``delta``; infinite when one was unprotected, 0 for none.

    Raises
    ------
    PrivacyError
        If ``delta`` is not in (0, 1).
    """
    spent = _trivial(events, delta)
    if spent is not None:
        return spent
    accountant = _accountant(method, whole_orders=_needs_whole_orders(events))
    with errors_only(_LIBRARY):
        _compose(accountant, events)
        return float(accountant.get_epsilon(delta))


def epsilon_if_others_collude(events: Sequence[Event], delta: float, method: Method = "rdp") -> float:
    """The same of what is left of each event if all other silos collude with the coordinator; that differs from :func:`epsilon`
    only where an event is of mode ``distributed``."""
    return epsilon([if_others_collude(event) for event in events], delta, method)


def epsilon_and_order(events: Sequence[Event], delta: float, orders: Sequence[float] | None = None) -> tuple[float, float]:
    """Epsilon of all ``events`` by RDP, and the Rényi order that gives it; for none or for unprotected ones no order, ``inf``.

    Between whole orders ``dp_accounting`` adds up an alternating series without its signs (``_compute_log_a_frac``, 0.6.0). Its
    figures are upper bounds there too, but not tight; ``common.privacy.audit.rdp_reference`` has the exact ones.

    Parameters
    ----------
    orders:
        Where to look; by default those of ``dp_accounting``, or the whole ones of them where an event is of mode ``distributed``.

    Raises
    ------
    PrivacyError
        If ``delta`` is not in (0, 1), or an order is not whole where an event is of mode ``distributed``.
    """
    spent = _trivial(events, delta)
    if spent is not None:
        return spent, math.inf
    from dp_accounting import rdp

    if _needs_whole_orders(events):
        orders = WHOLE_ORDERS if orders is None else orders
        if broken := [order for order in orders if not float(order).is_integer()]:
            raise PrivacyError(f"order {broken[0]:g}: releases of mode distributed are accounted for at whole Rényi orders only")
    accountant = rdp.RdpAccountant(orders=None if orders is None else list(orders))
    with errors_only(_LIBRARY):
        _compose(accountant, events)
        epsilon, order = accountant.get_epsilon_and_optimal_order(delta)
    return float(epsilon), float(order)


@lru_cache(maxsize=64)
def noise_for_gaussian(target_epsilon: float, delta: float, method: Method = "rdp", *, whole_orders: bool = False) -> float:
    """Least noise multiplier of a single Gaussian release within ``(target_epsilon, delta)``.

    Parameters
    ----------
    whole_orders:
        For a release of mode ``distributed``: meet the budget at a whole Rényi order, where its cost will be looked at.

    Raises
    ------
    PrivacyError
        If the budget is not positive, or too small or too large for any noise to meet it.
    """
    import dp_accounting

    return _calibrate(lambda sigma: dp_accounting.GaussianDpEvent(sigma), target_epsilon, delta, method, whole_orders)


def noise_for_steps(
    target_epsilon: float,
    delta: float,
    *,
    sampling_probability: float,
    steps: int,
    before: Sequence[Event] = (),
    method: Method = "rdp",
    whole_orders: bool = False,
) -> float:
    """Least noise multiplier with which ``steps`` Poisson-sampled Gaussian steps after ``before`` stay within the budget.

    Parameters
    ----------
    steps:
        Of the whole run: all rounds times all local steps.
    whole_orders:
        As for :func:`noise_for_gaussian`; always so where ``before`` has a release of mode ``distributed``.

    Raises
    ------
    PrivacyError
        If ``before`` alone passes the budget, or as :func:`noise_for_gaussian`.
    """
    whole_orders = whole_orders or _needs_whole_orders(before)
    return _noise_for_steps(target_epsilon, delta, sampling_probability, steps, tuple(before), method, whole_orders)


@lru_cache(maxsize=64)  # silos of one process plan the same run: the search takes a second
def _noise_for_steps(
    target_epsilon: float,
    delta: float,
    sampling_probability: float,
    steps: int,
    before: tuple[Event, ...],
    method: Method,
    whole_orders: bool,
) -> float:
    import dp_accounting

    if before and epsilon(before, delta, method) >= target_epsilon:
        raise PrivacyError(
            f"the releases before training spend all of epsilon = {target_epsilon} at delta = {delta}; lower privacy.count_share"
        )

    def run(sigma: float) -> Any:
        step = dp_accounting.PoissonSampledDpEvent(sampling_probability, dp_accounting.GaussianDpEvent(sigma))
        return dp_accounting.ComposedDpEvent(
            [*(event.to_dp_event() for event in before), dp_accounting.SelfComposedDpEvent(step, steps)]
        )

    return _calibrate(run, target_epsilon, delta, method, whole_orders)


def _needs_whole_orders(events: Sequence[Event]) -> bool:
    return any(isinstance(event, Distributed) for event in events)


def _trivial(events: Sequence[Event], delta: float) -> float | None:
    """Infinite when one event was unprotected, 0 for none; otherwise it takes an accountant."""
    if not 0 < delta < 1:
        raise PrivacyError(f"delta = {delta}, must be in (0, 1)")
    if any(isinstance(event, Unprotected) for event in events):
        return math.inf
    return None if events else 0.0


def _compose(accountant: Any, events: Sequence[Event]) -> None:
    for event, times in Counter(event.to_dp_event() for event in events).items():
        accountant.compose(event, times)


def _accountant(method: Method, *, whole_orders: bool = False) -> Any:
    from dp_accounting import pld, rdp

    if method == "pld":
        return pld.PLDAccountant(value_discretization_interval=PLD_INTERVAL)
    return rdp.RdpAccountant(orders=list(WHOLE_ORDERS) if whole_orders else None)


def _calibrate(
    make_event: Callable[[float], Any], target_epsilon: float, delta: float, method: Method, whole_orders: bool
) -> float:
    """Search for the least noise multiplier, rounded up so that the target is met."""
    import dp_accounting

    if not target_epsilon > 0:
        raise PrivacyError(f"epsilon = {target_epsilon}, must be positive")
    if not 0 < delta < 1:
        raise PrivacyError(f"delta = {delta}, must be in (0, 1)")
    tolerance, bracket = 1e-5, dp_accounting.LowerEndpointAndGuess(LEAST_NOISE, 1.0)
    if method == "pld":  # its figures for little noise take minutes: search down from what the looser bound asks for
        high = _calibrate(make_event, target_epsilon, delta, "rdp", whole_orders)
        low = 0.8 * high
        while low > LEAST_NOISE and _accountant(method).compose(make_event(low)).get_epsilon(delta) <= target_epsilon:
            low *= 0.8
        tolerance, bracket = 1e-4 * high, dp_accounting.ExplicitBracketInterval(low, high)
    try:
        with errors_only(_LIBRARY):
            sigma = dp_accounting.calibrate_dp_mechanism(
                lambda: _accountant(method, whole_orders=whole_orders), make_event, target_epsilon, delta, bracket, tol=tolerance
            )
    except (ValueError, dp_accounting.mechanism_calibration.NoBracketIntervalFoundError):
        raise PrivacyError(
            f"no noise multiplier above {LEAST_NOISE} spends just epsilon = {target_epsilon:g} at delta = {delta:g}; "
            "choose a budget that is neither tiny nor huge"
        ) from None
    return float(sigma)
