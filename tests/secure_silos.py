"""A consortium without Flower, models or data: silos with keys, and a coordinator that plays the stages of secure sums.

``play`` is a whole sum. :class:`Attempt` is one, stage by stage: what the coordinator holds of it is in its fields, and a test
may send something else to a silo than the coordinator would. :func:`refused` says how that must end.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import DTypeLike, NDArray

from client.secagg import FileMemory, Participant, RamMemory
from common.errors import SecAggError
from common.privacy.signing import SigningKey
from common.secagg.context import RoundContext
from common.secagg.graph import graph_seed
from common.secagg.keys import Advertisement
from common.secagg.messages import BOX_RECORD, pack, pack_advertisements, survivors_statement, unpack, unpack_advertisements
from common.secagg.roster import KeyRoster
from common.secagg.rules import Rules
from server.secagg import SecureSum

STAGES = ("advertise", "share", "mask", "sign", "reveal")

Words = NDArray[np.unsignedinteger[Any]]


def new_key() -> SigningKey:
    """A long-term key that is on no disk."""
    return SigningKey(Ed25519PrivateKey.generate())


class Consortium:
    """``n`` silos and what they have agreed on.

    Parameters
    ----------
    folder:
        Where the silos' files are, with ``disk``: ``folder/0.json``, ``folder/1.json``, …
    dropout, corrupt:
        As in :class:`Rules`.
    disk:
        The silos remember on the disk, not in this process.
    """

    def __init__(
        self, n: int, folder: Path | None = None, dropout: float = 1 / 3, corrupt: float = 0.1, disk: bool = False
    ) -> None:
        self.keys = tuple(new_key() for _ in range(n))
        self.roster = KeyRoster(tuple(f"silo-{i}" for i in range(n)), tuple(key.public_key for key in self.keys))
        self.rules = Rules(n, dropout, corrupt)
        self.run = hashlib.sha256(self.roster.digest.encode()).hexdigest()
        if disk and folder is None:
            raise ValueError("silos that remember on the disk take a folder")
        self.memories = tuple(FileMemory(folder / f"{i}.json") if disk and folder else RamMemory() for i in range(n))

    def __len__(self) -> int:
        return len(self.keys)

    def participant(self, silo: int) -> Participant:
        """A new object over what the silo remembers, as after a restart."""
        return Participant(silo, self.run, self.rules, self.roster, self.keys[silo], self.memories[silo])

    def context(self, round_id: bytes) -> RoundContext:
        return RoundContext(self.run, round_id)

    def state(self, silo: int) -> dict[str, Any]:
        """What the silo remembers."""
        with self.memories[silo].opened() as state:
            return state


@contextlib.contextmanager
def refused(silos: Consortium, why: str, silo: int = 0) -> Iterator[None]:
    """``silo`` says ``why`` (a pattern), and remembers what it remembered before."""
    before = silos.state(silo)
    with pytest.raises(SecAggError, match=why):
        yield
    assert silos.state(silo) == before


class Attempt:
    """One attempt at a sum over an honest coordinator; each method is a stage, and silos ``gone`` do not answer it or later ones.

    Parameters
    ----------
    vectors:
        By silo; random ones of five words by default.
    """

    def __init__(
        self,
        consortium: Consortium,
        vectors: Mapping[int, Any] | Sequence[Any] | NDArray[Any] | None = None,
        dtype: DTypeLike = np.uint32,
        round_id: bytes | None = None,
    ) -> None:
        n = len(consortium)
        if vectors is None:
            vectors = np.random.default_rng(n).integers(0, np.iinfo(dtype).max, (n, 5), dtype)
        by_silo = vectors if isinstance(vectors, Mapping) else dict(enumerate(vectors))
        self.vectors: dict[int, Words] = {silo: np.asarray(vector).astype(dtype) for silo, vector in by_silo.items()}
        self.silos, self.round_id = consortium, round_id or secrets.token_bytes(32)
        length = len(next(iter(self.vectors.values())))
        self.sum = SecureSum(consortium.context(self.round_id), consortium.rules, consortium.roster, dtype, length)
        self.there = set(range(n))
        self.advertisements = b""
        self.boxes: dict[int, bytes] = {}
        self.masked: dict[int, Words] = {}
        self.survivors = b""
        self.signed: dict[int, bytes] = {}
        self.signatures = b""
        self.revealed: dict[int, bytes] = {}

    def until(self, stage: str) -> Attempt:
        """Plays all stages before ``stage``, with all silos."""
        for earlier in STAGES[: STAGES.index(stage)]:
            getattr(self, earlier)()
        return self

    def advertise(self, gone: Collection[int] = ()) -> None:
        replies = {silo: self._silo(silo).advertise(self.round_id) for silo in self._left(gone, self.there)}
        self.advertisements = self.sum.advertised(replies)

    def share(self, gone: Collection[int] = ()) -> None:
        asked = self._left(gone, self.sum.ads)
        self.boxes = self.sum.shared({silo: self._silo(silo).share(self.round_id, self.advertisements) for silo in asked})

    def mask(self, gone: Collection[int] = ()) -> None:
        for silo in self._left(gone, self.boxes):
            self.masked[silo] = self.vectors[silo].copy()
            self._silo(silo).mask(self.round_id, self.boxes[silo], self.masked[silo])
            self.sum.add(silo, self.masked[silo])
        self.survivors = self.sum.summed()

    def sign(self, gone: Collection[int] = ()) -> None:
        asked = self._left(gone, self.sum.survivors)
        self.signed = {silo: self._silo(silo).sign(self.round_id, self.survivors) for silo in asked}
        self.signatures = self.sum.signed(self.signed)

    def reveal(self, gone: Collection[int] = ()) -> Words:
        """Gives the sum."""
        asked = self._left(gone, self.signed)
        self.revealed = {silo: self._silo(silo).reveal(self.round_id, self.signatures) for silo in asked}
        return self.sum.unmasked(self.revealed)

    def finish(self, stage: str) -> None:
        """The rest of the attempt, from ``stage`` on, with all that are left; the sum is right."""
        for name in STAGES[STAGES.index(stage) : -1]:
            getattr(self, name)()
        np.testing.assert_array_equal(self.reveal(), self.expected())

    @property
    def ads(self) -> dict[int, Advertisement]:
        """The list of keys that the silos were to get."""
        return {one.silo: one for one in unpack_advertisements(self.advertisements)}

    def with_ads(self, *changed: Advertisement) -> bytes:
        """The same list with some entries replaced."""
        return pack_advertisements((self.ads | {one.silo: one for one in changed}).values())

    def boxes_for(self, silo: int) -> dict[int, bytes]:
        """The sealed shares that ``silo`` was to get, by sender."""
        return unpack(self.boxes[silo], BOX_RECORD, "boxes")

    def signatures_by(self, signers: Collection[int], survivors: Collection[int], context: RoundContext | None = None) -> bytes:
        """What these silos' keys would sign; their own code would refuse some of it."""
        context = context or self.silos.context(self.round_id)
        statement = survivors_statement(context, graph_seed(context, self.ads.values()), survivors)
        return pack({silo: self.silos.keys[silo].sign(statement) for silo in signers})

    def expected(self) -> Words:
        """The sum of the survivors' vectors, added up in the clear."""
        total = np.zeros_like(self.sum.total)
        for silo in self.sum.survivors:
            total += self.vectors[silo]
        return total

    def _silo(self, silo: int) -> Participant:
        return self.silos.participant(silo)

    def _left(self, gone: Collection[int], asked: Collection[int]) -> list[int]:
        self.there -= set(gone)
        return sorted(self.there & set(asked))


def play(
    consortium: Consortium,
    vectors: Mapping[int, Any] | Sequence[Any] | NDArray[Any],
    gone: Sequence[Collection[int]] = (set(),) * 5,
    dtype: DTypeLike = np.uint32,
) -> tuple[Words, tuple[int, ...]]:
    """The sum over the silos whose vectors came, and their numbers; ``gone[stage]`` vanish before they answer that stage.

    Raises
    ------
    SecAggError
        If too few are left.
    """
    attempt = Attempt(consortium, vectors, dtype)
    for stage, vanished in zip(STAGES, gone, strict=True):
        found = getattr(attempt, stage)(vanished)
    return found, attempt.sum.survivors
