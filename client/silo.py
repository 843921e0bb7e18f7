"""One silo: its data, its budget, and what it answers. No Flower here.

A silo is opened from the configuration and what its own operator says (:class:`Place`). It trusts the coordinator with
neither: ledger, policy and what was released lie in the operator's folder. A request is checked before anything is computed; a
release is reserved in the ledger before the data are touched, and committed before it leaves. A question that was answered
before gets the same answer again, which costs nothing (so a coordinator that lost a reply may ask again); another question
for a round that was answered is refused.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from client.place import KEY, LEDGER, Place, hardens_noise, policy_of_a_simulation, simulated_key
from client.releases import SALT_BYTES, Kept, Released, kept_answer, read_kept, release, write_kept
from client.secagg import FileMemory, Participant
from common.config import Config
from common.errors import ErrorCode, SecAggError
from common.privacy.chacha import SeededStream
from common.privacy.events import Event
from common.privacy.ledger import Ledger
from common.privacy.plan import PrivacyPlan, plan_for
from common.privacy.policy import Proposal
from common.privacy.signing import load_key
from common.protocol import (
    ADVERTISE,
    BUDGET,
    COUNT,
    ENROL,
    MASK,
    METRICS,
    PROTOCOL_VERSION,
    REVEAL,
    SHARE,
    SIGN,
    SUMMED,
    TRAIN,
    AdapterRequest,
    Fields,
    Refusal,
    Request,
    SumRequest,
    answer_digest,
    check_adapter,
    check_request,
    config_hash,
    question_digest,
    release_question,
    round_of,
    silo_seed,
)
from common.secagg.coding import coding_of, mechanism_of, weights_of
from common.secagg.rules import Rules

log = logging.getLogger("silorec.client")


class Silo:
    """An open silo; see :func:`open_silo`."""

    def __init__(self, config: Config, place: Place) -> None:
        declared = config.federation.declared_users
        if not 0 <= place.index < len(declared):
            raise Refusal(ErrorCode.BAD_REQUEST, f"silo {place.index} is not among the {len(declared)} that declared users")
        if place.folder is None and (config.privacy.mode != "none" or not place.simulated):
            raise Refusal(ErrorCode.POLICY_REFUSED, "there is no folder for the ledger: a budget must outlive the process")
        if place.roster is not None and not place.simulated and not config.is_secure:
            raise Refusal(
                ErrorCode.POLICY_REFUSED,
                "this silo's operator names a roster, so it answers in secure sums only; the configuration aggregates plainly",
            )
        self.config, self.place = config, place
        plan = plan_for(config, declared[place.index], min(declared))
        self.plan: PrivacyPlan = replace(plan, hardened=hardens_noise(config, place))
        self._data: Any = None
        self._opened: Ledger | None = None
        self._taking_part: Participant | None = None

    def enrol(self, request: Request) -> Fields:
        """Say which silo this is."""
        check_request(request, ENROL, self.config)
        return {"silo": self.place.index, "protocol": PROTOCOL_VERSION}

    def count(self, request: Request) -> Fields:
        """Protected interactions per item, float32 ``(n_items,)``."""
        return self._plainly(COUNT, request)

    def train(self, request: AdapterRequest) -> Fields:
        """Protected change of the adapter after local training, float32 ``(n_parameters,)``."""
        return self._plainly(TRAIN, request)

    def metrics(self, request: AdapterRequest) -> Fields:
        """Protected figures of the adapter's quality on what this silo held out, float32 ``(2,)``."""
        return self._plainly(METRICS, request)

    def budget(self, request: Request) -> Fields:
        """Thousandths of epsilon that are left under the policy's limit over everything, rounded down; only where the operator
        shows them. A figure of the ledger: charges follow from public parameters, never from data.
        """
        check_request(request, BUDGET, self.config)
        if not self.place.show_budget or self.place.folder is None:
            raise Refusal(ErrorCode.POLICY_REFUSED, "this silo's operator does not show how much budget is left")
        ledger = self._ledger(self.place.folder)
        ledger.refresh()
        spent = ledger.spent()
        if spent.limit is None:
            raise Refusal(ErrorCode.POLICY_REFUSED, "this silo's policy has no limit over everything, so nothing is left of one")
        return {"budget": math.floor(1000 * max(0.0, spent.limit - spent.epsilon))}

    def advertise(self, request: SumRequest) -> Fields:
        """The silo's keys for one attempt at a secure sum, signed."""
        return {"advertisement": self._participant(ADVERTISE, request).advertise(request.round_id)}

    def share(self, request: SumRequest) -> Fields:
        """Shares of this silo's secrets, sealed for its neighbours; the request holds everybody's keys."""
        return {"shares": self._participant(SHARE, request).share(request.round_id, request.payload)}

    def mask(self, request: SumRequest) -> Fields:
        """The answer to the question, under masks; the request holds the question, and what neighbours sealed for this silo."""
        taking_part = self._participant(MASK, request)
        asked = request.asked()
        if question_digest(request.action, asked) != request.question:
            raise Refusal(ErrorCode.BAD_REQUEST, "the question is not the one for which this sum was begun")
        self._work(request.action, asked)  # refuses what cannot be answered, before anything is noted
        taking_part.receive(request.round_id, request.payload)
        name = request.round_id.hex()
        path = None if self.place.folder is None else kept_answer(self.place.folder, request.config_hash, MASK)
        if taking_part.has_masked(request.round_id):
            kept = None if path is None else read_kept(path, name)
            if kept is None:
                raise SecAggError("this silo has given its vector of this round, and does not have it any more")
            return {"masked": kept.fields["masked"], "release": kept.fields["release"].tobytes()}
        released = self._release(request.action, asked, release_question(self.plan.mode, request), masked=True)
        words, digest = self._words(request.action, request.round, released.fields), bytes.fromhex(released.digest)

        def keep() -> None:
            if path is not None:
                write_kept(path, name, Kept({"masked": words, "release": np.frombuffer(digest, np.uint8)}))

        taking_part.mask(request.round_id, request.payload, words, keep)
        return {"masked": words, "release": digest}

    def sign(self, request: SumRequest) -> Fields:
        """The silo's signature of who is in the sum."""
        return {"signature": self._participant(SIGN, request).sign(request.round_id, request.payload)}

    def reveal(self, request: SumRequest) -> Fields:
        """One share of each peer's secrets, for the survivors that this silo and a quorum signed."""
        return {"revealed": self._participant(REVEAL, request).reveal(request.round_id, request.payload)}

    def _plainly(self, action: str, request: Request) -> Fields:
        if self.config.is_secure:
            raise Refusal(
                ErrorCode.BAD_REQUEST, f"{action}: in this run the coordinator sees sums only, and asks for nothing plainly"
            )
        check_request(request, action, self.config)
        return self._release(action, request, question_digest(action, request), masked=False).fields

    def _work(self, action: str, request: Request) -> tuple[Event, Callable[[], Fields]]:
        """What the answer costs, and how it is computed: protected, but in mode ``distributed``, where it gets its noise later.

        Raises
        ------
        Refusal
            If the request is not in order.
        """
        from client import sums, trainer

        config, plan, secret = self.config, self.plan, self.plan.mode == "distributed"
        if action == COUNT:
            if isinstance(request, AdapterRequest):
                raise Refusal(ErrorCode.BAD_REQUEST, "a count is not about an adapter")
            counted = (
                (lambda: sums.count_sum(self.data, True)) if secret else lambda: trainer.release_counts(self.data, config, plan)
            )
            return plan.count_event(), lambda: {"count": counted()}
        if action not in SUMMED or not isinstance(request, AdapterRequest):
            raise Refusal(ErrorCode.BAD_REQUEST, f"{action}: a silo has no such answer")
        self._check(action, request)
        if action == TRAIN:
            seed = silo_seed(config.run.seed, self.place.index, request.round)

            def trained() -> Any:
                model = self._model_of(request)
                if secret:
                    return sums.gradient_sum(model, self.data, config, plan)
                result = trainer.train_round(model, self.data, config, plan, round_number=request.round, silo_seed=seed)
                return result.update

            return plan.train_event(request.round), lambda: {"update": trained()}
        if plan.withholds_metrics:
            raise Refusal(ErrorCode.BAD_REQUEST, "privacy.metrics_share = 0: this run has no figures of quality")

        def measured() -> Any:
            model = self._model_of(request)
            return (
                sums.metrics_sum(model, self.data, config) if secret else trainer.release_metrics(model, self.data, config, plan)
            )

        return plan.metrics_event(), lambda: {"metrics": measured()}

    def _share_of_noise(self, action: str, fields: Fields) -> Fields:
        """Mode ``distributed``: words of the ring, with this silo's share of the noise; alone they are hardly protected."""
        ((name, value),) = fields.items()
        encoded = mechanism_of(action, self.config, len(value)).protect(value)
        self._note_clipped(action, encoded.clipped)
        return {name: encoded.words}

    def _words(self, action: str, number: int, fields: Fields) -> Any:
        """An answer as words of the ring; in mode ``distributed`` it is that already."""
        (value,) = fields.values()
        if self.plan.mode == "distributed":
            return value.copy()
        weight = weights_of(action, self.config)[self.place.index]
        weighted = value if weight == 1 else value.astype(np.float64) * weight  # float32 would round once more than documented
        stream = None
        if self.plan.mode == "none":  # rounding is not secret here, and a run can be repeated
            stream = SeededStream(f"rounding/{action}/{silo_seed(self.config.run.seed, self.place.index, number)}")
        encoded = coding_of(action, self.config, len(value)).encode(weighted, stream=stream)
        self._note_clipped(action, encoded.clipped)
        return encoded.words

    def _note_clipped(self, action: str, clipped: int) -> None:
        """On this silo's own log; how many there are is not told to anybody."""
        if clipped:
            log.warning("%s: %d numbers were beyond the range of the sum and were cut off", action, clipped)

    def _participant(self, stage: str, request: SumRequest) -> Participant:
        check_request(request, stage, self.config)
        if not self.config.is_secure:
            raise Refusal(ErrorCode.BAD_REQUEST, f"{stage}: this run does not aggregate securely")
        if self._taking_part is None or stage == ADVERTISE:  # the roster may have changed since the last attempt
            folder = self.place.folder
            if folder is None or self.place.roster is None:
                raise Refusal(ErrorCode.POLICY_REFUSED, "a secure sum takes the silo's own key and its own copy of the roster")
            memory, rules = FileMemory(folder / "secagg" / f"{request.config_hash[:16]}.json"), Rules.of(self.config)
            roster, key = self.place.key_roster().first(rules.silos), load_key(folder / KEY)
            self._taking_part = Participant(self.place.index, request.config_hash, rules, roster, key, memory)
        if request.roster != self._taking_part.roster.digest:
            raise Refusal(
                ErrorCode.SECAGG_REFUSED, f"the coordinator has another roster than {self.place.roster}: compare the files"
            )
        return self._taking_part

    def _check(self, action: str, request: AdapterRequest) -> None:
        from common.model.resident import resident

        manifest = resident(self.config).manifest
        check_adapter(request, action, self.config, manifest.hash, manifest.n_parameters)

    def _model_of(self, request: AdapterRequest) -> Any:
        """The resident model with the request's adapter in it."""
        from common.model.adapter import from_vector
        from common.model.resident import resident

        home = resident(self.config)
        from_vector(home.model, request.vector, home.manifest)
        return home.model

    @property
    def data(self) -> Any:
        """The silo's ``SiloData``, read on first use."""
        if self._data is None:
            from client.silo_data import SiloData
            from common.data.own import own_data
            from common.data.population import load_population
            from common.data.split import without_last
            from common.model.resident import resident

            held_out = None
            if self.place.data is not None:
                dataset, mask = own_data(self.config, self.place.data)
                if not self.plan.withholds_metrics:
                    dataset, held_out = without_last(dataset)
            else:
                population = load_population(self.config)
                dataset, mask = population.training_data(self.place.index), population.item_mask(self.place.index)
                held_out = population.silo_split(self.place.index).validation_target
            tokenizer = resident(self.config).model.tokenizer if self.config.model.user_text else None
            self._data = SiloData.from_dataset(dataset, self.config, mask, tokenizer, held_out)
        return self._data

    @data.setter
    def data(self, data: Any) -> None:
        """Put other data in the place of the silo's part of the population: for simulations that compare."""
        self._data = data

    def _release(self, action: str, request: Request, question: str, *, masked: bool) -> Released:
        """The answer to a question: given before, or paid for and computed; see :func:`client.releases.release`."""
        event, compute = self._work(action, request)
        if masked and self.plan.mode == "distributed":
            plain, compute = compute, lambda: self._share_of_noise(action, plain())
        folder = self.place.folder
        if folder is None:
            fields = compute()
            return Released(fields, answer_digest(action, fields, secrets.token_bytes(SALT_BYTES) if masked else b""))
        proposal = Proposal(
            run=request.config_hash,
            coordinator=self.config.federation.coordinator,
            mode=self.plan.mode,
            action=action,
            round=round_of(request),
            event=event,
            declared_users=self.config.federation.declared_users[self.place.index],
        )
        again = self.plan.mode == "distributed"
        return release(self._ledger(folder), folder, proposal, question, compute, salted=masked, again=again)

    def _ledger(self, folder: Path) -> Ledger:
        if self._opened is None:
            path = folder / LEDGER
            if self.place.simulated and not path.exists():
                policy = policy_of_a_simulation(self.plan, self.place.index, self.config)
                self._opened = Ledger.create(path, policy, simulated_key(folder))
            else:
                self._opened = Ledger.open(path, load_key(folder / KEY))
        return self._opened


def open_silo(config: Config, place: Place) -> Silo:
    """The silo at ``place``; the process keeps it open, with its data, for the next message of the same run."""
    key = (config_hash(config), place)
    if key not in _OPEN:
        for other in [known for known in _OPEN if known[0] != key[0]]:
            del _OPEN[other]
        _OPEN[key] = Silo(config, place)
    return _OPEN[key]


_OPEN: dict[tuple[str, Place], Silo] = {}
