"""Silos without models or data, whose vectors are made up and whose part in sums is real: keys, shares, masks, signatures.

They answer plainly too, so a test can compare both ways to a sum. What went under the masks is kept for tests: the encoded words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client.release import answer
from client.wire import read_adapter_request, read_request, read_sum_request
from common.config import Config, load
from common.errors import ErrorCode
from common.privacy.transcript import Transcript
from common.protocol import (
    ADVERTISE,
    COUNT,
    MASK,
    PROTOCOL_VERSION,
    REVEAL,
    SHARE,
    SIGN,
    TRAIN,
    AdapterRequest,
    Fields,
    Refusal,
    Request,
    SumRequest,
    check_request,
    config_hash,
    question_digest,
    round_of,
)
from common.secagg.coding import coding_of, mechanism_of, weights_of
from server.aggregation import PlainAggregation, SecureAggregation
from server.exchange import Exchange, Roster
from simulations.grid import Faults, InProcessGrid
from tests.secure_silos import Consortium

STAGES = (ADVERTISE, SHARE, MASK, SIGN, REVEAL)

Words = NDArray[np.unsignedinteger[Any]]

#: ``vector(silo, action, asked)`` is what a silo answers: float32 ``(length,)``.
Vector = Callable[[int, str, Request], NDArray[np.float32]]


def settings(n: int, **sections: Any) -> Config:
    """A run of ``n`` silos in mode none; the users that they declare differ."""
    base: dict[str, Any] = {
        "privacy.mode": "none",
        "partition.silos": n,
        "federation.deadline": 1.0,
        "federation.round_attempts": 1,
        "federation.round_pause": 0.0,
    }
    declared = [20 + 7 * (i * 13 % 31) for i in range(n)]
    return load(base, {"federation.declared_users": declared}, {k.replace("__", "."): v for k, v in sections.items()})


def question(config: Config, action: str, length: int = 3, number: int = 1) -> Request:
    """What the coordinator asks: about an adapter of ``length`` zeros, or for the count."""
    if action == COUNT:
        return Request(config_hash=config_hash(config))
    vector = np.zeros(length, np.float32)
    return AdapterRequest(config_hash=config_hash(config), round=number, manifest_hash="manifest", vector=vector)


class MaskingSilos:
    """All silos of one run, in this process.

    ``words[round_id][silo]`` are the words that a silo put under its masks; ``asked`` are the questions that came to silos, with
    the stage and the silo.
    """

    def __init__(self, config: Config, vector: Vector) -> None:
        self.config, self.vector = config, vector
        aggregation = config.aggregation
        self.consortium = Consortium(config.partition.silos, dropout=aggregation.dropout, corrupt=aggregation.corrupt)
        self.consortium.run = config_hash(config)
        self.words: dict[bytes, dict[int, Words]] = {}
        self.asked: list[tuple[str, int, SumRequest]] = []
        self._masked: dict[tuple[bytes, int], Words] = {}

    def grid(self, faults: Faults | None = None) -> InProcessGrid:
        return InProcessGrid(self._app(), self.config.partition.silos, faults=faults)

    def exchange(self, faults: Faults | None = None, transcript: Transcript | None = None) -> Exchange:
        this = config_hash(self.config)
        return Exchange(self.grid(faults), Roster.of(self.config.federation), self.config, this, transcript=transcript)

    def plain(self, faults: Faults | None = None) -> PlainAggregation:
        return PlainAggregation(self.exchange(faults), self.config)

    def secure(self, faults: Faults | None = None, transcript: Transcript | None = None) -> SecureAggregation:
        return SecureAggregation(self.exchange(faults, transcript), self.config, self.consortium.roster, transcript)

    def _app(self) -> ClientApp:
        app = ClientApp()

        def silo_of(context: Context) -> int:
            return int(context.node_config["partition-id"])

        @app.query("enrol")
        def _(message: Message, context: Context) -> Message:
            return answer(message, lambda: {"silo": silo_of(context), "protocol": PROTOCOL_VERSION})

        @app.query("count")
        def _(message: Message, context: Context) -> Message:
            return answer(message, lambda: self._plainly(silo_of(context), COUNT, read_request(message)))

        @app.train()
        def _(message: Message, context: Context) -> Message:
            return answer(message, lambda: self._plainly(silo_of(context), TRAIN, read_adapter_request(message)))

        stages = {
            ADVERTISE: lambda silo, asked: {"advertisement": self._silo(silo).advertise(asked.round_id)},
            SHARE: lambda silo, asked: {"shares": self._silo(silo).share(asked.round_id, asked.payload)},
            MASK: self._mask,
            SIGN: lambda silo, asked: {"signature": self._silo(silo).sign(asked.round_id, asked.payload)},
            REVEAL: lambda silo, asked: {"revealed": self._silo(silo).reveal(asked.round_id, asked.payload)},
        }
        for stage, play in stages.items():

            @app.query(stage.removeprefix("query."))
            def _(message: Message, context: Context, stage: str = stage, play: Any = play) -> Message:
                return answer(message, lambda: play(silo_of(context), self._checked(stage, silo_of(context), message)))

        return app

    def _silo(self, silo: int) -> Any:
        return self.consortium.participant(silo)

    def _checked(self, stage: str, silo: int, message: Message) -> SumRequest:
        asked = read_sum_request(message)
        check_request(asked, stage, self.config)
        self.asked.append((stage, silo, asked))
        return asked

    def _plainly(self, silo: int, action: str, asked: Request) -> Fields:
        check_request(asked, action, self.config)
        return {"count" if action == COUNT else "update": self.vector(silo, action, asked)}

    def _mask(self, silo: int, asked: SumRequest) -> Fields:
        """As ``client.silo.Silo.mask``, with made-up answers and nothing on a disk."""
        plain, name = asked.asked(), (asked.round_id, silo)
        if question_digest(asked.action, plain) != asked.question:
            raise Refusal(ErrorCode.BAD_REQUEST, "another question")
        if not self._silo(silo).has_masked(asked.round_id):
            words = self._words(silo, asked.action, self.vector(silo, asked.action, plain))
            self.words.setdefault(asked.round_id, {})[silo] = words.copy()
            self._silo(silo).mask(asked.round_id, asked.payload, words)
            self._masked[name] = words
        return {"masked": self._masked[name], "release": bytes(32)}

    def _words(self, silo: int, action: str, value: NDArray[np.float32]) -> Words:
        if self.config.privacy.mode == "distributed":
            return mechanism_of(action, self.config, len(value)).protect(value.astype(np.float64)).words
        weighted = value.astype(np.float64) * weights_of(action, self.config)[silo]
        return coding_of(action, self.config, len(value)).encode(weighted).words


def constant(vectors: Mapping[int, NDArray[np.float32]]) -> Vector:
    """Each silo answers every question alike."""
    return lambda silo, action, asked: vectors[silo]


def drawn(length: int, seed: int = 0) -> Vector:
    """Normal numbers, other ones for each silo and round."""

    def vector(silo: int, action: str, asked: Request) -> NDArray[np.float32]:
        return np.random.default_rng((seed, silo, round_of(asked))).standard_normal(length, dtype=np.float32)

    return vector
