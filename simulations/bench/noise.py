"""What noise from a cipher costs, beside the generators of PyTorch and NumPy, which are fast and can be computed again."""

from __future__ import annotations

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

REFERENCE = "torch.normal, float64"
HARDENED, FAST = "hardened noise", "fast noise"
ROUNDED, FAST_ROUNDED = "hardened noise, added and rounded", "fast noise, added and rounded"
COINS, KERNEL_COINS = "poisson_mask", "coins of os.urandom"


@register("noise")
def noise(out: Path, watch: Watch) -> list[Figure]:
    """Nanoseconds per draw of noise and of coins on one thread, beside PyTorch, NumPy and the kernel, and memory."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [figure for label in SIZES for figure in _at(label, watch)]
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
    figures = [Figure(f"{name}, {label}", 1e9 * value / n, "ns", note) for name, value in cost.items()]
    for name, beside in ((HARDENED, REFERENCE), (FAST, REFERENCE), (ROUNDED, REFERENCE), (COINS, KERNEL_COINS)):
        figures.append(Figure(f"{name} over {beside}, {label}", cost[name] / cost[beside], "times", note))
    for name in (HARDENED, ROUNDED):
        peak = _peak(sources[name]) - 8 * n
        figures.append(Figure(f"memory of {name}, {label}", peak / 2**20, "MiB", "at its peak, beside the result"))
    return figures


def _sources(n: int) -> dict[str, Callable[[], object]]:
    import torch

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
        COINS: lambda: poisson_mask(n, 0.25),
        KERNEL_COINS: kernel_coins,
    }


def _peak(draw: Callable[[], object]) -> int:
    """Bytes that Python and NumPy hold at most while ``draw`` runs, its result included."""
    tracemalloc.start()
    try:
        draw()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
