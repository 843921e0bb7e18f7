"""What has been released, as values.

An event says which mechanism ran, with which parameters, how often, and for whom. It holds nothing that depends on the data,
so it may be stored, shown and sent. Accountants consume events (``common.privacy.accountant``); ledgers keep them.

Every event speaks of the same unit, one user of one silo, and of add/remove neighbours; both are written with it and checked
when it is read. The fields of an event, once written, never change their meaning; new meanings get a new ``kind``.

In mode ``distributed`` a release is a sum over the users of all silos, and each silo adds a share of the noise. Such events
(:class:`Distributed`) say how many honest shares their noise counts on. They cost one thing against whoever sees the sum, and
another if all other silos tell what they know of it (:func:`if_others_collude`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from common.errors import PrivacyError

UNIT = "one user of one silo"
NEIGHBOURS = "add or remove one"
COORDINATOR = "coordinator"

#: Silos are numbered in 32 bits.
MOST_SILOS = 2**32 - 1

_RECIPIENT = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class GaussianSum:
    """One Gaussian release of a sum over users, each user's vector bounded in L2 by ``max_norm``.

    Parameters
    ----------
    noise_multiplier:
        The noise's standard deviation over ``max_norm``.
    round:
        Of the run; 0 before the first.
    recipient:
        Who was given the release, as a word of lower-case letters, digits and hyphens.
    """

    noise_multiplier: float
    max_norm: float
    round: int = 0
    recipient: str = COORDINATOR
    kind: ClassVar[str]
    unit: ClassVar[str] = UNIT
    neighbours: ClassVar[str] = NEIGHBOURS

    def __post_init__(self) -> None:
        _check_positive(self, "noise_multiplier", "max_norm")
        _check_place(self)

    def to_dp_event(self) -> Any:
        """The event in ``dp_accounting``'s terms."""
        import dp_accounting

        return dp_accounting.GaussianDpEvent(self.noise_multiplier)


class GaussianCount(GaussianSum):
    """Of interactions with each item."""

    kind: ClassVar[str] = "gaussian-count"


class GaussianMetrics(GaussianSum):
    """Of figures of merit."""

    kind: ClassVar[str] = "gaussian-metrics"


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
    recipient: str = COORDINATOR
    kind: ClassVar[str] = "poisson-gaussian-steps"
    unit: ClassVar[str] = UNIT
    neighbours: ClassVar[str] = NEIGHBOURS

    def __post_init__(self) -> None:
        _check_positive(self, "noise_multiplier", "max_grad_norm")
        _check_number(self, "sampling_probability", math.nextafter(1, 2), "in (0, 1]")
        _check_whole(self, "steps", 1)
        _check_place(self)

    def to_dp_event(self) -> Any:
        """The event in ``dp_accounting``'s terms."""
        import dp_accounting

        step = dp_accounting.PoissonSampledDpEvent(
            self.sampling_probability, dp_accounting.GaussianDpEvent(self.noise_multiplier)
        )
        return dp_accounting.SelfComposedDpEvent(step, self.steps)


class Distributed:
    """A release of mode ``distributed``: a sum over the users of all silos, of which only the sum is seen.

    Each silo adds an equal share of noise, drawn from the discrete Gaussian in the ring that the sums are made in.
    ``noise_multiplier`` is that of the sum with ``honest`` shares in it, the least that it may have: what the coordinator sees,
    and at most as many colluding silos with it as the run allows for. More shares are more noise, and no cost.

    The costs are those of continuous noise. At whole Rényi orders that is exact, sampled or not: the moments of the likelihood
    ratio are the same (Canonne, Kamath & Steinke 2020, "The Discrete Gaussian for Differential Privacy"), and so is the binomial
    sum of Mironov, Talwar & Zhang 2019, section 3.3. Between whole orders nothing is taken for granted: see
    :func:`common.privacy.filter.rdp_at`. Privacy loss distributions are those of continuous noise, and no proof for this one:
    with n steps of the ring to a user's bound, delta of a release is another by some 1 / n² of itself, and n is about 2^29.
    """

    noise_multiplier: float
    honest: int

    @property
    def share_noise_multiplier(self) -> float:
        """Of the share of noise that each silo adds by itself."""
        return self.noise_multiplier / math.sqrt(self.honest)

    def if_others_collude(self) -> Self:
        """What is left for this silo's users if all other silos give away their vectors and their shares of noise.

        That is a sum with one honest share, this silo's own. Who of its users was sampled is still its secret, so the sampling
        probability stays. It is of the same kind, because the noise is still that of the ring.
        """
        left: Self = replace(self, noise_multiplier=self.share_noise_multiplier, honest=1)  # type: ignore[type-var]
        return left


@dataclass(frozen=True)
class DistributedSum(Distributed, GaussianSum):
    """One Gaussian release of a sum over the users of all silos, each user's vector bounded in L2 by ``max_norm``.

    Parameters
    ----------
    noise_multiplier:
        Of the sum with ``honest`` shares of noise in it.
    honest:
        Silos in every sum whose shares of noise are counted on; this silo is one of them.
    """

    honest: int = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_whole(self, "honest", 1, MOST_SILOS)


class DistributedCount(DistributedSum):
    """Of interactions with each item."""

    kind: ClassVar[str] = "distributed-count"


class DistributedMetrics(DistributedSum):
    """Of figures of merit."""

    kind: ClassVar[str] = "distributed-metrics"


@dataclass(frozen=True)
class DistributedStep(Distributed):
    """One step of DP-SGD of all silos together, each on a Poisson sample of its own users.

    ``noise_multiplier`` is that of the sum with ``honest`` shares of noise in it, over ``max_grad_norm``; for the other fields
    see :class:`PoissonGaussianSteps`.
    """

    noise_multiplier: float
    sampling_probability: float
    max_grad_norm: float
    round: int = 0
    recipient: str = COORDINATOR
    honest: int = field(kw_only=True)
    steps: ClassVar[int] = 1
    kind: ClassVar[str] = "distributed-step"
    unit: ClassVar[str] = UNIT
    neighbours: ClassVar[str] = NEIGHBOURS

    def __post_init__(self) -> None:
        _check_positive(self, "noise_multiplier", "max_grad_norm")
        _check_number(self, "sampling_probability", math.nextafter(1, 2), "in (0, 1]")
        _check_whole(self, "honest", 1, MOST_SILOS)
        _check_place(self)

    def to_dp_event(self) -> Any:
        """The event in ``dp_accounting``'s terms, which know nothing of shares."""
        import dp_accounting

        return dp_accounting.PoissonSampledDpEvent(
            self.sampling_probability, dp_accounting.GaussianDpEvent(self.noise_multiplier)
        )


@dataclass(frozen=True)
class Unprotected:
    """Something was released without any protection (mode ``none``); its epsilon is infinite."""

    what: str
    round: int = 0
    recipient: str = COORDINATOR
    kind: ClassVar[str] = "unprotected"
    unit: ClassVar[str] = UNIT
    neighbours: ClassVar[str] = NEIGHBOURS

    def __post_init__(self) -> None:
        if not isinstance(self.what, str):
            raise PrivacyError(f"{self.kind}: what = {self.what!r}, must be text")
        _check_place(self)

    def to_dp_event(self) -> Any:
        """The event in ``dp_accounting``'s terms."""
        import dp_accounting

        return dp_accounting.NonPrivateDpEvent()


Event = (
    GaussianCount | GaussianMetrics | PoissonGaussianSteps | DistributedCount | DistributedMetrics | DistributedStep | Unprotected
)
_KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        GaussianCount,
        GaussianMetrics,
        PoissonGaussianSteps,
        DistributedCount,
        DistributedMetrics,
        DistributedStep,
        Unprotected,
    )
}


def if_others_collude(event: Event) -> Event:
    """What is left of the protection of ``event`` if all other silos collude with the coordinator.

    A release of mode ``distributed`` is left with its silo's own share of noise (:meth:`Distributed.if_others_collude`); any
    other release does not depend on other silos, and stays as it is.
    """
    return event.if_others_collude() if isinstance(event, Distributed) else event


def event_to_dict(event: Event) -> dict[str, Any]:
    """Plain values, with kind, unit and neighbours; :func:`event_from_dict` reads them back to an equal event."""
    return {"kind": event.kind, "unit": event.unit, "neighbours": event.neighbours, **asdict(event)}


def event_from_dict(values: Mapping[str, Any]) -> Event:
    """The event that :func:`event_to_dict` wrote.

    Raises
    ------
    PrivacyError
        If the kind is unknown, the unit or the neighbours are others than ours (their costs do not add up with ours), or the
        fields do not fit the kind.
    """
    if not isinstance(values, Mapping):
        raise PrivacyError(f"a privacy event must be a table of values, got {values!r}")
    rest = dict(values)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise PrivacyError(f"unknown kind of privacy event {kind!r}; known: {', '.join(_KINDS)}")
    cls = _KINDS[kind]
    for name, ours in (("unit", UNIT), ("neighbours", NEIGHBOURS)):
        if (theirs := rest.pop(name, None)) != ours:
            raise PrivacyError(f"privacy event {kind!r}: {name} = {theirs!r}, must be {ours!r}")
    names = {field.name for field in fields(cls)}
    if missing := sorted(names - rest.keys()):
        raise PrivacyError(f"privacy event {kind!r}: {', '.join(missing)} missing")
    if unknown := sorted(str(name) for name in rest.keys() - names):
        raise PrivacyError(f"privacy event {kind!r}: unknown fields {', '.join(unknown)}")
    return cls(**rest)


def event_from_dp_event(
    dp_event: Any, *, max_norm: float, round: int = 0, recipient: str = COORDINATOR, metrics: bool = False
) -> Event:
    """The event whose ``to_dp_event`` is ``dp_event``; for lists of events that came from elsewhere.

    ``dp_accounting`` knows the mechanism only, so the rest must be said. What an unprotected release was is not in its event, nor
    that noise came in shares: no event of mode ``distributed`` is made here.

    Parameters
    ----------
    max_norm:
        The bound on one user's part, of the sum or of the gradient; not used for an unprotected release.
    metrics:
        The Gaussian release was of metrics, not of counts.

    Raises
    ------
    PrivacyError
        If silorec has no release of that form.
    """
    import dp_accounting

    place: dict[str, Any] = {"round": round, "recipient": recipient}
    match dp_event:
        case dp_accounting.GaussianDpEvent():
            return (GaussianMetrics if metrics else GaussianCount)(dp_event.noise_multiplier, max_norm, **place)
        case dp_accounting.NonPrivateDpEvent():
            return Unprotected("unknown", **place)
        case dp_accounting.PoissonSampledDpEvent():
            steps, step = 1, dp_event
        case dp_accounting.SelfComposedDpEvent(event=dp_accounting.PoissonSampledDpEvent()):
            steps, step = dp_event.count, dp_event.event
        case _:
            steps, step = 0, None
    if step is None or metrics or not isinstance(step.event, dp_accounting.GaussianDpEvent):
        raise PrivacyError(
            f"{dp_event!r} is no release of silorec{' of metrics' if metrics else ''}: expected a Gaussian, or steps of a "
            "Poisson-sampled Gaussian, or no protection"
        )
    return PoissonGaussianSteps(step.event.noise_multiplier, step.sampling_probability, steps, max_norm, **place)


_Checked = GaussianSum | PoissonGaussianSteps | DistributedStep | Unprotected


def _check_positive(event: _Checked, *names: str) -> None:
    for name in names:
        _check_number(event, name, math.inf, "positive and finite")


def _check_number(event: _Checked, name: str, below: float, words: str) -> None:
    """The field lies between 0 and ``below``; it becomes a float, so that an event has one form in a file."""
    value = getattr(event, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < below:
        raise PrivacyError(f"{event.kind}: {name} = {value!r}, must be {words}")
    try:
        object.__setattr__(event, name, float(value))
    except OverflowError:
        raise PrivacyError(f"{event.kind}: {name} is too large a number, must be {words}") from None


def _check_whole(event: _Checked, name: str, least: int, most: int | None = None) -> None:
    value = getattr(event, name)
    if type(value) is not int or value < least or (most is not None and value > most):
        upper = "" if most is None else f" to {most}"
        raise PrivacyError(f"{event.kind}: {name} = {value!r}, must be a whole number from {least}{upper}")


def _check_place(event: _Checked) -> None:
    """When and for whom."""
    _check_whole(event, "round", 0)
    if not isinstance(event.recipient, str) or not _RECIPIENT.fullmatch(event.recipient):
        raise PrivacyError(
            f"{event.kind}: recipient = {event.recipient!r}, must be a word of lower-case letters, digits and hyphens"
        )
