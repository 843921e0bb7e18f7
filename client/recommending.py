"""Recommendations from the coordinator's service, for a silo that does not rank by itself.

A question shows a few items of a history, in coarse order, some of them false where that is asked for
(:mod:`client.private_history`), and nothing else: no user, no session, no time. The whole history stays here, where what was seen
is taken out of the answer. That hides who asks; it does not make a distinctive history common. Whoever cannot bear that ranks
with the gateway, which asks nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any

from google.protobuf.message import DecodeError

from client.private_history import Protection, protect
from client.remote import Certificates, Service
from common.bundle.contents import Bundle
from common.data.catalogue import Catalogue
from common.errors import ServingError
from common.proto import BATCH_LIMIT
from common.proto import recommender_pb2 as messages
from common.recommending import ANSWERS, PAD


@dataclass(frozen=True)
class Recommended:
    """One item of an answer; ``score`` in nats, to be compared within one answer only."""

    position: int
    id: str
    title: str
    score: float


class RemoteRecommender:
    """Asks the service at ``target``; a context manager. Threads may share it.

    Parameters
    ----------
    target:
        ``host:port``.
    catalogue:
        In which positions of histories count: that of a bundle, or the bundle. The service must answer from the same one.
    certificates:
        The silo's; needed unless the service is on this machine.
    protection:
        What a question shows of a history; the measured default if None.
    deadline:
        Seconds that an answer may take, attempts included. The same for all, so that it says nothing.
    rng:
        Source of the questions' randomness; the operating system's if None, as in production.
    """

    def __init__(
        self,
        target: str,
        catalogue: Catalogue | Bundle,
        certificates: Certificates | None = None,
        protection: Protection | None = None,
        *,
        deadline: float = 2.0,
        rng: Random | None = None,
    ) -> None:
        self.catalogue = catalogue.catalogue if isinstance(catalogue, Bundle) else catalogue
        self.protection = protection or Protection()
        self._fingerprint = bytes.fromhex(self.catalogue.fingerprint)
        self._deadline, self._rng = deadline, rng
        self._service = Service(target, certificates)

    def __enter__(self) -> RemoteRecommender:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._service.close()

    def recommend(
        self, history: Sequence[int], k: int = 10, *, without: Collection[int] = (), secret: bytes | None = None
    ) -> list[Recommended]:
        """The ``k`` best items after ``history`` that are neither in it nor in ``without``, best first.

        The service names its 100 best. Where so many of them were seen that fewer than ``k`` are left, fewer come back.

        Parameters
        ----------
        history:
            Positions in the catalogue, oldest first, all of them: what a question shows is decided here.
        secret:
            The user's, for permanent replacement: see :func:`client.private_history.protect`.

        Raises
        ------
        CatalogueChanged
            If the service has another catalogue.
        ServingError
            If it cannot be asked, or an item is not in the catalogue.
        """
        _check_k(k)
        request = messages.RecommendRequest(catalogue=self._fingerprint, history=self._shown(history, secret))
        raw = self._service.call("Recommend", request.SerializeToString(), self._deadline)
        positions, scores = self._answer(messages.RecommendResponse, raw, 1)
        return self._chosen(positions, scores, history, without, k)

    def recommend_many(self, histories: Sequence[Sequence[int]], k: int = 10) -> list[list[Recommended]]:
        """As :meth:`recommend` for several histories, 64 in a call.

        Histories that are asked for together are known to be of one moment: ask for those of one person apart.
        """
        _check_k(k)
        answers = []
        for start in range(0, len(histories), BATCH_LIMIT):
            part = histories[start : start + BATCH_LIMIT]
            slots = [slot for history in part for slot in self._shown(history, None)]
            request = messages.RecommendBatchRequest(catalogue=self._fingerprint, histories=slots)
            raw = self._service.call("RecommendBatch", request.SerializeToString(), self._deadline)
            positions, scores = self._answer(messages.RecommendBatchResponse, raw, len(part))
            for place, history in enumerate(part):
                row = slice(place * ANSWERS, (place + 1) * ANSWERS)
                answers.append(self._chosen(positions[row], scores[row], history, (), k))
        return answers

    def _shown(self, history: Sequence[int], secret: bytes | None) -> tuple[int, ...]:
        return protect(history, len(self.catalogue), self.protection, self._rng, secret=secret)

    def _answer(self, kind: Any, raw: bytes, count: int) -> tuple[list[int], list[float]]:
        try:
            message = kind.FromString(raw)
        except DecodeError:
            message = kind()
        positions, scores = list(message.positions), list(message.scores)
        if len(positions) != count * ANSWERS or len(scores) != len(positions):
            raise ServingError(f"{self._service.target}: this is not an answer to the question; is it the coordinator's service?")
        if any(position >= len(self.catalogue) and position != PAD for position in positions):
            raise ServingError(
                f"{self._service.target}: the answer names an item that the catalogue lacks; is it the right service?"
            )
        return positions, scores

    def _chosen(
        self, positions: Sequence[int], scores: Sequence[float], history: Sequence[int], without: Collection[int], k: int
    ) -> list[Recommended]:
        left_out = {PAD, *history, *without}
        ids, titles = self.catalogue.ids, self.catalogue.titles
        best = [(position, score) for position, score in zip(positions, scores, strict=True) if position not in left_out]
        return [Recommended(position, ids[position], titles[position], score) for position, score in best[:k]]


def _check_k(k: int) -> None:
    if not 1 <= k <= ANSWERS:
        raise ServingError(f"k = {k}: an answer has {ANSWERS} items, ask for 1 to {ANSWERS}")
