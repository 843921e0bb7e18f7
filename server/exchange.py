"""Asking the silos: who is there, and what they answer within the deadline.

A :class:`Roster` is public: the silos and their declared users. :class:`Exchange` finds out which of Flower's
nodes is which silo and puts one question to all of them that are invited (``server.attendance``). How often it asks: a silo that
did not answer, or whose answer was a refusal that may pass, is asked again while the quorum is missing, :data:`ATTEMPTS` times
in all; a final refusal (:data:`common.protocol.FINAL`) is taken as said. Asking again is safe for a silo's budget: the silo gives
the answer that it has released already.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.serverapp import Grid

from common.config import Config, FederationConfig
from common.errors import ConfigError, ErrorCode, FederationError, RoundFailed
from common.privacy.transcript import Transcript
from common.protocol import (
    ADVERTISE,
    BUDGET,
    ENROL,
    FINAL,
    FOR_GOOD,
    MASK,
    PROTOCOL_VERSION,
    REVEAL,
    SHARE,
    SIGN,
    Fields,
    Request,
    SumRequest,
    answer_digest,
    question_digest,
    release_question,
    round_of,
    statement,
)
from server.attendance import Attendance, Tell, telling
from server.post import LONGEST, SHORTEST, Post, Wait
from server.wire import read_reply

log = logging.getLogger("silorec.server")

ATTEMPTS = 3

#: Questions for which a silo computes next to nothing; they have a deadline of their own.
LIGHT = frozenset({ENROL, ADVERTISE, SHARE, SIGN, REVEAL, BUDGET})

#: What is kept of an answer that is handed on as it comes.
Keep = Callable[[int, Fields], Fields]

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
        Public facts; ``config.federation`` gives quorum, deadlines and patience.
    sign:
        Signs requests as the coordinator whom the configuration names.
    transcript:
        Notes every answer before it is used.
    tell:
        Hears of stages, and of silos that are left out and invited again.
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
        tell: Tell | None = None,
    ) -> None:
        self.grid, self.roster, self.settings = grid, roster, config.federation
        self._sign, self._transcript, self._mode = sign, transcript, config.privacy.mode
        self._tell = telling(tell)
        self.quorum = math.ceil(config.federation.quorum * len(roster) - 1e-9)
        self.absent: frozenset[int] = frozenset()
        """Silos that take no part any more, by the roster of their keys: they are asked for nothing but their number."""
        self.attendance = Attendance(self.quorum, self.settings.backoff_rounds, self._tell)
        self._hello = Request(config_hash=config_hash)
        self._hellos = Post(grid, self.deadline_of(ENROL), "enrolment")
        self._nodes: dict[int, int] = {}
        self._refused: dict[int, list[str]] = {}
        self._doubles: set[int] = set()
        self._first = True
        self._asked: set[int] = set()
        self._missed: dict[int, str] = {}

    def deadline_of(self, action: str) -> float:
        """Seconds for one try of a stage."""
        settings = self.settings
        return min(settings.stage_deadline, settings.deadline) if action in LIGHT else settings.deadline

    def begin(self, number: int, *, absent: Collection[int] = (), again: bool = False) -> None:
        """Decide whom round ``number`` is asked of; ``again`` says that it is not tried for the first time.

        Raises
        ------
        FederationError
            As :meth:`enrol`.
        """
        self.absent, self._asked, self._missed = frozenset(absent), set(), {}
        self.attendance.begin(number, self.enrol(), everybody=again)

    def finish(self, number: int, took_part: Iterable[int]) -> None:
        """Round ``number`` is done: who was there, was asked, and is not in it has failed."""
        there = set(took_part)
        for silo in there:
            self.attendance.came(silo)
        for silo in sorted(self._asked - there):
            if why := self._missed.get(silo, "its answers did not fit"):
                self.attendance.failed(silo, number, why)

    def enrol(self) -> dict[int, int]:
        """Silo to node for all silos that are there: waits for all, up to the deadline, then makes do with a quorum.

        Later calls wait for nobody as long as there is a quorum: silos that left are forgotten, those that came (back) are found.
        A second node that claims a silo's place then gets it when the first one has gone.

        Raises
        ------
        FederationError
            If two nodes claim to be the same silo the first time, or there is no quorum at the deadline.
        """
        first, deadline = self._first, self.settings.enrolment_deadline or self.settings.deadline
        until, pause = time.monotonic() + deadline, SHORTEST
        while True:
            present, undecided = self._look()
            there = {silo: node for silo, node in sorted(self._nodes.items()) if silo not in self.absent}
            enough = len(self.roster) - len(self.absent) if first else self.quorum
            nobody_else = not undecided and present >= len(self.roster)
            if len(there) >= enough or nobody_else or time.monotonic() >= until:
                break
            time.sleep(max(0.0, min(pause, until - time.monotonic())))
            pause = min(1.5 * pause, LONGEST)
        if len(there) < self.quorum:
            why = sorted({reasons[-1] for reasons in self._refused.values()})
            refused = f"; {len(self._refused)} nodes were turned away or refused ({', '.join(why)})" if why else ""
            raise RoundFailed(
                f"{len(there)} of {len(self.roster)} silos have enrolled, the quorum is {self.quorum}, the deadline "
                f"{deadline:g} s{refused}: start the other silos, or lower federation.quorum",
                again=not first,
            )
        self._first = False
        return there

    def ask(
        self,
        action: str,
        request: Request | Mapping[int, Request],
        *,
        what: str,
        length: int | None = None,
        quorum: int | None = None,
        keep: Keep | None = None,
    ) -> Answers:
        """Put one question to all silos that are invited, or to some of them a question each.

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
        keep:
            ``keep(silo, fields)`` is called with each answer as it comes, once, and says what is kept of it.

        Raises
        ------
        RoundFailed
            If fewer than the quorum answer, or are left to be asked.
        FederationError
            As :meth:`enrol`.
        """
        self.enrol()
        quorum = self.quorum if quorum is None else quorum
        asked = request if isinstance(request, Mapping) else dict.fromkeys(self._invited(), request)
        requests = {silo: self._signed(action, one) for silo, one in asked.items()}
        fields: dict[int, Fields] = {}
        refusals: dict[int, ErrorCode] = {}
        began, post = time.monotonic(), Post(self.grid, self.deadline_of(action), what)
        stage = {
            "round": round_of(next(iter(requests.values()), self._hello)),
            "stage": action,
            "asked": sorted(requests),
            "deadline": post.seconds,
        }
        self._tell({"event": "stage_begins", **stage})
        for attempt in range(1, ATTEMPTS + 1):
            if attempt > 1:
                self._look()
            open_ = {
                silo: node
                for silo, node in sorted(self._nodes.items())
                if silo in requests and silo not in fields and refusals.get(silo) not in FINAL
            }
            if not open_ or len(requests) < quorum or (attempt > 1 and len(fields) >= quorum):
                break
            wait = Wait(post.seconds, self.settings.patience)
            for silo, reply in self._replies(
                post, action, {node: (silo, requests[silo]) for silo, node in open_.items()}, length, wait
            ):
                if isinstance(reply, ErrorCode):
                    refusals[silo] = reply
                    continue
                fields[silo] = reply if keep is None else keep(silo, reply)
                refusals.pop(silo, None)
                if len(fields) >= quorum:
                    wait.enough()
        answers = Answers(dict(sorted(fields.items())), dict(sorted(refusals.items())))
        self._note(action, requests, answers)
        self._remember(action, post, requests, answers)
        self._tell(
            {
                "event": "stage",
                **stage,
                "answered": list(answers.fields),
                "refused": {str(silo): code.name for silo, code in answers.refusals.items()},
                "seconds": time.monotonic() - began,
            }
        )
        if len(fields) < len(requests):
            log.warning("%s: %s", what, answers.describe(requests))
        if len(fields) < quorum:
            raise RoundFailed(self._too_few(what, quorum, requests, answers), again=self._within_reach(quorum))
        return answers

    def budgets(self, silos: Iterable[int], *, what: str) -> dict[int, float | None]:
        """What each of ``silos`` shows of the epsilon that it has left; None where it does not show it, or does not answer."""
        asked = dict.fromkeys(silos, self._hello)
        try:
            told = self.ask(BUDGET, asked, what=f"{what}, {BUDGET}", quorum=0).fields
        except FederationError as error:
            log.warning("%s: nobody was asked for the budget that is left: %s", what, error)
            told = {}
        return {silo: told[silo]["budget"] / 1000 if silo in told else None for silo in asked}

    def _invited(self) -> list[int]:
        out = self.attendance.left_out | self.absent
        return [silo for silo in range(len(self.roster)) if silo not in out]

    def _within_reach(self, quorum: int) -> bool:
        """Whether there may ever be so many answers in this run."""
        return len(self.roster) - len(self.absent | self.attendance.refused.keys()) >= quorum

    def _too_few(self, what: str, quorum: int, requests: Mapping[int, Request], answers: Answers) -> str:
        if len(requests) >= quorum:
            why = answers.describe(requests)
            return f"{what}: {len(answers.fields)} of {len(requests)} silos answered, the quorum is {quorum} ({why})"
        left = [f"silo {silo}: {code}" for silo, code in sorted(self.attendance.refused.items())]
        left += [f"silo {silo}: no longer valid in the roster" for silo in sorted(self.absent)]
        return f"{what}: {len(requests)} of {len(self.roster)} silos can be asked, the quorum is {quorum} ({', '.join(left)})"

    def _remember(self, action: str, post: Post, requests: Mapping[int, Request], answers: Answers) -> None:
        """Who was asked in this round, and why who did not answer; whose node is gone is not there, which is no failure."""
        if action == BUDGET:
            return
        self._asked |= requests.keys()
        missing = [silo for silo in requests if silo not in answers.fields]
        there = post.nodes() if missing else set()
        for silo in missing:
            code = answers.refusals.get(silo)
            if code in FOR_GOOD:
                self.attendance.refuse(silo, code.name)
            elif self._nodes.get(silo) not in there:
                self._missed[silo] = ""
            else:
                self._missed[silo] = "no answer" if code is None else code.name

    def _signed(self, action: str, request: Request) -> Request:
        if self._sign is None:
            return request
        return replace(request, signature=self._sign(statement(action, request)).hex())

    def _note(self, action: str, requests: Mapping[int, Request], answers: Answers) -> None:
        """Every answer of a silo's own, and every refusal; of a secure sum, the answers that are in the masked vectors."""
        if self._transcript is None or not requests or action == BUDGET:
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
        """Ask nodes that are new who they are, and hear who has said so by now, without waiting: how many nodes there are, and
        how many of them may still enrol.
        """
        present = self._hellos.nodes()
        self._nodes = {silo: node for silo, node in self._nodes.items() if node in present}
        self._refused = {node: reasons for node, reasons in self._refused.items() if node in present}
        hello = self._signed(ENROL, self._hello)
        for node in sorted(self._open(present)):
            if not self._hellos.owes(node):
                self._hellos.put(ENROL, node, hello)
        for node, message in self._hellos.come():
            if node not in self._open(present):
                continue
            reply = self._read(message, None, "enrolment")
            if isinstance(reply, ErrorCode):
                self._turn_away(node, reply.name, final=reply in FINAL)
                continue
            silo, protocol = int(reply["silo"]), int(reply["protocol"])
            if protocol != PROTOCOL_VERSION:
                self._turn_away(node, f"speaks protocol {protocol}, not {PROTOCOL_VERSION}", final=True)
            elif silo >= len(self.roster):
                self._turn_away(node, f"silo {silo} is not in the roster", final=True)
            elif silo in self._nodes and self._first:
                raise FederationError(f"two nodes call themselves silo {silo}: give each silo its own place in the roster")
            elif silo in self._nodes:  # started again before Flower has noticed that its old node is gone
                if node not in self._doubles:
                    log.warning("a second node calls itself silo %d: it is taken when the first one is gone", silo)
                self._doubles.add(node)
            else:
                self._nodes[silo] = node
                self.attendance.back(silo)
        return len(present), len(self._open(present))

    def _open(self, present: set[int]) -> set[int]:
        """Nodes that have not enrolled and may be asked."""
        given_up = {node for node, reasons in self._refused.items() if len(reasons) >= ATTEMPTS}
        return present - set(self._nodes.values()) - given_up

    def _turn_away(self, node: int, reason: str, *, final: bool) -> None:
        log.warning("a node did not enrol: %s", reason)
        self._refused.setdefault(node, []).extend([reason] * (ATTEMPTS if final else 1))

    def _replies(
        self, post: Post, action: str, requests: Mapping[int, tuple[int, Request]], length: int | None, wait: Wait
    ) -> Iterator[tuple[int, Fields | ErrorCode]]:
        """``(silo, reply)`` for each that answered in time, from each node's silo and request."""
        for node, message in post.answers(action, {node: request for node, (_, request) in requests.items()}, wait):
            if node in requests:
                yield requests[node][0], self._read(message, length, post.group)

    @staticmethod
    def _read(message: Message, length: int | None, what: str) -> Fields | ErrorCode:
        """A malformed reply counts as a refusal."""
        try:
            return read_reply(message, length)
        except FederationError as error:
            log.warning("%s: a reply is refused: %s", what, error)
            return ErrorCode.INTERNAL
