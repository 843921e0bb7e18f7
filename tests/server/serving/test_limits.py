"""No silo gets more than its share."""

from __future__ import annotations

import pytest

from common.errors import ServingError
from server.serving.limits import Allowance, Limits, Places
from server.serving.refusal import Refused


def test_a_bucket_gives_its_burst_then_its_rate() -> None:
    now = 0.0
    allowance = Allowance(rate=10.0, burst=100, clock=lambda: now)
    granted = 0
    for step in range(4_000):  # four seconds, asking a thousand times a second
        now = step / 1000
        try:
            allowance.spend("north", 1)
            granted += 1
        except Refused:
            pass
    assert granted == 100 + 39  # the burst, and what 3.999 s bring
    allowance.spend("south", 100)


def test_a_refusal_says_when_there_will_be_enough_and_takes_nothing() -> None:
    now = 0.0
    allowance = Allowance(rate=50.0, burst=100, clock=lambda: now)
    allowance.spend("north", 90)
    with pytest.raises(Refused, match="50 questions a second") as caught:
        allowance.spend("north", 60)
    assert caught.value.retry_after == pytest.approx(1.0)
    allowance.spend("north", 10)
    now = 1.2
    allowance.spend("north", 60)
    now = 1e6
    with pytest.raises(Refused):
        allowance.spend("north", 101)


def test_places_are_given_back_however_a_call_ends() -> None:
    places = Places("calls", in_all=3, of_one=2)
    with places.one("north"), places.one("north"):
        with pytest.raises(Refused, match="this silo has 2 calls under way"), places.one("north"):
            pass
        with places.one("south"), pytest.raises(Refused, match="the service has 3 calls under way"), places.one("west"):
            pass
        assert places.taken == 2
    with pytest.raises(ZeroDivisionError), places.one("north"):
        raise ZeroDivisionError
    assert places.taken == 0


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"burst": 63}, {"waiting": 10}, {"deadline": -1.0}, {"under_way": 0}])
def test_impossible_limits_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ServingError, match=next(iter(wrong))):
        Limits(**wrong)  # type: ignore[arg-type]
