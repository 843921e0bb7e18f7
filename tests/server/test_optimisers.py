"""Server optimisers against loops over single numbers, PyTorch's Adam and Flower's own FedAdam."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam

from common.config import FederationConfig
from common.errors import FederationError
from server.checkpoint import Checkpoint, load, save
from server.optimisers import OPTIMISERS, Stepped, adam, adam_bc, averaged, fedadam, fedavg, kept
from simulations.grid import InProcessGrid


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


def of_all_sizes(n_rounds: int = 20, n: int = 60) -> list[np.ndarray]:
    """Pseudo-gradients from far below ``server_tau`` to far above it, and one number that never moves."""
    rng = np.random.default_rng(4)
    sizes = np.concatenate([[0.0], np.logspace(-7, 3, n - 1)])
    return [sizes * rng.normal(loc=0.3, size=n) for _ in range(n_rounds)]


def steps_of(name: str, updates: list[np.ndarray], config: FederationConfig, noise: list[float]) -> list[Stepped]:
    """Each round's step from 0, so that float32 holds the step itself to seven digits however far the adapter is."""
    out, state = [], {}
    for update, noise_std in zip(updates, noise, strict=True):
        out.append(OPTIMISERS[name](np.zeros(len(update), np.float32), update, state, config, noise_std))
        state = out[-1].state
    return out


ADAM = FederationConfig(server_learning_rate=0.3, server_beta1=0.8, server_beta2=0.95, server_tau=0.01)


def test_adam_is_pytorchs_adam_along_the_update() -> None:
    """Twenty steps; PyTorch goes against a gradient, the coordinator along an update."""
    updates = of_all_sizes()
    parameter = torch.zeros(60, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.Adam([parameter], lr=0.3, betas=(0.8, 0.95), eps=0.01)
    vector, state = np.zeros(60, np.float32), {}
    for update, stepped in zip(updates, steps_of("adam", updates, ADAM, [0.0] * 20), strict=True):
        before = parameter.detach().numpy().copy()
        parameter.grad = torch.from_numpy(-update)
        theirs.step()
        np.testing.assert_allclose(stepped.vector, parameter.detach().numpy() - before, rtol=2e-7, atol=1e-15)
        in_a_row = adam(vector, update, state, ADAM)
        vector, state = in_a_row.vector, in_a_row.state
        np.testing.assert_allclose(state["m"], -theirs.state[parameter]["exp_avg"].numpy(), rtol=1e-12)
        np.testing.assert_allclose(state["v"], theirs.state[parameter]["exp_avg_sq"].numpy(), rtol=1e-12)
    assert state["t"] == theirs.state[parameter]["step"] == 20
    np.testing.assert_allclose(vector, parameter.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert vector[0] == 0
    assert np.abs(vector[-1]) > 1


def test_adam_does_not_look_at_the_noise() -> None:
    updates = of_all_sizes(5)
    blind, told = (steps_of("adam", updates, ADAM, [std] * 5) for std in (0.0, 7.0))
    for one, other in zip(blind, told, strict=True):
        np.testing.assert_array_equal(one.vector, other.vector)


def test_adam_bc_is_algorithm_1_of_tang_et_al() -> None:
    """Number by number with Python's own floats: v̂ - Φ where that is above the floor, the floor where it is not."""
    phi, floor = 0.5**2, 0.01**2
    m, v = [0.0] * 60, [0.0] * 60
    floored = 0
    updates = of_all_sizes()
    for t, (update, stepped) in enumerate(zip(updates, steps_of("adam-bc", updates, ADAM, [0.5] * 20), strict=True), start=1):
        expected = []
        for i, delta in enumerate(update.tolist()):
            m[i] = 0.8 * m[i] + 0.2 * delta
            v[i] = 0.95 * v[i] + 0.05 * delta**2
            corrected = v[i] / (1 - 0.95**t) - phi
            floored += corrected < floor
            expected.append(0.3 * (m[i] / (1 - 0.8**t)) / math.sqrt(max(corrected, floor)))
        np.testing.assert_allclose(stepped.vector, expected, rtol=2e-7, atol=1e-15)
    assert 0.2 * 1200 < floored < 0.8 * 1200, "both sides of the floor were seen"


def test_rounds_of_unequal_noise_are_each_corrected_by_their_own() -> None:
    """``v̂ - Φ`` is the weighted mean over rounds of ``Δ² - noise²``, with the weights of bias-corrected ``v̂``."""
    noise = [0.1, 0.5, 0.0, 0.3, 0.2]
    updates = of_all_sizes(5)
    for t, stepped in enumerate(steps_of("adam-bc", updates, ADAM, noise), start=1):
        of_m, of_v = (np.array([beta ** (t - s) for s in range(1, t + 1)]) for beta in (0.8, 0.95))
        m = of_m / of_m.sum() @ np.stack(updates[:t])
        v = of_v / of_v.sum() @ np.stack([u**2 - std**2 for u, std in zip(updates[:t], noise[:t], strict=True)])
        expected = 0.3 * m / np.sqrt(np.maximum(v, 0.01**2))
        np.testing.assert_allclose(stepped.vector, expected, rtol=1e-6, atol=1e-15)


def test_what_is_left_of_the_second_moment_is_the_signals() -> None:
    """Noise of standard deviation 1 on a signal of 0.1; a seeded draw, within five standard errors of a hundredth."""
    rng = np.random.default_rng(5)
    n, rounds = 200_000, 40
    noise = [1.0, 0.8] * (rounds // 2)
    state = steps_of("adam-bc", [0.1 + std * rng.normal(size=n) for std in noise], ADAM, noise)[-1].state
    left = (state["v"] - state["noise"]) / (1 - 0.95 ** state["t"])
    error = left.std() / np.sqrt(n)
    assert error < 0.001
    assert abs(left.mean() - 0.01) < 5 * error


def test_without_noise_adam_bc_is_adam_with_a_floor_instead_of_an_addend() -> None:
    updates = [np.array([0.5, -3.0])] * 3
    config = FederationConfig(server_learning_rate=0.3, server_tau=1e-12)
    for one, other in zip(
        steps_of("adam", updates, config, [0.0] * 3), steps_of("adam-bc", updates, config, [0.0] * 3), strict=True
    ):
        np.testing.assert_allclose(one.vector, [0.3, -0.3], rtol=1e-6)
        np.testing.assert_allclose(one.vector, other.vector, rtol=1e-6)


@pytest.mark.parametrize("noise_std", [-0.1, math.nan, math.inf])
def test_noise_that_is_no_standard_deviation_is_refused(noise_std: float) -> None:
    for step in (adam, adam_bc):
        with pytest.raises(FederationError, match="standard deviation"):
            step(np.zeros(2, np.float32), np.ones(2), {}, ADAM, noise_std)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimisers_state_survives_a_checkpoint(name: str, tmp_path: Path) -> None:
    """Interrupted after each round, or never: the same adapters to the bit."""
    config = FederationConfig(server_learning_rate=0.3, server_averaging=0.5)
    whole = again = Checkpoint("c" * 64, "m" * 64, np.linspace(-1, 1, 60, dtype=np.float32))

    def after(state: Checkpoint, update: np.ndarray) -> Checkpoint:
        stepped = OPTIMISERS[name](state.vector, update, state.optimiser, config, 0.2)
        stepped = averaged(stepped, state.optimiser, config)
        return Checkpoint(state.config_hash, state.manifest_hash, stepped.vector, state.round + 1, stepped.state)

    for update in of_all_sizes(6):
        whole, again = after(whole, update), after(again, update)
        save(tmp_path, again)
        loaded = load(tmp_path, config_hash="c" * 64, manifest_hash="m" * 64)
        assert loaded is not None
        assert {name: value.dtype for name, value in loaded.optimiser.items()} == dict.fromkeys(again.optimiser, np.float64)
        again = loaded
    np.testing.assert_array_equal(again.vector, whole.vector)
    assert again.optimiser.keys() == whole.optimiser.keys()
    for key, value in whole.optimiser.items():
        np.testing.assert_array_equal(again.optimiser[key], value)
    if name.startswith("adam"):
        assert again.optimiser["t"].tolist() == [6.0]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_can_be_chosen(name: str) -> None:
    assert FederationConfig(server_optimizer=name).server_optimizer == name  # type: ignore[arg-type]


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
