"""Silos without a model, for tests of the coordinator: each moves half of the way to its own target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from common.config import Config, load
from common.errors import ErrorCode
from common.protocol import PROTOCOL_VERSION
from simulations.grid import Faults, InProcessGrid

DECLARED = (10, 30, 60)
TARGETS = np.array([[1.0, 2.0, 0.0], [3.0, -1.0, 1.0], [0.0, 5.0, 2.0]], dtype=np.float32)
N_ITEMS = 4

#: ``spoil(silo, round)`` may give an error code, or other records, instead of the right answer; round 0 is the count.
Spoil = Callable[[int, int], "ErrorCode | RecordDict | None"]


def config(**federation: Any) -> Config:
    settings = {
        "rounds": 3,
        "declared_users": list(DECLARED),
        "deadline": 1.0,
        "round_attempts": 1,
        "round_pause": 0.0,
        **federation,
    }
    plain = {"privacy.mode": "none", "aggregation.method": "plain"}
    return load({**plain, "partition.silos": len(settings["declared_users"]), "federation": settings})


def app(spoil: Spoil | None = None, places: Mapping[int, int] | None = None) -> ClientApp:
    """``places`` lets a node claim another place in the roster."""
    silos = ClientApp()

    def place(context: Context) -> int:
        return int(context.node_config["partition-id"])

    def reply(message: Message, context: Context, number: int, records: dict[str, Any]) -> Message:
        spoilt = spoil(place(context), number) if spoil else None
        if isinstance(spoilt, ErrorCode):
            return Message(Error(int(spoilt), "never read"), reply_to=message)
        return Message(spoilt if spoilt is not None else RecordDict(records), reply_to=message)

    @silos.query("enrol")
    def _(message: Message, context: Context) -> Message:
        mine = (places or {}).get(place(context), place(context))
        return Message(RecordDict({"public": ConfigRecord({"silo": mine, "protocol": PROTOCOL_VERSION})}), reply_to=message)

    @silos.query("count")
    def _(message: Message, context: Context) -> Message:
        counts = np.arange(N_ITEMS, dtype=np.float32) + place(context)
        return reply(message, context, 0, {"protected": ArrayRecord({"count": Array(counts)})})

    @silos.train()
    def _(message: Message, context: Context) -> Message:
        vector = message.content["adapter"]["vector"].numpy()
        update = (TARGETS[place(context) % len(TARGETS)] - vector) / 2
        number = int(message.content["request"]["round"])
        return reply(message, context, number, {"protected": ArrayRecord({"update": Array(update)})})

    return silos


def grid(
    spoil: Spoil | None = None, *, n: int = 3, faults: Faults | None = None, places: Mapping[int, int] | None = None
) -> InProcessGrid:
    return InProcessGrid(app(spoil, places), n, faults=faults)
