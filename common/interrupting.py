"""Ending a long command in order: SIGTERM, which systemd and containers send, counts as Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def ended_by_signal() -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C end what is going on in order, and then the command with status 0."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
