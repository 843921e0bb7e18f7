"""The catalogue as Parquet; pyarrow's own reader and writer are the independent ones."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.bundle.catalogue_parquet import BYTES_PER_ITEM, SPARE_BYTES, catalogue_from_bytes, catalogue_to_bytes
from common.data.catalogue import Catalogue
from common.errors import BundleError
from tests.bundles import tiny_catalogue

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMED = TEXT.filter(bool)


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    ids = draw(st.lists(NAMED, min_size=1, max_size=8, unique=True))
    n = len(ids)

    def column(of: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(st.lists(of, min_size=n, max_size=n)))

    fields = {name: column(TEXT) for name in draw(st.lists(TEXT, max_size=3, unique=True))}
    return Catalogue(tuple(ids), column(NAMED), column(st.lists(TEXT, max_size=3).map(tuple)), fields, draw(TEXT))


def contents(catalogue: Catalogue) -> tuple[Any, ...]:
    return catalogue.ids, catalogue.titles, catalogue.categories, dict(catalogue.fields), [*catalogue.fields], catalogue.name


@given(catalogue=catalogues())
@settings(max_examples=100, deadline=None)
def test_any_catalogue_comes_back_in_every_letter(catalogue: Catalogue) -> None:
    content = catalogue_to_bytes(catalogue)
    assert contents(catalogue_from_bytes(content, 8)) == contents(catalogue)
    assert catalogue_to_bytes(catalogue) == content


def test_other_programs_read_it() -> None:
    catalogue = tiny_catalogue(5)
    columns = pq.read_table(io.BytesIO(catalogue_to_bytes(catalogue))).to_pydict()
    assert columns == {
        "id": [*catalogue.ids],
        "title": [*catalogue.titles],
        "categories": [[*row] for row in catalogue.categories],
        "field:year": [*catalogue.fields["year"]],
    }


def written(columns: dict[str, Any], *, name: str | None = "x", nullable: bool = False, **options: Any) -> bytes:
    """A file as ours, with one thing different."""
    element = pa.field("element", pa.string(), nullable=nullable)
    types = {"categories": pa.list_(element)}
    schema = pa.schema([pa.field(key, types.get(key, pa.string()), nullable=nullable) for key in columns])
    out = io.BytesIO()
    settings = {"use_dictionary": False, "store_schema": False, "compression": "zstd", **options}
    with pq.ParquetWriter(out, schema, **settings) as writer:
        writer.write_table(pa.table([pa.array(values, schema.field(key).type) for key, values in columns.items()], schema=schema))
        if name is not None:
            writer.add_key_value_metadata({"silorec.catalogue": name})
    return out.getvalue()


GOOD: dict[str, Any] = {"id": ["a", "b"], "title": ["A", "B"], "categories": [["x"], []]}


def test_the_made_up_file_of_these_tests_is_read() -> None:
    assert catalogue_from_bytes(written(GOOD), 2).titles == ("A", "B")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (written({**GOOD, "more": ["", ""]}), "its columns are not"),
        (written({"id": ["a"], "title": ["A"]}), "its columns are not"),
        (written({**GOOD, "id": ["a", None]}, nullable=True), "its columns are not"),
        (written(GOOD, name=None), "not a catalogue as Parquet"),
        (written({**GOOD, "id": ["a", "a"]}), "item id 'a' appears twice"),
        (written({**GOOD, "title": ["A", ""]}), "empty id or title"),
        (written({key: [] for key in GOOD}), "0 items, 1 to 2 are allowed"),
        (written({"id": ["a", "b", "c"], "title": ["A"] * 3, "categories": [[]] * 3}), "3 items, 1 to 2 are allowed"),
        (written(GOOD | {f"field:{i}": ["", ""] for i in range(65)}), "65 fields, at most 64"),
        (written({**GOOD, "title": ["A", "B" * (2 * BYTES_PER_ITEM + SPARE_BYTES)]}), "of text, at most 1,056,768 are allowed"),
        (b"PAR1" + b"\xff" * 200 + b"PAR1", "not a catalogue as Parquet"),
        (b"", "not a catalogue as Parquet"),
    ],
    ids=str,
)  # fmt: skip
def test_any_other_file_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(BundleError, match=said) as error:
        catalogue_from_bytes(content, 2)
    assert "\n" not in str(error.value)


def test_a_dictionary_that_stands_for_far_more_is_found_out_while_reading() -> None:
    """One title of 10 kB for 20,000 items: 200 MB, in a file that claims less than one."""
    n = 20_000
    columns = {"id": [str(i) for i in range(n)], "title": ["x" * 10_000] * n, "categories": [()] * n}
    content = written(columns, use_dictionary=["title"])
    assert len(content) < 200_000
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(BundleError, match="more than its directory says"):
            catalogue_from_bytes(content, n)
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 120_000_000


def test_a_text_that_is_not_unicode_is_refused_when_written_and_when_read() -> None:
    with pytest.raises(BundleError, match="cannot be written as Parquet"):
        catalogue_to_bytes(Catalogue(("a",), ("\ud800",), ((),)))
    content = written({**GOOD, "title": ["A", "BBBBBBBB"]}, compression="none", data_page_version="1.0")
    assert content.count(b"BBBBBBBB") == 1 or content.count(b"BBBBBBBB") == 3  # with statistics
    with pytest.raises(BundleError, match="not a catalogue as Parquet"):
        catalogue_from_bytes(content.replace(b"BBBBBBBB", b"\xff\xfe\xfd\xfc\xff\xff\xff\xff"), 2)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_give_a_catalogue_or_a_sentence(data: st.DataObject) -> None:
    content = bytearray(catalogue_to_bytes(tiny_catalogue(4)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(BundleError):
        catalogue_from_bytes(bytes(content), 10)
