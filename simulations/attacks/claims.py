"""What a run claims of its privacy, as something that right guesses can contradict.

A claim is a list of events and a delta. Its epsilon is one number; the curve of the mechanism that the events name says more, and
:meth:`Claim.p_value` tests right guesses against that curve (Mahloujifar et al. 2024). The same events with more or less noise
are a family of mechanisms, and the least private one of the family that the guesses refute gives a lower bound on epsilon
(:meth:`Claim.epsilon_lower`). It is tighter than Steinke et al.'s, which holds for any mechanism, and speaks of this family only.

What is claimed in mode ``distributed`` is of sums over silos, and no attack here trains more than one: :func:`check_attackable`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from common.errors import PrivacyError
from common.privacy.accountant import PLD_INTERVAL, Method, epsilon
from common.privacy.events import Distributed, Event, Unprotected

if TYPE_CHECKING:
    from common.privacy.audit.fdp_bound import TradeOff
    from common.privacy.audit.one_run import Guesses

#: The family of a claim: noise of 2**(k / STEPS_PER_DOUBLING) of the claimed one, up to so many times and down to its inverse.
STEPS_PER_DOUBLING, MOST_NOISE = 32, 16

#: With less noise than this, a member of the family is not computed: its curve hides nothing, and takes long.
LEAST_NOISE = 0.2

#: Points of a curve.
POINTS = 80


def check_attackable(mode: str) -> None:
    """Refuse a run whose claim no attack on one silo could speak for or against.

    Raises
    ------
    PrivacyError
        In mode ``distributed``, saying what can be attacked instead.
    """
    if mode == "distributed":
        raise PrivacyError(
            "privacy.mode = 'distributed' cannot be attacked here: an attack trains one silo by itself, and in this mode only "
            "sums over silos are seen, with noise from all of them, so nothing found would speak for or against the claim; "
            "attack the training of one silo with --set privacy.mode=silo, and check the run with silorec audit verify and "
            "recompute"
        )


@dataclass(frozen=True)
class Claim:
    """Releases and the delta that epsilon is stated for; ``method`` is the accountant whose figure is the claim."""

    events: tuple[Event, ...]
    delta: float
    method: Method = "rdp"

    def __post_init__(self) -> None:
        if not self.events or any(isinstance(event, Unprotected) for event in self.events):
            raise PrivacyError("nothing is claimed: there is no release, or one without protection; audit a private mode")
        if any(isinstance(event, Distributed) for event in self.events):
            check_attackable("distributed")

    @cached_property
    def epsilon(self) -> float:
        """What is claimed."""
        return epsilon(self.events, self.delta, self.method)

    @cached_property
    def epsilon_pld(self) -> float:
        """The tighter figure for the same events; no mechanism that runs as claimed has more."""
        return epsilon(self.events, self.delta, "pld")

    def p_value(self, guesses: Sequence[Guesses], n_canaries: int) -> float:
        """Of the claimed mechanism's curve, for several numbers of guesses fixed in advance (Bonferroni)."""
        from common.privacy.audit.fdp_bound import fdp_p_value

        curve = trade_off(self)
        p_values = [fdp_p_value(curve, n_canaries=n_canaries, n_guesses=made.n, n_correct=made.correct) for made in guesses]
        return min(1.0, len(p_values) * min(p_values))

    def epsilon_lower(self, guesses: Sequence[Guesses], n_canaries: int, confidence: float) -> float:
        """Epsilon of the least private of the claim's family that so many right guesses refute; 0 where they refute none.

        Rounded down to a member of the family, that is by some 3 %. Nothing above the epsilon of :data:`LEAST_NOISE` is shown.
        """
        from common.privacy.audit.fdp_bound import fdp_reject

        each = 1 - (1 - confidence) / len(guesses)

        def refuted(step: int) -> bool:
            curve = trade_off(with_noise(self, 2 ** (step / STEPS_PER_DOUBLING)))
            return any(
                fdp_reject(curve, n_canaries=n_canaries, n_guesses=made.n, n_correct=made.correct, confidence=each)
                for made in guesses
            )

        # More noise promises more: whoever refutes a step refutes all above.
        most = round(STEPS_PER_DOUBLING * math.log2(MOST_NOISE))
        noise = min(getattr(event, "noise_multiplier", math.inf) for event in self.events)
        least = min(most, math.ceil(STEPS_PER_DOUBLING * math.log2(LEAST_NOISE / noise)))
        if not refuted(most):
            return 0.0
        low, high = most - STEPS_PER_DOUBLING, most  # high is refuted
        while low > least and refuted(low):
            low, high = max(least, low - STEPS_PER_DOUBLING // 2), low
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if refuted(middle) else (middle, high)
        return with_noise(self, 2 ** (high / STEPS_PER_DOUBLING)).epsilon_pld


def with_noise(claim: Claim, factor: float) -> Claim:
    """The claim's events with ``factor`` times their noise."""
    scaled = [
        replace(event, noise_multiplier=factor * event.noise_multiplier)
        for event in claim.events
        if not isinstance(event, Unprotected)
    ]
    return Claim(tuple(scaled), claim.delta, claim.method)


@lru_cache(maxsize=512)
def trade_off(claim: Claim) -> TradeOff:
    """The curve of the claimed mechanism for users added and removed, from below."""
    from dp_accounting import pld

    from common.privacy.audit.fdp_bound import trade_off_from_profile

    accountant = pld.PLDAccountant(value_discretization_interval=PLD_INTERVAL)
    for event, times in Counter(event.to_dp_event() for event in claim.events).items():
        accountant.compose(event, times)
    most = 1.5 * accountant.get_epsilon(claim.delta)
    epsilons = [most * i / (POINTS - 1) for i in range(POINTS)]
    return trade_off_from_profile(epsilons, [float(accountant.get_delta(value)) for value in epsilons])
