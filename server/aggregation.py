"""From what each silo answers to one sum: plainly, or so that the coordinator never sees an answer.

Both ways put the same question to the same silos and give the same sum, up to the fixed-point rounding of the second. Sums run in
float64 and in the order of the roster, so that the result does not depend on who answered first.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.errors import ConfigError, ErrorCode, FederationError, RoundFailed, SecAggError
from common.privacy.transcript import Transcript
from common.protocol import (
    ADVERTISE,
    MASK,
    REVEAL,
    SHARE,
    SIGN,
    AdapterRequest,
    Fields,
    Request,
    SumRequest,
    question_digest,
    round_of,
)
from common.secagg.coding import coding_of, weights_of
from common.secagg.context import RoundContext
from common.secagg.messages import NONCE_BYTES
from common.secagg.roster import KeyRoster
from common.secagg.rules import Rules
from server.exchange import Exchange, Keep
from server.secagg import SecureSum

log = logging.getLogger("silorec.server")

#: How often a secure sum is begun anew when too many silos vanish from it.
ATTEMPTS = 3


@dataclass(frozen=True, eq=False)
class Sum:
    """``total`` is ``Σ w_i·x_i`` over ``silos``, float64 ``(n,)``, ``weight`` is ``Σ w_i``; ``refusals`` says why not others."""

    total: NDArray[np.float64]
    weight: float
    silos: tuple[int, ...]
    refusals: Mapping[int, ErrorCode] = field(default_factory=dict)

    @property
    def mean(self) -> NDArray[np.float64]:
        """``Σ w_i·x_i / Σ w_i``."""
        return self.total / self.weight


class Aggregation(Protocol):
    """A way to a sum."""

    def ask(self, action: str, request: Request, *, what: str, length: int) -> Sum:
        """The sum of the silos' answers to one question, vectors of ``length`` numbers; ``what`` names the stage in errors.

        Raises
        ------
        RoundFailed
            If too few silos answer.
        FederationError
            If the silos cannot be asked at all.
        """
        ...

    def admit(self, roster: KeyRoster) -> None:
        """From now on the silos' keys are those of ``roster``, which may hold silos that came later than the run.

        Raises
        ------
        ConfigError
            If it lacks some of the run's.
        """
        ...


class PlainAggregation:
    """The coordinator sees each silo's answer, and adds them up."""

    def __init__(self, silos: Exchange, config: Config) -> None:
        self.silos, self.config = silos, config

    def ask(self, action: str, request: Request, *, what: str, length: int) -> Sum:
        """See :class:`Aggregation`."""
        answers = self.silos.ask(action, request, what=what, length=length)
        weights = weights_of(action, self.config)
        total = np.zeros(length, dtype=np.float64)
        for silo, fields in answers.fields.items():
            (vector,) = fields.values()
            total += weights[silo] * vector.astype(np.float64)
        return Sum(total, sum(weights[silo] for silo in answers.fields), tuple(answers.fields), answers.refusals)

    def admit(self, roster: KeyRoster) -> None:
        """See :class:`Aggregation`: no key plays a part here."""


class SecureAggregation:
    """The coordinator sees the sum, and of each answer a vector that looks like noise; see docs/secure-aggregation.md.

    Parameters
    ----------
    roster:
        The coordinator's copy of the consortium's roster.
    transcript:
        Notes for each attempt who was in it and who signed for it; no secrets.

    Raises
    ------
    ConfigError
        If the roster is not one of these silos, or there are too few to hide one among others.
    """

    def __init__(self, silos: Exchange, config: Config, roster: KeyRoster, transcript: Transcript | None = None) -> None:
        self.silos, self.config, self.transcript = silos, config, transcript
        self.rules = Rules.of(config)
        self.admit(roster)

    def admit(self, roster: KeyRoster) -> None:
        """See :class:`Aggregation`."""
        if len(roster) < self.rules.silos:
            raise ConfigError(f"the roster has {len(roster)} silos, the configuration {self.rules.silos}")
        self.roster = roster.first(self.rules.silos)

    def ask(self, action: str, request: Request, *, what: str, length: int) -> Sum:
        """See :class:`Aggregation`; an attempt that ends without a sum is made again, under new keys."""
        for attempt in range(1, ATTEMPTS + 1):
            one = _Attempt(self, action, request, what, length)
            try:
                found = one.run()
            except FederationError as error:
                one.note(outcome=str(error))
                paid = one.asked_for_vectors and self.config.privacy.mode == "distributed"
                again = not paid and (not isinstance(error, RoundFailed) or error.again)
                if attempt == ATTEMPTS or not again:  # new noise is a new charge: not without being told to
                    raise RoundFailed(str(error), again=again) from error
                log.warning("%s: no sum: %s; trying again under new keys", what, error)
            else:
                one.note(outcome="sum")
                return found
        raise AssertionError("unreachable")


class _Attempt:
    """One attempt at one sum, stage by stage."""

    def __init__(self, way: SecureAggregation, action: str, request: Request, what: str, length: int) -> None:
        self.way, self.what, self.length = way, what, length
        self.coding = coding_of(action, way.config, length)
        adapter = isinstance(request, AdapterRequest)
        self.question = SumRequest(
            config_hash=request.config_hash,
            action=action,
            round=round_of(request),
            question=question_digest(action, request),
            nonce=secrets.token_bytes(NONCE_BYTES),
            roster=way.roster.digest,
            manifest_hash=request.manifest_hash if adapter else "",  # type: ignore[attr-defined]
        )
        self.vector = request.vector if isinstance(request, AdapterRequest) else None
        context = RoundContext(request.config_hash, self.question.round_id)
        self.sum = SecureSum(context, way.rules, way.roster, self.coding.dtype, length)
        self.refusals: dict[int, ErrorCode] = {}
        self.asked_for_vectors = False
        """Whether a silo may have given one, and paid for it: also where it never came."""

    def run(self) -> Sum:
        """All stages; :class:`FederationError` if too few silos are left after one of them."""
        least = max(self.way.rules.least, self.way.silos.quorum)
        keys = self.sum.advertised(self._stage(ADVERTISE, None, "advertisement", least))
        boxes = self.sum.shared(self._stage(SHARE, dict.fromkeys(self.sum.ads, keys), "shares", least))
        self.asked_for_vectors = True
        self._stage(MASK, boxes, "release", least, keep=self._added)
        survivors = self.sum.summed()
        plan = self.way.rules.plan(len(self.sum.ads))
        enough = max(plan.quorum, plan.threshold)  # who has not signed reveals nothing
        signed = self._stage(SIGN, dict.fromkeys(self.sum.survivors, survivors), "signature", enough)
        quorum = self.sum.signed(signed)
        revealed = self._stage(REVEAL, dict.fromkeys(signed, quorum), "revealed", min(least, len(signed)))
        return self._opened(self.sum.unmasked(revealed))

    def _added(self, silo: int, fields: Fields) -> Fields:
        """Add a masked vector to the sum and let it go, so that memory does not grow with the number of silos."""
        try:
            self.sum.add(silo, fields["masked"])
        except SecAggError as error:
            log.warning("%s, %s: silo %d is left out: %s", self.what, MASK, silo, error)
            self.refusals[silo] = ErrorCode.INTERNAL
        return {name: value for name, value in fields.items() if name != "masked"}

    def _stage(
        self, stage: str, payloads: Mapping[int, bytes] | None, name: str, quorum: int, keep: Keep | None = None
    ) -> dict[int, Any]:
        """The field ``name`` of each answer; ``payloads`` None asks all silos."""
        question = replace(self.question, vector=self.vector) if stage == MASK else self.question
        requests: Request | Mapping[int, Request] = question
        if payloads is not None:
            requests = {silo: replace(question, payload=payload) for silo, payload in payloads.items()}
        length = self.length if stage == MASK else None
        answers = self.way.silos.ask(stage, requests, what=f"{self.what}, {stage}", length=length, quorum=quorum, keep=keep)
        self.refusals |= answers.refusals
        return {silo: fields[name] for silo, fields in answers.fields.items()}

    def _opened(self, words: NDArray[Any]) -> Sum:
        silos = self.sum.survivors
        weights = weights_of(self.question.action, self.way.config)
        total = self.coding.decode(words, len(silos))
        refusals = {silo: code for silo, code in self.refusals.items() if silo not in silos}
        return Sum(total, sum(weights[silo] for silo in silos), silos, refusals)

    def note(self, outcome: str) -> None:
        """Put what the coordinator knows of this attempt into the transcript: nothing of it is secret."""
        if self.way.transcript is None:
            return
        graph = self.sum.graph
        self.way.transcript.record_sum(
            {
                "action": self.question.action,
                "round": self.question.round,
                "question": self.question.question,
                "nonce": self.question.nonce.hex(),
                "roster": self.question.roster,
                "advertised": sorted(self.sum.ads),
                "graph": self.sum.seed.hex(),
                "degree": graph.plan.degree if graph else 0,
                "threshold": graph.plan.threshold if graph else 0,
                "quorum": graph.plan.quorum if graph else 0,
                "shared": list(self.sum.sharers),
                "survivors": list(self.sum.survivors),
                "signatures": {str(silo): signature.hex() for silo, signature in self.sum.signatures.items()},
                "outcome": outcome,
            }
        )


def aggregation_of(config: Config, silos: Exchange, roster: KeyRoster | None, transcript: Transcript | None) -> Aggregation:
    """As the configuration says.

    Raises
    ------
    ConfigError
        If it says secure and there is no roster.
    """
    if not config.is_secure:
        return PlainAggregation(silos, config)
    if roster is None:
        raise ConfigError("secure aggregation needs the consortium's roster: give app.roster, the path of the file")
    return SecureAggregation(silos, config, roster, transcript)
