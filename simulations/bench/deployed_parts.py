"""The parts of a deployed round that can be measured alone: a request with TLS and without, a message's way through a store."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.consortium.home import CoordinatorHome
from common.errors import FederationError
from simulations.bench import empty_site

KEPT, NEW, MESSAGES = 300, 60, 20


@dataclass(frozen=True)
class RequestCost:
    """Median seconds of a request over a connection that is kept, and with a new one."""

    kept: float
    new: float


def request_cost(home: CoordinatorHome, *, secure: bool) -> RequestCost:
    """Of an empty request on loopback; ``secure`` with the coordinator's certificate, which is checked."""
    import ssl

    import httpx

    pair = [str(home.tls_certificate), str(home.tls_key)] if secure else []
    trust = ssl.create_default_context(cafile=str(home.authority))
    with _started(pair) as port:
        url = f"{'https' if secure else 'http'}://127.0.0.1:{port}/health"

        def timed(client: httpx.Client) -> float:
            began = time.perf_counter()
            client.get(url).raise_for_status()
            return time.perf_counter() - began

        with httpx.Client(verify=trust) as client:
            timed(client)
            kept = median(timed(client) for _ in range(KEPT))
        new = []
        for _ in range(NEW):
            with httpx.Client(verify=trust) as client:
                new.append(timed(client))
        return RequestCost(kept, median(new))


@contextmanager
def _started(pair: list[str]) -> Iterator[int]:
    command = [sys.executable, "-P", str(empty_site.__file__)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(pair) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise FederationError("the empty web service did not start; what it said stands above")
            yield int(json.loads(line)["port"])
        finally:
            process.terminate()
            process.wait(30)


@dataclass(frozen=True)
class MessageCost:
    """Seconds of one message through Flower's store on the disk and through the one in memory, and bytes of its objects."""

    on_disk: float
    in_memory: float
    size: int

    @property
    def both(self) -> float:
        """Through both: the SuperLink's is on the disk, the SuperNode's in memory."""
        return self.on_disk + self.in_memory


def message_cost(vector: NDArray[Any] | None, folder: Path) -> MessageCost:
    """Of a question with ``vector``, or with next to nothing: Flower's own functions serialise, hash, store, fetch and read it.

    There is no network and nobody waits. ``folder`` gets the store's file.
    """
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME

    folder.mkdir(parents=True, exist_ok=True)
    disk = folder / "objects.sqlite"
    disk.unlink(missing_ok=True)
    on_disk, size = _through(str(disk), vector)
    in_memory, _ = _through(FLWR_IN_MEMORY_DB_NAME, vector)
    return MessageCost(on_disk, in_memory, size)


def _through(database: str, vector: NDArray[Any] | None) -> tuple[float, int]:
    from flwr.app import Message
    from flwr.common.constant import SUPERLINK_NODE_ID
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
    from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
    from flwr.supercore.object_store.object_store_factory import ObjectStoreFactory
    from flwr.supercore.task_identity import TaskIdentity

    from common.protocol import MASK, AdapterRequest, Request
    from server.wire import request_content

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SUPERLINK_NODE_ID, 1
    store, seconds, size = ObjectStoreFactory(database).store(), [], 0
    for number in range(MESSAGES):
        request = Request(config_hash="0" * 64)
        if vector is not None:  # another one each time, for the store keeps equal objects once
            request = AdapterRequest(config_hash="0" * 64, round=1, manifest_hash="0" * 64, vector=vector + np.float32(number))
        began = time.perf_counter()
        message = Message(request_content(request), 1, MASK, group_id=str(number))
        tree, objects = get_object_tree(message), get_all_nested_objects(message)
        store.preregister(1, tree)
        push_objects(objects, store.put, keep_objects=True)
        found = pull_and_inflate_object_from_tree(tree, _getter(store), lambda object_id: None, return_type=Message)
        seconds.append(time.perf_counter() - began)
        size = sum(len(one.deflate()) for one in objects.values())
        if vector is not None:
            kept = found.content.array_records["adapter"]["vector"].numpy()
            if not np.array_equal(kept, vector + np.float32(number)):
                raise FederationError("Flower's store gave another vector back than it was given")
    return median(seconds), size


def _getter(store: Any) -> Any:
    def get(object_id: str) -> bytes:
        found = store.get(object_id)
        if not found:
            raise FederationError(f"Flower's store has lost {object_id}")
        return bytes(found)

    return get
