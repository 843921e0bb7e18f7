"""What a silo's operator allows, whatever the coordinator asks for: limits of the budget and of the parameters.

The operator writes it as a TOML file on the silo's own machine. It is recorded in the ledger's first entry and in every
amendment, so an auditor sees which policy was in force when. It is public, and holds nothing that depends on users.

    silo = "north"
    epsilon = 8.0
    delta = 1e-5
    epsilon_per_run = 4.0
    min_noise_multiplier = 0.8
    coordinators = ["6f0c…"]        # public keys; ["any"] admits everybody

Mode ``distributed`` is answered only where ``modes`` says so, because its protection rests on other silos too. All epsilons here
then hold against whoever sees sums over silos. How far the silo relies on others is bounded by ``max_honest_silos`` and
``min_share_noise_multiplier``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.config import read_toml
from common.errors import ConfigError, PolicyRefused, PrivacyError
from common.privacy.events import Distributed, Event, Unprotected
from common.privacy.filter import Limit, order_for, rdp_budget
from common.privacy.signing import is_public_key

Mode = Literal["silo", "distributed", "none"]

#: In ``coordinators``: everybody may ask, also without a signature.
ANY = "any"

#: A ledger without a limit still tells epsilon, at an order that suits this one.
_EPSILON_OF_UNLIMITED = 8.0

_ORDERS: dict[str, str] = {"epsilon": "order", "epsilon_per_run": "order_per_run", "epsilon_per_day": "order_per_day"}


@dataclass(frozen=True)
class Proposal:
    """What a coordinator asks for, in the words of policy and ledger.

    Parameters
    ----------
    run:
        The configuration's hash, 64 lower-case hex characters.
    coordinator:
        The public key that signed the question, already verified; empty for an unsigned one.
    action:
        ``query.count``, ``query.metrics`` or ``train``.
    round:
        Of the run; 0 before the first. ``event`` says the same.
    event:
        What the answer will cost.
    declared_users:
        What the configuration says that this silo declared; None where it says nothing.
    """

    run: str
    coordinator: str
    mode: Mode
    action: str
    round: int
    event: Event
    declared_users: int | None = None

    def __post_init__(self) -> None:
        if not is_public_key(self.run):  # the same form
            raise PrivacyError(f"run = {self.run!r}, must be 64 lower-case hex characters")
        if self.coordinator and not is_public_key(self.coordinator):
            raise PrivacyError(f"coordinator = {self.coordinator!r}, must be empty or 64 lower-case hex characters")
        if self.event.round != self.round:
            raise PrivacyError(f"round = {self.round}, but the event is of round {self.event.round}")
        kinds = {"none": Unprotected, "distributed": Distributed}
        if any((self.mode == mode) != isinstance(self.event, kind) for mode, kind in kinds.items()):
            raise PrivacyError(f"mode = {self.mode!r} does not go with a release of kind {self.event.kind!r}")


class Policy(BaseModel):
    """An operator's limits; see the module. ``epsilon`` and ``delta`` speak of all runs together, as long as the ledger lives."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    silo: str = Field(pattern=r"^\w[\w .&-]{0,99}$", description="the silo's name, in ledger and reports")
    epsilon: float | None = Field(None, gt=0, description="of everything that is ever released; unset only with mode none")
    delta: float = Field(gt=0, lt=1, description="of every limit here")
    order: float | None = Field(
        None, gt=1.01, le=1024, description="Rényi order of the filter; unset: where Gaussian releases can spend most"
    )
    epsilon_per_run: float | None = Field(None, gt=0, description="of all releases of one configuration")
    order_per_run: float | None = Field(None, gt=1.01, le=1024, description="as order, for epsilon_per_run")
    epsilon_per_day: float | None = Field(None, gt=0, description="of all releases of one day (UTC)")
    order_per_day: float | None = Field(None, gt=1.01, le=1024, description="as order, for epsilon_per_day")
    modes: tuple[Mode, ...] = Field(("silo",), min_length=1, description="which modes are answered")
    min_noise_multiplier: float = Field(
        0.0, ge=0, description="least noise of any release, the count included; mode distributed: of the sum over silos"
    )
    min_share_noise_multiplier: float = Field(
        0.0, ge=0, description="mode distributed: least noise of this silo's own share, which is left if all others collude"
    )
    max_honest_silos: int | None = Field(
        None,
        ge=1,
        description="mode distributed: at most so many honest silos may be counted on; the fewer, the less this silo depends on "
        "others",
    )
    max_sampling_probability: float = Field(1.0, gt=0, le=1, description="largest chance of a user to be in a step")
    max_steps_per_round: int | None = Field(None, ge=1, description="steps of one answer")
    max_rounds_per_run: int | None = Field(None, ge=1, description="no round with a higher number is answered")
    declared_users: int | None = Field(None, ge=1, description="what this silo declared: configurations must say the same")
    coordinators: tuple[str, ...] = Field(description='public keys (hex) of who may ask, or "any"')

    @model_validator(mode="after")
    def _consistent(self) -> Policy:
        if self.epsilon is None and "none" not in self.modes:
            raise ValueError("epsilon is not set, and without a limit a ledger guards nothing: set it, or put 'none' into modes")
        for key in self.coordinators:
            if key != ANY and not is_public_key(key):
                raise ValueError(f"coordinators: {key!r} is neither a public key (64 lower-case hex characters) nor {ANY!r}")
        for limit in self.limits:
            if limit.order and not rdp_budget(limit.epsilon, limit.delta, limit.order) > 0:
                raise ValueError(
                    f"{limit.name} = {limit.epsilon:g} leaves no room at {_ORDERS[limit.name]} = {limit.order:g}: every release "
                    "would pass it; raise it, or leave the order unset in a new ledger"
                )
        return self

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits that are set, each with its order; 0 stands for an order that is not resolved."""
        return tuple(
            Limit(name, value, self.delta, getattr(self, order) or 0.0)
            for name, order in _ORDERS.items()
            if (value := getattr(self, name)) is not None
        )

    def resolved(self, before: Policy | None = None) -> Policy:
        """The same with every order that is needed.

        Parameters
        ----------
        before:
            The policy that this one is to replace: its orders stay, because the filter's proof needs them fixed in advance.

        Raises
        ------
        ConfigError
            If a limit leaves no room at any order, or an order or the silo's name differs from ``before``.
        """
        if before is not None and self.silo != before.silo:
            raise ConfigError(f"silo = {self.silo!r}: this ledger is that of {before.silo!r}; another silo needs its own")
        orders: dict[str, float | None] = {}
        for limit, order in _ORDERS.items():
            epsilon, mine, kept = getattr(self, limit), getattr(self, order), before and getattr(before, order)
            if kept and mine and mine != kept:
                raise ConfigError(
                    f"{order} = {mine:g}: it was fixed at {kept:g} when the limit was first set, and must stay so for the proof "
                    "to hold; leave it unset, or start a new ledger for other users"
                )
            if limit == "epsilon" and epsilon is None:
                epsilon = _EPSILON_OF_UNLIMITED
            try:
                orders[order] = kept or mine or (order_for(epsilon, self.delta) if epsilon else None)
            except PrivacyError as error:
                raise ConfigError(f"{limit}: {error}") from None
        return policy_from_dict({**self.to_dict(), **orders})

    def check(self, proposal: Proposal) -> None:
        """Whether the parameters of ``proposal`` are allowed; what it costs is the filter's matter.

        Raises
        ------
        PolicyRefused
            Naming the limit, the value that was asked for, and what is allowed.
        """
        event = proposal.event
        if ANY not in self.coordinators and proposal.coordinator not in self.coordinators:
            asker = f"coordinator {proposal.coordinator}" if proposal.coordinator else "an unsigned question"
            raise PolicyRefused(f"coordinators: {asker} is not among the {len(self.coordinators)} that the policy names")
        if proposal.mode not in self.modes:
            raise PolicyRefused(f"modes: mode {proposal.mode!r} was asked for, the policy allows {', '.join(self.modes)}")
        if self.declared_users is not None and proposal.declared_users != self.declared_users:
            raise PolicyRefused(
                f"declared_users: the question says {proposal.declared_users}, the policy says {self.declared_users}"
            )
        _at_most("max_rounds_per_run", "round", proposal.round, self.max_rounds_per_run)
        if isinstance(event, Unprotected):
            return
        if event.noise_multiplier < self.min_noise_multiplier:
            raise PolicyRefused(
                f"min_noise_multiplier: a noise multiplier of {event.noise_multiplier:g} was asked for, "
                f"the policy allows {self.min_noise_multiplier:g} and more"
            )
        if isinstance(event, Distributed):
            _at_most("max_honest_silos", "noise that counts on honest silos:", event.honest, self.max_honest_silos)
            if event.share_noise_multiplier < self.min_share_noise_multiplier:
                raise PolicyRefused(
                    f"min_share_noise_multiplier: a noise multiplier of {event.noise_multiplier:g} from {event.honest} honest "
                    f"silos is {event.share_noise_multiplier:g} of this silo's own, the policy allows "
                    f"{self.min_share_noise_multiplier:g} and more"
                )
        sampling, steps = getattr(event, "sampling_probability", None), getattr(event, "steps", None)
        _at_most("max_sampling_probability", "a sampling probability of", sampling, self.max_sampling_probability)
        _at_most("max_steps_per_round", "steps:", steps, self.max_steps_per_round)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is unset is null."""
        return self.model_dump(mode="json")

    def to_toml(self) -> str:
        """A file that :func:`read_policy` reads back to an equal policy."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def read_policy(path: Path) -> Policy:
    """Read an operator's policy from a TOML file.

    Raises
    ------
    ConfigError
        Naming the file, the key, its value, and what is allowed.
    """
    values = read_toml(path)
    try:
        return policy_from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def policy_from_dict(values: Mapping[str, Any]) -> Policy:
    """As :func:`read_policy`, from plain values."""
    try:
        return Policy.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(dict(e)) for e in error.errors())) from None


def _at_most(name: str, what: str, asked: float | None, allowed: float | None) -> None:
    if asked is not None and allowed is not None and asked > allowed:
        raise PolicyRefused(f"{name}: {what} {asked:.10g} was asked for, the policy allows {allowed:.10g} at most")


def _explain(error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    allowed = sorted(Policy.model_fields)
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, allowed, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"unknown setting {key!r}{hint} (allowed: {', '.join(allowed)})"
    if error["type"] == "missing":
        return f"{key} is missing: {Policy.model_fields[key].description}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message if not key else f"{key} = {error['input']!r}: {message[0].lower()}{message[1:]}"
