"""Made-up histories over a public catalogue, for measuring a search: where nobody's history may be looked at.

There are two kinds, since a search that finds what one kind asks for may miss what the other does. A walk is the model's own: a
first item, then again and again one that the model gives after those before it. A person of a few tastes has items whose texts
are alike, whatever the model makes of them and however few people know them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.engine.queries import QueryModel
from common.engine.search import ExactSearch

_CHOICES = 4096
_TASTES, _ALIKE = 3, 30
_MUCH = 1000.0  # a query this long ranks by likeness alone: biases are a few nats


def walks(model: QueryModel, count: int, seed: int = 0) -> list[list[int]]:
    """``count`` histories of 1 … window items, all lengths equally often.

    Half of them start from an item by popularity, half from any. Each next item is drawn from the model's softmax over a few
    thousand items drawn anew for each step.
    """
    items, random = model.items, np.random.default_rng([seed, 0])
    popularity = np.exp((items.biases - items.biases.max()).astype(np.float64))
    popular = random.choice(len(items), size=count, p=popularity / popularity.sum())
    starts = np.where(random.random(count) < 0.5, popular, random.integers(0, len(items), count))
    histories = [[start] for start in starts.tolist()]
    wanted = 1 + np.arange(count) % model.window
    for length in range(1, int(wanted.max(initial=1))):
        walking = np.flatnonzero(wanted > length)
        choices = np.sort(random.choice(len(items), size=min(len(items), _CHOICES), replace=False))
        steps = _next_items(model, [histories[row] for row in walking], choices, random)
        for row, step in zip(walking, steps.tolist(), strict=True):
            histories[row].append(step)
    return histories


def tastes(model: QueryModel, exact: ExactSearch, count: int, seed: int = 0) -> list[list[int]]:
    """``count`` histories of 1 … window items, all lengths equally often, from the items most alike to one to three any items."""
    items, random = model.items, np.random.default_rng([seed, 1])
    seeds = random.integers(0, len(items), (count, _TASTES))
    text = items.rows(seeds.ravel())
    text[:, items.text_dim :] = 0
    alike = exact.top(text * np.float32(_MUCH), min(_ALIKE, len(items)))[0].reshape(count, _TASTES, -1)
    histories = []
    for row, liked in enumerate(alike):
        length, n_tastes = 1 + row % model.window, int(random.integers(1, _TASTES + 1))
        histories.append(liked[random.integers(0, n_tastes, length), random.integers(0, liked.shape[1], length)].tolist())
    return histories


def _next_items(
    model: QueryModel, histories: list[list[int]], choices: NDArray[np.integer], random: np.random.Generator
) -> NDArray[np.integer]:
    """One of ``choices`` for each history: the largest of scores plus Gumbel noise is a draw from their softmax."""
    queries = model.queries(*model.padded(histories))
    scores = queries @ model.items.rows(choices).T + model.items.biases[choices]
    return choices[np.argmax(scores + random.gumbel(size=scores.shape).astype(np.float32), axis=1)]
