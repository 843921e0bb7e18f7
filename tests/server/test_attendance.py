"""Who is left out of which rounds, and who is invited again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.attendance import Attendance, telling

ALL = (0, 1, 2, 3)


def asked(failing: int, rounds: int, longest: int, quorum: int = 2) -> list[int]:
    """The rounds in which a silo is asked that fails every time."""
    told: list[Mapping[str, Any]] = []
    attendance, out = Attendance(quorum, longest, told.append), []
    for number in range(1, rounds + 1):
        attendance.begin(number, ALL)
        if failing not in attendance.left_out:
            out.append(number)
            attendance.failed(failing, number, "no answer")
    return out


def test_a_silo_that_fails_is_left_out_of_one_round_then_of_two_then_of_four_and_of_no_more() -> None:
    assert asked(3, 25, longest=4) == [1, 3, 6, 11, 16, 21]
    assert asked(3, 30, longest=8) == [1, 3, 6, 11, 20, 29]
    assert asked(3, 6, longest=1) == [1, 3, 5]
    assert asked(3, 4, longest=0) == [1, 2, 3, 4]


def test_a_round_in_which_it_takes_part_ends_the_series() -> None:
    attendance = Attendance(2, 8, lambda event: None)
    for number, comes in ((1, False), (3, True), (4, False), (6, False), (9, True)):
        attendance.begin(number, ALL)
        assert 3 not in attendance.left_out
        attendance.came(3) if comes else attendance.failed(3, number, "INTERNAL")
    attendance.begin(5, ALL)
    assert attendance.left_out == frozenset()


def test_where_fewer_than_the_quorum_would_be_left_all_are_invited() -> None:
    attendance = Attendance(3, 4, lambda event: None)
    attendance.begin(1, ALL)
    attendance.failed(0, 1, "no answer")
    attendance.begin(2, ALL)
    assert attendance.left_out == {0}
    attendance.failed(1, 2, "no answer")
    attendance.begin(3, ALL)  # 0 is back, 1 is out
    assert attendance.left_out == {1}
    attendance.failed(2, 3, "no answer")
    attendance.begin(4, (0, 2, 3))  # of these 2 would be out
    assert attendance.left_out == frozenset()


def test_who_refuses_for_good_is_never_asked_again_whatever_the_quorum() -> None:
    told: list[Mapping[str, Any]] = []
    attendance = Attendance(4, 4, told.append)
    attendance.begin(1, ALL)
    attendance.refuse(1, "BUDGET_EXHAUSTED")
    attendance.refuse(1, "BUDGET_EXHAUSTED")
    for number in range(2, 20):
        attendance.begin(number, ALL, everybody=True)
        assert attendance.left_out == {1}
    assert told == [{"event": "left_out", "silo": 1, "reason": "BUDGET_EXHAUSTED", "until_round": None}]


def test_a_silo_whose_node_was_gone_is_invited_at_once() -> None:
    told: list[Mapping[str, Any]] = []
    attendance = Attendance(2, 4, told.append)
    attendance.begin(1, ALL)
    attendance.failed(2, 1, "no answer")
    attendance.begin(2, ALL)
    assert attendance.left_out == {2}
    attendance.back(2)
    assert attendance.left_out == frozenset()
    assert [event["event"] for event in told] == ["left_out", "invited"]


def test_every_leaving_out_ends_with_an_invitation_for_the_round_that_it_named() -> None:
    told: list[Mapping[str, Any]] = []
    attendance = Attendance(2, 4, told.append)
    attendance.begin(1, ALL)
    attendance.failed(3, 1, "no answer")
    for number in (2, 3):
        attendance.begin(number, ALL)
    assert told == [
        {"event": "left_out", "silo": 3, "reason": "no answer", "until_round": 3},
        {"event": "invited", "silo": 3},
    ]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["failed", "came", "back", "refuse"])), max_size=60),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_no_round_has_fewer_than_the_quorum_because_of_failures_alone(
    happenings: list[tuple[int, str]], quorum: int, longest: int
) -> None:
    attendance = Attendance(quorum, longest, lambda event: None)
    for number, (silo, what) in enumerate(happenings, start=1):
        attendance.begin(number, ALL)
        possible = len(ALL) - len(attendance.refused)
        assert len(set(ALL) - attendance.left_out) >= min(quorum, possible)
        if what == "failed":
            attendance.failed(silo, number, "no answer")
        elif what == "refuse":
            attendance.refuse(silo, "POLICY_REFUSED")
        else:
            getattr(attendance, what)(silo)


def test_an_exception_of_whoever_listens_ends_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Mapping[str, Any]) -> None:
        raise ZeroDivisionError("a bug of the listener")

    telling(broken)({"event": "round"})
    telling(None)({"event": "round"})
    assert "the event 'round' could not be told: ZeroDivisionError" in caplog.text
