"""What really happens to a deployment, one thing at a time: none loses a round that was on the disk, none under-counts a ledger.

Each test ends with the audit over the transcript and all ledgers, in which every answer that the coordinator got must be charged.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.privacy.ledger import read_ledger
from common.privacy.spent import spent_by
from server.checkpoint import read_final
from simulations.trial.clock import why_not, wrong_clock
from simulations.trial.consortium import PORT, ROOT, Federation, Running, federation, twin
from simulations.trial.hosts import Host, hosts, why_no_namespaces
from tests.e2e.deployed import NAMES, PROTECTED, UNPROTECTED, accepted_by_the_audit

pytestmark = pytest.mark.slow

ROUNDS = {"rounds": 4}
needs_network = pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces() or "-")
needs_clock = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


@pytest.fixture(scope="module")
def machines() -> Iterator[Mapping[str, Host]]:
    with hosts(["coordinator", *NAMES, "east"]) as found:
        yield found


@pytest.fixture
def trial(tmp_path: Path, machines: Mapping[str, Host]) -> Iterator[Federation]:
    """Three silos of mode ``silo``, admitted and not running."""
    with federation(tmp_path, machines, NAMES, policy=PROTECTED) as found:
        yield found


@pytest.fixture
def plain_trial(tmp_path: Path, machines: Mapping[str, Host]) -> Iterator[Federation]:
    """As :func:`trial`, of mode ``none``, whose results can be compared."""
    with federation(tmp_path, machines, NAMES, policy=UNPROTECTED) as found:
        yield found


def configured(trial: Federation, **federation: Any) -> Path:
    privacy = {"mode": "silo", "epsilon": 8.0, "delta": 1e-3}
    return trial.configure(privacy=privacy, training={"sampling_probability": 0.5}, federation={**ROUNDS, **federation})


def started(trial: Federation, config: Path, *more: str) -> tuple[dict[str, Running], Running]:
    silos = {name: trial.start_silo(name) for name in NAMES}
    return silos, trial.start_server(config, "--no-bundle", *more)


def after(trial: Federation, round: int, seconds: float = 180.0) -> None:
    """Until this round is on the disk."""
    trial.until(lambda: any(event["round"] >= round for event in trial.rounds()), seconds, f"round {round}")


def in_stage(trial: Federation, round: int, stage: str, seconds: float = 180.0) -> None:
    """Until this stage of a round has begun."""
    begun = {"event": "stage_begins", "round": round, "stage": stage}
    trial.until(lambda: any(event.items() >= begun.items() for event in trial.events()), seconds, stage)


def answered(trial: Federation) -> dict[int, list[int]]:
    return {event["round"]: event["answered"] for event in trial.rounds()}


def test_a_silo_that_is_killed_in_mid_round_is_left_out_and_its_ledger_holds(trial: Federation) -> None:
    silos, server = started(trial, configured(trial))
    in_stage(trial, 2, "query.mask")
    silos["south"].kill()
    trial.finish(server)
    rounds = answered(trial)
    assert list(rounds) == [0, 1, 2, 3, 4]
    assert rounds[1] == [0, 1, 2]
    assert rounds[4] == [0, 2]
    accepted_by_the_audit(trial)


def test_a_silo_that_is_killed_and_started_again_comes_back(trial: Federation) -> None:
    silos, server = started(trial, configured(trial, rounds=7))
    after(trial, 1)
    silos["south"].kill()
    after(trial, 2)
    trial.start_silo("south")
    trial.finish(server, 400)
    rounds = answered(trial)
    assert list(rounds) == list(range(8))
    assert any(1 not in silos for silos in rounds.values())
    assert rounds[7] == [0, 1, 2]
    accepted_by_the_audit(trial)


@needs_network
def test_a_silo_that_is_cut_off_for_two_rounds_comes_back(trial: Federation, machines: Mapping[str, Host]) -> None:
    _, server = started(trial, configured(trial, rounds=8, backoff_rounds=1))
    after(trial, 1)
    machines["south"].cut_off()
    try:
        after(trial, 3)
    finally:
        machines["south"].connect()
    trial.finish(server, 500)
    rounds = answered(trial)
    assert list(rounds) == list(range(9))
    assert 1 not in rounds[3]
    assert 1 in rounds[8]
    accepted_by_the_audit(trial)


def test_a_coordinator_that_is_killed_in_each_stage_ends_with_the_undisturbed_result(plain_trial: Federation) -> None:
    trial = plain_trial
    config = trial.configure(federation={"rounds": 5, "patience": 0.0})
    undisturbed = twin(trial, trial.folder / "twin", config)
    _, server = started(trial, config)
    for round, stage in enumerate(("query.advertise", "query.share", "query.mask", "query.sign", "query.reveal"), start=1):
        in_stage(trial, round, stage)
        kept = len(trial.rounds())
        server.kill()
        assert len(trial.rounds()) <= kept + 1
        server = trial.start_server(config, "--no-bundle")
    trial.finish(server, 400)
    assert sorted(answered(trial)) == [0, 1, 2, 3, 4, 5]
    assert all(silos == [0, 1, 2] for silos in answered(trial).values())
    np.testing.assert_array_equal(read_final(trial.run_folder()), undisturbed)
    accepted_by_the_audit(trial)


def test_a_coordinator_that_is_killed_charges_nobody_twice(trial: Federation) -> None:
    config = configured(trial, patience=0.0)
    _, server = started(trial, config)
    in_stage(trial, 1, "query.mask")
    time.sleep(0.5)
    server.kill()
    server = trial.start_server(config, "--no-bundle")
    in_stage(trial, 3, "query.reveal")
    server.kill()
    trial.finish(trial.start_server(config, "--no-bundle"), 400)
    for name in NAMES:
        charged = [(what.action, what.round) for _, what in read_ledger(trial.silo(name).ledger).reservations]
        assert charged == [("query.count", 0), *(("train", round) for round in range(1, 5))]
    accepted_by_the_audit(trial)


def test_a_state_of_flower_that_was_removed_is_told_and_the_run_goes_on(trial: Federation) -> None:
    config = configured(trial)
    _, server = started(trial, config)
    after(trial, 1)
    server.kill()
    for file in trial.coordinator.folder.glob("superlink.sqlite*"):
        file.unlink()
    server = trial.start_server(config, "--no-bundle")
    trial.until(lambda: "may connect now: north, south, west" in server.said(), what="the nodes' admission")
    after(trial, 2)
    trial.coordinator.database.unlink()
    trial.until(lambda: f"{trial.coordinator.database}: it is gone" in server.said(), what="a word on the lost file")
    trial.finish(server, 400)
    assert sorted(answered(trial)) == [0, 1, 2, 3, 4]
    accepted_by_the_audit(trial)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk takes root")
def test_a_full_disk_at_a_silo_costs_it_the_round_and_nothing_else(trial: Federation) -> None:
    home = trial.silo("south").folder
    aside = home.with_name("south-aside")
    home.rename(aside)
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "small", str(home)], check=True)
    try:
        shutil.copytree(aside, home, dirs_exist_ok=True)
        _, server = started(trial, configured(trial, rounds=6, backoff_rounds=1))
        after(trial, 1)
        fill(home / "filler")
        after(trial, 3)
        (home / "filler").unlink()
        trial.finish(server, 400)
        rounds = answered(trial)
        assert 1 not in rounds[3]
        assert 1 in rounds[6]
        refused = {code for event in trial.events() for code in event.get("refused", {}).values()}
        assert refused <= {"LEDGER_UNAVAILABLE", "DATA_UNAVAILABLE", "INTERNAL", "SECAGG_REFUSED"}
        assert refused
        accepted_by_the_audit(trial)
    finally:
        trial.close()
        subprocess.run(["umount", "-l", str(home)], check=True)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


@needs_clock
def test_a_clock_that_is_ten_minutes_off_is_named_and_the_others_go_on(trial: Federation) -> None:
    silos = {name: trial.start_silo(name) for name in ("north", "west")}
    silos["south"] = trial.start_silo("south", environment=wrong_clock(trial.folder, -600))
    server = trial.start_server(configured(trial, rounds=2, enrolment_deadline=45.0), "--no-bundle")
    trial.until(lambda: "this machine's clock is 600 s behind the coordinator's" in silos["south"].said(), what="the clock")
    trial.finish(server, 300)
    assert answered(trial)[2] == [0, 2]
    silos["south"].end()
    assert not read_ledger(trial.silo("south").ledger).reservations
    accepted_by_the_audit(trial)


@needs_clock
def test_certificates_that_have_expired_are_refused_by_name_on_both_sides(trial: Federation) -> None:
    half_an_hour_ago = wrong_clock(trial.folder, -2000)
    until_now = ("--days", "0.01")
    rotate = ("coordinator", "consortium", "rotate", str(trial.authority))
    expired = trial.command(*rotate, "--extend", "south", *until_now, environment=half_an_hour_ago)
    for done in (expired, trial.command(*rotate, "--roster")):
        assert done.returncode == 0, done.stderr
    south = trial.start_silo("south")
    for name in ("north", "west"):
        trial.start_silo(name)
    server = trial.start_server(configured(trial, rounds=2, enrolment_deadline=45.0), "--no-bundle")
    assert south.wait(90) == 2
    assert "silo 'south' was admitted until" in south.said()
    assert "has expired" in south.said()
    trial.finish(server, 300)
    assert answered(trial)[2] == [0, 2]
    accepted_by_the_audit(trial)

    expired = trial.command(*rotate, "--server", *until_now, environment=half_an_hour_ago)
    for done in (expired, trial.command(*rotate, "--roster")):
        assert done.returncode == 0, done.stderr
    refused = trial.command("coordinator", "server", "up", str(trial.coordinator.folder))
    assert refused.returncode == 2
    assert "expired" in refused.stderr


def test_a_silo_that_is_revoked_is_gone_from_the_next_round(trial: Federation) -> None:
    silos, server = started(trial, configured(trial, rounds=5))
    after(trial, 1)
    done = trial.command("coordinator", "consortium", "revoke", str(trial.authority), "south", "--reason", "left the consortium")
    assert done.returncode == 0, done.stderr
    at = max(answered(trial))
    trial.finish(server, 300)
    assert all(silos == [0, 2] for round, silos in answered(trial).items() if round > at + 1)
    assert silos["south"].wait(90) == 2
    assert "silo 'south' was revoked on" in silos["south"].said()
    assert "left the consortium" in silos["south"].said()
    accepted_by_the_audit(trial)


def test_a_silo_whose_ledger_is_spent_is_left_out_and_releases_nothing_more(tmp_path: Path, machines: Mapping[str, Host]) -> None:
    little = {**PROTECTED, "epsilon": 4.0}
    with federation(tmp_path, machines, NAMES, policy=PROTECTED, policies={"south": little}) as trial:
        config = configured(trial)
        silos = {name: trial.start_silo(name) for name in NAMES}
        trial.finish(trial.start_server(config, "--no-bundle"), 300)
        assert 1 not in answered(trial)[4]
        codes = {code for event in trial.events() for code in event.get("refused", {}).values()}
        assert "BUDGET_EXHAUSTED" in codes
        assert 0 < spent_by(read_ledger(trial.silo("south").ledger)).epsilon <= 4.0
        assert silos["south"].process.poll() is None
        accepted_by_the_audit(trial)


def test_a_stranger_without_a_key_gets_nowhere(trial: Federation, machines: Mapping[str, Host]) -> None:
    from common.consortium.keys import own_key

    _, server = started(trial, configured(trial, rounds=3))
    after(trial, 0)
    stranger, address = trial.folder / "stranger", f"{machines['coordinator'].address}:{PORT}"
    stranger.mkdir()
    own_key(stranger / "node.key", openssh=True)
    node = [
        *(sys.executable, "-m", "client.supernode", "--superlink", address),
        *("--root-certificates", str(trial.silo("north").authority), "--auth-supernode-private-key", str(stranger / "node.key")),
        *("--isolation", "process", "--host", "127.0.0.1", "--port", "9777"),
    ]
    variables = {**os.environ, "FLWR_HOME": str(stranger), "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(
        machines["east"].command(*node), env=variables, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert "Uvicorn running" in done.stderr  # it was there, and has given up
    refusals = (trial.coordinator.folder / "logs" / "superlink.log").read_text()
    assert f"refused {machines['east'].address}: this node's key is not in the roster of trial" in refusals
    for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/docs", "/openapi.json"):
        status = asked(machines["east"], f"https://{address}{path}", trial.silo("north").authority)
        assert status == (403 if not why_no_namespaces() else status), path
    assert asked(machines["east"], f"https://{address}/silorec/hello", trial.silo("north").authority) == 200
    trial.finish(server, 300)
    assert all(silos == [0, 1, 2] for silos in answered(trial).values())
    accepted_by_the_audit(trial)


def text_of(log: Path) -> str:
    """Empty as long as nobody writes it."""
    return log.read_text(errors="replace") if log.exists() else ""


def asked(host: Host, url: str, authority: Path) -> int:
    """HTTP status of a POST, or of a GET where the path is silorec's own, from a host."""
    code = (
        "import ssl,sys,urllib.request,urllib.error\n"
        "request=urllib.request.Request(sys.argv[1],data=None if 'silorec/' in sys.argv[1] else b'')\n"
        "try: print(urllib.request.urlopen(request,context=ssl.create_default_context(cafile=sys.argv[2]),timeout=10).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)\n"
    )
    done = subprocess.run(
        host.command(sys.executable, "-c", code, url, str(authority)), capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.parametrize("how", ["code of the same name", "another app"])
def test_a_malicious_bundle_is_refused_and_runs_nowhere(trial: Federation, how: str) -> None:
    from common.consortium.roster import read_signed
    from server.deployment import configured as configuration
    from server.flower import CONNECTION, FlwrCommand, script, thin_app

    silos = {name: trial.start_silo(name) for name in NAMES}
    config = configured(trial, rounds=2, round_attempts=1, enrolment_deadline=30.0)
    loot = trial.folder / "loot"
    app = trial.folder / "malicious"
    place = trial.coordinator
    components = {"serverapp": "server.app:app", "clientapp": "client.app:app" if "same" in how else "evil.app:app"}
    whole = configuration(config, read_signed(place.roster, place.authority))
    thin_app(app, whole, {"app.out": str(place.runs / "evil"), "app.home": str(place.folder)}, components)
    folder = app / components["clientapp"].partition(".")[0]
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    evil = f"open({str(loot)!r}, 'w').write('taken')\nfrom flwr.clientapp import ClientApp\napp = ClientApp()\n"
    (folder / "app.py").write_text(evil)
    server = trial.start("coordinator", "server", "up", str(place.folder))
    trial.until(lambda: "may connect now" in server.said(), what="the SuperLink")
    flwr = FlwrCommand(place.folder / "flower", f"127.0.0.1:{PORT}", place.authority)
    ordered = subprocess.run(
        trial.hosts["coordinator"].command(script("flwr"), "run", str(app), CONNECTION),
        env=flwr.environment,
        cwd=flwr.home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ordered.returncode == 0, ordered.stdout + ordered.stderr
    for name in NAMES:
        log = trial.silo(name).folder / "logs" / "executor.log"
        trial.until(lambda log=log: "POLICY_REFUSED" in text_of(log), 120, f"a refusal of {name}")
        assert "no code from elsewhere" in text_of(log)
    assert not loot.exists()
    server.end()
    for name in NAMES:
        silos[name].end()
        assert not read_ledger(trial.silo(name).ledger).reservations
