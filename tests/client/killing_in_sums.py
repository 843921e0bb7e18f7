"""A silo that is killed while it takes part in secure sums: ``python -m tests.client.killing_in_sums FOLDER SEED LIVES MODE``.

As :mod:`tests.client.killing`, but this process plays the coordinator and the silo's peers, too. A stage that the silo did not
answer is put to its next life again, as a coordinator would; where that is refused, the attempt is made anew. What has left the
silo are the replies that came through the pipe, and of a masked vector its ``release``: the digest that the ledger must hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import client.dp_steps
import client.releases
import client.silo
import common.durable
from client.place import KEY, LEDGER, Place
from client.release import code_of
from client.releases import kept_answer, read_kept
from client.silo import Silo
from common.config import Config
from common.errors import ErrorCode
from common.model.resident import resident
from common.privacy.accountant import epsilon
from common.privacy.filter import epsilon_at, rdp_at
from common.privacy.ledger import Ledger, read_ledger
from common.privacy.policy import Policy
from common.privacy.signing import create_key
from common.protocol import (
    ADVERTISE,
    MASK,
    REVEAL,
    SHARE,
    SIGN,
    AdapterRequest,
    Fields,
    Request,
    SumRequest,
    answer_digest,
    config_hash,
    question_digest,
    release_question,
    round_of,
)
from common.secagg.coding import coding_of, weights_of
from common.secagg.roster import KeyRoster, write_roster
from server.secagg import SecureSum
from tests import tiny
from tests.client.killing import questions
from tests.secure_silos import Consortium

N, ROUNDS = 3, 400
#: Where a life may end by plan: around each step of a release, of masking, and of every change of what the silo remembers.
PLACES = (
    "reserve",
    "reserved",
    "computed",
    "kept",
    "committed",
    "masked",
    "masked and kept",
    "before it is remembered",
    "remembered",
    "released",
    "in the middle of computing",
)


def settings(mode: str) -> Config:
    return tiny.config(privacy__mode=mode, partition__silos=N, federation__rounds=ROUNDS, training__local_steps=1)


def live(config: Config, place: Place, pipe: Connection, end: str | None, after: int) -> None:
    """Answer what comes through the pipe; die at the ``after``-th time that the place ``end`` is reached."""
    left = [after]

    def reached(where: str | None) -> None:
        if where is not None and where == end:
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(
        owner: Any, name: str, before: str | None, behind: str | None, which: Callable[..., bool] = lambda *_, **__: True
    ) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            counts = which(*args, **kwargs)
            reached(before if counts else None)
            result = real(*args, **kwargs)
            reached(behind if counts else None)
            return result

        setattr(owner, name, watched)

    around(Ledger, "reserve", "reserve", "reserved")
    around(client.releases, "write_kept", "computed", "kept")
    around(Ledger, "commit", None, "committed")
    around(client.silo, "write_kept", "masked", "masked and kept")
    is_memory: Callable[..., bool] = lambda path, *_, **__: path.suffix == ".json"  # noqa: E731
    around(common.durable, "write_durably", "before it is remembered", "remembered", is_memory)
    around(client.dp_steps, "per_user_gradients", "in the middle of computing", None)
    silo = Silo(config, place)
    while True:
        stage, request = pipe.recv()
        try:
            reply: Fields | ErrorCode = dict(getattr(silo, stage.removeprefix("query."))(request))
        except Exception as error:
            reply = code_of(error)
        pipe.send(reply)
        if stage == MASK:
            reached("released")


class Killed(Exception):
    """The silo has died before its reply came."""


class Lives:
    """The silo, one life after the other, and the figures that are printed after each."""

    def __init__(self, config: Config, place: Place, seed: int, lives: int) -> None:
        self.config, self.place, self.lives, self.random = config, place, lives, random.Random(seed)
        self.number = -1
        self.begin()

    def begin(self) -> None:
        self.number += 1
        self.end = PLACES[self.number // 2 % len(PLACES)] if self.number % 2 == 0 else None
        seconds = None if self.end else self.random.uniform(0.0, 0.4)
        self.until = None if seconds is None else time.monotonic() + seconds
        self.why = self.end or f"after {seconds:.3f} s"
        self.pipe, other = Pipe()
        after = self.random.randint(1, 7 if self.end in ("before it is remembered", "remembered") else 3)
        self.child = os.fork()
        if self.child == 0:
            self.pipe.close()
            try:
                live(self.config, self.place, other, self.end, after)
            finally:
                os._exit(1)
        other.close()

    def ask(self, stage: str, request: SumRequest) -> Fields | ErrorCode:
        """What left the silo; a reply that was on its way when the silo was killed has left it."""
        try:
            self.pipe.send((stage, request))
            wait = None if self.until is None else max(0.0, self.until - time.monotonic())
            if not self.pipe.poll(wait):
                os.kill(self.child, signal.SIGKILL)
            return self.pipe.recv()  # type: ignore[no-any-return]
        except (EOFError, ConnectionError):
            os.waitpid(self.child, 0)
            self.pipe.close()
            raise Killed from None


class Enough(Exception):
    """All lives are over."""


class Coordinator:
    """Asks for one sum after the other, and keeps what left the silo, as its adversary would."""

    def __init__(self, config: Config, folder: Path, seed: int, lives: int) -> None:
        self.config, self.folder = config, folder
        self.silos = Consortium(N)
        self.silos.run = config_hash(config)
        self.plan = Silo(config, Place(0, folder, simulated=True)).plan
        key = create_key(folder / KEY)
        self.silos.keys = (key, *self.silos.keys[1:])
        self.silos.roster = KeyRoster(self.silos.roster.names, tuple(one.public_key for one in self.silos.keys))
        roster = write_roster(folder / "roster.toml", self.silos.roster)
        policy = Policy(
            silo="silo-0",
            epsilon=3 * config.privacy.epsilon,
            delta=self.plan.delta,
            modes=("silo", "distributed"),
            coordinators=("any",),
        )
        Ledger.create(folder / LEDGER, policy, key)
        #: By the digest of the released question: the event, and the digest of the answer.
        self.held: dict[str, tuple[Any, str]] = {}
        #: By attempt: the digest of the masked vector.
        self.masked: dict[bytes, str] = {}
        self.sums, self.again, self.told, self.faults = 0, 0, 0, list[str]()
        self.lives = Lives(config, Place(0, folder, roster=roster, simulated=True), seed, lives)

    def run(self) -> None:
        for number, (action, request) in enumerate(questions(self.config)):
            while not self.attempt(number, action, request):
                self.again += 1

    def ask(self, stage: str, request: SumRequest, number: int) -> Fields | None:
        """The silo's reply, from whichever life; None if it refuses."""
        while True:
            try:
                reply = self.lives.ask(stage, request)
            except Killed:
                self.look()
                if self.lives.number + 1 == self.lives.lives:
                    raise Enough from None
                self.told = 0
                self.lives.begin()
                continue
            if isinstance(reply, ErrorCode):
                if reply is not ErrorCode.SECAGG_REFUSED:
                    self.faults.append(f"{stage}: {reply.name}")
                return None
            self.told += 1
            if stage == MASK:
                self.note(request, number, reply)
            return reply

    def note(self, request: SumRequest, number: int, reply: Fields) -> None:
        """A masked vector has left the silo."""
        question, release = release_question(self.config.privacy.mode, request), reply["release"].hex()
        vector = hashlib.sha256(reply["masked"].tobytes()).hexdigest()
        if self.masked.setdefault(request.round_id, vector) != vector:
            self.faults.append("two vectors under the same masks")
        if self.held.setdefault(question, (self.plan.all_events()[number], release))[1] != release:
            self.faults.append("two answers to one question")

    def attempt(self, number: int, action: str, request: Request) -> bool:
        adapter = request if isinstance(request, AdapterRequest) else None
        length = 24 if adapter is None else len(adapter.vector)
        asked = SumRequest(
            config_hash=self.silos.run,
            action=action,
            round=round_of(request),
            question=question_digest(action, request),
            nonce=secrets.token_bytes(32),
            roster=self.silos.roster.digest,
            manifest_hash=adapter.manifest_hash if adapter else "",
        )
        name, coding = asked.round_id, coding_of(action, self.config, length)
        peers = [self.silos.participant(peer) for peer in range(1, N)]
        summed = SecureSum(self.silos.context(name), self.silos.rules, self.silos.roster, coding.dtype, length)
        ad = self.ask(ADVERTISE, asked, number)
        if ad is None:
            return False
        keys = summed.advertised({0: ad["advertisement"]} | {peer.silo: peer.advertise(name) for peer in peers})
        shares = self.ask(SHARE, replace(asked, payload=keys), number)
        if shares is None:
            return False
        boxes = summed.shared({0: shares["shares"]} | {peer.silo: peer.share(name, keys) for peer in peers})
        question = replace(asked, payload=boxes[0], vector=adapter.vector if adapter else None)
        answer = self.ask(MASK, question, number)
        if answer is not None and self.lives.random.random() < 0.5:  # as if the answer had been lost
            answer = self.ask(MASK, question, number)
        if answer is None or self.lives.random.random() < 0.15:  # as if too few others had given theirs
            return False
        summed.add(0, answer["masked"])
        for peer in peers:
            words = np.zeros(length, coding.dtype)
            peer.mask(name, boxes[peer.silo], words)
            summed.add(peer.silo, words)
        survivors = summed.summed()
        signed = self.ask(SIGN, replace(asked, payload=survivors), number)
        if signed is None:
            return False
        quorum = summed.signed({0: signed["signature"]} | {peer.silo: peer.sign(name, survivors) for peer in peers})
        revealed = self.ask(REVEAL, replace(asked, payload=quorum), number)
        if revealed is None:
            return False
        words = summed.unmasked({0: revealed["revealed"]} | {peer.silo: peer.reveal(name, quorum) for peer in peers})
        self.compare(action, asked, words, answer["release"].hex())
        self.sums += 1
        return True

    def compare(self, action: str, asked: SumRequest, words: Any, release: str) -> None:
        """The peers' vectors are zero, so the sum is the silo's: is it the answer that the digest commits to?"""
        question = release_question(self.config.privacy.mode, asked)
        kept = read_kept(kept_answer(self.folder, self.silos.run, action), question)
        if kept is None or answer_digest(action, kept.fields, kept.salt) != release:
            self.faults.append("the answer that is kept is not the one that was committed")
            return
        ((value,), coding) = kept.fields.values(), coding_of(action, self.config, len(words))
        if self.config.privacy.mode == "distributed":
            same = np.array_equal(words, value)
        else:
            weighted = value.astype(np.float64) * weights_of(action, self.config)[0]
            same = bool(np.abs(coding.decode(words, N) - weighted).max() < 1 / coding.scale)
        if not same:
            self.faults.append("what was summed is not the answer that was committed")

    def look(self) -> None:
        """The auditor's look at the ledger, after a life: what it counts against what the other side holds."""
        chain = read_ledger(self.folder / LEDGER)
        order, delta = chain.policy.order or 2.0, self.plan.delta
        charged = [what.released for _, what in chain.reservations]
        released = [event for event, _ in self.held.values()]
        committed = {
            (what.question, chain.commitments[entry.seq].what.answer)
            for entry, what in chain.reservations
            if entry.seq in chain.commitments
        }
        line = {
            "life": self.lives.number,
            "end": self.lives.why,
            "told": self.told,
            "sums": self.sums,
            "again": self.again,
            "faults": self.faults,
            "charged": epsilon_at(sum(rdp_at(e, order) for e in charged), order, delta),
            "released": epsilon_at(sum(rdp_at(e, order) for e in released), order, delta),
            "charged_rdp": epsilon(charged, delta),
            "released_rdp": epsilon(released, delta),
            "reservations": len(charged),
            "held": len(self.held),
            "attempts": len(self.masked),
            "all_committed": all((question, answer) in committed for question, (_, answer) in self.held.items()),
            "findings": [str(finding) for finding in chain.findings],
        }
        print(json.dumps(line), flush=True)  # noqa: T201


def main(folder: Path, seed: int, lives: int, mode: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = settings(mode)
    resident(config)  # loaded once, for all lives
    try:
        Coordinator(config, folder, seed, lives).run()
    except Enough:
        return
    raise SystemExit("the run was over before the lives were")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
