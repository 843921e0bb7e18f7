"""Made-up populations over a real or a made-up catalogue, for tests and for scale.

A user meets an item with a probability that is the product of two things: the item's popularity, a Zipf law over a random
order of the items, and the user's liking of its categories, ``exp(taste * z)`` with a standard normal ``z`` for each user and
category:

    P(i | u, p) = (1 - drift * p) * softmax_i(log w_i + taste * z[u, c_i]) + drift * p * softmax_i(log w_i + taste * z'[u, c_i])

where ``p`` runs from 0 to 1 over the user's history and ``z'`` is a second draw: ``drift`` is the share of the taste that has
been replaced at the end. An item of several categories is split evenly among them. Nobody meets an item twice. With
``taste = 0`` everybody follows popularity alone.

Nothing here is derived from real users, also where the catalogue is real.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.config import SyntheticConfig
from common.data import wording
from common.data.catalogue import Catalogue
from common.data.interactions import Dataset, Interactions
from common.errors import DataError

START, SPAN = 1_577_836_800, 2 * 365 * 86_400  # seconds; histories begin in the two years from 2020-01-01 UTC
GAP = 86_400.0  # seconds between two interactions of a user, on average
LENGTH_SIGMA = 0.7  # standard deviation of the logarithm of a history's length
CELLS = 1 << 24  # cells of the table that keeps items from being met twice; bounds memory to 64 MiB
PATIENCE = 24  # draws after which a slot is filled with anything that is new to the user


def generate(config: SyntheticConfig, seed: int, catalogue: Catalogue | None = None) -> Dataset:
    """A population of ``config.users`` users; the same arguments give the same data.

    Rows are in the order of time. Histories have a log-normal length with mean ``config.interactions_per_user``, but at
    least 3 and at most half of the catalogue (3 where that is less). ``user_text`` names each user's two favourite
    categories. With ``config.review_text`` every row has a sentence that names the item and a category of it.

    Parameters
    ----------
    catalogue:
        Items to use in place of made-up ones; ``config.items`` and ``config.categories`` are not used then.

    Raises
    ------
    DataError
        If the catalogue has fewer than 3 items.
    """
    rng = np.random.default_rng(seed)
    if catalogue is None:
        catalogue = make_catalogue(config.items, config.categories, rng)
    if len(catalogue) < 3:
        raise DataError(f"{catalogue.name}: {len(catalogue)} items are too few for histories; at least 3 are needed")
    member, names = catalogue.category_matrix()
    if not names:
        member, names = np.ones((len(catalogue), 1), dtype=np.bool_), ("item",)
    tastes = rng.standard_normal((2, config.users, len(names)))
    lengths = _lengths(config, len(catalogue), rng)
    weights = rng.permutation(np.arange(1, len(catalogue) + 1, dtype=np.float64) ** -config.popularity_skew)
    sampler = _Sampler(member, weights, config.taste)

    item = np.empty(int(lengths.sum()), dtype=np.int32)
    ends = np.cumsum(lengths)
    users_at_once = max(1, CELLS // len(catalogue))
    for first in range(0, config.users, users_at_once):
        chunk = slice(first, min(first + users_at_once, config.users))
        rows = slice(int(ends[chunk.start] - lengths[chunk.start]), int(ends[chunk.stop - 1]))
        item[rows] = sampler.histories(tastes[:, chunk], lengths[chunk], config.drift, rng)

    user = np.repeat(np.arange(config.users, dtype=np.int32), lengths)
    time = _times(lengths, rng)
    order = np.lexsort((user, time))
    text = _reviews(catalogue, item[order], rng) if config.review_text else None
    width = len(str(config.users))
    interactions = Interactions(
        user=user[order],
        item=item[order],
        time=time[order],
        user_ids=tuple(f"u{u:0{width}d}" for u in range(1, config.users + 1)),
        text=text,
    )
    return Dataset(catalogue, interactions, _profiles(tastes[0], names), name="synthetic")


def make_catalogue(items: int, categories: int, rng: np.random.Generator) -> Catalogue:
    """Made-up items with unique titles; title and category tell the same, so that taste can be learnt from text.

    Items are spread evenly over the categories; three in ten have a second one, from which the last word of the title comes.
    """
    themes = wording.themes(categories)
    main = rng.permutation(np.arange(items) % categories)
    second = (main + rng.integers(1, max(2, categories), items)) % categories
    mixed = (rng.random(items) < 0.3) & (main != second)
    second = np.where(mixed, second, main)
    pattern = np.where(mixed, rng.integers(2, 4, items), rng.integers(0, 4, items))
    words = rng.integers(0, 8, (items, 3))
    years = rng.integers(1980, 2025, items)
    seen: dict[str, int] = {}
    titles = []
    for i in range(items):
        theme, other = themes[main[i]], themes[second[i]]
        adjective, noun, last = words[i]
        title = wording.TITLES[pattern[i]].format(
            adjective=theme.adjectives[adjective], noun=theme.nouns[noun], second=other.nouns[last]
        )
        seen[title] = seen.get(title, 0) + 1
        titles.append(title if seen[title] == 1 else f"{title} {seen[title]}")
    width = len(str(items))
    return Catalogue(
        ids=tuple(f"i{i:0{width}d}" for i in range(1, items + 1)),
        titles=tuple(titles),
        categories=tuple(
            (themes[a].name,) if a == b else (themes[a].name, themes[b].name) for a, b in zip(main, second, strict=True)
        ),
        fields={"year": tuple(str(year) for year in years)},
        name="made-up",
    )


class _Sampler:
    """Draws items for many users at once: first a category, then an item in it by popularity.

    Items are laid out once per category that they have (*pairs*, sorted by category), each with its share of the item's weight.
    """

    def __init__(self, member: NDArray[np.bool_], weights: NDArray[np.float64], taste: float) -> None:
        member = member.copy()
        if not member.any(axis=1).all():  # items without a category are liked like the first one
            member[~member.any(axis=1), 0] = True
        category, self.pair_item = np.nonzero(member.T)
        share = weights[self.pair_item] / member.sum(axis=1)[self.pair_item]
        n_categories = member.shape[1]
        self.cumulative = np.concatenate([[0.0], np.cumsum(share)])
        self.starts = np.searchsorted(category, np.arange(n_categories + 1))
        self.log_mass = np.log(self.cumulative[self.starts[1:]] - self.cumulative[self.starts[:-1]])
        self.taste, self.n_items = taste, len(weights)

    def histories(
        self, tastes: NDArray[np.float64], lengths: NDArray[np.int64], drift: float, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        """int32 ``(lengths.sum(),)``: items of users ``(2, users, categories)``, user by user, oldest first, none twice."""
        n_users, n_categories = tastes.shape[1:]
        logits = self.taste * tastes + self.log_mass
        chance = np.exp(logits - logits.max(axis=2, keepdims=True))
        cumulative = np.cumsum(chance, axis=2)
        cumulative /= cumulative[:, :, -1:]
        # One ascending line for all (time, user): row r occupies (r, r + 1], so one search serves every slot.
        line = (cumulative.reshape(2 * n_users, n_categories) + np.arange(2 * n_users)[:, None]).ravel()

        user = np.repeat(np.arange(n_users), lengths)
        position = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        progress = position / np.maximum(1, lengths - 1)[user]
        row = user + n_users * (rng.random(len(user)) < drift * progress)

        item = np.full(len(user), -1, dtype=np.int32)
        met_at = np.full(n_users * self.n_items, -1, dtype=np.int32)  # (user, item) to the slot that has it
        open_slots = np.arange(len(user))
        attempt = 0
        while len(open_slots):
            attempt += 1
            if attempt <= PATIENCE:
                drawn = self._draw(line, row[open_slots], n_categories, rng)
            else:
                drawn = rng.integers(0, self.n_items, len(open_slots))
            cell = user[open_slots] * self.n_items + drawn
            new = met_at[cell] < 0
            slots, cells = open_slots[new], cell[new]
            met_at[cells[::-1]] = slots[::-1]  # of two slots that drew the same, the earlier one has it
            item[slots] = drawn[new]
            refused = np.ones(len(open_slots), dtype=np.bool_)
            refused[new] = met_at[cells] != slots
            open_slots = open_slots[refused]
        return item

    def _draw(
        self, line: NDArray[np.float64], row: NDArray[np.int64], n_categories: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        found = np.searchsorted(line, row + rng.random(len(row)), side="right") - row * n_categories
        category = np.clip(found, 0, n_categories - 1)
        low, high = self.starts[category], self.starts[category + 1]
        point = self.cumulative[low] + rng.random(len(row)) * (self.cumulative[high] - self.cumulative[low])
        return self.pair_item[np.clip(np.searchsorted(self.cumulative, point, side="right") - 1, low, high - 1)]


def _lengths(config: SyntheticConfig, items: int, rng: np.random.Generator) -> NDArray[np.int64]:
    mean = np.log(config.interactions_per_user) - LENGTH_SIGMA**2 / 2
    drawn = np.rint(rng.lognormal(mean, LENGTH_SIGMA, config.users))
    return np.clip(drawn, 3, max(3, items // 2)).astype(np.int64)


def _times(lengths: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Whole seconds, strictly ascending within a user."""
    gaps = 1 + rng.exponential(GAP, int(lengths.sum())).astype(np.int64)
    passed = np.cumsum(gaps)
    first = np.cumsum(lengths) - lengths
    begin = START + rng.integers(0, SPAN, len(lengths))
    return (passed + np.repeat(begin - passed[first], lengths)).astype(np.int64)


def _reviews(catalogue: Catalogue, item: NDArray[np.int32], rng: np.random.Generator) -> list[str]:
    template = rng.integers(0, len(wording.REVIEWS), len(item))
    pick = rng.random(len(item))
    out = []
    for i, t, p in zip(item.tolist(), template.tolist(), pick.tolist(), strict=True):
        categories = catalogue.categories[i]
        category = categories[int(p * len(categories))].lower() if categories else "thing"
        out.append(wording.REVIEWS[t].format(title=catalogue.titles[i], category=category))
    return out


def _profiles(taste: NDArray[np.float64], names: tuple[str, ...]) -> tuple[str, ...]:
    order = np.argsort(-taste, axis=1, kind="stable")[:, :2]
    return tuple("likes " + " and ".join(names[c] for c in row) for row in order.tolist())
