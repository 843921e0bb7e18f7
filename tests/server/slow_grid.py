"""A grid whose silos take time, come and go, and whose connection may fail: for tests of deadlines, in real seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import Message

from simulations.grid import InProcessGrid

#: ``delay(silo, action)``: seconds until an answer is there; None: it never comes.
Delay = Callable[[int, str], "float | None"]


class SlowGrid(InProcessGrid):
    """The silos of ``grid``, slowly. Unlike the grid inside it, it cannot say that nothing more will come.

    ``gone`` are silos that are not listed any more; ``failures`` are raised by the next calls, one each; ``sent`` says what was
    asked of whom, and ``held`` is the most answers that were fetched at once.
    """

    is_settled = None  # type: ignore[assignment]

    def __init__(self, grid: InProcessGrid, delay: Delay = lambda silo, action: 0.0) -> None:
        self.inner, self.delay = grid, delay
        self.gone: set[int] = set()
        self.failures: list[Exception] = []
        self.sent: list[tuple[int, str]] = []
        self.held = 0
        self._there: dict[str, float] = {}
        self._silo = {node: silo for silo, node in enumerate(grid.get_node_ids())}

    def get_node_ids(self) -> list[int]:
        self._fail()
        return [node for node, silo in self._silo.items() if silo not in self.gone]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self._fail()
        out: list[str] = []
        for message in messages:
            silo, action = self._silo[message.metadata.dst_node_id], message.metadata.message_type
            self.sent.append((silo, action))
            if silo in self.gone:
                out.append(None)  # type: ignore[arg-type]
                continue
            (message_id,) = self.inner.push_messages([message])
            delay = self.delay(silo, action)
            self._there[message_id] = float("inf") if delay is None else time.monotonic() + delay
            out.append(message_id)
        return out

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self._fail()
        ready = [one for one in message_ids if self._there.get(one, float("inf")) <= time.monotonic()]
        self.held = max(self.held, len(ready))
        return self.inner.pull_messages(ready)

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)
