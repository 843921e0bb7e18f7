"""What expires is warned of a month ahead."""

from __future__ import annotations

from pathlib import Path

from common.consortium.expiry import days_left, expiries
from tests.common.consortium.conftest import DAY, NOW, Shops


def warnings(shops: Shops, days: float, *, at: str = "authority") -> list[str]:
    homes = {"authority": shops.authority.home, "coordinator": shops.coordinator, "silo": shops.home("north")}
    found = [one.warning(NOW + days * DAY) for one in expiries(homes[at], shops.consortium)]  # type: ignore[arg-type]
    return [warning.partition(";")[0] for warning in found if warning]


def test_each_thing_is_warned_of_in_its_time_and_where_it_matters(tmp_path: Path) -> None:
    shops = Shops(tmp_path, authority_days=1000, days=200)
    shops.admit("north", days=100)
    shops.authority.renew_roster(days=300)
    assert warnings(shops, 0) == []
    assert warnings(shops, 70) == []
    assert warnings(shops, 70.5) == [f"silo 'north' expires in 29 days, on {NOW + 100 * DAY:%Y-%m-%d}"]
    assert warnings(shops, 98.5) == [f"silo 'north' expires in 1 day, on {NOW + 100 * DAY:%Y-%m-%d}"]
    north = f"silo 'north' expired on {NOW + 100 * DAY:%Y-%m-%d %H:%M} UTC"
    server = f"the coordinator's certificate expires in 10 days, on {NOW + 200 * DAY:%Y-%m-%d}"
    assert warnings(shops, 190) == warnings(shops, 190, at="coordinator") == [server, north]
    assert warnings(shops, 190, at="silo") == [north]
    roster = f"the roster expires in 0 days, on {NOW + 300 * DAY:%Y-%m-%d}"
    assert warnings(shops, 299.5, at="silo") == [roster, north]
    authority = f"the authority's certificate expired on {NOW + 1000 * DAY:%Y-%m-%d %H:%M} UTC"
    assert warnings(shops, 1000)[0] == authority


def test_a_revoked_silo_is_not_warned_of(tmp_path: Path) -> None:
    shops = Shops(tmp_path)
    shops.admit("north", days=10)
    assert len(warnings(shops, 0)) == 1
    shops.authority.revoke("north", "left")
    assert warnings(shops, 0) == []


def test_a_clock_that_is_wrong_shows(shops: Shops) -> None:
    shops.admit("north")
    at = NOW - DAY
    said = [one.warning(at) for one in expiries(shops.authority.home, shops.consortium)]
    assert len(said) == 4
    assert all(f"this machine's clock says {at:%Y-%m-%d %H:%M} UTC; set the clock" in line for line in said)


def test_days_are_whole_ones() -> None:
    assert [days_left(NOW + left * DAY, NOW) for left in (2, 1.99, 0.01, 0, -0.01)] == [2, 1, 0, 0, -1]
