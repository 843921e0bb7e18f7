"""Flower's legacy SecAgg+ as it is, beside ours: its mod, its workflow, its context; only the wire is this package's.

Its mod runs on the silo's side and its workflow on the coordinator's (``flwr.client.mod``, ``flwr.server.workflow``); messages
go through :class:`simulations.grid.InProcessGrid`, all silos in turn. The time of the wire, and of the silo's own training, which
here is to hand over a vector that is ready, counts for nobody. Seconds are those of the processor, as in
:mod:`simulations.bench.secure_sums`: its threads share one interpreter, so they are not faster than that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from common.errors import FederationError
from simulations.watch import Watch

if TYPE_CHECKING:
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.server import LegacyContext
    from flwr.serverapp import Grid

    from simulations.grid import Fault, InProcessGrid

CLIPPING, QUANTISED, WEIGHT = 8.0, 2**22, 1000
"""Flower's defaults: the range of a value, the steps in it, and the largest weight, which every silo here has."""

MASKING = "collect_masked_vectors"


@dataclass(frozen=True)
class LegacyRun:
    """What one round cost and gave.

    ``silo`` has the seconds of each call of the mod by stage, ``server`` those of the workflow beside them, ``sent`` the bytes of
    keys, boxes, vectors and shares that a silo sends by stage (the largest), ``mean`` the survivors' mean vector, ``(n,)``.
    """

    silo: dict[str, tuple[float, ...]]
    server: float
    sent: dict[str, int]
    mean: NDArray[np.floating[Any]]

    @property
    def seconds(self) -> float:
        """All silos in turn, and the coordinator."""
        return self.server + sum(sum(calls) for calls in self.silo.values())


def run_legacy(
    vectors: Sequence[NDArray[np.float32]], shares: int, threshold: int, gone: Collection[int], watch: Watch
) -> LegacyRun:
    """One round of SecAgg+ over ``vectors``, one for each silo; ``gone`` drop out after they have shared their secrets.

    Raises
    ------
    FederationError
        If the workflow gives up.
    """
    from flwr.server.workflow import SecAggPlusWorkflow
    from flwr.server.workflow.constant import MAIN_PARAMS_RECORD

    from simulations.grid import Fault, InProcessGrid

    silos = _Silos(vectors, watch)

    def faults(silo: int, message: Message) -> Fault | None:
        return Fault.LOST_REQUEST if silo in gone and _stage(message) == MASKING else None

    grid = _Timed(InProcessGrid(cast("ClientApp", silos), len(vectors), faults=faults))
    context = _legacy_context(grid.carrier, len(vectors[0]))
    workflow = SecAggPlusWorkflow(shares, threshold, clipping_range=CLIPPING, quantization_range=QUANTISED)
    watch.stage(f"SecAgg+, {len(gone)} of {len(vectors)} silos gone", 4 * len(vectors) - 2 * len(gone))
    with _quiet():
        began = time.process_time()
        workflow(cast("Grid", grid), context)
        total = time.process_time() - began
    if "fit_replies" not in context.history.metrics_distributed_fit:
        raise FederationError("SecAgg+ gave up; its log above says why")
    mean = context.state.array_records[MAIN_PARAMS_RECORD].to_numpy_ndarrays()[0]
    return LegacyRun({stage: tuple(calls) for stage, calls in silos.seconds.items()}, total - grid.seconds, silos.sent, mean)


class _Silos:
    """The app of all silos: Flower's mod around one that has trained already. Keeps the time of each call, by stage."""

    def __init__(self, vectors: Sequence[NDArray[np.float32]], watch: Watch) -> None:
        from flwr.common import Code, FitRes, Status, ndarrays_to_parameters

        self.seconds: dict[str, list[float]] = {}
        self.sent: dict[str, int] = {}
        self._watch, self._calls, self._training = watch, 0, 0.0
        self._trained = [FitRes(Status(Code.OK, ""), ndarrays_to_parameters([vector]), WEIGHT, {}) for vector in vectors]

    def __call__(self, message: Message, context: Context) -> Message:
        from flwr.client.mod import secaggplus_mod

        stage, self._training = _stage(message), 0.0
        began = time.process_time()
        reply = secaggplus_mod(message, context, self._train)
        self.seconds.setdefault(stage, []).append(time.process_time() - began - self._training)
        self.sent[stage] = max(self.sent.get(stage, 0), _bytes_of(reply.content))
        self._calls += 1
        self._watch.step(self._calls)
        return reply

    def _train(self, message: Message, context: Context) -> Message:
        from flwr.app import Message as NewMessage
        from flwr.common.constant import PARTITION_ID_KEY
        from flwr.compat.common.recorddict_compat import fitres_to_recorddict

        began = time.process_time()
        trained = self._trained[int(context.node_config[PARTITION_ID_KEY])]
        reply = NewMessage(fitres_to_recorddict(trained, keep_input=True), reply_to=message)
        self._training = time.process_time() - began
        return reply


class _Timed:
    """A grid, and the seconds in it: what is left of the whole is the coordinator's."""

    def __init__(self, carrier: InProcessGrid) -> None:
        self.carrier, self.seconds = carrier, 0.0

    def send_and_receive(self, messages: Sequence[Message], *, timeout: float | None = None) -> list[Message]:
        began = time.process_time()
        replies = self.carrier.send_and_receive(messages, timeout=timeout)
        self.seconds += time.process_time() - began
        return replies


def bits_of_a_pair_mask() -> int:
    """Bits that decide a pairwise mask: of the seed, those that ever differ after Flower has folded it into its generator's 32.

    Looked at are 64 pairs of keys: a bit that is a fair coin stays the same in all of them with one chance in 2^63.

    Raises
    ------
    FederationError
        If the folded bits alone do not give the mask: then Flower makes masks in another way, and this has to be looked at again.
    """
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
    from flwr.supercore.primitives.asymmetric import generate_key_pairs

    folded = []
    own, _ = generate_key_pairs()
    for _ in range(64):
        seed = generate_shared_key(own, generate_key_pairs()[1])
        fold = np.bitwise_xor.reduce(np.frombuffer(seed, "<u4"))
        masks = [pseudo_rand_gen(data, 2**32, [(8,)])[0] for data in (seed, fold.tobytes())]
        if not np.array_equal(masks[0], masks[1]):
            raise FederationError("SecAgg+ does not fold its seeds into 32 bits any more")
        folded.append(int(fold))
    return int(np.bitwise_or.reduce([fold ^ folded[0] for fold in folded])).bit_count()


def _legacy_context(grid: InProcessGrid, length: int) -> LegacyContext:
    """What Flower's own main loop would have ready in the first round, without the thread that looks for clients."""
    from flwr.app import ConfigRecord, Context, RecordDict
    from flwr.common import ndarrays_to_parameters
    from flwr.compat.common.recorddict_compat import parameters_to_arrayrecord
    from flwr.server import LegacyContext
    from flwr.server.compat.grid_client_proxy import GridClientProxy
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key

    nodes, run_id = grid.get_node_ids(), grid.run.run_id
    strategy = FedAvg(
        fraction_fit=1.0,
        min_fit_clients=len(nodes),
        min_available_clients=len(nodes),
        fit_metrics_aggregation_fn=lambda results: {"fit_replies": len(results)},
    )
    state = RecordDict({MAIN_CONFIGS_RECORD: ConfigRecord({Key.CURRENT_ROUND: 1})})
    start = ndarrays_to_parameters([np.zeros(length, dtype=np.float32)])
    state.array_records[MAIN_PARAMS_RECORD] = parameters_to_arrayrecord(start, keep_input=True)
    context = LegacyContext(Context(run_id=run_id, node_id=0, node_config={}, state=state, run_config={}), strategy=strategy)
    for node in nodes:
        context.client_manager.register(GridClientProxy(node, grid, run_id))
    return context


def _stage(message: Message) -> str:
    from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key

    return str(message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])


def _bytes_of(content: RecordDict) -> int:
    """Keys, boxes, vectors and shares; names and numbers of silos do not count."""
    total = 0
    for record in content.config_records.values():
        for value in record.values():
            total += sum(len(part) for part in (value if isinstance(value, list) else [value]) if isinstance(part, bytes))
    return total


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Flower's four lines a round, which would tear the progress bar; its warnings and errors stay."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
