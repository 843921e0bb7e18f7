"""A folder on a disk that is quick, and a ledger in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.privacy.ledger import Ledger
from tests.common.privacy.ledgers import SILO, Clock, policy, quick_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    place = quick_folder()
    yield place
    shutil.rmtree(place)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(folder: Path, clock: Clock) -> Ledger:
    return Ledger.create(folder / "ledger.sqlite", policy(), SILO, clock=clock)
