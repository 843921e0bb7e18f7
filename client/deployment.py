"""A silo that is kept running: SuperNode, executor and roster, from a home folder (``silorec client up``).

The SuperNode speaks with the coordinator; the executor, a process of its own, has data, ledger and keys, and computes the answers
(``client.executor``). Both are started again when they end. The roster is renewed from the coordinator, which cannot forge it;
a silo whose own place in it ends stops to answer.
"""

from __future__ import annotations

import json
import logging
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from common.consortium.expiry import expiries
from common.consortium.home import SiloHome
from common.consortium.joining import check_own
from common.consortium.keys import load_key_p384, read_private
from common.consortium.roster import Consortium, accept, read_signed
from common.doctor.reach import HELLO, ROSTER, NotReached, ask
from common.durable import write_durably
from common.errors import ConfigError, ConsortiumError
from common.logs import environment as log_environment
from common.privacy.ledger import read_ledger
from common.privacy.signing import load_key
from common.supervising import Child

log = logging.getLogger("silorec.client")

LOOK = 0.5
ANSWER_WITHIN = 10.0
CLOCK_AHEAD, CLOCK_BEHIND = 5.0, 300.0
"""Seconds that Flower tolerates in the time that a node signs (``SYSTEM_TIME_TOLERANCE``, ``TIMESTAMP_TOLERANCE``)."""


class SiloService:
    """See the module.

    Parameters
    ----------
    home:
        The silo's.
    told:
        Gets a line for the operator now and then.
    environment:
        More variables for both processes.
    """

    def __init__(
        self,
        home: SiloHome,
        *,
        told: Callable[[str], None] = lambda line: None,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.home, self.told, self.clock, self.today = home, told, clock, today
        self.settings = home.settings()
        self._check_keys()
        self._secret = home.folder / "flower" / "executor.secret"
        self._port = 0
        variables = {**flower_variables(home), **log_environment(), **(environment or {})}
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.settings.device == "cpu" else {}
        logs = home.folder / "logs"
        self.supernode = Child("the SuperNode", self._supernode, logs / "supernode.log", variables)
        self.executor = Child("the executor", self._executor, logs / "executor.log", {**variables, **hidden})
        self._next_roster = -float("inf")
        self._admitted = False
        self._said: list[str] = []

    def run(self) -> None:
        """Until the silo's place in the roster ends.

        Raises
        ------
        ConsortiumError
            Saying why it has ended.
        """
        try:
            while True:
                self.look()
                time.sleep(LOOK)
        finally:
            self.close()

    def look(self) -> None:
        """One look at everything; raises :class:`ConsortiumError` if this silo may not take part any more."""
        if self.clock() >= self._next_roster:
            self._renew_roster()
        if not self._admitted:
            return
        if self.supernode.look() is not None:
            self._explain()
        self.executor.look()

    def close(self) -> None:
        """End both processes; what they had in hand is paid for already, and kept."""
        self.supernode.end()
        self.executor.end()

    def _renew_roster(self) -> None:
        self._next_roster = self.clock() + self.settings.roster_refresh
        try:
            document = self._fetched()
            if not self.home.roster.exists() or document != self.home.roster.read_bytes():
                found = accept(self.home, document, self.today())
                self.told(f"the roster is now version {found.version}, of {len(found.members)} silos")
                self._admitted = False
        except NotReached as error:
            self._tell_once(f"{error.seen}: {error.do}")
        except ConsortiumError as error:
            self._tell_once(str(error))
        if self.home.roster.exists():
            self._stand()
        else:
            self._tell_once(
                f"there is no roster yet: the authority has to admit {self.settings.name}.request; this silo waits for it"
            )
            self._next_roster = self.clock() + min(5.0, self.settings.roster_refresh)

    def _stand(self) -> None:
        """Whether this silo is in the roster and valid, now; if so, both processes may run."""
        consortium = read_signed(self.home.roster, self.home.authority)
        if refusal := why_refused(self.home, consortium, self.today()):
            self.close()
            raise ConsortiumError(refusal)
        if not self._admitted:
            for one in expiries(self.home, consortium):
                if warning := one.warning(self.today()):
                    self._tell_once(f"warning: {warning}")
            if consortium.address != self.settings.coordinator:
                self._tell_once(
                    f"warning: the roster says that the coordinator is at {consortium.address}: change it in silo.toml"
                )
            self._admitted = True
            self._said = []
            self._begin(consortium)

    def _begin(self, consortium: Consortium) -> None:
        self.supernode.end()
        self.executor.end()
        write_durably(self._secret, secrets.token_bytes(32), mode=0o600)
        self._port = _free_port()
        number = consortium.number_of(load_key(self.home.identity_key).public_key)
        self.told(f"silo {number}, {self.settings.name!r} of {consortium.name!r}, answers {self.settings.coordinator}")

    def _explain(self) -> None:
        """Why the SuperNode may have ended, as far as can be found out from here."""
        try:
            answer = ask(self.settings.coordinator, HELLO, self.home.authority, time.time, ANSWER_WITHIN)
        except NotReached as error:
            self.told(f"{error.seen}: {error.do}")
            return
        if answer.ahead is not None and not -CLOCK_BEHIND < answer.ahead < CLOCK_AHEAD:
            way = "ahead of" if answer.ahead > 0 else "behind"
            self.told(
                f"this machine's clock is {abs(answer.ahead):.0f} s {way} the coordinator's, "
                f"and Flower refuses more than {CLOCK_AHEAD:g} s ahead or {CLOCK_BEHIND:g} s behind: set the clock (chronyd or "
                "systemd-timesyncd keep it right)"
            )
            return
        self._next_roster = -float("inf")
        self.told(f"the SuperNode has ended and is started again; the end of its log:\n{self.supernode.tail(8)}")

    def _fetched(self) -> bytes:
        """The roster that the coordinator hands out; whether it counts is for ``accept`` to say."""
        said = ask(self.settings.coordinator, ROSTER, self.home.authority, time.time, ANSWER_WITHIN).facts.get("roster")
        if not isinstance(said, str):
            raise ConsortiumError(f"{self.settings.coordinator} hands out no roster: check the address in silo.toml")
        return said.encode()

    def _tell_once(self, line: str) -> None:
        if line not in self._said:
            self._said = [*self._said[-3:], line]
            self.told(line)

    def _supernode(self) -> list[str]:
        home = self.home
        return [
            *(sys.executable, "-m", "client.supernode"),
            *("--superlink", self.settings.coordinator),
            *("--root-certificates", str(home.authority)),
            *("--auth-supernode-private-key", str(home.node_key)),
            *("--isolation", "process", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--superexec-auth-secret-file", str(self._secret)),
            *("--node-config", f"home={json.dumps(str(home.folder.absolute()))}"),
        ]

    def _executor(self) -> list[str]:
        place = ["--address", f"127.0.0.1:{self._port}", "--secret", str(self._secret), "--home", str(self.home.folder)]
        return [sys.executable, "-m", "client.executor", *place]

    def _check_keys(self) -> None:
        """Before anything is started: all keys are there and nobody else's, and there is a ledger to charge."""
        home = self.home
        load_key(home.identity_key)
        load_key_p384(home.node_key)
        read_private(home.tls_key)
        if not home.ledger.exists():
            state, policy = shlex.quote(str(home.folder)), shlex.quote(str(home.policy))
            raise ConfigError(
                f"{home.ledger}: there is no ledger yet: read and change the policy, then run: silorec ledger init "
                f"{state} --policy {policy}"
            )
        read_ledger(home.ledger)


def why_refused(home: SiloHome, consortium: Consortium, now: datetime) -> str:
    """Why this silo takes no part, a sentence; empty if it does."""
    if refusal := consortium.why_refused(now):
        return refusal
    return check_own(home, consortium).why_refused(now)


def flower_variables(home: SiloHome) -> dict[str, str]:
    """What both processes get: a home of Flower's inside the silo's, no telemetry, and the way to silorec."""
    import os

    here = str(Path(__file__).resolve().parents[1])
    return {
        "FLWR_HOME": str(home.folder / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
