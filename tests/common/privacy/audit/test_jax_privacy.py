"""Both one-run bounds against ``jax_privacy.auditing.CanaryScoreAuditor``, written by others from the same papers.

The package imports JAX when it is imported; its module ``auditing`` needs NumPy, SciPy and dp_accounting only. So the package is
installed without its dependencies, and the module alone is loaded, from its file.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.privacy.audit.fdp_bound import fdp_bound_gaussian
from common.privacy.audit.one_run import audit_scores, guess, steinke_bound


@pytest.fixture(scope="module")
def auditing() -> Iterator[Any]:
    package = importlib.util.find_spec("jax_privacy")  # finds it without importing it
    if package is None or package.origin is None:
        pytest.skip("jax-privacy is not installed (pip install --no-deps jax-privacy)")
    name = "jax_privacy_auditing_alone"
    spec = importlib.util.spec_from_file_location(name, Path(package.origin).with_name("auditing.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.mark.parametrize(("m", "mu"), [(60, 2.0), (500, 1.0), (2000, 0.8), (2000, 3.0)])
@pytest.mark.parametrize("delta", [1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("significance", [0.01, 0.05])
def test_both_bounds_are_those_of_canary_score_auditor(
    auditing: Any, m: int, mu: float, delta: float, significance: float
) -> None:
    """Thresholds are fixed and guesses go one way, as there. Its searches stop at 1e-6."""
    rng = np.random.default_rng(m)
    included = rng.random(m) < 0.5
    scores = rng.standard_normal(m) + mu * included
    oracle = auditing.CanaryScoreAuditor(scores[included], scores[~included])
    seen = 0
    for n in (m // 20, m // 5, m // 2, m):
        at = auditing.Explicit(float(np.sort(scores)[-n]))
        made = guess(scores, included, n, side="in")
        ours = steinke_bound(m, made.n, made.correct, delta=delta, confidence=1 - significance)
        theirs = oracle.epsilon_one_run(significance, delta, threshold_strategy=at)
        assert ours == pytest.approx(theirs, abs=1e-5)
        ours_fdp = fdp_bound_gaussian(m, made.n, made.correct, delta=delta, confidence=1 - significance).epsilon
        theirs_fdp = oracle.epsilon_one_run_fdp(significance, delta, threshold_strategy=at)
        assert ours_fdp == pytest.approx(theirs_fdp, abs=2e-5)
        one = audit_scores(scores, included, delta=delta, confidence=1 - significance, guesses=n, side="in")
        assert one.epsilon_lower == ours
        seen += (ours > 0) + (ours_fdp > 0)
    assert seen > 0


def test_counts_alone_give_its_bounds_too(auditing: Any) -> None:
    for m, n, v in [(100, 100, 60), (100, 100, 99), (1000, 30, 30), (1000, 1000, 800), (5000, 400, 390)]:
        for delta in (1e-8, 1e-5, 1e-4):
            theirs = auditing._epsilon_one_run(0, m, n, v, 0.05, delta)
            assert steinke_bound(m, n, v, delta=delta) == pytest.approx(theirs, abs=1e-5)
            theirs = auditing._epsilon_one_run_fdp(0, m, n, v, 0.05, delta)
            assert fdp_bound_gaussian(m, n, v, delta=delta).epsilon == pytest.approx(theirs, abs=2e-5)
