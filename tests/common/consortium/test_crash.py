"""A process is killed at each moment at which something reaches the disk: what is left is as before, or as after."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.consortium.joining import join, renew
from common.consortium.keys import load_key_p384, node_line
from common.consortium.letters import read_invitation
from common.consortium.roster import accept, read_signed
from common.errors import ConsortiumError
from common.journal import read_journal
from tests.common.consortium.conftest import NOW, Shops

KILLED = 9
STEPS = ("fsync", "replace", "link", "unlink", "open")


def killed_at(step: int, act: Callable[[], object]) -> bool:
    """Run ``act`` in a process of its own that dies before its ``step``-th touch of the disk; whether it came so far."""
    child = os.fork()
    if child == 0:
        left = [step]
        for name in STEPS:
            _count(name, left)
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), "the act failed without being killed"
    return code == KILLED


def _count(name: str, left: list[int]) -> None:
    real = getattr(os, name)

    def counted(*arguments: object, **named: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            os._exit(KILLED)
        return real(*arguments, **named)

    setattr(os, name, counted)


def kills(tmp_path: Path, before: Path, act: Callable[[Path], object]) -> Iterator[Path]:
    """The folder after each kill, begun from a copy of ``before``; at least five kills there must be."""
    for step in range(200):
        folder = tmp_path / f"killed-{step}"
        shutil.copytree(before, folder)
        if not killed_at(step, lambda folder=folder: act(folder)):  # type: ignore[misc]
            assert step >= 5
            return
        yield folder
        shutil.rmtree(folder)
    raise AssertionError("the act never ends")


def at(folder: Path) -> Shops:
    """The consortium in a copied folder."""
    shops = Shops.__new__(Shops)
    shops.folder, shops.now = folder, NOW
    return shops


def check_sound(shops: Shops) -> list[str]:
    """Everything that is there can be read and goes together; the acts that were noted."""
    consortium = shops.consortium
    assert read_signed(shops.coordinator.roster, shops.coordinator.authority) == consortium
    acts = read_journal(shops.authority.home.journal)
    assert [act.facts["version"] for act in acts if "version" in act.facts] == list(range(1, consortium.version + 1))
    return [act.act for act in acts]


def test_founding_is_completed(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    for folder in kills(tmp_path, tmp_path / "before", Shops):
        shops = at(folder)
        if (folder / "shops/authority/roster.toml").exists():
            with pytest.raises(ConsortiumError, match="there is a consortium already"):
                Shops(folder)
        else:
            Shops(folder)
        shops.authority.invite("north")  # which also finishes what was noted
        assert check_sound(shops).count("found") == 1
        assert load_key_p384(shops.coordinator.tls_key)
        assert shops.coordinator.settings().name == "shops"


def test_an_admission_is_whole_or_is_repeated(tmp_path: Path) -> None:
    before = Shops(tmp_path / "before")
    before.admit("north")
    request = before.request("south")
    outcomes = set()
    for folder in kills(tmp_path, tmp_path / "before", lambda folder: at(folder).authority.admit(request, "south.request")):
        shops = at(folder)
        outcomes.add(shops.consortium.version)
        member = shops.authority.admit(request, "south.request")
        assert shops.consortium.members[1] == member
        assert check_sound(shops).count("admit") == 2
        shops.hand_out("north", "south")
    assert outcomes == {2, 3}


def test_a_revocation_is_whole_or_is_repeated(tmp_path: Path) -> None:
    before = Shops(tmp_path / "before")
    before.admit("north")
    for folder in kills(tmp_path, tmp_path / "before", lambda folder: at(folder).authority.revoke("north", "left")):
        shops = at(folder)
        shops.authority.invite("south")  # which finishes what was noted
        if shops.consortium.named("north").revoked:
            with pytest.raises(ConsortiumError, match="was revoked already"):
                shops.authority.revoke("north", "left")
        else:
            shops.authority.revoke("north", "left")
        assert shops.consortium.named("north").reason == "left"
        assert check_sound(shops).count("revoke") == 1


def test_a_silo_that_was_killed_while_joining_joins(tmp_path: Path) -> None:
    before = Shops(tmp_path / "before")
    _, letter = before.authority.invite("north")
    invitation = read_invitation(letter, "north.invite")
    for folder in kills(tmp_path, tmp_path / "before", lambda folder: join(at(folder).home("north"), invitation, 10, NOW)):
        shops = at(folder)
        request = join(shops.home("north"), invitation, 10, NOW).read_bytes()
        shops.authority.admit(request, "north.request")
        shops.hand_out("north")


@pytest.fixture
def renewing(tmp_path: Path) -> Shops:
    """The authority has taken a silo's new keys; the silo does not know it yet."""
    before = Shops(tmp_path / "before")
    home = before.admit("north")
    before.authority.admit(renew(home, before.consortium).read_bytes(), "north.rotation")
    return before


def test_a_silo_that_was_killed_while_its_keys_changed_has_the_new_ones_when_the_roster_comes_again(
    tmp_path: Path, renewing: Shops
) -> None:
    document = renewing.document
    for folder in kills(tmp_path, tmp_path / "before", lambda folder: accept(at(folder).home("north"), document, NOW)):
        shops = at(folder)
        home = shops.home("north")
        read_signed(home.roster, home.authority)
        shops.hand_out("north")
        member = shops.consortium.named("north")
        assert node_line(load_key_p384(home.node_key).public_key()) == member.node
        assert load_key_p384(home.tls_key).public_key() == member.tls_key
        assert home.tls_certificate.read_text() == member.certificate
        assert home.roster.read_bytes() == document
