"""One variable scales the pauses of all processes of a deployment."""

from __future__ import annotations

import time
from typing import Any

import pytest

from client.supernode import ANSWER, FLOWERS_PAUSE, SHORTEST, Pauses
from common.errors import ConfigError
from common.pauses import FACTOR, pause_factor


def test_pauses_are_as_they_are_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FACTOR, raising=False)
    assert pause_factor() == 1.0


@pytest.mark.parametrize("said", ["0", "-1", "soon", "nan", "inf", "1000", ""])
def test_a_factor_that_is_none_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(FACTOR, said)
    with pytest.raises(ConfigError, match=f"{FACTOR}={said}: give a number from 0.01 to 100"):
        pause_factor()


@pytest.mark.parametrize("factor", ["1", "0.1", "3"])
def test_a_silo_looks_for_messages_and_answers_after_so_much_shorter_or_longer_pauses(
    monkeypatch: pytest.MonkeyPatch, factor: str
) -> None:
    monkeypatch.setenv(FACTOR, factor)
    slept: list[float] = []

    def sleep(seconds: float) -> Any:
        slept.append(seconds)

    pauses = Pauses()
    monkeypatch.setattr(time, "sleep", sleep)
    pauses.sleep(0.5)
    pauses.sleep(FLOWERS_PAUSE)
    assert slept[0] == pytest.approx(float(factor) * ANSWER)
    assert slept[1] == pytest.approx(float(factor) * SHORTEST, rel=0.05)
