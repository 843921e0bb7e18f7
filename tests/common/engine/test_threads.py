"""NumPy's threads are limited, as an independent library reads them."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from common.engine.threads import limit_numpy_threads


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas" and "numpy" in pool["filepath"]]


def test_numpy_computes_on_as_many_threads_as_it_is_told(monkeypatch: object) -> None:
    import os

    kept = dict(os.environ)
    try:
        with threadpool_limits(2):
            known = limit_numpy_threads(1)
            assert blas_threads() == [1] * len(blas_threads())
            assert known == bool(blas_threads())
            np.testing.assert_allclose(np.ones((300, 300)) @ np.ones(300), np.full(300, 300.0))
    finally:
        os.environ.clear()
        os.environ.update(kept)
