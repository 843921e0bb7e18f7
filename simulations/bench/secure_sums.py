"""Secure sums with a clock: all silos of one in turn, or one silo of many, whose peers are made up but valid.

The parts are the real ones, ``client.secagg.Participant`` and ``server.secagg.SecureSum``. There is no wire, but masked vectors
are turned into bytes and back, as for any wire.

Seconds are those of the processor, in all threads of this process (``time.process_time``): what else the machine does is not
counted. Nothing here waits for a disk or a network, so on an idle machine they are those of the clock on the wall.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any
from unittest.mock import patch

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from client import secagg
from client.secagg import Participant, RamMemory
from common.errors import SecAggError
from common.privacy.signing import SigningKey
from common.secagg.context import RoundContext
from common.secagg.fixed_point import FixedPoint
from common.secagg.graph import draw, graph_seed
from common.secagg.keys import Advertisement, EphemeralKeys
from common.secagg.masks import Mask, apply_masks
from common.secagg.messages import pack, pack_advertisements, pack_survivors, survivors_statement
from common.secagg.roster import KeyRoster
from common.secagg.rules import Rules
from common.secagg.sealing import SharePair, seal
from common.secagg.shamir import split
from server.secagg import SecureSum
from simulations.watch import Silent, Watch

RUN = "be" * 32

CHECKING = "check signatures"
"""What grows with all silos, not with a silo's neighbours: the signatures of all keys, and of the quorum of survivors."""


class Clock:
    """Seconds by stage, one figure a call, and the bytes of the largest message of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.received: dict[str, int] = {}
        self.sent: dict[str, int] = {}

    @contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """What happens inside is work of this stage."""
        began = time.process_time()
        yield
        self.seconds.setdefault(stage, []).append(time.process_time() - began)

    def moved(self, stage: str, received: int, sent: int) -> None:
        """So many bytes came and went."""
        self.received[stage] = max(self.received.get(stage, 0), received)
        self.sent[stage] = max(self.sent.get(stage, 0), sent)

    def ask(self, stage: str, answer: Callable[[bytes, bytes], bytes], round_id: bytes, question: bytes) -> bytes:
        """A silo's answer to a question, with its time and size."""
        with self.at(stage):
            data = answer(round_id, question)
        self.moved(stage, len(question), len(data))
        return data

    @property
    def total(self) -> float:
        return sum(sum(calls) for calls in self.seconds.values())


@dataclass(frozen=True)
class Consortium:
    """Silos that know each other by long-term keys, which are made here and forgotten."""

    rules: Rules
    keys: tuple[SigningKey, ...]
    roster: KeyRoster

    @classmethod
    def under(cls, rules: Rules) -> Consortium:
        keys = tuple(SigningKey(Ed25519PrivateKey.generate()) for _ in range(rules.silos))
        names = tuple(f"silo {silo}" for silo in range(rules.silos))
        return cls(rules, keys, KeyRoster(names, tuple(key.public_key for key in keys)))

    def participant(self, silo: int) -> Participant:
        """That silo, at the beginning of a run."""
        return Participant(silo, RUN, self.rules, self.roster, self.keys[silo], RamMemory())


@dataclass(frozen=True)
class Sum:
    """What one secure sum cost and gave: the silos' work, the coordinator's, and the decoded sum, ``(n,)``."""

    silos: Clock
    server: Clock
    values: NDArray[np.float64]

    @property
    def seconds(self) -> float:
        """All silos in turn, and the coordinator."""
        return self.silos.total + self.server.total

    @property
    def masking(self) -> list[float]:
        """Seconds of each silo that gave a vector: fixed point, opening its peers' boxes, all masks, and the bytes to send."""
        return [sum(parts) for parts in zip(self.silos.seconds["encode"], self.silos.seconds["mask"], strict=True)]


def in_turn(
    consortium: Consortium, vectors: Sequence[NDArray[np.float32]], coding: FixedPoint, gone: Collection[int], watch: Watch
) -> Sum:
    """A secure sum of ``vectors``, one for each silo; ``gone`` drop out after they have shared their secrets.

    Raises
    ------
    SecAggError
        If what comes out is not, bit for bit, the sum of the encoded vectors of the others.
    """
    round_id, silos, server, done = secrets.token_bytes(32), Clock(), Clock(), count(1)
    members = range(len(vectors))
    survivors = [silo for silo in members if silo not in gone]
    parts = [consortium.participant(silo) for silo in members]
    coordinator = SecureSum(RoundContext(RUN, round_id), consortium.rules, consortium.roster, coding.dtype, len(vectors[0]))
    watch.stage(f"secure sum, {len(gone)} of {len(members)} silos gone", 2 * len(members) + 3 * len(survivors))

    advertisements, boxes, signatures, shares = {}, {}, {}, {}
    for silo in members:
        with silos.at("advertise"):
            advertisements[silo] = parts[silo].advertise(round_id)
        silos.moved("advertise", 0, len(advertisements[silo]))
        watch.step(next(done))
    with server.at("advertise"):
        listed = coordinator.advertised(advertisements)
    for silo in members:
        boxes[silo] = silos.ask("share", parts[silo].share, round_id, listed)
        watch.step(next(done))
    with server.at("share"):
        relayed = coordinator.shared(boxes)

    plain = np.zeros(len(vectors[0]), coding.dtype)
    for silo in survivors:
        with silos.at("encode"):
            words = coding.encode(vectors[silo]).words
        plain += words
        with silos.at("mask"):
            parts[silo].mask(round_id, relayed[silo], words)
            data = words.tobytes()
        silos.moved("mask", len(relayed[silo]), len(data))
        with server.at("mask"):
            coordinator.add(silo, np.frombuffer(data, coding.dtype))
        watch.step(next(done))

    with server.at("sign"):
        listed = coordinator.summed()
    for silo in survivors:
        signatures[silo] = silos.ask("sign", parts[silo].sign, round_id, listed)
        watch.step(next(done))
    with server.at("sign"):
        quorum = coordinator.signed(signatures)
    for silo in survivors:
        shares[silo] = silos.ask("reveal", parts[silo].reveal, round_id, quorum)
        watch.step(next(done))
    with server.at("reveal"):
        total = coordinator.unmasked(shares)
        values = coding.decode(total, len(survivors))
    if not np.array_equal(total, plain):
        raise SecAggError("the unmasked sum is not the sum of the encoded vectors")
    return Sum(silos, server, values)


def mask_keys(consortium: Consortium) -> tuple[int, float]:
    """Bits of the shortest key that the silos stretch to masks in two sums, and distinct keys over how many there must be.

    There must be one for each silo, its own, and one for each pair of neighbours, which one adds and the other takes off.

    Raises
    ------
    SecAggError
        If a key is used by others than these, or not with opposite signs.
    """
    silos, used = consortium.rules.silos, list[Mask]()

    def noted(words: NDArray[np.unsignedinteger[Any]], masks: Sequence[Mask]) -> None:
        used.extend(masks)
        apply_masks(words, masks)

    coding = FixedPoint.finest(32, 1.0, silos)
    with patch("client.secagg.apply_masks", noted):
        for _ in range(2):
            in_turn(consortium, [np.zeros(8, np.float32)] * silos, coding, (), Silent())
    signs: dict[bytes, list[int]] = {}
    for mask in used:
        signs.setdefault(mask.key, []).append(mask.sign)
    own = sum(found == [1] for found in signs.values())
    pairs = sum(sorted(found) == [-1, 1] for found in signs.values())
    if own + pairs != len(signs) or own != 2 * silos:
        raise SecAggError(f"of {len(signs)} keys of masks {own} are of one silo and {pairs} of a pair")
    wanted = 2 * (silos + silos * consortium.rules.plan(silos).degree // 2)
    return 8 * min(len(key) for key in signs), len(signs) / wanted


def one_of_many(consortium: Consortium, parameters: int) -> Clock:
    """The work of one silo in a secure sum of all: its peers' keys, boxes and signatures are valid, and nobody's time.

    The time of :data:`CHECKING` is taken from the stages in which it falls.
    """
    rules, clock, round_id = consortium.rules, Clock(), secrets.token_bytes(32)
    me, context = consortium.participant(0), RoundContext(RUN, round_id)
    peers = {silo: EphemeralKeys.generate() for silo in range(1, rules.silos)}
    with clock.at("advertise"):
        own = me.advertise(round_id)
    clock.moved("advertise", 0, len(own))
    ads = {0: Advertisement.from_bytes(own)}
    ads |= {silo: keys.advertise(consortium.keys[silo], context, silo) for silo, keys in peers.items()}
    graph = draw(rules.plan(len(ads)), ads, graph_seed(context, ads.values()))
    with _checks_of(clock, "verify_advertisements", "share"):
        clock.ask("share", me.share, round_id, pack_advertisements(ads.values()))

    boxes = {}
    for peer in graph.neighbours(0):
        key = peers[peer].channel_key(context, ads[0], outgoing=True)
        holders, threshold = graph.holders(peer), graph.plan.threshold
        mine = holders.index(0)
        seed, mask_key = (split(one, holders, threshold)[mine] for one in (secrets.token_bytes(32), peers[peer].mask_secret()))
        boxes[peer] = seal(key, context, peer, 0, SharePair(seed, mask_key))
    words = np.zeros(parameters, np.uint32)
    received = pack(boxes)
    with clock.at("mask"):
        me.mask(round_id, received, words)
    clock.moved("mask", len(received), words.nbytes)

    clock.ask("sign", me.sign, round_id, pack_survivors(ads))
    statement = survivors_statement(context, graph_seed(context, ads.values()), ads)
    signatures = {silo: consortium.keys[silo].sign(statement) for silo in range(graph.plan.quorum)}
    with _checks_of(clock, "check_quorum", "reveal"):
        clock.ask("reveal", me.reveal, round_id, pack(signatures))
    return clock


@contextmanager
def _checks_of(clock: Clock, name: str, stage: str) -> Iterator[None]:
    """Move the time that the participant spends in its function ``name`` from ``stage`` to :data:`CHECKING`."""
    real = getattr(secagg, name)

    def timed(*args: Any) -> Any:
        with clock.at(CHECKING):
            return real(*args)

    calls = len(clock.seconds.get(CHECKING, ()))
    with patch.object(secagg, name, timed):
        yield
    clock.seconds[stage][-1] -= sum(clock.seconds[CHECKING][calls:])
