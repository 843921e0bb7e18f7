"""What noise from a cipher costs, beside the generators of PyTorch and NumPy, which are fast and can be computed again.

Whole-number noise is laid beside OpenDP's sampler, which is exact as well, where ``opendp`` is installed. silorec does not need
it.
"""

from __future__ import annotations

import importlib.util
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from simulations.bench import Figure, register
from simulations.watch import Watch

SIZES = {"150k": (150_000, 21), "10M": (10_000_000, 5)}
"""Numbers drawn, and how often. The first is an adapter of the demo's size."""

DEVIATION = 2**33
"""Of whole-number noise: about that of a share in mode ``distributed``."""

OPENDP_SIZE = 20_000

REFERENCE = "torch.normal, float64"
HARDENED, FAST = "hardened noise", "fast noise"
ROUNDED, FAST_ROUNDED = "hardened noise, added and rounded", "fast noise, added and rounded"
DISCRETE, OPENDP = "discrete Gaussian", "opendp.make_gaussian"
COINS, KERNEL_COINS = "poisson_mask", "coins of os.urandom"


@register("noise")
def noise(out: Path, watch: Watch) -> list[Figure]:
    """Nanoseconds per draw of noise and of coins on one thread, beside PyTorch, NumPy, OpenDP and the kernel, and memory."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures = [figure for label in SIZES for figure in _at(label, watch)]
        return figures + _beside_opendp({figure.name: figure.value for figure in figures}, watch)
    finally:
        torch.set_num_threads(threads)


def _at(label: str, watch: Watch) -> list[Figure]:
    n, rounds = SIZES[label]
    sources = _sources(n)
    watch.stage(f"{label} draws", rounds + 1)
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for done in range(rounds + 1):
        for name, draw in sources.items():  # in turn, so that what else the machine does meets them all
            began = time.perf_counter()
            draw()
            seconds[name].append(time.perf_counter() - began)
        watch.step(done + 1)
    cost = {name: median(values[1:]) for name, values in seconds.items()}  # the first round warms up
    note = f"median of {rounds}"
    alone = "" if _opendp_is_installed() else "; nothing beside it: opendp is not installed"
    figures = [
        Figure(f"{name}, {label}", 1e9 * value / n, "ns", note + (alone if name == DISCRETE else ""))
        for name, value in cost.items()
    ]
    for name, beside in ((HARDENED, REFERENCE), (FAST, REFERENCE), (ROUNDED, REFERENCE), (COINS, KERNEL_COINS)):
        figures.append(Figure(f"{name} over {beside}, {label}", cost[name] / cost[beside], "times", note))
    for name in (HARDENED, ROUNDED, DISCRETE):
        peak = _peak(sources[name]) - 8 * n
        figures.append(Figure(f"memory of {name}, {label}", peak / 2**20, "MiB", "at its peak, beside the result"))
    return figures


def _sources(n: int) -> dict[str, Callable[[], object]]:
    import torch

    from common.privacy.discrete import discrete_gaussian
    from common.privacy.noise import gaussian_noise, poisson_mask
    from common.privacy.rounding import add_gaussian_noise

    zeros, generator = np.zeros(n), np.random.default_rng()

    def kernel_coins() -> object:
        return np.frombuffer(os.urandom(8 * n), dtype=np.uint64) < np.uint64(2**62)

    return {
        HARDENED: lambda: gaussian_noise((n,), 1.0),
        FAST: lambda: gaussian_noise((n,), 1.0, hardened=False),
        ROUNDED: lambda: add_gaussian_noise(zeros, 1.0),
        FAST_ROUNDED: lambda: add_gaussian_noise(zeros, 1.0, hardened=False),
        REFERENCE: lambda: torch.normal(0.0, 1.0, (n,), dtype=torch.float64),
        "torch.normal, float32": lambda: torch.normal(0.0, 1.0, (n,)),
        "numpy Generator.normal": lambda: generator.normal(0.0, 1.0, n),
        DISCRETE: lambda: discrete_gaussian(n, DEVIATION**2),
        COINS: lambda: poisson_mask(n, 0.25),
        KERNEL_COINS: kernel_coins,
    }


def _opendp_is_installed() -> bool:
    return importlib.util.find_spec("opendp") is not None


def _beside_opendp(nanoseconds: dict[str, float], watch: Watch) -> list[Figure]:
    """OpenDP's sampler over vectors of i64, and its cost over ours at the first size; nothing where it is not installed."""
    if not _opendp_is_installed():
        return []
    import opendp.prelude as dp  # type: ignore[import-not-found]

    dp.enable_features("contrib")
    vectors = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T=float)
    draw, zeros = dp.m.make_gaussian(*vectors, scale=float(DEVIATION)), [0] * OPENDP_SIZE
    rounds, seconds = 3, []
    watch.stage(OPENDP, rounds + 1)
    for done in range(rounds + 1):
        began = time.perf_counter()
        draw(zeros)
        seconds.append(time.perf_counter() - began)
        watch.step(done + 1)
    cost, first = 1e9 * median(seconds[1:]) / OPENDP_SIZE, next(iter(SIZES))
    note = f"median of {rounds} times {OPENDP_SIZE:,} numbers"
    return [
        Figure(OPENDP, cost, "ns", note),
        Figure(f"{OPENDP} over {DISCRETE}, {first}", cost / nanoseconds[f"{DISCRETE}, {first}"], "times", note),
    ]


def _peak(draw: Callable[[], object]) -> int:
    """Bytes that Python and NumPy hold at most while ``draw`` runs, its result included."""
    tracemalloc.start()
    try:
        draw()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
