"""Questions on their way to nodes, and the answers as they come, over any Flower ``Grid``.

A :class:`Post` belongs to one stage: it takes answers to the messages that it sent itself, and to no others, so an answer that is
late for its stage is lost to the next one. Answers are handed on one by one, so that nobody has to hold all of them. A node that
the grid does not list any more owes nothing: Flower strikes it off when its heartbeats stop.

A SuperLink that is being started again is waited for, as long as the deadline lasts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.retry import RetryInvoker

from common.errors import RoundFailed
from common.pauses import pause_factor
from common.protocol import Request
from server.wire import request_content

log = logging.getLogger("silorec.server")

#: Seconds between two looks for answers; the pause grows while nothing comes.
SHORTEST, LONGEST = 0.05, 0.5

#: Seconds between two looks for nodes that are gone.
LOOK = 2.0

#: Answers that are fetched at once, so that a stage never holds more of them.
AT_ONCE = 8

#: Seconds between two tries to reach the SuperLink.
RECONNECT = 1.0

#: Seconds by which a silo's clock may be fast. Flower lets a node answer until the question has expired by the node's own clock,
#: so a question lives so much longer than its stage; what comes after the stage is not used.
CLOCKS = 900.0

#: The least that silos are waited for once the quorum has answered, seconds.
LEAST_PATIENCE = 5.0

Found = TypeVar("Found")


@runtime_checkable
class Settles(Protocol):
    """A grid that knows when nothing more will come, such as one that plays the silos itself."""

    def is_settled(self, message_ids: Collection[str]) -> bool:
        """Whether no answer to any of these messages is there or will come."""
        ...


class Wait:
    """How long a stage is waited for: ``seconds``, or less for stragglers, once there is :meth:`enough`, by ``patience``."""

    def __init__(self, seconds: float, patience: float = 0.0) -> None:
        self.began, self._patience = time.monotonic(), patience
        self.until = self.began + seconds
        self._satisfied = False

    def enough(self) -> None:
        """The quorum is there."""
        if self._patience and not self._satisfied:
            took = time.monotonic() - self.began
            self.until = min(self.until, time.monotonic() + max(LEAST_PATIENCE, self._patience * took))
        self._satisfied = True


class Post:
    """The messages of one stage.

    Parameters
    ----------
    grid:
        Carries them.
    seconds:
        How long the stage lasts.
    group:
        Names the stage, in Flower's messages and in the log.
    """

    def __init__(self, grid: Grid, seconds: float, group: str) -> None:
        self.grid, self.seconds, self.group = grid, seconds, group
        self._owing: dict[str, tuple[int, float]] = {}

    def nodes(self) -> set[int]:
        """The nodes that the grid lists.

        Raises
        ------
        RoundFailed
            If the grid cannot be reached; from all methods.
        """
        return set(self._steadily(self.grid.get_node_ids))

    def put(self, action: str, node: int, request: Request) -> None:
        """Send one question."""

        def push() -> list[str | None]:
            # A message of its own for each try: the one before may have arrived, and Flower takes none twice.
            message = Message(request_content(request), node, action, ttl=self.seconds + CLOCKS, group_id=self.group or "silorec")
            return list(self.grid.push_messages([message]))

        for message_id in self._steadily(push):
            if message_id is not None:  # None: the node has just gone
                self._owing[message_id] = (node, time.monotonic())

    def come(self) -> Iterator[tuple[int, Message]]:
        """Node and answer of all that are there by now."""
        for some in _batched(list(self._owing), AT_ONCE):
            found = list(self._steadily(partial(self._pulled, some)))
            while found:
                message = found.pop(0)
                node, _ = self._owing.get(message.metadata.reply_to_message_id, (None, 0.0))
                if node is None:
                    continue
                self.forget([node])
                if message.metadata.src_node_id == node:
                    yield node, message
                else:
                    log.info("%s: the SuperLink says that an answer was lost, or its node has gone", self.group)

    def answers(self, action: str, requests: Mapping[int, Request], wait: Wait) -> Iterator[tuple[int, Message]]:
        """Send ``requests``, by node, and hand on every answer as it comes, until all are there or ``wait`` is over."""
        for node in sorted(requests):
            self.put(action, node, requests[node])
            yield from self.come()
        pause, factor, looked = SHORTEST, pause_factor(), time.monotonic()
        while self._owing and not self._is_settled() and time.monotonic() < wait.until:
            time.sleep(max(0.0, min(factor * pause, wait.until - time.monotonic())))
            gone: set[int] = set()
            if time.monotonic() - looked >= LOOK:
                gone, looked = {node for node, _ in self._owing.values()} - self.nodes(), time.monotonic()
            pause = min(1.5 * pause, LONGEST)
            for answer in self.come():
                pause = SHORTEST
                yield answer
            self.forget(gone)

    def owes(self, node: int) -> bool:
        """Whether a question to this node has no answer yet and is not out of date."""
        if self._is_settled():
            return False
        return any(node == whose and time.monotonic() < when + self.seconds for whose, when in self._owing.values())

    def forget(self, nodes: Iterable[int]) -> None:
        """Expect nothing from these nodes any more."""
        theirs = set(nodes)
        self._owing = {message_id: (node, when) for message_id, (node, when) in self._owing.items() if node not in theirs}

    def _pulled(self, message_ids: Sequence[str]) -> Iterable[Message]:
        return self.grid.pull_messages(message_ids)

    def _is_settled(self) -> bool:
        return isinstance(self.grid, Settles) and self.grid.is_settled(self._owing)

    def _steadily(self, call: Callable[[], Iterable[Found]]) -> Iterable[Found]:
        """What ``call`` gives; where the connection fails, it is tried again for as long as the stage lasts."""
        until = time.monotonic() + self.seconds
        self._bound_retries()
        while True:
            try:
                return call()
            except Exception as error:
                if not _is_of_the_network(error):
                    raise
                if time.monotonic() >= until:
                    raise RoundFailed(
                        f"{self.group}: the SuperLink could not be reached for {self.seconds:g} s ({type(error).__name__}): "
                        "is it running?"
                    ) from error
                log.warning("%s: the SuperLink cannot be reached (%s); trying again", self.group, type(error).__name__)
            time.sleep(RECONNECT)

    def _bound_retries(self) -> None:
        """Flower's grid over the network tries again without end, whatever our deadlines are, and has no setting for it.

        It gets the whole stage: a message whose parts are given up half-way holds up the node that waits for them.
        """
        invoker = getattr(self.grid, "_retry_invoker", None)
        if isinstance(invoker, RetryInvoker):
            invoker.max_time = self.seconds


def _batched(values: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """``values`` in pieces of at most ``size``."""
    for first in range(0, len(values), size):
        yield values[first : first + size]


def _is_of_the_network(error: Exception) -> bool:
    """Whether the connection failed, and not the request: Flower's grid speaks HTTP through httpx, no part of its own API."""
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.partition(".")[0] in ("httpx", "httpcore")
