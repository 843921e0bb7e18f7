"""Free words that users put on items (MovieLens' tags) as the text of the interaction between the two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from common.data.catalogue import Catalogue
from common.data.interactions import Interactions
from common.data.readers.accumulate import Rows
from common.data.readers.delimited import Layout, read_delimited
from common.data.readers.reading import Reading

SEPARATOR = "; "


def tag_texts(file: Path, layout: Layout, reading: Reading, interactions: Interactions, catalogue: Catalogue) -> Interactions:
    """The interactions with ``text`` set to the user's tags of the item, in the order of the file.

    Tags without an interaction to go with are dropped and counted. A user and item that met several times get the tags at
    their first row. The times of tags are not used.
    """
    tags = _Tags(interactions, catalogue)
    read_delimited(file, layout, reading, tags)
    return replace(interactions, text=tags.texts(reading))


class _Tags:
    """Tags by user and item; the pair is held as one number."""

    def __init__(self, interactions: Interactions, catalogue: Catalogue) -> None:
        self._interactions = interactions
        self._catalogue = catalogue
        self._users = {user: code for code, user in enumerate(interactions.user_ids)}
        self._tags: dict[int, list[str]] = {}
        self._homeless: list[str] = []

    def knows(self, item_id: str) -> bool:
        return item_id in self._catalogue.index

    def append(self, rows: Rows) -> None:
        users = [self._users.get(user, -1) for user in rows.user.names]
        items = [self._catalogue.index[item] for item in rows.item.names]
        for user, item, tag in zip(rows.user.codes, rows.item.codes, rows.text or (), strict=True):
            if users[user] < 0:
                self._homeless.append(tag)
            else:
                self._tags.setdefault(users[user] * len(self._catalogue) + items[item], []).append(tag)

    def texts(self, reading: Reading) -> list[str]:
        """One text per interaction, ``""`` where there is no tag."""
        data = self._interactions
        pairs = np.sort(np.fromiter(self._tags, dtype=np.int64, count=len(self._tags)))
        keys = data.user.astype(np.int64) * len(self._catalogue) + data.item
        texts = [""] * len(data)
        if len(pairs):
            at = np.minimum(np.searchsorted(pairs, keys), len(pairs) - 1)
            for row in np.flatnonzero(pairs[at] == keys):
                texts[row] = SEPARATOR.join(self._tags.pop(int(keys[row]), ()))
        homeless = self._homeless + [tag for left in self._tags.values() for tag in left]
        if homeless:
            reading.drop("tag without a rating by the same user", len(homeless), repr(homeless[0]))
        return texts
