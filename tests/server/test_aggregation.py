"""Means of updates against hand-made figures."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import FederationError
from server.aggregation import weighted_mean


def test_the_mean_weighs_by_declared_users_of_those_who_answered() -> None:
    updates = {2: np.array([1.0, 0.0], np.float32), 0: np.array([3.0, 4.0], np.float32)}
    mean = weighted_mean(updates, {0: 30.0, 1: 1000.0, 2: 10.0})
    assert mean.dtype == np.float64
    np.testing.assert_allclose(mean, [(30 * 3 + 10 * 1) / 40, (30 * 4) / 40], rtol=1e-15)


def test_the_mean_does_not_depend_on_who_answered_first() -> None:
    rng = np.random.default_rng(0)
    updates = {silo: rng.normal(size=1000).astype(np.float32) * 10.0 ** rng.integers(-6, 6) for silo in range(7)}
    weights = {silo: float(rng.integers(1, 500)) for silo in range(7)}
    backwards = dict(reversed(updates.items()))
    np.testing.assert_array_equal(weighted_mean(updates, weights), weighted_mean(backwards, weights))


def test_the_mean_is_summed_in_float64() -> None:
    big, small = np.float32(2**24), np.float32(1.0)  # in float32, 2^24 + 1 = 2^24
    updates = {0: np.array([big]), 1: np.array([small]), 2: np.array([-big])}
    assert weighted_mean(updates, {0: 1.0, 1: 1.0, 2: 1.0})[0] == pytest.approx(1 / 3, rel=1e-9)


def test_impossible_means_are_refused() -> None:
    with pytest.raises(FederationError, match="no update"):
        weighted_mean({}, {})
    with pytest.raises(FederationError, match="different lengths"):
        weighted_mean({0: np.zeros(2, np.float32), 1: np.zeros(3, np.float32)}, {0: 1.0, 1: 1.0})
