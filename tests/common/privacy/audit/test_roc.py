"""ROC curves against scikit-learn, intervals against scipy, a closed form and their stated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm
from sklearn.metrics import roc_auc_score, roc_curve

from common.errors import PrivacyError
from common.privacy.audit.roc import clopper_pearson, roc


@pytest.mark.parametrize("digits", [0, 1, 6])
def test_curve_and_area_are_scikit_learns(digits: int) -> None:
    rng = np.random.default_rng(1)
    member = rng.random(500) < 0.3
    scores = np.round(rng.standard_normal(500) + member, digits)
    ours, theirs = roc(scores, member), roc_curve(member, scores, drop_intermediate=False)
    np.testing.assert_allclose(ours.fpr, theirs[0])
    np.testing.assert_allclose(ours.tpr, theirs[1])
    assert ours.auc == pytest.approx(roc_auc_score(member, scores), abs=1e-12)


def test_a_threshold_gives_the_rates_beside_it() -> None:
    rng = np.random.default_rng(2)
    member = rng.random(200) < 0.5
    scores = np.round(rng.standard_normal(200) + member, 1)
    curve = roc(scores, member)
    for fpr, tpr, threshold in zip(curve.fpr, curve.tpr, curve.thresholds, strict=True):
        assert (scores[member] > threshold).mean() == pytest.approx(tpr)
        assert (scores[~member] > threshold).mean() == pytest.approx(fpr)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (17, 2000)])
def test_intervals_of_rates_are_clopper_and_pearsons(k: int, n: int) -> None:
    theirs = binomtest(k, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-10)


def test_the_rate_at_a_false_positive_rate_allows_that_share_of_non_members_and_no_more() -> None:
    rng = np.random.default_rng(3)
    member = np.arange(3000) < 1000
    scores = rng.standard_normal(3000) + 2 * member
    for fpr in (0.001, 0.01, 0.29):
        rate = roc(scores, member).tpr_at(fpr)
        limit = np.sort(scores[~member])[-round(fpr * 2000) - 1]  # the first non-member that must not be called a member
        assert rate.tpr == (scores[member] > limit).mean()
        assert rate.low < rate.tpr < rate.high
        assert rate.can_say_anything
        assert rate.fpr_high > fpr


def test_a_share_of_non_members_that_is_whole_is_counted_whole() -> None:
    """29 % of 100 are 29, though 0.29 * 100 is below that in floating point."""
    member = np.arange(200) < 100
    scores = np.concatenate([np.arange(100.0), np.arange(100.0)])
    assert (scores[~member] > roc(scores, member).tpr_at(0.29).threshold).sum() == 29


@pytest.mark.parametrize(("n", "fpr", "enough"), [(999, 0.001, False), (1000, 0.001, True), (9, 0.1, False), (10, 0.1, True)])
def test_a_rate_that_needs_more_non_members_than_there_are_is_not_stated(n: int, fpr: float, enough: bool) -> None:
    member = np.arange(n + 50) < 50
    rate = roc(np.random.default_rng(4).standard_normal(n + 50), member).tpr_at(fpr)
    assert rate.can_say_anything is enough
    assert ("can say nothing" in rate.sentence) is not enough
    if not enough:
        assert f"{round(1 / fpr):,}" in rate.sentence


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_the_interval_of_the_area_covers_it_as_often_as_stated(shift: float) -> None:
    """1,000 samples of 60 and 90 normal scores. 95 % is stated, asymptotically; a true coverage of 95 % falls below 930 of
    1,000 with probability 0.003."""
    truth, rng, covered = norm.cdf(shift / math.sqrt(2)), np.random.default_rng(5), 0
    member = np.arange(150) < 60
    for _ in range(1000):
        found = roc(rng.standard_normal(150) + shift * member, member)
        covered += found.auc_low <= truth <= found.auc_high
    assert covered >= 930


@pytest.mark.parametrize(("separation", "auc"), [(10.0, 1.0), (-10.0, 0.0)])
def test_a_perfect_separation_has_an_interval_too(separation: float, auc: float) -> None:
    member = np.arange(40) < 20
    found = roc(np.linspace(0, 1, 40) + separation * member, member)
    assert found.auc == auc
    assert 0.05 < found.auc_high - found.auc_low < 0.35
    assert found.auc_low <= auc <= found.auc_high


def test_the_interval_at_a_perfect_separation_is_newcombes() -> None:
    """Newcombe 2006, method 5: the area from which 1 is z standard errors away, solved here on a grid."""
    member = np.arange(50) < 30
    found = roc(member.astype(float), member)
    theta = np.linspace(0.5, 1, 1_000_001)[1:-1]
    size = (30 + 20) / 2 - 1
    error = np.sqrt(theta * (1 - theta) * (1 + size * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (30 * 20))
    assert found.auc_low == pytest.approx(theta[np.argmin(np.abs((1 - theta) - norm.ppf(0.975) * error))], abs=1e-5)
    assert found.auc_high == 1


def test_the_rate_at_a_threshold_covers_the_truth_as_often_as_stated() -> None:
    """400 samples. Given the threshold, the truth is known: the interval is exact, so it misses in at most 5 % of them (more than
    35 misses happen with probability below 1e-3)."""
    rng, missed = np.random.default_rng(6), 0
    member = np.arange(260) < 60
    for _ in range(400):
        rate = roc(rng.standard_normal(260) + member, member).tpr_at(0.05)
        limit = rate.threshold
        missed += not rate.low <= norm.sf(limit - 1) <= rate.high
    assert missed <= binom.ppf(1 - 1e-3, 400, 0.05)


def test_what_has_no_roc_curve_is_refused() -> None:
    with pytest.raises(PrivacyError, match="needs both"):
        roc([1.0, 2.0], [True, True])
    with pytest.raises(PrivacyError, match="fpr"):
        roc([1.0, 2.0], [True, False]).tpr_at(0.0)
    with pytest.raises(PrivacyError, match="score 1"):
        roc([1.0, math.nan], [True, False])
