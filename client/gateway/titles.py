"""Items by what people type: ids, whole titles, beginnings, parts, words in another order, and titles with slips.

Letter case, accents and punctuation do not count. Everything is built once for a bundle; nothing of a search is kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.data.catalogue import Catalogue

HITS_MOST: Final = 20_000
"""Places in the titles that are looked at for one search; bounds its time on a large catalogue."""

FUZZY_MOST: Final = 10_000_000
"""Characters of all titles up to which slips are forgiven; beyond, the table for it would be larger than the bundle."""

LIKENESS: Final = 0.3
"""Share of the triples of characters of what was typed, from which a title that holds them counts as near."""

TRIPLES: Final = 1 << 18

_NO_WORD = re.compile(r"[^0-9a-z]+")
_YEAR = re.compile(r" \d{4}$")


def folded(text: str) -> str:
    """Lower case, without accents, words and numbers only, one blank between them."""
    if text.isascii():  # most titles: the same, faster
        return _NO_WORD.sub(" ", text.lower()).strip() or " ".join(text.lower().split())
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    words = " ".join("".join(c if c.isalnum() else " " for c in plain).split())
    return words or " ".join(plain.split())


class Titles:
    """The titles of a catalogue, made ready to be searched.

    Parameters
    ----------
    catalogue:
        Its ids and titles.
    weights:
        ``(n_items,)``; of titles that fit equally well, the larger weight comes first.
    """

    def __init__(self, catalogue: Catalogue, weights: NDArray[np.floating]) -> None:
        self.catalogue, self.weights = catalogue, weights
        folds = [folded(title) for title in catalogue.titles]
        self._text = "\n" + "\n".join(folds) + "\n"
        lengths = np.fromiter(map(len, folds), dtype=np.int64, count=len(folds))
        self._starts = 1 + np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
        self._whole: dict[str, list[int]] = {}
        for i, fold in enumerate(folds):
            self._whole.setdefault(fold, []).append(i)
        without_year: dict[str, list[int]] = {}
        for i, fold in enumerate(folds):
            if (short := _YEAR.sub("", fold)) != fold and short not in self._whole:
                without_year.setdefault(short, []).append(i)
        self._whole.update(without_year)
        self._triples = _Triples(self._text, len(folds)) if len(self._text) <= FUZZY_MOST else None

    def called(self, text: str) -> list[int]:
        """Positions of the item with the id ``text``, or of all items with that title; a year at a title's end may be missing."""
        if (position := self.catalogue.index.get(text)) is not None:
            return [position]
        return self._whole.get(folded(text), [])

    def search(self, text: str, limit: int) -> list[int]:
        """At most ``limit`` positions: whole titles first, then beginnings, words, parts, all words anywhere, slips."""
        found = dict.fromkeys(self.called(text)[:limit])
        wanted = folded(text)
        if wanted and len(found) < limit:
            for better in (self._holding, self._with_all_words, self._near):
                found.update(dict.fromkeys(better(wanted)))
                if len(found) >= limit:
                    break
        return list(found)[:limit]

    def near(self, text: str, limit: int = 3) -> list[int]:
        """Items that may have been meant."""
        return self.search(text[:100], limit)

    def _holding(self, wanted: str) -> list[int]:
        places = np.array(self._places(wanted), dtype=np.int64)
        items = self._item_at(places)
        before = [self._text[place - 1] for place in places.tolist()]
        rank = np.array([0 if c == "\n" else 1 if c == " " else 2 for c in before], dtype=np.int64)
        order = np.lexsort((-self.weights[items], rank))
        return items[order].tolist()

    def _with_all_words(self, wanted: str) -> list[int]:
        words = wanted.split()
        if len(words) < 2:
            return []
        sets = [set(self._item_at(np.array(self._places(word), dtype=np.int64)).tolist()) for word in words[:8]]
        return sorted(set.intersection(*sets), key=lambda i: (-float(self.weights[i]), i))

    def _near(self, wanted: str) -> list[int]:
        return [] if self._triples is None else self._triples.near(wanted)

    def _places(self, wanted: str) -> list[int]:
        places: list[int] = []
        at = self._text.find(wanted)
        while at >= 0 and len(places) < HITS_MOST:
            places.append(at)
            at = self._text.find(wanted, at + 1)
        return places

    def _item_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, places, side="right") - 1


class _Triples:
    """Which titles hold which three neighbouring characters; blanks around a title count."""

    def __init__(self, text: str, n_items: int) -> None:
        codes = _codes(text)
        inside = codes[1:-1] != _codes("\n")[0]  # else the three are of two titles
        item = np.cumsum(~inside)[inside]
        triples = _triples(_codes(text.replace("\n", " ")))[inside]
        pairs = np.sort(triples * n_items + item)
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        self._item = pairs % n_items
        self._ends = np.searchsorted(pairs, np.arange(TRIPLES + 1) * n_items)
        self._count = np.bincount(self._item, minlength=n_items)

    def near(self, wanted: str) -> list[int]:
        """Positions by falling likeness to ``wanted``: the share of its triples, and of equal ones the shorter title."""
        triples = np.unique(_triples(_codes(f" {wanted} ")))
        shared = np.zeros(len(self._count))
        for triple in triples.tolist():
            shared[self._item[self._ends[triple] : self._ends[triple + 1]]] += 1
        good = np.flatnonzero(shared >= LIKENESS * len(triples))
        return good[np.lexsort((self._count[good], -shared[good]))].tolist()


def _codes(text: str) -> NDArray[np.int64]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.int64)


def _triples(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number below :data:`TRIPLES` for every three neighbours. Where two share one, a title seems a little nearer, no more."""
    mixed = codes[:-2] * 0x1F35_27 + codes[1:-1] * 0x0B_5EF3 + codes[2:] * 0x2545_F5
    return (mixed ^ (mixed >> 17)) % TRIPLES


def categories_by_size(rows: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    """Names of categories with their number of items, the largest first."""
    counts: dict[str, int] = {}
    for row in rows:
        for name in row:
            counts[name] = counts.get(name, 0) + 1
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
