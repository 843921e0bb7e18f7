"""The parts fit: keys, graph, shares, sealing, masks and fixed point give the exact sum over the survivors."""

from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np
import pytest

from common.errors import SecAggError
from common.privacy.signing import create_key
from common.secagg.context import RoundContext
from common.secagg.fixed_point import FixedPoint
from common.secagg.graph import Plan, complete, draw, graph_seed
from common.secagg.keys import EphemeralKeys, recovered_pair_mask, verify_advertisements
from common.secagg.masks import apply_masks, self_mask
from common.secagg.sealing import SharePair, seal, unseal
from common.secagg.shamir import combine, split


@pytest.mark.parametrize(("plan", "gone"), [(complete(6, 4), {1, 4}), (Plan(9, 4, 3, 6), {2, 7})])
@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_over_the_survivors_is_exact(plan: Plan, gone: set[int], bits: int, tmp_path: Path) -> None:
    silos, context = range(plan.silos), RoundContext("ab" * 32, secrets.token_bytes(32))
    signing = [create_key(tmp_path / f"{i}.pem") for i in silos]
    keys = [EphemeralKeys.generate() for _ in silos]
    roster = {i: key.public_key for i, key in enumerate(signing)}
    ads = verify_advertisements([keys[i].advertise(signing[i], context, i) for i in silos], roster, context)
    seed = next(
        s for i in range(1000) if _survives(plan, s := graph_seed(context, ads.values())[:-2] + i.to_bytes(2, "big"), gone)
    )
    graph = draw(plan, ads, seed)

    seeds = [secrets.token_bytes(32) for _ in silos]
    held: dict[tuple[int, int], SharePair] = {}
    for u in silos:
        holders = graph.holders(u)
        both = zip(split(seeds[u], holders, plan.threshold), split(keys[u].mask_secret(), holders, plan.threshold), strict=True)
        for shares in (SharePair(*two) for two in both):
            v = shares.holder
            if v != u:
                box = seal(keys[u].channel_key(context, ads[v], outgoing=True), context, u, v, shares)
                shares = unseal(keys[v].channel_key(context, ads[u], outgoing=False), context, u, v, box)
            held[u, v] = shares

    coding = FixedPoint.finest(bits, 2.0, plan.silos, 3)
    survivors = sorted(set(silos) - gone)
    total, plain = np.zeros(500, coding.dtype), np.zeros(500, coding.dtype)
    for u in survivors:
        words = coding.encode(np.random.default_rng(u).normal(size=500).astype(np.float32), 1 + u % 3).words
        plain += words
        apply_masks(words, [keys[u].pair_mask(context, ads[v]) for v in graph.neighbours(u)])
        apply_masks(words, [self_mask(seeds[u], context, u)])
        total += words
    weight = sum(1 + u % 3 for u in survivors)
    if bits == 64:
        with pytest.raises(SecAggError, match="a mask is left"):
            FixedPoint(64, 20, 2.0, plan.silos, 3).decode(total, weight)

    graph.check_survivors(survivors)
    removed = []
    for u in silos:
        helpers = [v for v in graph.holders(u) if v in survivors]
        if u in gone:
            secret = combine([held[u, v].mask_secret for v in helpers], plan.threshold)
            removed += [recovered_pair_mask(secret, context, ads[u], ads[v]) for v in graph.neighbours(u) if v in survivors]
        else:
            removed.append(self_mask(combine([held[u, v].seed for v in helpers], plan.threshold), context, u))
    apply_masks(total, [mask.removal() for mask in removed])
    assert np.array_equal(total, plain)
    assert np.array_equal(coding.decode(total, weight), coding.decode(plain, weight))


def _survives(plan: Plan, seed: bytes, gone: set[int]) -> bool:
    """Whether these dropouts leave enough holders: a plan of nine is too small to promise it."""
    try:
        draw(plan, range(plan.silos), seed).check_survivors(set(range(plan.silos)) - gone)
    except SecAggError:
        return False
    return True
