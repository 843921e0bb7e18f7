"""Asking the silos: who is there, and what they answer within the deadline.

A :class:`Roster` is public: the silos, their declared users and so their weights. :class:`Exchange` finds out which of Flower's
nodes is which silo and puts one question to all of them. How often it asks: a silo that did not answer, or whose answer was a
refusal that may pass, is asked again while the quorum is missing, :data:`ATTEMPTS` times in all; a final refusal
(:data:`common.protocol.FINAL`) is taken as said. Asking again is safe for a silo's budget: the silo gives the answer that it
has released already.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.serverapp import Grid

from common.config import Config, FederationConfig
from common.errors import ConfigError, ErrorCode, FederationError
from common.privacy.transcript import Transcript
from common.protocol import (
    ENROL,
    FINAL,
    PROTOCOL_VERSION,
    Fields,
    Request,
    answer_digest,
    question_digest,
    round_of,
    statement,
)
from server.wire import read_reply, request_content

log = logging.getLogger("silorec.server")

ATTEMPTS = 3

Sign = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Roster:
    """The silos of a federation, ``0..n-1``, by the number of users that each declares."""

    declared_users: tuple[int, ...]
    weighting: str = "declared"

    @classmethod
    def of(cls, config: FederationConfig) -> Roster:
        """Raises :class:`ConfigError` if nobody declared anything."""
        if not config.declared_users:
            raise ConfigError(
                "set federation.declared_users to the number of users that each silo declares, in the order of the silos, "
                "for example federation.declared_users = [245, 138, 286, 274]"
            )
        return cls(config.declared_users, config.weighting)

    @property
    def weights(self) -> dict[int, float]:
        """Silo to weight; only their ratios matter."""
        return {silo: float(n) if self.weighting == "declared" else 1.0 for silo, n in enumerate(self.declared_users)}

    def __len__(self) -> int:
        return len(self.declared_users)


@dataclass(frozen=True, eq=False)
class Answers:
    """By silo: the fields of its reply, or the code of its refusal; a silo in neither did not answer."""

    fields: Mapping[int, Fields] = field(default_factory=dict)
    refusals: Mapping[int, ErrorCode] = field(default_factory=dict)

    def describe(self, n_silos: int) -> str:
        """Who did not answer and why, in words."""
        why = {silo: self.refusals[silo].name if silo in self.refusals else "no answer" for silo in range(n_silos)}
        return ", ".join(f"silo {silo}: {reason}" for silo, reason in why.items() if silo not in self.fields)


class Exchange:
    """One federation's way to its silos, over any :class:`Grid`.

    Parameters
    ----------
    grid:
        Carries messages.
    roster, config:
        Public facts; ``config.federation`` gives quorum and deadline.
    sign:
        Signs requests as the coordinator whom the configuration names.
    transcript:
        Notes every answer before it is used.
    pause:
        Seconds between two looks for nodes while some silos are missing.
    """

    def __init__(
        self,
        grid: Grid,
        roster: Roster,
        config: Config,
        config_hash: str,
        *,
        sign: Sign | None = None,
        transcript: Transcript | None = None,
        pause: float = 0.5,
    ) -> None:
        self.grid, self.roster, self.pause = grid, roster, pause
        self._sign, self._transcript = sign, transcript
        self.deadline = config.federation.deadline
        self.quorum = math.ceil(config.federation.quorum * len(roster) - 1e-9)
        self._hello = Request(config_hash=config_hash)
        self._nodes: dict[int, int] = {}
        self._refused: dict[int, list[str]] = {}

    def enrol(self) -> dict[int, int]:
        """Silo to node for all silos that are there: waits for all, up to the deadline, then makes do with a quorum.

        Later calls wait for nobody as long as there is a quorum: silos that left are forgotten, those that came (back) are found.

        Raises
        ------
        FederationError
            If two nodes claim to be the same silo, or there is no quorum at the deadline.
        """
        first, until = not self._nodes, time.monotonic() + self.deadline
        while True:
            present, undecided = self._look()
            enough = len(self.roster) if first else self.quorum
            nobody_else = not undecided and present >= len(self.roster)
            if len(self._nodes) >= enough or nobody_else or time.monotonic() >= until:
                break
            time.sleep(self.pause)
        if len(self._nodes) < self.quorum:
            why = sorted({reasons[-1] for reasons in self._refused.values()})
            refused = f"; {len(self._refused)} nodes were turned away or refused ({', '.join(why)})" if why else ""
            raise FederationError(
                f"{len(self._nodes)} of {len(self.roster)} silos have enrolled, the quorum is {self.quorum}, the deadline "
                f"{self.deadline:g} s{refused}: start the other silos, or lower federation.quorum"
            )
        return dict(sorted(self._nodes.items()))

    def ask(self, action: str, request: Request, *, what: str, length: int | None = None) -> Answers:
        """Put one question to all silos.

        Parameters
        ----------
        action, request:
            The question.
        what:
            Names the stage in errors and in the log.
        length:
            Of the vectors that are expected.

        Raises
        ------
        FederationError
            If fewer than the quorum answer.
        """
        nodes = self.enrol()
        request = self._signed(action, request)
        fields: dict[int, Fields] = {}
        refusals: dict[int, ErrorCode] = {}
        for attempt in range(1, ATTEMPTS + 1):
            open_ = [silo for silo in nodes if silo not in fields and refusals.get(silo) not in FINAL]
            if not open_ or (attempt > 1 and len(fields) >= self.quorum):
                break
            by_node = {nodes[silo]: silo for silo in open_}
            for node, reply in self._send(action, request, by_node, length, group=what):
                silo = by_node[node]
                if isinstance(reply, ErrorCode):
                    refusals[silo] = reply
                else:
                    fields[silo] = reply
                    refusals.pop(silo, None)
        answers = Answers(dict(sorted(fields.items())), dict(sorted(refusals.items())))
        self._note(action, request, answers)
        if len(fields) < len(self.roster):
            log.warning("%s: %s", what, answers.describe(len(self.roster)))
        if len(fields) < self.quorum:
            raise FederationError(
                f"{what}: {len(fields)} of {len(self.roster)} silos answered, the quorum is {self.quorum} "
                f"({answers.describe(len(self.roster))})"
            )
        return answers

    def _signed(self, action: str, request: Request) -> Request:
        if self._sign is None:
            return request
        return replace(request, signature=self._sign(statement(action, request)).hex())

    def _note(self, action: str, request: Request, answers: Answers) -> None:
        if self._transcript is not None:
            digests = {silo: answer_digest(action, reply) for silo, reply in answers.fields.items()}
            codes = {silo: code.name for silo, code in answers.refusals.items()}
            self._transcript.record(action, round_of(request), question_digest(action, request), digests, codes)

    def _look(self) -> tuple[int, int]:
        """Ask nodes that are new who they are; how many nodes there are, and how many of them may still enrol."""
        present = set(self.grid.get_node_ids())
        self._nodes = {silo: node for silo, node in self._nodes.items() if node in present}
        for node, reply in self._send(ENROL, self._signed(ENROL, self._hello), self._open(present), None, group="enrolment"):
            if isinstance(reply, ErrorCode):
                self._turn_away(node, reply.name, final=reply in FINAL)
                continue
            silo, protocol = int(reply["silo"]), int(reply["protocol"])
            if protocol != PROTOCOL_VERSION:
                self._turn_away(node, f"speaks protocol {protocol}, not {PROTOCOL_VERSION}", final=True)
            elif silo >= len(self.roster):
                self._turn_away(node, f"silo {silo} is not in the roster", final=True)
            elif silo in self._nodes:
                raise FederationError(f"two nodes call themselves silo {silo}: give each silo its own place in the roster")
            else:
                self._nodes[silo] = node
        return len(present), len(self._open(present))

    def _open(self, present: set[int]) -> set[int]:
        """Nodes that have not enrolled and may be asked."""
        given_up = {node for node, reasons in self._refused.items() if len(reasons) >= ATTEMPTS}
        return present - set(self._nodes.values()) - given_up

    def _turn_away(self, node: int, reason: str, *, final: bool) -> None:
        log.warning("a node did not enrol: %s", reason)
        self._refused.setdefault(node, []).extend([reason] * (ATTEMPTS if final else 1))

    def _send(
        self, action: str, request: Request, nodes: Iterable[int], length: int | None, *, group: str
    ) -> list[tuple[int, Fields | ErrorCode]]:
        """``(node, reply)`` for each that answered in time; a malformed reply counts as a refusal."""
        messages = [Message(request_content(request), node, action, ttl=self.deadline, group_id=group) for node in sorted(nodes)]
        if not messages:
            return []
        asked = set(nodes)
        out: dict[int, Fields | ErrorCode] = {}
        for message in self.grid.send_and_receive(messages, timeout=self.deadline):
            node = message.metadata.src_node_id
            if node not in asked or node in out:
                continue
            try:
                out[node] = read_reply(message, length)
            except FederationError as error:
                log.warning("%s: a reply is refused: %s", group, error)
                out[node] = ErrorCode.INTERNAL
        return list(out.items())
