"""Flower's SuperLink, kept running for a coordinator, with the nodes of the roster admitted to it and no others."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from common.consortium.expiry import expiries
from common.consortium.home import CoordinatorHome
from common.consortium.keys import read_private
from common.consortium.roster import Consortium, read_signed
from common.consortium.signing_key import take_up_signing_key
from common.errors import ConfigError, FederationError, SilorecError
from common.journal import Journal
from common.logs import environment as log_environment
from common.privacy.signing import load_key
from common.supervising import Child
from server.control import Control
from server.flower import FlwrCommand, flower_environment

log = logging.getLogger("silorec.server")

STARTUP = 120.0


class Link:
    """One SuperLink.

    Parameters
    ----------
    home:
        The coordinator's.
    told:
        Gets a line for the operator now and then.
    environment:
        More variables for the processes of Flower.

    Raises
    ------
    SilorecError
        If keys, certificate or roster are not in order.
    """

    def __init__(
        self,
        home: CoordinatorHome,
        *,
        told: Callable[[str], None] = lambda line: None,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.home, self.told, self.clock, self.today = home, told, clock, today
        self.journal = Journal(home.journal)
        self.consortium = self._read_roster()
        self._check_keys()
        host, _, port = home.settings().listen.rpartition(":")
        own = "127.0.0.1" if host.strip("[]") in ("0.0.0.0", "::", "") else host
        self.address = f"{own}:{port}"
        variables = {**flower_environment(home.folder / "flower"), **log_environment(), **(environment or {})}
        self.flwr = FlwrCommand(home.folder / "flower", self.address, home.authority, {**os.environ, **variables})
        self.control = Control(self.address, home.authority)
        self.child = Child("the SuperLink", self._command, home.folder / "logs" / "superlink.log", variables)
        self.ready = False
        self.starts = 0
        """How often it has become ready; runs that were ordered before the last time are gone."""
        self._roster_seen = self._roster_state()
        self._waiting_since = clock()

    def look(self) -> bool:
        """One look; whether the SuperLink can be spoken to.

        Raises
        ------
        FederationError
            If it does not start.
        """
        self._look_at_database()
        if self.child.look() is not None:
            self.told(f"the SuperLink has ended; the end of its log:\n{self.child.tail()}")
            self.lost()
        if not self.ready:
            self._await()
            return self.ready
        state = self._roster_state()
        if state != self._roster_seen:
            self._roster_seen = state
            self._take_roster()
        return True

    def lost(self) -> None:
        """The SuperLink does not answer, or has ended."""
        if self.ready:
            self.ready, self._waiting_since = False, self.clock()
        self.control.close()

    def close(self) -> None:
        """End it."""
        self.control.close()
        self.child.end()

    def wait_for_port(self, seconds: float = 30.0) -> None:
        """Until nothing listens there: processes of a coordinator that was killed take a moment to follow it."""
        host, _, port = self.address.rpartition(":")
        until = self.clock() + seconds
        while self.clock() < until:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host.strip("[]"), int(port)))
                    return
                except OSError:
                    time.sleep(0.2)
        raise FederationError(f"{self.address} is in use by another program: end it, or change 'listen' in coordinator.toml")

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "server.superlink", str(self.home.folder)]

    def _await(self) -> None:
        if self.child.pid is None or not self.control.is_healthy():
            if self.clock() - self._waiting_since > STARTUP:
                raise FederationError(f"the SuperLink did not start within {STARTUP:g} s:\n{self.child.tail()}")
            return
        self.ready, self.starts = True, self.starts + 1
        self.told(f"the SuperLink listens at {self.home.settings().listen}")
        for run in self.control.unfinished():
            self.control.stop(run)
            self.told(f"Flower's run {run} was left by an earlier start and is stopped")
        self._admit()

    def _look_at_database(self) -> None:
        """Flower goes on with a file that was removed under it, and loses what it writes."""
        if self.ready and not self.home.database.exists():
            told = "it is gone, and Flower's account of nodes and messages with it; the SuperLink is started again with a new one"
            log.error("%s: %s", self.home.database, told)
            self.told(f"{self.home.database}: {told}; a run goes on from its checkpoint")
            self.journal.append("database lost")
            self.child.restart()
            self.lost()

    def _take_roster(self) -> None:
        try:
            self.consortium = self._read_roster()
        except SilorecError as error:
            self.told(f"the roster has changed and is not used: {error}")
            return
        self.told(f"the roster is now version {self.consortium.version}")
        self.journal.append("roster", version=self.consortium.version, silos=len(self.consortium.members))
        self._admit()

    def _admit(self) -> None:
        now = self.today()
        valid = [(member.name, member.node_pem) for member in self.consortium.members if not member.why_refused(now)]
        added, removed = self.control.admit(valid)
        if added:
            self.told(f"may connect now: {', '.join(added)}")
        if removed:
            self.told(f"{len(removed)} nodes may not connect any more")
        if added or removed:
            self.journal.append("nodes", added=added, removed=len(removed))

    def _read_roster(self) -> Consortium:
        found = read_signed(self.home.roster, self.home.authority)
        if refusal := found.why_refused(self.today()):
            raise ConfigError(f"{self.home.roster}: {refusal}")
        return found

    def _roster_state(self) -> tuple[int, int]:
        found = self.home.roster.stat()
        return found.st_mtime_ns, found.st_size

    def _check_keys(self) -> None:
        """Before anything is started: the keys are there, nobody else's, and the ones that the roster names."""
        load_key(self.home.key)
        take_up_signing_key(self.home, self.consortium)
        read_private(self.home.tls_key)
        now = self.today()
        for one in expiries(self.home, self.consortium):
            if one.has_expired(now) and not one.what.startswith("silo "):
                raise ConfigError(one.warning(now))
            if warning := one.warning(now):
                self.told(f"warning: {warning}")
