"""The same federation through Flower's own simulation: a SuperLink, Ray, and ``flwr run``.

Slower than :class:`simulations.grid.InProcessGrid` by the start of five processes, and worth it: these are the runtime's own
messages, serialisation and process borders. What is submitted is a thin app folder: a ``pyproject.toml`` with the configuration
that names ``server.app:app`` and ``client.app:app`` of the installed silorec and has no dependencies, so that Flower has
nothing to install. Everything that is started here has a ``FLWR_HOME`` of its own and is ended here, by process id.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.errors import FederationError
from server.checkpoint import FINAL, read_final
from server.flower import COMPONENTS, FlwrCommand, script, thin_app

log = logging.getLogger("silorec.simulations")

POLL = 0.2
LOOK = 30.0
WRITTEN = "written"
STARTUP = 60.0
GRACE = 1.0
"""Seconds between asking processes to end and ending them; what they were for is on the disk by then."""


@contextlib.contextmanager
def flower_started() -> Iterator[Flower]:
    """A SuperLink that is starting up while the caller does something else; ended on the way out, whatever happened."""
    with tempfile.TemporaryDirectory(prefix="silorec-") as folder, _local_superlink(Path(folder)) as flower:
        yield flower


def run_with_flower(
    config: Config,
    out_dir: Path,
    n_silos: int,
    *,
    flower: Flower | None = None,
    processes: int = 1,
    gpus_per_silo: float = 0.0,
    components: Mapping[str, str] = COMPONENTS,
) -> NDArray[np.float32]:
    """Run a whole federation with ``flwr run`` and return the final adapter, which the server app wrote into ``out_dir``.

    Parameters
    ----------
    config:
        As for any run; ``federation.declared_users`` must be set.
    out_dir:
        Made if missing; gets the checkpoint, the final adapter and each silo's ledger. A finished one is an error.
    n_silos:
        Simulated SuperNodes.
    flower:
        From :func:`flower_started`; None starts one for this run.
    processes:
        Ray actors that play the silos, each with a model of its own and its share of the cores.
    gpus_per_silo:
        Share of a GPU that each process gets; 0 hides GPUs from them.
    components:
        The two apps.

    Raises
    ------
    FederationError
        If Flower does not start or the run fails, with the end of the log.
    """
    out_dir = out_dir.resolve()
    out_dir.mkdir(parents=True, exist_ok=True)
    if (out_dir / FINAL).exists():
        raise FederationError(f"{out_dir}: the federation in this folder has finished; choose another")
    cores = max(1, (os.cpu_count() or 1) // processes)
    federation = {
        "num-supernodes": n_silos,
        "client-resources-num-cpus": cores,
        "client-resources-num-gpus": float(gpus_per_silo),
        "init-args-num-cpus": cores * processes,
        "init-args-num-gpus": 1 if gpus_per_silo else 0,
        "init-args-log-to-driver": True,
    }
    if config.is_secure:
        from client.place import make_simulated_roster

        make_simulated_roster(out_dir, n_silos)
    with contextlib.ExitStack() as stack:
        flower = flower or stack.enter_context(flower_started())
        app = thin_app(flower.folder / "app", config, {"app.out": str(out_dir)}, components)
        settings = " ".join(f"{key}={json.dumps(value)}" for key, value in federation.items())
        flower.wait_until_healthy()
        run_id = flower.flwr.run(app, settings)
        status = flower.wait(run_id, until=out_dir / FINAL)
        if status not in ("finished:completed", WRITTEN):
            said = flower.flwr.log_tail(run_id) or flower.log_tail()
            raise FederationError(f"flwr run ended as {status}; the end of its log:\n{said}")
    return read_final(out_dir)


class Flower:
    """A running SuperLink: its files, its process, and the ``flwr`` command that speaks to it."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], flwr: FlwrCommand) -> None:
        self.folder, self.process, self.flwr = folder, process, flwr

    def wait_until_healthy(self) -> None:
        """Until the SuperLink answers; :class:`FederationError` with the end of its log if it does not."""
        until = time.monotonic() + STARTUP
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise FederationError(f"the SuperLink ended with code {self.process.returncode}:\n{self.log_tail()}")
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://{self.flwr.address}/health", timeout=1) as response,
            ):
                if response.status == 200:
                    return
            time.sleep(0.1)
        raise FederationError(f"the SuperLink did not start within {STARTUP:g} s:\n{self.log_tail()}")

    def wait(self, run_id: str, until: Path) -> str:
        """Until the file that the server app writes last is there (:data:`WRITTEN`), or the run has finished without it (Flower's
        status). Ray takes some seconds to end after the last round, which nobody has to wait for.

        ``flwr ls`` costs a second of CPU, so it is asked when the SuperLink's log says that the task is over, and every
        :data:`LOOK` seconds in case it never does.
        """
        asked = time.monotonic()
        while not until.exists():
            if "Finished task" in self._output() or time.monotonic() - asked > LOOK:
                status = self.flwr.status(run_id)
                if status.startswith("finished"):
                    return status
                asked = time.monotonic()
            if self.process.poll() is not None:
                raise FederationError(f"the SuperLink ended with code {self.process.returncode}:\n{self.log_tail()}")
            time.sleep(POLL)
        return WRITTEN

    def log_tail(self, lines: int = 40) -> str:
        """The last lines that the SuperLink and its children wrote."""
        return "\n".join(self._output().splitlines()[-lines:])

    def _output(self) -> str:
        return (self.folder / "superlink.out").read_text(errors="replace")


@contextlib.contextmanager
def _local_superlink(folder: Path) -> Iterator[Flower]:
    """A SuperLink in simulation mode on a free port, ended with all its descendants on the way out, whatever happened."""
    port = _free_port()
    home = folder / "home"
    # Ray's sockets lie in its folder, and a socket's path may have some 100 characters.
    ray_folder = {"RAY_TMPDIR": str(folder)} if len(str(folder)) <= 32 else {}
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local", **ray_folder}
    flwr = FlwrCommand(home, f"127.0.0.1:{port}", environment={**os.environ, **ray})
    command = [script("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
    with (folder / "superlink.out").open("wb") as out:
        process = subprocess.Popen(
            command, env=flwr.environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield Flower(folder, process, flwr)
    finally:
        _end(process, str(home))


def _end(process: subprocess.Popen[bytes], home: str) -> None:
    """End the SuperLink and what it started: Flower's executors, Ray's daemons and actors.

    They are known by the ``FLWR_HOME`` that they inherited, for some have lost their parent by now; or as children of such a one,
    for Ray's agents write their title over their environment.
    """
    import psutil

    family: set[psutil.Process] = set()
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if candidate.pid != os.getpid() and candidate.environ().get("FLWR_HOME") == home:
                family |= {candidate, *candidate.children(recursive=True)}
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.terminate()
    _, alive = psutil.wait_procs(list(family), timeout=GRACE)
    for member in alive:
        with contextlib.suppress(psutil.Error):
            member.kill()
    psutil.wait_procs(alive, timeout=5)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
