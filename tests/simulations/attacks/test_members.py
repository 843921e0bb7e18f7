"""Membership inference: the scores are those of the papers, memorised users are found, and noise hides them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from common.errors import PrivacyError
from common.privacy.audit.roc import roc
from common.privacy.plan import PrivacyPlan
from simulations.attacks.members import (
    SCALES,
    MembershipResult,
    Method,
    Signals,
    attack_members,
    choose_scale,
    coins,
    implied_epsilon,
    judge_members,
    lira_scores,
    member_signals,
    rmia_scores,
    thinned,
)
from simulations.attacks.target import some_users
from tests.simulations.attacks import attacked_silo

#: Many passes over few users: they are memorised.
OVERFIT = {"training__local_epochs": 12, "training__batch_size": 32, "model__item_dim": 16, "model__lora_rank": 4}
#: Noise of some forty times the clip.
STRONG = {"privacy__mode": "silo", "privacy__epsilon": 0.1, "training__optimizer": "sgd", "training__learning_rate": 0.05}


def made_up(users: int = 40, shadows: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Losses under target and shadows, lower for those who were in; some users are easier than others."""
    rng = np.random.default_rng(seed)
    inside = coins(users, shadows, rng)
    losses = 3.0 + rng.normal(0, 1, (users, 1)) + rng.normal(0, 0.3, inside.shape) - 0.5 * inside
    losses = np.abs(losses)
    return losses[:, 0], losses[:, 1:], inside[:, 1:], inside[:, 0]


def test_lira_is_the_formula_of_the_paper() -> None:
    """1 - Pr[Z > φ], φ = log(p / (1 - p)), Z normal with the user's mean without them and one pooled variance; user by user."""
    target, shadows, inside, _ = made_up()
    scores = lira_scores(target, shadows, inside)
    confidences = [
        [math.log(math.exp(-loss) / (1 - math.exp(-loss))) for loss, was_in in zip(row, who, strict=True) if not was_in]
        for row, who in zip(shadows, inside, strict=True)
    ]
    squares = sum(sum((c - np.mean(row)) ** 2 for c in row) for row in confidences)
    std = math.sqrt(squares / sum(len(row) - 1 for row in confidences))
    for user, row in enumerate(confidences):
        phi = math.log(math.exp(-target[user]) / (1 - math.exp(-target[user])))
        beyond = 0.5 * math.erfc((phi - np.mean(row)) / (std * math.sqrt(2)))
        assert 1 - math.exp(-scores[user]) == pytest.approx(1 - beyond, abs=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 1.3])
@pytest.mark.parametrize("scale", [None, 0.0, 0.3, 1.0])
def test_rmia_is_the_formula_of_the_paper(gamma: float, scale: float | None) -> None:
    """Score(x) = Pr_z[(Pr(x|θ)/Pr(x)) / (Pr(z|θ)/Pr(z)) >= γ], pair by pair."""
    target, shadows, inside, _ = made_up(seed=1)
    users, n_shadows = shadows.shape
    expected = np.zeros(users)
    for x in range(users):
        without = [math.exp(-shadows[x, k]) for k in range(n_shadows) if not inside[x, k]]
        within = [math.exp(-shadows[x, k]) for k in range(n_shadows) if inside[x, k]]
        if scale is None:
            of_x = 0.5 * (sum(within) / len(within) + sum(without) / len(without))
        else:
            of_x = 0.5 * ((1 + scale) * sum(without) / len(without) + (1 - scale))
        for z in range(users):
            if z != x:
                of_z = sum(math.exp(-shadows[z, k]) for k in range(n_shadows)) / n_shadows
                ratio = (math.exp(-target[x]) / of_x) / (math.exp(-target[z]) / of_z)
                expected[x] += (ratio >= gamma) / (users - 1)
    np.testing.assert_allclose(rmia_scores(target, shadows, inside, gamma=gamma, offline_scale=scale), expected, atol=1e-12)
    assert 0 < expected.mean() < 1


def test_the_offline_scale_is_the_best_one_against_a_shadow_and_never_sees_the_target() -> None:
    _, shadows, inside, _ = made_up(users=200, seed=2)
    areas = {
        a: roc_auc_score(inside[:, 0], rmia_scores(shadows[:, 0], shadows[:, 2:], inside[:, 2:], offline_scale=a)) for a in SCALES
    }
    assert areas[choose_scale(shadows, inside)] == pytest.approx(max(areas.values()))
    assert max(areas.values()) > min(areas.values()) + 0.05


def test_every_user_is_outside_of_half_of_the_shadows_and_in_the_target_by_a_fair_coin() -> None:
    """False alarm once in a million."""
    inside = coins(2000, 6, np.random.default_rng(0))
    assert (inside[:, 1:].sum(axis=1) == 3).all()
    assert stats.binomtest(int(inside[:, 0].sum()), 2000).pvalue > 1e-6
    agree = (inside[:, :1] == inside[:, [1, 3, 5]]).sum(axis=0)
    assert all(stats.binomtest(int(n), 2000).pvalue > 1e-6 / 3 for n in agree)


def test_the_implied_epsilon_of_a_mechanism_with_known_epsilon_is_rarely_above_it() -> None:
    """Each user's bit through Laplace noise of epsilon 1, 300 times. A bound at 90 % is wrong in at most 10 % of runs: more than
    65 are chance once in 9 million. It must not be empty either: with 30,000 users it shows more than half of epsilon."""
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(300):
        member = rng.random(300) < 0.5
        wrong += implied_epsilon(member + rng.laplace(0, 1.0, 300), member, delta=0.0, confidence=0.9).epsilon_lower > 1.0
    assert stats.binom.sf(65, 300, 0.1) < 1.2e-7
    assert wrong <= 65
    member = rng.random(30_000) < 0.5
    assert 0.5 < implied_epsilon(member + rng.laplace(0, 1.0, 30_000), member, delta=0.0).epsilon_lower < 1.0


@pytest.mark.parametrize("sign", [1, -1])
def test_the_implied_epsilon_sees_both_directions(sign: int) -> None:
    """Scores by which half of one group, and nobody else, is known for sure."""
    rng = np.random.default_rng(5)
    member = np.arange(1000) % 2 == 0
    known = (member if sign > 0 else ~member) & (rng.random(1000) < 0.5)
    found = implied_epsilon(sign * (10.0 * known + rng.random(1000)), member, delta=0.01)
    each = 1 - 0.05 / 4
    hits = int(known.sum())
    low = stats.binomtest(hits, 500).proportion_ci(each, "exact").low
    high = stats.binomtest(0, 500).proportion_ci(each, "exact").high
    assert found.direction == ("members" if sign > 0 else "non-members")
    assert found.rate == 0.001
    assert found.epsilon_lower == pytest.approx(math.log((low - 0.01) / high), abs=0.02)
    perfect = implied_epsilon(member.astype(float), member, delta=0.01)
    assert perfect.epsilon_lower == pytest.approx(perfect.ceiling)
    assert implied_epsilon(np.zeros(1000), member, delta=0.01).epsilon_lower == 0.0


def test_a_thinned_curve_keeps_its_ends_and_its_low_rates() -> None:
    rng = np.random.default_rng(6)
    member = rng.random(5000) < 0.5
    curve = roc(rng.normal(member, 1.0), member)
    fpr, tpr = (np.array(side) for side in thinned(curve, 100))
    assert len(fpr) <= 100
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()
    assert (fpr < 0.01).sum() > 20
    assert set(zip(fpr, tpr, strict=True)) <= set(zip(curve.fpr, curve.tpr, strict=True))
    assert np.trapezoid(tpr, fpr) == pytest.approx(curve.auc, abs=0.01)


def attack(settings: dict[str, Any], **options: Any) -> MembershipResult:
    config = attacked_silo.config(**settings)
    return attack_members(config, attacked_silo.data(config), attacked_silo.plan(config), **{"shadows": 4, "seed": 1, **options})


@pytest.fixture(scope="module")
def overfit() -> tuple[Signals, PrivacyPlan]:
    config = attacked_silo.config(**OVERFIT)
    plan = attacked_silo.plan(config)
    return member_signals(config, attacked_silo.data(config), plan, shadows=4, seed=1), plan


@pytest.fixture(scope="module")
def memorised(overfit: tuple[Signals, PrivacyPlan]) -> MembershipResult:
    return judge_members(*overfit)


def test_users_that_were_memorised_are_found(memorised: MembershipResult) -> None:
    found = memorised
    assert found.claimed_epsilon is None
    assert found.loss_members < found.loss_non_members - 1.0
    assert found.auc > 0.9
    assert found.auc_low > 0.7
    assert found.rates[0].tpr > 0.1
    assert found.one_run.epsilon_lower > 0.5
    assert "better than chance" in found.sentences()[1]


@pytest.mark.parametrize("method", ["lira", "rmia-offline"])
def test_other_attacks_find_them_too(method: Method, overfit: tuple[Signals, PrivacyPlan]) -> None:
    found = judge_members(*overfit, method=method)
    assert found.auc_low > 0.7
    assert (found.offline_scale is None) == (method == "lira")


def test_behind_strong_noise_nobody_is_found() -> None:
    """Epsilon 0.1: swapping a member with a non-member is two changes, so no attack has an expected AUC beyond 1/2 +
    tanh(epsilon) / 2 + delta. Around that the AUC moves as that of random scores. False alarm once in 2 million."""
    found = attack(STRONG)
    assert found.claimed_epsilon == pytest.approx(0.1, abs=0.001)
    spread = math.sqrt((found.users + 1) / (12 * found.members * found.non_members))
    leak = math.tanh(0.1) / 2 + found.delta
    assert abs(found.auc - 0.5) < leak + stats.norm.isf(2.5e-7) * spread
    assert not found.one_run.refutes(0.1)
    assert found.one_run.could_refute(0.1)


def test_too_few_non_members_say_nothing_about_low_rates(memorised: MembershipResult) -> None:
    low, lower = memorised.rates
    assert (low.fpr, lower.fpr) == (0.01, 0.001)
    assert not lower.can_say_anything
    assert f"{memorised.non_members} non-members can say nothing about a false positive rate of 0.001" in " ".join(
        memorised.sentences()
    )


def test_the_result_is_plain_json_with_the_curve(memorised: MembershipResult) -> None:
    told = json.loads(json.dumps(memorised.as_dict(), allow_nan=False))
    assert told["members"] + told["non_members"] == told["users"]
    assert len(told["false_positive_rate"]) == len(told["true_positive_rate"]) > 10
    assert told["one_run"]["n_canaries"] == told["users"]


def test_users_without_a_prediction_are_left_out_and_counted() -> None:
    config = attacked_silo.config(training__local_epochs=1)
    data = some_users(attacked_silo.data(config), range(30))
    short = [history[:1] if user % 3 == 0 else history for user, history in enumerate(data.histories)]
    found = attack_members(config, replace(data, histories=tuple(short)), attacked_silo.plan(config), shadows=2, seed=0)
    assert (found.users, found.unmeasured) == (20, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shadows": 3}, "an even number, at least 2"),
        ({"shadows": 2, "method": "lira"}, "an even number, at least 4"),
        ({"method": "guess"}, "must be one of rmia, rmia-offline, lira"),
    ],
)
def test_impossible_attacks_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        attack({}, **options)


def test_too_few_users_are_refused() -> None:
    config = attacked_silo.config(training__local_epochs=1)
    data = some_users(attacked_silo.data(config), range(2))
    with pytest.raises(PrivacyError, match="too few to attack"):
        attack_members(config, data, attacked_silo.plan(config), shadows=2, seed=0)
