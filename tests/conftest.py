"""What all tests share: no model hub, one thread, and a tiny public catalogue.

A test that needs a cache folder sets ``SILOREC_CACHE`` itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by PyTorch when it is first imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest

if TYPE_CHECKING:
    from common.data.catalogue import Catalogue
    from common.data.interactions import Dataset


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Where a test has brought in PyTorch, it computes on one thread."""
    import sys

    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    """Twelve items in three categories."""
    from common.data.catalogue import Catalogue

    words = ("harbour", "meadow", "lantern", "orchard")
    return Catalogue(
        ids=tuple(f"i{i}" for i in range(12)),
        titles=tuple(f"The {words[i % 4]} of {words[(i + i // 4) % 4]} {i}" for i in range(12)),
        categories=tuple((("drama", "comedy", "western")[i % 3],) for i in range(12)),
        fields={"year": tuple(str(1980 + i) for i in range(12))},
        name="tiny",
    )


@pytest.fixture(scope="session")
def dataset(catalogue: Catalogue) -> Dataset:
    """Twenty users who walk the catalogue in a circle, each from an item of its own, with a profile line."""
    from common.data.interactions import Dataset, Interactions

    lengths = [3 + u % 9 for u in range(20)]
    user = np.repeat(np.arange(20, dtype=np.int32), lengths)
    time = np.concatenate([np.arange(n) for n in lengths]).astype(np.int64)
    item = ((user * 5 + time) % len(catalogue)).astype(np.int32)
    interactions = Interactions(user, item, time, tuple(f"u{u}" for u in range(20)))
    return Dataset(catalogue, interactions, tuple(f"reader number {u}" for u in range(20)), name="tiny")
