"""What the doctor asks of the machine it runs on; a test puts other answers in."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_TIME_ERROR = 5  # what adjtimex(2) answers where nobody keeps the clock right


def version_of(distribution: str) -> str | None:
    """Its version, or None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def free_bytes(folder: Path) -> int:
    """What this user may still write there."""
    return shutil.disk_usage(folder).free


def available_memory() -> int | None:
    """Bytes that a new process could have: of the machine, or of the container where that is less; None if nobody says."""
    found = [value for value in (_of_the_machine(), _of_the_container()) if value is not None]
    return min(found) if found else None


def _of_the_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _of_the_container() -> int | None:
    group = Path("/sys/fs/cgroup")
    try:
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no limit is the word "max"
        return None


def keeps_time() -> bool | None:
    """Whether the kernel says that something (NTP, the host) keeps its clock right; None where it cannot be asked."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        about = (ctypes.c_long * 64)()  # struct timex with room; modes = 0 only reads
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(about))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def ephemeral_ports() -> tuple[int, int] | None:
    """The ports that the kernel gives to outgoing connections; None where it does not say."""
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Machine:
    """Clock, disk, memory, interpreter and packages.

    Parameters
    ----------
    clock:
        Seconds since 1970 (UTC).
    python:
        The interpreter that the GPU is looked for with, in a process of its own.
    patience:
        Seconds that a coordinator has for one step of an answer.
    """

    clock: Callable[[], float] = time.time
    free_bytes: Callable[[Path], int] = free_bytes
    available_memory: Callable[[], int | None] = available_memory
    keeps_time: Callable[[], bool | None] = keeps_time
    ephemeral_ports: Callable[[], tuple[int, int] | None] = ephemeral_ports
    version_of: Callable[[str], str | None] = version_of
    python_version: tuple[int, int, int] = (sys.version_info.major, sys.version_info.minor, sys.version_info.micro)
    python: str = sys.executable
    patience: float = 5.0
    user: int = os.geteuid() if hasattr(os, "geteuid") else 0


def size(number: float) -> str:
    """``153 MB``, ``2.5 GB``."""
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
