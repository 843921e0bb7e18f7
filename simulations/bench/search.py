"""What an index saves in a large catalogue, beside scoring every item, and what it misses.

Both are timed in turn on the same fresh histories, none of which the index was measured with, on one thread. What is timed is the
engine's whole call, the model included, in seconds of the processor: on a machine that does nothing else that is the time that
passes, on another it is what would pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from simulations.bench import Figure, register
from simulations.bench.made_up_shop import DIM, PER_CLUSTER, SPREAD, MadeUpShop
from simulations.watch import Watch

ITEMS, REPEATS = 1_000_000, 300

SMALLER = {"10k items": 10_000, "100k items": 100_000, "200k items": 200_000}
"""Catalogues that show from where on an index pays."""

WHOLE = "whole catalogue"
K, MANY = 10, 100

COPY_MOST = 2**30
"""Largest float32 copy of the vectors that is made to compare with."""


@register("search")
def search(out: Path, watch: Watch, *, items: int = ITEMS, repeats: int = REPEATS) -> list[Figure]:
    """Exact and approximate search in 1,000,000 clustered items: milliseconds, recall, memory, and the same for smaller ones."""
    import psutil
    from threadpoolctl import threadpool_limits

    if items < 1000 or repeats < 1:
        raise ConfigError("search is measured in 1,000 items or more, with one history or more")
    figures = [Figure("items in the whole catalogue", items, "", f"{DIM} columns, clusters of {PER_CLUSTER}, spread {SPREAD:g}")]
    with threadpool_limits(1):
        for label, size in ({name: size for name, size in SMALLER.items() if size < items} | {WHOLE: items}).items():
            figures += _at(label, size, repeats, watch)
        figures.append(Figure("memory of the process at the end", psutil.Process().memory_info().rss / 2**20, "MiB", "resident"))
    return figures


def _at(label: str, size: int, repeats: int, watch: Watch) -> list[Figure]:
    import psutil

    from common.engine import Engine

    watch.stage(f"{size:,} items: making them up")
    shop = MadeUpShop.of(size)
    process = psutil.Process()
    before, wall, processor = process.memory_info().rss, time.perf_counter(), time.process_time()
    watch.stage(f"{size:,} items: building the index", 100)
    engine = Engine(shop.bundle, search="approximate", progress=lambda what, share: watch.step(round(100 * share), what))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    grown = process.memory_info().rss - before
    exact = Engine(shop.bundle, search="exact")
    histories = shop.histories(repeats, seed=1)
    figures = [
        Figure(f"vectors, {label}", shop.bundle.items.vectors.nbytes / 2**20, "MiB", "int8, in the bundle"),
        Figure(f"building, {label}", wall, "s", f"{processor:.0f} s of the processor; drawing histories and measuring included"),
    ]
    calls: dict[str, Callable[[list[int]], object]] = {"exact": lambda history: exact.top([history], K)}
    if engine.index is not None:
        index, efforts = engine.index, ", ".join(f"{depth.cells} for {depth.count}" for depth in engine.index.facts.depths)
        calls |= {"approximate": lambda history: engine.top([history], K)}
        calls |= {f"approximate, {MANY} wanted": lambda history: engine.top([history], MANY)}
        note = f"{grown / 2**20:.0f} MiB more are resident; cells, of {index.facts.n_cells}: {efforts}"
        figures.append(Figure(f"index, {label}", index.nbytes / 2**20, "MiB", note))
        figures.append(Figure(f"recall@{K} by itself, {label}", index.recall, "", f"{index.facts.queries} drawn histories"))
        figures += _recalls(label, engine.top, exact.top, histories)
    figures.append(_popular(label, exact.top(histories, K)[0], shop.bundle.items.biases))
    if 4 * shop.bundle.items.vectors.size <= COPY_MOST:
        calls |= {"exact with a float32 copy": _over_a_copy(shop)}
    watch.stage(f"{size:,} items: {repeats} histories", repeats)
    return figures + _times(label, calls, histories, watch)


def _times(label: str, calls: dict[str, Callable[[list[int]], object]], histories: list[list[int]], watch: Watch) -> list[Figure]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    passed: dict[str, list[float]] = {name: [] for name in calls}
    for done, history in enumerate([histories[0], *histories]):
        for name, call in calls.items():  # in turn, so that what else the machine does meets them all
            began, clock = time.thread_time(), time.perf_counter()
            call(history)
            seconds[name].append(time.thread_time() - began)
            passed[name].append(time.perf_counter() - clock)
        watch.step(done)
    p50 = {name: 1e3 * median(values[1:]) for name, values in seconds.items()}  # the first one warms up
    figures = [
        Figure(f"{name}, {label}", value, "ms", f"p50 of {len(histories)}; {1e3 * median(passed[name][1:]):.2f} ms passed")
        for name, value in p50.items()
    ]
    if "approximate" in p50:
        best = min(value for name, value in p50.items() if name.startswith("exact"))
        figures.append(
            Figure(f"exact over approximate, {label}", best / p50["approximate"], "times", "the faster of the exact ones")
        )
    return figures


Top = Callable[[Sequence[Sequence[int]], int], tuple[NDArray[np.int32], NDArray[np.float32]]]


def _recalls(label: str, approximate: Top, exact: Top, histories: list[list[int]]) -> list[Figure]:
    from common.engine.approximate import recall

    figures = []
    for k in (K, MANY):
        shares = recall(approximate(histories, k)[0], exact(histories, k)[0])
        note = f"{len(shares)} fresh histories, standard error {shares.std() / len(shares) ** 0.5:.4f}"
        figures.append(Figure(f"recall@{k}, {label}", float(shares.mean()), "", note))
    return figures


def _popular(label: str, answers: NDArray[np.int32], biases: NDArray[np.float32]) -> Figure:
    """How much of the answers is what everybody gets: an index that finds only that would be of no use."""
    hits = biases >= np.quantile(biases, 0.99)
    return Figure(f"most popular hundredth in answers, {label}", float(hits[answers].mean()), "", f"share of the best {K}")


def _over_a_copy(shop: MadeUpShop) -> Callable[[list[int]], object]:
    """What exact search would be with all vectors widened beforehand: the model, one product, the best."""
    from common.engine.queries import QueryModel
    from common.engine.search import top_of

    model, items = QueryModel(shop.bundle.scoring), shop.bundle.items
    wide = items.rows(np.arange(len(items)))

    def call(history: list[int]) -> object:
        scores = wide @ model.queries(*model.padded([history]))[0]
        scores += items.biases
        return top_of(scores, K)

    return call
