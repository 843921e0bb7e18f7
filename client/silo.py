"""One silo: its data, its budget, and what it answers. No Flower here.

A silo is opened from the configuration and what its own operator says (:class:`Place`). It trusts the coordinator with
neither: ledger, policy and what was released lie in the operator's folder. A request is checked before anything is computed; a
release is reserved in the ledger before the data are touched, and committed before it leaves. A question that was answered
before gets the same answer again, which costs nothing (so a coordinator that lost a reply may ask again); another question
for a round that was answered is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.errors import ConfigError, ErrorCode
from common.privacy.accountant import epsilon
from common.privacy.entries import Chain
from common.privacy.entry import Commitment
from common.privacy.events import Event
from common.privacy.filter import best_order
from common.privacy.ledger import Ledger
from common.privacy.plan import PrivacyPlan, plan_for
from common.privacy.policy import Policy, Proposal
from common.privacy.signing import create_key, load_key
from common.privacy.store import make_folder
from common.protocol import (
    COUNT,
    ENROL,
    METRICS,
    PROTOCOL_VERSION,
    TRAIN,
    AdapterRequest,
    Fields,
    Refusal,
    Request,
    answer_digest,
    check_adapter_request,
    check_request,
    config_hash,
    question_digest,
    round_of,
    silo_seed,
)

LEDGER, KEY = "ledger.sqlite", "ledger.key"


@dataclass(frozen=True)
class Place:
    """What the operator, or the simulation in the operator's place, says of a silo.

    Parameters
    ----------
    index:
        The silo's place in the roster.
    folder:
        Where the ledger lies; needed in private modes and by every silo that is deployed.
    data:
        The silo's own data; None takes its part of the simulated population.
    simulated:
        Nobody is behind this silo: its ledger is opened by itself, with a policy that allows the run and nothing beyond it.
    """

    index: int
    folder: Path | None = None
    data: Path | None = None
    simulated: bool = False

    @classmethod
    def of(cls, node_config: Mapping[str, Any], out: str | None = None) -> Place:
        """Read a SuperNode's ``--node-config``: ``silo``, ``data`` and ``state``; or, in a simulation, Flower's
        ``partition-id``, which takes its folder from the run's ``out``.

        Raises
        ------
        ConfigError
            If neither ``silo`` nor ``partition-id`` is there, or a deployed silo names no data or no state.
        """
        if "silo" not in node_config:
            if "partition-id" not in node_config:
                raise ConfigError('this node is no silo: give --node-config \'silo=0 data="path" state="folder"\'')
            index = int(node_config["partition-id"])
            folder = Path(out) / "silos" / str(index) if out else None
            return cls(index, folder, simulated=True)
        missing = [key for key in ("data", "state") if not node_config.get(key)]
        if missing:
            raise ConfigError(f"--node-config lacks {missing[0]!r}: a silo has its own data and keeps its own ledger")
        return cls(int(node_config["silo"]), Path(str(node_config["state"])), Path(str(node_config["data"])))


class Silo:
    """An open silo; see :func:`open_silo`."""

    def __init__(self, config: Config, place: Place) -> None:
        declared = config.federation.declared_users
        if not 0 <= place.index < len(declared):
            raise Refusal(ErrorCode.BAD_REQUEST, f"silo {place.index} is not among the {len(declared)} that declared users")
        if place.folder is None and (config.privacy.mode != "none" or not place.simulated):
            raise Refusal(ErrorCode.POLICY_REFUSED, "there is no folder for the ledger: a budget must outlive the process")
        self.config, self.place = config, place
        plan = plan_for(config, declared[place.index], min(declared))
        self.plan: PrivacyPlan = replace(plan, hardened=hardens_noise(config, place))
        self._data: Any = None
        self._opened: Ledger | None = None

    def enrol(self, request: Request) -> Fields:
        """Say which silo this is."""
        check_request(request, ENROL, self.config)
        return {"silo": self.place.index, "protocol": PROTOCOL_VERSION}

    def count(self, request: Request) -> Fields:
        """Protected interactions per item, float32 ``(n_items,)``."""
        from client.trainer import release_counts

        check_request(request, COUNT, self.config)
        return self._release(
            COUNT, request, self.plan.count_event(), lambda: {"count": release_counts(self.data, self.config, self.plan)}
        )

    def train(self, request: AdapterRequest) -> Fields:
        """Protected change of the adapter after local training, float32 ``(n_parameters,)``."""
        from client.trainer import train_round

        def update() -> Fields:
            model = self._model_of(request)
            seed = silo_seed(self.config.run.seed, self.place.index, request.round)
            result = train_round(model, self.data, self.config, self.plan, round_number=request.round, silo_seed=seed)
            return {"update": result.update}

        self._check(TRAIN, request)
        return self._release(TRAIN, request, self.plan.train_event(request.round), update)

    def metrics(self, request: AdapterRequest) -> Fields:
        """Protected figures of the adapter's quality on what this silo held out, float32 ``(2,)``."""
        from client.trainer import release_metrics

        def measure() -> Fields:
            return {"metrics": release_metrics(self._model_of(request), self.data, self.config, self.plan)}

        self._check(METRICS, request)
        if self.plan.withholds_metrics:
            raise Refusal(ErrorCode.BAD_REQUEST, "privacy.metrics_share = 0: this run has no figures of quality")
        return self._release(METRICS, request, self.plan.metrics_event(), measure)

    def _check(self, action: str, request: AdapterRequest) -> None:
        from common.model.resident import resident

        manifest = resident(self.config).manifest
        check_adapter_request(request, action, self.config, manifest.hash, manifest.n_parameters)

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
            from client.trainer import SiloData
            from common.data.population import load_population, own_data
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

    def _release(self, action: str, request: Request, event: Event, compute: Callable[[], Fields]) -> Fields:
        """The answer that was given to the same question before; else reserve, compute, keep and commit it.

        Raises
        ------
        Refusal
            ``REPLAYED`` if the run has gone past this question.
        PolicyRefused, BudgetExhausted, LedgerError
            From the ledger; then nothing was computed.
        """
        folder = self.place.folder
        if folder is None:
            return compute()
        ledger, question = self._ledger(folder), question_digest(action, request)
        past = _past(ledger.refresh(), request.config_hash, action)
        path = kept_answer(folder, request.config_hash, action)
        kept = _read_released(path, question)
        if kept is not None and _is_paid(ledger, past, question, answer_digest(action, kept)):
            return kept
        self._check_new(past, action, round_of(request), question)
        proposal = Proposal(
            run=request.config_hash,
            coordinator=self.config.federation.coordinator,
            mode=self.plan.mode,
            action=action,
            round=round_of(request),
            event=event,
            declared_users=self.config.federation.declared_users[self.place.index],
        )
        reservation = ledger.reserve(proposal, question)
        answer = compute()
        _write_released(path, question, answer)
        ledger.commit(reservation.seq, answer_digest(action, answer))
        return answer

    def _ledger(self, folder: Path) -> Ledger:
        if self._opened is None:
            path, key = folder / LEDGER, folder / KEY
            if self.place.simulated and not path.exists():
                policy = policy_of_a_simulation(self.plan, self.place.index, self.config)
                make_folder(folder)
                self._opened = Ledger.create(path, policy, load_key(key) if key.exists() else create_key(key))
            else:
                self._opened = Ledger.open(path, load_key(key))
        return self._opened

    def _check_new(self, past: Sequence[Past], action: str, number: int, question: str) -> None:
        """A run goes forward: no round before one that was reserved, no second question for one that was answered."""
        for release in past:
            if release.round > number or (release.round == number and release.answer and release.question != question):
                raise Refusal(
                    ErrorCode.REPLAYED,
                    f"silo {self.place.index}: {action} of round {number} is asked after another question of round "
                    f"{release.round}; a new run needs another name or seed",
                )


@dataclass(frozen=True)
class Past:
    """A release that the ledger knows: ``answer`` is the digest of what was committed, None where nothing was."""

    seq: int
    round: int
    question: str
    answer: str | None


def _past(chain: Chain, run: str, action: str) -> list[Past]:
    """The releases of one run that answered ``action``, in order."""
    out = []
    for entry, what in chain.reservations:
        if what.run == run and what.action == action:
            commitment = chain.commitments.get(entry.seq)
            answer = commitment.what.answer if commitment and isinstance(commitment.what, Commitment) else None
            out.append(Past(entry.seq, what.round, what.question, answer))
    return out


def _is_paid(ledger: Ledger, past: Sequence[Past], question: str, answer: str) -> bool:
    """Whether an answer that is kept may leave: it was committed, or paid for by a process that died before it could say so."""
    same = [release for release in past if release.question == question]
    if any(release.answer == answer for release in same):
        return True
    unanswered = [release.seq for release in same if release.answer is None]
    if unanswered:
        ledger.commit(unanswered[-1], answer)
    return bool(unanswered)


def kept_answer(folder: Path, run: str, action: str) -> Path:
    """Where the latest answer to ``action`` in a run is kept."""
    return folder / "answers" / f"{run[:16]}-{action.removeprefix('query.')}.safetensors"


def hardens_noise(config: Config, place: Place) -> bool:
    """Whether noise is hardened: always for a silo with an operator, whatever the configuration says; else as asked."""
    return not place.simulated or config.privacy.noise == "hardened"


def policy_of_a_simulation(plan: PrivacyPlan, index: int, config: Config) -> Policy:
    """What the operator of a simulated silo allows: this run and nothing beyond it.

    Where PLD calibrated the noise, the Rényi bound of the same releases is above ``privacy.epsilon``; the ledger counts in
    the latter, so that is the limit.
    """
    name, declared = f"silo-{index}", config.federation.declared_users[index]
    if plan.mode == "none":
        return Policy(silo=name, epsilon=None, delta=plan.delta, modes=("none",), coordinators=("any",), declared_users=declared)
    events = plan.all_events()
    return Policy(
        silo=name,
        epsilon=max(plan.epsilon, epsilon(events, plan.delta, "rdp")),
        delta=plan.delta,
        order=best_order(events, plan.delta),
        modes=(plan.mode,),
        coordinators=("any",),
        declared_users=declared,
    )


def open_silo(config: Config, place: Place) -> Silo:
    """The silo at ``place``; the process keeps it open, with its data, for the next message of the same run."""
    key = (config_hash(config), place)
    if key not in _OPEN:
        for other in [known for known in _OPEN if known[0] != key[0]]:
            del _OPEN[other]
        _OPEN[key] = Silo(config, place)
    return _OPEN[key]


_OPEN: dict[tuple[str, Place], Silo] = {}


def _read_released(path: Path, question: str) -> Fields | None:
    """What lies at ``path`` if it answers the same question; a damaged file answers nothing, which costs budget, not privacy."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if json.loads((file.metadata() or {}).get("silorec", "{}")).get("question") == question:
                return {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError):
        return None
    return None


def _write_released(path: Path, question: str, answer: Mapping[str, NDArray[np.float32]]) -> None:
    from safetensors.numpy import save

    from common.durable import write_durably

    arrays = {name: np.ascontiguousarray(value) for name, value in answer.items()}
    write_durably(path, save(arrays, {"silorec": json.dumps({"question": question})}))
