"""The signed roster: what it says, and which rosters a silo refuses."""

from __future__ import annotations

import base64
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.consortium.keys import load_key_p384
from common.consortium.roster import Consortium, accept, parse_signed, read_signed, sign_roster
from common.errors import ConsortiumError
from common.privacy.signing import create_key, load_key
from tests.common.consortium.conftest import DAY, NOW, Shops, needs

MINUTE = DAY / 1440


def signed(shops: Shops, **changes: object) -> bytes:
    """The roster with changes, signed by the authority all the same."""
    return sign_roster(replace(shops.consortium, **changes), load_key_p384(shops.authority.home.key))  # type: ignore[arg-type]


@needs("ssh-keygen")
def test_a_silo_has_the_number_of_its_place_and_is_known_by_each_of_its_keys(shops: Shops) -> None:
    for name, users in (("north", 1200), ("south", 800)):
        shops.admit(name, users)
    consortium = read_signed(shops.coordinator.roster, shops.coordinator.authority)
    assert [member.name for member in consortium.members] == ["north", "south"]
    assert consortium.declared_users == (1200, 800)
    assert (consortium.name, consortium.version, consortium.address) == ("shops", 3, "federation.example.org:9092")
    assert consortium.coordinator == load_key(shops.coordinator.key).public_key
    for number, name in enumerate(("north", "south")):
        home = shops.home(name)
        assert consortium.number_of(load_key(home.identity_key).public_key) == number
        line = subprocess.run(["ssh-keygen", "-y", "-f", home.node_key], check=True, capture_output=True, text=True).stdout
        assert consortium.by_node(line) == consortium.by_node(f"{line.strip()} root@north") == number
    with pytest.raises(ConsortiumError, match="the key abababababababab… is foreign"):
        consortium.number_of("ab" * 32)
    with pytest.raises(ConsortiumError, match="the node's key is foreign"):
        consortium.by_node("ecdsa-sha2-nistp384 AAAA")


@needs("openssl")
def test_openssl_finds_the_authoritys_signature_over_all_that_stands_before_it(shops: Shops, tmp_path: Path) -> None:
    shops.admit("north")
    content, _, line = shops.document.rstrip(b"\n").rpartition(b"\n")
    public, signature, message = (tmp_path / name for name in ("public.pem", "signature", "message"))
    signature.write_bytes(base64.b64decode(line.removeprefix(b"# signature: "), validate=True))
    message.write_bytes(b"silorec-roster-2\0" + content + b"\n")
    certificate = shops.authority.home.authority
    public.write_bytes(subprocess.run(["openssl", "x509", "-in", certificate, "-pubkey", "-noout"], capture_output=True).stdout)
    check = ["openssl", "dgst", "-sha384", "-verify", public, "-signature", signature, message]
    assert subprocess.run(check, capture_output=True, text=True).stdout.strip() == "Verified OK"


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Shops:
    shops = Shops(tmp_path_factory.mktemp("of-two"))
    shops.admit("north")
    shops.admit("south")
    return shops


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_no_single_byte_can_be_changed_put_in_or_left_out(of_two: Shops, data: st.DataObject) -> None:
    raw = of_two.document
    signature = raw.rstrip(b"\n").rfind(b"\n") + 1
    at = data.draw(st.integers(0, len(raw) - 1) | st.integers(signature, len(raw) - 1))
    how = data.draw(st.sampled_from(["changed", "put in", "left out"]))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: how != "changed" or byte != raw[at]))
    other = raw[:at] + (b"" if how == "left out" else bytes([byte])) + raw[at + (how != "put in") :]
    with pytest.raises(ConsortiumError, match=r"not a signed roster|the signature is not that of our authority"):
        parse_signed(other, of_two.coordinator.authority)


@pytest.mark.parametrize("end", [b"\n", b" ", b"\n# signature: AAAA\n", b"\r\n"])
def test_nothing_can_be_put_behind_the_signature(of_two: Shops, end: bytes) -> None:
    with pytest.raises(ConsortiumError, match=r"not a signed roster|the signature is not that of our authority"):
        parse_signed(of_two.document + end, of_two.coordinator.authority)


def test_every_spelling_of_the_signature_but_one_is_refused(of_two: Shops) -> None:
    """Base64's last character may have bits that say nothing; a second spelling of the same signature is another file."""
    raw = of_two.document
    content, _, line = raw.rstrip(b"\n").rpartition(b"\n")
    text = line.removeprefix(b"# signature: ").rstrip(b"=")
    padding = b"=" * (-len(text) % 4)
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    for last in letters:
        other = content + b"\n# signature: " + text[:-1] + bytes([last]) + padding + b"\n"
        if other != raw:
            with pytest.raises(ConsortiumError):
                parse_signed(other, of_two.coordinator.authority)


def test_a_roster_of_another_authority_is_refused(shops: Shops, tmp_path: Path) -> None:
    home = shops.admit("north")
    others = Shops(tmp_path / "others")
    others.admit("north")
    with pytest.raises(ConsortiumError, match="the signature is not that of our authority"):
        accept(home, others.document, NOW)
    assert home.roster.read_bytes() == shops.document


def test_a_roster_is_not_a_roster_for_being_signed(shops: Shops) -> None:
    """The tag keeps what the authority signs for another purpose from being taken for a roster."""
    _, letter = shops.authority.invite("north")
    with pytest.raises(ConsortiumError, match="the signature is not that of our authority"):
        parse_signed(letter, shops.coordinator.authority)


def test_an_older_roster_is_refused_and_the_same_one_changes_nothing(shops: Shops) -> None:
    home = shops.admit("north")
    older = shops.document
    shops.admit("south")
    shops.hand_out("north")
    before = home.roster.stat().st_ino
    shops.hand_out("north")
    assert home.roster.stat().st_ino == before
    with pytest.raises(ConsortiumError, match="the new roster is version 2, older than the version 3 that is here"):
        accept(home, older, NOW)
    assert home.roster.read_bytes() == shops.document


def test_a_revocation_is_not_undone_by_an_older_roster(shops: Shops) -> None:
    shops.admit("north")
    south = shops.admit("south")
    before = shops.document
    shops.authority.revoke("north", "left")
    shops.hand_out("south")
    with pytest.raises(ConsortiumError, match="older than the version"):
        accept(south, before, NOW)
    assert read_signed(south.roster, south.authority).named("north").standing(NOW) == "revoked"


def test_an_identity_that_changes_is_refused_whoever_signed_it(shops: Shops, tmp_path: Path) -> None:
    shops.admit("north")
    south = shops.admit("south")
    north, other = shops.consortium.members
    stolen = replace(north, key=create_key(tmp_path / "new.key").public_key)
    with pytest.raises(ConsortiumError, match="the identity key of silo 'north' is another one in the new roster"):
        accept(south, signed(shops, version=9, members=(stolen, other)), NOW)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: replace(c, version=9, members=c.members[:1]), "the new roster has 1 silos, ours 2; a silo keeps its place"),
        (lambda c: replace(c, version=9, members=c.members[::-1]), "silo 0 was 'north', in the new roster 'south'"),
        (lambda c: replace(c, version=9, name="other"), "that of 'other', and this folder belongs to 'shops'"),
        (lambda c: replace(c, address="elsewhere.example.org:1"), "two different rosters of version 3"),
        (
            lambda c: replace(c, version=9, members=(c.members[0], replace(c.members[1], revoked=None))),
            "silo 'south' was revoked, and is not in the new roster",
        ),
    ],
    ids=["shorter", "reordered", "of another name", "another of the same version", "no longer revoked"],
)
def test_an_authority_that_contradicts_itself_is_refused(shops: Shops, change, why: str) -> None:  # type: ignore[no-untyped-def]
    home = shops.admit("north")
    shops.admit("south")
    ours: Consortium = shops.consortium
    if "revoked" in why:
        shops.authority.revoke("south", "left")
    shops.hand_out("north")
    document = sign_roster(change(ours), load_key_p384(shops.authority.home.key))
    with pytest.raises(ConsortiumError, match=why):
        accept(home, document, NOW)
    assert home.roster.read_bytes() == shops.document


def test_a_silo_refuses_a_roster_without_itself(shops: Shops) -> None:
    shops.request("north")
    shops.admit("south")
    with pytest.raises(ConsortiumError, match=r"this silo's identity key \(.{39}\) is not in version 2 of 'shops''s roster"):
        accept(shops.home("north"), shops.document, NOW)
    assert not shops.home("north").roster.exists()


def test_an_expired_roster_and_one_of_the_future_are_refused(shops: Shops) -> None:
    home = shops.admit("north")
    shops.authority.renew_roster(days=10)
    with pytest.raises(ConsortiumError, match=r"version 3 of 'shops''s roster was valid until .*rotate DIR --roster"):
        accept(home, shops.document, NOW + 10 * DAY)
    with pytest.raises(ConsortiumError, match=r"was issued at .*, and this machine's clock says .*: set the clock"):
        accept(home, shops.document, NOW - 61 * MINUTE)
    assert accept(home, shops.document, NOW - 10 * MINUTE).version == 3  # clocks of two machines differ


def test_a_silo_is_valid_between_two_times_and_until_it_is_revoked(shops: Shops) -> None:
    shops.admit("north", days=100)
    member = shops.consortium.named("north")
    assert [member.standing(NOW + days * DAY) for days in (-1, 0, 99.9, 100)] == ["not yet valid", "valid", "valid", "expired"]
    assert member.standing(NOW - 10 * MINUTE) == "valid"
    assert member.why_refused(NOW) == ""
    assert "has expired; the authority extends it with: silorec consortium rotate DIR --extend north" in member.why_refused(
        NOW + 100 * DAY
    )
    assert "this machine's clock says" in member.why_refused(NOW - DAY)
    shops.now = NOW + 3 * DAY
    shops.authority.revoke("north", "left the consortium")
    revoked = shops.consortium.named("north")
    assert revoked.why_refused(NOW) == (
        f"silo 'north' was revoked on {NOW + 3 * DAY:%Y-%m-%d}: left the consortium; if that is wrong, talk to the authority"
    )
    assert revoked.standing(NOW + 1000 * DAY) == "revoked"


def test_who_is_not_valid_is_absent_and_keeps_its_number(shops: Shops) -> None:
    for name, days in (("north", 365), ("south", 10), ("east", 365)):
        shops.admit(name, days=days)
    keys = shops.consortium.key_roster(NOW)
    assert keys.absent == frozenset()
    shops.authority.revoke("north", "left")
    later = shops.consortium.key_roster(NOW + 11 * DAY)
    assert later.names == ("north", "south", "east")
    assert later.absent == {0, 1}
    assert later.digest == keys.digest
    assert shops.consortium.key_roster(NOW).absent == {0}


def test_a_roster_without_silos_sums_nothing(shops: Shops) -> None:
    assert shops.consortium.members == ()
    with pytest.raises(ConsortiumError, match="a name and a key for each silo"):
        shops.consortium.key_roster(NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"key": "AB" * 32},
        {"node": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPZ3NAWrHqJVEv7OFmjuvGdGHbUvKb6/VBqPLFTKjfIF"},
        {"certificate": "-----BEGIN CERTIFICATE-----"},
        {"declared_users": 0},
        {"declared_users": True},
        {"valid_from": NOW.replace(tzinfo=None)},
        {"valid_until": NOW.replace(microsecond=1)},
        {"valid_until": NOW - 400 * DAY},
        {"name": "North"},
        {"name": "-north"},
        {"name": "a" * 64},
        {"reason": "one\ntwo"},
        {"revoked": "yesterday"},
    ],
    ids=lambda change: next(iter(change)),  # without the hour, which workers that collect the tests do not share
)
def test_an_entry_that_cannot_be_is_refused(of_two: Shops, change: dict[str, object]) -> None:
    with pytest.raises(ConsortiumError):
        replace(of_two.consortium.members[0], **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["name", "key", "node"])
def test_two_silos_have_no_name_and_no_key_in_common(of_two: Shops, what: str) -> None:
    north, south = of_two.consortium.members
    twin = replace(south, **{what: getattr(north, what)})
    with pytest.raises(ConsortiumError, match=f"two silos have the {what} "):
        replace(of_two.consortium, members=(north, twin))


def test_what_another_version_wrote_is_refused_in_words(of_two: Shops) -> None:
    from common.consortium.roster import _TAG
    from common.consortium.signed import attach, detach, sign_p384

    content, _ = detach(of_two.document)
    key = load_key_p384(of_two.authority.home.key)
    for old, new, why in (
        (b"format = 2", b"format = 3", "its format is 3, not 2"),
        (b"version = 3\n", b"", "version is missing"),
        (b"version = 3\n", b"version = 3\ncolour = 1\n", "it has a field 'colour' that is not known"),
        (b"declared_users = 1000\n", b"", "declared_users is missing"),
        (b"version = 3\n", b"version = ", "not a roster that this version of silorec can read"),
    ):
        other = content.replace(old, new)
        with pytest.raises(ConsortiumError, match=why):
            parse_signed(attach(other, sign_p384(key, _TAG, other)), of_two.coordinator.authority)
