"""What the authority does, what it refuses, and what its journal shows of it."""

from __future__ import annotations

import hashlib
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from common.consortium.authority import Authority, found
from common.consortium.certificates import names_of, read_certificate
from common.consortium.home import AuthorityHome
from common.consortium.joining import renew
from common.consortium.keys import load_key_p384, node_line
from common.consortium.roster import accept, read_signed
from common.errors import ConsortiumError
from common.journal import read_journal
from tests.common.consortium.conftest import DAY, NOW, Shops


def test_a_consortium_begins_with_an_authority_a_coordinator_and_nobody(shops: Shops) -> None:
    home, coordinator = shops.authority.home, shops.coordinator
    assert (shops.consortium.version, shops.consortium.members) == (1, ())
    for path in (home.key, coordinator.key, coordinator.tls_key):
        assert path.stat().st_mode & 0o777 == 0o600
    assert home.folder.stat().st_mode & 0o777 == coordinator.folder.stat().st_mode & 0o777 == 0o700
    assert coordinator.roster.read_bytes() == home.roster.read_bytes()
    assert coordinator.settings().listen == "0.0.0.0:9092"
    with pytest.raises(ConsortiumError, match="there is a consortium already"):
        found(shops.folder / "shops", "shops", "federation.example.org:9092")


@pytest.mark.parametrize(
    ("name", "address", "why"),
    [
        ("shops", "federation.example.org", "must be host:port"),
        ("shops", "federation.example.org:0", "must be host:port"),
        ("shops", "::1:9092", "must be host:port"),
        ("shops", "https://federation.example.org:9092", "must be host:port"),
        ("", "localhost:9092", "a consortium's name has up to 50 letters"),
        ("a" * 51, "localhost:9092", "a consortium's name has up to 50 letters"),
        ("a/b", "localhost:9092", "a consortium's name has up to 50 letters"),
    ],
)
def test_a_consortium_that_cannot_be_is_not_begun(tmp_path: Path, name: str, address: str, why: str) -> None:
    with pytest.raises(ConsortiumError, match=why):
        found(tmp_path / "shops", name, address)
    assert not (tmp_path / "shops").exists()


def test_every_act_is_noted_with_the_digest_of_the_roster_that_it_made(shops: Shops) -> None:
    shops.admit("north")
    shops.authority.admit(renew(shops.home("north"), shops.consortium).read_bytes(), "north.rotation")
    shops.authority.extend("north", 500)
    shops.authority.renew_server(("backup.example.org",))
    shops.authority.renew_roster()
    shops.authority.revoke("north", "left")
    acts = read_journal(shops.authority.home.journal)
    assert [act.act for act in acts] == [
        *(
            "server certificate",
            "found",
            "invite",
            "admit",
            "renew keys",
            "extend",
            "server certificate",
            "renew roster",
            "revoke",
        )
    ]
    assert [act.facts["version"] for act in acts if "version" in act.facts] == list(range(1, 7))
    digest = hashlib.sha256(shops.authority.home.roster.read_bytes()).hexdigest()
    assert acts[-1].facts == {"silo": "north", "reason": "left", "version": 6, "roster": digest}
    token = shops.authority.invite("south")[0].token
    assert token not in shops.authority.home.journal.read_text()


def test_a_journal_that_was_cut_off_or_altered_stops_the_authority(shops: Shops) -> None:
    shops.admit("north")
    journal = shops.authority.home.journal
    whole = journal.read_bytes()
    journal.write_bytes(whole[: whole.rstrip(b"\n").rfind(b"\n") + 1])
    with pytest.raises(ConsortiumError, match="its last change of the roster is not the roster that is here"):
        shops.authority.revoke("north", "left")
    journal.write_bytes(whole.replace(b'"number":0', b'"number":1'))
    with pytest.raises(ConsortiumError, match=r"journal\.jsonl:4: the journal's chain is broken here"):
        shops.authority.revoke("north", "left")
    assert shops.consortium.version == 2
    journal.write_bytes(whole)
    shops.authority.revoke("north", "left")


def test_a_revoked_silo_keeps_its_number_and_its_name_for_ever(shops: Shops) -> None:
    shops.admit("north")
    shops.admit("south")
    shops.authority.revoke("north", "  left the consortium ")
    assert [(m.name, m.reason) for m in shops.consortium.members] == [("north", "left the consortium"), ("south", "")]
    with pytest.raises(ConsortiumError, match=f"silo 'north' was revoked already, on {NOW:%Y-%m-%d}"):
        shops.authority.revoke("north", "again")
    with pytest.raises(ConsortiumError, match="is or was a member"):
        shops.authority.invite("north")
    with pytest.raises(ConsortiumError, match="silo 'north' was revoked on"):
        shops.authority.extend("north")
    with pytest.raises(ConsortiumError, match="'shops' has no silo 'west'; it has: north, south"):
        shops.authority.revoke("west", "left")
    for reason in ("", "  ", "one\ntwo"):
        with pytest.raises(ConsortiumError, match="say in one line why"):
            shops.authority.revoke("south", reason)


def test_a_silo_that_expired_is_extended_with_the_keys_that_it_has(shops: Shops) -> None:
    home = shops.admit("north", days=10)
    shops.now = NOW + 20 * DAY
    assert shops.consortium.named("north").standing(shops.now) == "expired"
    shops.authority.extend("north", 100)
    shops.hand_out("north")
    member = shops.consortium.named("north")
    assert member.standing(shops.now) == "valid"
    certificate = read_certificate(home.tls_certificate)
    assert certificate.not_valid_after_utc == member.valid_until == NOW + 120 * DAY
    assert certificate.public_key() == load_key_p384(home.tls_key).public_key()


def test_nothing_is_valid_for_longer_than_the_authority(tmp_path: Path) -> None:
    shops = Shops(tmp_path, authority_days=100)
    shops.admit("north", days=365)
    end = NOW + 100 * DAY
    assert shops.consortium.valid_until == shops.consortium.named("north").valid_until == end
    assert read_certificate(shops.coordinator.tls_certificate).not_valid_after_utc == end
    shops.now = end
    for act in (shops.authority.renew_roster, lambda: shops.authority.revoke("north", "left")):
        with pytest.raises(ConsortiumError, match=r"the authority expired on .* found a new consortium"):
            act()
    shops.now = NOW - DAY
    with pytest.raises(ConsortiumError, match=r"this machine's clock says .*: set the clock"):
        shops.authority.renew_roster()


def test_a_clock_that_is_ten_minutes_off_hurts_nobody(shops: Shops) -> None:
    for name, off in (("north", -10), ("south", 10)):
        request = shops.request(name)
        shops.now = NOW + timedelta(minutes=off)
        shops.authority.admit(request, name)
        shops.now = NOW
        shops.hand_out(name)
        assert shops.consortium.named(name).standing(NOW) == "valid"


def test_an_authority_is_kept_elsewhere(shops: Shops, tmp_path: Path) -> None:
    """It goes on alone; its roster is carried to the coordinator, which takes it as a silo does."""
    shops.admit("north")
    apart = tmp_path / "vault" / "authority"
    shutil.copytree(shops.authority.home.folder, apart)
    authority = Authority(AuthorityHome(apart), shops.clock)
    authority.revoke("north", "left")
    document = authority.home.roster.read_bytes()
    assert accept(shops.coordinator, document, NOW).named("north").standing(NOW) == "revoked"
    assert read_signed(shops.coordinator.roster, shops.coordinator.authority).version == 3
    carried = authority.home.coordinator.tls_certificate
    carried.parent.mkdir()
    shutil.copy(shops.coordinator.tls_certificate, carried)
    renewed = authority.renew_server(days=700)
    assert renewed.not_valid_after_utc == NOW + 700 * DAY
    assert renewed.public_key() == load_key_p384(shops.coordinator.tls_key).public_key()
    assert not authority.home.coordinator.tls_key.exists()
    assert not authority.home.coordinator.roster.exists()


def test_the_coordinators_key_is_made_anew_when_it_was_removed(shops: Shops) -> None:
    before = node_line(load_key_p384(shops.coordinator.tls_key).public_key())
    shops.coordinator.tls_key.unlink()
    shops.coordinator.tls_certificate.unlink()
    certificate = shops.authority.renew_server(("10.0.0.1",))
    after = load_key_p384(shops.coordinator.tls_key).public_key()
    assert certificate.public_key() == after
    assert node_line(after) != before
    assert names_of(certificate) == ("federation.example.org", "10.0.0.1", "localhost", "127.0.0.1", "::1")


def test_an_authority_whose_key_others_can_read_signs_nothing(shops: Shops) -> None:
    shops.authority.home.key.chmod(0o640)
    with pytest.raises(ConsortiumError, match=r"authority\.key: others than its owner .* chmod 600"):
        shops.authority.renew_roster()
    shops.authority.home.key.chmod(0o600)
    request = shops.request("north")
    shops.authority.home.invitations.chmod(0o644)
    with pytest.raises(ConsortiumError, match=r"invitations\.toml: others than its owner .* chmod 600"):
        shops.authority.admit(request, "north.request")
    assert shops.consortium.version == 1


def test_a_folder_without_an_authority_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConsortiumError, match="there is no authority here; make one with: silorec consortium init"):
        Authority(AuthorityHome(tmp_path))
