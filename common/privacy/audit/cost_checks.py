"""Checks of what one run cost: is what was charged what the configuration demands, does it cover what was received, and is it
what the run claims?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any

from common.privacy.accountant import Method, epsilon
from common.privacy.audit.check import Check, Named, count, judged, not_applicable
from common.privacy.audit.matching import NO_TRANSCRIPT, Matching, demanded
from common.privacy.entry import Reservation
from common.privacy.events import Event, Unprotected, if_others_collude
from common.privacy.filter import ORDERS, rdp_at
from common.privacy.plan import delta_for
from common.privacy.transcript import Answered
from common.secagg.rules import Rules

#: The search for the noise stops within 1e-5 (RDP), or 1e-4 of the multiplier (PLD), of the least one: another version of
#: ``dp_accounting`` may stop elsewhere in there. Everything else in an event must be equal.
SAME_NOISE = 1e-4

#: Relative difference between two figures of the same accountant that is put down to versions and rounding.
SAME_FIGURE = 1e-6


_NO_PLAN = "there is no configuration of this run that names declared users"


def cost_checks(run: Matching) -> list[Check]:
    """All of them."""
    return [check_plan(run), check_covered(run), check_budget(run), check_claims(run)]


def check_plan(run: Matching) -> Check:
    """What was charged is what the configuration says that it costs."""
    name = "plan"
    statement = (
        "Every reservation of the run charges what the configuration demands: the noise, sampling probability, clip and steps, "
        "and in mode distributed the honest silos that it counts on."
    )
    plan = run.plan(None)
    if plan is None:
        return not_applicable(name, statement, _NO_PLAN)
    faults, compared = [], 0
    for ledger, entry, what in run.reservations():
        compared += 1
        silo = run.silo_of.get(ledger)
        plan = run.plan(silo)
        if plan is None:
            faults.append(Named(f"silo {silo} is not in the configuration's roster", ledger, entry.seq))
            continue
        if what.mode != plan.mode:
            faults.append(Named(f"its mode is {what.mode!r}, the configuration's {plan.mode!r}", ledger, entry.seq))
        event = demanded(plan, what.action, what.round)
        if event is None:
            faults.append(Named(f"the plan has no {what.action} of round {what.round}", ledger, entry.seq))
        else:
            faults += [Named(text, ledger, entry.seq) for text in _differences(what.released, event)]
    protected = plan is not None and plan.mode != "none"
    told = f"{count(compared, 'reservation')} compared" + (
        f"; the plan: noise multiplier {plan.noise_multiplier:.6g} ({plan.count_noise_multiplier:.6g} of the count), sampling "
        f"probability {plan.sampling_probability:g}, {count(plan.steps_per_round, 'step')} in each of "
        f"{count(plan.rounds, 'round')}, clip {plan.max_grad_norm:g}"
        + (f"; noise of a sum with {count(plan.honest, 'honest silo')} in it" if plan.honest else "")
        if plan is not None and protected
        else "; the configuration's mode protects nobody"
    )
    return judged(name, statement, told, faults)


def check_covered(run: Matching) -> Check:
    """The sum over everything that was received is not more than the sum of what was charged."""
    name, statement = "covered", "What each silo was charged covers everything that the coordinator received from it."
    if run.evidence.transcript is None:
        return not_applicable(name, statement, NO_TRANSCRIPT)
    faults, told = [], []
    for silo in sorted({answer.silo for answer in run.answers}):
        released, unknown = [], 0
        for answer in (answer for answer in run.answers if answer.silo == silo):
            event = _cost(run, answer)
            unknown += event is None
            released += [] if event is None else [event]
        ledger = run.ledger_of(silo)
        charged = [] if ledger is None else run.events(ledger)
        if ledger is None:
            faults.append(Named(f"silo {silo} gave {count(len(released) + unknown, 'answer')}, and no ledger of it is here"))
        elif unknown:
            faults.append(
                Named(f"{count(unknown, 'answer')} of silo {silo} were never charged, so their cost is not known", ledger)
            )
        elif (worst := _least_covered(released, charged)) is not None:
            order, out, paid = worst
            faults.append(Named(f"at Rényi order {order:g} silo {silo} released {out:.6g} and was charged {paid:.6g}", ledger))
        told.append(f"silo {silo}: {count(len(released) + unknown, 'answer')}, {count(len(charged), 'charge')}")
    told.append(f"compared at {len(ORDERS)} Rényi orders")
    return judged(name, statement, "; ".join(told), faults)


def check_budget(run: Matching) -> Check:
    """The run kept the epsilon that its configuration names, beside the limits of each silo's own policy.

    A run that went on from another one, because a silo joined, is counted together with it.
    """
    name = "budget"
    statement = "No silo was charged more for the run than the configuration's epsilon, with the runs that it went on from."
    config = run.evidence.config
    if config is None or run.plan(None) is None:
        return not_applicable(name, statement, _NO_PLAN)
    if config.privacy.mode == "none":
        return not_applicable(name, statement, "mode none: there is no budget, and nothing is protected")
    delta = delta_for(config, config.federation.declared_users)
    faults, told = [], []
    for ledger, chain in run.evidence.current.items():
        spent = _epsilon([*run.events_before(ledger), *run.events(ledger)], delta, config.privacy.accountant)
        told.append(f"{chain.silo}: {spent:.6g}")
        if not spent <= config.privacy.epsilon * (1 + SAME_FIGURE):
            last = max((entry.seq for _, entry, _ in run.reservations(ledger)), default=None)
            faults.append(Named(f"the run's charges come to {spent:.6g}, agreed were {config.privacy.epsilon:g}", ledger, last))
    accountant = config.privacy.accountant.upper()
    return judged(
        name, statement, f"agreed {config.privacy.epsilon:g} at delta {delta:.6g} by {accountant}; {', '.join(told)}", faults
    )


def check_claims(run: Matching) -> Check:
    """What the run says of itself."""
    name, statement = "claims", "The result's epsilon, delta and mode are what the ledgers give."
    evidence = run.evidence
    if problems := evidence.problem_with("result"):
        return judged(name, statement, "it could not be read", [Named(f"{p.name}: {p.what}") for p in problems])
    if evidence.result is None:
        return not_applicable(name, statement, "there is no result.json")
    config = evidence.config
    if config is None or run.plan(None) is None:
        return not_applicable(name, statement, _NO_PLAN)
    private = config.privacy.mode != "none"
    delta = delta_for(config, config.federation.declared_users)
    right: dict[str, Any] = {"mode": config.privacy.mode, "delta": delta if private else None}
    if config.privacy.mode == "distributed":
        right["honest_silos"] = Rules.of(config).honest
    faults = [
        Named(f"result.json: {key} = {evidence.result.get(key)!r}, the configuration gives {value!r}")
        for key, value in right.items()
        if not _same(evidence.result.get(key), value)
    ]
    missing = [silo for silo in range(len(config.federation.declared_users)) if run.ledger_of(silo) is None]
    faults += [Named(f"the ledger of silo {silo} is not here, so nothing said of it can be confirmed") for silo in missing]
    told = [f"mode {config.privacy.mode}"]
    if private and not missing:
        found, compared = _claimed_figures(run, evidence.result, delta)
        faults += found
        told += compared
    return judged(name, statement, ", ".join(told), faults)


def _claimed_figures(run: Matching, result: Mapping[str, Any], delta: float) -> tuple[list[Named], list[str]]:
    assert run.evidence.config is not None
    silos = range(len(run.evidence.config.federation.declared_users))
    by_silo = {silo: run.ledger_of(silo) for silo in silos}
    faults, told = [], []
    rows = result.get("silos")
    rows = rows if isinstance(rows, list) else []
    charged = {ledger: run.events(ledger or "") for ledger in by_silo.values()}
    left = {ledger: [if_others_collude(event) for event in events] for ledger, events in charged.items()}
    claimed: tuple[tuple[str, Method, Mapping[str | None, Sequence[Event]]], ...] = (
        ("epsilon", "rdp", charged),
        ("epsilon_pld", "pld", charged),
        ("epsilon_if_others_collude", "rdp", left),
        ("epsilon_pld_if_others_collude", "pld", left),
    )
    for key, method, events in claimed:
        if key not in result:
            continue
        figures = [_epsilon(events[ledger], delta, method) for ledger in by_silo.values()]
        told.append(f"{key} {max(figures):.9g}")
        if not _same(result[key], max(figures)):
            faults.append(Named(f"result.json: {key} = {result[key]!r}, the ledgers give {max(figures):.9g}"))
        for silo, row in zip(silos, rows, strict=False):
            said = row.get(key) if isinstance(row, dict) else None
            if not _same(said, figures[silo]):
                text = f"result.json: {key} = {said!r} of silo {silo}, its ledger gives {figures[silo]:.9g}"
                faults.append(Named(text, by_silo[silo]))
    return faults, told


def _epsilon(events: Sequence[Event], delta: float, method: Method) -> float:
    return _epsilon_of(tuple(events), delta, method)


@lru_cache(maxsize=256)  # silos of one run are charged alike, and PLD takes a second
def _epsilon_of(events: tuple[Event, ...], delta: float, method: Method) -> float:
    return epsilon(events, delta, method)


def _cost(run: Matching, answer: Answered) -> Event | None:
    """What an answer must cost: by the configuration, else by the entry that it was paid with."""
    plan = run.plan(answer.silo)
    event = None if plan is None else demanded(plan, answer.action, answer.round)
    if event is None and run.paid[answer]:
        reservation = run.paid[answer][0].reservation.what
        assert isinstance(reservation, Reservation)
        event = reservation.released
    return event


def _least_covered(released: list[Event], charged: list[Event]) -> tuple[float, float, float] | None:
    """The order at which most is missing, with both sums; None where the charges cover the releases at every order."""
    worst, least = None, 1 - SAME_FIGURE
    if any(isinstance(event, Unprotected) for event in charged):
        return None
    for order in ORDERS:
        out, paid = (math.fsum(rdp_at(event, order) for event in events) for events in (released, charged))
        share = 1.0 if out == 0 or out == paid else paid / out
        if share < least:
            worst, least = (order, out, paid), share
    return worst


def _differences(charged: Event, event: Event) -> Iterator[str]:
    """In words, what the charged event has otherwise than ``event``, the demanded one."""
    if type(charged) is not type(event):
        yield f"it charges {charged.kind}, the plan demands {event.kind}"
        return
    for field in fields(event):
        mine, right = getattr(charged, field.name), getattr(event, field.name)
        same = abs(mine - right) <= SAME_NOISE * right if field.name == "noise_multiplier" else mine == right
        if not same:
            yield f"{field.name} = {_plain(mine)} is charged, the plan demands {_plain(right)}"


def _same(said: object, right: object) -> bool:
    if isinstance(said, float | int) and isinstance(right, float | int) and not isinstance(said, bool):
        return said == right or abs(said - right) <= SAME_FIGURE * abs(right)
    if right is not None and isinstance(right, float) and math.isinf(right):
        return said is None
    return said == right


def _plain(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else repr(value)
