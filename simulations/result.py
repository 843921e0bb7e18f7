"""``result.json``: what a run came to, described in ``docs/results.md``."""

from __future__ import annotations

import math
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.place import LEDGER
from common.config import Config
from common.metrics import Evaluation, top_k
from common.privacy.accountant import Method, epsilon, epsilon_if_others_collude
from common.privacy.audit.trust import Sharing
from common.privacy.events import Event
from common.privacy.ledger import read_ledger
from common.privacy.plan import PrivacyPlan, delta_for, plan_for
from common.report.words import epsilon as rounded_up
from common.report.words import small
from common.secagg.rules import Rules
from simulations.evaluate import Evaluator

SCHEMA = 1
PACKAGES = (
    "silorec", "torch", "transformers", "peft", "opacus", "flwr", "dp-accounting", "numpy", "implicit", "scikit-learn",
)  # fmt: skip


@dataclass(frozen=True)
class Spent:
    """What the silos' ledgers say, at the run's delta.

    ``per_silo`` holds each silo's epsilon; None where it is unbounded, as in mode ``none``. ``left`` holds the same if all other
    silos collude with the coordinator, which is more in mode ``distributed`` only.
    """

    per_silo: tuple[float | None, ...]
    left: tuple[float | None, ...] = ()

    @property
    def epsilon(self) -> float | None:
        """The largest of all silos."""
        return _largest(self.per_silo)

    @property
    def epsilon_if_others_collude(self) -> float | None:
        """The largest of all silos."""
        return _largest(self.left)


def spent_in(config: Config, folder: Path, method: Method = "rdp") -> Spent:
    """Epsilon of everything that each silo's ledger in this run's folder has reserved."""
    declared = config.federation.declared_users
    delta = delta_for(config, declared)
    seen: list[float | None] = []
    left: list[float | None] = []
    for silo in range(len(declared)):
        path = folder / "silos" / str(silo) / LEDGER
        events = tuple(what.released for _, what in read_ledger(path).reservations) if path.exists() else ()
        seen.append(finite(_epsilon(events, delta, method)))
        left.append(finite(_epsilon_left(events, delta, method)) if config.privacy.mode == "distributed" else seen[-1])
    return Spent(tuple(seen), tuple(left))


@lru_cache(maxsize=256)
def _epsilon(events: tuple[Event, ...], delta: float, method: Method) -> float:
    return epsilon(events, delta, method)


@lru_cache(maxsize=256)
def _epsilon_left(events: tuple[Event, ...], delta: float, method: Method) -> float:
    return epsilon_if_others_collude(events, delta, method)


def _largest(values: tuple[float | None, ...]) -> float | None:
    """None where one is unbounded, or there is none."""
    known = [value for value in values if value is not None]
    return max(known, default=None) if len(known) == len(values) else None


def assemble(
    config: Config,
    folder: Path,
    evaluator: Evaluator,
    *,
    selected: tuple[int, NDArray[np.float32]],
    validation: Evaluation,
    test: Evaluation,
    before: Evaluation,
    references: list[dict[str, Any]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The whole of ``result.json``; all numbers in it are finite or null."""
    settings, declared = config.evaluation, config.federation.declared_users
    dataset = evaluator.population.dataset
    private = config.privacy.mode != "none"
    plan = plan_for(config, min(declared), min(declared))
    spent, spent_pld = spent_in(config, folder), spent_in(config, folder, "pld")
    result = {
        "schema": SCHEMA,
        "name": config.name,
        "status": facts["status"],
        "mode": config.privacy.mode,
        "statement": statement(config, plan, spent.epsilon, spent.epsilon_if_others_collude),
        "epsilon": spent.epsilon if private else None,
        "epsilon_pld": spent_pld.epsilon if private else None,
        "delta": plan.delta if private else None,
        **_sharing(config, spent, spent_pld),
        "k": settings.k,
        "dataset": {
            "name": dataset.name,
            "users": dataset.interactions.n_users,
            "items": len(dataset.catalogue),
            "interactions": len(dataset.interactions),
        },
        **figures(config, test),
        "confidence": settings.confidence,
        "validation": validation.summary(settings.k),
        "before_training": before.summary(settings.k),
        "released_metrics": dict(facts.get("released_metrics", {})) or None,
        "selected_round": selected[0],
        "selection": settings.select,
        "rounds": facts["rounds"],
        "rounds_planned": config.federation.rounds,
        "silos": _silos(config, evaluator, test, spent, spent_pld, plan),
        "references": references,
        "examples": examples(config, evaluator, selected[1]),
        "parameters": evaluator.manifest.n_parameters,
        "backbone": config.model.backbone,
        "seed": config.run.seed,
        "grid": facts["grid"],
        "seconds": facts["seconds"],
        "seconds_by_part": dict(facts["seconds_by_part"]),
        "peak_rss_mb": peak_rss_mb(),
        "versions": versions(),
    }
    return finite(result)


def figures(config: Config, evaluation: Evaluation) -> dict[str, Any]:
    """Metrics and their bootstrap intervals, as they stand in the result and in each line of its tables."""
    settings = config.evaluation
    out: dict[str, Any] = dict(evaluation.summary(settings.k))
    out.pop("users")
    if settings.bootstrap:
        intervals = evaluation.intervals(
            settings.k, resamples=settings.bootstrap, confidence=settings.confidence, seed=config.run.seed
        )
        out["intervals"] = {name: list(pair) for name, pair in intervals.items()}
    return out


def statement(config: Config, plan: PrivacyPlan, spent: float | None, left: float | None = None) -> str:
    """The run's guarantee in one sentence, for people; in mode ``distributed`` in three.

    Parameters
    ----------
    spent, left:
        Epsilon, and the same if all other silos collude with the coordinator, which is told in mode ``distributed`` only.
    """
    if config.privacy.mode == "none" or spent is None:
        return "This run protects nobody: no noise was added to updates and counts. Use it for reference only."
    protected = (
        f"Each user of each silo is protected by differential privacy with epsilon = {rounded_up(spent)} and "
        f"delta = {small(plan.delta)} over the whole run (one user added or removed, all their interactions)"
    )
    if config.privacy.mode == "distributed":
        return f"{protected}. {Sharing(plan.honest, Rules.of(config).corrupted, left).in_words}"
    return f"{protected}, against everybody who sees what leaves the silo, the coordinator included."


def examples(
    config: Config, evaluator: Evaluator, vector: NDArray[np.float32], n: int = 4, length: int = 3
) -> list[dict[str, Any]]:
    """Recommendations for made-up histories: well-known items of a few public categories. No real user's history is shown."""
    catalogue = evaluator.population.dataset.catalogue
    matrix, names = catalogue.category_matrix()
    bias = vector[evaluator.manifest.slice("bias.weight")]
    groups = [(names[c], np.flatnonzero(matrix[:, c])) for c in np.argsort(-matrix.sum(0), kind="stable")]
    histories: list[tuple[str, NDArray[np.int32]]] = []
    used: set[int] = set()
    for name, items in groups or [("catalogue", np.arange(len(catalogue)))]:
        best = [int(i) for i in items[np.argsort(-bias[items], kind="stable")] if int(i) not in used][:length]
        if len(best) == length and len(histories) < n:
            histories.append((name, np.array(best, dtype=np.int32)))
            used.update(best)
    if not histories:
        return []
    scores = evaluator.scores_of([history for _, history in histories], vector)
    out = []
    for (name, history), row in zip(histories, scores, strict=True):
        allowed = np.ones(len(catalogue), dtype=np.bool_)
        allowed[history] = False
        best_items = top_k(row[None], min(5, len(catalogue) - len(history)), allowed[None])[0]
        out.append(
            {
                "title": name,
                "history": [catalogue.titles[int(i)] for i in history],
                "recommendations": [catalogue.titles[int(i)] for i in best_items if i >= 0],
            }
        )
    return out


def finite(value: Any) -> Any:
    """``value`` with every NaN and infinity replaced by None, and NumPy's numbers by Python's: JSON has neither."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    out = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MB (10^6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _silos(
    config: Config, evaluator: Evaluator, test: Evaluation, spent: Spent, spent_pld: Spent, plan: PrivacyPlan
) -> list[dict[str, Any]]:
    groups = test.by_group(evaluator.silo)
    private = config.privacy.mode != "none"
    out = []
    for number, silo in enumerate(evaluator.population.partition.silos):
        measured = groups.get(number)
        out.append(
            {
                "name": silo.name,
                "declared_users": config.federation.declared_users[number],
                "users": 0 if measured is None else len(measured),
                **({} if measured is None else figures(config, measured)),
                "epsilon": spent.per_silo[number] if private else None,
                "epsilon_pld": spent_pld.per_silo[number] if private else None,
                **_left(config, number, spent, spent_pld),
                "noise_multiplier": plan.noise_multiplier,
            }
        )
    return out


def _sharing(config: Config, spent: Spent, spent_pld: Spent) -> dict[str, Any]:
    """What a run of mode ``distributed`` says beside epsilon: on whose noise it counts, and what is left without."""
    if config.privacy.mode != "distributed":
        return {}
    rules = Rules.of(config)
    return {
        "epsilon_if_others_collude": spent.epsilon_if_others_collude,
        "epsilon_pld_if_others_collude": spent_pld.epsilon_if_others_collude,
        "honest_silos": rules.honest,
        "colluding_silos": rules.corrupted,
    }


def _left(config: Config, silo: int, spent: Spent, spent_pld: Spent) -> dict[str, Any]:
    if config.privacy.mode != "distributed":
        return {}
    return {"epsilon_if_others_collude": spent.left[silo], "epsilon_pld_if_others_collude": spent_pld.left[silo]}
