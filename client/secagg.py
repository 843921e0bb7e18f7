"""A silo's part in secure sums: a state machine that reveals one secret of each peer, for one set of survivors, once.

Stages and messages are those of ``common.secagg.messages``. A silo trusts the coordinator with nothing but the delivery of
messages. It has its own roster; it checks every signature; it takes part in an attempt under keys that it made for this attempt
alone; and it answers every stage once: the same message again gets the same answer, another one is refused.

What must be remembered between stages lies on the silo's disk (:class:`FileMemory`): Flower may play each message in another
process, and a silo that forgot for which survivors it has revealed shares could be asked for the others. What is no longer needed
is taken off the disk as the stages pass: after masking the silo's own secrets, after revealing all shares.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.errors import SecAggError
from common.privacy.signing import SigningKey, verify
from common.secagg.context import KEY_BYTES, RoundContext
from common.secagg.graph import Graph, draw, graph_seed
from common.secagg.keys import Advertisement, EphemeralKeys, verify_advertisements
from common.secagg.masks import apply_masks, self_mask
from common.secagg.messages import (
    BOX_RECORD,
    SIGNATURE_RECORD,
    Secret,
    pack,
    pack_revealed,
    survivors_statement,
    unpack,
    unpack_advertisements,
    unpack_survivors,
)
from common.secagg.roster import KeyRoster
from common.secagg.rules import Rules
from common.secagg.sealing import SharePair, seal, unseal
from common.secagg.shamir import Share, split

FORMAT = 1
DIGEST_BYTES = 65

State = dict[str, Any]


class Memory(Protocol):
    """Where a silo's part in a run is remembered."""

    def opened(self) -> AbstractContextManager[State]:
        """The state, to be read and changed; nobody else has it open, and a change is kept when the block ends without error."""
        ...


class RamMemory:
    """Forgets when the process ends: for measurements and simulations without a folder."""

    def __init__(self) -> None:
        self._state: State = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[State]:
        state = json.loads(json.dumps(self._state))
        yield state
        self._state = state


class FileMemory:
    """A file that only its owner can read; changed as a whole, and on the disk before an answer leaves."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def opened(self) -> Iterator[State]:
        """Raises :class:`SecAggError` if the file is damaged."""
        from filelock import FileLock

        from common.durable import write_durably

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            for partial in self.path.parent.glob(f".{self.path.name}.*.partial"):  # left by a kill, with secrets in it
                partial.unlink()
            try:
                before = self.path.read_bytes()
            except FileNotFoundError:
                before = _with_digest(b"{}")
            content = before[DIGEST_BYTES:]
            if before != _with_digest(content):
                raise SecAggError(
                    f"{self.path}: damaged, and without it the silo cannot know what it has revealed; "
                    "restore it, or start another run"
                )
            state = json.loads(content)
            yield state
            after = _with_digest(json.dumps(state).encode())
            if after != before:
                write_durably(self.path, after, mode=0o600)


def _with_digest(content: bytes) -> bytes:
    """A line with the SHA-256 of ``content`` before it: finds a damaged file, also where it is still JSON."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


@dataclass
class _Session:
    """What a silo knows of the attempt that is open; empty fields are of stages to come, or are no longer needed."""

    round_id: bytes
    advertisement: bytes
    keys: bytes = b""
    seed: bytes = b""
    advertisements: bytes = b""
    boxes: bytes = b""
    received: bytes | None = None
    held: dict[int, bytes] = field(default_factory=dict)
    masked: bool = False
    survivors: bytes = b""
    revealed: bytes = b""

    def to_state(self) -> State:
        values: State = {name: value.hex() for name, value in vars(self).items() if isinstance(value, bytes)}
        return values | {"masked": self.masked, "held": {str(owner): pair.hex() for owner, pair in self.held.items()}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> _Session:
        values: State = {name: bytes.fromhex(value) for name, value in state.items() if isinstance(value, str)}
        held = {int(owner): bytes.fromhex(pair) for owner, pair in state["held"].items()}
        return cls(**values, masked=state["masked"], held=held)


class Participant:
    """One silo in the secure sums of one run.

    Parameters
    ----------
    silo:
        Its number.
    run:
        Hash of the run's configuration, 64 hex characters.
    rules, roster:
        The silo's own, never the coordinator's.
    key:
        The silo's long-term key.
    memory:
        Of this silo and this run alone.

    Raises
    ------
    SecAggError
        If the roster has another number of silos than the rules, or another key for this silo. All methods raise it for a message
        that is forged, replayed, altered, late, or asks for what must not be told; the state is then as before.
    """

    def __init__(self, silo: int, run: str, rules: Rules, roster: KeyRoster, key: SigningKey, memory: Memory) -> None:
        if len(roster) != rules.silos:
            raise SecAggError(f"the roster has {len(roster)} silos, the configuration {rules.silos}")
        if roster.by_silo.get(silo) != key.public_key:
            raise SecAggError(f"the roster's key of silo {silo} is not this silo's own: one of the two is wrong")
        self.silo, self.run, self.rules, self.roster = silo, run, rules, roster
        self._key, self._memory = key, memory

    def advertise(self, round_id: bytes) -> bytes:
        """Begin an attempt, which ends the one before: this silo's :class:`Advertisement`, 132 bytes."""
        context = self._context(round_id)
        with self._memory.opened() as state:
            open_ = self._session(state)
            if open_ is not None and open_.round_id == round_id:
                return open_.advertisement
            used = state.setdefault("used", [])
            if round_id.hex() in used:
                raise SecAggError("keys of this name were given before: the message is of an old round")
            keys = EphemeralKeys.generate()
            advertisement = keys.advertise(self._key, context, self.silo).to_bytes()
            state["format"] = FORMAT
            used.append(round_id.hex())
            self._keep(state, _Session(round_id, advertisement, keys.to_disk()))
            return advertisement

    def share(self, round_id: bytes, advertisements: bytes) -> bytes:
        """Shares of this silo's two secrets, sealed for each neighbour: records of 172 bytes.

        ``advertisements`` are those of all who are there; their number and keys make the graph.
        """
        context = self._context(round_id)
        with self._memory.opened() as state:
            session = self._open(state, round_id)
            if session.advertisements:
                if session.advertisements != advertisements:
                    raise SecAggError("two lists of keys for one round: the coordinator shows different silos")
                return session.boxes
            ads = verify_advertisements(unpack_advertisements(advertisements), self.roster.by_silo, context)
            if self.silo not in ads or ads[self.silo].to_bytes() != session.advertisement:
                raise SecAggError("the list of keys does not hold the ones that this silo advertised for this round")
            if gone := sorted(ads.keys() & self.roster.absent):
                raise SecAggError(
                    f"silos {gone} were revoked or have expired, by this silo's own roster: no sum is made with them"
                )
            graph, keys = self._graph(context, ads), EphemeralKeys.from_disk(session.keys)
            session.seed = secrets.token_bytes(KEY_BYTES)
            holders = graph.holders(self.silo)
            shares = [split(secret, holders, graph.plan.threshold) for secret in (session.seed, keys.mask_secret())]
            pairs = [SharePair(*two) for two in zip(*shares, strict=True)]
            pair_of = {pair.holder: pair for pair in pairs}
            session.held[self.silo] = pair_of.pop(self.silo).to_bytes()
            boxes = {}
            for peer, pair in pair_of.items():
                boxes[peer] = seal(keys.channel_key(context, ads[peer], outgoing=True), context, self.silo, peer, pair)
            session.boxes = pack(boxes)
            session.advertisements = advertisements
            self._keep(state, session)
            return session.boxes

    def receive(self, round_id: bytes, boxes: bytes) -> None:
        """Open the shares that neighbours sealed for this silo, records of 172 bytes: it will mask with these, and no others."""
        with self._memory.opened() as state:
            self._keep(state, self._received(self._open(state, round_id), boxes))

    def mask(
        self,
        round_id: bytes,
        boxes: bytes,
        words: NDArray[np.unsignedinteger[Any]],
        keep: Callable[[], None] = lambda: None,
    ) -> None:
        """Put this silo's masks on ``words``, in place; once in a round.

        Parameters
        ----------
        boxes:
            As for :meth:`receive`.
        words:
            uint32 or uint64 ``(n,)``: the encoded vector.
        keep:
            Puts the masked words where they survive this process; called before they count as sent.
        """
        context = self._context(round_id)
        with self._memory.opened() as state:
            session = self._received(self._open(state, round_id), boxes)
            if session.masked:
                raise SecAggError("this silo has given its vector of this round; another under the same masks would tell both")
            ads, keys = self._parsed(session), EphemeralKeys.from_disk(session.keys)
            peers = [peer for peer in session.held if peer != self.silo]
            masks = [keys.pair_mask(context, ads[peer]) for peer in peers]
            apply_masks(words, [*masks, self_mask(session.seed, context, self.silo)])
            keep()
            session.masked, session.keys, session.seed = True, b"", b""
            self._keep(state, session)

    def has_masked(self, round_id: bytes) -> bool:
        """Whether this silo has given its vector of this round."""
        with self._memory.opened() as state:
            session = self._session(state)
            return session is not None and session.round_id == round_id and session.masked

    def sign(self, round_id: bytes, survivors: bytes) -> bytes:
        """This silo's signature, 64 bytes, that these and no others are in the sum; ``survivors`` are numbers of 4 bytes."""
        context = self._context(round_id)
        with self._memory.opened() as state:
            session = self._open(state, round_id)
            if session.survivors and session.survivors != survivors:
                raise SecAggError("two sets of survivors in one round: with both, the coordinator could open single vectors")
            if not session.masked:
                raise SecAggError("this silo has not given its vector, so it signs no sum")
            named, ads = unpack_survivors(survivors), self._parsed(session)
            if not session.survivors:
                self._check_survivors(session, named, self._graph(context, ads))
                session.survivors = survivors
                self._keep(state, session)
            return self._key.sign(survivors_statement(context, graph_seed(context, ads.values()), named))

    def reveal(self, round_id: bytes, signatures: bytes) -> bytes:
        """One share of each peer, records of 75 bytes: a survivor's of the seed of its self-mask, else of the key for its masks.

        ``signatures`` are those of a quorum, of the survivors that this silo signed: records of 68 bytes.
        """
        context = self._context(round_id)
        with self._memory.opened() as state:
            session = self._open(state, round_id)
            if not session.survivors:
                raise SecAggError("this silo has signed no survivors yet, so it reveals nothing")
            named, ads = unpack_survivors(session.survivors), self._parsed(session)
            graph = self._graph(context, ads)
            statement = survivors_statement(context, graph_seed(context, ads.values()), named)
            check_quorum(unpack(signatures, SIGNATURE_RECORD, "signatures"), statement, named, self.roster, graph)
            if session.revealed:
                return session.revealed
            told: dict[int, tuple[Secret, Share]] = {}
            for owner, held in session.held.items():
                pair = SharePair.from_bytes(held)
                told[owner] = (Secret.SEED, pair.seed) if owner in named else (Secret.MASK_KEY, pair.mask_secret)
            session.revealed, session.held = pack_revealed(told), {}
            self._keep(state, session)
            return session.revealed

    def _received(self, session: _Session, boxes: bytes) -> _Session:
        if session.received is not None:
            if session.received != boxes:
                raise SecAggError("two lists of sealed shares for one round")
            return session
        if not session.advertisements:
            raise SecAggError("this silo has not shared its secrets yet, so it takes no shares")
        context, ads = self._context(session.round_id), self._parsed(session)
        graph, keys = self._graph(context, ads), EphemeralKeys.from_disk(session.keys)
        found = unpack(boxes, BOX_RECORD, "sealed shares")
        strangers = sorted(found.keys() - set(graph.neighbours(self.silo)))
        if strangers:
            raise SecAggError(f"silos {strangers} are no neighbours of this one: they have no shares for it")
        if len(found) + 1 < graph.plan.threshold:
            raise SecAggError(
                f"{len(found)} neighbours have shared; the secrets of this silo take {graph.plan.threshold} holders"
            )
        for peer, box in found.items():
            key = keys.channel_key(context, ads[peer], outgoing=False)
            session.held[peer] = unseal(key, context, peer, self.silo, box).to_bytes()
        session.received = boxes
        return session

    def _check_survivors(self, session: _Session, named: tuple[int, ...], graph: Graph) -> None:
        if self.silo not in named:
            raise SecAggError("the vector of this silo is not in the sum: it takes no part in opening it")
        if len(named) < self.rules.least:
            raise SecAggError(f"{len(named)} survivors are too few: a sum is over {self.rules.least} silos or more")
        graph.check_survivors(named)
        strangers = sorted(set(graph.neighbours(self.silo)) & set(named) - set(session.held))
        if strangers:
            raise SecAggError(f"silos {strangers} count as survivors, but this silo has no shares of theirs")

    def _graph(self, context: RoundContext, ads: Mapping[int, Advertisement]) -> Graph:
        return draw(self.rules.plan(len(ads)), ads, graph_seed(context, ads.values()))

    def _parsed(self, session: _Session) -> dict[int, Advertisement]:
        """The advertisements of the round, which :meth:`share` has verified."""
        return {one.silo: one for one in unpack_advertisements(session.advertisements)}

    def _context(self, round_id: bytes) -> RoundContext:
        return RoundContext(self.run, round_id)

    def _open(self, state: State, round_id: bytes) -> _Session:
        session = self._session(state)
        if session is None or session.round_id != round_id:
            raise SecAggError("no round of this name is open here: the message is old, or this silo was not asked for keys")
        return session

    @staticmethod
    def _session(state: State) -> _Session | None:
        return _Session.from_state(state["open"]) if state.get("open") else None

    @staticmethod
    def _keep(state: State, session: _Session) -> None:
        state["open"] = session.to_state()


def check_quorum(
    signatures: Mapping[int, bytes], statement: bytes, survivors: tuple[int, ...], roster: KeyRoster, graph: Graph
) -> None:
    """Check that enough survivors signed ``statement``.

    Raises
    ------
    SecAggError
        If one of the signers is no survivor, a signature is not theirs, or they are fewer than the quorum.
    """
    for silo, signature in signatures.items():
        if silo not in survivors:
            raise SecAggError(f"silo {silo} is no survivor of this round, and signs for it")
        if not verify(roster.by_silo.get(silo, ""), signature, statement):
            raise SecAggError(f"silo {silo} did not sign these survivors: the signature is forged, or of another set or round")
    if len(signatures) < graph.plan.quorum:
        raise SecAggError(f"{len(signatures)} silos signed the survivors; a quorum is {graph.plan.quorum}")
