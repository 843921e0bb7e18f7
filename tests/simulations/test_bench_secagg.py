"""``silorec bench secagg`` measures what its goals speak of, and takes no sum for right that is wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import silorec
from client import secagg as silo_side
from common.errors import ConfigError, FederationError, SecAggError
from common.secagg.fixed_point import FixedPoint
from common.secagg.keys import Advertisement, EphemeralKeys
from common.secagg.masks import Mask, apply_masks, pair_sign
from common.secagg.rules import Rules
from server import secagg as server_side
from simulations.bench import Report, goals_of, legacy_secagg, run_bench, secagg
from simulations.bench.secure_sums import CHECKING, Consortium, in_turn, mask_keys, one_of_many
from simulations.watch import Silent

SMALLER = {2048: 72, 512: 70, 128: 66}
"""Silos that stand for those of the goals: on k-regular graphs too, and soon done."""

OF_FLOWER = {
    "masking of one silo, over SecAgg+",
    "whole sum, over SecAgg+",
    "whole sum, a third gone, over SecAgg+",
}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secagg, "GROWTH", (8, *sorted(SMALLER.values())))


def vectors(silos: int, parameters: int = 300) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(3)
    return [random.normal(0.0, 0.1, parameters).astype(np.float32) for _ in range(silos)]


def figures(report: Report) -> dict[str, float]:
    values = {figure.name: figure.value for figure in report.figures}
    assert len(values) == len(report.figures)
    return values


@pytest.mark.usefixtures("few")
def test_every_goal_is_about_a_figure_that_is_measured(tmp_path: Path) -> None:
    """At a thousandth of the size; whether times hold is not asked here, whether keys do is."""
    report = run_bench("secagg", tmp_path, Silent(), silos=6, parameters=1000, repeats=1)
    values, goals = figures(report), {goal.figure for goal in goals_of("secagg")}
    for full, small in SMALLER.items():
        goals = {goal.replace(f"{full} silos", f"{small} silos").replace(f"over {full}", f"over {small}") for goal in goals}
    assert goals <= set(values)
    assert goals >= OF_FLOWER
    assert all(value > 0 for value in values.values())
    assert values["bits of a mask's key"] == 256
    assert values["distinct keys, over masks"] == 1
    for name in OF_FLOWER:
        ours = name.removesuffix(", over SecAgg+")
        assert values[name] == pytest.approx(values[ours] / values[f"{ours}, SecAgg+"])


@pytest.mark.usefixtures("few")
def test_goals_of_what_was_left_out_are_missed(tmp_path: Path) -> None:
    report = run_bench("secagg", tmp_path, Silent(), silos=4, parameters=10, repeats=1, skip_legacy=True)
    assert not report.holds
    assert {goal.figure for goal in report.missed} >= OF_FLOWER
    assert not [name for name in figures(report) if "SecAgg+" in name]


def test_a_setting_that_a_benchmark_does_not_take_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="'grid' takes no setting 'silos'; it takes: none"):
        run_bench("grid", tmp_path, Silent(), silos=3)
    with pytest.raises(ConfigError, match="3 silos or more"):
        run_bench("secagg", tmp_path, Silent(), silos=2)
    with pytest.raises(SystemExit) as ended:
        silorec.main(["bench", "noise", "--repeats", "2", "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "takes no setting 'repeats'" in capsys.readouterr().err


def test_thirty_two_silos_have_the_threshold_of_the_comparison() -> None:
    plan = Rules(32, dropout=round(32 / 3) / 32).plan(32)
    assert (plan.degree + 1, plan.threshold) == (32, 21)


@pytest.mark.parametrize("gone", [(), (0, 3)])
def test_the_sum_is_that_of_the_vectors(gone: Sequence[int]) -> None:
    coding, given = FixedPoint.finest(32, 8.0, 6), vectors(6)
    found = in_turn(Consortium.under(Rules(6)), given, coding, gone, Silent())
    exact = np.sum([given[silo] for silo in range(6) if silo not in gone], axis=0, dtype=np.float64)
    assert np.abs(found.values - exact).max() <= coding.error_bound(6 - len(gone))
    assert len(found.masking) == len(found.silos.seconds["reveal"]) == 6 - len(gone)
    assert len(found.silos.seconds["share"]) == 6
    assert found.seconds == pytest.approx(found.silos.total + found.server.total)


def test_a_sum_with_a_mask_left_in_it_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """One word off by one: within the range of sums, so that only the comparison with the plain sum can see it."""

    def wrong(words: NDArray[Any], masks: Sequence[Mask]) -> None:
        apply_masks(words, masks)
        words[:1] += words.dtype.type(1)

    monkeypatch.setattr(silo_side, "apply_masks", wrong)
    with pytest.raises(SecAggError, match="not the sum of the encoded vectors"):
        in_turn(Consortium.under(Rules(4)), vectors(4), FixedPoint.finest(32, 8.0, 4), (), Silent())


def test_every_silo_and_every_pair_has_a_key_of_its_own_in_each_sum() -> None:
    assert mask_keys(Consortium.under(Rules(5))) == (256, 1.0)


@pytest.mark.parametrize("mistake", ["self", "pair"])
def test_keys_that_masks_share_are_found(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    """All silos with one self-mask, or all pairs with one: such sums are right, and nothing is hidden in them."""
    if mistake == "self":
        for side in (silo_side, server_side):
            monkeypatch.setattr(side, "self_mask", lambda *_: Mask(bytes(32), 1))
    else:

        def same(keys: EphemeralKeys, _: object, peer: Advertisement) -> Mask:
            return Mask(bytes(32), pair_sign(keys.mask_key, peer.mask_key))

        monkeypatch.setattr(EphemeralKeys, "pair_mask", same)
    with pytest.raises(SecAggError, match="keys of masks"):
        mask_keys(Consortium.under(Rules(5)))


@pytest.mark.parametrize("n", [8, 66])
def test_messages_have_the_sizes_of_their_records(n: int) -> None:
    """On a complete and on a k-regular graph; a header of numbers and lengths there is not."""
    rules = Rules(n)
    plan = rules.plan(n)
    k = plan.degree
    assert plan.is_complete == (n == 8)
    clock = one_of_many(Consortium.under(rules), 50)
    assert clock.sent == {"advertise": 132, "share": 172 * k, "mask": 4 * 50, "sign": 64, "reveal": 75 * (k + 1)}
    assert clock.received == {"advertise": 0, "share": 132 * n, "mask": 172 * k, "sign": 4 * n, "reveal": 68 * plan.quorum}


@pytest.mark.parametrize(("check", "stage"), [("verify_advertisements", "share"), ("check_quorum", "reveal")])
def test_the_time_of_checking_signatures_is_no_time_of_its_stage(monkeypatch: pytest.MonkeyPatch, check: str, stage: str) -> None:
    """A check that takes 0.3 seconds more: all else of a stage of eight silos takes some milliseconds."""
    real = getattr(silo_side, check)

    def slow(*args: Any) -> Any:
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
        return real(*args)

    monkeypatch.setattr(silo_side, check, slow)
    clock = one_of_many(Consortium.under(Rules(8)), 50)
    assert len(clock.seconds[CHECKING]) == 2
    assert sum(clock.seconds[CHECKING]) > 0.3
    assert 0 < clock.seconds[stage][0] < 0.2


@pytest.mark.parametrize("gone", [(), (1, 4)])
def test_flowers_own_mod_and_workflow_give_the_mean(gone: Sequence[int]) -> None:
    given = vectors(6)
    run = legacy_secagg.run_legacy(given, 6, 4, gone, Silent())
    exact = np.mean([given[silo] for silo in range(6) if silo not in gone], axis=0, dtype=np.float64)
    assert np.abs(run.mean - exact).max() <= 2 * 2 * legacy_secagg.CLIPPING / legacy_secagg.QUANTISED
    assert [len(calls) for calls in run.silo.values()] == [6, 6, 6 - len(gone), 6 - len(gone)]
    assert run.sent[legacy_secagg.MASKING] > 8 * 300
    assert 0 < run.server < run.seconds


def test_a_workflow_that_gives_up_is_no_measurement() -> None:
    level = logging.getLogger("flwr").level
    with pytest.raises(FederationError, match="gave up"):
        legacy_secagg.run_legacy(vectors(5), 5, 4, (0, 1), Silent())
    assert logging.getLogger("flwr").level == level


def test_flower_leaves_a_pairwise_mask_28_bits() -> None:
    """Of 32 folded ones four never change: its seeds are base64, whose bytes have no highest bit. False alarm: 28 · 2^-63."""
    assert legacy_secagg.bits_of_a_pair_mask() == 28
