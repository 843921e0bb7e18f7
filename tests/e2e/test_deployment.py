"""Coordinator and silos as their operators run them, each on a host of its own: certificates, keys, processes and files are real.

Hosts are network namespaces; where those are not permitted, everybody is on loopback.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from common.bundle.files import load_bundle
from common.privacy.signing import load_key
from server.checkpoint import read_final
from simulations.trial.consortium import federation, twin
from simulations.trial.hosts import Host, hosts
from tests.e2e.deployed import NAMES, PROTECTED, UNPROTECTED, accepted_by_the_audit


@pytest.fixture(scope="module")
def machines() -> Iterator[Mapping[str, Host]]:
    with hosts(["coordinator", *NAMES]) as found:
        yield found


@pytest.mark.parametrize(
    ("source", "model"),
    [
        pytest.param("synthetic", {}, id="tiny"),
        pytest.param("ml-100k", {"encoder": "minilm", "backbone": "minilm"}, id="ml-100k-minilm", marks=pytest.mark.slow),
    ],
)
def test_three_silos_end_with_a_signed_bundle_and_ledgers_that_the_audit_accepts(
    tmp_path: Path, machines: Mapping[str, Host], source: str, model: Mapping[str, object]
) -> None:
    with federation(tmp_path, machines, NAMES, policy=PROTECTED, source=source) as trial:
        privacy = {"mode": "silo", "epsilon": 8.0, "delta": 1e-3}
        config = trial.configure(
            privacy=privacy, model=model, training={"sampling_probability": 0.5}, federation={"ask_budgets": True}
        )
        for name in NAMES:
            trial.start_silo(name)
        trial.finish(trial.start_server(config), 900.0)

        assert [event["round"] for event in trial.rounds()] == [0, 1, 2, 3, 4, 5]
        assert all(event["answered"] == [0, 1, 2] for event in trial.rounds())
        folder = trial.run_folder()
        bundle = load_bundle(folder / "run.bundle", load_key(trial.coordinator.key).public_key)
        assert len(bundle.catalogue) == len((trial.folder / "data" / "catalogue.jsonl").read_text().splitlines())
        verified = accepted_by_the_audit(trial)
        assert verified.check("answers").outcome == "holds"
        assert {ledger["of_this_run"] for ledger in verified.ledgers} == {6}

        told = trial.command("coordinator", "status", str(folder), "--json")
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["state"] == "finished"
        for key in trial.folder.rglob("*.key"):
            assert stat.S_IMODE(key.stat().st_mode) == 0o600, key


def test_the_network_changes_no_bit_of_the_result(tmp_path: Path, machines: Mapping[str, Host]) -> None:
    with federation(tmp_path, machines, NAMES, policy=UNPROTECTED) as trial:
        config = trial.configure(federation={"rounds": 2})
        undisturbed = twin(trial, tmp_path / "twin", config)
        for name in NAMES:
            trial.start_silo(name)
        trial.finish(trial.start_server(config, "--no-bundle"))
        np.testing.assert_array_equal(read_final(trial.run_folder()), undisturbed)
