"""What secure aggregation costs, beside Flower's legacy SecAgg+, and how it grows with the number of silos."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, FederationError, SecAggError
from simulations.bench import Figure, register
from simulations.watch import Watch

SILOS, PARAMETERS, REPEATS = 32, 1_000_000, 3

GROWTH = (8, 32, 128, 512, 2048)
"""Silos whose sums one of them takes part in. The graph is complete up to 64: the first two have k = n - 1."""

THEIRS = "SecAgg+"
A_THIRD = "a third gone"


@register("secagg")
def secagg(
    out: Path,
    watch: Watch,
    *,
    silos: int = SILOS,
    parameters: int = PARAMETERS,
    repeats: int = REPEATS,
    skip_legacy: bool = False,
) -> list[Figure]:
    """Secure sums of 32 silos and a million numbers beside Flower's legacy SecAgg+, and one silo's work among 8 to 2,048."""
    if repeats < 1 or parameters < 1 or silos < 3:
        raise ConfigError("secure sums are measured once or more, over 3 silos or more, of one number or more")
    figures = _side_by_side(silos, parameters, repeats, skip_legacy, watch)
    figures += _keys(silos, skip_legacy)
    return figures + _growth(parameters, repeats, watch)


def _side_by_side(silos: int, parameters: int, repeats: int, skip_legacy: bool, watch: Watch) -> list[Figure]:
    from common.secagg.fixed_point import FixedPoint
    from common.secagg.rules import Rules
    from simulations.bench.legacy_secagg import CLIPPING, MASKING, run_legacy
    from simulations.bench.secure_sums import Consortium, in_turn

    third = round(silos / 3)
    consortium = Consortium.under(Rules(silos, dropout=third / silos))
    coding = FixedPoint.finest(32, CLIPPING, silos)
    plan = consortium.rules.plan(silos)
    random = np.random.default_rng(0)
    vectors = [random.normal(0.0, 0.1, parameters).astype(np.float32) for _ in range(silos)]
    size = f"{silos} silos in turn, {parameters:,} float32, threshold {plan.threshold}"

    figures: list[Figure] = []
    for gone in (0, third):
        rest, label = vectors[gone:], f", {A_THIRD}" if gone else ""
        sums = [in_turn(consortium, vectors, coding, range(gone), watch)]
        legacy = None if skip_legacy else run_legacy(vectors, plan.degree + 1, plan.threshold, range(gone), watch)
        sums += [in_turn(consortium, vectors, coding, range(gone), watch) for _ in range(repeats - 1)]
        exact = np.asarray(np.sum(rest, axis=0, dtype=np.float64))
        for one in sums:
            if np.abs(one.values - exact).max() > coding.error_bound(len(rest)):
                raise SecAggError("the decoded sum is further from the true one than rounding can bring it")
        whole = median(one.seconds for one in sums)
        note = f"{size}; median of {repeats}: " + _in_words(
            {stage: median(sum(one.silos.seconds[stage]) for one in sums) for stage in sums[0].silos.seconds}
            | {"coordinator": median(one.server.total for one in sums)}
        )
        figures.append(Figure(f"whole sum{label}", whole, "s", note))
        if legacy is not None:
            _check_mean(legacy.mean, exact / len(rest))
            stages = {stage: sum(calls) for stage, calls in legacy.silo.items()} | {"coordinator": legacy.server}
            figures.append(Figure(f"whole sum{label}, {THEIRS}", legacy.seconds, "s", "once: " + _in_words(stages)))
            figures.append(Figure(f"whole sum{label}, over {THEIRS}", whole / legacy.seconds, "times"))
        if gone:
            continue
        masking = median(seconds for one in sums for seconds in one.masking)
        note = f"of {silos * repeats}: to fixed point, its peers' boxes, {plan.degree + 1} masks, bytes"
        figures.append(Figure("masking of one silo", 1e3 * masking, "ms", f"median {note}"))
        if legacy is not None:
            theirs = median(legacy.silo[MASKING])
            note = f"median of {silos}: the mod's whole call"
            figures.append(Figure(f"masking of one silo, {THEIRS}", 1e3 * theirs, "ms", note))
            figures.append(Figure(f"masking of one silo, over {THEIRS}", masking / theirs, "times"))
        figures.append(_bytes("one silo's answers", sums[0].silos.sent))
        if legacy is not None:
            figures.append(_bytes(f"one silo's answers, {THEIRS}", legacy.sent))
    return figures


def _check_mean(mean: NDArray[np.floating], exact: NDArray[np.float64]) -> None:
    from simulations.bench.legacy_secagg import CLIPPING, QUANTISED

    if np.abs(mean - exact).max() > 2 * (2 * CLIPPING / QUANTISED):
        raise FederationError(f"{THEIRS} gave another mean than that of the vectors")


def _keys(silos: int, skip_legacy: bool) -> list[Figure]:
    from common.secagg.rules import Rules
    from simulations.bench.legacy_secagg import bits_of_a_pair_mask
    from simulations.bench.secure_sums import Consortium, mask_keys

    bits, distinct = mask_keys(Consortium.under(Rules(silos)))
    figures = [
        Figure("bits of a mask's key", bits, "", "the shortest of all keys in two sums"),
        Figure("distinct keys, over masks", distinct, "times", "one a pair and one a silo, each sum its own"),
    ]
    if not skip_legacy:
        note = "bits of its folded seed that ever differ"
        figures.append(Figure(f"bits that decide a pairwise mask, {THEIRS}", bits_of_a_pair_mask(), "", note))
    return figures


def _growth(parameters: int, repeats: int, watch: Watch) -> list[Figure]:
    from common.secagg.messages import SIGNATURE_RECORD
    from common.secagg.rules import Rules
    from simulations.bench.secure_sums import CHECKING, Consortium, one_of_many

    figures: list[Figure] = []
    of_a_neighbour: dict[int, float] = {}
    watch.stage("one of " + ", ".join(f"{n:,}" for n in GROWTH), len(GROWTH) * (repeats + 1))
    for place, n in enumerate(GROWTH):
        consortium = Consortium.under(Rules(n))
        k = consortium.rules.plan(n).degree
        clocks = []
        for done in range(repeats + 1):
            clocks.append(one_of_many(consortium, parameters))
            watch.step(place * (repeats + 1) + done + 1, f"{n:,} silos")
        work = {stage: 1e3 * median(sum(clock.seconds[stage]) for clock in clocks[1:]) for stage in clocks[0].seconds}
        neighbours = work["share"] + work["mask"]
        of_a_neighbour[n] = neighbours / k
        sent = {stage: size for stage, size in clocks[0].sent.items() if stage != "mask"}
        received = clocks[0].received
        shared = "all others" if k == n - 1 else f"{k / math.log2(n):.1f} times log2 of silos"
        parts = f"median of {repeats}, {parameters:,} words of 32 bits: share {work['share']:.2f}, mask {work['mask']:.2f}"
        signatures = f"{n} of keys, {received['reveal'] // SIGNATURE_RECORD} of survivors"
        figures += [
            Figure(f"neighbours, {n} silos", k, "", shared),
            Figure(f"sharing and masking, {n} silos", neighbours, "ms", parts),
            Figure(f"checking signatures, {n} silos", work[CHECKING], "ms", signatures),
            Figure(f"keys, signature and shares, {n} silos", work["advertise"] + work["sign"] + work["reveal"], "ms"),
            _bytes(f"all but the vector that one of {n} silos sends", sent),
            _bytes(f"all that one of {n} silos gets", received),
        ]
        if k < n - 1:
            figures.append(Figure(f"neighbours over log2 of silos, {n} silos", k / math.log2(n)))
    for few, many in pairwise(of_a_neighbour):
        ratio = of_a_neighbour[many] / of_a_neighbour[few]
        figures.append(Figure(f"sharing and masking a neighbour, {many} silos over {few}", ratio, "times"))
    return figures


def _bytes(what: str, by_stage: Mapping[str, int]) -> Figure:
    return Figure(f"bytes of {what}", sum(by_stage.values()), "B", _in_words(by_stage))


def _in_words(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.2f}" for name, value in parts.items())
