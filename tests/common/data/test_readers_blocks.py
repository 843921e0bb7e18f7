"""Files are read in blocks: the result does not depend on where blocks end, and memory does not grow with the file."""

from __future__ import annotations

import csv
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.data.interactions import Dataset
from common.data.load import read_dataset
from common.data.readers import delimited
from common.data.readers.accumulate import repeats
from common.data.readers.blocks import Block, blocks, split_records
from common.data.readers.reading import Reading
from common.data.readers.registry import choose
from common.errors import DataError
from tests.common.data import made_up

# Function-scoped temporary folders are written anew by every example.
in_a_folder = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

word = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
numbers = st.floats(-1e6, 1e6, width=32, allow_nan=False)
tables = st.lists(st.tuples(ids, ids, st.integers(-(2**50), 2**50), numbers, word), min_size=1, max_size=12)


def as_rows(dataset: Dataset) -> list[tuple[str, str, int, float, str]]:
    data = dataset.interactions
    assert data.value is not None
    assert data.text is not None
    return [
        (data.user_ids[u], dataset.catalogue.ids[i], int(t), float(v), text)
        for u, i, t, v, text in zip(data.user, data.item, data.time, data.value, data.text, strict=True)
    ]


def without_repeats(rows: list[tuple[str, str, int, float, str]]) -> list[tuple[str, str, int, float, str]]:
    seen: set[tuple[str, str, int]] = set()
    return [row for row in rows if row[:3] not in seen and not seen.add(row[:3])]  # type: ignore[func-returns-value]


@in_a_folder
@given(table=tables, block_bytes=st.sampled_from([16, 100, 1 << 20]), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_any_table_written_as_csv_is_read_back_equal(
    tmp_path: Path, table: list[tuple[str, str, int, float, str]], block_bytes: int, quoting: int
) -> None:
    path = tmp_path / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=quoting)  # type: ignore[arg-type]
        writer.writerow(["user", "item", "time", "value", "text"])
        writer.writerows(table)
    dataset = choose(path).read(path, Reading(block_bytes=block_bytes))
    expected = without_repeats(table)
    assert as_rows(dataset) == expected
    assert sum(dataset.dropped.counts.values()) == len(table) - len(expected)
    assert dataset.interactions.user_ids == tuple(dict.fromkeys(row[0] for row in expected))


# Bytes that break files in the wild: quotes, separators, half characters, and numbers that only some parsers take.
shrapnel = st.sampled_from(
    [b'"', b'""', b",", b";", b"\n", b"\r", b"\r\n", b"\t", b"\0", b" ", b"x", b"_", b"\xe9", b"\xc3\xa9", b"", b"-", b"+", b"9",
     b".", b"e", b"e5", b"0x1F", b"nan", b"inf", b"1_0", b"1e40", b"1e400", b"9" * 25]
)  # fmt: skip
WELL_FORMED = b'u1,i1,1,2.5,ok\nu2,i1,2,1,"a, b"\nu1,i2,3,.5,"say ""hi"""\nu3,i3,4,4,"two\nlines"\nu3,i1,5,5,\n'


def outcome(path: Path, reading: Reading) -> object:
    try:
        dataset = choose(path, "csv").read(path, reading)
    except DataError as error:
        return str(error)
    return as_rows(dataset), dataset.catalogue.ids, dict(dataset.dropped.counts), dict(dataset.dropped.examples)


@in_a_folder
@given(hits=st.lists(st.tuples(st.integers(0, len(WELL_FORMED)), st.integers(0, 2), shrapnel), max_size=4), strict=st.booleans())
def test_the_fast_parser_takes_nothing_that_the_exact_one_refuses(
    tmp_path: Path, hits: list[tuple[int, int, bytes]], strict: bool
) -> None:
    data = WELL_FORMED
    for at, length, piece in hits:
        data = data[:at] + piece + data[at + length :]
    path = tmp_path / "t.csv"
    path.write_bytes(b"user,item,time,value,text\n" + data)
    fast = outcome(path, Reading(strict=strict))
    assert fast == outcome(path, Reading(strict=strict, block_bytes=40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_parse_block", lambda *_: None)
        assert fast == outcome(path, Reading(strict=strict))


@given(st.binary(max_size=200), st.sampled_from([None, ","]))
def test_records_put_together_are_the_block(data: bytes, quoted: str | None) -> None:
    records = list(split_records(Block(data, 1), quoted))
    kept = b"".join(record.data for record in records)
    assert kept.replace(b"\n", b"").replace(b"\r", b"") == data.replace(b"\n", b"").replace(b"\r", b"")
    for record in records:
        assert data.split(b"\n")[record.line - 1].startswith(record.data.split(b"\n")[0])


@in_a_folder
@given(st.lists(st.binary(min_size=1, max_size=30).filter(lambda line: b"\n" not in line), min_size=1), st.integers(2, 64))
def test_blocks_are_whole_lines_with_their_numbers(tmp_path: Path, lines: list[bytes], block_bytes: int) -> None:
    path = tmp_path / "t.dat"
    content = b"#\n" + b"\n".join(lines)
    path.write_bytes(content)
    found = list(blocks(path, Reading(block_bytes=block_bytes)))
    assert b"".join(block.data for block in found) == content
    for before, block in zip([None, *found], found, strict=False):
        assert block.first_line == (1 if before is None else before.first_line + before.data.count(b"\n"))
        assert before is None or before.data.endswith(b"\n")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(-2, 2)), max_size=60))
def test_repeats_are_those_of_a_loop(rows: list[tuple[int, int, int]]) -> None:
    user, item, time = (np.array([row[k] for row in rows], dtype=d) for k, d in enumerate((np.int32, np.int32, np.int64)))
    expected = [i for i, row in enumerate(rows) if row in rows[:i]]
    assert repeats(user, item, time).tolist() == expected


def write_ratings(folder: Path, n: int, seed: int = 0) -> None:
    """``ratings.csv`` and ``movies.csv`` as MovieLens-25M has them, with made-up content."""
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    rng = np.random.default_rng(seed)
    n_users, n_items = max(2, n // 70), 26_000
    ratings = {
        "userId": np.sort(rng.integers(1, n_users + 1, n)),
        "movieId": rng.integers(1, n_items + 1, n),
        "rating": rng.integers(1, 11, n) / 2,
        "timestamp": rng.integers(800_000_000, 1_500_000_000, n),
    }
    pa_csv.write_csv(pa.table(ratings), folder / "ratings.csv", pa_csv.WriteOptions(quoting_style="none"))
    films = "".join(f'{i},"Film, The {i} (1999)",Drama|Comedy\n' for i in range(1, n_items + 1))
    (folder / "movies.csv").write_text("movieId,title,genres\n" + films)


def test_300_000_ratings_are_read_block_by_block_and_equal_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ratings(tmp_path, 300_000)
    sizes: list[int] = []
    fast = delimited._parse_block

    def watched(block: Block, *rest: object) -> object:
        sizes.append(len(block.data))
        rows = fast(block, *rest)  # type: ignore[arg-type]
        assert rows is not None, "clean blocks take the fast way"
        return rows

    monkeypatch.setattr(delimited, "_parse_block", watched)
    dataset = choose(tmp_path).read(tmp_path, Reading(block_bytes=1 << 18))
    size = (tmp_path / "ratings.csv").stat().st_size
    assert len(sizes) >= size // (1 << 18)
    assert max(sizes) <= (1 << 18) + 100

    with (tmp_path / "ratings.csv").open(newline="") as file:
        oracle = [(r["userId"], r["movieId"], int(r["timestamp"]), float(r["rating"])) for r in csv.DictReader(file)]
    data = dataset.interactions
    users, items = np.array(data.user_ids)[data.user], np.array(dataset.catalogue.ids)[data.item]
    assert data.value is not None
    read = list(zip(users.tolist(), items.tolist(), data.time.tolist(), data.value.tolist(), strict=True))
    seen: set[tuple[str, str, int]] = set()
    assert read == [row for row in oracle if row[:3] not in seen and not seen.add(row[:3])]  # type: ignore[func-returns-value]


@pytest.mark.parametrize("write", [made_up.movielens_100k, made_up.movielens_1m, made_up.movielens_10m, made_up.movielens_csv,
                                   made_up.recbole, made_up.amazon, made_up.mind, made_up.shop_csv])  # fmt: skip
def test_no_format_depends_on_where_blocks_end(write: object, tmp_path: Path) -> None:
    path = write(tmp_path / "data")  # type: ignore[operator]
    whole = read_dataset(path)
    for block_bytes in (32, 61):
        pieces = choose(path).read(path, Reading(block_bytes=block_bytes))
        assert pieces.catalogue.fingerprint == whole.catalogue.fingerprint
        assert pieces.interactions.user_ids == whole.interactions.user_ids
        assert (pieces.interactions.item == whole.interactions.item).all()
        assert (pieces.interactions.time == whole.interactions.time).all()
        assert pieces.interactions.text == whole.interactions.text
        assert pieces.user_text == whole.user_text


def test_a_bad_line_deep_in_a_file_is_named_exactly(tmp_path: Path) -> None:
    write_ratings(tmp_path, 20_000)
    lines = (tmp_path / "ratings.csv").read_bytes().split(b"\n")
    bad = random.Random(5).randrange(10_000, 19_000)
    lines[bad - 1] = b"1,1,five,9"
    (tmp_path / "ratings.csv").write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=rf"ratings\.csv:{bad}: value is not a number: rating is 'five'"):
        choose(tmp_path).read(tmp_path, Reading(block_bytes=10_000))


def test_a_file_that_unpacks_to_far_more_than_a_block_is_still_read_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    content = b"user,item,time\n" + b"a,b,1\n" * 200_000
    path.write_bytes(gzip.compress(content))
    sizes = [len(block.data) for block in blocks(path, Reading(block_bytes=1 << 16))]
    assert sum(sizes) == len(content)
    assert max(sizes) <= (1 << 16) + 16


READ_AND_MEASURE = """
import json, resource, sys, time
from common.data.load import read_dataset
start = time.perf_counter()
data = read_dataset(sys.argv[1], malformed="skip")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([len(data.interactions), data.dropped.counts, peak, time.perf_counter() - start]))
"""


@pytest.mark.slow
def test_10_million_interactions_need_less_than_2_gib(tmp_path: Path) -> None:
    n = 10_000_000
    write_ratings(tmp_path, n)
    with (tmp_path / "ratings.csv").open("ab") as file:
        file.write(b"1,1,five,9\n")
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", READ_AND_MEASURE, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=600)
    rows, dropped, peak, seconds = json.loads(done.stdout)
    assert rows + dropped.get("same user, item and time as an earlier row", 0) == n
    assert dropped["value is not a number"] == 1
    assert peak < 2 << 30
    assert seconds < 120
