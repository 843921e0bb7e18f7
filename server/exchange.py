"""Asking the silos: who is there, and what they answer within the deadline.

A :class:`Roster` is public: the silos and their declared users. :class:`Exchange` finds out which of Flower's
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
    MASK,
    PROTOCOL_VERSION,
    Fields,
    Request,
    SumRequest,
    answer_digest,
    question_digest,
    release_question,
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

    @classmethod
    def of(cls, config: FederationConfig) -> Roster:
        """Raises :class:`ConfigError` if nobody declared anything."""
        if not config.declared_users:
            raise ConfigError(
                "set federation.declared_users to the number of users that each silo declares, in the order of the silos, "
                "for example federation.declared_users = [245, 138, 286, 274]"
            )
        return cls(config.declared_users)

    def __len__(self) -> int:
        return len(self.declared_users)


@dataclass(frozen=True, eq=False)
class Answers:
    """By silo: the fields of its reply, or the code of its refusal; a silo in neither did not answer."""

    fields: Mapping[int, Fields] = field(default_factory=dict)
    refusals: Mapping[int, ErrorCode] = field(default_factory=dict)

    def describe(self, asked: Iterable[int]) -> str:
        """Who of those that were asked did not answer and why, in words."""
        why = {silo: self.refusals[silo].name if silo in self.refusals else "no answer" for silo in asked}
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
        self._sign, self._transcript, self._mode = sign, transcript, config.privacy.mode
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

    def ask(
        self,
        action: str,
        request: Request | Mapping[int, Request],
        *,
        what: str,
        length: int | None = None,
        quorum: int | None = None,
    ) -> Answers:
        """Put one question to all silos, or to some of them a question each.

        Parameters
        ----------
        action, request:
            The question; by silo where each gets its own, and then no other silo is asked.
        what:
            Names the stage in errors and in the log.
        length:
            Of the vectors that are expected.
        quorum:
            How many must answer; None takes the federation's.

        Raises
        ------
        FederationError
            If fewer than the quorum answer.
        """
        nodes, quorum = self.enrol(), quorum or self.quorum
        asked = request if isinstance(request, Mapping) else dict.fromkeys(range(len(self.roster)), request)
        requests = {silo: self._signed(action, one) for silo, one in asked.items()}
        fields: dict[int, Fields] = {}
        refusals: dict[int, ErrorCode] = {}
        for attempt in range(1, ATTEMPTS + 1):
            open_ = [silo for silo in nodes if silo in requests and silo not in fields and refusals.get(silo) not in FINAL]
            if not open_ or (attempt > 1 and len(fields) >= quorum):
                break
            by_node = {nodes[silo]: silo for silo in open_}
            for node, reply in self._send(action, {nodes[silo]: requests[silo] for silo in open_}, length, group=what):
                silo = by_node[node]
                if isinstance(reply, ErrorCode):
                    refusals[silo] = reply
                else:
                    fields[silo] = reply
                    refusals.pop(silo, None)
        answers = Answers(dict(sorted(fields.items())), dict(sorted(refusals.items())))
        self._note(action, requests, answers)
        if len(fields) < len(requests):
            log.warning("%s: %s", what, answers.describe(requests))
        if len(fields) < quorum:
            raise FederationError(
                f"{what}: {len(fields)} of {len(requests)} silos answered, the quorum is {quorum} ({answers.describe(requests)})"
            )
        return answers

    def _signed(self, action: str, request: Request) -> Request:
        if self._sign is None:
            return request
        return replace(request, signature=self._sign(statement(action, request)).hex())

    def _note(self, action: str, requests: Mapping[int, Request], answers: Answers) -> None:
        """Every answer of a silo's own, and every refusal; of a secure sum, the answers that are in the masked vectors."""
        if self._transcript is None or not requests:
            return
        one = next(iter(requests.values()))
        codes = {silo: code.name for silo, code in answers.refusals.items()}
        question, digests = question_digest(action, one), {}
        if not isinstance(one, SumRequest):
            digests = {silo: answer_digest(action, reply) for silo, reply in answers.fields.items()}
        elif action == MASK:
            question = release_question(self._mode, one)
            digests = {silo: reply["release"].hex() for silo, reply in answers.fields.items()}
        name = one.action if isinstance(one, SumRequest) and action == MASK else action
        self._transcript.record(name, round_of(one), question, digests, codes)

    def _look(self) -> tuple[int, int]:
        """Ask nodes that are new who they are; how many nodes there are, and how many of them may still enrol."""
        present = set(self.grid.get_node_ids())
        self._nodes = {silo: node for silo, node in self._nodes.items() if node in present}
        hello = self._signed(ENROL, self._hello)
        for node, reply in self._send(ENROL, dict.fromkeys(self._open(present), hello), None, group="enrolment"):
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
        self, action: str, requests: Mapping[int, Request], length: int | None, *, group: str
    ) -> list[tuple[int, Fields | ErrorCode]]:
        """``(node, reply)`` for each that answered in time, from each node's request; a malformed reply counts as a refusal."""
        messages = [
            Message(request_content(requests[node]), node, action, ttl=self.deadline, group_id=group) for node in sorted(requests)
        ]
        if not messages:
            return []
        out: dict[int, Fields | ErrorCode] = {}
        for message in self.grid.send_and_receive(messages, timeout=self.deadline):
            node = message.metadata.src_node_id
            if node not in requests or node in out:
                continue
            try:
                out[node] = read_reply(message, length)
            except FederationError as error:
                log.warning("%s: a reply is refused: %s", group, error)
                out[node] = ErrorCode.INTERNAL
        return list(out.items())
