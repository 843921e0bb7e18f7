"""What a round costs beside the training itself."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import numpy as np

from simulations.bench import Figure, register
from simulations.watch import Watch

SILOS, PARAMETERS, ROUNDS = 100, 100_000, 7


@register("grid")
def grid(out: Path, watch: Watch) -> list[Figure]:
    """Milliseconds per silo and round that the in-process grid adds: 100 silos, 100,000 parameters, no training."""
    from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp

    from simulations.grid import InProcessGrid

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        vector = message.content.array_records["vector"]["adapter"].numpy()
        return Message(RecordDict({"vector": ArrayRecord({"adapter": Array(vector + 1)})}), reply_to=message)

    carrier = InProcessGrid(app, SILOS)
    content = RecordDict({"vector": ArrayRecord({"adapter": Array(np.zeros(PARAMETERS, dtype=np.float32))})})
    watch.stage("rounds", ROUNDS)
    seconds = []
    for done in range(ROUNDS):
        began = time.perf_counter()
        messages = [Message(content, node, "train") for node in carrier.get_node_ids()]
        replies = carrier.send_and_receive(messages)
        total = np.sum([reply.content.array_records["vector"]["adapter"].numpy() for reply in replies], axis=0)
        seconds.append(time.perf_counter() - began)
        assert float(total[0]) == SILOS
        watch.step(done + 1)
    note = f"median of {ROUNDS} rounds of {SILOS} silos"
    return [Figure("message of 100k parameters, in-process", 1e3 * median(seconds) / SILOS, "ms", note)]
