"""The file of events: whole lines only, whatever a crash left."""

from __future__ import annotations

from pathlib import Path

from common.status.events import EVENTS, Follower, append, read_events, seconds, stamp
from tests.common.status import story


def test_events_come_back_with_their_times(tmp_path: Path) -> None:
    story.write(tmp_path)
    assert read_events(tmp_path / EVENTS) == [(event, story.BEGIN + 5 * i) for i, event in enumerate(story.STORY)]


def test_a_torn_line_is_passed_over_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = story.write(tmp_path) / EVENTS
    path.write_bytes(path.read_bytes()[:-20])
    append(path, {"event": "finished", "round": 5}, story.BEGIN)
    assert [event["event"] for event, _ in read_events(path)] == [event["event"] for event in story.STORY[:-1]] + ["finished"]


def test_a_reader_follows_as_the_file_grows(tmp_path: Path) -> None:
    follower, path = Follower(tmp_path / EVENTS), tmp_path / EVENTS
    assert list(follower.new()) == []
    append(path, {"event": "a"}, 1.0)
    assert [event["event"] for event, _ in follower.new()] == ["a"]
    with open(path, "ab") as file:
        file.write(b'{"time": "1970-01-01T00:00:02.000Z", "eve')
    assert list(follower.new()) == []
    with open(path, "ab") as file:
        file.write(b'nt": "b"}\n')
    assert list(follower.new()) == [({"event": "b"}, 2.0)]
    path.write_bytes(b"")
    append(path, {"event": "c"}, 3.0)
    assert [event["event"] for event, _ in follower.new()] == ["c"]


def test_a_time_is_utc_and_has_milliseconds() -> None:
    assert stamp(1_000_000_000.1254) == "2001-09-09T01:46:40.125Z"
    assert seconds("2001-09-09T01:46:40.125Z") == 1_000_000_000.125
