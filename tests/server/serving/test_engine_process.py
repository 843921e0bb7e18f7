"""The engine in a process of its own gives the engine's answers, survives being killed, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from common.bundle.contents import Bundle
from common.engine import Engine
from common.errors import BundleError, ServingError
from server.serving.engine_process import EngineProcess
from tests.bundles import tiny_bundle

HISTORIES = [(), (3,), (7, 1, 7), tuple(range(40)), (39, 0)]


def ask(process: EngineProcess, histories: list[tuple[int, ...]], k: int) -> tuple[np.ndarray, np.ndarray]:
    return asyncio.run(process.answer(histories, k))


def soon(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle()


@pytest.fixture(scope="module")
def process(bundle: Bundle) -> EngineProcess:
    return EngineProcess(bundle)


def test_its_answers_are_the_engines(bundle: Bundle, process: EngineProcess) -> None:
    engine = Engine(bundle)
    for k in (1, 7, 100):
        for histories in ([(3,)], HISTORIES, HISTORIES * 13):
            positions, scores = ask(process, histories, k)
            expected = engine.top(histories, k)
            assert np.array_equal(positions, expected[0])
            np.testing.assert_array_equal(scores, expected[1])


def test_calls_at_once_get_each_its_own_answer(bundle: Bundle, process: EngineProcess) -> None:
    async def main() -> list[tuple[np.ndarray, np.ndarray]]:
        return await asyncio.gather(*[process.answer([(i, i + 1)], 5) for i in range(30)])

    engine = Engine(bundle)
    for i, (positions, _) in enumerate(asyncio.run(main())):
        assert np.array_equal(positions, engine.top([(i, i + 1)], 5)[0])


def test_a_killed_process_is_started_again(bundle: Bundle, process: EngineProcess, caplog: pytest.LogCaptureFixture) -> None:
    expected = Engine(bundle).top([(3,)], 5)
    before = process.pid
    os.kill(before, signal.SIGKILL)
    assert np.array_equal(ask(process, [(3,)], 5)[0], expected[0])
    assert process.pid != before
    assert "status -9" in caplog.text
    assert not psutil.pid_exists(before), "it was waited for"


def test_what_it_refuses_is_told_by_kind_alone_and_it_goes_on(process: EngineProcess) -> None:
    with pytest.raises(ServingError, match=r"the engine failed: ServingError$"):
        ask(process, [(31337,)], 5)
    before = process.pid
    assert ask(process, [(3,)], 5)[0].shape == (1, 5)
    assert process.pid == before


def test_a_bundle_that_cannot_answer_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="cannot be loaded"):
        EngineProcess(replace(bundle, model=b"nothing that ONNX Runtime knows"))


def test_it_ends_with_the_last_who_needs_it(bundle: Bundle) -> None:
    process = EngineProcess(bundle)
    pid = process.pid
    assert psutil.pid_exists(pid)
    del process
    gc.collect()
    assert soon(lambda: not psutil.pid_exists(pid))


def test_signals_to_the_group_do_not_end_it(process: EngineProcess) -> None:
    pid = process.pid
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert ask(process, [(3,)], 5)[0].shape == (1, 5)
    assert process.pid == pid


def test_it_ends_when_the_service_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from server.serving.engine_process import EngineProcess\n"
        "from tests.bundles import tiny_bundle\n"
        "process = EngineProcess(tiny_bundle())\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root) as service:
        assert service.stdout is not None
        pid = int(service.stdout.readline())
        assert psutil.pid_exists(pid)
        service.kill()
    assert soon(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
