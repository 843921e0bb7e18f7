"""Who masks with whom: a k-regular graph of neighbours, after Bell et al. 2020 (CCS), section 3.

With all silos as neighbours the work of one grows with their number. On a random k-regular graph it grows with k = O(log n). The
graph is Bell's: silos are put on a ring in random order, and each is joined to the h = k/2 next ones on either side. A silo's
shares are held by its k neighbours and by itself; ``threshold`` of these k + 1 recover a secret.

**What is assumed.** Of n silos at most ``c = floor(corrupt · n)`` collude with the coordinator. Silos reveal shares for one set
of survivors only, signed by at least :attr:`Plan.quorum` of all n silos: more than ``(n + c) / 2``, so no two sets can pass. Who
is corrupt does not depend on the graph: its seed is a hash of all advertised keys. The last one to advertise can try keys until
it likes the graph; ``grinding_bits`` allows for 2^40 trials, by asking for that much less failure in one graph.

**What must hold**, with X the number of corrupt ones among the k neighbours of a silo, hypergeometric (n - 1, c, k):

1. *Secrets are safe:* ``X < threshold`` for each honest silo (the paper's definition of a good graph, event E1).
2. *The sum is one sum:* honest survivors are connected (event E2), or else the coordinator learns the sum of each part. If they
   are not, the ring has two separate runs of h silos without one honest survivor.

   - ``dropouts="chosen"``: the coordinator names the dropouts when it knows the graph. So each silo reveals nothing unless any h
     places in a row on the ring hold at least ``spread`` survivors (:meth:`Graph.check_survivors`). A run without an honest
     survivor then holds ``spread`` corrupt ones. For one run that is a tail T of (n, c, h); for two, of which there are less
     than ``C(n, 2)``, at most T² (such counts are negatively associated; Joag-Dev and Proschan 1983, Ann. Statist. 11).
   - ``dropouts="independent"``: who drops out does not depend on the graph, as in the paper. Two runs of corrupt or gone ones
     have a chance of at most ``C(n, 2) · P[2h given silos are among the c + d]``; the paper has ``n · (γ + δ)^h`` from one run.
3. *The round succeeds:* of each silo's holders at least ``threshold`` are there (event E3), and the survivors are spread as 2
   asks, when at most ``d = floor(dropout · n)`` drop out, independently of the graph.

1 and 2 fail in one graph with a chance of at most ``2^-(security_bits + grinding_bits)``, 3 with ``2^-correctness_bits``. Tails
are exact, in whole numbers, with a union over silos. Up to ``SMALL`` silos, or where no smaller k will do, the graph is complete,
and nothing is left to chance.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Literal

from common.errors import ConfigError, SecAggError
from common.privacy.chacha import cipher, write
from common.secagg.context import MAX_SILOS, RoundContext
from common.secagg.keys import Advertisement

Dropouts = Literal["chosen", "independent"]

#: Up to here all silos are neighbours: there is little to save, and a complete graph needs no guess of who is corrupt.
SMALL = 64


@dataclass(frozen=True)
class Plan:
    """Degree and threshold for ``silos`` silos; :func:`plan` finds them, :func:`complete` sets them.

    ``degree`` is the number k of neighbours of each; ``threshold`` how many of its k + 1 holders recover a secret; ``quorum`` how
    many of all silos must sign the set of survivors; ``spread`` how many survivors any k/2 places of the ring in a row must
    hold (0 where that is not asked). ``failure`` is the chance that 1 or 2 (see the module) fails in one
    graph, ``interruption`` that 3 does: bounds, 0 for a complete graph.

    Raises
    ------
    ConfigError
        If the numbers do not fit each other.
    """

    silos: int
    degree: int
    threshold: int
    quorum: int
    spread: int = 0
    failure: Fraction = Fraction(0)
    interruption: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        if not 2 <= self.silos <= MAX_SILOS:
            raise ConfigError(f"silos: secure aggregation is for 2 to {MAX_SILOS} silos, not {self.silos}")
        whole = self.degree == self.silos - 1
        if not whole and not (2 <= self.degree < self.silos - 1 and self.degree % 2 == 0):
            raise ConfigError(f"degree: {self.degree} is neither even and below, nor equal to, silos - 1 = {self.silos - 1}")
        if not 2 <= self.threshold <= self.degree + 1:
            raise ConfigError(f"threshold: {self.threshold} is not from 2 to the {self.degree + 1} holders of a secret")
        if not self.silos < 2 * self.quorum <= 2 * self.silos:
            raise ConfigError(f"quorum: {self.quorum} is not more than half of {self.silos} silos")
        if not 0 <= self.spread <= (0 if whole else self.degree // 2):
            raise ConfigError(f"spread: {self.spread} survivors do not fit half of {self.degree} places")

    @property
    def is_complete(self) -> bool:
        """Whether all silos are neighbours."""
        return self.degree == self.silos - 1


@dataclass(frozen=True)
class Graph:
    """The neighbours in one round: ``ring`` is the random order of the silos' numbers. Made by :func:`draw`."""

    plan: Plan
    ring: tuple[int, ...]

    def neighbours(self, silo: int) -> tuple[int, ...]:
        """Numbers of the silos that ``silo`` masks with, in increasing order, ``(degree,)``.

        Raises
        ------
        SecAggError
            If the silo is not in this round.
        """
        place = self._places.get(silo)
        if place is None:
            raise SecAggError(f"silo {silo} is not in this round")
        n, ring = len(self.ring), self.ring
        if self.plan.is_complete:
            return tuple(sorted(other for other in ring if other != silo))
        half = self.plan.degree // 2
        return tuple(sorted(ring[(place + step) % n] for step in range(-half, half + 1) if step))

    def holders(self, silo: int) -> tuple[int, ...]:
        """Those who hold shares of the secrets of ``silo``: its neighbours and itself, in increasing order, ``(degree + 1,)``."""
        return tuple(sorted((*self.neighbours(silo), silo)))

    def check_survivors(self, survivors: Iterable[int]) -> None:
        """What each silo checks before it reveals a share: that these survivors are enough, and spread over the ring.

        ``survivors`` are the numbers of the silos in the signed set, whose inputs are in the sum.

        Raises
        ------
        SecAggError
            If one is not in this round, they are fewer than the quorum, a silo has not enough holders left, or some part of
            the ring has too few: the coordinator may be cutting the sum in parts.
        """
        alive = frozenset(survivors)
        if not alive <= self._places.keys():
            raise SecAggError(f"survivors {sorted(alive - self._places.keys())} are not in this round")
        if len(alive) < self.plan.quorum:
            raise SecAggError(f"{len(alive)} of {self.plan.silos} silos survived; a quorum is {self.plan.quorum}")
        n, half = len(self.ring), self.plan.degree // 2
        before = [0, *accumulate(silo in alive for silo in self.ring * 3)]  # survivors before a place, over three turns
        for place in range(n, 2 * n):
            holders = (n, 2 * n) if self.plan.is_complete else (place - half, place + half + 1)
            left = before[holders[1]] - before[holders[0]]
            if left < self.plan.threshold:
                raise SecAggError(
                    f"{left} holders of the secrets of silo {self.ring[place - n]} are left; "
                    f"the threshold is {self.plan.threshold}"
                )
            row = before[place + half] - before[place]
            if row < self.plan.spread:
                raise SecAggError(
                    f"{row} of {half} silos in a row survived, and {self.plan.spread} must: the sum might fall apart"
                )

    @cached_property
    def _places(self) -> Mapping[int, int]:
        return {silo: place for place, silo in enumerate(self.ring)}


def plan(
    silos: int,
    *,
    dropout: float = 1 / 3,
    corrupt: float = 0.1,
    dropouts: Dropouts = "chosen",
    security_bits: int = 40,
    grinding_bits: int = 40,
    correctness_bits: int = 20,
) -> Plan:
    """The smallest degree that keeps the promises of this module, with the highest threshold that the dropouts leave room for.

    Parameters
    ----------
    silos:
        How many advertise keys, n.
    dropout, corrupt:
        Largest shares of them that drop out, and that collude with the coordinator; from 0, below 1.
    dropouts:
        Whether the coordinator may choose who drops out when it knows the graph.
    security_bits, grinding_bits, correctness_bits:
        Binary logarithms, see the module. All whole, from 0.

    Raises
    ------
    ConfigError
        If a number is out of range, or not even a complete graph will do: too many corrupt or gone to trust any sum.
    """
    for name, share in (("dropout", dropout), ("corrupt", corrupt)):
        if not 0 <= share < 1:
            raise ConfigError(f"{name}: a share of the silos is from 0 and below 1, not {share!r}")
    for name, bits in (
        ("security_bits", security_bits),
        ("grinding_bits", grinding_bits),
        ("correctness_bits", correctness_bits),
    ):
        if isinstance(bits, bool) or not isinstance(bits, int) or not 0 <= bits <= 256:
            raise ConfigError(f"{name}: must be a whole number from 0 to 256, not {bits!r}")
    if dropouts not in ("chosen", "independent"):
        raise ConfigError(f"dropouts: must be chosen or independent, not {dropouts!r}")
    c, d = portion(corrupt, silos), portion(dropout, silos)
    whole = complete(silos, silos - d, corrupt=corrupt)
    if whole.quorum > silos - d:
        raise ConfigError(
            f"of {silos} silos {c} may be corrupt and {d} drop out: the {silos - d} left are no quorum of {whole.quorum} "
            "that rules out two different sets of survivors; lower dropout or corrupt"
        )
    failure, interruption = Fraction(1, 2 ** (security_bits + grinding_bits)), Fraction(1, 2**correctness_bits)
    return (None if silos <= SMALL else _smallest(silos, c, d, dropouts, failure, interruption)) or whole


def complete(silos: int, threshold: int, *, corrupt: float = 0.1) -> Plan:
    """All silos are neighbours, and the threshold is given.

    Raises
    ------
    ConfigError
        If the corrupt silos could recover secrets by themselves, or a sum could hold fewer than two honest silos.
    """
    c = portion(corrupt, silos)
    if threshold - c < 2:
        raise ConfigError(
            f"threshold: {threshold} of {silos} silos with {c} corrupt leaves sums of fewer than two honest silos; "
            "raise the threshold, or take more silos or fewer dropouts"
        )
    return Plan(silos, silos - 1, threshold, (silos + c) // 2 + 1)


def graph_seed(context: RoundContext, advertisements: Iterable[Advertisement]) -> bytes:
    """32 bytes that nobody knows before all keys are advertised: SHA-256 of the round and all advertisements, by silo.

    Raises
    ------
    SecAggError
        If a silo advertised twice.
    """
    ordered = sorted(advertisements, key=lambda one: one.silo)
    if len({one.silo for one in ordered}) != len(ordered):
        raise SecAggError("a silo advertised twice")
    return hashlib.sha256(context.bind("graph", *(one.to_bytes() for one in ordered))).digest()


def draw(plan: Plan, silos: Iterable[int], seed: bytes) -> Graph:
    """The graph of ``seed`` (32 bytes): the same for everybody, whatever the order in which the silos are named.

    The ring is a shuffle of the silos' numbers in increasing order (Fisher and Yates; Durstenfeld 1964, algorithm 235) by 64-bit
    little-endian words of the ChaCha20 key stream of ``seed``; words that would favour a place are left out.

    Raises
    ------
    SecAggError
        If there are not as many distinct silos as the plan is for, or the seed has another length.
    """
    ring = sorted(silos)
    if len(ring) != plan.silos or len(set(ring)) != len(ring):
        raise SecAggError(f"the graph is for {plan.silos} distinct silos, not {ring}")
    if len(seed) != 32:
        raise SecAggError("the seed of a graph has 32 bytes")
    stream, word = cipher(seed), bytearray(8)
    for last in range(len(ring) - 1, 0, -1):
        fair = 2**64 - 2**64 % (last + 1)
        while True:
            write(stream, memoryview(word))
            value = int.from_bytes(word, "little")
            if value < fair:
                break
        other = value % (last + 1)
        ring[last], ring[other] = ring[other], ring[last]
    return Graph(plan, tuple(ring))


def tail(population: int, marked: int, drawn: int, least: int) -> Fraction:
    """``P[X >= least]``, exactly, for X marked ones among ``drawn`` of ``population`` of which ``marked`` are; no replacement."""
    ways = sum(
        math.comb(marked, x) * math.comb(population - marked, drawn - x) for x in range(max(least, 0), min(marked, drawn) + 1)
    )
    return Fraction(ways, math.comb(population, drawn))


@lru_cache(maxsize=64)
def _smallest(n: int, c: int, d: int, dropouts: Dropouts, failure: Fraction, interruption: Fraction) -> Plan | None:
    for k in range(2, n - 1, 2):
        threshold, stops = _highest_threshold(n, d, k, interruption / 2)
        if threshold < 2:
            continue
        exposed = (n - c) * tail(n - 1, c, k, threshold)
        if exposed > failure / 2:
            continue
        spread, cut, sparse = _ring(n, c, d, k, dropouts, failure / 2)
        if cut <= failure / 2 and sparse <= interruption / 2:
            return Plan(n, k, threshold, (n + c) // 2 + 1, spread, exposed + cut, stops + sparse)
    return None


def _highest_threshold(n: int, d: int, k: int, interruption: Fraction) -> tuple[int, Fraction]:
    """By bisection: the chance that a silo has too few holders left grows with the threshold."""

    def stops(threshold: int) -> Fraction:
        survivor = tail(n - 1, d, k, k - threshold + 2)  # holders are itself and the neighbours that are left
        dropped = tail(n - 1, d - 1, k, k - threshold + 1) if d else Fraction(0)
        return (n - d) * survivor + d * dropped

    low, high = 0, k + 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if stops(middle) <= interruption else (low, middle - 1)
    return low, stops(low)


def _ring(n: int, c: int, d: int, k: int, dropouts: Dropouts, failure: Fraction) -> tuple[int, Fraction, Fraction]:
    """The smallest spread that will do, and the chances that honest survivors fall apart, and that honest dropouts break it."""
    half, pairs = k // 2, math.comb(n, 2)
    if dropouts == "independent":
        missing = min(c + d, n)
        return 0, pairs * Fraction(math.perm(missing, k), math.perm(n, k)), Fraction(0)
    for spread in range(1, half + 1):
        cut = pairs * tail(n, c, half, spread) ** 2
        if cut <= failure:
            return spread, cut, n * tail(n, d, half, half - spread + 1)
    return 0, Fraction(1), Fraction(1)


def portion(share: float, silos: int) -> int:
    """``floor(share * silos)`` of a share that was meant as a fraction: a third of six is two."""
    return math.floor(Fraction(share).limit_denominator(10**6) * silos)
