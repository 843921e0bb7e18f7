"""The ledger pays before anything is released, never passes its limits, and refuses without leaving a trace."""

from __future__ import annotations

import itertools
import math
import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import rdp

from common.errors import BudgetExhausted, ConfigError, LedgerError, PolicyRefused
from common.privacy.accountant import epsilon
from common.privacy.entries import read_export
from common.privacy.entry import countersign
from common.privacy.events import GaussianCount, GaussianMetrics, Unprotected
from common.privacy.filter import best_order, epsilon_at, rdp_at
from common.privacy.ledger import Ledger, read_ledger
from common.privacy.plan import plan_for
from tests.common.privacy.ledgers import (
    AUDITOR,
    COORDINATOR,
    COUNT,
    DAY,
    RUN,
    SILO,
    START,
    Clock,
    asks,
    digest,
    full_ledger,
    key_of,
    policy,
    rows,
    steps,
)

DELTA = 1e-5


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_reserved_and_committed_is_there_for_another_process(ledger: Ledger, clock: Clock) -> None:
    clock.now += 5.7
    entry = ledger.reserve(asks(COUNT, declared_users=900), digest("question"))
    done = ledger.commit(entry.seq, digest("answer"))
    again = Ledger.open(ledger.path, SILO)
    assert again.entries == ledger.entries
    assert again.entries[1:] == (entry, done)
    order = ledger.policy.order
    assert order is not None
    assert entry.body == {
        "format": 1,
        "seq": 1,
        "time": int(START) + 5,
        "previous": ledger.entries[0].hash,
        "type": "reservation",
        "run": RUN,
        "coordinator": COORDINATOR.public_key,
        "mode": "silo",
        "declared_users": 900,
        "action": "query.count",
        "round": 0,
        "question": digest("question"),
        "event": {
            "kind": "gaussian-count",
            "unit": "one user of one silo",
            "neighbours": "add or remove one",
            "recipient": "coordinator",
            "noise_multiplier": 5.0,
            "max_norm": 1.0,
            "round": 0,
        },
        "epsilon": epsilon_at(order / 50, order, DELTA),
    }
    assert {key: done.body[key] for key in ("seq", "type", "reservation", "answer")} == {
        "seq": 2,
        "type": "commitment",
        "reservation": 1,
        "answer": digest("answer"),
    }


def test_the_opening_says_whose_it_is_and_what_epsilon_speaks_of(ledger: Ledger) -> None:
    body = ledger.entries[0].body
    assert (body["silo"], body["public_key"], body["previous"]) == ("north", SILO.public_key, "0" * 64)
    assert (body["unit"], body["neighbours"]) == ("one user of one silo", "add or remove one")
    assert body["policy"] == policy().resolved().to_dict()
    assert body["policy"]["order"] == 4.0
    assert body["software"].startswith("silorec ")


def test_a_reservation_without_commitment_counts_as_spent(ledger: Ledger) -> None:
    for number in range(1, 4):
        entry = ledger.reserve(asks(steps(number)), digest(str(number)))
        if number == 1:
            ledger.commit(entry.seq, digest("answer"))
    spent = Ledger.open(ledger.path, SILO).spent()
    assert (spent.reservations, spent.open) == (3, 2)
    assert spent.rdp == pytest.approx(3 * rdp_at(steps(1), spent.order), rel=1e-12)
    assert spent.epsilon == ledger.entries[-1].body["epsilon"]


def test_a_planned_run_fits_its_budget_and_one_release_more_does_not(folder: Path) -> None:
    """At the order that suits the plan, the filter gives up nothing against the accountant that calibrated the noise."""
    from common.config import Config

    plan = plan_for(Config(), 900, 900)
    limits = policy(epsilon=plan.epsilon, delta=plan.delta, order=best_order(plan.all_events(), plan.delta))
    ledger = Ledger.create(folder / "ledger.sqlite", limits, SILO, clock=Clock())
    for event in plan.all_events():
        ledger.reserve(asks(event), digest("q"))
    assert ledger.spent().epsilon == pytest.approx(plan.epsilon, rel=1e-4)
    with pytest.raises(BudgetExhausted, match=r"silo north: epsilon: epsilon would be 8\.\d+ after this release"):
        ledger.reserve(asks(plan.train_event(1)), digest("q"))
    with pytest.raises(BudgetExhausted):
        ledger.reserve(asks(plan.count_event(), run=digest("another run")), digest("q"))


def test_figures_of_what_is_spent_are_those_of_dp_accounting(ledger: Ledger) -> None:
    other = digest("another run")
    released = [COUNT, steps(1), steps(2, 1.5), GaussianMetrics(4.0, 1.0, 2)]
    for event in released:
        ledger.reserve(asks(event, action="x"), digest("q"))
    ledger.reserve(asks(steps(1), run=other), digest("q"))
    released.append(steps(1))
    spent = ledger.spent(tighter=True)
    alone, best = rdp.RdpAccountant(orders=[spent.order]), rdp.RdpAccountant()
    for event in released:
        alone.compose(event.to_dp_event())
        best.compose(event.to_dp_event())
    assert spent.epsilon == pytest.approx(alone.get_epsilon(DELTA), rel=1e-12)
    assert spent.best_rdp == pytest.approx(best.get_epsilon(DELTA), rel=1e-9)
    assert spent.pld == epsilon(released, DELTA, "pld")
    assert spent.pld is not None
    assert spent.best_rdp is not None
    assert spent.pld < spent.best_rdp < spent.epsilon
    assert spent.share == pytest.approx(epsilon_share(spent.rdp, 8.0, spent.order), rel=1e-9)
    order = spent.order
    assert spent.runs == {
        RUN: pytest.approx(epsilon_at(sum(rdp_at(e, order) for e in released[:4]), order, DELTA), rel=1e-12),
        other: pytest.approx(epsilon_at(rdp_at(steps(1), order), order, DELTA), rel=1e-12),
    }
    assert spent.today == spent.epsilon
    assert ledger.spent().pld is None


def epsilon_share(spent: float, limit: float, order: float) -> float:
    """By bisection: which share ``spent`` is of the sum that comes to ``limit``."""
    low, high = 0.0, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_at(middle, order, DELTA) <= limit else (low, middle)
    return spent / low


def test_an_unlimited_ledger_says_infinite_and_goes_on(folder: Path) -> None:
    ledger = Ledger.create(folder / "ledger.sqlite", policy(epsilon=None, modes=("none", "silo")), SILO, clock=Clock())
    ledger.reserve(asks(COUNT), digest("q"))
    assert math.isfinite(ledger.spent().epsilon)
    entry = ledger.reserve(asks(Unprotected("update", 1), mode="none"), digest("q"))
    assert entry.body["epsilon"] is None
    assert ledger.reserve(asks(COUNT), digest("q")).body["epsilon"] is None
    spent = ledger.spent(tighter=True)
    assert (spent.epsilon, spent.limit, spent.share, spent.pld) == (math.inf, None, None, math.inf)
    assert read_export(ledger.export()).findings == ()


def test_mode_none_does_not_fit_any_budget(folder: Path) -> None:
    ledger = Ledger.create(folder / "ledger.sqlite", policy(modes=("none", "silo")), SILO, clock=Clock())
    with pytest.raises(BudgetExhausted, match="epsilon would be infinite"):
        ledger.reserve(asks(Unprotected("update", 1), mode="none"), digest("q"))


@pytest.mark.parametrize("question", ["", "x", "A" * 64, "a" * 63, None])
def test_a_question_without_a_digest_is_refused(ledger: Ledger, question: Any) -> None:
    before = rows(ledger.path)
    with pytest.raises(LedgerError, match="question = "):
        ledger.reserve(asks(COUNT), question)
    assert rows(ledger.path) == before


def test_a_commitment_is_to_one_open_reservation(ledger: Ledger) -> None:
    entry = ledger.reserve(asks(COUNT), digest("q"))
    for wrong in (0, 2, -1, 10**9):
        with pytest.raises(LedgerError, match=r"not an open reservation|reservation = -1"):
            ledger.commit(wrong, digest("a"))
    with pytest.raises(LedgerError, match="answer = 'a'"):
        ledger.commit(entry.seq, "a")
    ledger.commit(entry.seq, digest("a"))
    with pytest.raises(LedgerError, match="entry 3: it commits to entry 1, which is not an open reservation"):
        ledger.commit(entry.seq, digest("a"))
    assert len(rows(ledger.path)) == 3


def test_another_key_cannot_open_or_write_it(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match=f"the ledger is that of key {SILO.public_key}, not of {AUDITOR.public_key}"):
        Ledger.open(ledger.path, AUDITOR)


def test_a_ledger_is_never_overwritten(ledger: Ledger) -> None:
    ledger.reserve(asks(COUNT), digest("q"))
    before = files(ledger.path.parent)
    with pytest.raises(LedgerError, match="never overwritten"):
        Ledger.create(ledger.path, policy(), SILO)
    assert files(ledger.path.parent) == before


def test_only_the_operator_can_read_its_files(folder: Path) -> None:
    before = os.umask(0)
    try:
        ledger = Ledger.create(folder / "deep" / "down" / "ledger.sqlite", policy(), SILO)
        ledger.reserve(asks(COUNT), digest("q"))
        with closing(sqlite3.connect(ledger.path)) as reader:  # keeps the write-ahead log from being put away
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM entries").fetchone()
            ledger.reserve(asks(COUNT), digest("q"))
            modes = {path.name: path.stat().st_mode & 0o777 for path in ledger.path.parent.iterdir()}
    finally:
        os.umask(before)
    assert {"ledger.sqlite", "ledger.sqlite.head", "ledger.sqlite.lock", "ledger.sqlite-wal"} <= modes.keys()
    assert set(modes.values()) == {0o600}
    assert {place.stat().st_mode & 0o777 for place in (folder / "deep", folder / "deep" / "down")} == {0o700}


def test_an_amendment_is_in_force_from_the_next_entry_and_forgets_nothing(ledger: Ledger) -> None:
    while True:
        try:
            ledger.reserve(asks(COUNT), digest("q"))
        except BudgetExhausted:
            break
    spent = ledger.spent()
    entry = ledger.amend(policy(epsilon=9.0, min_noise_multiplier=4.0), "one more season")
    assert entry.body["reason"] == "one more season"
    assert ledger.spent().epsilon == spent.epsilon
    assert Ledger.open(ledger.path, SILO).policy == ledger.policy
    assert (ledger.policy.epsilon, ledger.policy.order) == (9.0, spent.order)
    ledger.reserve(asks(COUNT), digest("q"))
    with pytest.raises(PolicyRefused, match="min_noise_multiplier"):
        ledger.reserve(asks(steps(1)), digest("q"))
    ledger.amend(policy(epsilon=5.0), "less")
    with pytest.raises(BudgetExhausted, match="the policy allows 5 at"):
        ledger.reserve(asks(COUNT), digest("q"))
    assert read_export(ledger.export()).findings == ()


def test_what_must_stay_cannot_be_amended(ledger: Ledger) -> None:
    before = rows(ledger.path)
    for changed, reason, said in (
        (policy(order=7.0), "why", "it was fixed at 4"),
        (policy(silo="south"), "why", "another silo needs its own"),
        (policy(epsilon=1.0), "why", "leaves no room at order = 4"),
        (policy(epsilon=9.0), " ", "reason = ' '"),
        (policy(epsilon=9.0), "two\nlines", "reason = "),
    ):
        with pytest.raises(LedgerError, match=said):
            ledger.amend(changed, reason)
    assert rows(ledger.path) == before


def test_nothing_is_released_after_the_closing_but_it_can_be_countersigned(ledger: Ledger) -> None:
    entry = ledger.reserve(asks(COUNT), digest("q"))
    ledger.close("the data were deleted")
    again = Ledger.open(ledger.path, SILO)
    for act in (
        lambda: again.reserve(asks(COUNT), digest("q")),
        lambda: again.commit(entry.seq, digest("a")),
        lambda: again.amend(policy(epsilon=100.0), "more"),
        lambda: again.close("again"),
    ):
        with pytest.raises(LedgerError, match="the ledger is closed"):
            act()
    again.countersign(AUDITOR)
    assert read_export(again.export()).closed


def test_a_countersignature_is_taken_in_if_it_is_of_an_entry_here(ledger: Ledger) -> None:
    head = ledger.entries[-1].hash
    ledger.reserve(asks(COUNT), digest("q"))
    with pytest.raises(LedgerError, match="is not that of"):
        ledger.add_countersignature(AUDITOR.public_key, countersign(head, AUDITOR))
    ledger.add_countersignature(AUDITOR.public_key, countersign(head, AUDITOR), head)
    last = ledger.entries[-1].hash
    ledger.add_countersignature(COORDINATOR.public_key, countersign(last, COORDINATOR))
    with pytest.raises(LedgerError, match="no entry before it has"):
        ledger.add_countersignature(AUDITOR.public_key, countersign(digest("x"), AUDITOR), digest("x"))
    with pytest.raises(LedgerError, match="the silo's own"):
        ledger.countersign(SILO)
    assert [entry.type for entry in ledger.entries] == ["opening", "reservation", "countersignature", "countersignature"]


@pytest.mark.parametrize("back", [0.0, 0.4, 1.0])
def test_a_clock_that_is_a_little_behind_takes_the_time_of_the_last_entry(ledger: Ledger, clock: Clock, back: float) -> None:
    clock.now = START + 100
    ledger.reserve(asks(COUNT), digest("q"))
    clock.now -= back
    assert ledger.reserve(asks(COUNT), digest("q")).time == int(START) + 100


def test_a_clock_that_has_gone_back_stops_the_silo(ledger: Ledger, clock: Clock) -> None:
    clock.now = START + 100
    entry = ledger.reserve(asks(COUNT), digest("q"))
    before = rows(ledger.path)
    for now in (START + 98.9, START, 0.0):
        clock.now = now
        for act in (
            lambda: ledger.reserve(asks(COUNT), digest("q")),
            lambda: ledger.commit(entry.seq, digest("a")),
            lambda: ledger.amend(policy(epsilon=9.0), "why"),
            lambda: ledger.close("why"),
        ):
            with pytest.raises(LedgerError, match=r"the clock has gone back: .* the last entry is of 2025-06-15 15:08:20 UTC"):
                act()
    assert rows(ledger.path) == before
    clock.now = START + 100
    ledger.commit(entry.seq, digest("a"))


@pytest.mark.parametrize("now", [math.nan, math.inf, -1.0, 1e18])
def test_a_clock_that_shows_no_time_stops_the_silo(ledger: Ledger, clock: Clock, now: float) -> None:
    clock.now = now
    with pytest.raises(LedgerError, match="which cannot be"):
        ledger.reserve(asks(COUNT), digest("q"))
    with pytest.raises(LedgerError, match="which cannot be"):
        Ledger.create(ledger.path.parent / "other.sqlite", policy(), SILO, clock=clock)
    assert not (ledger.path.parent / "other.sqlite").exists()


def test_a_day_ends_at_midnight_utc(folder: Path) -> None:
    clock = Clock(20_000 * DAY + DAY - 1)
    day = epsilon_at(rdp_at(COUNT, 4.0), 4.0, DELTA)
    limits = policy(epsilon_per_day=day, order_per_day=4.0)
    ledger = Ledger.create(folder / "ledger.sqlite", limits, SILO, clock=clock)
    ledger.reserve(asks(COUNT), digest("q"))
    with pytest.raises(BudgetExhausted, match=r"epsilon_per_day: .* on this day \(UTC\)"):
        ledger.reserve(asks(COUNT), digest("q"))
    clock.now += 0.999
    with pytest.raises(BudgetExhausted, match="epsilon_per_day"):
        ledger.reserve(asks(COUNT), digest("q"))
    clock.now += 0.001
    ledger.reserve(asks(COUNT), digest("q"))


def test_a_clock_that_dithers_around_midnight_gives_no_second_day(folder: Path) -> None:
    clock = Clock(20_000 * DAY)
    day = epsilon_at(rdp_at(COUNT, 4.0), 4.0, DELTA)
    ledger = Ledger.create(folder / "ledger.sqlite", policy(epsilon_per_day=day, order_per_day=4.0), SILO, clock=clock)
    ledger.reserve(asks(COUNT), digest("q"))
    clock.now -= 0.5
    with pytest.raises(BudgetExhausted, match="epsilon_per_day"):
        ledger.reserve(asks(COUNT), digest("q"))


def test_a_policy_without_room_makes_no_ledger(folder: Path) -> None:
    with pytest.raises(ConfigError, match="leaves no room at any"):
        Ledger.create(folder / "ledger.sqlite", policy(epsilon=0.001), SILO)
    assert [*folder.iterdir()] == []


def test_two_ledgers_of_one_file_see_each_other_before_they_decide(ledger: Ledger) -> None:
    other = Ledger.open(ledger.path, SILO, clock=Clock())
    fits = 0
    for one in itertools.cycle((ledger, other)):
        try:
            one.reserve(asks(GaussianCount(3.0, 1.0)), digest("q"))
            fits += 1
        except BudgetExhausted:
            break
    order = ledger.policy.order
    assert order is not None
    cost = rdp_at(GaussianCount(3.0, 1.0), order)
    assert epsilon_at(fits * cost, order, DELTA) <= 8.0 < epsilon_at((fits + 1) * cost, order, DELTA)
    for one in (ledger, other):
        with pytest.raises(BudgetExhausted):
            one.reserve(asks(GaussianCount(3.0, 1.0)), digest("q"))
        assert one.refresh().entries == read_ledger(ledger.path).entries


def test_an_amendment_by_another_process_is_in_force_here_too(ledger: Ledger) -> None:
    other = Ledger.open(ledger.path, SILO, clock=Clock())
    other.amend(policy(coordinators=()), "a pause")
    with pytest.raises(PolicyRefused, match="coordinators"):
        ledger.reserve(asks(COUNT), digest("q"))
    other.close("the end")
    with pytest.raises(LedgerError, match="closed"):
        ledger.reserve(asks(COUNT), digest("q"))


def test_threads_that_share_a_ledger_lose_nothing(ledger: Ledger) -> None:
    made: list[int] = []

    def work() -> None:
        for _ in range(10):
            made.append(ledger.reserve(asks(GaussianCount(30.0, 1.0)), digest("q")).seq)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(made) == list(range(1, 41))
    assert read_ledger(ledger.path).findings == ()


def test_an_export_of_everything_is_read_without_a_finding(folder: Path) -> None:
    ledger = full_ledger(folder)
    chain = read_export(ledger.export())
    assert chain.entries == ledger.entries == read_ledger(ledger.path).entries
    assert chain.findings == ()


def test_a_key_of_another_silo_in_the_same_folder_changes_nothing(ledger: Ledger) -> None:
    """Two ledgers side by side do not meet."""
    other = Ledger.create(ledger.path.with_name("south.sqlite"), policy(silo="south"), key_of("south"), clock=Clock())
    other.reserve(asks(COUNT), digest("q"))
    assert len(ledger.refresh().entries) == 1
    assert len(other.refresh().entries) == 2
