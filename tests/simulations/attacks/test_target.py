"""The model under attack is the one that a federation would hand out, and its losses are those of the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from common.data.population import load_population
from common.errors import PrivacyError
from common.model.adapter import from_vector
from common.model.resident import resident
from common.privacy.plan import plan_for
from server.app import start_of
from server.exchange import Roster
from server.federation import run_federation
from simulations.attacks.target import check_fits, mean_losses, some_users, trained_adapter
from tests import tiny
from tests.simulations.attacks import attacked_silo


@pytest.mark.parametrize(
    "settings",
    [
        {"federation__rounds": 3, "federation__server_averaging": 0.5},
        {"federation__server_optimizer": "fedadam", "federation__server_learning_rate": 0.01, "model__bias_weight": 0.0},
    ],
)
def test_the_target_is_what_a_federation_of_one_silo_hands_out(settings: dict[str, Any]) -> None:
    """Bit for bit, in mode none, where the seed decides everything: with running averages, with FedAdam and without a count."""
    from client.silo_data import SiloData

    config = tiny.config(partition__silos=1, **settings)
    handed_out = run_federation(tiny.grid(config), config, start_of(config), Roster.of(config.federation)).vector
    data = SiloData.from_dataset(load_population(config).training_data(0), config)
    declared = config.federation.declared_users[0]
    ours = trained_adapter(config, data, plan_for(config, declared, declared), seed=config.run.seed)
    np.testing.assert_array_equal(ours, handed_out)
    assert not np.array_equal(ours, resident(config).start)


def test_losses_are_those_of_each_user_alone() -> None:
    config = attacked_silo.config()
    silo = some_users(attacked_silo.data(config), range(9))
    silo = replace(silo, histories=(*silo.histories[:7], silo.histories[7][:1], silo.histories[8][:0]))
    vector, home = attacked_silo.moved_start(config), resident(config)
    found = mean_losses(config, silo, vector)
    from_vector(home.model, vector, home.manifest)
    for user, history in enumerate(silo.histories[:7]):
        recent = history[-(silo.window + 1) :]
        with torch.inference_mode():
            scores = home.model(silo.batch([user])[0])[0, : len(recent) - 1].double()
        expected = -torch.log_softmax(scores, -1)[torch.arange(len(recent) - 1), torch.tensor(recent[1:].astype(np.int64))].mean()
        assert found[user] == pytest.approx(float(expected), abs=1e-5)
    assert np.isnan(found[7:]).all()


def test_some_users_keep_their_own_history_text_and_held_out_item() -> None:
    config = attacked_silo.config()
    silo = attacked_silo.data(config)
    n = len(silo.histories)
    silo = replace(silo, text=tuple((user,) for user in range(n)), held_out=np.arange(n, dtype=np.int32))
    part = some_users(silo, [5, 2])
    assert part.text == ((5,), (2,))
    assert part.held_out is not None
    assert part.held_out.tolist() == [5, 2]
    np.testing.assert_array_equal(part.histories[1], silo.histories[2])


def test_what_does_not_belong_together_is_refused() -> None:
    config = attacked_silo.config()
    silo, plan = attacked_silo.data(config), attacked_silo.plan(config)
    with pytest.raises(PrivacyError, match="mode 'silo'"):
        check_fits(config, silo, replace(plan, mode="silo"))
    with pytest.raises(PrivacyError, match="7 items, the run's catalogue has 60"):
        check_fits(config, replace(silo, n_items=7), plan)
