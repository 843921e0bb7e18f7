"""Events keep their meaning on the way through a file, and impossible ones do not exist."""

from __future__ import annotations

import json
import math
from typing import Any

import dp_accounting
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PrivacyError
from common.privacy.events import Event, GaussianCount, PoissonGaussianSteps, Unprotected, event_from_dict, event_to_dict

positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
rounds = st.integers(0, 10**6)
events = st.one_of(
    st.builds(GaussianCount, positive, positive, rounds),
    st.builds(
        PoissonGaussianSteps,
        positive,
        st.floats(0, 1, exclude_min=True),
        st.integers(1, 10**9),
        positive,
        rounds,
    ),
    st.builds(Unprotected, st.text(), rounds),
)


@given(events)
def test_an_event_is_read_back_from_its_json(event: Event) -> None:
    back = event_from_dict(json.loads(json.dumps(event_to_dict(event))))
    assert back == event
    assert type(back) is type(event)


def test_what_is_written_never_changes_its_meaning() -> None:
    """The very bytes of format 1: a journal of today must be read for ever."""
    lines = {
        '{"kind": "gaussian-count", "noise_multiplier": 2.5, "max_norm": 1.0, "round": 0}': GaussianCount(2.5, 1.0),
        '{"kind": "poisson-gaussian-steps", "noise_multiplier": 1.5, "sampling_probability": 0.25, "steps": 4, '
        '"max_grad_norm": 1.0, "round": 3}': PoissonGaussianSteps(1.5, 0.25, 4, 1.0, 3),
        '{"kind": "unprotected", "what": "update", "round": 2}': Unprotected("update", 2),
    }
    for line, event in lines.items():
        assert json.dumps(event_to_dict(event)) == line
        assert event_from_dict(json.loads(line)) == event


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_noise_and_bounds_are_positive_and_finite(value: float) -> None:
    for make in (
        lambda: GaussianCount(value, 1.0),
        lambda: GaussianCount(1.0, value),
        lambda: PoissonGaussianSteps(value, 0.5, 1, 1.0),
        lambda: PoissonGaussianSteps(1.0, 0.5, 1, value),
    ):
        with pytest.raises(PrivacyError, match="must be positive and finite"):
            make()


@pytest.mark.parametrize("value", [0, -0.1, 1.0001, math.nan])
def test_a_sampling_probability_is_a_probability(value: float) -> None:
    with pytest.raises(PrivacyError, match=r"sampling_probability = .*, must be in \(0, 1\]"):
        PoissonGaussianSteps(1.0, value, 1, 1.0)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, math.nan])
def test_steps_are_counted_in_whole_numbers(value: Any) -> None:
    with pytest.raises(PrivacyError, match=r"steps = .*, must be a whole number from 1"):
        PoissonGaussianSteps(1.0, 0.5, value, 1.0)


@pytest.mark.parametrize("value", [-1, 0.5, "1"])
def test_rounds_are_counted_in_whole_numbers(value: Any) -> None:
    for make in (
        lambda: GaussianCount(1.0, 1.0, value),
        lambda: PoissonGaussianSteps(1.0, 0.5, 1, 1.0, value),
        lambda: Unprotected("x", value),
    ):
        with pytest.raises(PrivacyError, match=r"round = .*, must be a whole number from 0"):
            make()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "unknown kind of privacy event None"),
        ({"kind": "laplace", "scale": 1.0}, "unknown kind of privacy event 'laplace'; known: gaussian-count"),
        ({"kind": "gaussian-count", "noise_multiplier": 1.0}, "max_norm"),
        ({"kind": "gaussian-count", "noise_multiplier": 1.0, "max_norm": 1.0, "colour": "red"}, "colour"),
        ({"kind": "gaussian-count", "noise_multiplier": "1", "max_norm": 1.0}, "gaussian-count"),
        ({"kind": "gaussian-count", "noise_multiplier": None, "max_norm": 1.0}, "gaussian-count"),
    ],
)
def test_values_that_are_no_event_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(PrivacyError, match=words):
        event_from_dict(values)


def test_events_in_the_terms_of_dp_accounting() -> None:
    gaussian = dp_accounting.GaussianDpEvent
    assert GaussianCount(2.0, 5.0).to_dp_event() == gaussian(2.0)
    step = dp_accounting.PoissonSampledDpEvent(0.25, gaussian(1.5))
    assert PoissonGaussianSteps(1.5, 0.25, 4, 9.0).to_dp_event() == dp_accounting.SelfComposedDpEvent(step, 4)
    assert Unprotected("x").to_dp_event() == dp_accounting.NonPrivateDpEvent()
