"""Flower's SuperNode for a silo: ``python -m client.supernode`` and then ``flower-supernode``'s options.

It is Flower's own program, with three changes. Its pauses are shorter: Flower sleeps for 3 seconds between two looks for messages
and half a second between two looks for the executor's answer, has no setting for either, and a secure sum has five stages. It
comes back at once after it was killed: Flower refuses a node that it believes to be connected, for a minute, so the node says
first that its former self is gone. And it sends the answer to what it was asked last, see :class:`InStep`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common.pauses import pause_factor
from common.pulling import eager

SHORTEST, LONGEST = 0.25, 2.0
"""Seconds between two looks for messages; the longer nothing came, the longer. A look costs the SuperLink some 12 ms."""

IDLE = 20.0
"""Seconds without a message after which the pause is at its longest."""

ANSWER = 0.05
"""Seconds between two looks for an answer, which cost no connection."""

FLOWERS_PAUSE = 3
"""What Flower sleeps where no message came."""

NODE = "silorec-node-id"
"""In Flower's home: the id under which the SuperLink knows this node."""


class Pauses:
    """Takes the place of ``time.sleep`` in the SuperNode's loop."""

    def __init__(self) -> None:
        self._busy, self._factor = time.monotonic(), pause_factor()

    def sleep(self, seconds: float) -> None:
        """Sleep, less than Flower would."""
        now = time.monotonic()
        if seconds < FLOWERS_PAUSE:
            self._busy = now
            time.sleep(min(seconds, self._factor * ANSWER))
        else:
            idle = min(1.0, (now - self._busy) / IDLE)
            time.sleep(self._factor * (SHORTEST + (LONGEST - SHORTEST) * idle))


def cleared_up(pull_objects: Callable[..., Any]) -> Callable[..., Any]:
    """Flower's ``pull_objects`` for a run that ends meanwhile: an error after which the node takes the message back.

    Flower's own is no :class:`Exception`, passes by what would clear up, and leaves the executor waiting for parts for ever.
    """
    from flwr.supercore.run import RunNotRunningException

    def pulled(*arguments: Any, **options: Any) -> Any:
        try:
            return pull_objects(*arguments, **options)
        except RunNotRunningException:
            raise RuntimeError("the run has ended while its message was on the way") from None

    return pulled


class InStep:
    """Keeps answers in step with questions, in the place of two functions of the SuperNode's loop.

    A run that ends when a question has just arrived leaves the question with the executor, and Flower goes on. The answer comes
    later, Flower takes it for the one to the next question, and from then on sends each answer one question too late, for good.

    Parameters
    ----------
    pull, push:
        Flower's ``_pull_and_store_message`` and ``_push_messages``.
    """

    def __init__(self, pull: Callable[..., int | None], push: Callable[..., None]) -> None:
        self._pull, self._push, self._question = pull, push, ""

    def pull(self, *, receive: Callable[[], Any], **more: Any) -> int | None:
        """Flower's, which also notes the question."""

        def received() -> Any:
            found = receive()
            if found is not None:
                self._question = found[0].metadata.message_id
            return found

        return self._pull(receive=received, **more)

    def push(self, *, state: Any, object_store: Any, **more: Any) -> None:
        """Flower's, to which only answers to the question are shown; others are forgotten."""
        self._push(state=_Answers(state, object_store, self._question), object_store=object_store, **more)


class _Answers:
    """A SuperNode's state in which there are no answers but to one question."""

    def __init__(self, state: Any, objects: Any, question: str) -> None:
        self._state, self._objects, self._question = state, objects, question

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_messages_legacy(self, **filters: Any) -> list[Any]:
        """As the state's own."""
        found = []
        for message in self._state.get_messages_legacy(**filters):
            said = message.metadata
            if said.reply_to_message_id == self._question:
                found.append(message)
            else:
                self._state.delete_messages(message_ids=[said.message_id, said.reply_to_message_id])
                self._objects.delete(said.message_id)
        return found


def come_back(client: Any, memory: Path) -> None:
    """Make Flower's client end the session before, whose node id is in the file ``memory``, before it begins one."""
    import httpx
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest

    activate = client.ActivateNode

    def activated(self: Any, request: Any) -> Any:
        with contextlib.suppress(OSError, ValueError, httpx.HTTPError):
            self.DeactivateNode(DeactivateNodeRequest(node_id=int(memory.read_text())))
        response = activate(self, request)
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            memory.write_text(str(response.node_id))
        return response

    client.ActivateNode = activated


def main() -> None:
    """Run until told to end."""
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    from flwr.supernode.cli.flower_supernode import flower_supernode
    from flwr.supernode.fleet_http_client import FleetHttpClient

    from common.logs import configure

    names = {name: getattr(time, name) for name in dir(time) if not name.startswith("_")}
    loop.pull_objects = cleared_up(eager(loop.pull_objects))  # type: ignore[attr-defined]
    in_step = InStep(loop._pull_and_store_message, loop._push_messages)
    loop._pull_and_store_message, loop._push_messages = in_step.pull, in_step.push  # type: ignore[attr-defined]
    loop.time = SimpleNamespace(**{**names, "sleep": Pauses().sleep})  # type: ignore[attr-defined]
    if home := os.environ.get("FLWR_HOME"):
        come_back(FleetHttpClient, Path(home) / NODE)
    configure()
    sys.argv[0] = "flower-supernode"
    flower_supernode()


if __name__ == "__main__":
    main()
