"""What a list of events costs, by four accountants side by side, and whether they agree.

========== ============================================================================================= ===================
figure     how                                                                                           bound
========== ============================================================================================= ===================
rdp        Rényi DP of ``dp_accounting``: what silorec spends budgets by                                  upper
reference  the same quantity by ``common.privacy.audit.rdp_reference``, which shares no code with it      upper
pld        privacy loss distributions of ``dp_accounting`` (Doroshenko et al. 2022)                       upper and lower
prv        privacy random variables of Opacus (Gopi, Lee & Wutschitz 2021)                                upper and lower
========== ============================================================================================= ===================

The first two bound epsilon from above with some slack; the other two are as tight as their grids. A fault in one accountant, or
in how it was called, breaks a rule here. Events that say what was not so do not: what they claim to cost is compared by
:meth:`Recomputed.check_claim`, and that they say what was so is for the ledger, the transcript and the one-run audit to show.

Of mode ``distributed`` the Rényi figures are taken at whole orders only, where the cost of its discrete noise is exactly that of
continuous noise; ``pld`` and ``prv`` are those of continuous noise. Such events cost more if all other silos collude with the
coordinator: :func:`recompute_if_others_collude` counts that by the same accountants.

Opacus treats the removal of a user only, the worse direction at every Rényi order (Mironov, Talwar & Zhang 2019, theorem 5).
``pld`` takes the worse of both, so where removal is not the worse for epsilon, that shows as a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from common.errors import PrivacyError
from common.logs import errors_only
from common.privacy.accountant import epsilon_and_order
from common.privacy.audit import rdp_reference
from common.privacy.events import Distributed, Event, Unprotected, if_others_collude

Outcome = Literal["holds", "explained", "differs", "not checked"]
Mechanisms = Mapping[tuple[float, float], int]  # (sampling probability, noise multiplier): how often

#: How far the two tight accountants may be apart, relative to the larger.
TIGHT_TOLERANCE = 0.01
#: How far the two computations of Rényi DP may be apart, relative to the larger.
RDP_TOLERANCE = 0.001
#: Smaller than this all figures are nothing: no mechanism that releases anything useful gets there.
NOTHING = 1e-6

#: Wanted distance of a tight accountant's bounds, relative to epsilon: a quarter of what the rule on them allows.
_WANTED_WIDTH = TIGHT_TOLERANCE / 4
#: Points of a grid that fit in a few seconds and some hundred MB. Where that is too few, the rule's explanation says so.
_MOST_POINTS = 2_000_000
#: PLDs of more equal steps take minutes.
_MOST_STEPS = 1_000_000
#: PLDs rounded up need no finer grid than this; only those rounded down do.
_COARSEST = 1e-3
#: Grids may fail to tell costs apart that are smaller than this.
_TOO_SMALL = 0.01
#: A second try of the tight accountants is this much finer.
_FINER = 4


@dataclass(frozen=True)
class Figure:
    """One accountant's answer.

    Parameters
    ----------
    epsilon:
        What the accountant gives as epsilon; ``None`` where it gave nothing, infinite where nothing protects.
    low, high:
        Bounds that are proven for the accountant's method; ``low`` is 0 where it has none.
    order:
        The Rényi order of the best bound; ``None`` for other methods.
    grid:
        Width of the grid in nats; ``None`` for Rényi DP.
    reason:
        Why there is no figure.
    """

    epsilon: float | None
    low: float = 0.0
    high: float = math.inf
    order: float | None = None
    grid: float | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; infinite numbers become ``None``."""
        values = {"epsilon": self.epsilon, "low": self.low, "high": self.high, "order": self.order, "grid": self.grid}
        finite = {key: None if value is None or not math.isfinite(value) else value for key, value in values.items()}
        return {"available": self.epsilon is not None, **finite, "reason": self.reason}


@dataclass(frozen=True)
class Rule:
    """One statement on the figures.

    Parameters
    ----------
    outcome:
        ``explained``: not so at first sight, for a cause that was itself checked and is on the safe side. ``not checked``: a
        figure is not available.
    difference:
        Relative to the larger figure; the rule allows up to ``allowed``.
    """

    name: str
    statement: str
    outcome: Outcome
    allowed: float
    difference: float | None = None
    explanation: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "statement": self.statement,
            "outcome": self.outcome,
            "allowed": self.allowed,
            "difference": self.difference,
            "explanation": self.explanation,
        }


@dataclass(frozen=True)
class Recomputed:
    """The figures of one list of events at one delta, and the rules on them.

    Parameters
    ----------
    figures:
        By name: ``rdp``, ``reference``, ``pld``, ``prv``.
    unprotected:
        What was released without protection; if anything, epsilon is infinite and there is nothing to compare.
    """

    delta: float
    releases: int
    figures: Mapping[str, Figure]
    rules: tuple[Rule, ...]
    unprotected: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """No rule is broken. Whether all could be checked is :attr:`complete`."""
        return all(rule.outcome != "differs" for rule in self.rules)

    @property
    def complete(self) -> bool:
        """Every rule could be checked."""
        return all(rule.outcome != "not checked" for rule in self.rules)

    @property
    def proven(self) -> float:
        """The least epsilon that is proven here: the smallest upper bound of ``dp_accounting``."""
        return min(self.figures["rdp"].high, self.figures["pld"].high)

    def check_claim(self, claimed: float) -> Rule:
        """Whether somebody's figure for these events is one that they can be known to meet; infinite is always true."""
        statement = f"the claimed epsilon of {_figure(claimed)} is not below what these releases are proven to cost at most"
        outcome: Outcome = "holds" if claimed >= self.proven * (1 - 1e-9) else "differs"
        words = ""
        if outcome == "differs":
            least = max(figure.low for figure in self.figures.values())
            beyond = "they cost more than that" if claimed < least else "no accountant here supports it"
            words = f"by the best bound they cost {_figure(self.proven)}, and at least {_figure(least)}: {beyond}"
        below = 0.0 if claimed >= self.proven else 1.0 if math.isinf(self.proven) else 1 - claimed / self.proven
        return Rule("claim", statement, outcome, 0.0, below, words)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "delta": self.delta,
            "releases": self.releases,
            "unprotected": list(self.unprotected),
            "holds": self.holds,
            "complete": self.complete,
            "figures": {name: figure.as_dict() for name, figure in self.figures.items()},
            "rules": [rule.as_dict() for rule in self.rules],
        }


def recompute(events: Sequence[Event], delta: float) -> Recomputed:
    """All figures for all ``events`` together, and the rules on them. Some seconds.

    Raises
    ------
    PrivacyError
        If ``delta`` is not in (0, 1).
    """
    rdp = rdp_figure(events, delta)
    unprotected = tuple(event.what for event in events if isinstance(event, Unprotected))
    if unprotected or not events:
        same = Figure(rdp.high, low=rdp.high, high=rdp.high)
        return Recomputed(delta, len(events), dict.fromkeys(("rdp", "reference", "pld", "prv"), same), (), unprotected)
    mechanisms = rdp_reference.mechanisms(events)
    figures = {
        "rdp": rdp,
        "reference": _tried(lambda: reference_figure(events, delta)),
        "pld": _tried(lambda: pld_figure(mechanisms, delta, rdp.high)),
    }
    figures["prv"] = _tried(lambda: prv_figure(mechanisms, delta, _scale(figures)))
    if _agreement(figures).outcome == "differs":  # is it the grids?
        finer = {
            "pld": _tried(lambda: pld_figure(mechanisms, delta, rdp.high, finer=_FINER)),
            "prv": _tried(lambda: prv_figure(mechanisms, delta, _scale(figures), finer=_FINER)),
        }
        figures |= {name: figure for name, figure in finer.items() if figure.epsilon is not None}
    rules = (_agreement(figures), _enclosure(figures), *_order_of_bounds(figures), _reference_rule(events, delta, figures))
    return Recomputed(delta, len(events), figures, rules)


def recompute_if_others_collude(events: Sequence[Event], delta: float) -> Recomputed | None:
    """:func:`recompute` of what is left of ``events`` if all other silos collude with the coordinator.

    None where no event is of mode ``distributed``: then nothing depends on other silos.
    """
    if not any(isinstance(event, Distributed) for event in events):
        return None
    return recompute([if_others_collude(event) for event in events], delta)


def rdp_figure(events: Sequence[Event], delta: float, orders: Sequence[float] | None = None) -> Figure:
    """By ``dp_accounting``'s Rényi DP: the best of its own list of orders, or of ``orders``."""
    epsilon, order = epsilon_and_order(events, delta, orders)
    return Figure(epsilon, high=epsilon, order=order)


def reference_figure(events: Sequence[Event], delta: float, orders: Sequence[float] | None = None) -> Figure:
    """By ``rdp_reference``, over the same orders as :func:`rdp_figure`."""
    epsilon, order = rdp_reference.epsilon_and_order(events, delta, _library_orders(events) if orders is None else orders)
    return Figure(epsilon, high=epsilon, order=order)


def pld_figure(mechanisms: Mechanisms, delta: float, about: float, finer: int = 1) -> Figure:
    """By ``dp_accounting``'s PLDs, once rounded up and once down; ``about`` is epsilon's size, for choosing the grid.

    Rounding down loses half a grid step in each composition. Rounding up (by "connecting the dots") loses next to nothing.
    """
    from dp_accounting.pld import privacy_loss_distribution as pld

    steps = {(q, sigma): times for (q, sigma), times in mechanisms.items() if q < 1.0}
    # Gaussians on everybody add up to one, exactly: their losses are normal.
    gaussians = math.fsum(times / sigma**2 for (q, sigma), times in mechanisms.items() if q == 1.0)
    parts = [*steps.items(), *([((1.0, gaussians**-0.5), 1)] if gaussians else [])]
    wanted = 2 * _WANTED_WIDTH * about / sum(times for _, times in parts)
    if (most := max(times for _, times in parts)) > _MOST_STEPS:  # the library raises the size of a distribution to that power
        raise PrivacyError(f"{most} steps are more than are composed here, {_MOST_STEPS}")
    ranges = {part: _loss_range(*part) for part, _ in parts}
    # A part takes the grid's points over its own losses, over the sum's, and over the tails that the library keeps of many steps.
    tails = sum(times * (q / sigma) ** 2 / ranges[q, sigma] for (q, sigma), times in parts)
    room = sum(ranges.values()) + tails + 2 * (about + 1) * len(parts)
    grid = max(min(wanted / finer, _COARSEST), room / (_MOST_POINTS * finer))
    if grid > (least := min(ranges.values())) / 10:
        raise PrivacyError(f"a release's losses, {least:.1g} nats wide, need a finer grid than is affordable, {grid:.1g}")

    def epsilon(pessimistic: bool) -> float:
        total = pld.identity(grid, pessimistic)
        for (q, sigma), times in parts:
            one = pld.from_gaussian_mechanism(
                sigma,
                sampling_prob=q,
                value_discretization_interval=grid,
                pessimistic_estimate=pessimistic,
                use_connect_dots=pessimistic,
            )
            total = total.compose(one.self_compose(times))
        return float(total.get_epsilon_for_delta(delta))

    with errors_only("absl"):
        high = epsilon(pessimistic=True)
        return Figure(high, low=epsilon(pessimistic=False), high=high, grid=grid)


def _loss_range(q: float, sigma: float) -> float:
    """The width in nats of nearly all privacy losses of one release: those of noise within ten standard deviations."""
    highest = 10 / sigma + 1 / (2 * sigma**2)
    if q == 1.0:
        return 2 * 10 / sigma
    if highest > 700:
        return highest - math.log1p(-q)
    return math.log1p(q * math.expm1(highest)) - math.log1p(-q)


def prv_figure(mechanisms: Mechanisms, delta: float, about: float, finer: int = 1) -> Figure:
    """By Opacus' PRVs, as its own accountant puts them together, with an error chosen for epsilon's size ``about``."""
    import warnings

    import numpy as np
    from opacus.accountants.analysis import prv

    with warnings.catch_warnings(), np.errstate(all="ignore"):  # its formulas divide by 1 - q, rightly, where q = 1
        warnings.simplefilter("ignore")
        delta_error = delta / 1000
        releases = [prv.PoissonSubsampledGaussianPRV(q, sigma) for q, sigma in mechanisms]
        times = list(mechanisms.values())
        bound = _WANTED_WIDTH * about
        size = float(prv.compute_safe_domain_size(releases, times, bound, delta_error))
        # Gopi, Lee & Wutschitz 2021, theorem 5.5: the error of epsilon against the width of the grid.
        per_grid = math.sqrt(sum(times) * math.log(12 / delta_error) / 2)
        grid = max(bound / per_grid / finer, 2 * size / (_MOST_POINTS * finer))
        domain = prv.Domain.create_aligned(-size, size, grid)
        discrete = [
            prv.discretize(prv.TruncatedPrivacyRandomVariable(release, domain.t_min, domain.t_max), domain)
            for release in releases
        ]
        low, estimate, high = prv.compose_heterogeneous(discrete, times).compute_epsilon(delta, delta_error, grid * per_grid)
    if not math.isfinite(estimate):
        raise PrivacyError(f"Opacus gives epsilon = {estimate}")
    return Figure(max(0.0, float(estimate)), low=max(0.0, float(low)), high=max(0.0, float(high)), grid=grid)


def _tried(make: Callable[[], Figure]) -> Figure:
    """The figure, or why there is none."""
    try:
        return make()
    except ImportError as error:
        return Figure(None, reason=f"not available: {error}")
    except (PrivacyError, ArithmeticError, RuntimeError, ValueError) as error:
        return Figure(None, reason=f"not available: {type(error).__name__}: {error}")


def _library_orders(events: Sequence[Event]) -> Sequence[float]:
    """``dp_accounting``'s own list of orders; the whole ones of it where an event is of mode ``distributed``."""
    from dp_accounting.rdp import rdp_privacy_accountant

    orders = [float(order) for order in rdp_privacy_accountant.DEFAULT_RDP_ORDERS]
    return [order for order in orders if order.is_integer()] if any(isinstance(e, Distributed) for e in events) else orders


def _scale(figures: Mapping[str, Figure]) -> float:
    """Epsilon's size by the tightest bound known so far."""
    return min(figure.high for figure in figures.values())


def _agreement(figures: Mapping[str, Figure]) -> Rule:
    rule = Rule(
        "tight accountants agree",
        f"PLD of dp_accounting and PRV of Opacus give the same epsilon within {TIGHT_TOLERANCE:.1%}",
        "not checked",
        TIGHT_TOLERANCE,
    )
    pld, prv = figures["pld"], figures["prv"]
    if pld.epsilon is None or prv.epsilon is None:
        return replace(rule, explanation="; ".join(figure.reason for figure in (pld, prv) if figure.reason))
    apart = _apart(pld.epsilon, prv.epsilon)
    words = [
        f"the bounds of {name} are {_apart(figure.low, figure.high):.1%} apart: no finer grid was affordable"
        for name, figure in (("PLD", pld), ("PRV", prv))
        if _apart(figure.low, figure.high) > TIGHT_TOLERANCE
    ]
    outcome: Outcome = "holds"
    if apart > TIGHT_TOLERANCE:
        words.insert(0, f"{_figure(pld.epsilon)} against {_figure(prv.epsilon)}, also on finer grids")
        small = max(pld.epsilon, prv.epsilon) < _TOO_SMALL and prv.low <= pld.epsilon <= prv.high
        outcome = "explained" if small else "differs"
        if small:
            words.insert(1, "so small a cost is below what the grids resolve, and PLD's figure is within PRV's bounds")
    return replace(rule, outcome=outcome, difference=apart, explanation="; ".join(words))


def _enclosure(figures: Mapping[str, Figure]) -> Rule:
    """Every lower bound is below every upper bound."""
    rule = Rule("bounds enclose one value", "no accountant's lower bound is above another's upper bound", "not checked", NOTHING)
    known = {name: figure for name, figure in figures.items() if figure.epsilon is not None}
    (lower, most), (upper, least) = (
        max(((name, figure.low) for name, figure in known.items()), key=lambda pair: pair[1]),
        min(((name, figure.high) for name, figure in known.items()), key=lambda pair: pair[1]),
    )
    over = _over(most, least)
    if over > NOTHING:
        words = f"{lower} says at least {_figure(most)}, {upper} at most {_figure(least)}: one of them is wrong"
        return replace(rule, outcome="differs", difference=over, explanation=words)
    missing = [figure.reason for figure in figures.values() if figure.epsilon is None]
    return replace(rule, outcome="not checked" if missing else "holds", difference=over, explanation="; ".join(missing))


def _order_of_bounds(figures: Mapping[str, Figure]) -> list[Rule]:
    """RDP is not below either tight figure."""
    rules = []
    for name in ("pld", "prv"):
        rule = Rule(f"rdp not below {name}", f"epsilon by RDP is not below epsilon by {name.upper()}", "not checked", NOTHING)
        tight, rdp = figures[name], figures["rdp"]
        if tight.epsilon is None or rdp.epsilon is None:
            rules.append(replace(rule, explanation=tight.reason or rdp.reason))
            continue
        over = _over(tight.epsilon, rdp.epsilon)
        outcome: Outcome = "holds"
        words = ""
        if over > NOTHING:
            words = f"{_figure(rdp.epsilon)} against {_figure(tight.epsilon)}"
            outcome = "differs"
            if _over(tight.epsilon, rdp.epsilon) <= TIGHT_TOLERANCE and tight.low <= rdp.epsilon:
                outcome, words = "explained", f"{words}, whose own bounds leave room for {_figure(tight.low)}"
        rules.append(replace(rule, outcome=outcome, difference=over, explanation=words))
    return rules


def _reference_rule(events: Sequence[Event], delta: float, figures: Mapping[str, Figure]) -> Rule:
    rule = Rule(
        "reference agrees with rdp",
        f"the reference and dp_accounting give the same epsilon by RDP within {RDP_TOLERANCE:.1%}",
        "not checked",
        RDP_TOLERANCE,
    )
    rdp, reference = figures["rdp"], figures["reference"]
    if rdp.epsilon is None or reference.epsilon is None:
        return replace(rule, explanation=reference.reason or rdp.reason)
    apart = _apart(rdp.epsilon, reference.epsilon)
    if apart <= RDP_TOLERANCE:
        return replace(rule, outcome="holds", difference=apart)
    words = f"{_figure(rdp.epsilon)} at order {rdp.order:g} against {_figure(reference.epsilon)} at order {reference.order:g}"
    # Known: between whole orders dp_accounting gives an upper bound only. Then whole orders must agree.
    whole = [order for order in _library_orders(events) if order.is_integer()]
    theirs, ours = rdp_figure(events, delta, whole), reference_figure(events, delta, whole)
    if rdp.epsilon > reference.epsilon and _apart(theirs.high, ours.high) <= RDP_TOLERANCE:
        words = (
            f"{words}; at whole orders {_figure(theirs.high)} against {_figure(ours.high)}. Between whole orders dp_accounting "
            "adds up an alternating series without its signs, so its figure is an upper bound that is not tight"
        )
        return replace(rule, outcome="explained", difference=apart, explanation=words)
    return replace(rule, outcome="differs", difference=apart, explanation=words)


def _apart(a: float, b: float) -> float:
    """Relative to the larger; 0 where both are nothing or both infinite."""
    if a == b or max(a, b) <= NOTHING:
        return 0.0
    return 1.0 if math.isinf(max(a, b)) else abs(a - b) / max(a, b)


def _over(a: float, b: float) -> float:
    """By how much ``a`` passes ``b``, relative to ``a``; 0 where it does not."""
    return _apart(a, b) if a > b else 0.0


def _figure(value: float) -> str:
    return "infinity" if math.isinf(value) else f"{value:.6g}"
