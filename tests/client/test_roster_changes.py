"""A silo reads its roster anew for each attempt at a sum, makes none with who is absent, and shows its budget where told to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.place import Place, folder_of, make_simulated_roster
from client.silo import Silo
from common.errors import ErrorCode, SecAggError
from common.privacy.signing import create_key
from common.protocol import ADVERTISE, BUDGET, MASK, SHARE, Refusal, Request, config_hash, statement
from common.secagg.roster import KeyRoster, write_roster
from tests import tiny
from tests.client.secure_apps import Attempt, Coordinator, N, secure
from tests.client.test_silo import ask_count, ledger, operated
from tests.secure_silos import Consortium

# Rosters


def test_a_silo_shares_no_secrets_with_one_that_its_own_roster_calls_absent() -> None:
    """A coordinator that has not heard of it, or does not want to, gets no sum."""
    consortium, name = Consortium(4), bytes(32)
    ads = b"".join(consortium.participant(silo).advertise(name) for silo in range(4))
    whole = consortium.roster
    consortium.roster = KeyRoster(whole.names, whole.keys, frozenset({2}))
    with pytest.raises(SecAggError, match=r"silos \[2\] were revoked or have expired, by this silo's own roster"):
        consortium.participant(0).share(name, ads)
    three = b"".join(consortium.participant(silo).advertise(name) for silo in (0, 1, 3))
    assert len(consortium.participant(0).share(name, three)) == 2 * 172


@pytest.fixture
def rosters(monkeypatch: pytest.MonkeyPatch) -> list[KeyRoster]:
    """What each silo's roster says from now on: the last one in this list."""
    said: list[KeyRoster] = []
    monkeypatch.setattr(Place, "key_roster", lambda place: said[-1])
    return said


def test_a_silo_that_was_removed_is_gone_from_the_next_attempt_and_the_others_go_on(
    tmp_path: Path, rosters: list[KeyRoster]
) -> None:
    coordinator = Coordinator(secure(), tmp_path)
    rosters.append(coordinator.roster)
    Attempt(coordinator, coordinator.asked(), nonce=bytes(32)).until(MASK)
    rosters.append(KeyRoster(coordinator.roster.names, coordinator.roster.keys, frozenset({3})))
    second = Attempt(coordinator, coordinator.asked(), nonce=bytes(31) + b"1").until(SHARE)
    assert second.put(SHARE) is ErrorCode.SECAGG_REFUSED
    third = Attempt(coordinator, coordinator.asked(), nonce=bytes(31) + b"2")
    third.play(ADVERTISE, range(3))
    third.finish(SHARE, range(3))


def test_a_roster_that_changes_within_an_attempt_counts_from_the_next_one(tmp_path: Path, rosters: list[KeyRoster]) -> None:
    coordinator = Coordinator(secure(), tmp_path)
    rosters.append(coordinator.roster)
    attempt = Attempt(coordinator, coordinator.asked()).until(SHARE)
    rosters.append(KeyRoster(coordinator.roster.names, coordinator.roster.keys, frozenset({3})))
    attempt.finish(SHARE)


def test_a_roster_that_has_grown_is_still_that_of_the_run(tmp_path: Path) -> None:
    coordinator = Coordinator(secure(), tmp_path)
    whole = coordinator.roster
    late = create_key(tmp_path / "late.key").public_key
    write_roster(tmp_path / "roster.toml", KeyRoster((*whole.names, "late"), (*whole.keys, late)))
    Attempt(coordinator, coordinator.asked()).finish(ADVERTISE)


# Budgets


def shown(silo: Silo) -> int:
    """Thousandths of epsilon."""
    return silo.budget(Request(config_hash=config_hash(silo.config)))["budget"]  # type: ignore[no-any-return]


def test_a_silo_shows_the_epsilon_that_is_left_where_its_operator_says_so(tmp_path: Path) -> None:
    config = tiny.config(privacy__mode="silo")
    silo = operated(config, tmp_path, epsilon=9.0)
    silo.place = replace(silo.place, show_budget=True)
    assert shown(silo) == 9000
    silo.count(ask_count(config))
    spent = ledger(tmp_path).spending().epsilon(ledger(tmp_path).policy.order or 0.0, ledger(tmp_path).policy.delta)
    assert shown(silo) == int(1000 * (9.0 - spent))
    assert 0 < shown(silo) < 9000
    assert shown(silo) <= 1000 * (9.0 - spent), "rounded up"
    assert len(ledger(tmp_path).reservations) == 1, "to show it costs nothing"


def test_without_the_operators_word_no_budget_is_shown(tmp_path: Path) -> None:
    config = tiny.config(privacy__mode="silo")
    silo = operated(config, tmp_path)
    with pytest.raises(Refusal, match="operator does not show") as raised:
        shown(silo)
    assert raised.value.code is ErrorCode.POLICY_REFUSED
    unlimited = Silo(tiny.config(), Place(0, tmp_path / "none", simulated=True, show_budget=True))
    with pytest.raises(Refusal, match="no limit over everything") as raised:
        shown(unlimited)
    assert raised.value.code is ErrorCode.POLICY_REFUSED


def test_a_simulated_silo_shows_no_budget(tmp_path: Path) -> None:
    config = secure()
    make_simulated_roster(tmp_path, N)
    place = Place.of({"partition-id": 1}, str(tmp_path))
    assert not place.show_budget
    assert place.folder == folder_of(tmp_path, 1)
    with pytest.raises(Refusal, match="operator does not show"):
        shown(Silo(config, place))


def test_only_the_coordinator_whom_the_configuration_names_is_shown_it(tmp_path: Path) -> None:
    key = create_key(tmp_path / "coordinator.key")
    config = tiny.config(privacy__mode="silo", federation__coordinator=key.public_key)
    (tmp_path / "silo").mkdir()
    silo: Any = operated(config, tmp_path / "silo", coordinators=(key.public_key,))
    silo.place = replace(silo.place, show_budget=True)
    request = Request(config_hash=config_hash(config))
    with pytest.raises(Refusal, match="not signed by the coordinator"):
        silo.budget(request)
    signed = replace(request, signature=key.sign(statement(BUDGET, request)).hex())
    assert silo.budget(signed)["budget"] > 0
