"""The reference recommenders of a run, in the same table under the same protocol.

Besides the classical ones (``simulations.baselines``) there are two of our own model: ``local-only``, each silo training alone
for its own users, and ``centralised``, all users in one place. Both keep the run's mode and its budget.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import Config, load, to_dict, to_run_config
from common.data.interactions import Dataset
from common.data.partition import declare_users
from common.errors import ConfigError
from common.logs import errors_only
from common.metrics import Evaluation
from common.model.resident import resident
from simulations.baselines import create
from simulations.baselines import names as classical
from simulations.evaluate import Evaluator
from simulations.result import figures
from simulations.watch import Watch

TITLES = {
    "popularity": "Popularity",
    "item-knn": "Item kNN",
    "ease": "EASE",
    "als": "ALS",
    "bpr": "BPR",
    "tf-idf": "TF-IDF content",
    "sasrec": "SASRec, full softmax",
    "local-only": "silorec, each silo alone",
    "centralised": "silorec, all data in one place",
}


#: Mode ``silo``, all else as in mode ``distributed``: one step of each silo a round, whose update is the opposite of its
#: mean gradient.
AS_MODE_SILO: dict[str, Any] = {
    "privacy.mode": "silo",
    "training.optimizer": "sgd",
    "training.learning_rate": 1.0,
    "training.weight_decay": 0.0,
}


def check_references(config: Config) -> None:
    """Raises :class:`ConfigError` for a reference recommender that there is not: before hours of training, not after."""
    known = (*classical(), *_OWN)
    for name in config.evaluation.references:
        if name not in known:
            raise ConfigError(f"evaluation.references: unknown recommender {name!r}; there are: {', '.join(known)}")


def compare(config: Config, evaluator: Evaluator, watch: Watch) -> list[dict[str, Any]]:
    """One entry per configured reference: name, title, test metrics with intervals, seconds."""
    names = config.evaluation.references
    watch.stage("reference recommenders", len(names))
    out = []
    for done, name in enumerate(names):
        watch.step(done, TITLES.get(name, name))
        began = time.monotonic()
        make = _OWN.get(name)
        evaluation = _classical(name, config, evaluator) if make is None else make(config, evaluator)
        entry = {"name": name, "title": TITLES.get(name, name), **figures(config, evaluation)}
        entry["seconds"] = time.monotonic() - began
        out.append(entry)
    watch.step(len(names))
    return out


def _classical(name: str, config: Config, evaluator: Evaluator) -> Evaluation:
    reference = create(name)
    population = evaluator.population
    vectors = evaluator.model.item_vectors.cpu().numpy()
    reference.fit(population.split.train.histories(), population.dataset.catalogue, vectors, seed=config.run.seed)
    histories = evaluator.histories("test")
    blocks = [reference.score(histories[i : i + 1024]) for i in range(0, len(histories), 1024)]
    return evaluator.rank(np.concatenate(blocks), "test")


def _local_only(config: Config, evaluator: Evaluator) -> Evaluation:
    """Each silo's own run, judged on its own users only."""
    n_silos = len(config.federation.declared_users)
    alone = load(to_dict(_apart(config)), {"federation.quorum": 1.0 / n_silos, "federation.deadline": 1e-6})
    histories = evaluator.histories("test")
    scores: NDArray[np.float32] | None = None
    for silo in range(n_silos):
        own = np.flatnonzero(evaluator.silo == silo)
        if not len(own):
            continue
        vector = _train(alone, [silo], evaluator)
        block = evaluator.scores_of([histories[i] for i in own], vector, own)
        if scores is None:
            scores = np.zeros((len(histories), block.shape[1]), dtype=np.float32)
        scores[own] = block
    assert scores is not None
    return evaluator.rank(scores, "test")


def _centralised(config: Config, evaluator: Evaluator) -> Evaluation:
    """One silo that holds everybody: the silos' own training rows, and no row that the federation could not learn from."""
    population = evaluator.population
    declared = [declare_users(population.dataset.interactions.n_users)]
    merged = load(to_dict(_apart(config)), {"partition.by": "size", "partition.silos": 1, "federation.declared_users": declared})
    vector = _train(merged, [0], evaluator, replace(population.dataset, interactions=population.split.train))
    return evaluator.rank(evaluator.scores(vector, evaluator.histories("test")), "test")


def _apart(config: Config) -> Config:
    """The same training where a silo is by itself: nothing to hide it among, and nobody to share its noise with."""
    changes: dict[str, Any] = {"aggregation.method": "plain"}
    if config.privacy.mode == "distributed":
        changes |= AS_MODE_SILO
        if config.federation.server_optimizer == "adam-bc":  # which needs to know the noise in the sum
            changes["federation.server_optimizer"] = "adam"
    return load(to_dict(config), changes)


_OWN: dict[str, Callable[[Config, Evaluator], Evaluation]] = {"local-only": _local_only, "centralised": _centralised}


def _train(config: Config, silos: list[int], evaluator: Evaluator, data: Dataset | None = None) -> NDArray[np.float32]:
    """The adapter after a federation in which only ``silos`` take part; the round is selected as in the run itself.

    With ``data`` these are the silo's, in place of its part of the population.
    """
    from client.app import app as client_app
    from client.place import Place
    from client.silo import open_silo
    from client.silo_data import SiloData
    from server.app import start_of
    from server.exchange import Roster
    from server.federation import RoundReport, run_federation
    from simulations.grid import InProcessGrid

    model = resident(config).model
    evaluation, rounds = config.evaluation, config.federation.rounds
    best: tuple[float, NDArray[np.float32]] | None = None

    def on_round(report: RoundReport) -> None:
        nonlocal best
        if evaluation.select != "validation" or (report.round < rounds and report.round % evaluation.every):
            return
        ndcg = evaluator.judge(report.vector, "validation").evaluation.ndcg(evaluation.k)
        own = np.isin(evaluator.silo, silos) if len(config.federation.declared_users) > 1 else np.ones(len(ndcg), dtype=np.bool_)
        quality = float(ndcg[own].mean())
        if best is None or quality > best[0]:
            best = quality, report.vector

    nodes = {place: {"partition-id": silo} for place, silo in enumerate(silos)}
    with (
        tempfile.TemporaryDirectory(prefix="silorec-") as folder,
        errors_only("silorec.server"),
    ):  # silos that were left out do not answer
        if data is not None:
            open_silo(config, Place.of(nodes[0], folder)).data = SiloData.from_dataset(data, config, None, model.tokenizer)
        grid = InProcessGrid(client_app, len(silos), to_run_config(config) | {"app.out": folder}, node_configs=nodes)
        roster = Roster.of(config.federation)
        result = run_federation(grid, config, start_of(config), roster, folder=Path(folder), on_round=on_round)
    return result.vector if best is None else best[1]
