"""Epsilon of a list of events, and the noise that a budget asks for. The mathematics is Google's ``dp_accounting``.

Two bounds: RDP (Mironov 2017; Poisson-sampled Gaussian by Mironov, Talwar & Zhang 2019), which stays valid when parameters
are chosen adaptively, and PLD (Koskela et al. 2020; Doroshenko et al. 2022), tighter, for parameters fixed in advance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from common.errors import PrivacyError
from common.privacy.events import Event, Unprotected

Method = Literal["rdp", "pld"]


def epsilon(events: Sequence[Event], delta: float, method: Method = "rdp") -> float:
    """Epsilon of all ``events`` together at ``delta``; infinite when one was unprotected, 0 for none.

    Raises
    ------
    PrivacyError
        If ``delta`` is not in (0, 1).
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta = {delta}, must be in (0, 1)")
    if any(isinstance(event, Unprotected) for event in events):
        return math.inf
    if not events:
        return 0.0
    accountant = _accountant(method)
    for event in events:
        accountant.compose(event.to_dp_event())
    return float(accountant.get_epsilon(delta))


def noise_for_gaussian(target_epsilon: float, delta: float, method: Method = "rdp") -> float:
    """Least noise multiplier of a single Gaussian release within ``(target_epsilon, delta)``."""
    import dp_accounting

    return _calibrate(lambda sigma: dp_accounting.GaussianDpEvent(sigma), target_epsilon, delta, method)


def noise_for_steps(
    target_epsilon: float,
    delta: float,
    *,
    sampling_probability: float,
    steps: int,
    before: Sequence[Event] = (),
    method: Method = "rdp",
) -> float:
    """Least noise multiplier with which ``steps`` Poisson-sampled Gaussian steps after ``before`` stay within the budget.

    Parameters
    ----------
    steps:
        Of the whole run: all rounds times all local steps.

    Raises
    ------
    PrivacyError
        If ``before`` alone passes the budget.
    """
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

    return _calibrate(run, target_epsilon, delta, method)


def _accountant(method: Method) -> Any:
    from dp_accounting import pld, rdp

    return rdp.RdpAccountant() if method == "rdp" else pld.PLDAccountant()


def _calibrate(make_event: Any, target_epsilon: float, delta: float, method: Method) -> float:
    """Bisect for the least noise multiplier, rounded up so that the target is met."""
    import dp_accounting

    if not target_epsilon > 0:
        raise PrivacyError(f"epsilon = {target_epsilon}, must be positive")
    if not 0 < delta < 1:
        raise PrivacyError(f"delta = {delta}, must be in (0, 1)")
    tolerance = 1e-5
    sigma = dp_accounting.calibrate_dp_mechanism(
        lambda: _accountant(method),
        make_event,
        target_epsilon,
        delta,
        dp_accounting.LowerEndpointAndGuess(0.05, 1.0),
        tol=tolerance,
    )
    return float(sigma)
