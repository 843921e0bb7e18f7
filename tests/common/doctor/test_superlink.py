"""The doctor before a real SuperLink behind the consortium's gate, over TLS."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import silorec
from tests.common.doctor.deployment import NOW, Deployment
from tests.common.doctor.looking import faults, look, says, the_only


@contextmanager
def superlink(deployment: Deployment, folder: Path) -> Iterator[None]:
    """Flower's SuperLink at the address that the deployment's roster names."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    deployment.sign(address=address)
    deployment.set(coordinator=address)
    deployment.set_coordinator(listen=address)
    command = [sys.executable, "-m", "server.superlink", str(deployment.coordinator.folder)]
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    environment = {**os.environ, "FLWR_HOME": str(folder / "flwr"), "PATH": path}
    with (folder / "superlink.txt").open("wb") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=Path(silorec.__file__).parent, stdin=subprocess.DEVNULL
        )
        try:
            _wait_for(address, child, folder)
            yield
        finally:
            child.terminate()
            child.wait(30)


def _wait_for(address: str, child: subprocess.Popen[bytes], folder: Path) -> None:
    host, port = address.split(":")
    for _ in range(600):
        assert child.poll() is None, (folder / "superlink.txt").read_text()
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError((folder / "superlink.txt").read_text())


def test_a_real_coordinator_is_reached_and_says_who_is_let_in(deployment: Deployment, tmp_path: Path) -> None:
    with superlink(deployment, tmp_path):
        for name in ("other side", "clock", "coordinator", "newer roster", "admission"):
            assert [found.outcome for found in look(deployment, name)] == ["ok"], name
        (served,) = look(deployment, "listen port", "coordinator")
        assert served.seen.startswith("this coordinator is running")
        revoked = deployment.sign(everywhere=False, version=4, member={"revoked": NOW, "reason": "left"})
        deployment.coordinator.roster.write_bytes(revoked)
        assert says(the_only(look(deployment, "newer roster"), "warning"), "has version 4")
        assert says(the_only(look(deployment, "admission"), "problem"), "was revoked on .*: left")


def test_the_gate_is_asked_with_the_key_itself(deployment: Deployment, tmp_path: Path) -> None:
    """The roster that is handed out still has the silo, under another node key."""
    with superlink(deployment, tmp_path):
        south = deployment.folder / "south" / "node.key"
        deployment.silo.node_key.write_bytes(south.read_bytes())
        deployment.coordinator.roster.write_bytes(deployment.sign(everywhere=False, members=deployment.consortium.members[:1]))
        found = the_only(look(deployment, "admission"), "problem")
    assert says(found, "the coordinator refuses this silo's node key: .*not in the roster")
    assert not faults(look(deployment, "keys"))
