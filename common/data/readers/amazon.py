"""Amazon Reviews 2023: one file of reviews and one of products per category, JSON lines, plain or gzip.

Reviews are joined to products by ``parent_asin``. Times are milliseconds and become seconds; what a user wrote (heading and
review) becomes the text of the interaction.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.data.catalogue import Catalogue
from common.data.interactions import Dataset
from common.data.readers import items
from common.data.readers.accumulate import Accumulator, Coded, Rows
from common.data.readers.blocks import Block, blocks, decode, split_records
from common.data.readers.reading import Reading
from common.data.readers.registry import reader
from common.errors import DataError

_ENDINGS = (".jsonl", ".jsonl.gz")
_TAG = re.compile(r"<[^<>]{1,200}>")


def _pairs(path: Path) -> list[tuple[Path, Path]]:
    """Files of reviews with their file of products, ``X.jsonl`` with ``meta_X.jsonl``; either may end in ``.gz``."""
    folder = path if path.is_dir() else path.parent
    names = {file.name for file in folder.iterdir()} if path.is_dir() else {path.name}
    pairs = []
    for stem in sorted({name[: name.index(".jsonl")] for name in names if name.endswith(_ENDINGS)}):
        if stem.startswith("meta_"):
            continue
        reviews = [folder / (stem + ending) for ending in _ENDINGS if stem + ending in names]
        products = [file for ending in _ENDINGS if (file := folder / f"meta_{stem}{ending}").is_file()]
        if products:
            pairs.append((reviews[0], products[0]))
    return pairs


@reader("amazon-2023", about="NAME.jsonl[.gz] with meta_NAME.jsonl[.gz] beside it", detect=lambda path: bool(_pairs(path)))
def read(path: Path, reading: Reading) -> Dataset:
    """Reviews with rating, time and text; products with title, categories, store and description."""
    pairs = _pairs(path)
    if not pairs:
        raise DataError("expected NAME.jsonl or NAME.jsonl.gz (reviews) and meta_NAME beside it (products)", path)
    if len(pairs) > 1:
        raise DataError(f"several files of reviews ({', '.join(r.name for r, _ in pairs)}): give the path of one", path)
    reviews, products = pairs[0]
    name = reviews.name[: reviews.name.index(".jsonl")]
    reading.expect(products, reviews)
    catalogue = _products(products, reading, name)
    collected = Accumulator(reading, catalogue)
    for block in blocks(reviews, reading):
        rows = _reviews(block, reviews, reading, collected)
        if rows is not None:
            collected.append(rows)
    interactions, catalogue = collected.finish(reviews)
    return Dataset(catalogue, interactions, dropped=reading.dropped(), name=name)


def _objects(block: Block, path: Path, reading: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    for record in split_records(block, None):
        text = decode(record, path, reading)
        if text is None or not text.strip():
            continue
        try:
            found = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            reading.refuse("not JSON", path, record.line, what)
            continue
        if isinstance(found, dict):
            yield record.line, found
        else:
            reading.refuse("not a JSON object", path, record.line)


def _products(path: Path, reading: Reading, name: str) -> Catalogue:
    builder = items.CatalogueBuilder(reading, name)
    for block in blocks(path, reading):
        for line, product in _objects(block, path, reading):
            item = product.get("parent_asin")
            if not isinstance(item, str):
                reading.refuse("missing field", path, line, "parent_asin")
                continue
            description = _text(product.get("description")) or _text(product.get("features"))
            listed = product.get("categories") or [product.get("main_category")]
            builder.add(
                path, line, item, _text(product.get("title")) or description[:80],
                items.unique([_text(c) for c in listed] if isinstance(listed, list) else [_text(listed)]),
                store=_text(product.get("store")), description=items.clip(description),
            )  # fmt: skip
    return builder.build(path)


def _reviews(block: Block, path: Path, reading: Reading, collected: Accumulator) -> Rows | None:
    users: list[str] = []
    item_ids: list[str] = []
    times: list[int] = []
    values: list[float] = []
    texts: list[str] = []
    for line, review in _objects(block, path, reading):
        user, item = review.get("user_id"), review.get("parent_asin")
        rating, time = _number(review.get("rating")), _number(review.get("timestamp"))
        if not isinstance(user, str) or not user or not isinstance(item, str) or not item:
            reading.refuse("missing field", path, line, "user_id" if not isinstance(user, str) or not user else "parent_asin")
        elif not collected.knows(item):
            reading.refuse("unknown item", path, line, f"{item!r} is not in the file of products")
        elif rating is None:
            reading.refuse("value is not a number", path, line, f"rating is {review.get('rating')!r}")
        elif time is None:
            reading.refuse("time is not a number", path, line, f"timestamp is {review.get('timestamp')!r}")
        else:
            users.append(user)
            item_ids.append(item)
            times.append(math.floor(time / 1000))
            values.append(rating)
            texts.append(". ".join(filter(None, (_text(review.get("title")), _text(review.get("text"))))))
    if not users:
        return None
    return Rows(
        user=Coded.of(users),
        item=Coded.of(item_ids),
        time=np.array(times, dtype=np.int64),
        value=np.array(values, dtype=np.float32),
        text=texts,
    )


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**62 else None


def _text(value: object) -> str:
    """Plain text of a string or a list of strings: no tags, no entities, single blanks."""
    if isinstance(value, list):
        return " ".join(filter(None, (_text(part) for part in value)))
    if not isinstance(value, str):
        return ""
    return " ".join(html.unescape(_TAG.sub(" ", value)).split())
