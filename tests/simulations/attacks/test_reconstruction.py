"""What one update tells: much when it is bare, nothing behind a mask, and in between with noise, down to nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from common.errors import PrivacyError
from common.model.adapter import to_vector
from common.model.resident import resident
from simulations.attacks.reconstruction import ReconstructionResult, reconstruct
from simulations.attacks.target import some_users
from simulations.attacks.views import VIEWS
from tests.simulations.attacks import attacked_silo

#: Every user in every step: what is hidden is hidden by noise.
PRIVATE = {
    "privacy__mode": "silo",
    "training__optimizer": "sgd",
    "training__learning_rate": 0.1,
    "training__local_steps": 1,
    "training__sampling_probability": 1.0,
}
SILOS, NAMED = 30, 3
#: In clips; epsilon of one update is some 0.05.
STRONG = 50.0


def attack(noise_multiplier: float, **options: Any) -> ReconstructionResult:
    config = attacked_silo.config(**PRIVATE)
    plan = replace(attacked_silo.plan(config), noise_multiplier=noise_multiplier)
    return reconstruct(config, attacked_silo.data(config), plan, **{"seed": 2, "silos": SILOS, "named": NAMED, **options})


@pytest.fixture(scope="module")
def strong() -> ReconstructionResult:
    return attack(STRONG)


@pytest.fixture(scope="module")
def weak() -> ReconstructionResult:
    """A twentieth of a clip: noise that protects nobody."""
    return attack(0.05)


def test_a_bare_update_of_one_user_gives_the_items_away(strong: ReconstructionResult) -> None:
    found = strong.best_items("unprotected", 1)
    assert found.precision > 0.9
    assert found.precision_low > 0.7
    assert found.p_value < 1e-20
    one, several = strong.guessing
    assert found.precision > one.popularity + 0.2 > one.random + 0.2
    assert strong.best_items("unprotected", 4).precision > max(0.9, several.popularity)


def test_behind_a_mask_items_are_named_as_if_drawn_at_random(strong: ReconstructionResult) -> None:
    """Biases under a uniform mask are in random order, so right names are sums of hypergeometric numbers: exact. p-values of all
    readers together give a false alarm once in 100,000."""
    for users in (1, 4):
        for found in strong.items:
            if found.view == "masked" and found.users == users:
                assert found.p_value > 1e-5 / 2
                assert abs(found.auc - 0.5) < 0.15
    share = strong.guessing[0].random
    right = next(f for f in strong.items if (f.view, f.users, f.reader) == ("masked", 1, "biases"))
    # Names without replacement vary less than coins do: a binomial bound is on the safe side. Once in a million.
    low, high = stats.binom.ppf([5e-7, 1 - 5e-7], SILOS * NAMED, share)
    assert low <= round(right.precision * SILOS * NAMED) <= high


def test_strong_noise_hides_the_items(strong: ReconstructionResult) -> None:
    """With epsilon below 0.1, a name is right at most 1.1 times as often as by chance: too little to show in so few names. False
    alarm once in 100,000."""
    assert strong.epsilon < 0.1
    for users in (1, 4):
        assert strong.best_items("private", users).p_value > 1e-5 / 2


def test_weak_noise_lies_between(weak: ReconstructionResult) -> None:
    for users in (1, 4):
        bare, noisy, masked = (weak.best_items(view, users) for view in ("unprotected", "private", "masked"))
        assert masked.auc < noisy.auc < bare.auc
    assert weak.best_items("private", 1).p_value < 1e-6
    assert weak.best_items("private", 1).precision < weak.best_items("unprotected", 1).precision


def test_candidates_are_told_apart_from_a_bare_update_only(strong: ReconstructionResult) -> None:
    """Coins are fair, so behind a mask ranks are random: Mann and Whitney, once in a million. Under (epsilon, delta)-DP no AUC is
    expected beyond 1/2 + tanh(epsilon) / 2 + delta; the rest is chance, once in 3 million."""
    bare, masked, private = (strong.best_users(view) for view in ("unprotected", "masked", "private"))
    assert bare.auc_low > 0.6
    assert bare.precision > bare.present / bare.candidates + 0.1
    assert masked.p_value > 1e-6
    absent = private.candidates - private.present
    spread = math.sqrt((private.candidates + 1) / (12 * private.present * absent))
    assert private.auc < 0.5 + math.tanh(strong.epsilon) / 2 + strong.delta + stats.norm.isf(3e-7) * spread
    assert private.auc < bare.auc


def test_the_regression_sees_more_than_the_cosine(weak: ReconstructionResult) -> None:
    found = {(r.view, r.reader): r.auc for r in weak.users}
    assert found["unprotected", "regression"] > found["unprotected", "cosine"]


def test_a_mask_of_zeros_hides_nothing() -> None:
    """Guards the tests of the mask: it is the mask that hides, and the one that was given is used."""
    asked: list[int] = []

    def no_mask(n: int) -> np.ndarray:
        asked.append(n)
        return np.zeros(n, dtype=np.uint32)

    found = attack(STRONG, silos=6, candidates=20, mask=no_mask)
    assert len(asked) == 13
    assert found.best_items("masked", 1).precision == pytest.approx(found.best_items("unprotected", 1).precision)


def test_the_result_is_plain_json_with_three_rows_and_sentences(strong: ReconstructionResult) -> None:
    told = json.loads(json.dumps(strong.as_dict(), allow_nan=False))
    assert [row["view"] for row in told["table"]] == list(VIEWS)
    assert set(told["table"][0]) == {"view", "items_of_1", "items_of_4", "users_auc"}
    assert len(told["sentences"]) == 1 + 3 * 3
    assert "From one masked update of a silo of one user" in told["sentences"][2]
    assert "more than chance" in told["sentences"][1]
    assert all(len(row["false_positive_rate"]) == len(row["true_positive_rate"]) for row in told["users"])


@pytest.mark.parametrize(("p_value", "verdict"), [(0.0055, "more than chance"), (0.0056, "not distinguishable from chance")])
def test_a_verdict_pays_for_nine_findings(p_value: float, verdict: str, strong: ReconstructionResult) -> None:
    said = replace(strong, items=tuple(replace(found, p_value=p_value) for found in strong.items)).sentences()
    assert all(verdict in sentence for sentence in said[1:7])


def test_epsilon_is_that_of_one_round(weak: ReconstructionResult, strong: ReconstructionResult) -> None:
    """Against the exact epsilon of a Gaussian mechanism; the accountant's bound may be a little above."""
    for found in (weak, strong):
        exact = dp_accounting.get_epsilon_gaussian(found.noise_multiplier, found.delta)
        assert exact <= found.epsilon < 1.2 * exact + 0.05


def test_the_model_is_handed_back_at_its_start(strong: ReconstructionResult) -> None:
    home = resident(attacked_silo.config(**PRIVATE))
    np.testing.assert_array_equal(to_vector(home.model), home.start)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data, plan: ({"plan": replace(plan, mode="none")}), "plan of a private mode"),
        (lambda data, plan: ({"data": some_users(data, range(6))}), "attack a larger silo"),
        (lambda data, plan: ({"named": 61}), "or name fewer items"),
        (lambda data, plan: ({"batch": 1}), "batch = 1"),
        (lambda data, plan: ({"confidence": 1.5}), "confidence = 1.5"),
    ],
)
def test_what_cannot_be_attacked_is_refused(change: Callable[..., dict[str, Any]], message: str) -> None:
    config = attacked_silo.config(**PRIVATE)
    data, plan = attacked_silo.data(config), attacked_silo.plan(config)
    arguments: dict[str, Any] = {"data": data, "plan": plan, "seed": 0} | change(data, plan)
    with pytest.raises(PrivacyError, match=message):
        reconstruct(config, arguments.pop("data"), arguments.pop("plan"), **arguments)
