"""Two finished simulations that tests may read but not change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulations import small_run


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in mode none, with one reference recommender."""
    return small_run.run(tmp_path_factory.mktemp("plain"), 'evaluation.references=["popularity"]')


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in mode silo."""
    return small_run.run(tmp_path_factory.mktemp("private"), 'evaluation.references=["popularity"]', *small_run.PRIVATE)
