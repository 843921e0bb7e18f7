"""``silorec bench serve`` measures what its goals speak of, and its load generator counts what the service counts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from common.bundle.contents import Bundle
from common.config_sections import DistillationConfig
from common.engine import Engine
from common.errors import ConfigError
from common.privacy.signing import create_key
from common.proto import path_of
from common.recommending import ANSWERS
from server.serving.limits import Limits
from simulations.bench import goals_of, run_bench, serve
from simulations.bench.grpc_load import Load, generate
from simulations.bench.served_bundle import Size, random_parts
from simulations.watch import Silent
from tests.bundles import write_tiny
from tests.server.serving.running_service import InThread, Running, question


def test_every_goal_is_about_a_figure_that_is_measured(tmp_path: Path) -> None:
    """In seconds; whether times hold is not asked here."""
    report = run_bench("serve", tmp_path, Silent(), items=200, seconds=1, calls=20, repeats=1)
    values = {figure.name: figure.value for figure in report.figures}
    assert len(values) == len(report.figures)
    assert {goal.figure for goal in report.goals} <= set(values)
    assert len(goals_of("serve")) == 3
    assert all(value > 0 for value in values.values())
    for channel in serve.CHANNELS:
        parts = values[f"bare engine call, {channel}"] + values[f"empty call, {channel}"]
        assert values[f"whole call over engine and empty call, {channel}"] == pytest.approx(
            values[f"whole call, {channel}"] / parts
        )
        saturation = values[f"questions a second at saturation, {channel}"]
        loop = values[f"a loop of ONNX Runtime and NumPy without a network, beside {channel}"]
        assert values[f"saturation over the loop, {channel}"] == pytest.approx(saturation / loop)
        p99 = values[f"p99 at 80% of saturation, {channel}"]
        assert values[f"p99 at 80% of saturation over p50 alone, {channel}"] == pytest.approx(
            p99 / values[f"whole call, {channel}"]
        )
    assert json.loads((tmp_path / "serve.json").read_text())["bench"] == "serve"


def test_a_bundle_of_ones_own_is_measured_and_nonsense_is_refused(tmp_path: Path) -> None:
    key = create_key(tmp_path / "key")
    write_tiny(tmp_path / "mine.bundle", key, n_items=150)
    prepared = serve._prepare(tmp_path, str(tmp_path / "mine.bundle"), 0)
    assert len(prepared.bundle.items) == 150
    assert len(prepared.histories) == len(prepared.questions) == serve.QUESTIONS
    with pytest.raises(ConfigError, match="10 calls or more"):
        run_bench("serve", tmp_path, Silent(), calls=1)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle, str]:
    folder = tmp_path_factory.mktemp("shop")
    key = create_key(folder / "key")
    return folder / "shop.bundle", write_tiny(folder / "shop.bundle", key, n_items=150), key.public_key


def a_load(running: Running, bundle: Bundle, **how: float) -> Load:
    questions = tuple(question(bundle.catalogue_fingerprint, (i, i + 1)).hex() for i in range(20))
    size = 2 + 32 + 2 * (3 + 4 * ANSWERS)
    return Load(running.port, path_of("Recommend"), questions, size, 0.5, 0.1, **how)  # type: ignore[arg-type]


def test_the_load_generator_counts_what_the_service_counts(shop: tuple[Path, Bundle, str]) -> None:
    path, bundle, signer = shop
    with Running(path, signer) as running:
        closed = generate(a_load(running, bundle, streams=8, connections=2))
        assert closed.failed == 0
        assert len(closed.latencies) == closed.answered > 50
        answered = running.metric("silorec_calls_total", silo="local", method="Recommend", status="OK")
        assert closed.answered <= answered
        opened = generate(a_load(running, bundle, rate=200.0, connections=2))
        assert opened.failed == 0
        assert 60 <= opened.answered <= 150  # Poisson of mean 100: outside in one of 20,000 runs
        assert running.metric("silorec_calls_total", silo="local", method="Recommend", status="OK") >= answered + opened.answered


def test_the_load_generator_counts_refusals_as_failures(shop: tuple[Path, Bundle, str]) -> None:
    path, bundle, signer = shop
    with Running(path, signer, limits=Limits(rate=1.0, burst=64)) as running:
        outcome = generate(a_load(running, bundle, rate=400.0))
    assert outcome.answered <= 65
    assert outcome.failed > 50


def test_an_open_loop_counts_from_when_a_call_should_have_begun(
    shop: tuple[Path, Bundle, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine stops for 0.3 s in between: calls that should have begun meanwhile have waited, whoever sent them late."""
    path, bundle, signer = shop
    with Running(path, signer, open_engine=InThread) as running:
        top, began = running.live.engine.top, time.perf_counter()
        stalled: list[float] = []

        def stalling(*arguments: object) -> object:
            if time.perf_counter() - began > 0.4 and not stalled:
                stalled.append(1.0)
                time.sleep(0.3)
            return top(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(running.live.engine, "top", stalling)
        outcome = generate(a_load(running, bundle, rate=200.0))
    assert outcome.failed == 0
    slow = [seconds for seconds in outcome.latencies if seconds > 0.03]
    assert len(slow) > 25  # of the about 60 that came while it stood still
    assert max(slow) > 0.25


def test_the_loop_without_a_network_ranks_like_the_engine(tmp_path: Path) -> None:
    size = Size(items=300)
    card, catalogue, items, model = random_parts(size)
    bundle = Bundle("ab" * 32, "cd" * 32, card, catalogue, items, model)
    loop, engine = serve.Loop(bundle), Engine(bundle)
    for history in ((3,), (1, 2, 3, 4), tuple(range(100, 140))):
        positions, scores = engine.top([history], ANSWERS)
        mine = loop.answer(history)
        assert np.allclose(engine.scores([history])[0][mine], scores[0], atol=1e-4)
        assert (mine == positions[0]).mean() > 0.95
    assert loop.per_second([(1, 2)] * 40, 0.05) > 0


def test_the_random_bundle_is_of_a_trained_ones_size() -> None:
    """And what it answers depends on the order of a history: no layer is idle."""
    settings = DistillationConfig()
    card, catalogue, items, model = random_parts(Size())
    assert items.vectors.shape == (1_682, settings.text_dim + settings.item_dim)
    assert (card.model.layers, card.model.width, card.model.precision) == (settings.layers, settings.width, "int8")
    assert 0.4e6 < len(model) < 1e6
    engine = Engine(Bundle("ab" * 32, "cd" * 32, card, catalogue, items, model))
    assert not np.allclose(engine.scores([(2, 1)]), engine.scores([(1, 2)]), atol=1e-3)


def test_a_server_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    load = Load(1, "/a/b", ("00",), 1, 0.1)
    with pytest.raises(OSError, match="refused"):
        generate(load)
    with pytest.raises(ConfigError, match="the load generator failed"):
        serve.run_load(load)
