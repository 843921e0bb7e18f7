"""Where a silo is and who stands behind it: an operator with folder, data and roster, or a simulation in the operator's place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.config import Config
from common.consortium.home import SiloHome
from common.consortium.roster import read_signed
from common.data.own import OwnSource
from common.data.population import CATALOGUE_VARIABLE
from common.errors import ConfigError
from common.privacy.accountant import epsilon
from common.privacy.filter import best_order
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import Policy
from common.privacy.signing import SigningKey, create_key, load_key
from common.privacy.store import make_folder
from common.secagg.roster import ROSTER, KeyRoster, read_roster, write_roster

LEDGER, KEY = "ledger.sqlite", "ledger.key"


@dataclass(frozen=True)
class Place:
    """What the operator, or the simulation in the operator's place, says of a silo.

    Parameters
    ----------
    index:
        The silo's place in the roster.
    folder:
        Where the ledger lies; needed in private modes and by every silo that is deployed.
    data:
        The silo's own data; None takes its part of the simulated population.
    roster:
        The silo's own copy of the consortium's roster; needed for secure aggregation.
    simulated:
        Nobody is behind this silo: its ledger is opened by itself, with a policy that allows the run and nothing beyond it.
    show_budget:
        The coordinator may ask how much budget is left.
    authority:
        Certificate of the authority that signed the roster; None where the roster is a plain list of keys, as in a simulation.
    """

    index: int
    folder: Path | None = None
    data: OwnSource | Path | None = None
    roster: Path | None = None
    simulated: bool = False
    show_budget: bool = False
    authority: Path | None = None

    @classmethod
    def of(cls, node_config: Mapping[str, Any], out: str | None = None) -> Place:
        """Read a SuperNode's ``--node-config``: ``home``, the silo's folder, which says it all; or ``silo``, ``data`` (see
        :meth:`OwnSource.of`), ``state`` and ``roster`` one by one; or, in a simulation, Flower's ``partition-id``, which takes
        its folder and the roster from the run's ``out``.

        Raises
        ------
        ConfigError
            If neither ``silo`` nor ``partition-id`` is there, or a deployed silo names no data or no state.
        """
        if node_config.get("home"):
            return cls.at_home(SiloHome(Path(str(node_config["home"]))))
        if "silo" not in node_config:
            if "partition-id" not in node_config:
                raise ConfigError("this node is no silo: give --node-config 'home=\"folder\"'")
            index = int(node_config["partition-id"])
            if not out:
                return cls(index, simulated=True)
            return cls(index, folder_of(Path(out), index), roster=Path(out) / ROSTER, simulated=True)
        missing = [key for key in ("data", "state") if not node_config.get(key)]
        if missing:
            raise ConfigError(f"--node-config lacks {missing[0]!r}: a silo has its own data and keeps its own ledger")
        roster = Path(str(node_config["roster"])) if node_config.get("roster") else None
        return cls(int(node_config["silo"]), Path(str(node_config["state"])), OwnSource.of(node_config), roster)

    @classmethod
    def at_home(cls, home: SiloHome) -> Place:
        """A deployed silo, by its folder.

        Raises
        ------
        ConsortiumError, ConfigError, LedgerError
            If its settings, key or roster are not in order, or the roster does not have it.
        """
        settings = home.settings()
        consortium = read_signed(home.roster, home.authority)
        index = consortium.number_of(load_key(home.identity_key).public_key)
        if settings.catalogue is not None:
            os.environ[CATALOGUE_VARIABLE] = str(settings.catalogue)
        source = OwnSource(**settings.data.model_dump(), folder=home.folder)
        return cls(index, home.folder, source, home.roster, show_budget=settings.show_budget, authority=home.authority)

    def key_roster(self) -> KeyRoster:
        """The silos' keys as this silo's operator has them, and who is absent now.

        Raises
        ------
        ConfigError, ConsortiumError
            If there is no roster, or it is not what the authority signed.
        """
        if self.roster is None:
            raise ConfigError("a secure sum takes the silo's own copy of the roster")
        if self.authority is None:
            return read_roster(self.roster)
        return read_signed(self.roster, self.authority).key_roster(datetime.now(UTC))


def hardens_noise(config: Config, place: Place) -> bool:
    """Whether noise is hardened: always for a silo with an operator, whatever the configuration says; else as asked."""
    return not place.simulated or config.privacy.noise == "hardened"


def policy_of_a_simulation(plan: PrivacyPlan, index: int, config: Config) -> Policy:
    """What the operator of a simulated silo allows: this run and nothing beyond it.

    Where PLD calibrated the noise, the Rényi bound of the same releases is above ``privacy.epsilon``; the ledger counts in
    the latter, so that is the limit.
    """
    name, declared = f"silo-{index}", config.federation.declared_users[index]
    if plan.mode == "none":
        return Policy(silo=name, epsilon=None, delta=plan.delta, modes=("none",), coordinators=("any",), declared_users=declared)
    events = plan.all_events()
    return Policy(
        silo=name,
        epsilon=max(plan.epsilon, epsilon(events, plan.delta, "rdp")),
        delta=plan.delta,
        order=best_order(events, plan.delta),
        modes=(plan.mode,),
        max_honest_silos=plan.honest or None,
        coordinators=("any",),
        declared_users=declared,
    )


def folder_of(out: Path, index: int) -> Path:
    """Where a simulation keeps what belongs to one silo."""
    return out / "silos" / str(index)


def simulated_key(folder: Path) -> SigningKey:
    """The key of a silo that nobody is behind, made with its folder if it is not there."""
    make_folder(folder)
    path = folder / KEY
    return load_key(path) if path.exists() else create_key(path)


def make_simulated_roster(out: Path, n_silos: int) -> KeyRoster:
    """Keys for silos that nobody is behind, and the roster of them at ``out/roster.toml``; those that are there are kept."""
    keys = tuple(simulated_key(folder_of(out, index)).public_key for index in range(n_silos))
    roster = KeyRoster(tuple(f"silo-{index}" for index in range(n_silos)), keys)
    write_roster(out / ROSTER, roster)
    return roster
