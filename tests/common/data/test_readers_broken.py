"""Broken files: what is said about them, with file and line, and what is left when malformed rows are skipped."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from common.data.load import read_dataset
from common.errors import DataError
from tests.common.data import made_up

Damage = Callable[[bytes], bytes]


def append(line: bytes) -> Damage:
    return lambda data: data + line + b"\n"


def in_line(number: int, old: bytes, new: bytes) -> Damage:
    def damage(data: bytes) -> bytes:
        lines = data.split(b"\n")
        assert old in lines[number - 1]
        lines[number - 1] = lines[number - 1].replace(old, new, 1)
        return b"\n".join(lines)

    return damage


def gz(inner: Damage) -> Damage:
    return lambda data: gzip.compress(inner(gzip.decompress(data)))


REVIEW = {"rating": 2.0, "title": "", "text": "", "parent_asin": "B01", "user_id": "AEC", "timestamp": 1588687728923}


def review(**changes: object) -> bytes:
    return json.dumps({**REVIEW, **changes}).encode()


# what is written, the file to damage, how, where the fault is, the reason by which it is counted, part of the detail
MALFORMED = [
    # MovieLens-100K
    (made_up.movielens_100k, "u.data", append(b"7\t99\t5\t881250949"), 7, "unknown item", "'99' is not in the catalogue"),
    (made_up.movielens_100k, "u.data", in_line(2, b"\t3\t", b"\tthree\t"), 2, "value is not a number", "rating is 'three'"),
    (made_up.movielens_100k, "u.data", in_line(4, b"881250952", b"later"), 4, "time is not a number", "timestamp is 'later'"),
    (made_up.movielens_100k, "u.data", in_line(3, b"\t4\t", b"\t"), 3, "wrong number of fields", "3 instead of 4"),
    (made_up.movielens_100k, "u.data", in_line(1, b"7\t1", b"\t1"), 1, "empty user id", "column user"),
    (made_up.movielens_100k, "u.data", in_line(1, b"7\t1", b"7\t"), 1, "empty item id", "column item"),
    (made_up.movielens_100k, "u.data", in_line(5, b"\t2\t", b"\tnan\t"), 5, "value is not a number", "rating is 'nan'"),
    (made_up.movielens_100k, "u.data", in_line(6, b"8\t", b"\xe9\t"), 6, "not UTF-8", "byte 0xe9 at position 1"),
    (made_up.movielens_100k, "u.item", in_line(3, b"3|", b"1|"), 3, "item id appears twice", "'1'"),
    (made_up.movielens_100k, "u.item", in_line(3, b"|1|", b"|7|"), 3, "genre flag is neither 0 nor 1", "'7'"),
    (made_up.movielens_100k, "u.item", in_line(3, b"|0", b""), 3, "wrong number of fields", "23 instead of 24"),
    (made_up.movielens_100k, "u.user", in_line(2, b"|94043", b""), 2, "wrong number of fields", "4 instead of 5"),
    # MovieLens-1M and -10M
    (made_up.movielens_1m, "ratings.dat", in_line(2, b"::3::", b":3:"), 2, "wrong number of fields", "2 instead of 4"),
    (made_up.movielens_1m, "ratings.dat", append(b"2\t::2::4::9"), 4, None, ""),
    (made_up.movielens_1m, "movies.dat", append(b"3::No genre"), 3, "wrong number of fields", "2 instead of 3"),
    (made_up.movielens_1m, "users.dat", append(b"3::F::1"), 3, "wrong number of fields", "3 instead of 5"),
    (made_up.movielens_10m, "movies.dat", append("3::Café (1950)::Drama".encode("latin-1")), 3, "not UTF-8", "byte 0xe9"),
    (made_up.movielens_10m, "tags.dat", append(b"1::77::tag::9"), 4, "unknown item", "'77'"),
    # MovieLens-20M and later
    (made_up.movielens_csv, "ratings.csv", append(b"1,1,5.0"), 5, "wrong number of fields", "3 instead of 4 (userId, movieId"),
    (made_up.movielens_csv, "ratings.csv", append(b"1,404,5.0,9"), 5, "unknown item", "'404'"),
    (made_up.movielens_csv, "ratings.csv", append(b"1,1,,9"), 5, "value is not a number", "rating is ''"),
    (made_up.movielens_csv, "ratings.csv", append(b"1,1,1_0,9"), 5, "value is not a number", "rating is '1_0'"),
    (made_up.movielens_csv, "movies.csv", append(b"12,Again,Drama"), 5, "item id appears twice", "'12'"),
    (made_up.movielens_csv, "movies.csv", append(b'13,"No end,Drama'), 5, "a quoted field is opened and never closed", ""),
    (made_up.movielens_csv, "tags.csv", append(b'1,1,"no end,9'), 5, "a quoted field is opened and never closed", ""),
    # RecBole
    (made_up.recbole, "{}.inter", append(b"u1\t1\tx\t9"), 5, "value is not a number", "rating is 'x'"),
    (made_up.recbole, "{}.inter", append(b"u1\t9\t1\t9"), 5, "unknown item", "'9'"),
    (made_up.recbole, "{}.inter", append(b"u1\t1\t1\t9\t"), 5, "wrong number of fields", "5 instead of 4"),
    (made_up.recbole, "{}.item", append(b"3\tAgain\t1990\tDrama"), 5, "item id appears twice", "'3'"),
    (made_up.recbole, "{}.item", append(b"4\t\xff\t1990\tDrama"), 5, "not UTF-8", "byte 0xff at position 3"),
    (made_up.recbole, "{}.user", append(b"u3\t1"), 4, "wrong number of fields", "2 instead of 5"),
    # Amazon
    (made_up.amazon, "Soap.jsonl.gz", gz(append(b'{"rating": 5,')), 3, "not JSON", "Expecting property name"),
    (made_up.amazon, "Soap.jsonl.gz", gz(append(b"[1]")), 3, "not a JSON object", ""),
    (made_up.amazon, "Soap.jsonl.gz", gz(append(review(rating="5"))), 3, "value is not a number", "rating is '5'"),
    (made_up.amazon, "Soap.jsonl.gz", gz(append(review(timestamp=None))), 3, "time is not a number", "timestamp is None"),
    (made_up.amazon, "Soap.jsonl.gz", gz(append(review(parent_asin="B99"))), 3, "unknown item", "'B99'"),
    (made_up.amazon, "Soap.jsonl.gz", gz(append(review(user_id=""))), 3, "missing field", "user_id"),
    (made_up.amazon, "Soap.jsonl.gz", gz(append(b'{"a": "\xe9"}')), 3, "not UTF-8", "byte 0xe9"),
    (made_up.amazon, "meta_Soap.jsonl.gz", gz(append(b'{"title": "x"}')), 4, "missing field", "parent_asin"),
    (made_up.amazon, "meta_Soap.jsonl.gz", gz(append(b'{"parent_asin": "B01"}')), 4, "item id appears twice", "'B01'"),
    # MIND
    (made_up.mind, "behaviors.tsv", append(b"5\tU9\t11/11/2019 9:05:58 AM\tN1"), 5, "wrong number of fields", "4 instead of 5"),
    (made_up.mind, "behaviors.tsv", in_line(3, b"PM", b"XM"), 3, "time is not a date", "'11/12/2019 12:30:00 XM'"),
    (made_up.mind, "behaviors.tsv", in_line(3, b"11/12", b"13/32"), 3, "time is not a date", "13/32/2019"),
    (made_up.mind, "behaviors.tsv", in_line(3, b"N1-0", b"N9-1"), 3, "unknown item", "'N9' is not in news.tsv"),
    (made_up.mind, "behaviors.tsv", in_line(3, b"N1-0", b"N1"), 3, "impression without a label", "'N1'"),
    (made_up.mind, "behaviors.tsv", in_line(1, b"N1 N2\t", b"N1 N8 N2\t"), 1, "unknown item", "'N8' of the history"),
    (made_up.mind, "news.tsv", append(b"N1\ta\tb\tc\td\te\tf\tg"), 5, "item id appears twice", "'N1'"),
    (made_up.mind, "news.tsv", append(b"N5\ta\tb"), 5, "wrong number of fields", "3 instead of 8"),
    # CSV; the first row spans lines 2 and 3
    (made_up.shop_csv, "shop.csv", append(b"u,i,soon,1,,,"), 6, "time is not a number", "time is 'soon'"),
    (made_up.shop_csv, "shop.csv", append(b"u,i,1,inf,,,"), 6, "value is not a number", "value is 'inf'"),
    (made_up.shop_csv, "shop.csv", append(b"u,i,1,1"), 6, "wrong number of fields", "4 instead of 7"),
    (made_up.shop_csv, "shop.csv", append(b',i,1,1,"",,'), 6, "empty user id", "column user"),
    (made_up.shop_csv, "shop.csv", append(b"u,i,1,1,a\rb,,"), 6, "not a row of CSV", "new-line character"),
    (made_up.shop_csv, "shop.csv", in_line(2, b'"nice', b'"\xffnice'), 2, "not UTF-8", "byte 0xff"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "name", "damage", "line", "reason", "detail"), MALFORMED)
def test_a_malformed_row_is_named_by_strict_and_counted_by_skip(
    write: Callable[[Path], Path], name: str, damage: Damage, line: int, reason: str | None, detail: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "data")
    whole = read_dataset(path)
    file = (path if path.is_dir() else path.parent) / name.format(path.name)
    file.write_bytes(damage(file.read_bytes()))
    if reason is None:  # looks odd and is not malformed
        assert len(read_dataset(path).interactions) == len(whole.interactions) + 1
        return
    with pytest.raises(DataError) as caught:
        read_dataset(path)
    assert str(caught.value).startswith(f"{file}:{line}: {reason}")
    assert detail in str(caught.value)
    assert caught.value.line == line

    left = read_dataset(path, malformed="skip")
    assert left.dropped.counts[reason] >= 1
    assert left.dropped.examples[reason].startswith(f"{file.name}:{line}")
    assert detail in left.dropped.examples[reason]
    assert len(whole.interactions) - 1 <= len(left.interactions) <= len(whole.interactions)


def test_skip_counts_every_reason_once_per_row_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('user,item,time,rating\na,x,1,1\na,y,soon,2\nb,x,2\nb,"y,3,3\nb,z,later,4\n,z,5,5\nc,x,6,6')
    dataset = read_dataset(path, malformed="skip")
    assert dataset.interactions.user_ids == ("a", "c")
    assert dataset.interactions.time.tolist() == [1, 6]
    assert dataset.dropped.counts == {
        "time is not a number": 2,
        "wrong number of fields": 1,
        "a quoted field is opened and never closed": 1,
        "empty user id": 1,
    }
    assert dataset.dropped.examples["time is not a number"] == "t.csv:3: time is 'soon'"
    assert dataset.dropped.examples["a quoted field is opened and never closed"] == "t.csv:5"


def test_items_that_were_skipped_are_unknown_to_the_interactions(tmp_path: Path) -> None:
    path = made_up.movielens_csv(tmp_path)
    (path / "movies.csv").write_text("movieId,title,genres\n1,Wooden Toys (1995)\n11,The Mayor,Drama\n12,x,y\n")
    dataset = read_dataset(path, malformed="skip")
    assert dataset.catalogue.ids == ("11", "12")
    assert dataset.dropped.counts["unknown item"] == 1
    assert dataset.dropped.counts["wrong number of fields"] == 1
    assert len(dataset.interactions) == 2


@pytest.mark.parametrize("malformed", ["strict", "skip"])
@pytest.mark.parametrize(
    ("write", "name"),
    [
        (made_up.movielens_100k, "u.data"), (made_up.movielens_100k, "u.item"), (made_up.movielens_1m, "ratings.dat"),
        (made_up.movielens_csv, "ratings.csv"), (made_up.movielens_csv, "movies.csv"), (made_up.recbole, "{}.inter"),
        (made_up.recbole, "{}.item"), (made_up.amazon, "Soap.jsonl.gz"), (made_up.mind, "behaviors.tsv"),
        (made_up.shop_csv, "shop.csv"),
    ],
)  # fmt: skip
def test_an_empty_file_is_always_an_error(write: Callable[[Path], Path], name: str, malformed: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data")
    file = (path if path.is_dir() else path.parent) / name.format(path.name)
    for content in [b""] if file.suffix != ".gz" else [b"", gzip.compress(b"")]:
        file.write_bytes(content)
        with pytest.raises(DataError, match="the file is empty") as caught:
            read_dataset(path, malformed=malformed)  # type: ignore[arg-type]
        assert caught.value.path == file


def test_a_file_with_only_a_header_or_only_malformed_rows_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("user,item,time\n")
    with pytest.raises(DataError, match="no interaction is left"):
        read_dataset(path)
    path.write_text("user,item,time\na,b,c\nd,e,f\n")
    with pytest.raises(DataError, match="no interaction is left; dropped: 2 x time is not a number"):
        read_dataset(path, malformed="skip")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("userId,rating,timestamp", "missing column 'movieId'; the file has: userId, rating, timestamp"),
        ("userId,movieId,rating,rating", "the header names column 'rating' twice"),
        ("", "the first line must name the columns, but is blank"),
        ("\xe9,movieId", "not UTF-8: byte 0xe9 at position 1; save the file as UTF-8"),
        ('userId,"movieId', "a quoted field is opened and never closed"),
    ],
)
def test_a_broken_header_is_named_as_line_1(tmp_path: Path, header: str, message: str) -> None:
    path = made_up.movielens_csv(tmp_path)
    (path / "ratings.csv").write_bytes(f"{header}\n1,1,4.0,964982703\n".encode("latin-1"))
    for malformed in ("strict", "skip"):
        with pytest.raises(DataError) as caught:
            read_dataset(path, malformed=malformed)  # type: ignore[arg-type]
        assert str(caught.value).startswith(f"{path / 'ratings.csv'}:1: {message}")


def test_a_recbole_header_needs_types_and_known_columns(tmp_path: Path) -> None:
    path = made_up.recbole(tmp_path / "ml")
    file = path / "ml.inter"
    good = file.read_text()
    file.write_text(good.replace("rating:float", "rating"))
    with pytest.raises(DataError, match=r"ml\.inter:1: the header has 'rating'; expected name:type"):
        read_dataset(path)
    file.write_text(good.replace("user_id:token", "who:token"))
    with pytest.raises(DataError, match=r"ml\.inter:1: missing column for 'user'; the file has: who, item_id"):
        read_dataset(path)


@pytest.mark.parametrize("malformed", ["strict", "skip"])
def test_a_truncated_gzip_is_always_an_error_and_names_the_line_where_it_breaks_off(malformed: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    text = "user,item,time\n" + "".join(f"user-{i * 7919 % 1000},item-{i * 104729 % 997},{i}\n" for i in range(5000))
    packed = gzip.compress(text.encode())
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="the gzip file is cut off here; fetch it again") as caught:
        read_dataset(path, malformed=malformed)  # type: ignore[arg-type]
    oracle = zlib.decompressobj(wbits=31).decompress(packed[: len(packed) // 2])
    assert caught.value.line == oracle.count(b"\n") + 1


def test_a_damaged_gzip_and_a_name_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    packed = bytearray(gzip.compress(b"user,item,time\n" + b"a,b,1\n" * 10))
    packed[-5] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(DataError, match="the gzip file is damaged after this line"):
        read_dataset(path)
    path.write_text("user,item,time\na,b,1\n")
    with pytest.raises(DataError, match=r"ends in \.gz, but this is not a gzip file"):
        read_dataset(path)


def test_two_gzip_members_and_padding_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"user,item,time\na,b,1\n") + gzip.compress(b"a,c,2\n") + b"\0" * 512)
    assert read_dataset(path).interactions.time.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user,item,time\na,b,1\n".encode("utf-16"), "the file is UTF-16; save it as UTF-8"),
        (b"PK\x03\x04rest of it", "this is a zip archive; unpack it"),
    ],
)
def test_files_that_are_no_plain_text_are_recognised(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_dataset(path)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with path.open("wb") as file:
        file.write(b"user,item,time\na,b,1\n")
        for _ in range(40):
            file.write(b"x" * (1 << 20))
    with pytest.raises(DataError, match=r"t\.csv:3: .* within 16 MiB"):
        read_dataset(path)


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeffuser,item,time\r\nä,b,1\r\n\r\nc,b,2\r\n".encode())
    dataset = read_dataset(path)
    assert dataset.interactions.user_ids == ("ä", "c")
    path.write_bytes("\ufeffuser,item,time\r\nä,b,1\r\n\r\nc,b,x\r\n".encode())
    with pytest.raises(DataError, match=r"t\.csv:4: time is not a number: time is 'x'"):
        read_dataset(path)


def parquet_rows() -> dict[str, list[object]]:
    return {"user": ["a", "b", "c"], "item": ["x", "y", "x"], "time": [1, 2, 3], "value": [1.0, 2.0, 3.0]}


@pytest.mark.parametrize(
    ("column", "row", "value", "reason"),
    [
        ("user", 2, None, "empty user id"),
        ("item", 3, "", "empty item id"),
        ("time", 1, None, "time is missing"),
        ("value", 2, float("nan"), "value is not a number"),
        ("value", 2, None, "value is not a number"),
        ("item", 2, "z", "unknown item"),
    ],
)
def test_parquet_names_the_row(column: str, row: int, value: object, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    columns = parquet_rows()
    columns[column][row - 1] = value
    parquet.write_table(pa.table(columns), path)
    (tmp_path / "items.csv").write_text("item,title\nx,X\ny,Y\n")
    with pytest.raises(DataError) as caught:
        read_dataset(path, columns={"items": "items.csv"})
    assert str(caught.value).startswith(f"{path}:{row}: {reason}")
    left = read_dataset(path, columns={"items": "items.csv"}, malformed="skip")
    assert len(left.interactions) == 2
    assert left.dropped.counts == {reason: 1}


def test_broken_parquet_files_and_types(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty"):
        read_dataset(path)
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="not a Parquet file, or a damaged one"):
        read_dataset(path)
    parquet.write_table(pa.table({"user": [1.5], "item": ["x"], "time": [1]}), path)
    with pytest.raises(DataError, match=r"column 'user' \(for user\) has type double"):
        read_dataset(path)
    parquet.write_table(pa.table({"user": ["a"], "item": ["x"]}), path)
    with pytest.raises(DataError, match="missing column for 'time'; the file has: user, item"):
        read_dataset(path)


def test_the_file_of_items_must_have_the_columns_that_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("user,item,time\na,x,1\n")
    (tmp_path / "items.csv").write_text("item,name\nx,X\n")
    with pytest.raises(DataError, match=r"items\.csv:1: missing column 'label' \(for title\); the file has: item, name"):
        read_dataset(tmp_path / "t.csv", columns={"items": "items.csv", "title": "label"})
