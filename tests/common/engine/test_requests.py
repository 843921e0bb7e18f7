"""A request that makes no sense is refused when it is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.engine import Request
from common.errors import ServingError


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"k": 0}, "k = 0"),
        ({"k": 1001}, "k = 1001"),
        ({"k": 2.5}, "k: a whole number"),
        ({"k": True}, "k: a whole number"),
        ({"history": (1, "2")}, "history: a whole number"),
        ({"history": "12"}, "history: positions"),
        ({"history": 5}, "history: positions"),
        ({"deny": {1.5}}, "deny: a whole number"),
        ({"allow": [None]}, "allow: a whole number"),
        ({"categories": "drama"}, "categories"),
        ({"categories": {3}}, "categories"),
        ({"diversity": 1.01}, "diversity = 1.01"),
        ({"diversity": -0.1}, "diversity = -0.1"),
        ({"diversity": float("nan")}, "diversity: a finite number"),
        ({"boost": {1: float("nan")}}, "boost: a finite number"),
        ({"boost": {1: float("-inf")}}, "boost: a finite number"),
        ({"boost": {1: "0.5"}}, "boost: a number"),
        ({"boost": {"1": 0.5}}, "boost: a whole number"),
        ({"boost": [1]}, "boost: a mapping"),
        ({"boost": {1: 10**400}}, "boost: a number"),
    ],
)
def test_values_out_of_range_or_of_another_type_are_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ServingError, match=named):
        Request(**wrong)


def test_whole_numbers_of_numpy_and_any_collection_will_do() -> None:
    request = Request(history=np.array([3, 1]), k=np.int64(4), deny=[2, 2], allow=range(5), categories=["drama"])  # type: ignore[arg-type]
    assert (request.history, request.k) == ((3, 1), 4)
    assert (request.deny, request.allow, request.categories) == ({2}, {0, 1, 2, 3, 4}, {"drama"})
    assert all(type(position) is int for position in request.history)


def test_a_request_does_not_change_with_what_it_was_made_of() -> None:
    boost = {1: 0.5}
    request = Request(boost=boost)
    boost[1] = 9.0
    assert request.boost == {1: 0.5}
    with pytest.raises(TypeError):
        request.boost[1] = 2.0  # type: ignore[index]


def test_nothing_is_allowed_is_not_everything_is_allowed() -> None:
    assert Request(allow=frozenset()).allow == frozenset()
    assert Request().allow is None
