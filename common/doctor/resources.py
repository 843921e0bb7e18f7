"""Clock, disk, memory and GPU of the machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.doctor.finding import Check, Finding, NotChecked, ok, problem, warning
from common.doctor.machine import size
from common.doctor.reach import NotReached
from common.doctor.subject import ALL, COORDINATOR, HOMES, SILO, Subject

#: Flower refuses a node's signature that is older than TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE, or from further in the future
#: than the latter (flwr/common/constant.py, flwr/superlink/routers/fleet/node_auth.py).
BEHIND, AHEAD = 300.0, 5.0

#: Where a clock that is wrong is warned of, in seconds.
BEHIND_WARNING, AHEAD_WARNING = 30.0, 2.5

#: Free space at a home: below the first, no run fits; below the second, answers and logs may fill it.
DISK_PROBLEM, DISK_WARNING = 200e6, 2e9

#: Memory that is left. Importing torch, transformers, flwr, peft and opacus takes 0.45 GB (time -v python -c "import …"),
#: a round on all of MovieLens-100K with MiniLM 1.0 GB (the same of silorec simulate ml-100k --silos 1 --set federation.rounds=1).
MEMORY_PROBLEM, MEMORY_WARNING = 0.5e9, 1.5e9

#: Seconds for PyTorch to be imported and to look for a GPU.
GPU_PATIENCE = 120.0

_LOOK_FOR_GPU = """\
import json
try:
    import torch
except ImportError as error:
    print(json.dumps({"missing": str(error)}))
else:
    there = torch.cuda.is_available()
    facts = {"cuda": there, "build": torch.version.cuda, "version": torch.__version__}
    if there:
        (torch.ones(8, device="cuda") * 2).sum().item()
        facts["name"] = torch.cuda.get_device_name()
        facts["free"] = torch.cuda.mem_get_info()[0]
    print(json.dumps(facts))
"""

_SET_CLOCK = "set the clock, and keep it right: timedatectl set-ntp true"


def look_at_clock(subject: Subject) -> Iterator[Finding]:
    """This silo's clock against the coordinator's."""
    reached = subject.hello
    ahead, give_or_take = reached.ahead, reached.give_or_take
    if ahead is None:
        if isinstance(reached, NotReached):
            raise NotChecked("it needs the coordinator's answer")
        raise NotChecked("the coordinator's answer tells no time")
    sure = abs(ahead) - give_or_take
    words = f"this machine's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    words += f" (give or take {give_or_take:.1f} s)"
    allowed, warned = (AHEAD, AHEAD_WARNING) if ahead > 0 else (BEHIND, BEHIND_WARNING)
    if sure > allowed:
        refused = f"more than {AHEAD:g} s ahead" if ahead > 0 else f"more than {BEHIND:g} s behind"
        yield problem(
            "clock", f"{words}: Flower refuses a node that is {refused}", f"{_SET_CLOCK}; look at the coordinator's too"
        )
    elif sure > warned:
        yield warning("clock", words, _SET_CLOCK)
    else:
        yield ok("clock", words)


def look_at_time_keeping(subject: Subject) -> Iterator[Finding]:
    """Whether anything keeps the clock right."""
    kept = subject.machine.keeps_time()
    if kept is False:
        seen = "the kernel says that nothing keeps this machine's clock right"
        do = "timedatectl set-ntp true; in a container or virtual machine, look at the host"
        yield warning("time keeping", seen, do)
    elif kept:
        yield ok("time keeping", f"the clock is kept right, and shows {subject.now:%Y-%m-%d %H:%M:%S} UTC")


def look_at_disk(subject: Subject) -> Iterator[Finding]:
    """Free space, and whether a file can be written and brought to the disk."""
    folder = subject.home.folder
    free = subject.machine.free_bytes(folder)
    if free < DISK_PROBLEM:
        yield problem(
            "disk", f"{size(free)} are free at {folder}", f"make room: {size(DISK_PROBLEM)} at least, {size(DISK_WARNING)} better"
        )
    elif free < DISK_WARNING:
        yield warning("disk", f"{size(free)} are free at {folder}", f"make room: {size(DISK_WARNING)} last for a while")
    else:
        yield ok("disk", f"{size(free)} are free at {folder}")
    if failed := _why_not_writable(folder):
        yield problem(
            "disk", f"nothing can be written durably to {folder} ({failed})", f"mend its rights or the disk: ls -ld {folder}"
        )
    else:
        yield ok("disk", "a file could be written, synced and removed")


def look_at_memory(subject: Subject) -> Iterator[Finding]:
    """What a new process can have."""
    left = subject.machine.available_memory()
    if left is None:
        raise NotChecked("this system does not say how much memory is left")
    do = "end other programs, or give this machine or container more"
    if left < MEMORY_PROBLEM:
        yield problem("memory", f"{size(left)} of memory are left, the libraries alone need {size(MEMORY_PROBLEM)}", do)
    elif left < MEMORY_WARNING:
        yield warning("memory", f"{size(left)} of memory are left, training a small model takes 1 GB and more", do)
    else:
        yield ok("memory", f"{size(left)} are left")


def look_at_gpu(subject: Subject) -> Iterator[Finding]:
    """PyTorch and CUDA, in a process of its own: a broken driver may end it."""
    device = subject.device
    if device == "cpu":
        yield ok("gpu", 'not wanted: device = "cpu"')
        return
    facts, failed = _gpu(subject.machine.python)
    if "missing" in facts:
        yield problem(
            "gpu", f"PyTorch cannot be imported ({facts['missing']})", "pip install -c constraints.txt 'silorec[client]'"
        )
    elif facts.get("cuda"):
        yield ok("gpu", f"{facts.get('name')}, {size(facts.get('free', 0))} free; PyTorch {facts.get('version')}")
    else:
        built = f"PyTorch {facts['version']} is built for {facts['build'] or 'the CPU only'}" if facts else ""
        why = "; ".join(part for part in (failed, built) if part)
        if device == "cuda":
            do = 'nvidia-smi says whether the driver works; install a PyTorch for CUDA, or set device = "cpu" in silo.toml'
            yield problem("gpu", f'device = "cuda", and there is no GPU that PyTorch can use ({why})', do)
        elif failed:
            do = 'mend the driver (nvidia-smi), or set device = "cpu" in silo.toml so that nobody looks for a GPU'
            yield warning("gpu", f"looking for a GPU failed ({failed})", do)
        else:
            yield ok("gpu", f"there is none: it computes on the CPU ({why})")


def _why_not_writable(folder: Path) -> str:
    """Empty if a file can be made there, synced, and removed again."""
    probe = folder / f".doctor.{os.getpid()}.partial"
    try:
        try:
            with open(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())
        finally:
            with contextlib.suppress(FileNotFoundError):
                probe.unlink()
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _gpu(python: str) -> tuple[dict[str, Any], str]:
    """What PyTorch says, and why it says nothing."""
    try:
        done = subprocess.run(
            [python, "-c", _LOOK_FOR_GPU],
            capture_output=True,
            text=True,
            check=False,
            timeout=GPU_PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {GPU_PATIENCE:g} s"
    except OSError as error:
        return {}, f"{python}: {error.strerror}"
    if done.returncode < 0:
        return {}, f"the process was ended by signal {-done.returncode}"
    try:
        facts = json.loads(done.stdout.splitlines()[-1])
        return dict(facts), ""
    except (ValueError, IndexError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return {}, f"exit {done.returncode}: {last[:200]}"


CHECKS = (
    Check("clock", SILO, look_at_clock),
    Check("time keeping", ALL, look_at_time_keeping),
    Check("disk", HOMES, look_at_disk),
    Check("memory", ALL, look_at_memory),
    Check("gpu", SILO | COORDINATOR, look_at_gpu),
)
