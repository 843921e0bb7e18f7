"""A coordinator that is kept running: SuperLink, nodes and run, from a home folder (``silorec server up``).

One loop looks at everything once in a while and does what is missing: start the SuperLink, admit the nodes of the roster, order
the run, order it again when its process has died. Nothing here knows how a round goes: each run's app takes up the last
checkpoint. When the roster gains a silo, or names another signing key for the coordinator, the run ends after its round and a
successor goes on with the new configuration.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from common.config import Config, load, read_toml, to_dict, to_toml
from common.consortium.home import CoordinatorHome
from common.consortium.roster import Consortium
from common.durable import write_durably
from common.errors import ConfigError, FederationError
from common.model.files import CONFIG
from server.app import STOP
from server.checkpoint import FINAL
from server.flower import thin_app
from server.link import Link
from server.succession import succeed, why_not

log = logging.getLogger("silorec.server")

LOOK = 1.0
"""Seconds between two looks."""
ATTEMPTS = 5
"""How often a run's process may die in a row, without a round between, before it is given up."""


@dataclass(frozen=True)
class Ordered:
    """What is to be run: a configuration with the roster's numbers in it, and its folder."""

    config: Config
    folder: Path


def configured(source: Path, consortium: Consortium, overrides: Iterable[str] = ()) -> Config:
    """The configuration of a run over the silos of a roster: their number, their declared users and the coordinator's key.

    Raises
    ------
    ConfigError
        If the roster is empty, or the file says something else than the roster.
    """
    if not consortium.members:
        raise ConfigError(f"the roster of {consortium.name!r} has no silo yet: silorec consortium invite DIR NAME, then admit")
    said = read_toml(source).get("federation", {})
    numbers = {
        "partition.silos": len(consortium.members),
        "federation.declared_users": list(consortium.declared_users),
        "federation.coordinator": consortium.coordinator,
    }
    for key in ("declared_users", "coordinator"):
        if key in said and said[key] != numbers[f"federation.{key}"]:
            raise ConfigError(f"{source}: federation.{key} is another one than in the roster: leave it out, the roster decides")
    return load(source, numbers, overrides=overrides)


def ordered(home: CoordinatorHome, config: Config) -> Ordered:
    """The folder of a run: a new one, the one to go on with, or that of a successor where the roster has grown.

    Raises
    ------
    ConfigError
        If the name is taken by a run that has finished, or has other settings.
    """
    taken = [home.runs / config.name]
    while taken[-1].exists():
        taken.append(home.runs / f"{config.name}-{len(taken) + 1}")
    if len(taken) == 1:
        return _begun(Ordered(config, taken[0]))
    last, new = taken[-2], taken[-1]
    before = load(last / CONFIG) if (last / CONFIG).is_file() else config
    if (last / FINAL).exists():
        raise ConfigError(f"{last}: this run has finished; give the next one another name: --set name={config.name}-next")
    if before == config:
        return _begun(Ordered(config, last))
    why = why_not(before, config)
    if why and before == _with_silos_of(before, config):
        log.warning("a silo has joined, and takes no part in %s: %s", last.name, why)
        return _begun(Ordered(before, last))
    if why:
        raise ConfigError(f"{last}: this run has other settings ({why}); give it the same ones, or another name")
    succeed(last, new, before, config)
    return _begun(Ordered(config, new))


def _with_silos_of(before: Config, config: Config) -> Config:
    """``config``, with the first silos only, as many as there are in ``before``."""
    silos = len(before.federation.declared_users)
    declared = list(config.federation.declared_users[:silos])
    return load(to_dict(config), {"partition.silos": silos, "federation.declared_users": declared})


def _begun(order: Ordered) -> Ordered:
    write_durably(order.folder / CONFIG, to_toml(order.config).encode())
    with contextlib.suppress(FileNotFoundError):
        (order.folder / STOP).unlink()
    return order


@dataclass
class _Running:
    """The run that is under way: Flower's id, when the next look at it is due, and how often it has died since its last round."""

    run: int | None = None
    link_starts: int = 0
    deaths: int = 0
    round_at_death: int = -2
    again_at: float = 0.0


class Deployment:
    """One run over a :class:`Link`; see the module.

    Parameters
    ----------
    link:
        The coordinator's SuperLink, not started yet.
    source, overrides:
        Of the configuration; read again when the roster has grown.
    """

    def __init__(self, link: Link, source: Path, overrides: Iterable[str] = ()) -> None:
        self.link, self.source, self.overrides = link, source, tuple(overrides)
        self.order = ordered(link.home, configured(source, link.consortium, self.overrides))
        self._running = _Running()
        self._facts = _facts_of(link.consortium)

    def run(self) -> Path:
        """Until the run has finished; its folder.

        Raises
        ------
        FederationError
            If the SuperLink does not start, or the run fails again and again.
        """
        link = self.link
        link.journal.append("server up", run=self.order.folder.name, roster=link.consortium.version)
        link.wait_for_port()
        try:
            while not self.look():
                time.sleep(LOOK)
            return self.order.folder
        finally:
            self.close()

    def look(self) -> bool:
        """One look at everything; whether the run has finished."""
        if (self.order.folder / FINAL).exists():
            self.link.told(f"run {self.order.folder.name} has finished")
            self.link.journal.append("run finished", run=self.order.folder.name)
            return True
        try:
            if self.link.look():
                self._look_at_roster()
                self._look_at_run()
        except FederationError as error:
            if not self.link.ready or self.link.control.is_healthy():
                raise
            log.warning("%s", error)
            self.link.lost()
        return False

    def close(self) -> None:
        """End what was started here; the run can be taken up again."""
        if self.link.ready and self._running.run is not None:
            with contextlib.suppress(FederationError):
                self.link.control.stop(self._running.run)
        self.link.close()
        self.link.journal.append("server down", run=self.order.folder.name)

    def _look_at_roster(self) -> None:
        before, self._facts = self._facts, _facts_of(self.link.consortium)
        if before == self._facts:
            return
        what = "a silo has joined" if before[1] == self._facts[1] else "the coordinator has another signing key"
        if why := why_not(self.order.config, configured(self.source, self.link.consortium, self.overrides)):
            self.link.told(f"{what}, and this run goes on without: {why}")
            return
        write_durably(self.order.folder / STOP, f"{what}\n".encode())
        self.link.told(f"{what}: the run goes on with it after this round, as a successor")

    def _look_at_run(self) -> None:
        running, link = self._running, self.link
        if running.run is None or running.link_starts != link.starts:
            if link.clock() >= running.again_at:
                self._order_run()
            return
        status = link.control.status(running.run)
        if not status.startswith("finished") or (self.order.folder / FINAL).exists():
            return
        running.run = None
        if (self.order.folder / STOP).exists():  # also where it died first: it would only stop when it is started again
            self.order = ordered(link.home, configured(self.source, link.consortium, self.overrides))
            self._running = _Running()
            return
        reached = _round_in(self.order.folder)
        running.deaths = running.deaths + 1 if reached == running.round_at_death else 1
        running.round_at_death = reached
        why = _reason_in(self.order.folder)
        if running.deaths >= ATTEMPTS:
            raise FederationError(
                f"the run has ended {running.deaths} times after round {reached} ({status}){': ' + why if why else ''}; its "
                "checkpoint is good, and it goes on from there when it is started again. The end of Flower's log:\n"
                + link.child.tail(40)
            )
        pause = min(2.0**running.deaths, 60.0)
        link.told(f"the run has ended ({status}){': ' + why if why else ''}; it goes on after round {reached} in {pause:g} s")
        running.again_at = link.clock() + pause

    def _order_run(self) -> None:
        folder, link = self.order.folder, self.link
        settings = {"app.out": str(folder), "app.home": str(link.home.folder)}
        app = thin_app(link.home.folder / "flower" / "app", self.order.config, settings)
        self._running.run, self._running.link_starts = int(link.flwr.run(app)), link.starts
        link.journal.append("run ordered", run=folder.name, flower=self._running.run)
        link.told(f"run {folder.name} is under way, from round {_round_in(folder) + 1}")


def serve(link: Link) -> NoReturn:
    """Keep the SuperLink running for runs that the operator orders with ``flwr run``."""
    link.journal.append("server up", roster=link.consortium.version)
    link.wait_for_port()
    try:
        while True:
            link.look()
            time.sleep(LOOK)
    finally:
        link.close()
        link.journal.append("server down")


def _facts_of(consortium: Consortium) -> tuple[int, str]:
    """What the configuration of a run has from the roster."""
    return len(consortium.members), consortium.coordinator


def _round_in(folder: Path) -> int:
    """The last round on the disk; -1 before the count, and where nothing can be read."""
    from safetensors import SafetensorError, safe_open

    from server.checkpoint import FILE

    try:
        with safe_open(folder / FILE, framework="numpy") as file:
            return int(json.loads((file.metadata() or {})["silorec"])["round"])
    except (SafetensorError, OSError, ValueError, KeyError):
        return -1


def _reason_in(folder: Path) -> str:
    """Why the run says that it failed; empty where it says nothing."""
    from common.status.files import read_json

    return str((read_json(folder / "status.json") or {}).get("reason") or "")
