"""Events keep their meaning on the way through a file and through dp_accounting, and impossible ones do not exist."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import dp_accounting
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PrivacyError
from common.privacy.events import (
    COORDINATOR,
    NEIGHBOURS,
    UNIT,
    Distributed,
    DistributedCount,
    DistributedMetrics,
    DistributedStep,
    Event,
    GaussianCount,
    GaussianMetrics,
    PoissonGaussianSteps,
    Unprotected,
    event_from_dict,
    event_from_dp_event,
    event_to_dict,
    if_others_collude,
)

positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
rounds = st.integers(0, 10**6)
recipients = st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True)
protected = st.one_of(
    st.builds(GaussianCount, positive, positive, rounds, recipients),
    st.builds(GaussianMetrics, positive, positive, rounds, recipients),
    st.builds(
        PoissonGaussianSteps,
        positive,
        st.floats(0, 1, exclude_min=True),
        st.integers(1, 10**9),
        positive,
        rounds,
        recipients,
    ),
)
noises, silos = st.floats(1e-100, 1e100), st.integers(1, 2**32 - 1)
shared = st.one_of(
    st.builds(DistributedCount, noises, positive, rounds, recipients, honest=silos),
    st.builds(DistributedMetrics, noises, positive, rounds, recipients, honest=silos),
    st.builds(DistributedStep, noises, st.floats(0, 1, exclude_min=True), positive, rounds, recipients, honest=silos),
)
unprotected = st.builds(Unprotected, st.text(), rounds, recipients)
events = st.one_of(protected, shared, unprotected)

COUNT: dict[str, Any] = {"kind": "gaussian-count", "noise_multiplier": 1.0, "max_norm": 1.0, "round": 0}
STEP = {**COUNT, "kind": "distributed-step", "sampling_probability": 0.5, "max_grad_norm": 1.0, "honest": 2}
del STEP["max_norm"]
OURS = {"unit": UNIT, "neighbours": NEIGHBOURS, "recipient": COORDINATOR}


@given(events)
def test_an_event_is_read_back_from_its_json(event: Event) -> None:
    back = event_from_dict(json.loads(json.dumps(event_to_dict(event))))
    assert back == event
    assert type(back) is type(event)
    assert event_to_dict(back) == event_to_dict(event)


@given(protected)
def test_an_event_is_read_back_from_its_dp_event(event: Event) -> None:
    norm = event.max_grad_norm if isinstance(event, PoissonGaussianSteps) else event.max_norm  # type: ignore[union-attr]
    dp_event = event.to_dp_event()
    back = event_from_dp_event(
        dp_accounting.DpEvent.from_named_tuple(dp_event.to_named_tuple()),  # as it is stored elsewhere
        max_norm=norm,
        round=event.round,
        recipient=event.recipient,
        metrics=isinstance(event, GaussianMetrics),
    )
    assert back == event
    assert type(back) is type(event)
    assert back.to_dp_event() == dp_event


@given(unprotected)
def test_an_unprotected_event_is_read_back_from_its_dp_event_but_for_what_it_was(event: Unprotected) -> None:
    back = event_from_dp_event(event.to_dp_event(), max_norm=1.0, round=event.round, recipient=event.recipient)
    assert back == dataclasses.replace(event, what="unknown")


def test_what_is_written_never_changes_its_meaning() -> None:
    """The very words: a ledger of today must be read for ever."""
    ours = '"unit": "one user of one silo", "neighbours": "add or remove one", '
    lines = {
        '{"kind": "gaussian-count", ' + ours + '"noise_multiplier": 2.5, "max_norm": 1.0, "round": 0, '
        '"recipient": "coordinator"}': GaussianCount(2.5, 1.0),
        '{"kind": "gaussian-metrics", ' + ours + '"noise_multiplier": 3.0, "max_norm": 2.0, "round": 4, '
        '"recipient": "coordinator"}': GaussianMetrics(3.0, 2.0, 4),
        '{"kind": "poisson-gaussian-steps", ' + ours + '"noise_multiplier": 1.5, "sampling_probability": 0.25, "steps": 4, '
        '"max_grad_norm": 1.0, "round": 3, "recipient": "owner"}': PoissonGaussianSteps(1.5, 0.25, 4, 1.0, 3, "owner"),
        '{"kind": "distributed-count", ' + ours + '"noise_multiplier": 2.5, "max_norm": 1.0, "round": 0, '
        '"recipient": "coordinator", "honest": 7}': DistributedCount(2.5, 1.0, honest=7),
        '{"kind": "distributed-metrics", ' + ours + '"noise_multiplier": 3.0, "max_norm": 2.0, "round": 4, '
        '"recipient": "coordinator", "honest": 2}': DistributedMetrics(3.0, 2.0, 4, honest=2),
        '{"kind": "distributed-step", ' + ours + '"noise_multiplier": 1.5, "sampling_probability": 0.25, '
        '"max_grad_norm": 1.0, "round": 3, "recipient": "owner", "honest": 12}': DistributedStep(
            1.5, 0.25, 1.0, 3, "owner", honest=12
        ),
        '{"kind": "unprotected", ' + ours + '"what": "update", "round": 2, "recipient": "coordinator"}': Unprotected("update", 2),
    }
    for line, event in lines.items():
        assert json.dumps(event_to_dict(event)) == line
        assert event_from_dict(json.loads(line)) == event


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True, "1", None, 10**400])
def test_noise_and_bounds_are_positive_and_finite(value: Any) -> None:
    for make in (
        lambda: GaussianCount(value, 1.0),
        lambda: GaussianCount(1.0, value),
        lambda: GaussianMetrics(value, 1.0),
        lambda: GaussianMetrics(1.0, value),
        lambda: PoissonGaussianSteps(value, 0.5, 1, 1.0),
        lambda: PoissonGaussianSteps(1.0, 0.5, 1, value),
        lambda: DistributedCount(value, 1.0, honest=2),
        lambda: DistributedCount(1.0, value, honest=2),
        lambda: DistributedMetrics(value, 1.0, honest=2),
        lambda: DistributedStep(value, 0.5, 1.0, honest=2),
        lambda: DistributedStep(1.0, 0.5, value, honest=2),
    ):
        with pytest.raises(PrivacyError, match="must be positive and finite"):
            make()


@pytest.mark.parametrize("value", [0, -0.1, 1.0001, math.nan, True, "0.5"])
def test_a_sampling_probability_is_a_probability(value: Any) -> None:
    with pytest.raises(PrivacyError, match=r"sampling_probability = .*, must be in \(0, 1\]"):
        PoissonGaussianSteps(1.0, value, 1, 1.0)
    with pytest.raises(PrivacyError, match=r"sampling_probability = .*, must be in \(0, 1\]"):
        DistributedStep(1.0, value, 1.0, honest=2)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, math.nan])
def test_steps_are_counted_in_whole_numbers(value: Any) -> None:
    with pytest.raises(PrivacyError, match=r"steps = .*, must be a whole number from 1"):
        PoissonGaussianSteps(1.0, 0.5, value, 1.0)


@pytest.mark.parametrize("value", [-1, 0.5, "1", False])
def test_rounds_are_counted_in_whole_numbers(value: Any) -> None:
    for make in (
        lambda: GaussianCount(1.0, 1.0, value),
        lambda: GaussianMetrics(1.0, 1.0, value),
        lambda: PoissonGaussianSteps(1.0, 0.5, 1, 1.0, value),
        lambda: DistributedCount(1.0, 1.0, value, honest=2),
        lambda: DistributedMetrics(1.0, 1.0, value, honest=2),
        lambda: DistributedStep(1.0, 0.5, 1.0, value, honest=2),
        lambda: Unprotected("x", value),
    ):
        with pytest.raises(PrivacyError, match=r"round = .*, must be a whole number from 0"):
            make()


@pytest.mark.parametrize("value", ["", "Coordinator", "the owner", "silo\n", "1st", "-a", "größe", None, 7])
def test_a_recipient_is_a_lower_case_word(value: Any) -> None:
    for make in (
        lambda: GaussianCount(1.0, 1.0, 0, value),
        lambda: GaussianMetrics(1.0, 1.0, 0, value),
        lambda: PoissonGaussianSteps(1.0, 0.5, 1, 1.0, 0, value),
        lambda: DistributedCount(1.0, 1.0, 0, value, honest=2),
        lambda: DistributedMetrics(1.0, 1.0, 0, value, honest=2),
        lambda: DistributedStep(1.0, 0.5, 1.0, 0, value, honest=2),
        lambda: Unprotected("x", 0, value),
    ):
        with pytest.raises(PrivacyError, match=r"recipient = .*, must be a word of lower-case letters"):
            make()


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2", None, 2**32, 10**400])
def test_honest_silos_are_counted_in_whole_numbers(value: Any) -> None:
    for make in (
        lambda: DistributedCount(1.0, 1.0, honest=value),
        lambda: DistributedMetrics(1.0, 1.0, honest=value),
        lambda: DistributedStep(1.0, 0.5, 1.0, honest=value),
    ):
        with pytest.raises(PrivacyError, match=r"honest = .*, must be a whole number from 1 to 4294967295"):
            make()


def test_who_makes_an_event_of_mode_distributed_says_how_many_are_honest() -> None:
    makers: tuple[Any, ...] = (DistributedCount, DistributedMetrics, DistributedStep)
    for make in makers:
        with pytest.raises(TypeError, match="honest"):
            make(1.0, 0.5, 1.0)


@given(shared)
def test_if_others_collude_the_share_of_one_silo_is_left(event: Event) -> None:
    """Variances add: ``honest`` shares of the noise that is left are the noise of the sum. All else stays as it is."""
    assert isinstance(event, Distributed)
    left = if_others_collude(event)
    assert isinstance(left, Distributed)
    assert type(left) is type(event)
    assert event.honest * left.noise_multiplier**2 == pytest.approx(event.noise_multiplier**2, rel=1e-12)
    assert left.noise_multiplier == event.share_noise_multiplier
    kept = {**event_to_dict(event), "noise_multiplier": left.noise_multiplier, "honest": 1}
    assert event_to_dict(left) == kept
    assert if_others_collude(left) == left, "there is nobody left to collude"


@given(st.one_of(protected, unprotected))
def test_what_other_modes_release_depends_on_no_other_silo(event: Event) -> None:
    assert if_others_collude(event) is event


def test_a_share_of_four_honest_silos_is_half_of_the_noise() -> None:
    assert if_others_collude(DistributedCount(3.0, 1.0, 2, honest=4)) == DistributedCount(1.5, 1.0, 2, honest=1)
    assert if_others_collude(DistributedMetrics(3.0, 1.0, 2, honest=9)) == DistributedMetrics(1.0, 1.0, 2, honest=1)
    assert if_others_collude(DistributedStep(3.0, 0.2, 1.0, 2, honest=4)) == DistributedStep(1.5, 0.2, 1.0, 2, honest=1)


def test_equal_events_are_written_alike() -> None:
    """A whole number where a fraction may stand makes no other line, hence no other hash."""
    assert json.dumps(event_to_dict(GaussianCount(2, 1))) == json.dumps(event_to_dict(GaussianCount(2.0, 1.0)))
    whole, fraction = PoissonGaussianSteps(1, 1, 4, 1), PoissonGaussianSteps(1.0, 1.0, 4, 1.0)
    assert json.dumps(event_to_dict(whole)) == json.dumps(event_to_dict(fraction))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "unknown kind of privacy event None"),
        ([], "must be a table of values"),
        ({"kind": ["gaussian-count"]}, "unknown kind of privacy event"),
        ({"kind": "laplace", "scale": 1.0}, "unknown kind of privacy event 'laplace'; known: gaussian-count"),
        ({**OURS, "kind": "gaussian-count", "noise_multiplier": 1.0, "round": 0}, "max_norm missing"),
        ({**OURS, "kind": "gaussian-count", "noise_multiplier": 1.0, "max_norm": 1.0}, "round missing"),
        ({**COUNT, **OURS, "colour": "red"}, "unknown fields colour"),
        ({**COUNT, **OURS, "steps": 3}, "unknown fields steps"),
        ({**COUNT, **OURS, "noise_multiplier": "1"}, "noise_multiplier = '1', must be positive"),
        ({**COUNT, **OURS, "noise_multiplier": None}, "noise_multiplier = None, must be positive"),
        ({**COUNT, **OURS, "unit": "one interaction"}, "unit = 'one interaction', must be 'one user of one silo'"),
        ({**COUNT, **OURS, "neighbours": "replace one"}, "neighbours = 'replace one', must be 'add or remove one'"),
        ({**COUNT, "unit": UNIT, "recipient": COORDINATOR}, "neighbours = None"),
        ({**COUNT, "recipient": COORDINATOR}, "unit = None"),
        ({**COUNT, "unit": UNIT, "neighbours": NEIGHBOURS}, "recipient missing"),
        (COUNT, "unit = None"),
        ({**COUNT, **OURS, "honest": 3}, "unknown fields honest"),
        ({**COUNT, **OURS, "kind": "distributed-count"}, "honest missing"),
        ({**COUNT, **OURS, "kind": "distributed-count", "honest": 0}, "honest = 0, must be a whole number from 1"),
        ({**STEP, **OURS, "steps": 1}, "unknown fields steps"),
        ({**STEP, **OURS, "kind": "poisson-gaussian-steps"}, "steps missing"),
        ({**OURS, "kind": "unprotected", "what": 3, "round": 0}, "what = 3, must be text"),
    ],
)
def test_values_that_are_no_event_are_refused(values: Any, words: str) -> None:
    with pytest.raises(PrivacyError, match=words):
        event_from_dict(values)


def test_events_in_the_terms_of_dp_accounting() -> None:
    gaussian = dp_accounting.GaussianDpEvent
    assert GaussianCount(2.0, 5.0).to_dp_event() == gaussian(2.0)
    assert GaussianMetrics(2.0, 5.0).to_dp_event() == gaussian(2.0)
    step = dp_accounting.PoissonSampledDpEvent(0.25, gaussian(1.5))
    assert PoissonGaussianSteps(1.5, 0.25, 4, 9.0).to_dp_event() == dp_accounting.SelfComposedDpEvent(step, 4)
    assert DistributedCount(2.0, 5.0, honest=3).to_dp_event() == gaussian(2.0)
    assert DistributedMetrics(2.0, 5.0, honest=3).to_dp_event() == gaussian(2.0)
    assert DistributedStep(1.5, 0.25, 9.0, honest=3).to_dp_event() == step
    assert Unprotected("x").to_dp_event() == dp_accounting.NonPrivateDpEvent()


def test_one_step_needs_no_composition() -> None:
    step = dp_accounting.PoissonSampledDpEvent(0.25, dp_accounting.GaussianDpEvent(1.5))
    assert event_from_dp_event(step, max_norm=2.0) == PoissonGaussianSteps(1.5, 0.25, 1, 2.0)


@pytest.mark.parametrize("metrics", [False, True])
@pytest.mark.parametrize(
    "dp_event",
    [
        dp_accounting.LaplaceDpEvent(1.0),
        dp_accounting.NoOpDpEvent(),
        dp_accounting.ComposedDpEvent([dp_accounting.GaussianDpEvent(1.0)]),
        dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(1.0), 3),
        dp_accounting.PoissonSampledDpEvent(0.5, dp_accounting.LaplaceDpEvent(1.0)),
        dp_accounting.PoissonSampledDpEvent(0.5, dp_accounting.PoissonSampledDpEvent(0.5, dp_accounting.GaussianDpEvent(1.0))),
        "gaussian",
    ],
)
def test_mechanisms_that_silorec_has_not_are_refused(dp_event: Any, metrics: bool) -> None:
    with pytest.raises(PrivacyError, match="is no release of silorec"):
        event_from_dp_event(dp_event, max_norm=1.0, metrics=metrics)


def test_steps_of_training_are_no_metrics() -> None:
    with pytest.raises(PrivacyError, match="is no release of silorec of metrics"):
        event_from_dp_event(PoissonGaussianSteps(1.5, 0.25, 4, 9.0).to_dp_event(), max_norm=1.0, metrics=True)


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan])
def test_a_foreign_event_without_noise_is_refused(noise: float) -> None:
    with pytest.raises(PrivacyError, match="noise_multiplier"):
        event_from_dp_event(dp_accounting.GaussianDpEvent(noise), max_norm=1.0)
