"""An item by what a person types: its id, its title, or part of a title."""

from __future__ import annotations

import difflib

from common.data.catalogue import Catalogue
from common.errors import DataError


def find_item(catalogue: Catalogue, text: str) -> int:
    """Position of an item by id, by title, or by the only title that holds ``text``; letter case is ignored in titles.

    Raises
    ------
    DataError
        With the nearest titles.
    """
    if text in catalogue.index:
        return catalogue.index[text]
    wanted = text.casefold().strip()
    folded = [title.casefold() for title in catalogue.titles]
    exact = [i for i, title in enumerate(folded) if title == wanted]
    if exact:
        return exact[0]
    holding = [i for i, title in enumerate(folded) if wanted and wanted in title]
    if len(holding) == 1:
        return holding[0]
    if holding:
        names = ", ".join(repr(catalogue.titles[i]) for i in holding[:5])
        raise DataError(f"{text!r} could be {len(holding)} items, among them {names}; give the whole title or the id")
    near = difflib.get_close_matches(wanted, folded, n=3, cutoff=0.5)
    hint = ", ".join(repr(catalogue.titles[folded.index(title)]) for title in near)
    raise DataError(f"no item is called {text!r}" + (f"; did you mean {hint}?" if hint else ""))
