"""A coordinator and its silos, each on a host of its own, made and run by silorec's own commands."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from common.config import PartitionConfig
from common.consortium.home import CoordinatorHome, SiloHome
from common.data.dealing import deal
from common.data.load import read_dataset
from common.errors import FederationError
from common.supervising import die_with_parent
from simulations.trial.hosts import Host

SILOREC = [sys.executable, "-m", "silorec"]
ROOT = Path(__file__).resolve().parents[2]
PORT = 9092

SMALL: Mapping[str, Any] = {
    "run": {"device": "cpu", "threads": 1},
    "model": {
        "encoder": "hashing",
        "backbone": "tiny-bert",
        "window": 10,
        "lora_rank": 2,
        "item_dim": 4,
    },
    "privacy": {"mode": "none"},
    "training": {"local_steps": 2, "batch_size": 32},
    "federation": {"rounds": 5, "deadline": 120.0, "stage_deadline": 30.0, "patience": 3.0, "round_pause": 1.0},
    "distillation": {
        "histories": 200,
        "epochs": 1,
        "layers": 1,
        "width": 16,
        "heads": 2,
        "feed_forward": 32,
        "item_dim": 4,
        "text_dim": 16,
        "top_k": 20,
    },
}
"""A run that takes seconds, of a tiny random model."""


@dataclass
class Running:
    """One of silorec's commands on a host, in a process group of its own."""

    host: Host
    process: subprocess.Popen[bytes]
    output: Path

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def wait(self, seconds: float) -> int:
        return self.process.wait(seconds)

    def family(self) -> list[psutil.Process]:
        """The process and all that it started; nobody when it has ended, for its number may be another's by then."""
        if self.process.poll() is not None:
            return []
        with contextlib.suppress(psutil.Error):
            whole = psutil.Process(self.process.pid)
            return [whole, *whole.children(recursive=True)]
        return []

    def kill(self) -> None:
        """As a power cut: this process and all that it started, at once."""
        family = self.family()
        for member in family:
            with contextlib.suppress(psutil.Error):
                member.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=10)

    def end(self) -> None:
        """In order."""
        family = self.family()
        self.process.terminate()
        psutil.wait_procs(family, timeout=20)
        self.kill()


@dataclass
class Federation:
    """A consortium whose parties are at ``folder/<name>``; silo ``i`` is ``names[i]``."""

    folder: Path
    hosts: Mapping[str, Host]
    names: tuple[str, ...]
    declared: dict[str, int] = field(default_factory=dict)
    running: list[Running] = field(default_factory=list)

    @property
    def authority(self) -> Path:
        return self.folder / "consortium"

    @property
    def coordinator(self) -> CoordinatorHome:
        return CoordinatorHome(self.authority / "coordinator")

    def silo(self, name: str) -> SiloHome:
        return SiloHome(self.folder / name)

    def run_folder(self, name: str = "run") -> Path:
        return self.coordinator.runs / name

    def command(
        self, host: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command of silorec, to its end."""
        command, variables = self.hosts[host].command(*SILOREC, *arguments), {**os.environ, **(environment or {})}
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables, check=False)

    def start(self, host: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Running:
        """A command of silorec that goes on."""
        output = self.folder / f"{host}-{len(self.running)}.out"
        with output.open("wb") as out:
            process = subprocess.Popen(
                self.hosts[host].command(*SILOREC, *arguments),
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        found = Running(self.hosts[host], process, output)
        self.running.append(found)
        return found

    def found(self) -> None:
        """The authority, with the coordinator's home."""
        address = self.hosts["coordinator"].address
        _do("consortium", "init", str(self.authority), "--name", "trial", "--address", f"{address}:{PORT}")

    def invite_and_admit(self, name: str, data: Path, users: int, policy: Mapping[str, Any]) -> None:
        """The whole way of one silo into the roster, its ledger included."""
        letter, home = self.folder / f"{name}.invite", self.silo(name)
        _do("consortium", "invite", str(self.authority), name, "--out", str(letter))
        _do("consortium", "join", str(letter), str(home.folder), "--declared-users", str(users), "--data", str(data))
        limits = {"silo": name, "coordinators": ["any"], "declared_users": users, **policy}
        home.policy.write_text(tomli_w.dumps(limits))
        _do("ledger", "init", str(home.folder), "--policy", str(home.policy))
        _do("consortium", "admit", str(self.authority), str(home.folder / f"{name}.request"))
        self.declared[name] = users

    def configure(self, **changes: Mapping[str, Any]) -> Path:
        """The run's configuration: :data:`SMALL` over the public catalogue, with ``changes`` by section."""
        tree: dict[str, Any] = {section: dict(values) for section, values in SMALL.items()}
        tree["name"] = "run"
        tree["data"] = {"source": str(self.folder / "data" / "catalogue.jsonl")}
        for section, values in changes.items():
            tree[section] = {**tree.get(section, {}), **values}
        path = self.folder / "run.toml"
        path.write_text(tomli_w.dumps(tree))
        return path

    def start_silo(self, name: str, **more: Any) -> Running:
        return self.start(name, "--log-format", "json", "client", "up", str(self.silo(name).folder), **more)

    def start_server(self, config: Path, *more: str, **options: Any) -> Running:
        return self.start("coordinator", "server", "up", str(self.coordinator.folder), "--config", str(config), *more, **options)

    def events(self, run: str = "run") -> list[dict[str, Any]]:
        """What the federation told so far."""
        try:
            text = (self.run_folder(run) / "events.jsonl").read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def rounds(self, run: str = "run") -> list[dict[str, Any]]:
        return [event for event in self.events(run) if event["event"] == "round"]

    def until(self, condition: Callable[[], Any], seconds: float = 120.0, what: str = "it") -> Any:
        """Wait for a condition; with what all processes said if it does not come."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.1)
        raise FederationError(f"{what} did not come within {seconds:g} s\n{self.account()}")

    def account(self) -> str:
        """The end of what everybody said."""
        parts = [f"--- {running.host.name}\n{running.said()[-3000:]}" for running in self.running]
        for log in sorted(self.folder.rglob("logs/*.log")):
            parts.append(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}")
        return "\n".join(parts)

    def finish(self, server: Running, seconds: float = 240.0) -> None:
        """Wait for the coordinator's command to end with status 0."""
        try:
            status = server.wait(seconds)
        except subprocess.TimeoutExpired:
            raise FederationError(f"not finished within {seconds:g} s\n{self.account()}") from None
        if status:
            raise FederationError(f"the coordinator ended with status {status}\n{self.account()}")

    def close(self) -> None:
        for running in reversed(self.running):
            running.end()


def _do(*arguments: str) -> None:
    """One of silorec's commands, in this process: none of these needs a network."""
    from silorec import main

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main(list(arguments))
    except SystemExit as ended:
        if ended.code:
            raise FederationError(f"silorec {' '.join(arguments)}: {ended.code}\n{said.getvalue()}") from None


def dealt(folder: Path, silos: int, source: str = "synthetic", **settings: Any) -> list[Any]:
    """A data set dealt out by taste, in ``folder/data``."""
    if source == "synthetic":
        from common.config import SyntheticConfig
        from common.data.synthetic import generate

        dataset = generate(SyntheticConfig(**{"users": 90, "items": 60, "interactions_per_user": 12, **settings}), 0)
    else:
        from common.assets import asset_path

        dataset = read_dataset(asset_path(source))
    return deal(dataset, PartitionConfig(by="taste", silos=silos), folder / "data")


@contextlib.contextmanager
def federation(
    folder: Path,
    hosts: Mapping[str, Host],
    names: Sequence[str],
    *,
    policy: Mapping[str, Any],
    source: str = "synthetic",
    spare: Sequence[str] = (),
    policies: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[Federation]:
    """A consortium of ``names``, all admitted, nobody running; ``spare`` silos have data and are not invited yet.

    ``policies`` are of silos whose operators allow something else than ``policy``.
    """
    parts = dealt(folder, len(names) + len(spare), source)
    found = Federation(folder, hosts, tuple(names))
    try:
        found.found()
        for name, part in zip(names, parts, strict=False):
            found.invite_and_admit(name, part.path, part.declared_users, (policies or {}).get(name, policy))
        yield found
    finally:
        found.close()


def twin(federation: Federation, folder: Path, config: Path) -> Any:
    """The last adapter of the same run in this process, over copies of the silos' homes as they are now: the undisturbed run."""
    import shutil

    from flwr.app import Context, RecordDict

    from client.app import app as client_app
    from common.config import to_run_config
    from common.consortium.roster import accept, read_signed
    from server.app import app as server_app
    from server.checkpoint import read_final
    from server.deployment import configured
    from simulations.grid import InProcessGrid

    place = federation.coordinator
    consortium = read_signed(place.roster, place.authority)
    settings = to_run_config(configured(config, consortium)) | {"app.out": str(folder), "app.home": str(place.folder)}
    nodes = {}
    for number, name in enumerate(federation.names):
        home = folder / "homes" / name
        shutil.copytree(federation.silo(name).folder, home)
        accept(SiloHome(home), place.roster.read_bytes())
        nodes[number] = {"home": str(home)}
    grid = InProcessGrid(client_app, len(nodes), settings, node_configs=nodes)
    server_app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(settings)))
    return read_final(folder)
