"""A Flower ``Grid`` inside the process: every silo is played in turn by the calling thread.

No Ray, no sockets, no serialisation of vectors; one resident model serves all silos. What a real runtime guarantees holds here
too: a silo gets its own copy of the records, keeps its own ``Context.state``, and an exception of the app becomes an error
message with Flower's code and wording. Deadlines do not: a silo here is never late unless a fault says so, which keeps runs
reproducible on a slow machine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from enum import Enum
from uuid import uuid4

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


class Fault(Enum):
    """What can go wrong with one message."""

    LOST_REQUEST = "the silo never sees the request"
    LOST_REPLY = "the silo does its work, the reply is lost"


Record = ArrayRecord | MetricRecord | ConfigRecord
Faults = Callable[[int, Message], Fault | None]


class InProcessGrid(Grid):
    """``n_nodes`` silos that all run ``app``.

    Parameters
    ----------
    app:
        The silos' app.
    n_nodes:
        How many silos; node ``i`` has ``node_config`` ``{"partition-id": i, "num-partitions": n_nodes}``.
    run_config:
        Flat settings, as Flower hands them to the apps.
    faults:
        ``faults(partition, message)`` is asked for each message and may say what goes wrong with it.
    node_configs:
        More settings per node, as an operator would give to a SuperNode.
    """

    def __init__(
        self,
        app: ClientApp,
        n_nodes: int,
        run_config: Mapping[str, str | int | float | bool] | None = None,
        *,
        faults: Faults | None = None,
        node_configs: Mapping[int, Mapping[str, str | int | float | bool]] | None = None,
        run_id: int = 1,
    ) -> None:
        self._app, self._faults = app, faults
        self._replies: dict[str, Message] = {}
        self.set_run(Run.create_empty(run_id))
        self._nodes = {
            # Not 0, 1, 2, …: an app must not take a node's id for a silo's place.
            1000 + 7 * i: Context(
                run_id=run_id,
                node_id=1000 + 7 * i,
                node_config={
                    PARTITION_ID_KEY: i,
                    NUM_PARTITIONS_KEY: n_nodes,
                    **(node_configs or {}).get(i, {}),
                },
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for i in range(n_nodes)
        }

    def set_run(self, run: Run) -> None:
        """Also tells Flower's process-wide identity, without which no message can be made."""
        self._run = run
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run.run_id, SUPERLINK_NODE_ID, 1

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the constructor of :class:`Message`, which Flower prefers."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        return list(self._nodes)

    def context(self, partition: int) -> Context:
        """A silo's context, for tests."""
        return list(self._nodes.values())[partition]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Each message is handled before the call returns."""
        return [self._handle(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(message_id) for message_id in list(message_ids) if message_id in self._replies]

    def is_settled(self, message_ids: Collection[str]) -> bool:
        """Whether no reply to any of these is there: then none will come, for each message was handled when it was sent."""
        return not any(message_id in self._replies for message_id in message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Replies in the order of the messages; lost ones are left out at once, whatever ``timeout`` is."""
        return self.pull_messages(self.push_messages(messages))

    def _handle(self, message: Message) -> str:
        message_id = _give_id(message)
        context = self._nodes[message.metadata.dst_node_id]
        fault = self._faults(int(context.node_config[PARTITION_ID_KEY]), message) if self._faults else None
        if fault is Fault.LOST_REQUEST:
            return message_id
        delivered = _copy(message)
        # The app gets its own context, so that only what a runtime would keep is kept: the state.
        played = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config=dict(context.node_config),
            state=context.state,
            run_config=dict(context.run_config),
        )
        try:
            reply = self._app(delivered, played)
            context.state = played.state
        except Exception as error:
            # Word for word what Flower's runtimes send, the text of the exception included.
            reason = f"{type(error)}:<'{error}'>"
            reply = Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=delivered)
        if fault is not Fault.LOST_REPLY:
            reply = _copy(reply)
            _give_id(reply)
            self._replies[message_id] = reply
        return message_id


def _give_id(message: Message) -> str:
    message_id = str(uuid4())
    message.metadata.__dict__["_message_id"] = message_id  # Flower has no setter
    return message_id


def _copy(message: Message) -> Message:
    """The same message with records of its own; the bytes of arrays are immutable and shared."""
    metadata = deepcopy(message.metadata)
    if message.has_error():
        return make_message(metadata, error=message.error)
    return make_message(metadata, content=RecordDict({name: _copy_record(r) for name, r in message.content.items()}))


def _copy_record(record: Record) -> Record:
    if isinstance(record, ArrayRecord):
        return ArrayRecord({key: Array(a.dtype, a.shape, a.stype, a.data) for key, a in record.items()})
    if isinstance(record, MetricRecord):
        return MetricRecord({key: deepcopy(value) for key, value in record.items()})
    return ConfigRecord({key: deepcopy(value) for key, value in record.items()})
