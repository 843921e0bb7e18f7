"""A consortium at a chosen time, with silos that join it as operators do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.consortium.authority import Authority, found
from common.consortium.home import AuthorityHome, CoordinatorHome, SiloHome
from common.consortium.joining import join
from common.consortium.letters import read_invitation
from common.consortium.roster import Consortium, accept

#: The machine's own time, so that what OpenSSL thinks of a certificate is what the tests say.
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


def needs(program: str) -> pytest.MarkDecorator:
    """For tests whose judge is another program."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed here")


Clock = Callable[[], datetime]


class Shops:
    """Authority, coordinator and silos in one folder; ``now`` is what all their clocks say."""

    def __init__(self, folder: Path, now: datetime = NOW, **days: float) -> None:
        self.folder, self.now = folder, now
        found(folder / "shops", "shops", "federation.example.org:9092", also=("10.0.0.1",), clock=self.clock, **days)

    def clock(self) -> datetime:
        return self.now

    @property
    def authority(self) -> Authority:
        return Authority(AuthorityHome(self.folder / "shops" / "authority"), self.clock)

    @property
    def coordinator(self) -> CoordinatorHome:
        return CoordinatorHome(self.folder / "shops" / "coordinator")

    @property
    def consortium(self) -> Consortium:
        return self.authority.consortium

    @property
    def document(self) -> bytes:
        """The signed roster."""
        return self.authority.home.roster.read_bytes()

    def home(self, name: str) -> SiloHome:
        return SiloHome(self.folder / name)

    def request(self, name: str, users: int = 1000) -> bytes:
        """Invite a silo, let it make its keys, and take its request."""
        _, letter = self.authority.invite(name)
        return join(self.home(name), read_invitation(letter, "the invitation"), users, self.now).read_bytes()

    def admit(self, name: str, users: int = 1000, days: float = 365) -> SiloHome:
        """A silo that is a member, and has the roster."""
        self.authority.admit(self.request(name, users), f"{name}.request", days)
        self.hand_out(name)
        return self.home(name)

    def hand_out(self, *names: str) -> None:
        for name in names:
            accept(self.home(name), self.document, self.now)


@pytest.fixture
def shops(tmp_path: Path) -> Shops:
    return Shops(tmp_path)
