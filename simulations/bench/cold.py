"""Whether an item that nobody has met is recommended when its text fits, by language model.

A tenth of MovieLens-100K is cold (:mod:`simulations.cold_items`). Each model is trained on the rest by the scenario
``ml-100k-reference``, distilled and bundled; ``add-items`` gives the cold items their places in the bundle from their texts, and
its engine is asked for what people met next. Every case's target is a cold item. It competes with the whole catalogue, what the
person has met left out, or with the other cold items alone.

Beside the models: texts alone, that is the cosine to the mean text of the person's last items, without any training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.bundle.contents import Bundle
from common.bundle.files import read_bundle
from common.data.population import load_population
from common.data.readers.columns import ColumnMapping
from common.data.readers.reading import Reading
from common.data.readers.table_items import read_items
from common.engine import Engine
from common.errors import ConfigError
from common.metrics import Evaluation, evaluate
from server.adding import add_items
from server.bundle_cli import KEY, signing_key
from server.bundling import make_bundle
from simulations.bench import Figure, register
from simulations.bench.student import is_finished
from simulations.cold_items import INTERACTIONS, ITEMS, NEW_ITEMS, ColdSplit, hold_out, write_files
from simulations.linkage.matching import interval
from simulations.run import simulate
from simulations.scenario import load_scenario
from simulations.student import told_by
from simulations.watch import Watch

SCENARIO = "ml-100k-reference"
SHARE, SEED = 0.1, 0
K, K_COLD = 50, 10
"""Length of the list that is judged, among all items and among the cold ones alone."""

BACKBONES: dict[str, tuple[str, ...]] = {
    "tiny-llama": ("federation.rounds=8",),
    "minilm": ("federation.rounds=8",),
    "smollm2-135m": (
        "federation.rounds=4",
        "federation.server_averaging=0.0",
        "training.local_epochs=1",
        "model.lora_layers=4",
        "distillation.histories=1500",
    ),
}
"""Language models, and what is set for each beside the scenario: the larger one is trained as long as two cores allow."""

TEXT_ALONE = "texts alone"


@register("cold")
def cold(out: Path, watch: Watch, *, backbones: str = " ".join(BACKBONES)) -> list[Figure]:
    """Hit rate of items that were held out of training altogether, by --backbones; an hour with all three."""
    wanted = backbones.replace(",", " ").split()
    if unknown := [name for name in wanted if name not in BACKBONES]:
        raise ConfigError(f"no settings for backbone {unknown[0]!r}; there are: {', '.join(BACKBONES)}")
    split = hold_out(load_population(load_scenario(SCENARIO)).dataset, SHARE, SEED)
    data = out / "data"
    write_files(split, data)
    figures = [
        Figure("items", float(len(split.cold))),
        Figure("cold items", float(split.cold.sum()), "", "nowhere in what is trained on"),
        Figure("cases", float(len(split.cases)), "", "one of each person who met a cold item"),
    ]
    for name in wanted:
        run = trained(name, data, out / "runs", watch)
        watch.stage(f"{name}: bundle")
        bundle = with_new_items(run, data / NEW_ITEMS, out / f"{name}.bundle", watch)
        if name == wanted[0]:
            figures += judged(TEXT_ALONE, split, bundle, text_scores(split, bundle))
        engine = Engine(bundle, search="exact")
        figures += judged(name, split, bundle, engine.scores([history.tolist() for history in _histories(split, bundle)]))
    return figures


def trained(name: str, data: Path, runs: Path, watch: Watch) -> Path:
    """The run's folder; one that is there and finished is taken as it is."""
    run = runs / name
    if not is_finished(run):
        settings = (
            f"name={name}",
            f"model.backbone={name}",
            f"data.source={data / INTERACTIONS}",
            f"data.columns.items={ITEMS}",
            "evaluation.references=[]",
            *BACKBONES[name],
        )
        watch.say(f"training {name}")
        simulate(SCENARIO, overrides=settings, out=runs, watch=watch, resume=run.is_dir())
    return run


def with_new_items(run: Path, items: Path, path: Path, watch: Watch) -> Bundle:
    """The bundle of a run at ``path``, to which the table of ``items`` was added."""
    key = signing_key(path.parent / KEY)
    make_bundle(run, path, key, told=told_by(watch))
    add_items(read_bundle(path, {key.public_key}), read_items(items, ColumnMapping({}), Reading()), path, key)
    return read_bundle(path, {key.public_key})


def judged(name: str, split: ColdSplit, bundle: Bundle, scores: NDArray[np.floating]) -> list[Figure]:
    """Figures of scores ``(n_cases, n_items)``, items as in the bundle."""
    everything, among_cold = ranked(split, bundle, scores)
    figures = []
    for evaluation, k, place in ((everything, K, "all items"), (among_cold, K_COLD, "cold items alone")):
        hits, chance = evaluation.hit_rate(k), np.minimum(1.0, k / evaluation.candidates).mean()
        low, high = interval(float(hits.mean()), len(hits))
        note = f"95 %: {low:.3f} to {high:.3f}; at random {chance:.4f}"
        figures += [
            Figure(f"{name}: hr@{k} among {place}", float(hits.mean()), "", note),
            Figure(f"{name}: hr@{k} among {place}, over random", float(hits.mean() / chance), "times"),
        ]
    cold_ones = places(split, bundle)[split.cold]
    share, note = np.isin(everything.lists, cold_ones).mean(), f"they are {len(cold_ones)} of {everything.n_items}"
    return [*figures, Figure(f"{name}: cold items among the first {K}", float(share), "", note)]


def ranked(split: ColdSplit, bundle: Bundle, scores: NDArray[np.floating]) -> tuple[Evaluation, Evaluation]:
    """Where each case's target came out among all items, and among the cold ones."""
    at = places(split, bundle)
    among = np.ones((2, len(bundle.items)), dtype=np.bool_)
    among[1] = False
    among[1, at[split.cold]] = True
    targets = np.array([at[case.target] for case in split.cases])
    met = [at[case.met] for case in split.cases]

    def part(which: int) -> Evaluation:
        assortment = np.full(len(targets), which)
        return evaluate(scores, targets, met, depth=K, assortments=among, assortment_of=assortment)

    return part(0), part(1)


def text_scores(split: ColdSplit, bundle: Bundle) -> NDArray[np.float32]:
    """Cosine between each item's text and the mean text of each case's last items, ``(n_cases, n_items)``."""
    text = bundle.items.rows(np.arange(len(bundle.items)))[:, : bundle.items.text_dim]
    text /= np.maximum(np.linalg.norm(text, axis=1, keepdims=True), 1e-12)
    means = np.stack([text[history[-bundle.card.model.window :]].mean(0) for history in _histories(split, bundle)])
    return np.asarray(means @ text.T, dtype=np.float32)


def places(split: ColdSplit, bundle: Bundle) -> NDArray[np.int64]:
    """Positions in the bundle of the data set's items, ``(n_items,)``."""
    return np.array([bundle.catalogue.index[name] for name in split.dataset.catalogue.ids])


def _histories(split: ColdSplit, bundle: Bundle) -> list[NDArray[np.int64]]:
    at = places(split, bundle)
    return [at[case.history] for case in split.cases]
