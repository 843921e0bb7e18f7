"""What events come to: who did what in which round, how far the run is and how long it takes."""

from __future__ import annotations

import json
import statistics
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from common.status.run import ABSENT, ANSWERED, LEFT_OUT, NO_ANSWER, REFUSED, RunSoFar, folded, state_in_words
from tests.common.status import story


def told(*events: Any, apart: float = 5.0) -> RunSoFar:
    return folded((event, story.BEGIN + apart * place) for place, event in enumerate(events))


def words(run: RunSoFar) -> list[str]:
    return [silo.in_words() for silo in run.silos.values()]


def test_every_silo_says_what_it_did_last() -> None:
    assert words(told(*story.STORY)) == ["answered", "answered", "answered", "left out for good"]
    assert words(told(*story.STORY[:8])) == ["answered", "answered", "left out until round 4", "answered"]
    assert words(told(*story.STORY[:6])) == ["answered", "answered", "no answer", "answered"]
    assert words(told(story.begins())) == ["waiting"] * 4


def test_the_grid_of_rounds_says_who_took_part_in_which() -> None:
    rounds = told(*story.STORY).rounds
    assert {number: one.answered for number, one in rounds.items()} == {
        0: (0, 1, 2, 3), 1: (0, 1, 2, 3), 2: (0, 1, 3), 3: (0, 1), 4: (0, 1, 2),
    }  # fmt: skip
    assert rounds[2].states[2] == NO_ANSWER
    assert (rounds[3].states[2], rounds[3].states[3]) == (LEFT_OUT, REFUSED)
    assert rounds[3].refused == {3: "BUDGET_EXHAUSTED"}
    assert rounds[4].states[3] == LEFT_OUT


def test_counts_codes_and_budgets_of_a_silo() -> None:
    north, _, east, west = told(*story.STORY).silos.values()
    assert (north.name, north.rounds_answered, north.rounds_missed, north.budget_left) == ("north", 5, 0, 7.0)
    assert (east.rounds_answered, east.rounds_missed, east.last_round, east.budget_left) == (3, 2, 4, None)
    assert (west.last_code, west.last_code_round, west.last_round) == ("BUDGET_EXHAUSTED", 3, 2)


def test_whom_the_roster_does_not_admit_is_absent_and_not_at_fault() -> None:
    run = told(story.begins(), story.stage(1, (0, 1, 2), (0, 1, 2)), story.ends(1, (0, 1, 2)))
    assert run.rounds[1].states[3] == run.silos[3].state == ABSENT


def test_a_refusal_that_may_pass_is_forgotten_when_the_silo_answers() -> None:
    refuses = (
        story.stage(1, range(4), (1, 2, 3), {"0": "DATA_UNAVAILABLE"}),
        story.ends(1, (1, 2, 3), {"0": "DATA_UNAVAILABLE"}),
    )
    run = told(story.begins(), *refuses)
    assert run.silos[0].in_words() == "refused DATA_UNAVAILABLE"
    run.tell(story.ends(2, range(4)), story.BEGIN + 50)
    assert run.silos[0].in_words() == "answered"
    assert run.silos[0].last_code == "DATA_UNAVAILABLE"


def test_time_left_is_the_rounds_to_do_at_the_usual_speed() -> None:
    run, now = told(*story.STORY), story.BEGIN + 1000
    assert run.usual_seconds() == statistics.median([10.0, 20.0, 12.0, 11.0])
    assert run.seconds_left(now) == 11.5
    run.tell(story.stage(5, range(3), (), seconds=None), now)
    assert run.seconds_left(now + 4) == 7.5
    assert run.seconds_left(now + 400) == 0.0
    run.tell(story.ends(5, range(3)), now + 12)
    run.tell({"event": "finished", "round": 5}, now + 13)
    assert run.seconds_left(now + 13) is None


def test_a_stage_that_begins_shows_until_it_is_over() -> None:
    run = told(story.begins(), story.stage(1, range(4), (), seconds=None))
    assert run.to_dict(story.BEGIN)["stage"] == {
        "name": "train", "since": "2026-05-28T20:26:45.000Z", "asked": 4, "answered": None,
    }  # fmt: skip
    assert run.to_dict(story.BEGIN)["current_round"] == 1
    run.tell(story.stage(1, range(4), (0, 1)), story.BEGIN + 13)
    assert run.to_dict(story.BEGIN)["stage"]["answered"] == 2
    run.tell(story.ends(1, (0, 1)), story.BEGIN + 14)
    assert (run.to_dict(story.BEGIN)["stage"], run.state) == (None, "waiting")


def test_asking_for_budgets_is_no_part_of_a_round() -> None:
    run = told(
        story.begins(), story.stage(1, range(4), range(4)), story.stage(0, range(4), (0,), name="query.budget", seconds=0.1)
    )
    assert run.current == 1
    assert {silo.state for silo in run.silos.values()} == {ANSWERED}


def test_a_coordinator_that_is_started_again_goes_on_and_asks_everybody() -> None:
    run = told(*story.STORY, story.begins(to_do=5))
    assert (run.attempts, run.last.number if run.last else None) == (2, 4)
    assert words(run) == ["waiting"] * 4
    assert [silo.rounds_answered for silo in run.silos.values()] == [5, 5, 3, 3]


def test_rounds_that_are_in_no_checkpoint_any_more_did_not_happen() -> None:
    run = told(*story.STORY, story.begins())
    assert run.rounds == {}
    assert run.to_dict(story.BEGIN)["round"] is None


def test_a_failure_is_kept_after_the_run_was_taken_up_again() -> None:
    run = told(story.begins(), {"event": "failed", "reason": "too few silos"})
    assert (run.state, run.reason) == ("failed", "too few silos")
    run.tell(story.begins(), story.BEGIN + 60)
    assert (run.state, run.reason) == ("waiting", "")
    assert run.to_dict(story.BEGIN)["failures"] == [{"time": "2026-05-28T20:26:45.000Z", "reason": "too few silos"}]


silos = st.integers(0, 4)
codes = st.dictionaries(st.sampled_from("01234"), st.just("INTERNAL"))
events = st.one_of(
    st.builds(story.begins, rounds=st.integers(0, 9), to_do=st.integers(0, 6)),
    st.builds(lambda n: {**story.begins(), "silos": n}, st.integers(0, 5)),
    st.builds(story.stage, st.integers(0, 5), st.sets(silos), st.sets(silos), codes),
    st.builds(story.left_out, silos, st.none() | st.integers(0, 9), st.text(max_size=5)),
    st.builds(story.ends, st.integers(0, 5), st.sets(silos), codes),
    st.builds(lambda silo: {"event": "invited", "silo": silo}, silos),
    st.sampled_from([{"event": "finished", "round": 1}, {"event": "failed"}, {"event": "something new", "x": 1}]),
)  # fmt: skip


@given(st.lists(events, max_size=30))
def test_any_order_of_events_comes_to_something_that_can_be_written(several: list[dict[str, Any]]) -> None:
    run = told(*several)
    status = json.loads(json.dumps(run.to_dict(story.BEGIN + 1000)))
    assert all(isinstance(state_in_words(silo), str) for silo in status["silos"])
    for silo in run.silos.values():
        assert silo.rounds_answered <= sum(event["event"] == "round" and silo.number in event["answered"] for event in several)
    for one in run.rounds.values():
        assert set(one.states) <= set(run.silos)
