"""``silorec consortium`` as operators use it: what it prints, and with which status it ends."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

import silorec
from common.consortium.home import SiloHome
from common.privacy.signing import fingerprint, load_key
from tests.common.consortium.conftest import DAY, NOW, Shops


class Shell:
    """Commands in one folder."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            silorec.main(["consortium", *map(str, arguments)])
        out, err = self._capsys.readouterr()
        return int(ended.value.code or 0), out, err

    def told(self, *arguments: object) -> dict:  # type: ignore[type-arg]
        """What a command that succeeds tells a program."""
        status, out, err = self(*arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    def refused(self, *arguments: object) -> str:
        """The sentence of a command that was given what it cannot use."""
        status, out, err = self(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        return err.removeprefix("silorec: ").strip()


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys)


def test_three_organisations_make_a_consortium(shell: Shell) -> None:
    """From nothing to a roster on every machine, with files that people carry, each side comparing fingerprints."""
    begun = shell.told("init", "shops", "--name", "shops", "--address", "localhost:9092", "--san", "10.0.0.1")
    for number, name in enumerate(("north", "south", "east"), start=0):
        invited = shell.told("invite", "shops", name)
        assert invited["fingerprint"] == begun["fingerprint"]
        assert stat.S_IMODE(Path(invited["invitation"]).stat().st_mode) == 0o600
        users = 1000 + number
        joined = shell.told(
            "join", f"{name}.invite", name, "--declared-users", users, "--fingerprint", begun["fingerprint"], "--data", "x.csv"
        )
        assert joined["authority"] == begun["fingerprint"]
        assert joined["identity"] == fingerprint(load_key(SiloHome(Path(name)).identity_key).public_key)
        admitted = shell.told("admit", "shops", joined["request"])
        assert (admitted["number"], admitted["identity"], admitted["declared_users"]) == (number, joined["identity"], users)
    for name in ("north", "south", "east"):
        said = shell.told("roster", name, "--import", "shops/coordinator/roster.toml")
        assert [(silo["name"], silo["declared_users"]) for silo in said["silos"]] == [
            ("north", 1000),
            ("south", 1001),
            ("east", 1002),
        ]
        assert (said["version"], said["standing"], said["warnings"]) == (4, "valid", [])
        assert SiloHome(Path(name)).settings().data.path == Path("x.csv").absolute()
    assert shell.told("roster", "shops") == shell.told("roster", "shops/coordinator") == shell.told("roster", "shops/authority")
    noted = shell.told("journal", "shops")
    assert noted["holds"] is True
    assert [act["act"] for act in noted["acts"]].count("admit") == 3


def test_people_are_told_the_same(shell: Shell) -> None:
    assert shell("init", "shops", "--name", "shops", "--address", "localhost:9092")[0] == 0
    assert "tell them by voice: " in shell("invite", "shops", "north", "--out", "a.invite")[1]
    status, out, _ = shell("join", "a.invite", "home", "--declared-users", 10)
    assert status == 0
    assert "the authority's fingerprint, which must be what they tell you by voice: " in out
    status, out, _ = shell("admit", "shops", "home/north.request")
    assert out.startswith("silo 0: north, 10 declared users, until ")
    status, out, err = shell("roster", "home", "--import", "shops/authority/roster.toml")
    assert (status, err) == (0, "")
    assert "roster of shops, version 2, valid until " in out
    assert fingerprint(load_key(Path("home/ledger.key")).public_key)[:19] in out
    assert "new node and TLS keys wait in home; send home/north.rotation to the authority" in shell("rotate", "home")[1]
    assert shell("admit", "shops", "home/north.rotation")[0] == 0
    assert shell("roster", "home", "--import", "shops/authority/roster.toml")[0] == 0
    assert not Path("home/node.key.new").exists()
    assert "north takes part until " in shell("rotate", "shops", "--extend", "north", "--days", 20)[1]
    status, out, err = shell("roster", "shops")
    assert (status, err.count("silorec: silo 'north' expires in 19 days")) == (0, 1)
    assert "new.example.org" in shell("rotate", "shops", "--server", "--san", "new.example.org")[1]
    assert "the roster counts until " in shell("rotate", "shops", "--roster")[1]
    assert "north is revoked: left [b]" in shell("revoke", "shops", "north", "--reason", "left [b]")[1]
    status, out, _ = shell("roster", "shops")
    assert "north was revoked: left [b]\n" in out
    status, out, _ = shell("journal", "shops")
    assert [line.split(" ", 3)[3].split(",")[0] for line in out.splitlines()] == [
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


def test_the_status_is_1_once_something_has_expired(shell: Shell, tmp_path: Path) -> None:
    past = Shops(tmp_path, NOW - 90 * DAY, days=200)
    past.admit("north", days=60)
    status, _, err = shell("roster", "shops")
    assert status == 1
    since = f"{NOW - 30 * DAY:%Y-%m-%d %H:%M} UTC"
    assert f"silo 'north' expired on {since}; the authority extends it: silorec consortium rotate DIR" in err
    status, out, _ = shell("roster", "north", "--json")
    assert status == 1
    assert json.loads(out)["silos"][0]["standing"] == "expired"
    assert shell("rotate", "shops", "--extend", "north")[0] == 0
    assert shell("roster", "shops")[0] == 0
    assert shell("roster", "north", "--import", "shops/authority/roster.toml")[0] == 0


def test_the_status_is_1_where_the_journal_does_not_hold(shell: Shell, shops: Shops) -> None:
    journal = shops.authority.home.journal
    journal.write_bytes(journal.read_bytes().replace(b"10.0.0.1", b"10.0.0.2"))
    status, out, err = shell("journal", "shops")
    assert (status, out) == (1, "")
    assert "journal.jsonl:1: the journal's chain is broken here" in err
    status, out, _ = shell("journal", "shops", "--json")
    assert status == 1
    assert json.loads(out)["holds"] is False


def test_what_cannot_be_used_is_refused_in_a_sentence(shell: Shell, shops: Shops, tmp_path: Path) -> None:
    shops.admit("north")
    others = Shops(tmp_path / "others")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    shutil.copy(others.authority.home.roster, "foreign.toml")
    shops.request("south")
    for arguments, why in (
        (("roster", "empty"), "neither a consortium's folder nor the coordinator's nor a silo's"),
        (("roster", "south"), "there is no roster yet"),
        (("roster", "north", "--import", "foreign.toml"), "the signature is not that of our authority"),
        (("roster", "north", "--import", "nowhere.toml"), "nowhere.toml: no such file"),
        (("roster", "shops", "--import", "foreign.toml"), "the authority makes the roster, and imports none"),
        (("invite", "north", "west"), "the authority is not here"),
        (("invite", "shops", "West Coast"), "a silo's name has up to 63 of a-z, 0-9 and '-'"),
        (("invite", "shops", "west", "--out", "file/west.invite"), "file: cannot be written"),
        (("admit", "shops", "foreign.toml"), "foreign.toml: not a request"),
        (("join", "foreign.toml", "home", "--declared-users", "10"), "foreign.toml: not an invitation"),
        (("revoke", "shops", "west", "--reason", "left"), "'shops' has no silo 'west'"),
        (("rotate", "shops"), "say what to renew: one of --server (with --san), --extend NAME, --roster"),
        (("rotate", "shops", "--server", "--roster"), "say what to renew"),
        (("rotate", "shops", "--roster", "--san", "a.example"), "say what to renew"),
        (("rotate", "shops", "--server", "--san", "ü.example"), "'ü.example' is neither a host name nor an address"),
        (("rotate", "north", "--server"), "is a silo's folder, where keys are renewed without an option"),
        (("rotate", "shops/coordinator", "--server"), "is the coordinator's folder, where keys are renewed without an option"),
        (("rotate", "shops", "--signing-key", "0" * 63), "a signing key's public half has 64 of 0-9 and a-f"),
        (("rotate", "shops", "--signing-key", "0" * 64), "is not there; make a new key first"),
        (("rotate", "shops", "--address", "nowhere"), "must be host:port"),
        (("rotate", "south"), "roster.toml: no such file"),
        (("journal", "north"), "is a silo's folder; its acts are in its ledger"),
        (("journal", "shops/coordinator"), "there is no journal yet"),
        (("init", "shops", "--name", "shops", "--address", "a:1"), "there is a consortium already"),
    ):
        assert why in shell.refused(*arguments), arguments
