"""Who is trusted follows from how many silos' noise is counted on, and how many may collude."""

from __future__ import annotations

import pytest

from common.privacy.audit.trust import NOT_TRUSTED, TRUSTED, Sharing, not_trusted, own_share, trusted


def test_in_mode_silo_nobody_outside_of_the_silo_is_trusted() -> None:
    assert trusted(None) == TRUSTED
    assert not_trusted(None) == NOT_TRUSTED
    assert "the other silos" in NOT_TRUSTED


@pytest.mark.parametrize(("honest", "others"), [(2, "1 other silo in every sum"), (12, "11 other silos in every sum")])
def test_the_other_silos_that_are_counted_on_are_trusted_and_so_is_the_roster(honest: int, others: str) -> None:
    share, roster, *rest = trusted(Sharing(honest, 1, 20.0))
    assert share.startswith(others)
    assert "roster of keys" in roster
    assert tuple(rest) == TRUSTED


def test_who_counts_on_no_other_silo_trusts_none() -> None:
    assert trusted(Sharing(1, 1, 8.0)) == TRUSTED


@pytest.mark.parametrize(
    ("colluding", "who"),
    [(None, "some of the other silos, colluding"), (0, None), (1, "1 of the other silos, colluding"), (3, "3 of the other")],
)
def test_as_many_silos_need_not_be_trusted_as_may_collude(colluding: int | None, who: str | None) -> None:
    found = not_trusted(Sharing(3, colluding, 20.0))
    assert "the other silos" not in found
    assert [text for text in found if "of the other silos" in text] == [text for text in found if who and text.startswith(who)]
    assert any("of the other silos" in text for text in found) == (who is not None)
    assert found[0].startswith(NOT_TRUSTED[0])
    assert set(NOT_TRUSTED[2:]) < set(found)


def test_a_silo_that_looks_into_sums_is_covered_where_one_may_collude() -> None:
    assert own_share(Sharing(3, 1, 20.0)) == []
    assert "this run allows for none" in own_share(Sharing(3, 0, 20.0))[0]
    assert "which is not here" in own_share(Sharing(3, None, 20.0))[0]


@pytest.mark.parametrize(
    ("sharing", "said"),
    [
        (Sharing(1, None, 8.0), "the noise of at least 1 honest silo in them. If"),
        (Sharing(4, 0, 20.001), "4 honest silos in them, and with no other silo colluding. If"),
        (Sharing(4, 2, 20.001), "and with at most 2 other silos colluding. If"),
        (Sharing(4, 2, 20.001), "epsilon is 20.01, by the silo's own share"),
        (Sharing(4, 2, None), "collude with the coordinator, there is no bound."),
    ],
)
def test_a_sentence_says_both_figures_rounded_up(sharing: Sharing, said: str) -> None:
    assert said in sharing.in_words
