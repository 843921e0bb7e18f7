"""Versions, settings, data, models, policy, ledger, and the machine: each fault is named, with what to do."""

from __future__ import annotations

import importlib.metadata
import resource
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from common.doctor.machine import available_memory, ephemeral_ports, keeps_time, version_of
from common.doctor.versions import requirements
from common.privacy.events import GaussianCount
from common.privacy.ledger import Ledger
from common.privacy.policy import Proposal, read_policy
from common.privacy.signing import create_key, load_key
from tests.common.doctor.deployment import Deployment
from tests.common.doctor.looking import faults, look, says, the_only

BEHIND, AHEAD = -1, 1


def installed(**versions: str | None) -> dict[str, Any]:
    """A machine on which some packages are of another version, or missing."""
    return {"version_of": lambda name: versions[name] if name in versions else version_of(name)}


def test_an_old_python(deployment: Deployment) -> None:
    found = the_only(look(deployment, "python", python_version=(3, 10, 4)), "problem")
    assert says(found, r"Python 3\.10\.4 runs this, silorec needs >=3\.11", "virtual environment")


def test_packages_that_are_missing_or_do_not_suit(deployment: Deployment) -> None:
    missing, old = faults(look(deployment, "packages", **installed(opacus=None, torch="2.4.1+cu121")))
    assert says(missing, "opacus is not installed", r"pip install -c constraints\.txt 'silorec\[client\]'")
    assert says(old, r"torch is 2\.4\.1\+cu121, silorec\[client\] needs >=2\.11", "pip install")
    assert missing.outcome == old.outcome == "problem"


def test_a_local_build_of_the_right_version_suits(deployment: Deployment) -> None:
    assert not faults(look(deployment, "packages", **installed(torch="2.13.0+cu130")))


def test_the_coordinator_needs_other_packages_than_a_silo(deployment: Deployment) -> None:
    without = installed(opacus=None)
    assert not faults(look(deployment, "packages", "coordinator", **without))
    assert says(
        the_only(look(deployment, "packages", "coordinator", **installed(onnx=None)), "problem"),
        "onnx is not installed",
        "server",
    )


def test_requirements_follow_silorecs_own_extras() -> None:
    """Counted again from pyproject.toml, by hand."""
    names = {requirement.name for requirement in requirements(("client",))}
    assert {"numpy", "torch", "peft", "flwr", "opacus", "mpmath"} <= names
    assert names.isdisjoint({"onnx", "ray", "pytest", "fastapi", "silorec"})
    base = {requirement.name for requirement in requirements(())}
    written = [Requirement(line) for line in importlib.metadata.requires("silorec") or []]
    assert base == {requirement.name for requirement in written if requirement.marker is None}


def test_another_flower_at_the_coordinator(deployment: Deployment) -> None:
    ours = str(version_of("flwr"))
    deployment.server.facts = {"flwr": ours + ".post1"}
    assert says(the_only(look(deployment, "other side"), "warning"), f"Flower {ours}.post1, this silo {ours}$")
    deployment.server.facts = {"flwr": "1.40.0"}
    found = the_only(look(deployment, "other side"), "problem")
    assert says(found, r"the coordinator runs Flower 1\.40\.0, this silo .*: they do not speak the same protocol", "same silorec")


def test_another_silorec_at_the_coordinator(deployment: Deployment) -> None:
    deployment.server.facts = {"version": "9.0.0\x1b[31m"}
    assert says(the_only(look(deployment, "other side"), "warning"), r"the coordinator runs silorec 9\.0\.0\?\?31m, this silo")
    deployment.server.facts = {"protocol": 2}
    assert says(
        the_only(look(deployment, "other side"), "problem"), "the coordinator speaks protocol 2, this silo", "same silorec"
    )


def test_settings_that_are_wrong(deployment: Deployment) -> None:
    deployment.set(devise="cpu")
    assert says(
        the_only(look(deployment, "settings"), "problem"), r"silo\.toml: unknown setting 'devise'; did you mean 'device'", "mend"
    )
    for name in ("data", "clock", "coordinator"):
        (found,) = look(deployment, name)
        assert (found.outcome, found.seen) == ("not checked", "it needs silo.toml")
    deployment.set_coordinator(listen="everywhere")
    assert says(
        the_only(look(deployment, "settings", "coordinator"), "problem"), r"coordinator\.toml: listen = 'everywhere'", "mend"
    )


def run_with(folder: Path, items: Iterator[str] | list[str]) -> Path:
    """The configuration of a run whose public catalogue names these items."""
    public = folder / f"public-{len(list(folder.iterdir()))}.csv"  # a path is read once in a process
    public.write_text("user,item,time\n" + "".join(f"p,{item},{time}\n" for item in items for time in range(3)))
    path = folder / "run.toml"
    path.write_text(f'[data]\nsource = "{public}"\nmin_user_interactions = 3\n')
    return path


def test_data_that_share_their_ids_with_the_catalogue(deployment: Deployment, tmp_path: Path) -> None:
    config = run_with(tmp_path, [f"i{number}" for number in range(9)])
    (found,) = look(deployment, "data", config=config)
    assert (found.outcome, found.seen) == ("ok", "5 of 5 of the silo's items are in the run's catalogue of 9")
    config = run_with(tmp_path, ["i0", "i1", "other"])
    assert says(the_only(look(deployment, "data", config=config), "warning"), "2 of 5 .* left out", r"map the column")
    config = run_with(tmp_path, ["other", "ids"])
    assert says(the_only(look(deployment, "data", config=config), "problem"), "0 of 5 of the silo's items", "the ids must agree")


def test_data_that_cannot_be_read(deployment: Deployment) -> None:
    shop = deployment.silo.folder / "shop.csv"
    shop.write_text("user,item,time\nann,i1,1\nbob,i2,soon\n")
    found = the_only(look(deployment, "data"), "problem")
    assert says(found, r"shop\.csv:3: ", r"\[data\] in .*silo\.toml")
    shop.unlink()
    assert says(the_only(look(deployment, "data"), "problem"), r"shop\.csv")
    shop.write_text("user,item,time\n")
    assert the_only(look(deployment, "data"), "problem")


def test_a_database_is_read_like_a_file(deployment: Deployment, tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    place = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(place)) as database:
        database.execute("CREATE TABLE sales (user TEXT, item TEXT, time INTEGER)")
        database.executemany("INSERT INTO sales VALUES (?, ?, ?)", [(f"u{n % 3}", f"i{n}", n) for n in range(12)])
        database.commit()
    deployment.set(data={"url": f"sqlite:///{place}", "query": "SELECT user, item, time FROM sales"})
    (found,) = look(deployment, "data", config=run_with(tmp_path, [f"i{n}" for n in range(6)]))
    assert says(found, "6 of 12 of the silo's items are in the run's catalogue of 6")
    assert found.outcome == "ok"
    deployment.set(data={"url": f"sqlite:///{place}", "query": "SELECT user, item, time FROM purchases"})
    assert says(the_only(look(deployment, "data"), "problem"), "purchases|query")


def test_models_that_are_not_in_the_cache(deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SILOREC_CACHE", str(tmp_path / "empty"))
    assert says(the_only(look(deployment, "assets"), "warning"), "minilm .* is not in the cache", "silorec fetch minilm")
    config = tmp_path / "tiny.toml"
    config.write_text('[model]\nbackbone = "tiny-bert"\nencoder = "hashing"\n[data]\nsource = "synthetic"\n')
    assert not faults(look(deployment, "assets", config=config))
    config.write_text('[model]\nbackbone = "someone/model"\nencoder = "hashing"\n[data]\nsource = "synthetic"\n')
    found = the_only(look(deployment, "assets", config=config), "warning")
    assert says(found, "someone/model is neither an asset of silorec nor a path", "folder of your own")


def test_a_configuration_that_is_wrong(deployment: Deployment, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("[privacy]\nepsilom = 1\n")
    assert says(the_only(look(deployment, "configuration", config=config), "problem"), "epsilom", "mend")
    (found,) = look(deployment, "data", config=config)
    assert found.outcome == "not checked"


def test_a_policy_is_held_against_the_roster(deployment: Deployment) -> None:
    deployment.set_policy(coordinators=["ab" * 32])
    assert says(
        the_only(look(deployment, "policy"), "problem"), "does not name this consortium's coordinator", "silorec ledger amend"
    )
    deployment.set_policy(declared_users=41)
    assert says(the_only(look(deployment, "policy"), "problem"), "declared_users = 41, the roster 40", "silorec ledger amend")
    deployment.set_policy(coordinators=["any"], declared_users=40)
    assert not faults(look(deployment, "policy"))
    deployment.set_policy(epsilon=-1)
    assert says(the_only(look(deployment, "policy"), "problem"), "epsilon = -1", "mend")
    deployment.silo.policy.unlink()
    assert says(the_only(look(deployment, "policy"), "problem"), "there is no policy", "budgets")


def test_a_ledger_that_is_missing_or_damaged(deployment: Deployment) -> None:
    ledger = deployment.silo.ledger
    ledger.write_bytes(ledger.read_bytes().replace(b'"silo"', b'"sila"'))
    found = faults(look(deployment, "ledger"))
    assert [says(one, r"ledger\.sqlite", "restore all files") for one in found] == [True]
    for file in ledger.parent.glob("ledger.sqlite*"):
        file.unlink()
    assert says(
        the_only(look(deployment, "ledger"), "problem"), "there is no ledger", f"silorec ledger init {ledger.parent} --policy"
    )
    (found,) = look(deployment, "budget")
    assert (found.outcome, found.seen) == ("not checked", "it needs the ledger")


def test_a_ledger_of_another_key(deployment: Deployment) -> None:
    deployment.silo.identity_key.unlink()
    create_key(deployment.silo.identity_key)
    assert says(
        the_only(look(deployment, "ledger"), "problem"), "the ledger is that of key .* nothing can be charged", "same copy"
    )


def test_a_policy_that_is_not_in_force(deployment: Deployment) -> None:
    assert not faults(look(deployment, "ledger"))
    deployment.set_policy(epsilon=9.0)
    found = the_only(look(deployment, "ledger"), "warning")
    assert says(found, "is not the policy that the ledger has in force", "silorec ledger amend")
    ledger = Ledger.open(deployment.silo.ledger, load_key(deployment.silo.identity_key))
    ledger.amend(read_policy(deployment.silo.policy), "more")
    assert not faults(look(deployment, "ledger"))
    ledger.close("enough")
    assert says(the_only(look(deployment, "ledger"), "problem"), "the ledger is closed")


def test_a_clock_behind_the_ledgers_last_entry(deployment: Deployment) -> None:
    found = the_only(look(deployment, "ledger", clock=lambda: time.time() - 500), "problem")
    assert says(found, r"the last entry is \d+ s in the future: the clock has gone back", "timedatectl")


@pytest.mark.parametrize(("share", "outcome"), [(0.85, None), (0.95, "warning"), (1.0, "problem")])
def test_what_is_left_of_the_budget(deployment: Deployment, share: float, outcome: str | None) -> None:
    """A Gaussian release at order a costs a / (2 sigma^2) (Mironov 2017), so sigma follows from the share that is to be spent."""
    silo, run = deployment.silo, "ab" * 32
    ledger = Ledger.open(silo.ledger, load_key(silo.identity_key))
    (limit,) = ledger.policy.limits
    order = ledger.policy.order or 0.0
    sigma = (order / (2 * share * limit.rdp_budget)) ** 0.5 * (1 + 1e-12)
    coordinator = load_key(deployment.coordinator.key).public_key
    ledger.reserve(Proposal(run, coordinator, "silo", "query.count", 0, GaussianCount(sigma, 1.0), declared_users=40), "cd" * 32)
    found = look(deployment, "budget")
    assert f"{share:.0%} of the room" in found[0].seen
    if outcome is None:
        assert not faults(found)
    else:
        assert says(the_only(found, outcome), r"epsilon [\d.]+ of 8 is spent at delta 1e-05", "silorec ledger amend")
        assert ("nothing more is released" in found[0].seen) == (outcome == "problem")


@pytest.mark.parametrize(
    ("off", "outcome", "words"),
    [
        (1.0, None, "1.0 s ahead"),
        (3.5, "warning", "3.5 s ahead"),
        (8.0, "problem", "8.0 s ahead.*: Flower refuses a node that is more than 5 s ahead"),
        (-20.0, None, "20.0 s behind"),
        (-40.0, "warning", "40.0 s behind"),
        (-600.0, "problem", "600.0 s behind.*: Flower refuses a node that is more than 300 s behind"),
        (600.0, "problem", "600.0 s ahead"),
    ],
)
def test_the_clock_against_the_coordinators(deployment: Deployment, off: float, outcome: str | None, words: str) -> None:
    found = look(deployment, "clock", clock=lambda: time.time() + off)
    if outcome is None:
        assert not faults(found)
        assert says(found[0], words)
    else:
        assert says(the_only(found, outcome), words, "timedatectl set-ntp true")


def test_flowers_own_limits_are_the_ones_that_are_held() -> None:
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    from common.doctor import resources

    assert (resources.BEHIND, resources.AHEAD) == (TIMESTAMP_TOLERANCE, SYSTEM_TIME_TOLERANCE)


@pytest.mark.parametrize("status", [200, 404])
def test_the_clock_by_the_date_of_any_answer(deployment: Deployment, status: int) -> None:
    deployment.server.facts, deployment.server.status = {"time": None}, status
    found = the_only(look(deployment, "clock", clock=lambda: time.time() - 1000), "problem")
    assert says(found, r"(999|1000|1001)\.\d s behind the coordinator's \(give or take 0\.5 s\)")


def test_a_clock_that_nobody_keeps(deployment: Deployment) -> None:
    assert says(the_only(look(deployment, "time keeping", keeps_time=lambda: False), "warning"), "nothing keeps", "set-ntp")
    assert not look(deployment, "time keeping", keeps_time=lambda: None)


@pytest.mark.parametrize(("free", "outcome"), [(2.1e9, None), (1.9e9, "warning"), (199e6, "problem")])
def test_room_on_the_disk(deployment: Deployment, free: float, outcome: str | None) -> None:
    found = look(deployment, "disk", free_bytes=lambda folder: int(free))
    if outcome is None:
        assert not faults(found)
    else:
        assert says(the_only(found, outcome), f"(1.9 GB|199 MB) are free at {deployment.silo.folder}", "make room")


def test_a_disk_that_takes_no_writes(deployment: Deployment) -> None:
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        found = look(deployment, "disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert says(the_only(found, "problem"), r"nothing can be written durably to .* \(File too large\)", "ls -ld")
    assert not [*deployment.silo.folder.glob(".doctor*")]


@pytest.mark.parametrize(("left", "outcome"), [(1.6e9, None), (0.9e9, "warning"), (0.4e9, "problem"), (None, "not checked")])
def test_memory(deployment: Deployment, left: float | None, outcome: str | None) -> None:
    found = look(deployment, "memory", available_memory=lambda: None if left is None else int(left))
    assert found[0].outcome == (outcome or "ok")
    if outcome in ("warning", "problem"):
        assert says(the_only(found, str(outcome)), r"(900|400) MB of memory are left", "end other programs")


def interpreter(folder: Path, script: str) -> str:
    """Something in the place of the Python that looks for a GPU."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


BROKEN = {
    "kill -SEGV $$": r"the process was ended by signal 11",
    "echo 'CUDA driver version is insufficient' >&2; exit 1": "exit 1: CUDA driver version is insufficient",
    "exit 0": "exit 0: no word",
}


@pytest.mark.parametrize("script", BROKEN)
def test_a_driver_that_kills_who_asks_does_not_kill_the_doctor(deployment: Deployment, tmp_path: Path, script: str) -> None:
    python = interpreter(tmp_path, script)
    assert says(
        the_only(look(deployment, "gpu", python=python), "warning"), f"looking for a GPU failed .*{BROKEN[script]}", "nvidia-smi"
    )
    deployment.set(device="cuda")
    assert says(
        the_only(look(deployment, "gpu", python=python), "problem"), f'device = "cuda", .*{BROKEN[script]}', 'device = "cpu"'
    )
    deployment.set(device="cpu")
    assert not faults(look(deployment, "gpu", python=python))


def test_a_gpu_that_is_wanted_and_not_there(deployment: Deployment, tmp_path: Path) -> None:
    deployment.set(device="cuda")
    none = interpreter(tmp_path, """echo '{"cuda": false, "build": null, "version": "2.13.0+cpu"}'""")
    assert says(
        the_only(look(deployment, "gpu", python=none), "problem"), r"PyTorch 2\.13\.0\+cpu is built for the CPU only", "CUDA"
    )
    one = interpreter(tmp_path, """echo '{"cuda": true, "build": "13.0", "version": "2.13.0", "name": "H200", "free": 150e9}'""")
    (found,) = look(deployment, "gpu", python=one)
    assert (found.outcome, found.seen) == ("ok", "H200, 150.0 GB free; PyTorch 2.13.0")
    gone = interpreter(tmp_path, """echo '{"missing": "No module named torch"}'""")
    assert says(the_only(look(deployment, "gpu", python=gone), "problem"), "PyTorch cannot be imported", r"silorec\[client\]")
    assert says(the_only(look(deployment, "gpu", python=str(tmp_path / "none")), "problem"), "No such file")


def test_this_machine_answers() -> None:
    """The real sources; figures that any Linux machine gives."""
    memory, ports = available_memory(), ephemeral_ports()
    assert memory is not None
    assert 10**7 < memory < 10**14
    assert ports is not None
    assert 1024 <= ports[0] < ports[1] < 65536
    assert keeps_time() in (True, False, None)
