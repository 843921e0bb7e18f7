"""Mode ``distributed`` beside mode ``silo``: the noise in a sum, and what it costs in quality, at the same epsilon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import Config, load, to_dict, to_run_config
from common.metrics import Evaluation
from simulations.bench import Figure, register
from simulations.compare import AS_MODE_SILO
from simulations.watch import Watch

Seen = Callable[[int, NDArray[np.float32]], None]


@register("distributed")
def distributed(out: Path, watch: Watch) -> list[Figure]:
    """Noise of a sum and NDCG@10 in modes silo and distributed, epsilon 8: 8 silos, 20,000 made-up users; some 15 minutes."""
    from common.data.population import enrolled, load_population
    from common.model.resident import resident
    from simulations.evaluate import Evaluator
    from simulations.scenario import load_scenario

    watch.stage("reading data")
    shared = enrolled(load_scenario("distributed"))
    alone = load(to_dict(shared), AS_MODE_SILO)
    home = resident(shared)
    evaluator = Evaluator(shared, load_population(shared), home.model, home.manifest)
    figures = [
        Figure("users", float(sum(shared.federation.declared_users)), "", "as declared"),
        Figure("silos", float(len(shared.federation.declared_users))),
        Figure("parameters", float(home.manifest.n_parameters)),
    ]
    with TemporaryDirectory(prefix="silorec-") as folder:
        noise = {
            mode: noise_of(config, Path(folder) / f"noise-{mode}") for mode, config in (("silo", alone), ("distributed", shared))
        }
        figures += [Figure(f"noise of a mean gradient, {mode}", std, "", "standard deviation") for mode, std in noise.items()]
        figures.append(Figure("noise, silo over distributed", noise["silo"] / noise["distributed"], "times"))
        quality: dict[str, Evaluation] = {}
        for mode, config in (("silo", alone), ("distributed", shared)):
            watch.stage(f"training, mode {mode}", config.federation.rounds)
            adapters: list[NDArray[np.float32]] = []
            trained(config, Path(folder) / mode, partial(_keep, adapters, watch))
            quality[f"{mode} before training"] = evaluator.judge(adapters[0], "test").evaluation
            quality[mode] = evaluator.judge(adapters[-1], "test").evaluation
    k = shared.evaluation.k
    ndcg = {name: float(evaluation.ndcg(k).mean()) for name, evaluation in quality.items()}
    figures += [Figure(f"ndcg@{k}, {name}", value) for name, value in ndcg.items()]
    figures.append(Figure(f"ndcg@{k}, distributed over silo", ndcg["distributed"] / ndcg["silo"], "times"))
    return figures


def _keep(adapters: list[NDArray[np.float32]], watch: Watch, number: int, vector: NDArray[np.float32]) -> None:
    adapters.append(vector)
    watch.step(number)


def trained(config: Config, folder: Path, seen: Seen) -> NDArray[np.float32]:
    """The adapter after all rounds, float32 ``(n_parameters,)``; ``seen`` gets the number and the adapter of each."""
    from server.app import start_of
    from server.exchange import Roster
    from server.federation import run_federation

    grid, keys = _silos(config, folder)
    roster = Roster.of(config.federation)
    result = run_federation(
        grid,
        config,
        start_of(config),
        roster,
        folder=folder,
        key_roster=keys,
        on_round=lambda report: seen(report.round, report.vector),
    )
    return result.vector


def noise_of(config: Config, folder: Path) -> float:
    """Standard deviation, over what is trained, of what the coordinator takes for the mean gradient when no silo has any user."""
    from client.place import Place
    from client.silo import open_silo
    from common.model.resident import resident
    from common.protocol import TRAIN, AdapterRequest, config_hash
    from server.aggregation import aggregation_of
    from server.app import start_of
    from server.exchange import Exchange, Roster
    from server.federation import pseudo_gradient

    grid, keys = _silos(config, folder)
    home, this = resident(config), config_hash(config)
    for index in range(len(config.federation.declared_users)):
        silo = open_silo(config, Place.of({"partition-id": index}, str(folder)))
        silo.data = replace(silo.data, histories=(), text=(), held_out=None)
    sums = aggregation_of(config, Exchange(grid, Roster.of(config.federation), config, this), keys, None)
    request = AdapterRequest(config_hash=this, round=1, manifest_hash=home.manifest.hash, vector=home.start)
    update, _ = pseudo_gradient(sums.ask(TRAIN, request, what="noise", length=len(home.start)), config)
    frozen = start_of(config).frozen
    return float(np.std(update if frozen is None else np.delete(update, frozen)))


def _silos(config: Config, folder: Path) -> Any:
    """A grid of simulated silos, and the roster of their keys."""
    from client.app import app
    from client.place import make_simulated_roster
    from simulations.grid import InProcessGrid

    folder.mkdir(parents=True, exist_ok=True)
    n_silos = len(config.federation.declared_users)
    grid = InProcessGrid(app, n_silos, to_run_config(config) | {"app.out": str(folder)})
    return grid, make_simulated_roster(folder, n_silos) if config.is_secure else None
