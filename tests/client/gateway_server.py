"""A gateway that really listens: in a thread of the test, or as the command in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

import silorec
from client.gateway.app import Settings, create_app
from client.gateway.desk import Desk
from client.gateway.server import Server, address_of, listening
from common.serving import Live


def opened(path: Path, signer: str, **options: Any) -> Live:
    """A live bundle as the gateway wants it."""
    return Live(path, {signer}, prepare=Desk, **options)


@contextmanager
def gateway(live: Live, settings: Settings | None = None) -> Iterator[str]:
    """The gateway on a free port of 127.0.0.1; its address."""
    listener = listening("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(create_app(live, settings), ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(30)
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive()


@contextmanager
def client(live: Live, settings: Settings | None = None) -> Iterator[httpx.Client]:
    """A client of such a gateway."""
    with gateway(live, settings) as address, httpx.Client(base_url=address, timeout=30) as asking:
        yield asking


class Command:
    """``silorec gateway`` in a process, ready."""

    def __init__(self, *arguments: str, stderr: Path) -> None:
        with stderr.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "silorec", "gateway", *arguments, "--port", "0", "--json"],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                cwd=Path(silorec.__file__).parent,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise AssertionError(stderr.read_text())
        self.facts: dict[str, Any] = json.loads(line)
        self.address: str = self.facts["address"]

    def rss(self) -> int:
        """Resident memory in bytes."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> tuple[int, float]:
        """Ask it to end: its exit status, and the seconds it took."""
        began = time.perf_counter()
        self.process.terminate()
        status = self.process.wait(30)
        return status, time.perf_counter() - began

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def command(*arguments: str, stderr: Path) -> Iterator[Command]:
    running = Command(*arguments, stderr=stderr)
    try:
        yield running
    finally:
        running.kill()
