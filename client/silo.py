"""One silo: its data, its budget, and what it answers. No Flower here.

A silo is opened from the configuration and what its own operator says (:class:`Place`). It trusts the coordinator with
neither: the journal and what was released lie in the operator's folder, a request is checked before anything is computed, a
release is charged before it is computed, and a question that was answered before gets the same answer again, which
costs nothing (so a coordinator that lost a reply may ask again, and one that asks for a fresh one pays for it).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.errors import ConfigError, ErrorCode
from common.privacy.accountant import epsilon
from common.privacy.events import Event
from common.privacy.journal import Journal
from common.privacy.plan import PrivacyPlan, plan_for
from common.protocol import (
    COUNT,
    PROTOCOL_VERSION,
    TRAIN,
    Fields,
    Refusal,
    Request,
    TrainRequest,
    check_request,
    check_train_request,
    config_hash,
    silo_seed,
)

#: A budget that was calibrated to be met exactly may be passed by rounding.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Place:
    """What the operator, or the simulation in the operator's place, says of a silo.

    Parameters
    ----------
    index:
        The silo's place in the roster.
    folder:
        Where the journal lies; needed in private modes.
    data:
        The silo's own data; None takes its part of the simulated population.
    allow_unprotected:
        Whether mode ``none`` is answered at all.
    """

    index: int
    folder: Path | None = None
    data: Path | None = None
    allow_unprotected: bool = False

    @classmethod
    def of(cls, node_config: Mapping[str, Any], out: str | None = None) -> Place:
        """Read a SuperNode's ``--node-config``: ``silo``, ``data``, ``state`` and ``allow-unprotected``, or, in a simulation,
        Flower's ``partition-id``, which takes its folder from the run's ``out``.

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
            return cls(index, folder, allow_unprotected=True)
        missing = [key for key in ("data", "state") if not node_config.get(key)]
        if missing:
            raise ConfigError(f"--node-config lacks {missing[0]!r}: a silo has its own data and keeps its own journal")
        return cls(
            int(node_config["silo"]),
            Path(str(node_config["state"])),
            Path(str(node_config["data"])),
            bool(node_config.get("allow-unprotected", False)),
        )


class Silo:
    """An open silo; see :func:`open_silo`."""

    def __init__(self, config: Config, place: Place) -> None:
        declared = config.federation.declared_users
        if not 0 <= place.index < len(declared):
            raise Refusal(ErrorCode.BAD_REQUEST, f"silo {place.index} is not among the {len(declared)} that declared users")
        if config.privacy.mode == "none" and not place.allow_unprotected:
            raise Refusal(ErrorCode.POLICY_REFUSED, "privacy.mode = 'none': this silo does not answer without protection")
        if config.privacy.mode != "none" and place.folder is None:
            raise Refusal(ErrorCode.POLICY_REFUSED, "there is no folder for the journal: a budget must outlive the process")
        self.config, self.place = config, place
        self.plan: PrivacyPlan = plan_for(config, declared[place.index], min(declared))
        self._data: Any = None

    def enrol(self, request: Request) -> Fields:
        """Say which silo this is."""
        check_request(request, self.config)
        return {"silo": self.place.index, "protocol": PROTOCOL_VERSION}

    def count(self, request: Request) -> Fields:
        """Protected interactions per item, float32 ``(n_items,)``."""
        from client.trainer import release_counts

        check_request(request, self.config)
        return {
            "count": self._once(
                COUNT,
                request.config_hash,
                self.plan.count_event(),
                lambda: release_counts(self.data, self.config, self.plan),
            )
        }

    def train(self, request: TrainRequest) -> Fields:
        """Protected change of the adapter after local training, float32 ``(n_parameters,)``."""
        from client.trainer import train_round
        from common.model.adapter import from_vector
        from common.model.resident import resident

        home = resident(self.config)
        check_train_request(request, self.config, home.manifest.hash, home.manifest.n_parameters)

        def update() -> NDArray[np.float32]:
            from_vector(home.model, request.vector, home.manifest)
            seed = silo_seed(self.config.run.seed, self.place.index, request.round)
            result = train_round(home.model, self.data, self.config, self.plan, round_number=request.round, silo_seed=seed)
            return result.update

        asked = f"{request.config_hash}/{request.round}/{hashlib.sha256(request.vector.tobytes()).hexdigest()}"
        return {"update": self._once(TRAIN, asked, self.plan.train_event(request.round), update)}

    @property
    def data(self) -> Any:
        """The silo's ``SiloData``, read on first use."""
        if self._data is None:
            from client.trainer import SiloData
            from common.data.population import load_population, own_data
            from common.model.resident import resident

            if self.place.data is not None:
                dataset, mask = own_data(self.config, self.place.data)
            else:
                population = load_population(self.config)
                dataset, mask = population.training_data(self.place.index), population.item_mask(self.place.index)
            tokenizer = resident(self.config).model.tokenizer if self.config.model.user_text else None
            self._data = SiloData.from_dataset(dataset, self.config, mask, tokenizer)
        return self._data

    @data.setter
    def data(self, data: Any) -> None:
        """Put other data in the place of the silo's part of the population: for simulations that compare."""
        self._data = data

    def _once(self, action: str, asked: str, event: Event, compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """The answer that was given to the same question before; else charge, compute and keep it."""
        folder = self.place.folder
        if folder is None:
            return compute()
        path = folder / f"{action.replace('.', '-')}.released.safetensors"
        before = _read_released(path, asked) if self.config.privacy.mode != "none" else None
        if before is not None:
            return before
        self._charge(Journal(folder / "journal.jsonl"), event)
        answer = compute()
        if self.config.privacy.mode != "none":
            _write_released(path, asked, answer)
        return answer

    def _charge(self, journal: Journal, event: Event) -> None:
        """Spend ``event`` if the run's budget has room for it.

        The bound is the one that calibrated the noise: a run's parameters are fixed before it starts, so both are valid.
        """
        if self.config.privacy.mode != "none":
            after = epsilon([*journal.events, event], self.plan.delta, self.config.privacy.accountant)
            if not after <= self.plan.epsilon * (1 + ROUNDING):
                spent = epsilon(journal.events, self.plan.delta, self.config.privacy.accountant)
                raise Refusal(
                    ErrorCode.BUDGET_EXHAUSTED,
                    f"silo {self.place.index}: epsilon would be {_number(after)} after this release, the budget is "
                    f"{self.plan.epsilon:g} at delta = {self.plan.delta:g}, {_number(spent)} is spent ({journal.path})",
                )
        journal.charge(event)


def open_silo(config: Config, place: Place) -> Silo:
    """The silo at ``place``; the process keeps it open, with its data, for the next message of the same run."""
    key = (config_hash(config), place)
    if key not in _OPEN:
        for other in [known for known in _OPEN if known[0] != key[0]]:
            del _OPEN[other]
        _OPEN[key] = Silo(config, place)
    return _OPEN[key]


_OPEN: dict[tuple[str, Place], Silo] = {}


def _read_released(path: Path, asked: str) -> NDArray[np.float32] | None:
    """What lies at ``path`` if it answers the same question; a damaged file answers nothing, which costs budget, not privacy."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if json.loads((file.metadata() or {}).get("silorec", "{}")).get("asked") == asked:
                return np.asarray(file.get_tensor("answer"))
    except (SafetensorError, OSError, ValueError):
        return None
    return None


def _write_released(path: Path, asked: str, answer: NDArray[np.float32]) -> None:
    from safetensors.numpy import save

    from common.durable import write_durably

    write_durably(path, save({"answer": np.ascontiguousarray(answer)}, {"silorec": json.dumps({"asked": asked})}))


def _number(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.4g}"
