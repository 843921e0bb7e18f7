"""Flower's SuperNode for a silo: ``python -m client.supernode`` and then ``flower-supernode``'s options.

It is Flower's own program. Only its pauses are shorter: Flower sleeps for 3 seconds between two looks for messages, half a second
between two looks for the executor's answer, and has no setting for either, and a secure sum has five stages.
"""

from __future__ import annotations

import importlib
import sys
import time
from types import SimpleNamespace

SHORTEST, LONGEST = 0.1, 1.0
"""Seconds between two looks for messages; the longer nothing came, the longer the pause."""

IDLE = 60.0
"""Seconds without a message after which the pause is at its longest."""

ANSWER = 0.05
"""Seconds between two looks for an answer, which cost no connection."""

FLOWERS_PAUSE = 3
"""What Flower sleeps where no message came."""


class Pauses:
    """Takes the place of ``time.sleep`` in the SuperNode's loop."""

    def __init__(self) -> None:
        self._busy = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep, less than Flower would."""
        now = time.monotonic()
        if seconds < FLOWERS_PAUSE:
            self._busy = now
            time.sleep(min(seconds, ANSWER))
        else:
            time.sleep(SHORTEST + (LONGEST - SHORTEST) * min(1.0, (now - self._busy) / IDLE))


def main() -> None:
    """Run until told to end."""
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    from flwr.supernode.cli.flower_supernode import flower_supernode

    from common.logs import configure

    names = {name: getattr(time, name) for name in dir(time) if not name.startswith("_")}
    loop.time = SimpleNamespace(**{**names, "sleep": Pauses().sleep})  # type: ignore[attr-defined]
    configure()
    sys.argv[0] = "flower-supernode"
    flower_supernode()


if __name__ == "__main__":
    main()
