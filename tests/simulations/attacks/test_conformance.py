"""With next to no noise, the check passes the real training and finds each planted fault of sampling or clipping."""

from __future__ import annotations

import json
from typing import Any

import pytest

from common.errors import PrivacyError
from simulations.attacks.conformance import check_conformance
from tests.simulations.attacks import canary_run, faults
from tests.simulations.attacks.faults import Fault

EVERYBODY: dict[str, Any] = {}
HALF = {"training__sampling_probability": 0.5, "federation__rounds": 16}  # a user is in none once in 65,536 runs
FOUR_A_ROUND = {**canary_run.SAMPLED, "federation__rounds": 6, "training__local_steps": 4}
IMPOSSIBLE, SIZES = "what no number of clipped gradients gives", "the sizes of samples"
CLIP, SAMPLING = "clip or sensitivity", "sampling: users are not in steps as often"


@pytest.mark.parametrize(
    "settings", [EVERYBODY, canary_run.SAMPLED, FOUR_A_ROUND], ids=["everybody", "sampled", "rounds of four"]
)
def test_the_real_training_samples_and_clips_as_planned(settings: dict[str, Any]) -> None:
    """False alarm: less than once in ten thousand for each case."""
    config, plan = canary_run.run(**settings)
    result = check_conformance(config, plan, n=1000, seed=11)
    assert result.holds, result.sentence
    assert result.violations == ()
    assert (result.batches_p is None) is (plan.sampling_probability == 1)
    assert abs(result.clip_ratio - 1) < 2e-3
    json.dumps(result.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("fault", "settings", "found_by"),
    [
        (faults.no_clipping, EVERYBODY, CLIP),
        (faults.clip_too_wide, EVERYBODY, CLIP),
        (faults.clip_too_wide, canary_run.SAMPLED, CLIP),
        (faults.everybody_twice, canary_run.SAMPLED, CLIP),
        (faults.one_user_twice, EVERYBODY, IMPOSSIBLE),
        (faults.one_user_twice, HALF, IMPOSSIBLE),
        (faults.shuffled, canary_run.SAMPLED, SAMPLING),
        (faults.shuffled, canary_run.SAMPLED, SIZES),
        (faults.shuffled, FOUR_A_ROUND, SAMPLING),
        (faults.fixed_size, canary_run.SAMPLED, SIZES),
        (faults.more_often, canary_run.SAMPLED, SAMPLING),
        (faults.noise_off, EVERYBODY, "noise"),
        (faults.noise_a_tenth, canary_run.SAMPLED, "noise"),
    ],
)
def test_a_fault_is_found_and_named(
    fault: Fault, settings: dict[str, Any], found_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    config, plan = canary_run.run(**settings)
    result = check_conformance(config, plan, n=300, seed=12)
    assert not result.holds
    assert any(found_by in violation for violation in result.violations), result.sentence


def test_how_much_wider_the_clip_is_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ratio has a standard deviation of 3e-4; false alarm about once in 10 billion."""
    faults.clip_too_wide(monkeypatch)
    config, plan = canary_run.run(**canary_run.SAMPLED)
    assert check_conformance(config, plan, n=300, seed=12).clip_ratio == pytest.approx(1.02, abs=2e-3)


def test_one_user_who_counts_twice_is_one_user(monkeypatch: pytest.MonkeyPatch) -> None:
    faults.one_user_twice(monkeypatch)
    config, plan = canary_run.run(**HALF)
    result = check_conformance(config, plan, n=300, seed=13)
    assert result.impossible == 1
    assert result.impossible_p < 1e-9


def test_only_sums_of_gradients_can_be_looked_at() -> None:
    config, plan = canary_run.run(training__optimizer="adam")
    with pytest.raises(PrivacyError, match=r"training\.optimizer=sgd"):
        check_conformance(config, plan, n=50, seed=0)
    config, plan = canary_run.run(privacy__mode="none")
    with pytest.raises(PrivacyError, match="mode 'none'"):
        check_conformance(config, plan, n=50, seed=0)
