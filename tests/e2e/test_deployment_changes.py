"""A consortium that changes while a run goes on: a silo joins, and the coordinator gets another signing key."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import tomli_w

from common.bundle.files import load_bundle
from common.config import read_toml
from common.data.dealing import declare_users
from common.privacy.transcript import FILE, read_transcript
from server.checkpoint import read_final
from simulations.trial.consortium import Federation, federation
from simulations.trial.hosts import Host, hosts
from tests.e2e.deployed import NAMES, PROTECTED, accepted_by_the_audit

pytestmark = pytest.mark.slow

EVERYBODY = (*NAMES, "east")


@pytest.fixture(scope="module")
def machines() -> Iterator[Mapping[str, Host]]:
    with hosts(["coordinator", *EVERYBODY]) as found:
        yield found


def allow(trial: Federation, name: str, *keys: str) -> None:
    """Put a policy in force that allows these coordinators and no others."""
    home = trial.silo(name)
    home.policy.write_text(tomli_w.dumps({**read_toml(home.policy), "coordinators": list(keys)}))
    command = ("ledger", "amend", str(home.folder), "--policy", str(home.policy), "--reason", "the coordinator's key")
    done = trial.command(name, *command)
    assert done.returncode == 0, done.stderr


def rotated(trial: Federation, folder: Path, *options: str) -> dict[str, str]:
    done = trial.command("coordinator", "consortium", "rotate", str(folder), *options, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_run_goes_on_with_a_silo_that_joins_and_under_another_signing_key(tmp_path: Path, machines: Mapping[str, Host]) -> None:
    with federation(tmp_path, machines, NAMES, policy=PROTECTED, spare=("east",)) as trial:
        old = (trial.coordinator.folder / "coordinator.key.pub").read_text().strip()
        waits = rotated(trial, trial.coordinator.folder)
        new = waits["public_key"]
        for name in NAMES:
            allow(trial, name, old, new)
            trial.start_silo(name)
        config = trial.configure(
            privacy={"mode": "silo", "epsilon": 8.0, "delta": 1e-3},
            training={"sampling_probability": 0.5},
            federation={"rounds": 7, "round_pause": 3.0},
        )
        server = trial.start_server(config)

        def after(round: int, run: str) -> None:
            trial.until(lambda: any(event["round"] >= round for event in trial.rounds(run)), 240.0, f"round {round} of {run}")

        after(1, "run")
        data = trial.folder / "data" / "silo-3.csv"
        users = {row["user"] for row in csv.DictReader(data.open(encoding="utf-8"))}
        trial.invite_and_admit("east", data, declare_users(len(users)), PROTECTED)
        allow(trial, "east", old, new)
        trial.start_silo("east")
        first = trial.until(lambda: trial.rounds("run-2"), 240.0, "the run with a fourth silo")[0]["round"]
        after(first + 1, "run-2")
        rotated(trial, trial.authority, "--signing-key", waits["file"])
        trial.finish(server, 600.0)

        rounds = {run: [event["round"] for event in trial.rounds(run)] for run in ("run", "run-2", "run-3")}
        assert [number for run in rounds.values() for number in run] == list(range(8)), rounds
        assert all(rounds.values())
        assert any(3 in event["answered"] for event in trial.rounds("run-2"))
        assert any(3 in event["answered"] for event in trial.rounds("run-3"))
        signers = [read_transcript(trial.run_folder(run) / FILE).run["coordinator"] for run in rounds]
        assert signers == [old, old, new]
        accepted_by_the_audit(trial, "run", NAMES)
        accepted_by_the_audit(trial, "run-2", EVERYBODY)
        accepted_by_the_audit(trial, "run-3", EVERYBODY)
        load_bundle(trial.run_folder("run-3") / "run-3.bundle", new)
        assert read_final(trial.run_folder("run-3")) is not None
