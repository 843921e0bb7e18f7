"""The figures by which a person recognises a data set: how many, how long, how dense, how skewed."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.data.interactions import Dataset

_QUANTILES = {"min": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}


def summary(dataset: Dataset) -> dict[str, Any]:
    """Plain values, ready for JSON.

    Keys are ``name``, ``users``, ``items``, ``items_touched``, ``interactions``, ``density`` (share of user-item pairs that
    met), ``first`` and ``last`` (UTC), ``days``, ``interactions_per_user`` (quantiles), ``share_of_items_with_category``,
    ``share_with_text``, ``share_of_users_with_profile``, ``values`` (lowest and highest, or None) and ``dropped``.
    """
    data, catalogue = dataset.interactions, dataset.catalogue
    pairs = len(np.unique(data.user.astype(np.int64) * len(catalogue) + data.item))
    per_user = np.bincount(data.user, minlength=data.n_users)
    first, last = int(data.time.min()), int(data.time.max())
    written = 0 if data.text is None else sum(1 for text in data.text if text)
    profiles = 0 if dataset.user_text is None else sum(1 for text in dataset.user_text if text)
    return {
        "name": dataset.name,
        "users": data.n_users,
        "items": len(catalogue),
        "items_touched": int((np.bincount(data.item, minlength=len(catalogue)) > 0).sum()),
        "interactions": len(data),
        "density": pairs / (data.n_users * len(catalogue)),
        "first": str(np.datetime64(first, "s")),
        "last": str(np.datetime64(last, "s")),
        "days": (last - first) / 86_400,
        "interactions_per_user": {name: float(np.quantile(per_user, q)) for name, q in _QUANTILES.items()},
        "share_of_items_with_category": sum(1 for row in catalogue.categories if row) / len(catalogue),
        "share_with_text": written / len(data),
        "share_of_users_with_profile": profiles / data.n_users,
        "values": None if data.value is None else [float(data.value.min()), float(data.value.max())],
        "dropped": {
            reason: {"count": count, "example": dataset.dropped.examples.get(reason, "")}
            for reason, count in dataset.dropped.counts.items()
        },
    }
