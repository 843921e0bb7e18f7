"""What has been released, as values.

An event says which mechanism ran, with which parameters, how often. It holds nothing that depends on the data, so it may
be stored, shown and sent. Accountants consume events (``common.privacy.accountant``); the journal keeps them.

Every event speaks of the same unit, one user of one silo, and of add/remove neighbours. The fields of an event, once
written to a journal, never change their meaning; new meanings get a new ``kind``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from common.errors import PrivacyError

UNIT = "one user of one silo"
NEIGHBOURS = "add or remove one"


@dataclass(frozen=True)
class GaussianCount:
    """One Gaussian release of a sum over users, each user's vector bounded in L2 by ``max_norm``.

    ``noise_multiplier`` is the noise's standard deviation over ``max_norm``.
    """

    noise_multiplier: float
    max_norm: float
    round: int = 0
    kind: ClassVar[str] = "gaussian-count"

    def __post_init__(self) -> None:
        _positive(self.kind, noise_multiplier=self.noise_multiplier, max_norm=self.max_norm)
        _whole(self.kind, 0, round=self.round)

    def to_dp_event(self) -> Any:
        """The event in ``dp_accounting``'s terms."""
        import dp_accounting

        return dp_accounting.GaussianDpEvent(self.noise_multiplier)


@dataclass(frozen=True)
class PoissonGaussianSteps:
    """``steps`` steps of DP-SGD on Poisson samples of users (Abadi et al. 2016).

    ``sampling_probability`` is each user's chance to be in a step; ``noise_multiplier`` is the noise's standard deviation
    in the sum of clipped gradients over ``max_grad_norm``.
    """

    noise_multiplier: float
    sampling_probability: float
    steps: int
    max_grad_norm: float
    round: int = 0
    kind: ClassVar[str] = "poisson-gaussian-steps"

    def __post_init__(self) -> None:
        _positive(self.kind, noise_multiplier=self.noise_multiplier, max_grad_norm=self.max_grad_norm)
        _whole(self.kind, 1, steps=self.steps)
        _whole(self.kind, 0, round=self.round)
        if not 0 < self.sampling_probability <= 1:
            raise PrivacyError(f"{self.kind}: sampling_probability = {self.sampling_probability}, must be in (0, 1]")

    def to_dp_event(self) -> Any:
        """The event in ``dp_accounting``'s terms."""
        import dp_accounting

        step = dp_accounting.PoissonSampledDpEvent(
            self.sampling_probability, dp_accounting.GaussianDpEvent(self.noise_multiplier)
        )
        return dp_accounting.SelfComposedDpEvent(step, self.steps)


@dataclass(frozen=True)
class Unprotected:
    """Something was released without any protection (mode ``none``); its epsilon is infinite."""

    what: str
    round: int = 0
    kind: ClassVar[str] = "unprotected"

    def __post_init__(self) -> None:
        _whole(self.kind, 0, round=self.round)

    def to_dp_event(self) -> Any:
        """The event in ``dp_accounting``'s terms."""
        import dp_accounting

        return dp_accounting.NonPrivateDpEvent()


Event = GaussianCount | PoissonGaussianSteps | Unprotected
_KINDS: dict[str, type[Event]] = {cls.kind: cls for cls in (GaussianCount, PoissonGaussianSteps, Unprotected)}


def event_to_dict(event: Event) -> dict[str, Any]:
    """Plain values with the event's ``kind``; :func:`event_from_dict` reads them back to an equal event."""
    return {"kind": event.kind, **asdict(event)}


def event_from_dict(values: dict[str, Any]) -> Event:
    """Raises :class:`PrivacyError` for an unknown kind or fields that do not fit."""
    fields = dict(values)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise PrivacyError(f"unknown kind of privacy event {kind!r}; known: {', '.join(_KINDS)}")
    try:
        return _KINDS[kind](**fields)
    except TypeError as error:
        raise PrivacyError(f"privacy event {kind!r}: {error}") from None


def _positive(kind: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise PrivacyError(f"{kind}: {name} = {value}, must be positive and finite")


def _whole(kind: str, least: int, **values: int) -> None:
    for name, value in values.items():
        if type(value) is not int or value < least:
            raise PrivacyError(f"{kind}: {name} = {value!r}, must be a whole number from {least}")
