"""Flower's own fetching of parts, with other pauses and a limit."""

from __future__ import annotations

import inspect
import time

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError, pull_objects

from common.pulling import FIRST, LONGEST, eager


def unavailable_until(moment: float) -> object:
    def pull(object_id: str) -> bytes:
        if time.monotonic() < moment:
            raise ObjectUnavailableError(object_id)
        return object_id.encode()

    return pull


def test_flower_has_the_options_that_are_set_here() -> None:
    assert {"initial_backoff", "backoff_cap", "max_time"} <= inspect.signature(pull_objects).parameters.keys()


def test_parts_that_come_a_little_later_are_fetched_soon() -> None:
    began = time.monotonic()
    found = eager(pull_objects)(["a", "b"], unavailable_until(began + 0.3))
    assert found == {"a": b"a", "b": b"b"}
    assert len(found) == 2


def test_a_part_that_never_comes_is_given_up_when_the_limit_is_over() -> None:
    calls = []

    def pull(object_id: str) -> bytes:
        calls.append(time.monotonic())
        raise ObjectUnavailableError(object_id)

    with pytest.raises(ObjectPullError):
        eager(pull_objects, lambda: 1.0)(["a"], pull)
    assert len(calls) > 1.0 / (1.2 * LONGEST)
    assert calls[1] - calls[0] >= 0.8 * FIRST
    assert calls[-1] - calls[0] >= 1.0


def test_what_the_caller_says_counts() -> None:
    with pytest.raises(ObjectPullError):
        eager(pull_objects)(["a"], unavailable_until(time.monotonic() + 60), max_time=0.2)
