"""How many silos a sum takes, from public numbers; both sides hold each other to it."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import load
from common.errors import ConfigError, SecAggError
from common.secagg.graph import SMALL
from common.secagg.rules import MIN_SILOS, Rules

SHARES = st.sampled_from(
    [Fraction(0), Fraction(1, 20), Fraction(1, 10), Fraction(1, 5), Fraction(1, 4), Fraction(1, 3), Fraction(2, 5)]
)


@pytest.mark.parametrize(
    ("silos", "least", "corrupted", "honest"),
    [(3, 2, 0, 1), (4, 3, 0, 2), (6, 4, 0, 3), (9, 6, 0, 5), (10, 7, 1, 6), (30, 20, 3, 17)],
)
def test_of_ten_silos_three_may_vanish_and_one_collude(silos: int, least: int, corrupted: int, honest: int) -> None:
    """A third and a tenth, rounded down; but one silo may know its own share of the noise."""
    rules = Rules(silos)
    assert (rules.least, rules.corrupted, rules.honest) == (least, corrupted, honest)


def test_all_noise_is_counted_on_only_where_the_settings_say_that_no_silo_looks() -> None:
    assert Rules(8, 0.0, 0.0).honest == 8
    assert Rules(8, 0.0, 0.01).honest == 7
    assert Rules(30, 0.0, 0.1).honest == 27


@pytest.mark.parametrize(
    ("silos", "shares", "why"),
    [
        (2, {}, r"needs 3 of them, not 2; take aggregation\.method = 'plain'"),
        (1, {}, "needs 3 of them, not 1"),
        (0, {}, "needs 3 of them, not 0"),
        (3, {"corrupt": 0.4}, "threshold: 2 of 3 silos with 1 corrupt leaves sums of fewer than two honest silos"),
        (5, {"dropout": 0.4, "corrupt": 0.4}, "threshold: 3 of 5 silos with 2 corrupt leaves sums of fewer than two"),
        (20, {"dropout": 0.45}, "left are no quorum of 12"),
        (100, {"dropout": 0.45}, "the 55 left are no quorum of 56"),
        (10, {"dropout": -0.1}, "dropout: a share of the silos is from 0 and below 1, not -0.1"),
        (10, {"dropout": 1.0}, "dropout: a share of the silos is from 0 and below 1"),
        (10, {"corrupt": math.nan}, "corrupt: a share of the silos is from 0 and below 1, not nan"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(silos: int, shares: dict[str, float], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Rules(silos, **shares)


@settings(max_examples=200, deadline=None)
@given(st.integers(MIN_SILOS, 90), SHARES, SHARES, st.data())
def test_the_rules_keep_what_the_settings_promise(silos: int, dropout: Fraction, corrupt: Fraction, data: st.DataObject) -> None:
    """Whoever showed keys, as long as no more vanished than may: the survivors are a quorum and can recover all secrets, the
    corrupt ones can do neither, and a sum has two honest silos.
    """
    try:
        rules = Rules(silos, float(dropout), float(corrupt))
    except ConfigError:
        d, c = math.floor(dropout * silos), math.floor(corrupt * silos)
        assert silos - d - c < 2 or 2 * (silos - d) <= silos + c
        return
    assert rules.least == silos - math.floor(dropout * silos)
    assert rules.corrupted == math.floor(corrupt * silos)
    assert rules.least - rules.corrupted >= 2
    assert 1 <= rules.honest <= rules.least - rules.corrupted
    advertised = data.draw(st.integers(rules.least, silos))
    plan = rules.plan(advertised)
    assert plan.silos == advertised
    assert plan.quorum <= rules.least
    assert 2 * plan.quorum > advertised + rules.corrupted  # two quorums would share an honest silo, which signs one set
    if advertised <= SMALL:
        assert plan.is_complete
        assert rules.corrupted < plan.threshold == rules.least
    else:
        assert plan.threshold <= plan.degree + 1


@pytest.mark.parametrize("advertised", [0, 6, 11])
def test_fewer_silos_than_a_sum_takes_or_more_than_there_are_get_no_plan(advertised: int) -> None:
    with pytest.raises(SecAggError, match=f"{advertised} of 10 silos are there; a sum takes 7 or more"):
        Rules(10).plan(advertised)


def test_both_sides_find_the_same_rules_in_the_configuration() -> None:
    config = load({"partition.silos": 10, "aggregation": {"dropout": 0.2, "corrupt": 0.3}})
    assert Rules.of(config) == Rules(10, 0.2, 0.3)
    declared = load({"partition.silos": 4, "federation.declared_users": [5, 6, 7, 8]})
    assert Rules.of(declared) == Rules(4, 1 / 3, 0.1)
