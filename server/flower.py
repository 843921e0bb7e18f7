"""Flower's command ``flwr``, with a home of its own: order runs, look after them, and say which nodes may take part.

Flower keeps the addresses of SuperLinks in ``FLWR_HOME/config.toml``; here that is a folder of the deployment, so an operator's
own configuration is neither read nor changed. What is submitted is a thin app folder: a ``pyproject.toml`` with the
configuration, which names the apps of the installed silorec and has no dependencies. It holds no logic.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from common.config import Config, to_run_config
from common.errors import FederationError

COMPONENTS: Mapping[str, str] = {"serverapp": "server.app:app", "clientapp": "client.app:app"}

CONNECTION = "own"


class FlwrCommand:
    """The ``flwr`` command that speaks to one SuperLink.

    Parameters
    ----------
    home:
        Becomes ``FLWR_HOME``; made if missing.
    address:
        ``host:port`` of the SuperLink.
    root_certificate:
        PEM file of the authority behind its certificate; None speaks without TLS, as is right over loopback only.
    environment:
        Of the commands; None takes this process' own.
    """

    def __init__(
        self, home: Path, address: str, root_certificate: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.home, self.address = home, address
        self.environment = {**(os.environ if environment is None else environment), **flower_environment(home)}
        home.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {"address": address}
        found |= {"insecure": True} if root_certificate is None else {"root-certificates": str(root_certificate)}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: found}}))

    def __call__(self, *arguments: str) -> dict[str, Any]:
        """Run ``flwr`` and read the JSON that it prints.

        Raises
        ------
        FederationError
            With what it said, if it failed.
        """
        done = self.text(*arguments, "--format", "json")
        try:
            said = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            said = {}
        if done.returncode or not said or said.get("success") is False:
            raise FederationError(f"flwr {' '.join(arguments[:2])} failed: {(done.stderr or done.stdout).strip()}")
        return dict(said)

    def text(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``flwr``, whatever comes of it."""
        command = [script("flwr"), *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, cwd=self.home, check=False)

    def run(self, app: Path, federation: str = "") -> str:
        """Order a run of the app folder; its id."""
        more = ("--federation-config", federation) if federation else ()
        return str(self("run", str(app), CONNECTION, *more)["run-id"])

    def status(self, run_id: str) -> str:
        """Of a run, as Flower says it: ``pending``, ``running``, ``finished:completed``, …"""
        return str(self("ls", CONNECTION, "--run-id", run_id)["runs"][0]["status"])

    def log_tail(self, run_id: str, lines: int = 40) -> str:
        """The last lines that the run's own processes wrote; empty where there are none."""
        return "\n".join(self.text("log", run_id, CONNECTION, "--show").stdout.strip().splitlines()[-lines:])


def flower_environment(home: Path) -> dict[str, str]:
    """What every process of Flower gets: its own home, no telemetry, and the way to silorec and to Flower's commands."""
    here = str(Path(__file__).resolve().parents[1])
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        # Flower finds its own commands by name, and the apps must be found whether silorec is installed or run from its folder.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
    }


def thin_app(folder: Path, config: Config, settings: Mapping[str, str], components: Mapping[str, str] = COMPONENTS) -> Path:
    """An app folder for ``flwr run`` that holds nothing but the configuration and the apps' names; written anew.

    ``settings`` are the ``app.`` keys, see :data:`common.protocol.APP_KEYS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {**to_run_config(config), **settings}
    project = {
        "project": {"name": "silorec-run", "version": "0.1.0", "license": {"text": "Apache-2.0"}, "dependencies": []},
        "tool": {"flwr": {"app": {"publisher": "silorec", "components": dict(components), "config": values}}},
    }
    (folder / "pyproject.toml").write_text(tomli_w.dumps(project))
    return folder


def script(name: str) -> str:
    """Path of a command of Flower; :class:`FederationError` if it is not installed."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FederationError(f"{name} is not installed: pip install 'silorec[server]'")
    return found
