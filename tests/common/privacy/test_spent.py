"""A ledger of mode distributed tells two figures: against whoever sees the sums, and if all other silos collude."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from dp_accounting import rdp

from common.errors import BudgetExhausted
from common.privacy.accountant import epsilon
from common.privacy.entries import read_export
from common.privacy.events import DistributedCount, DistributedMetrics, Event, Unprotected
from common.privacy.filter import DAY, WHOLE_ORDERS, epsilon_at, rdp_at
from common.privacy.ledger import Ledger, read_ledger
from tests.common.privacy.ledgers import COUNT, RUN, SHARED_COUNT, SILO, Clock, asks, digest, policy, shared_step, steps

DELTA = 1e-5
MODES = ("silo", "distributed")


def ledger_of(folder: Path, *events: Event, **limits: object) -> Ledger:
    ledger = Ledger.create(folder / "ledger.sqlite", policy(**{"modes": MODES, **limits}), SILO, clock=Clock())
    for event in events:
        ledger.reserve(asks(event), digest("q"))
    return ledger


def by_dp_accounting(events: list[Event], order: float) -> float:
    accountant = rdp.RdpAccountant(orders=[order])
    for event in events:
        accountant.compose(event.to_dp_event())
    return float(accountant.get_epsilon(DELTA))


def test_the_first_figure_is_of_the_sum_and_the_second_of_one_silos_noise(folder: Path) -> None:
    """Both at the policy's order, by dp_accounting: noise of 5 and 2 from four honest silos is 2.5 and 1 from one."""
    released = [SHARED_COUNT, shared_step(1), shared_step(2)]
    ledger = ledger_of(folder, *released)
    spent = ledger.spent()
    assert spent.order in WHOLE_ORDERS
    assert spent.epsilon == pytest.approx(by_dp_accounting(released, spent.order), rel=1e-12)
    assert spent.epsilon == ledger.entries[-1].body["epsilon"], "what is reserved is the first figure"
    left = spent.if_others_collude
    assert left is not None
    alone = [replace(event, noise_multiplier=event.noise_multiplier / 2, honest=1) for event in released]  # type: ignore
    assert left.epsilon == pytest.approx(by_dp_accounting(alone, spent.order), rel=1e-12)
    assert left.epsilon > spent.epsilon
    assert (left.honest, left.runs) == (4, {RUN: left.epsilon})


def test_releases_of_other_modes_count_as_they_are(folder: Path) -> None:
    ledger = ledger_of(folder, COUNT, steps(1), shared_step(1, honest=9))
    other = digest("another run")
    ledger.reserve(asks(steps(1), run=other), digest("q"))
    spent = ledger.spent()
    left, order = spent.if_others_collude, spent.order
    assert left is not None
    share = rdp_at(shared_step(1, 2.0 / 3), order)
    assert left.epsilon == pytest.approx(epsilon_at(rdp_at(COUNT, order) + 2 * rdp_at(steps(1), order) + share, order, DELTA))
    assert left.runs[other] == spent.runs[other]
    assert left.runs[RUN] > spent.runs[RUN]
    assert left.honest == 9


def test_a_ledger_without_shared_releases_has_one_figure(folder: Path) -> None:
    assert ledger_of(folder, COUNT, steps(1)).spent(tighter=True).if_others_collude is None
    assert ledger_of(folder / "empty").spent().if_others_collude is None


def test_tighter_figures_come_in_pairs_too(folder: Path) -> None:
    released = [SHARED_COUNT, shared_step(1)]
    spent = ledger_of(folder, *released).spent(tighter=True)
    left = spent.if_others_collude
    assert left is not None
    alone = [DistributedCount(2.5, 1.0, honest=1), shared_step(1, 1.0, honest=1)]
    assert (spent.best_rdp, spent.pld) == (epsilon(released, DELTA), epsilon(released, DELTA, "pld"))
    assert (left.best_rdp, left.pld) == (epsilon(alone, DELTA), epsilon(alone, DELTA, "pld"))
    assert left.best_rdp is not None
    assert left.pld is not None
    assert left.pld < left.best_rdp <= left.epsilon


def test_an_unprotected_release_leaves_nothing_of_either(folder: Path) -> None:
    ledger = ledger_of(folder, shared_step(1), epsilon=None, modes=("distributed", "none"))
    ledger.reserve(asks(Unprotected("update", 2), mode="none"), digest("q"))
    spent = ledger.spent()
    assert spent.if_others_collude is not None
    assert math.isinf(spent.epsilon)
    assert math.isinf(spent.if_others_collude.epsilon)


def test_no_limit_is_passed_by_shared_releases(folder: Path) -> None:
    """The total, one run and one day, each by its own order; and a refusal writes nothing."""
    clock = Clock()
    limits = policy(modes=("distributed",), epsilon=6.0, epsilon_per_run=4.5, epsilon_per_day=3.5)
    ledger = Ledger.create(folder / "ledger.sqlite", limits, SILO, clock=clock)
    refused: list[str] = []
    for run in (RUN, digest("2"), digest("3")):
        for number in range(1, 40):
            try:
                ledger.reserve(asks(shared_step(number, 1.4), run=run), digest("q"))
            except BudgetExhausted as error:
                before = ledger.entries
                refused.append(str(error).split(":")[1].strip())
                if refused[-1] == "epsilon_per_day":
                    clock.now += DAY
                    continue
                assert ledger.entries == before
                break
    assert set(refused) == {"epsilon", "epsilon_per_run", "epsilon_per_day"}
    policy_in_force, spending = ledger.policy, ledger.chain.spending()
    for limit in policy_in_force.limits:
        assert limit.order in WHOLE_ORDERS
        whole = {
            "epsilon": [{}],
            "epsilon_per_run": [{"run": run} for run in spending.runs()],
            "epsilon_per_day": [{"day": day} for day in {charge.day for charge in spending.charges}],
        }[limit.name]
        for part in whole:
            events = [c.event for c in spending.charges if part.get("run", c.run) == c.run and part.get("day", c.day) == c.day]
            assert by_dp_accounting(events, limit.order) <= limit.epsilon * (1 + 1e-6)
    assert read_export(ledger.export()).findings == ()
    assert spending.if_others_collude().epsilon(policy_in_force.order or 0.0, DELTA) > 6.0, "no limit is held against this one"


def test_an_order_between_whole_ones_is_charged_by_the_chord(folder: Path) -> None:
    """An operator may fix one; both figures are then bounds, above those of continuous noise."""
    released = [SHARED_COUNT, DistributedMetrics(8.0, 1.0, 1, honest=4)]
    spent = ledger_of(folder, *released, order=4.5).spent()
    assert spent.if_others_collude is not None
    for figure, factor in ((spent.epsilon, 1.0), (spent.if_others_collude.epsilon, 4.0)):
        gaussians = factor * (1 / 5.0**2 + 1 / 8.0**2) / 2
        chord = gaussians * (0.5 * 4 * 3 + 0.5 * 5 * 4) / 3.5
        assert figure == pytest.approx(epsilon_at(chord, 4.5, DELTA), rel=1e-9)
        assert figure > epsilon_at(4.5 * gaussians, 4.5, DELTA)


def test_a_ledger_of_shared_releases_is_read_back_whole(folder: Path) -> None:
    released = [SHARED_COUNT, shared_step(1), DistributedMetrics(8.0, 1.0, 1, honest=4)]
    ledger = ledger_of(folder, *released)
    for chain in (read_ledger(ledger.path), read_export(ledger.export())):
        assert [what.released for _, what in chain.reservations] == released
        assert [what.event["honest"] for _, what in chain.reservations] == [4, 4, 4]
        assert {what.mode for _, what in chain.reservations} == {"distributed"}
        assert chain.findings == ()
