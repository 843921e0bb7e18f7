"""Readers of public and private data sets, one small file per format.

A reader registers itself with :func:`common.data.readers.registry.reader`; importing this package registers all of them. To
add a format, add a file and name it below; no other code changes.
"""

from __future__ import annotations

from common.data.readers import (
    amazon,
    mind,
    movielens_100k,
    movielens_csv,
    movielens_dat,
    recbole,
    table_csv,
    table_parquet,
)

__all__ = ["amazon", "mind", "movielens_100k", "movielens_csv", "movielens_dat", "recbole", "table_csv", "table_parquet"]
