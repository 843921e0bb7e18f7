"""Several hosts on one machine: network namespaces with addresses of their own, joined by a switch in another namespace.

Nothing of the machine's own network is touched, and all of it is gone when the block ends. Where namespaces are not permitted,
all hosts are this machine, and none can be cut off.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.errors import FederationError


@dataclass(frozen=True)
class Host:
    """A place for processes. ``namespace`` is empty on loopback."""

    name: str
    address: str
    namespace: str = ""
    switch: str = ""

    def command(self, *command: str) -> list[str]:
        """The same command, run on this host."""
        return ["ip", "netns", "exec", self.namespace, *command] if self.namespace else list(command)

    def cut_off(self) -> None:
        """Pull the cable out of the switch."""
        _ip("-n", self.switch, "link", "set", self.name, "down")

    def connect(self) -> None:
        """Put the cable in again."""
        _ip("-n", self.switch, "link", "set", self.name, "up")

    def traffic(self) -> tuple[int, int]:
        """Bytes that have left this host over its cable, and that have come; frames with all their headers.

        Raises
        ------
        FederationError
            On loopback, where nobody has a cable of their own.
        """
        if not self.namespace:
            raise FederationError(f"{self.name} has no network of its own, so what it sends cannot be told from what others send")
        (found,) = json.loads(_ip("-n", self.namespace, "-s", "-j", "link", "show", "eth0"))
        return int(found["stats64"]["tx"]["bytes"]), int(found["stats64"]["rx"]["bytes"])


def why_no_namespaces() -> str:
    """Why hosts cannot have a network of their own here; empty if they can."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    if os.geteuid() != 0:
        return "network namespaces take root"
    name = f"silorec-{uuid.uuid4().hex[:6]}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"network namespaces are not permitted here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


@contextlib.contextmanager
def hosts(names: Sequence[str]) -> Iterator[dict[str, Host]]:
    """Hosts with these names (at most 12 characters), by name."""
    if why_no_namespaces():
        yield {name: Host(name, "127.0.0.1") for name in names}
        return
    tag = uuid.uuid4().hex[:5]
    switch = f"silorec-{tag}-switch"
    made = [switch]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        found = {}
        for number, name in enumerate(names, start=1):
            namespace = f"silorec-{tag}-{name}"
            made.append(namespace)
            _ip("netns", "add", namespace)
            _ip("-n", switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("-n", switch, "link", "set", name, "master", "bridge", "up")
            _ip("-n", namespace, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for link in ("eth0", "lo"):
                _ip("-n", namespace, "link", "set", link, "up")
            found[name] = Host(name, f"10.77.0.{number}", namespace, switch)
        yield found
    finally:
        for namespace in reversed(made):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FederationError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
