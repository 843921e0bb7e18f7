"""Children that are kept running, with real processes: they come back, wait longer each time, and are never left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from common.supervising import HEALTHY, LONGEST_PAUSE, Child

SLEEP = "import time; time.sleep(60)"


class Clock:
    """Seconds as a test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def child(tmp_path: Path, code: str, clock: Callable[[], float] = time.monotonic, **more: object) -> Child:
    return Child("the child", lambda: [sys.executable, "-c", code], tmp_path / "child.out", clock=clock, **more)  # type: ignore[arg-type]


def ended(one: Child) -> int:
    """The status of a process that ends by itself, as a look tells it."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if (status := one.look()) is not None:
            return status
        time.sleep(0.02)
    raise AssertionError("it did not end")


def test_a_child_runs_after_the_first_look_and_writes_to_its_file(tmp_path: Path) -> None:
    one = child(tmp_path, "import os; print('hello', os.environ['COLOUR'])", environment={"COLOUR": "green"})
    assert one.pid is None
    assert ended(one) == 0
    assert one.tail() == "hello green"
    assert (tmp_path / "child.out").stat().st_mode & 0o077 == 0


def test_a_child_that_ends_again_and_again_is_started_less_and_less_often(tmp_path: Path) -> None:
    clock = Clock()
    one = child(tmp_path, "raise SystemExit(3)", clock)
    pauses = []
    for _ in range(9):
        assert ended(one) == 3
        began = clock.now
        while one.look() is None and one.pid is None:
            clock.now += 1.0
        pauses.append(clock.now - began)
    assert pauses[:5] == [2.0, 4.0, 8.0, 16.0, 32.0]
    assert set(pauses[5:]) == {LONGEST_PAUSE}
    one.end()


def test_a_child_that_ran_well_for_long_comes_back_at_once(tmp_path: Path) -> None:
    clock = Clock()
    one = child(tmp_path, SLEEP, clock)
    one.look()
    clock.now += HEALTHY + 1
    assert one.pid is not None
    psutil.Process(one.pid).kill()
    assert ended(one) == -9
    clock.now += 1.0
    one.look()
    assert one.starts == 2
    one.end()


def test_ending_a_child_ends_what_it_started_too(tmp_path: Path) -> None:
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); print(p.pid, flush=True); p.wait()"
    one = child(tmp_path, code)
    one.look()
    while not (said := one.tail()):
        time.sleep(0.02)
    grandchild = psutil.Process(int(said))
    one.end()
    assert one.pid is None
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    one = child(
        tmp_path, "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    one.look()
    while one.tail() != "deaf":
        time.sleep(0.02)
    process = psutil.Process(one.pid)
    one.end(grace=0.3)
    assert not process.is_running()


def test_a_child_dies_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\nfrom pathlib import Path\nfrom common.supervising import Child\n"
        f"one = Child('x', lambda: [sys.executable, '-c', {SLEEP!r}], Path({str(tmp_path / 'x')!r}))\n"
        "one.look()\nprint(one.pid, flush=True)\ntime.sleep(1)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    until = time.monotonic() + 10
    while psutil.pid_exists(int(done.stdout)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not psutil.pid_exists(int(done.stdout))


def test_a_large_output_begins_anew_at_the_next_start(tmp_path: Path) -> None:
    one = child(tmp_path, "print('x' * 1000)", largest_output=500)
    assert ended(one) == 0
    assert ended_again(one) == 0
    assert len((tmp_path / "child.out").read_text()) == 1001


def ended_again(one: Child) -> int:
    one.restart()
    return ended(one)
