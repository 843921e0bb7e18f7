"""A silo joins by an invitation, and renews its keys: what it makes, and what both sides refuse."""

from __future__ import annotations

import stat
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.consortium.home import SiloHome
from common.consortium.joining import delta_for, join, renew, take_up
from common.consortium.keys import load_key_p384, node_line
from common.consortium.letters import Invitation, Request, proof_of, read_invitation, read_request
from common.consortium.roster import accept, read_signed
from common.errors import ConsortiumError, LedgerError
from common.privacy.ledger import Ledger
from common.privacy.policy import read_policy
from common.privacy.signing import create_key, load_key
from tests.common.consortium.conftest import DAY, NOW, Shops


def invited(shops: Shops, name: str) -> Invitation:
    return read_invitation(shops.authority.invite(name)[1], "north.invite")


def test_a_silo_makes_all_of_its_keys_itself_and_none_leaves_it(shops: Shops) -> None:
    request = shops.request("north", 1200)
    home = shops.home("north")
    secrets = [path for path in home.folder.iterdir() if path.suffix == ".key"]
    assert sorted(path.name for path in secrets) == ["ledger.key", "node.key", "tls.key"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
    assert b"PRIVATE" not in request
    said = tomllib.loads(request.decode())
    assert said["key"] == load_key(home.identity_key).public_key
    assert said["node"] == node_line(load_key_p384(home.node_key).public_key())
    assert (said["silo"], said["declared_users"]) == ("north", 1200)
    token = shops.authority._invitations()["north"]["token"]
    assert token not in request.decode()


def test_the_settings_that_a_silo_begins_with_can_be_read_and_say_what_is_missing(shops: Shops, tmp_path: Path) -> None:
    home = shops.admit("north", 12_000)
    policy = read_policy(home.policy)
    assert (policy.silo, policy.declared_users, policy.modes, policy.epsilon, policy.delta) == (
        "north",
        12_000,
        ("silo",),
        8.0,
        1e-6,
    )
    assert policy.coordinators == (shops.consortium.coordinator,)
    ledger = Ledger.create(home.ledger, policy.resolved(), load_key(home.identity_key))
    assert ledger.chain.public_key == shops.consortium.named("north").key
    with pytest.raises(Exception, match=r"silo\.toml: data: give either path \(a file or folder\) or url and query"):
        home.settings()
    join(SiloHome(tmp_path / "south"), invited(shops, "south"), 10, NOW, data=Path('shop "x".csv'))
    found = SiloHome(tmp_path / "south").settings()
    assert found.data.path == Path('shop "x".csv').absolute()
    assert (found.name, found.coordinator) == ("south", "federation.example.org:9092")


@settings(max_examples=100)
@given(st.integers(1, 10**9))
def test_delta_is_at_most_a_tenth_of_one_in_the_users_and_not_far_below(users: int) -> None:
    assert 0.1 / (10 * users) < delta_for(users) <= 1 / (10 * users) * (1 + 1e-12)


def test_joining_again_completes_a_folder_and_keeps_what_is_there(shops: Shops) -> None:
    invitation, home = invited(shops, "north"), shops.home("north")
    join(home, invitation, 1000, NOW)
    home.settings_file.write_text(home.settings_file.read_text() + 'path = "x.csv"\n')
    kept = {path.name: path.read_bytes() for path in home.folder.iterdir()}
    for missing in ("tls.key", "node.key", "north.request", "policy.toml", "authority.pem"):
        (home.folder / missing).unlink()
        join(home, invitation, 1000, NOW)
        now = {path.name: path.read_bytes() for path in home.folder.iterdir()}
        assert now.keys() == kept.keys()
        assert {name for name in now if now[name] != kept[name]} <= {missing, "north.request"}
        kept = now
    shops.authority.admit((home.folder / "north.request").read_bytes(), "north.request")
    shops.hand_out("north")
    with pytest.raises(ConsortiumError, match="this silo has joined already"):
        join(home, invitation, 1000, NOW)


def test_a_folder_that_was_begun_otherwise_is_refused(shops: Shops, tmp_path: Path) -> None:
    invitation, home = invited(shops, "north"), shops.home("north")
    join(home, invitation, 1000, NOW)
    with pytest.raises(ConsortiumError, match=r"policy\.toml: declared_users = 1000, and the silo is to join with 2000"):
        join(home, invitation, 2000, NOW)
    with pytest.raises(ConsortiumError, match=r"silo\.toml: name = 'north', and the silo is to join with 'south'"):
        join(home, invited(shops, "south"), 1000, NOW)
    others = Shops(tmp_path / "others")
    with pytest.raises(ConsortiumError, match="this folder was begun for another authority"):
        join(home, invited(others, "north"), 1000, NOW)
    home.identity_key.chmod(0o644)
    with pytest.raises(LedgerError, match="chmod 600"):
        join(home, invitation, 1000, NOW)


def test_an_invitation_by_another_authority_than_was_told_is_refused(shops: Shops, tmp_path: Path) -> None:
    told = shops.authority.fingerprint
    forged = invited(Shops(tmp_path / "forger"), "north")
    home = shops.home("north")
    with pytest.raises(ConsortiumError, match=f"with fingerprint {forged.fingerprint}, not {told}: do not use it"):
        join(home, forged, 1000, NOW, authority=told)
    assert not home.folder.exists()
    join(home, invited(shops, "north"), 1000, NOW, authority=told.upper())


def test_an_invitation_counts_for_its_days_and_not_by_a_wrong_clock(shops: Shops) -> None:
    invitation, home = invited(shops, "north"), shops.home("north")
    with pytest.raises(ConsortiumError, match="the invitation expired at"):
        join(home, invitation, 1000, NOW + 14 * DAY)
    with pytest.raises(ConsortiumError, match="set the clock"):
        join(home, invitation, 1000, NOW - DAY)
    assert not home.folder.exists()
    request = join(home, invitation, 1000, NOW + 13 * DAY).read_bytes()
    shops.now = NOW + 14 * DAY
    with pytest.raises(ConsortiumError, match=r"the invitation expired at .*; invite 'north' again"):
        shops.authority.admit(request, "north.request")
    assert shops.consortium.members == ()


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    shops = Shops(tmp_path_factory.mktemp("letters"))
    _, invitation = shops.authority.invite("north")
    request = join(shops.home("north"), read_invitation(invitation, "north.invite"), 10, NOW).read_bytes()
    return invitation, request


@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_letters_that_were_altered_are_refused(letters: tuple[bytes, bytes], data: st.DataObject) -> None:
    which = data.draw(st.integers(0, 1))
    raw = bytearray(letters[which])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ConsortiumError, match=r"^the letter: "):
        (read_invitation, read_request)[which](bytes(raw), "the letter")


def test_a_letter_that_another_version_wrote_is_refused_in_words(letters: tuple[bytes, bytes]) -> None:
    for letter, read in zip(letters, (read_invitation, read_request), strict=True):
        for other in (letter.replace(b"format = 1", b"format = 2"), b"", b"format = 1\n", letter[: len(letter) // 2]):
            with pytest.raises(ConsortiumError, match=r"^the letter: not an? (invitation|request)"):
                read(other, "the letter")


def test_an_admission_takes_the_token_of_the_last_invitation_and_takes_it_once(shops: Shops, tmp_path: Path) -> None:
    first = shops.request("north")
    home = SiloHome(tmp_path / "another")
    join(home, invited(shops, "north"), 500, NOW)
    with pytest.raises(ConsortiumError, match=r"north\.request: the request was not made with the last invitation for 'north'"):
        shops.authority.admit(first, "north.request")
    shops.authority.admit((home.folder / "north.request").read_bytes(), "north.request")
    with pytest.raises(ConsortiumError, match="there is a silo 'north' already, with other keys; choose another name"):
        shops.authority.admit(first, "north.request")
    with pytest.raises(ConsortiumError, match="silo 'north' is or was a member of 'shops': choose another name"):
        shops.authority.invite("north")
    assert shops.consortium.declared_users == (500,)


def test_admitting_the_same_request_again_changes_nothing(shops: Shops) -> None:
    request = shops.request("north")
    member = shops.authority.admit(request, "north.request")
    version = shops.consortium.version
    assert shops.authority.admit(request, "north.request") == member
    assert shops.consortium.version == version


def test_who_sees_a_request_cannot_make_another_from_it(shops: Shops, tmp_path: Path) -> None:
    """The proof binds the keys: put the thief's own in their place, and it no longer holds."""
    seen = read_request(shops.request("north"), "north.request")
    thief = create_key(tmp_path / "thief.key")
    forged = replace(seen, key=thief.public_key)
    with pytest.raises(ConsortiumError, match="was not made with the last invitation"):
        shops.authority.admit(forged.write(thief), "north.request")
    with pytest.raises(ConsortiumError, match="is not signed by the key in it"):
        shops.authority.admit(seen.write(thief), "north.request")
    with pytest.raises(ConsortiumError, match="was not made with the last invitation"):
        shops.authority.admit(replace(forged, proof=proof_of("00" * 32, forged)).write(thief), "north.request")


def test_requests_that_do_not_belong_here_are_refused(shops: Shops, tmp_path: Path) -> None:
    others = Shops(tmp_path / "others")
    with pytest.raises(ConsortiumError, match="nobody called 'north' was invited, or the invitation was used"):
        shops.authority.admit(others.request("north"), "north.request")
    key = create_key(tmp_path / "own.key")
    foreign = Request(**{**asdict(read_request(others.request("south"), "")), "consortium": "other", "key": key.public_key})
    with pytest.raises(ConsortiumError, match="a request for consortium 'other', and this is 'shops'"):
        shops.authority.admit(foreign.write(key), "south.request")


def test_one_key_is_not_two_silos(shops: Shops) -> None:
    """A second folder with a copy of the first one's identity is no second silo."""
    north = shops.admit("north")
    south = shops.home("south")
    south.folder.mkdir()
    south.identity_key.write_bytes(north.identity_key.read_bytes())
    south.identity_key.chmod(0o600)
    version = shops.consortium.version
    with pytest.raises(ConsortiumError, match="two silos have the key"):
        shops.authority.admit(shops.request("south"), "south.request")
    assert shops.consortium.version == version


def publics(home: SiloHome) -> tuple[str, str]:
    return tuple(node_line(load_key_p384(path).public_key()) for path in (home.node_key, home.tls_key))  # type: ignore[return-value]


def test_new_keys_come_into_use_with_the_roster_that_has_them(shops: Shops) -> None:
    home = shops.admit("north")
    before, identity = publics(home), home.identity_key.read_bytes()
    request = renew(home, read_signed(home.roster, home.authority)).read_bytes()
    assert publics(home) == before
    shops.hand_out("north")  # the roster that we have changes nothing
    assert publics(home) == before
    shops.authority.admit(request, "north.rotation")
    assert shops.consortium.named("north").node != before[0]
    shops.hand_out("north")
    after = publics(home)
    assert not set(after) & set(before)
    assert after[0] == shops.consortium.named("north").node
    assert home.tls_certificate.read_text() == shops.consortium.named("north").certificate
    assert home.identity_key.read_bytes() == identity
    assert not [path for path in home.folder.iterdir() if path.name.endswith(".new")]
    assert not take_up(home, shops.consortium)


def test_a_renewal_counts_once(shops: Shops) -> None:
    """Who kept an old request cannot bring back the keys in it."""
    home = shops.admit("north")
    requests = []
    for _ in range(2):
        requests.append(renew(home, read_signed(home.roster, home.authority)).read_bytes())
        shops.authority.admit(requests[-1], "north.rotation")
        shops.hand_out("north")
    with pytest.raises(ConsortiumError, match="it replaces a key that 'north' no longer has; ask for a new request"):
        shops.authority.admit(requests[0], "north.rotation")


def test_a_renewal_is_for_members_with_their_own_identity(shops: Shops, tmp_path: Path) -> None:
    home = shops.admit("north")
    request = read_request(renew(home, shops.consortium).read_bytes(), "")
    thief = create_key(tmp_path / "thief.key")
    with pytest.raises(ConsortiumError, match="the key that signed it is foreign: it is not that of a silo 'north'"):
        shops.authority.admit(replace(request, key=thief.public_key).write(thief), "north.rotation")
    with pytest.raises(ConsortiumError, match="the key that signed it is foreign: it is not that of a silo 'nobody'"):
        shops.authority.admit(replace(request, silo="nobody").write(load_key(home.identity_key)), "nobody.rotation")
    document = (home.folder / "north.rotation").read_bytes()
    shops.now = NOW + 400 * DAY
    with pytest.raises(ConsortiumError, match="has expired; the authority extends it"):
        shops.authority.admit(document, "north.rotation")
    shops.authority.revoke("north", "left")
    with pytest.raises(ConsortiumError, match=r"silo 'north' was revoked on .*: left"):
        shops.authority.admit(document, "north.rotation")
    with pytest.raises(ConsortiumError, match="its keys cannot be renewed"):
        renew(home, shops.consortium)


def test_a_silo_whose_keys_are_not_the_rosters_says_so(shops: Shops) -> None:
    home = shops.admit("north")
    kept = home.node_key.read_bytes()
    home.node_key.unlink()
    shops.admit("south")
    with pytest.raises(ConsortiumError, match=r"node\.key: not the key that the roster has for 'north'; restore it"):
        accept(home, shops.document, NOW)
    home.node_key.touch(0o600)
    home.node_key.write_bytes(kept)
    shops.hand_out("north")
    home.node_key.chmod(0o640)
    with pytest.raises(ConsortiumError, match="chmod 600"):
        accept(home, shops.document, NOW)
