"""Random sequences of questions against an oracle that shares no code with the filter."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
from dp_accounting import rdp
from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BudgetExhausted, PolicyRefused, PrivacyError
from common.privacy.entries import read_export
from common.privacy.events import Event, GaussianCount, GaussianMetrics, PoissonGaussianSteps, Unprotected
from common.privacy.filter import ORDERS, ROUNDING, rdp_at
from common.privacy.ledger import Ledger
from common.privacy.policy import Policy, Proposal
from tests.common.privacy.ledgers import (
    COORDINATOR,
    DAY,
    RUN,
    SHARED_COUNT,
    SILO,
    Clock,
    asks,
    digest,
    policy,
    quick_folder,
    rows,
    shared_step,
    steps,
)

DELTA = 1e-5


@cache
def _costs(event: Event, orders: tuple[float, ...]) -> np.ndarray:
    """At each of ``orders``, by dp_accounting."""
    return rdp.RdpAccountant(orders=list(orders)).compose(event.to_dp_event()).rdp


EVENTS: list[Event] = [
    GaussianCount(5.0, 1.0),
    GaussianCount(2.0, 1.0),
    GaussianMetrics(8.0, 1.0, 1),
    *(steps(r, sigma, q, n) for r in (1, 2, 7) for sigma in (0.6, 1.0, 2.0, 4.0) for q in (0.05, 0.2, 1.0) for n in (1, 4)),
    SHARED_COUNT,
    *(shared_step(r, sigma, q, honest) for r in (1, 2) for sigma in (0.6, 2.0, 4.0) for q in (0.05, 1.0) for honest in (1, 3, 9)),
    Unprotected("update", 1),
]
STRANGER = digest("stranger")


@dataclass
class Oracle:
    """What a ledger may answer: the limits as the words of the policy say them."""

    limits: Policy
    charged: list[tuple[str, int, Event]] = field(default_factory=list)

    def parameters(self, asked: Proposal) -> bool:
        event, limits = asked.event, self.limits
        return (
            ("any" in limits.coordinators or asked.coordinator in limits.coordinators)
            and asked.mode in limits.modes
            and limits.declared_users in (None, asked.declared_users)
            and asked.round <= (limits.max_rounds_per_run or 10**9)
            and getattr(event, "noise_multiplier", 1e9) >= limits.min_noise_multiplier
            and getattr(event, "sampling_probability", 0) <= limits.max_sampling_probability
            and getattr(event, "steps", 0) <= (limits.max_steps_per_round or 10**9)
            and getattr(event, "honest", 0) <= (limits.max_honest_silos or 10**9)
            and (not hasattr(event, "honest") or event.noise_multiplier**2 / event.honest >= limits.min_share_noise_multiplier**2)
        )

    def epsilons(self, charged: list[tuple[str, int, Event]], run: str, day: int) -> list[tuple[float, float]]:
        """Each limit that is set: what the charges come to, and the limit."""
        limits, out = self.limits, []
        for limit, order, mine in (
            (limits.epsilon, limits.order, lambda r, d: True),
            (limits.epsilon_per_run, limits.order_per_run, lambda r, d: r == run),
            (limits.epsilon_per_day, limits.order_per_day, lambda r, d: d == day),
        ):
            if limit is not None and order is not None:
                total = sum((_costs(event, (order,))[0] for r, d, event in charged if mine(r, d)), 0.0)
                out.append((math.inf if math.isinf(total) else compute_epsilon([order], [total], limits.delta)[0], limit))
        return out

    def best(self) -> float:
        """Over all orders, which can only be less."""
        orders = (*ORDERS, self.limits.order or 2.0)
        total = np.sum([_costs(event, orders) for _, _, event in self.charged], axis=0)
        return float(compute_epsilon(orders, total, self.limits.delta)[0]) if self.charged else 0.0


sequences = st.fixed_dictionaries(
    {
        "epsilon": st.sampled_from([3.0, 6.0, 8.0]),
        "epsilon_per_run": st.sampled_from([None, 3.0, 5.0]),
        "epsilon_per_day": st.sampled_from([None, 2.5, 5.0]),
        "delta": st.sampled_from([1e-5, 1e-3]),
        "min_noise_multiplier": st.sampled_from([0.0, 0.8]),
        "max_sampling_probability": st.sampled_from([1.0, 0.25]),
        "max_steps_per_round": st.sampled_from([None, 3]),
        "max_rounds_per_run": st.sampled_from([None, 5]),
        "declared_users": st.sampled_from([None, 900]),
        "modes": st.sampled_from([("silo",), ("silo", "none"), ("silo", "distributed")]),
        "max_honest_silos": st.sampled_from([None, 3]),
        "min_share_noise_multiplier": st.sampled_from([0.0, 0.7]),
        "coordinators": st.sampled_from([("any",), (COORDINATOR.public_key,)]),
    }
)
questions = st.fixed_dictionaries(
    {
        "event": st.sampled_from(EVENTS),
        "run": st.sampled_from([RUN, digest("2"), digest("3")]),
        "coordinator": st.sampled_from([COORDINATOR.public_key] * 6 + ["", STRANGER]),
        "declared_users": st.sampled_from([900] * 6 + [800, None]),
        "wait": st.sampled_from([0.0] * 6 + [60.0, DAY / 2, DAY]),
        "times": st.sampled_from([1, 1, 1, 2, 4]),  # replays
        "commit": st.booleans(),
        "reopen": st.sampled_from([False] * 5 + [True]),
    }
)


@given(limits=sequences, asked=st.lists(questions, min_size=3, max_size=9))
@settings(max_examples=500, deadline=None)
def test_no_sequence_of_questions_passes_a_limit_and_none_is_refused_without_reason(
    tmp_path_factory: pytest.TempPathFactory, limits: dict[str, Any], asked: list[dict[str, Any]]
) -> None:
    folder = quick_folder()
    try:
        clock = Clock()
        ledger = Ledger.create(folder / "ledger.sqlite", policy(**limits), SILO, clock=clock)
        oracle = Oracle(ledger.policy)
        for one in asked:
            clock.now += one["wait"]
            if one["reopen"]:
                ledger = Ledger.open(ledger.path, SILO, clock=clock)
            event = one["event"]
            said = {name: one[name] for name in ("run", "coordinator", "declared_users")}
            proposal = asks(event, **({"mode": "none"} if isinstance(event, Unprotected) else {}), **said)
            for _ in range(one["times"]):
                _ask(ledger, oracle, proposal, int(clock.now // DAY), commit=one["commit"])
        chain = read_export(ledger.export())
        assert chain.findings == ()
        assert [(what.run, entry.time // int(DAY), what.released) for entry, what in chain.reservations] == oracle.charged
    finally:
        shutil.rmtree(folder)


def _ask(ledger: Ledger, oracle: Oracle, proposal: Proposal, day: int, *, commit: bool) -> None:
    before = ledger.entries
    charge = (proposal.run, day, proposal.event)
    after = oracle.epsilons([*oracle.charged, charge], proposal.run, day)
    if any(abs(value / (limit * (1 + ROUNDING)) - 1) < 1e-9 for value, limit in after):
        return  # on the edge to the last digit: the oracle's sum may round to the other side
    right: type[PrivacyError] | None = None
    if not oracle.parameters(proposal):
        right = PolicyRefused
    elif not all(value <= limit * (1 + ROUNDING) for value, limit in after):
        right = BudgetExhausted
    if right is not None:
        stored = rows(ledger.path)
        with pytest.raises(right):
            ledger.reserve(proposal, digest("question"))
        assert ledger.entries == before
        assert rows(ledger.path) == stored
        return
    entry = ledger.reserve(proposal, digest("question"))
    oracle.charged.append(charge)
    assert ledger.entries == (*before, entry)
    for value, limit in oracle.epsilons(oracle.charged, proposal.run, day):
        assert value <= limit * (1 + ROUNDING)
    total = oracle.epsilons(oracle.charged, proposal.run, day)[0][0]
    assert entry.body["epsilon"] == pytest.approx(total, rel=1e-9)
    assert oracle.best() <= total * (1 + 1e-12)
    if commit:
        ledger.commit(entry.seq, digest("answer"))


def test_a_sequence_of_poisson_steps_is_summed_exactly(ledger: Ledger) -> None:
    """A thousand tiny steps in as many reservations come to what one reservation of them does, to 1e-9."""
    order = ledger.policy.order
    assert order is not None
    for _ in range(100):
        ledger.reserve(asks(PoissonGaussianSteps(10.0, 0.01, 10, 1.0, 1)), digest("q"))
    whole = rdp_at(PoissonGaussianSteps(10.0, 0.01, 1000, 1.0, 1), order)
    assert ledger.spent().rdp == pytest.approx(whole, rel=1e-9)
