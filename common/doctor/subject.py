"""Who is examined: an installation, a silo's home or a coordinator's home; everything that several checks need, read once."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

from common.config import Config, load
from common.consortium.home import CoordinatorHome, SiloHome, SiloSettings
from common.consortium.roster import Consortium, Member, read_signed
from common.doctor.finding import NotChecked
from common.doctor.machine import Machine
from common.doctor.reach import HELLO, NotReached, Spoken, ask
from common.errors import ConfigError, SilorecError
from common.privacy.entries import Chain
from common.privacy.ledger import read_ledger
from common.privacy.policy import Policy, read_policy
from common.privacy.signing import load_key

Role = Literal["installation", "silo", "coordinator"]

SILO: frozenset[Role] = frozenset({"silo"})
COORDINATOR: frozenset[Role] = frozenset({"coordinator"})
HOMES: frozenset[Role] = SILO | COORDINATOR
ALL: frozenset[Role] = HOMES | {"installation"}


class Subject:
    """What is examined, on which machine.

    What a property reads may be missing or damaged. The check whose matter it is reads the file itself and says so; for all
    others the property raises :class:`NotChecked`.

    Parameters
    ----------
    folder:
        A silo's or coordinator's home, or None for the installation alone.
    config:
        The configuration of a run, to hold data and models against.

    Raises
    ------
    ConfigError
        If the folder is neither.
    """

    def __init__(self, folder: Path | None = None, *, config: Path | None = None, machine: Machine | None = None) -> None:
        self.folder, self.config_file = folder, config
        self.machine = machine or Machine()
        self.role: Role = "installation" if folder is None else _role_of(folder)

    @property
    def now(self) -> datetime:
        """The machine's time, UTC."""
        return datetime.fromtimestamp(self.machine.clock(), UTC)

    @property
    def silo(self) -> SiloHome:
        return SiloHome(self._home)

    @property
    def coordinator(self) -> CoordinatorHome:
        return CoordinatorHome(self._home)

    @property
    def home(self) -> SiloHome | CoordinatorHome:
        """Either, for what both have."""
        return self.silo if self.role == "silo" else self.coordinator

    @property
    def _home(self) -> Path:
        if self.folder is None:
            raise NotChecked("no home was given")
        return self.folder

    @cached_property
    def silo_settings(self) -> SiloSettings:
        try:
            return self.silo.settings()
        except SilorecError:
            raise NotChecked("it needs silo.toml") from None

    @property
    def device(self) -> str:
        """``auto``, ``cpu`` or ``cuda``, as the silo's operator says."""
        try:
            return self.silo_settings.device if self.role == "silo" else "auto"
        except NotChecked:
            return "auto"

    @cached_property
    def address(self) -> str:
        """Where the coordinator is reached from other machines."""
        return self.silo_settings.coordinator if self.role == "silo" else self.roster.address

    @cached_property
    def roster(self) -> Consortium:
        home = self.home
        try:
            return read_signed(home.roster, home.authority)
        except SilorecError:
            raise NotChecked("it needs a roster") from None

    @cached_property
    def member(self) -> Member:
        """This silo in its own roster, by its identity key."""
        try:
            key = load_key(self.silo.identity_key).public_key
            return self.roster.members[self.roster.number_of(key)]
        except SilorecError:
            raise NotChecked("it needs this silo's identity key, and its place in the roster") from None

    @cached_property
    def policy(self) -> Policy:
        try:
            return read_policy(self.silo.policy)
        except SilorecError:
            raise NotChecked("it needs policy.toml") from None

    @cached_property
    def chain(self) -> Chain:
        try:
            return read_ledger(self.silo.ledger)
        except SilorecError:
            raise NotChecked("it needs the ledger") from None

    @cached_property
    def config(self) -> Config | None:
        """The configuration that was named, or that of the coordinator's latest run."""
        path = self.config_file
        if path is None and self.role == "coordinator" and self.coordinator.runs.is_dir():
            runs = [run for run in self.coordinator.runs.glob("*/config.toml") if run.is_file()]
            path = max(runs, key=lambda run: run.stat().st_mtime, default=None)
        try:
            return None if path is None else load(path)
        except SilorecError:
            raise NotChecked("it needs a configuration that can be read") from None

    @cached_property
    def hello(self) -> Spoken | NotReached:
        """What the coordinator says of itself: asked at the address that silos use."""
        try:
            return self.ask(HELLO)
        except NotReached as failed:
            return failed

    def ask(self, path: str) -> Spoken:
        """One question to the coordinator; :class:`NotReached` if it has no answer."""
        return ask(self.address, path, self.home.authority, self.machine.clock, self.machine.patience)

    def told(self) -> Spoken:
        """The coordinator's answer, for checks that need one."""
        if isinstance(self.hello, NotReached):
            raise NotChecked("it needs the coordinator's answer")
        return self.hello


def _role_of(folder: Path) -> Role:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; name a silo's or a coordinator's home")
    silo, coordinator = SiloHome(folder), CoordinatorHome(folder)
    for role, files in (
        ("silo", (silo.settings_file,)),
        ("coordinator", (coordinator.settings_file,)),
        ("silo", (silo.identity_key, silo.node_key)),
        ("coordinator", (coordinator.key,)),
    ):
        if any(file.exists() for file in files):
            return "silo" if role == "silo" else "coordinator"
    raise ConfigError(
        f"{folder}: neither a silo's home (no silo.toml) nor a coordinator's (no coordinator.toml); make one with: "
        "silorec consortium join, or silorec consortium init"
    )
