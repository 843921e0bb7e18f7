"""The graph of neighbours: nobody chooses it, it grows with log n, and its promises hold by independent counts."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, SecAggError
from common.secagg import graph as module
from common.secagg.context import RoundContext
from common.secagg.graph import Graph, Plan, complete, draw, graph_seed, plan, tail
from common.secagg.keys import Advertisement
from common.secagg.masks import expand

CONTEXT = RoundContext("ab" * 32, bytes(range(32)))


def seed(i: int) -> bytes:
    return hashlib.sha256(i.to_bytes(8, "big")).digest()


def parts(graph: Graph, nodes: set[int]) -> int:
    """How many parts the graph on ``nodes`` has, by walking it."""
    left, count = set(nodes), 0
    while left:
        count += 1
        reached = {left.pop()}
        while reached:
            reached = {other for node in reached for other in graph.neighbours(node) if other in left}
            left -= reached
    return count


def log_tail(population: int, marked: int, drawn: int, least: int) -> float:
    """Binary logarithm of a hypergeometric tail by the gamma function: another way than the module's."""

    def choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    first, last = max(least, drawn - population + marked, 0), min(marked, drawn)
    terms = [choose(marked, x) + choose(population - marked, drawn - x) for x in range(first, last + 1)]
    if not terms:
        return -math.inf
    top = max(terms)
    return (top + math.log(sum(math.exp(t - top) for t in terms)) - choose(population, drawn)) / math.log(2)


@pytest.mark.parametrize(("population", "marked", "drawn"), [(7, 3, 4), (8, 0, 3), (6, 6, 2), (9, 5, 9)])
def test_tails_are_counted_right(population: int, marked: int, drawn: int) -> None:
    draws = list(combinations(range(population), drawn))
    for least in range(-1, drawn + 2):
        hits = sum(sum(x < marked for x in one) >= least for one in draws)
        assert tail(population, marked, drawn, least) == Fraction(hits, len(draws))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(3, 150), k=st.integers(1, 30), numbers=st.randoms(use_true_random=False), i=st.integers(0, 10**6))
def test_every_graph_is_regular_symmetric_and_the_same_for_all(n: int, k: int, numbers: random.Random, i: int) -> None:
    degree = 2 * k if 2 * k < n - 1 else n - 1
    silos = numbers.sample(range(1000), n)
    graph = draw(Plan(n, degree, 2, n), silos, seed(i))
    assert graph == draw(graph.plan, sorted(silos), seed(i))
    neighbours = {silo: graph.neighbours(silo) for silo in silos}
    for silo, others in neighbours.items():
        assert len(set(others)) == degree
        assert silo not in others
        assert all(silo in neighbours[other] for other in others)
        assert graph.holders(silo) == tuple(sorted((*others, silo)))
    assert parts(graph, set(silos)) == 1


def test_the_shuffle_is_that_of_the_literal_words() -> None:
    ring, words = list(range(10, 60)), [int(w) for w in expand(seed(1), 49, np.uint64)]
    for last, word in zip(range(49, 0, -1), words, strict=True):  # a word is left out once in 2^58: not here
        ring[last], ring[word % (last + 1)] = ring[word % (last + 1)], ring[last]
    assert draw(Plan(50, 4, 3, 26), range(10, 60), seed(1)).ring == tuple(ring)


def test_a_word_that_would_favour_a_place_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^64 = 1 modulo 3: the largest word is one too many for three places, and fine for two."""
    words = iter([2**64 - 1, 2**64 - 2, 2**64 - 1])

    def write(_: object, target: memoryview) -> None:
        target[:] = next(words).to_bytes(8, "little")

    monkeypatch.setattr(module, "write", write)
    assert draw(Plan(3, 2, 2, 2), range(3), seed(0)).ring == (0, 1, 2)  # 2 stays: 2^64 - 2 = 2 modulo 3; 1 stays
    assert next(words, None) is None


def test_all_pairs_are_neighbours_equally_often() -> None:
    """3,000 graphs of 12 with degree 4; each of the 66 pairs beyond 5.5 deviations: a false alarm in 4e5."""
    graphs = [draw(Plan(12, 4, 3, 7), range(12), seed(i)) for i in range(3000)]
    seen = Counter((a, b) for graph in graphs for a in range(12) for b in graph.neighbours(a) if a < b)
    p = 4 / 11
    for pair in combinations(range(12), 2):
        assert abs(seen[pair] - 3000 * p) < 5.5 * math.sqrt(3000 * p * (1 - p))


def ads() -> list[Advertisement]:
    return [Advertisement(i, seed(i), seed(i + 100), seed(i) + seed(i)) for i in range(5)]


def test_the_seed_follows_from_every_advertisement_run_and_round() -> None:
    one = graph_seed(CONTEXT, ads())
    assert one == graph_seed(CONTEXT, reversed(ads()))
    seeds = {one, graph_seed(replace(CONTEXT, run="ac" * 32), ads()), graph_seed(replace(CONTEXT, round_id=bytes(32)), ads())}
    for i in range(5):
        for change in ({"mask_key": bytes(32)}, {"share_key": bytes(32)}, {"signature": bytes(64)}, {"silo": 77}):
            changed = ads()
            changed[i] = replace(changed[i], **change)
            seeds.add(graph_seed(CONTEXT, changed))
        seeds.add(graph_seed(CONTEXT, [ad for ad in ads() if ad.silo != i]))
    assert len(seeds) == 3 + 5 * 5
    with pytest.raises(SecAggError, match="twice"):
        graph_seed(CONTEXT, [*ads(), ads()[0]])


@pytest.mark.parametrize("n", [3, 8, 32, 64])
def test_few_silos_are_all_neighbours_with_the_highest_threshold_that_a_third_gone_allows(n: int) -> None:
    found = plan(n)
    assert found.is_complete
    assert (found.threshold, found.failure, found.interruption) == (n - n // 3, 0, 0)


def test_the_degree_grows_as_the_logarithm() -> None:
    """What a silo with 40 + 40 bits pays: each doubling of n adds ever less, and 512 silos have a third of the neighbours."""
    degrees = {n: plan(n).degree for n in (8, 32, 128, 512, 2048)}
    assert degrees == {8: 7, 32: 31, 128: 80, 512: 168, 2048: 218}
    assert degrees[2048] - degrees[512] < degrees[512] - degrees[128]
    assert all(degrees[n] <= 20 * math.log2(n) for n in degrees)
    independent = {n: plan(n, dropouts="independent").degree for n in (128, 512, 2048)}
    assert independent == {128: 50, 512: 106, 2048: 146}


@pytest.mark.parametrize("n", [128, 512])
@pytest.mark.parametrize("dropouts", ["chosen", "independent"])
@pytest.mark.parametrize(("dropout", "corrupt"), [(1 / 3, 0.1), (0.1, 0.2)])
def test_a_plan_keeps_its_promises_by_another_count(n: int, dropouts: module.Dropouts, dropout: float, corrupt: float) -> None:
    found = plan(n, dropout=dropout, corrupt=corrupt, dropouts=dropouts)
    assert not found.is_complete
    k, t, half = found.degree, found.threshold, found.degree // 2
    c, d = math.floor(corrupt * n + 1e-9), math.floor(dropout * n + 1e-9)
    exposed = math.log2(n - c) + log_tail(n - 1, c, k, t)
    pairs = math.log2(n * (n - 1) / 2)
    if dropouts == "chosen":
        cut = pairs + 2 * log_tail(n, c, half, found.spread)
        sparse = math.log2(n) + log_tail(n, d, half, half - found.spread + 1)
    else:
        cut, sparse = pairs + log_tail(n, c + d, k, k), -math.inf

    def stops(threshold: int) -> float:
        survivors = (n - d) * 2 ** log_tail(n - 1, d, k, k - (threshold - 1) + 1)  # fewer than threshold - 1 neighbours are left
        return survivors + d * 2 ** log_tail(n - 1, d - 1, k, k - threshold + 1)  # who is gone has neighbours only

    assert 2**exposed + 2**cut <= 2**-80 * 1.001
    assert 2**exposed + 2**cut == pytest.approx(float(found.failure), rel=1e-3)
    assert stops(t) <= 2**-21 < stops(t + 1)
    assert stops(t) + 2**sparse == pytest.approx(float(found.interruption), rel=1e-3)
    assert found.interruption <= Fraction(1, 2**20)
    assert 2 * found.quorum > n + c
    assert found.quorum <= n - d


def test_a_ring_falls_apart_only_where_two_runs_are_missing() -> None:
    """All sets of missing silos of a ring of 11 with two neighbours on either side."""
    graph = draw(Plan(11, 4, 3, 6), range(11), seed(0))
    apart = 0
    for bits in range(1, 2**11):
        there = [bool(bits >> place & 1) for place in range(11)]
        start = there.index(True)
        turned = "".join("x" if flag else "." for flag in there[start:] + there[:start])
        runs = sum(len(run) >= 2 for run in turned.split("x"))
        nodes = {silo for silo, flag in zip(graph.ring, there, strict=True) if flag}
        if parts(graph, nodes) > 1:
            apart += 1
            assert runs >= 2
    assert apart > 100


@pytest.mark.parametrize("corrupt", [(), (0,), (4,)])
def test_survivors_that_a_coordinator_chooses_cannot_cut_the_sum(corrupt: tuple[int, ...]) -> None:
    """All sets of survivors of 12, at most one corrupt: no two runs can hold one each. Without the check many sets cut."""
    graph = draw(Plan(12, 4, 2, 7, spread=1), range(12), seed(2))
    loose = Graph(replace(graph.plan, spread=0), graph.ring)
    cut_without = passed = 0
    for bits in range(2**12):
        survivors = {silo for silo in range(12) if bits >> silo & 1}
        honest = survivors - set(corrupt)
        outcome = []
        for checked in (graph, loose):
            try:
                checked.check_survivors(survivors)
                outcome.append(True)
            except SecAggError:
                outcome.append(False)
        if outcome[0]:
            passed += 1
            assert parts(graph, honest) == 1
        cut_without += outcome[1] and parts(graph, honest) > 1
    assert passed > 50
    assert cut_without > 0


def test_honest_dropouts_seldom_stop_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third gone of 100, 300 times, with a plan that may fail once in 16: beyond 45 failures is a false alarm in 10^8."""
    found = plan(100, correctness_bits=4, security_bits=10, grinding_bits=0)
    assert not found.is_complete
    rng, stopped = random.Random(5), 0
    for i in range(300):
        graph = draw(found, range(100), seed(i))
        try:
            graph.check_survivors(rng.sample(range(100), 67))
        except SecAggError:
            stopped += 1
    assert stopped <= 45


def test_corrupt_silos_seldom_hold_a_threshold() -> None:
    """400 graphs with a fifth corrupt and a plan that may fail once in 4: beyond 160 is a false alarm in 10^9. Weak, but real."""
    found = plan(100, corrupt=0.2, correctness_bits=1, security_bits=2, grinding_bits=0, dropouts="independent")
    assert not found.is_complete
    failed = 0
    for i in range(400):
        graph = draw(found, range(100), seed(i))
        failed += any(sum(other < 20 for other in graph.neighbours(silo)) >= found.threshold for silo in range(20, 100))
    assert failed <= 160


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 19), min_size=11), st.integers(2, 7), st.integers(0, 3), st.integers(0, 99))
def test_survivors_are_counted_as_by_hand(survivors: set[int], threshold: int, spread: int, i: int) -> None:
    graph = draw(Plan(20, 6, threshold, 11, spread), range(20), seed(i))
    enough = all(sum(holder in survivors for holder in graph.holders(silo)) >= threshold for silo in range(20))
    rows = [[graph.ring[(place + step) % 20] in survivors for step in range(3)] for place in range(20)]
    if enough and all(sum(row) >= spread for row in rows):
        graph.check_survivors(survivors)
    else:
        with pytest.raises(SecAggError):
            graph.check_survivors(survivors)


def test_survivors_are_checked() -> None:
    graph = draw(complete(8, 5), range(8), seed(1))
    graph.check_survivors(range(3, 8))
    with pytest.raises(SecAggError, match="not in this round"):
        graph.check_survivors([*range(7), 99])
    with pytest.raises(SecAggError, match="a quorum is 5"):
        graph.check_survivors(range(4))
    with pytest.raises(SecAggError, match="threshold is 7"):
        draw(complete(8, 7), range(8), seed(1)).check_survivors(range(6))
    with pytest.raises(SecAggError, match="not in this round"):
        graph.neighbours(99)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"silos": 1}, "threshold|silos"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"corrupt": math.nan}, "corrupt"),
        ({"dropout": 0.45, "corrupt": 0.2}, "quorum"),
        ({"dropout": 0.95, "corrupt": 0.0, "silos": 8}, "threshold"),
        ({"security_bits": -1}, "security_bits"),
        ({"grinding_bits": 1.0}, "grinding_bits"),
        ({"correctness_bits": 999}, "correctness_bits"),
        ({"dropouts": "some"}, "dropouts"),
    ],
)
def test_what_cannot_be_promised_is_refused(setting: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        plan(**({"silos": 100} | setting))


@pytest.mark.parametrize(
    "bad", [(8, 3, 2, 5), (8, 8, 2, 5), (8, 4, 1, 5), (8, 4, 6, 5), (8, 4, 3, 4), (8, 4, 3, 9), (1, 0, 2, 1)]
)
def test_plans_that_do_not_fit_are_refused(bad: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError):
        Plan(*bad)


def test_a_graph_is_for_the_silos_of_its_plan() -> None:
    for silos in (range(7), [*range(7), 6]):
        with pytest.raises(SecAggError, match="8 distinct silos"):
            draw(complete(8, 5), silos, seed(0))
    with pytest.raises(SecAggError, match="32 bytes"):
        draw(complete(8, 5), range(8), b"")
