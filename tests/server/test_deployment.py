"""What a coordinator is to run: the roster's numbers in the configuration, and the folder to go on in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import tomli_w

from common.config import Config, load
from common.consortium.authority import Authority
from common.consortium.home import AuthorityHome
from common.consortium.roster import Consortium, read_signed
from common.consortium.signing_key import renew_signing_key
from common.errors import ConfigError
from common.privacy.transcript import FILE as TRANSCRIPT
from common.privacy.transcript import Transcript
from common.protocol import config_hash
from server.checkpoint import FINAL, Checkpoint, save
from server.deployment import Deployment, configured, ordered
from server.federation import facts_of_run
from server.link import Link
from simulations.trial.consortium import Federation, federation
from simulations.trial.hosts import Host

POLICY = {"modes": ["none"], "delta": 1e-4}


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Federation]:
    hosts = {name: Host(name, "127.0.0.1") for name in ("coordinator", "north", "south", "west")}
    with federation(tmp_path, hosts, ["north", "south", "west"], policy=POLICY, spare=["east"]) as found:
        yield found


def roster(trial: Federation) -> Consortium:
    return read_signed(trial.coordinator.roster, trial.coordinator.authority)


def configuration(trial: Federation, **changes: dict[str, object]) -> Config:
    return configured(trial.configure(**changes), roster(trial))


def finish_round(folder: Path, config: Config, round: int) -> None:
    """What a run leaves after a round."""
    transcript = Transcript(folder / TRANSCRIPT, facts_of_run(config, "0" * 64))
    vector = np.full(3, round, np.float32)
    save(folder, Checkpoint(config_hash(config), "0" * 64, vector, round, transcript=transcript.mark, seed=config.run.seed))


def test_the_roster_gives_number_users_and_coordinator(trial: Federation) -> None:
    config, found = configuration(trial), roster(trial)
    assert config.partition.silos == 3
    assert config.federation.declared_users == found.declared_users == tuple(trial.declared.values())
    assert config.federation.coordinator == found.coordinator


@pytest.mark.parametrize(("key", "value"), [("declared_users", [1, 2, 3]), ("coordinator", "ab" * 32)])
def test_a_configuration_that_says_otherwise_is_refused(trial: Federation, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"federation.{key} is another one than in the roster"):
        configuration(trial, federation={key: value})


def test_an_empty_roster_is_told_what_to_do(trial: Federation, tmp_path: Path) -> None:
    nobody = Consortium(**{**vars(roster(trial)), "members": ()})
    with pytest.raises(ConfigError, match="silorec consortium invite"):
        configured(trial.configure(), nobody)


def test_a_run_that_was_begun_goes_on_in_its_folder(trial: Federation) -> None:
    config = configuration(trial)
    first = ordered(trial.coordinator, config)
    assert first.folder == trial.run_folder()
    assert load(first.folder / "config.toml") == config
    assert ordered(trial.coordinator, config) == first


def test_a_finished_run_and_another_configuration_are_no_place_to_go_on(trial: Federation) -> None:
    config = configuration(trial)
    folder = ordered(trial.coordinator, config).folder
    with pytest.raises(ConfigError, match=r"this run has other settings \(it has another federation.rounds\)"):
        ordered(trial.coordinator, configuration(trial, federation={"rounds": 9}))
    (folder / FINAL).write_bytes(b"")
    with pytest.raises(ConfigError, match="has finished; give the next one another name"):
        ordered(trial.coordinator, config)


def test_a_silo_that_joins_makes_a_successor_that_begins_where_the_run_was(trial: Federation) -> None:
    before = configuration(trial)
    folder = ordered(trial.coordinator, before).folder
    finish_round(folder, before, 2)
    trial.invite_and_admit("east", trial.folder / "data" / "silo-3.csv", 7, POLICY)
    after = configuration(trial)
    second = ordered(trial.coordinator, after)
    assert second.folder == trial.run_folder("run-2")
    assert second.config.federation.declared_users == (*before.federation.declared_users, 7)
    assert (second.folder / "checkpoint.safetensors").exists()
    assert ordered(trial.coordinator, after) == second


def test_another_signing_key_makes_a_successor_too(trial: Federation) -> None:
    before = configuration(trial)
    folder = ordered(trial.coordinator, before).folder
    finish_round(folder, before, 2)
    authority = Authority(AuthorityHome(trial.authority / "authority"))
    authority.change_signing_key(renew_signing_key(trial.coordinator))
    after = configuration(trial)
    assert after.federation.coordinator != before.federation.coordinator
    second = ordered(trial.coordinator, after)
    assert (second.folder, second.config) == (trial.run_folder("run-2"), after)
    assert (second.folder / "checkpoint.safetensors").exists()


def test_a_run_that_dies_before_it_hears_of_the_new_key_goes_on_as_the_successor(trial: Federation) -> None:
    """Under the old configuration it could not be started again: the old key is gone."""
    control = SimpleNamespace(status=lambda run: "finished:failed")
    link = SimpleNamespace(
        home=trial.coordinator, consortium=roster(trial), starts=1, told=print, clock=lambda: 0.0, control=control
    )
    deployment = Deployment(cast(Link, link), trial.configure())
    finish_round(deployment.order.folder, deployment.order.config, 2)
    authority = Authority(AuthorityHome(trial.authority / "authority"))
    link.consortium = authority.change_signing_key(renew_signing_key(trial.coordinator))
    deployment._look_at_roster()
    deployment._running.run, deployment._running.link_starts = 5, 1
    deployment._look_at_run()
    assert (deployment.order.folder, deployment._running.run) == (trial.run_folder("run-2"), None)
    assert deployment.order.config.federation.coordinator == link.consortium.coordinator


def test_where_a_smaller_silo_would_change_delta_the_run_goes_on_without_it(
    trial: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    private = {"mode": "silo"}
    before = configuration(trial, privacy=private)
    folder = ordered(trial.coordinator, before).folder
    finish_round(folder, before, 1)
    trial.invite_and_admit("east", trial.folder / "data" / "silo-3.csv", 2, POLICY)
    again = ordered(trial.coordinator, configuration(trial, privacy=private))
    assert again.folder == folder
    assert again.config == before
    assert "takes no part in run" in caplog.text


def test_settings_can_be_changed_by_hand_as_everywhere(trial: Federation) -> None:
    source = trial.folder / "more.toml"
    source.write_text(tomli_w.dumps({"name": "more", "data": {"source": "synthetic"}}))
    assert configured(source, roster(trial), ["federation.rounds=7"]).federation.rounds == 7
