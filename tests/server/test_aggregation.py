"""Averages and server optimisers against loops over single numbers and against Flower's own FedAdam."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam

from common.config import FederationConfig
from common.errors import FederationError
from server.aggregation import averaged, fedadam, fedavg, kept, weighted_mean
from simulations.grid import InProcessGrid


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


def test_fedavg_adds_the_scaled_update() -> None:
    config = FederationConfig(server_learning_rate=0.5)
    stepped = fedavg(np.array([1.0, 2.0], np.float32), np.array([4.0, -2.0]), {}, config)
    np.testing.assert_array_equal(stepped.vector, np.array([3.0, 1.0], np.float32))
    assert stepped.vector.dtype == np.float32
    assert stepped.state == {}


CONFIG = FederationConfig(
    server_optimizer="fedadam", server_learning_rate=0.1, server_beta1=0.8, server_beta2=0.95, server_tau=0.01
)


def updates(n_rounds: int = 5, n: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.normal(size=n) * 0.2 for _ in range(n_rounds)]


def test_fedadam_is_algorithm_2_of_reddi_et_al() -> None:
    """Number by number with Python's own floats."""
    start = [0.5, -1.0, 2.0, 0.0]
    expected = list(start)
    m, v = [0.0] * 4, [0.01**2] * 4
    for delta in updates():
        for i in range(4):
            m[i] = 0.8 * m[i] + 0.2 * float(delta[i])
            v[i] = 0.95 * v[i] + 0.05 * float(delta[i]) ** 2
            expected[i] += 0.1 * m[i] / (math.sqrt(v[i]) + 0.01)
    vector, state = np.array(start, np.float32), {}
    for delta in updates():
        stepped = fedadam(vector, delta, state, CONFIG)
        vector, state = stepped.vector, stepped.state
    np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state["m"], m, rtol=1e-12)
    np.testing.assert_allclose(state["v"], v, rtol=1e-12)


def test_fedadams_moments_are_those_of_flowers_fedadam() -> None:
    """Flower starts v at 0 and corrects the learning rate for the bias; the moments differ only by v's start, β₂ᵗτ².

    Its first moment is kept over the same differences of the averaged model to the last one.
    """
    app = ClientApp()
    deltas = updates()

    @app.train()
    def _(message: Message, context: Context) -> Message:
        number = int(message.content["config"]["server-round"])
        x = message.content["arrays"]["x"].numpy() + deltas[number - 1]
        records = {"arrays": ArrayRecord({"x": Array(x)}), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(records), reply_to=message)

    theirs = FedAdam(fraction_evaluate=0.0, eta=0.1, beta_1=0.8, beta_2=0.95, tau=0.01, min_train_nodes=1, min_available_nodes=1)
    theirs.start(InProcessGrid(app, 1), ArrayRecord({"x": Array(np.zeros(4))}), len(deltas), train_config=ConfigRecord())
    vector, state = np.zeros(4, np.float32), {}
    for delta in deltas:
        stepped = fedadam(vector, delta, state, CONFIG)
        vector, state = stepped.vector, stepped.state
    np.testing.assert_allclose(state["m"], theirs.m_t["x"], rtol=1e-9)
    np.testing.assert_allclose(state["v"] - 0.95 ** len(deltas) * 0.01**2, theirs.v_t["x"], rtol=1e-9)


def test_the_running_average_is_that_of_a_loop_and_leaves_the_rounds_alone() -> None:
    config = FederationConfig(server_averaging=0.6)
    rng = np.random.default_rng(3)
    vector, state = rng.normal(size=7).astype(np.float32), {}
    adapters = []
    for _ in range(5):
        update = rng.normal(size=7)
        stepped = averaged(fedavg(vector, update, state, config), state, config)
        np.testing.assert_array_equal(stepped.vector, (vector + update).astype(np.float32))
        vector, state = stepped.vector, stepped.state
        adapters.append(vector.astype(np.float64))
    weights = np.array([0.6**4, *(0.4 * 0.6 ** (4 - r) for r in range(1, 5))])
    assert weights.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(kept(vector, state), weights @ np.stack(adapters), rtol=1e-6)


def test_without_averaging_the_last_adapter_is_handed_out() -> None:
    config = FederationConfig()
    stepped = averaged(fedavg(np.zeros(3, np.float32), np.ones(3), {}, config), {}, config)
    assert stepped.state == {}
    np.testing.assert_array_equal(kept(stepped.vector, stepped.state), np.ones(3, np.float32))
