"""Silos behind their Flower apps in a secure run, and a coordinator that asks them stage by stage, honestly or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from client.place import LEDGER, folder_of, make_simulated_roster
from client.releases import kept_answer, read_kept
from common.config import Config
from common.errors import ErrorCode
from common.model.resident import resident
from common.privacy.ledger import read_ledger
from common.privacy.plan import METRICS as FIGURES
from common.privacy.signing import SigningKey
from common.protocol import (
    ADVERTISE,
    COUNT,
    MASK,
    METRICS,
    REVEAL,
    SHARE,
    SIGN,
    AdapterRequest,
    Fields,
    Request,
    SumRequest,
    config_hash,
    question_digest,
    round_of,
    statement,
)
from common.secagg.coding import coding_of, weights_of
from common.secagg.context import RoundContext
from common.secagg.rules import Rules
from server.secagg import SecureSum
from server.wire import read_reply, request_content
from tests import tiny

#: Four silos: a sum takes three.
N = 4
STAGES = (ADVERTISE, SHARE, MASK, SIGN, REVEAL)
FIELD = {ADVERTISE: "advertisement", SHARE: "shares", MASK: "masked", SIGN: "signature", REVEAL: "revealed"}


def secure(**settings: Any) -> Config:
    return tiny.config(**({"privacy__mode": "silo", "partition__silos": N} | settings))


class Coordinator:
    """Puts requests to the silos' apps. It has the right roster, and signs where the configuration names a key."""

    def __init__(self, config: Config, out: Path, key: SigningKey | None = None) -> None:
        self.config, self.out, self.key = config, out, key
        self.roster = make_simulated_roster(out, N)
        self.grid = tiny.grid(config, out)

    def asked(self, action: str = COUNT, shift: float = 0.0) -> Request:
        """The count, or training from the first adapter moved by ``shift``."""
        if action == COUNT:
            return Request(config_hash=config_hash(self.config))
        home = resident(self.config)
        vector = (home.start + np.float32(shift)).astype(np.float32)
        return AdapterRequest(config_hash=config_hash(self.config), round=1, manifest_hash=home.manifest.hash, vector=vector)

    def put(self, action: str, silo: int, request: Request) -> Fields | ErrorCode:
        """One message. A refusal is a code and its name, and nothing else."""
        if self.key is not None:
            request = replace(request, signature=self.key.sign(statement(action, request)).hex())
        return self.send(action, silo, request_content(request))

    def send(self, action: str, silo: int, content: RecordDict) -> Fields | ErrorCode:
        node = self.grid.get_node_ids()[silo]
        (reply,) = self.grid.send_and_receive([Message(content, node, action, ttl=60.0, group_id="test")])
        if reply.has_error():
            assert not reply.has_content()
            assert reply.error.reason == ErrorCode(reply.error.code).name
        return read_reply(reply)

    def kept(self, silo: int) -> tuple[dict[str, bytes], str, int]:
        """Everything that a request may change in a silo: its memory of secure sums, its ledger's head and charges."""
        folder = folder_of(self.out, silo)
        memory = {path.name: path.read_bytes() for path in (folder / "secagg").glob("*.json")}
        if not (folder / LEDGER).exists():
            return memory, "", 0
        chain = read_ledger(folder / LEDGER)
        return memory, chain.head, len(chain.reservations)

    def charges(self) -> list[int]:
        return [self.kept(silo)[2] for silo in range(N)]

    def answer(self, silo: int, action: str, question: str) -> np.ndarray:
        """What lies in the silo's folder under the mask: no coordinator sees it."""
        kept = read_kept(kept_answer(folder_of(self.out, silo), config_hash(self.config), action), question)
        assert kept is not None
        (value,) = kept.fields.values()
        return value


class Attempt:
    """One attempt at a sum over the apps: the honest payload of each stage, and each silo's answer."""

    def __init__(self, coordinator: Coordinator, asked: Request, action: str = COUNT, nonce: bytes = bytes(32)) -> None:
        self.to, self.action = coordinator, action
        adapter = asked if isinstance(asked, AdapterRequest) else None
        self.question = SumRequest(
            config_hash=asked.config_hash,
            action=action,
            round=round_of(asked),
            question=question_digest(action, asked),
            nonce=nonce,
            roster=coordinator.roster.digest,
            manifest_hash=adapter.manifest_hash if adapter else "",
        )
        self.vector = adapter.vector if adapter else None
        length = 24 if adapter is None else len(FIGURES) if action == METRICS else len(adapter.vector)
        self.coding = coding_of(action, coordinator.config, length)
        context = RoundContext(asked.config_hash, self.question.round_id)
        self.sum = SecureSum(context, Rules.of(coordinator.config), coordinator.roster, self.coding.dtype, length)
        self.payloads: dict[str, Mapping[int, bytes]] = {ADVERTISE: dict.fromkeys(range(N), b"")}
        self.answers: dict[str, dict[int, Any]] = {}

    def request(self, stage: str, silo: int = 0, **changes: Any) -> SumRequest:
        """The honest request of a stage, with changes."""
        payload = self.payloads.get(stage, {}).get(silo, b"")
        vector = self.vector if stage == MASK else None
        return replace(self.question, **({"payload": payload, "vector": vector} | changes))

    def put(self, stage: str, silo: int = 0, **changes: Any) -> Fields | ErrorCode:
        return self.to.put(stage, silo, self.request(stage, silo, **changes))

    def until(self, stage: str) -> Attempt:
        """Plays all stages before ``stage``, with all silos."""
        for earlier in STAGES[: STAGES.index(stage)]:
            self.play(earlier)
        return self

    def play(self, stage: str, silos: Any = range(N)) -> None:
        found: dict[int, Any] = {}
        for silo in silos:
            fields = self.put(stage, silo)
            assert not isinstance(fields, ErrorCode), (stage, silo, fields)
            found[silo] = fields[FIELD[stage]]
        self.answers[stage] = found
        if stage == ADVERTISE:
            self.payloads[SHARE] = dict.fromkeys(found, self.sum.advertised(found))
        elif stage == SHARE:
            self.payloads[MASK] = self.sum.shared(found)
        elif stage == MASK:
            for silo, words in found.items():
                self.sum.add(silo, words)
            self.payloads[SIGN] = dict.fromkeys(found, self.sum.summed())
        elif stage == SIGN:
            self.payloads[REVEAL] = dict.fromkeys(found, self.sum.signed(found))

    def finish(self, stage: str, silos: Any = range(N)) -> np.ndarray:
        """The honest rest, and the sum: that of the answers in the silos' folders, each times its weight."""
        for name in STAGES[STAGES.index(stage) :]:
            self.play(name, silos)
        total = self.coding.decode(self.sum.unmasked(self.answers[REVEAL]), len(self.sum.survivors))
        weights = weights_of(self.action, self.to.config)
        answers = {silo: self.to.answer(silo, self.action, self.question.question) for silo in silos}
        plain = sum(weights[silo] * answer.astype(np.float64) for silo, answer in answers.items())
        assert np.abs(total - plain).max() < self.coding.error_bound(len(self.sum.survivors))
        return total
