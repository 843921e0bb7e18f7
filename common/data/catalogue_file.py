"""The public catalogue as a run keeps it: one JSON object an item and line."""

from __future__ import annotations

import json
from pathlib import Path

from common.data.catalogue import Catalogue
from common.durable import write_durably
from common.errors import DataError


def write_catalogue(path: Path, catalogue: Catalogue) -> None:
    """Write ``path`` so that :func:`read_catalogue` gives the same catalogue back."""
    lines = [
        json.dumps(
            {
                "id": catalogue.ids[i],
                "title": catalogue.titles[i],
                "categories": catalogue.categories[i],
                "fields": {name: column[i] for name, column in catalogue.fields.items()},
            },
            ensure_ascii=False,
        )
        for i in range(len(catalogue))
    ]
    write_durably(path, ("\n".join(lines) + "\n").encode())


def read_catalogue(path: Path) -> Catalogue:
    """The catalogue that a run keeps, one JSON object a line."""
    try:
        # Not splitlines(): a title may hold characters that it takes for the end of a line.
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        names = list(rows[0]["fields"])
        return Catalogue(
            ids=tuple(row["id"] for row in rows),
            titles=tuple(row["title"] for row in rows),
            categories=tuple(tuple(row["categories"]) for row in rows),
            fields={name: tuple(row["fields"][name] for row in rows) for name in names},
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"not a run's catalogue, or damaged ({error})", path) from None
