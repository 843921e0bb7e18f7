"""Sentences of the report follow from the figures."""

from __future__ import annotations

import pytest

from simulations import report_text as text
from tests.simulations.made_up_run import made_up


@pytest.mark.parametrize(
    ("own", "head"),
    [
        (0.0430, "1.7 times as good as recommending what is popular"),
        (0.0255, "About as good as recommending what is popular"),
        (0.0100, "Worse than recommending what is popular (0.39 times as good)"),
    ],
)
def test_headline_compares_with_popularity(own, head):
    result, _ = made_up()
    assert text.quality(result | {"ndcg@10": own})[0] == head


def test_headline_says_when_intervals_overlap():
    result, _ = made_up()
    popular = next(r for r in result["references"] if r["name"] == "popularity")
    doubt = "Their confidence intervals overlap"
    assert popular["intervals"]["ndcg@10"][1] < result["intervals"]["ndcg@10"][0]
    assert doubt not in text.quality(result)[1]
    result["intervals"]["ndcg@10"][0] = popular["intervals"]["ndcg@10"][1] - 1e-4
    assert doubt in text.quality(result)[1]


def test_headline_without_popularity_gives_the_figure_itself():
    result, _ = made_up()
    assert text.quality(result | {"references": []})[0] == "NDCG@10 is 0.0426"


def test_privacy_of_mode_distributed_is_told_in_two_figures():
    result, _ = made_up(mode="distributed")
    told = " ".join(text.privacy(result | {"epsilon_if_others_collude": 12.345})[1])
    assert "noise of at least 3 honest silos" in told
    assert "epsilon is 12.35, by the silo's own share" in told
    assert "there is no bound" in " ".join(text.privacy(result | {"epsilon_if_others_collude": None})[1])
    assert "no other silo colluding" in " ".join(text.privacy(result | {"colluding_silos": 0})[1])
    for mode in ("silo", "none"):
        assert "collu" not in " ".join(text.privacy(made_up(mode=mode)[0])[1])


@pytest.mark.parametrize(
    ("mode", "sent"),
    [("silo", "were updates with noise"), ("distributed", "were sums over silos with noise"), ("none", "without any protection")],
)
def test_lead_says_what_the_coordinator_received(mode, sent):
    assert sent in text.lead(made_up(mode=mode)[0])
