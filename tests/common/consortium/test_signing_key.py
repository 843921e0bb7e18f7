"""The coordinator's signing key: a new one comes into use with the roster that names it, and never before."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from common.consortium.authority import Authority
from common.consortium.certificates import names_of, read_certificate
from common.consortium.home import AuthorityHome, CoordinatorHome
from common.consortium.keys import waiting
from common.consortium.roster import accept, read_signed
from common.consortium.signing_key import has_signing_key, public_half, renew_signing_key, take_up_signing_key
from common.errors import ConsortiumError
from common.journal import read_journal
from common.privacy.signing import load_key
from tests.common.consortium.conftest import Shops


def public_of(home: CoordinatorHome) -> str:
    return load_key(home.key).public_key


def test_a_new_key_waits_until_the_roster_names_it(shops: Shops) -> None:
    home = shops.coordinator
    old, new = public_of(home), renew_signing_key(home)
    assert new == renew_signing_key(home) != old
    assert stat.S_IMODE(waiting(home.key).stat().st_mode) == 0o600
    assert (public_of(home), shops.consortium.coordinator) == (old, old)
    assert (public_half(home.key).read_text(), public_half(waiting(home.key)).read_text()) == (f"{old}\n", f"{new}\n")
    assert take_up_signing_key(home, shops.consortium) is False
    consortium = shops.authority.change_signing_key(new)
    assert (consortium.coordinator, consortium.version) == (new, 2)
    assert read_signed(home.roster, home.authority) == consortium
    assert (public_of(home), public_half(home.key).read_text()) == (new, f"{new}\n")
    assert not waiting(home.key).exists()
    assert not public_half(waiting(home.key)).exists()
    last = list(read_journal(shops.authority.home.journal))[-1]
    assert (last.act, last.facts["coordinator"]) == ("signing key", new)


def test_a_silo_takes_the_roster_with_another_key(shops: Shops) -> None:
    north = shops.admit("north")
    new = renew_signing_key(shops.coordinator)
    shops.authority.change_signing_key(new)
    shops.hand_out("north")
    assert read_signed(north.roster, north.authority).coordinator == new
    _, letter = shops.authority.invite("south")
    assert new in letter.decode()


def test_a_key_that_is_not_there_is_not_named(shops: Shops) -> None:
    before = shops.document
    for key, why in (("ab" * 32, "is not there; make a new key first"), ("AB" * 32, "has 64 of 0-9 and a-f"), ("", "has 64")):
        with pytest.raises(ConsortiumError, match=why):
            shops.authority.change_signing_key(key)
    assert shops.document == before


def test_a_coordinator_elsewhere_takes_its_key_up_with_the_roster(shops: Shops, tmp_path: Path) -> None:
    home = CoordinatorHome(tmp_path / "elsewhere")
    shutil.move(shops.coordinator.folder, home.folder)
    old, new = public_of(home), renew_signing_key(home)
    shops.authority.change_signing_key(new)
    assert public_of(home) == old
    waiting(home.key).rename(tmp_path / "away")
    with pytest.raises(ConsortiumError, match="the roster names another signing key for the coordinator"):
        accept(home, shops.document, shops.now)
    assert (public_of(home), read_signed(home.roster, home.authority).version) == (old, 1)
    (tmp_path / "away").rename(waiting(home.key))
    accept(home, shops.document, shops.now)
    assert (public_of(home), has_signing_key(home, old)) == (new, False)
    accept(home, shops.document, shops.now)


def test_a_crash_between_the_note_and_the_key_is_mended_by_the_next_act(shops: Shops, monkeypatch: pytest.MonkeyPatch) -> None:
    home, new = shops.coordinator, renew_signing_key(shops.coordinator)
    replace = os.replace

    def crash(source: object, target: object) -> None:
        if target == home.key:
            raise KeyboardInterrupt
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        shops.authority.change_signing_key(new)
    assert has_signing_key(home, new)
    monkeypatch.undo()
    shops.authority.renew_roster()
    assert (public_of(home), read_signed(home.roster, home.authority).version) == (new, 3)


def test_a_coordinator_that_lost_its_key_holds_up_no_revocation(shops: Shops) -> None:
    shops.admit("north")
    new = renew_signing_key(shops.coordinator)
    shutil.copy(shops.coordinator.key, shops.folder / "old")
    shops.authority.change_signing_key(new)
    shutil.copy(shops.folder / "old", shops.coordinator.key)
    shops.authority.revoke("north", "left")
    assert read_signed(shops.coordinator.roster, shops.coordinator.authority).named("north").revoked is not None


def test_a_coordinator_that_moves_has_a_certificate_for_both_places(shops: Shops) -> None:
    consortium = shops.authority.move("new.example.org:9443", ("10.0.0.2",))
    assert (consortium.address, consortium.version) == ("new.example.org:9443", 2)
    names = names_of(read_certificate(shops.coordinator.tls_certificate))
    assert {"new.example.org", "10.0.0.2", "federation.example.org", "10.0.0.1"} <= set(names)
    assert shops.authority.invite("north")[0].address == "new.example.org:9443"
    with pytest.raises(ConsortiumError, match="must be host:port"):
        shops.authority.move("new.example.org")


def test_an_authority_kept_elsewhere_names_any_key(shops: Shops, tmp_path: Path) -> None:
    elsewhere = tmp_path / "vault" / "authority"
    shutil.copytree(shops.authority.home.folder, elsewhere)
    assert Authority(AuthorityHome(elsewhere), shops.clock).change_signing_key("ab" * 32).coordinator == "ab" * 32
