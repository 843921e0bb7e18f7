"""``silorec bench search`` measures what its goals speak of, in a small catalogue."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.engine import approximate
from common.errors import ConfigError
from simulations.bench import goals_of, run_bench, search
from simulations.bench.made_up_shop import TEXT_DIM, WINDOW, MadeUpShop
from simulations.watch import Silent


def test_every_goal_is_about_a_figure_that_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the index is faster is not asked here: in so few items it need not be."""
    monkeypatch.setattr(search, "SMALLER", {"10k items": 1000})
    monkeypatch.setattr(approximate, "QUERIES", 120)
    report = run_bench("search", tmp_path, Silent(), items=2000, repeats=40)
    values = {figure.name: figure.value for figure in report.figures}
    assert len(values) == len(report.figures)
    assert goals_of("search")
    assert {goal.figure for goal in report.goals} <= set(values)
    assert values["recall@10, whole catalogue"] >= 0.97
    best = min(values["exact, whole catalogue"], values["exact with a float32 copy, whole catalogue"])
    assert values["exact over approximate, whole catalogue"] == pytest.approx(best / values["approximate, whole catalogue"])
    assert values["vectors, whole catalogue"] == 2000 * 96 / 2**20
    assert {name for name in values if name.endswith("10k items")} >= {"exact, 10k items", "approximate, 10k items"}
    assert json.loads((tmp_path / "search.json").read_text())["bench"] == "search"


def test_sizes_that_say_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1,000 items or more"):
        run_bench("search", tmp_path, Silent(), items=10)


def test_the_made_up_shop_has_clusters_and_people_with_tastes() -> None:
    shop = MadeUpShop.of(5000)
    text = shop.bundle.items.rows(np.arange(5000))[:, :TEXT_DIM]
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1.0, atol=0.02)
    cosines = text @ text.T
    together = shop.clusters[:, None] == shop.clusters
    assert cosines[together & ~np.eye(5000, dtype=bool)].mean() == pytest.approx(1 / 1.36, abs=0.03)  # 1 / (1 + spread²)
    assert abs(cosines[~together].mean()) < 0.02
    histories = shop.histories(400, seed=1)
    assert histories == shop.histories(400, seed=1)
    assert {len(history) for history in histories} == set(range(1, WINDOW + 1))
    long = [history for history in histories if len(history) >= 20]
    assert np.mean([np.bincount(shop.clusters[history]).max() / len(history) for history in long]) > 0.3
    assert MadeUpShop.of(5000).bundle.digest == shop.bundle.digest != MadeUpShop.of(5000, seed=1).bundle.digest
