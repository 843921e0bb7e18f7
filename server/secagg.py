"""The coordinator's part in a secure sum: it relays what silos say to each other, and takes the masks off the sum.

Stages and messages are those of ``common.secagg.messages``. Each method takes the answers to one stage and gives the questions of
the next. A silo that does not answer a stage, or answers it wrongly, is left out of the rest; if too few are left there is no
sum. Masked vectors are added up and not kept here.

The checks here find a faulty silo where it shows. The secrecy of the vectors does not rest on them, but on what silos check
(``client.secagg``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from common.errors import SecAggError
from common.privacy.signing import verify
from common.secagg.context import RoundContext
from common.secagg.graph import Graph, draw, graph_seed
from common.secagg.keys import Advertisement, recovered_pair_mask, verify_advertisement
from common.secagg.masks import Mask, apply_masks, self_mask
from common.secagg.messages import (
    BOX_RECORD,
    Secret,
    pack,
    pack_advertisements,
    pack_survivors,
    survivors_statement,
    unpack,
    unpack_revealed,
)
from common.secagg.roster import KeyRoster
from common.secagg.rules import Rules
from common.secagg.shamir import Share, combine

log = logging.getLogger("silorec.server")

Words = NDArray[np.unsignedinteger[Any]]
Sound = TypeVar("Sound")


class SecureSum:
    """One attempt at one sum; its methods are called once each, in the order in which they stand here.

    Parameters
    ----------
    context:
        Run and round.
    rules, roster:
        How many silos it takes, and their keys; silos that the roster calls absent are not let in.
    dtype, length:
        Of the vectors: uint32 or uint64, ``(length,)``.

    Raises
    ------
    SecAggError
        From every method, if too few silos are left; from :meth:`unmasked`, if their shares do not fit.
    """

    def __init__(self, context: RoundContext, rules: Rules, roster: KeyRoster, dtype: DTypeLike, length: int) -> None:
        if len(roster) != rules.silos:
            raise SecAggError(f"the roster has {len(roster)} silos, the configuration {rules.silos}")
        self.context, self.rules, self.roster = context, rules, roster
        self.total: Words = np.zeros(length, dtype)
        self.ads: dict[int, Advertisement] = {}
        self.graph: Graph | None = None
        self.sharers: tuple[int, ...] = ()
        self.signatures: dict[int, bytes] = {}
        self._added: set[int] = set()

    def advertised(self, replies: Mapping[int, bytes]) -> bytes:
        """From each silo's advertisement to the list that all who are there get."""

        def verified(silo: int, reply: bytes) -> Advertisement:
            found = Advertisement.from_bytes(reply)
            if silo not in self.roster.by_silo:
                raise SecAggError(f"silo {silo} is not in the roster")
            if silo in self.roster.absent:
                raise SecAggError(f"silo {silo} is not valid any more: it was revoked, or has expired")
            verify_advertisement(found, self.roster.by_silo[silo], self.context, silo)
            return found

        self.ads = self._sound(replies, verified, "showed their keys")
        self.graph = draw(self.rules.plan(len(self.ads)), self.ads, self.seed)
        return pack_advertisements(self.ads.values())

    def shared(self, replies: Mapping[int, bytes]) -> dict[int, bytes]:
        """From the boxes of each silo, by receiver, to those for each silo, by sender: only silos that shared get any."""
        graph = self._drawn()

        def boxes_of(silo: int, reply: bytes) -> dict[int, bytes]:
            found = unpack(reply, BOX_RECORD, "sealed shares")
            if silo not in self.ads or tuple(found) != graph.neighbours(silo):
                raise SecAggError(f"silo {silo} did not share its secrets with its neighbours, but with silos {sorted(found)}")
            return found

        boxes = self._sound(replies, boxes_of, "shared their secrets")
        self.sharers = tuple(boxes)
        return {
            receiver: pack({sender: boxes[sender][receiver] for sender in graph.neighbours(receiver) if sender in boxes})
            for receiver in self.sharers
        }

    def add(self, silo: int, words: Words) -> None:
        """Add the masked vector of ``silo`` to the sum."""
        if silo not in self.sharers or silo in self._added:
            raise SecAggError(f"silo {silo} has no vector, or has given one already, in this round")
        if words.dtype != self.total.dtype or words.shape != self.total.shape:
            raise SecAggError(
                f"the vector of silo {silo} is {words.dtype} {words.shape}, not {self.total.dtype} {self.total.shape}"
            )
        self.total += words
        self._added.add(silo)

    @property
    def survivors(self) -> tuple[int, ...]:
        """Those whose vectors are in the sum."""
        return tuple(sorted(self._added))

    def summed(self) -> bytes:
        """The list of survivors that each of them is asked to sign."""
        self._enough(self._added, "gave their vectors")
        self._drawn().check_survivors(self._added)
        return pack_survivors(self._added)

    def signed(self, replies: Mapping[int, bytes]) -> bytes:
        """From the survivors' signatures to the quorum of them that opens the sum."""
        statement = survivors_statement(self.context, self.seed, self._added)

        def signature(silo: int, reply: bytes) -> bytes:
            if silo not in self._added or not verify(self.roster.by_silo[silo], reply, statement):
                raise SecAggError(f"silo {silo} did not sign the survivors of this round")
            return reply

        sound = self._sound(replies, signature, "signed the survivors", least=self._drawn().plan.quorum)
        self.signatures = dict(list(sound.items())[: self._drawn().plan.quorum])
        return pack(self.signatures)

    def unmasked(self, replies: Mapping[int, bytes]) -> Words:
        """From the revealed shares to the sum of the survivors' vectors, modulo ``2^b``."""
        seeds: dict[int, list[Share]] = {silo: [] for silo in self._added}
        keys: dict[int, list[Share]] = {silo: [] for silo in self.sharers if silo not in self._added}

        def shares_of(holder: int, reply: bytes) -> list[tuple[list[Share], Share]]:
            found = []
            for owner, (kind, share) in unpack_revealed(reply).items():
                wanted = seeds if kind is Secret.SEED else keys
                if owner not in wanted or share.silo != holder:
                    raise SecAggError(f"silo {holder} revealed a share of silo {owner} that nobody asked for, or another's")
                found.append((wanted[owner], share))
            return found

        revealed = self._sound(replies, shares_of, "revealed their shares", least=self._drawn().plan.threshold)
        for beside_others, share in (pair for found in revealed.values() for pair in found):
            beside_others.append(share)
        threshold, graph = self._drawn().plan.threshold, self._drawn()
        masks: list[Mask] = []
        for owner, shares in seeds.items():
            masks.append(self_mask(_combined(shares, threshold, owner), self.context, owner))
        for owner, shares in keys.items():
            beside = [peer for peer in graph.neighbours(owner) if peer in self._added]
            if beside:
                secret = _combined(shares, threshold, owner)
                masks += [recovered_pair_mask(secret, self.context, self.ads[owner], self.ads[peer]) for peer in beside]
        apply_masks(self.total, [mask.removal() for mask in masks])
        return self.total

    @property
    def seed(self) -> bytes:
        """The seed of the graph, 32 bytes: it names the keys that were advertised."""
        return graph_seed(self.context, self.ads.values())

    def _drawn(self) -> Graph:
        if self.graph is None:
            raise SecAggError("no silo has shown its keys yet")
        return self.graph

    def _sound(
        self, replies: Mapping[int, bytes], read: Callable[[int, bytes], Sound], what: str, least: int | None = None
    ) -> dict[int, Sound]:
        """The answers that ``read`` accepts, in the order of the silos; the others count as not given."""
        found: dict[int, Sound] = {}
        for silo in sorted(replies):
            try:
                found[silo] = read(silo, replies[silo])
            except SecAggError as error:
                log.warning("secure sum: silo %d is left out: %s", silo, error)
        self._enough(found, what, least)
        return found

    def _enough(self, silos: Iterable[int], what: str, least: int | None = None) -> None:
        found, least = len(tuple(silos)), least or self.rules.least
        if found < least:
            raise SecAggError(f"{found} of {self.rules.silos} silos {what}; a sum takes {least} or more")


def _combined(shares: Iterable[Share], threshold: int, owner: int) -> bytes:
    try:
        return combine(shares, threshold)
    except SecAggError as error:
        raise SecAggError(f"the secret of silo {owner}: {error}") from None
