"""A run's status file: never half, never stale by mistake, never the reason that a run ends."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from common.errors import DataError, FederationError
from common.status import files
from common.status.events import EVENTS, read_events
from common.status.files import STALE, STATUS, read_status
from server.status import StatusFile
from tests.common.status import story


class Clock:
    def __init__(self) -> None:
        self.now = story.BEGIN

    def __call__(self) -> float:
        return self.now


def tell_all(status: StatusFile, clock: Clock, *events: Any) -> None:
    for event in events:
        clock.now += 5.0
        status.tell(event)


def test_the_status_says_where_the_run_is(tmp_path: Path) -> None:
    clock = Clock()
    tell_all(StatusFile(tmp_path, clock=clock), clock, *story.STORY)
    status = read_status(tmp_path, clock.now)
    assert (status["run"], status["mode"], status["round"], status["rounds"]) == ("spring", "silo", 4, 5)
    assert (status["seconds_per_round"], status["seconds_left"]) == (11.5, 11.5)
    assert [silo["name"] for silo in status["silos"]] == list(story.NAMES)
    assert not status["stale"]


def test_a_silo_is_called_as_the_roster_calls_it(tmp_path: Path) -> None:
    status = StatusFile(tmp_path, ("a", "b"), run="spring")
    status.tell({**story.begins(), "silos": 2})
    assert [silo["name"] for silo in read_status(tmp_path)["silos"]] == ["a", "b"]


def test_after_a_restart_nothing_is_forgotten(tmp_path: Path) -> None:
    clock = Clock()
    tell_all(StatusFile(tmp_path, clock=clock), clock, *story.STORY)
    before = read_status(tmp_path)
    again = StatusFile(tmp_path, clock=clock)
    assert {**again.run.to_dict(clock.now)} == {key: before[key] for key in again.run.to_dict(clock.now)}
    tell_all(again, clock, story.begins(to_do=5))
    assert read_status(tmp_path)["attempts"] == 2
    assert len(read_events(tmp_path / EVENTS)) == len(story.STORY) + 1


def test_a_run_that_says_nothing_for_long_is_alive_as_long_as_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.status.BEAT", 0.05)
    monkeypatch.setattr("server.status.OFTEN", 0.02)
    with StatusFile(tmp_path) as status:
        status.tell(story.begins())
        first = read_status(tmp_path)["heartbeat"]
        until = time.monotonic() + 10
        while read_status(tmp_path)["heartbeat"] == first:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_a_killed_run_is_stale_and_one_that_was_stopped_is_not(tmp_path: Path) -> None:
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from server.status import StatusFile
        from tests.common.status import story
        with StatusFile(Path(sys.argv[1])) as status:
            status.tell(story.begins())
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed")], check=False, cwd=Path(__file__).parents[2])
    later = time.time() + STALE + 1
    assert read_status(tmp_path / "killed", later)["stale"]
    assert not read_status(tmp_path / "killed", later - STALE)["stale"]
    with StatusFile(tmp_path / "stopped") as status:
        status.tell(story.begins())
    assert read_status(tmp_path / "stopped", later)["state"] == "stopped"
    assert not read_status(tmp_path / "stopped", later)["stale"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(FederationError("two of four answered"), "two of four answered"), (ValueError("user 17"), "ValueError")],
)
def test_a_run_that_ends_by_an_error_says_why_and_quotes_nothing_but_our_own_words(
    tmp_path: Path, error: Exception, reason: str
) -> None:
    def run() -> None:
        with StatusFile(tmp_path) as status:
            status.tell(story.begins())
            raise error

    with pytest.raises(type(error)):
        run()
    assert (read_status(tmp_path)["state"], read_status(tmp_path)["reason"]) == ("failed", reason)


def test_what_goes_wrong_after_the_last_round_is_a_failure_too(tmp_path: Path) -> None:
    def run() -> None:
        with StatusFile(tmp_path) as status:
            status.tell({"event": "finished", "round": 5})
            raise FederationError("the last adapter cannot be written")

    with pytest.raises(FederationError):
        run()
    assert read_status(tmp_path)["state"] == "failed"
    with StatusFile(tmp_path):
        assert (read_status(tmp_path)["state"], read_status(tmp_path)["reason"]) == ("waiting", "")


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    over, seen = threading.Event(), set()
    status = StatusFile(tmp_path)
    status.tell(story.begins())

    def read() -> None:
        while not over.is_set():
            seen.add(read_status(tmp_path)["round"])

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(300):
        status.tell(story.ends(number, range(4)))
    over.set()
    reader.join()
    assert len(seen) > 1
    assert list(tmp_path.glob(".*partial")) == []


def test_events_come_fast_and_the_file_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = Clock(), []
    monkeypatch.setattr("server.status.replace_status", lambda path, content: written.append(content))
    status = StatusFile(tmp_path, clock=clock)
    for _ in range(1000):
        clock.now += 0.001
        status.tell(story.stage(1, range(4), range(4)))
    assert len(written) <= 6
    status.tell(story.ends(1, range(4)))
    assert written[-1]["round"] == 1


def test_a_full_disk_does_not_end_the_run_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    status, clock = StatusFile(tmp_path), Clock()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("server.status.replace_status", full)
        patch.setattr("server.status.append", full)
        tell_all(status, clock, *story.STORY)
    assert "No space left on device" in caplog.text
    assert len(caplog.records) == 1
    status.tell({"event": "finished", "round": 5})
    assert read_status(tmp_path)["state"] == "finished"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"format": 1}', b'{"format": 2}', b'{"format": 1, "heartbeat": "x", "state": "round"}']
)
def test_a_file_that_is_no_status_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATUS).write_bytes(content)
    with pytest.raises(DataError, match=STATUS):
        read_status(tmp_path)


def test_a_clock_that_was_set_back_makes_nothing_stale(tmp_path: Path) -> None:
    with StatusFile(tmp_path) as status:
        status.tell(story.begins())
        assert read_status(tmp_path, time.time() - 7200)["age"] == 0.0
    assert json.loads((tmp_path / STATUS).read_text())["format"] == files.FORMAT
