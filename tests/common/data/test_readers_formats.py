"""Each reader on a small file of its exact format: what comes out is what was written."""

from __future__ import annotations

import calendar
import datetime
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from common.data.interactions import Dataset
from common.data.load import detect_format, filter_users, formats, read_dataset
from common.data.readers.registry import READERS, Reader, reader
from common.errors import DataError
from tests.common.data import made_up

FORMATS: dict[str, Callable[[Path], Path]] = {
    "movielens-100k": made_up.movielens_100k,
    "movielens-1m": made_up.movielens_1m,
    "movielens-10m": made_up.movielens_10m,
    "movielens-csv": made_up.movielens_csv,
    "recbole": made_up.recbole,
    "amazon-2023": made_up.amazon,
    "mind": made_up.mind,
    "csv": made_up.shop_csv,
}


def rows(dataset: Dataset) -> list[tuple[str, str, int]]:
    data = dataset.interactions
    return [(data.user_ids[u], dataset.catalogue.ids[i], int(t)) for u, i, t in zip(data.user, data.item, data.time, strict=True)]


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_detected_and_nothing_is_dropped_that_is_well_formed(name: str, tmp_path: Path) -> None:
    path = FORMATS[name](tmp_path / "made-up")
    assert detect_format(path) == name
    dataset = read_dataset(path)
    assert len(dataset.interactions) >= 2
    assert set(dataset.dropped.counts) <= {"tag without a rating by the same user"}


def test_movielens_100k(tmp_path: Path) -> None:
    dataset = read_dataset(made_up.movielens_100k(tmp_path / "ml"))
    assert dataset.catalogue.ids == ("1", "2", "3", "4")
    assert dataset.catalogue.titles == ("Wooden Toys", "Café Noir, Le", "Untouched", "unknown")
    assert dataset.catalogue.fields["year"] == ("1995", "1950", "1990", "")
    assert dataset.catalogue.categories == (("Animation", "Children's", "Comedy"), ("Film-Noir",), ("Drama",), ())
    assert rows(dataset)[:3] == [("7", "1", 881250949), ("9", "2", 881250950), ("7", "2", 881250951)]
    assert dataset.interactions.value is not None
    assert dataset.interactions.value.tolist() == [5, 3, 4, 1, 2, 5]
    assert dataset.interactions.user_ids == ("7", "9", "8")
    assert dataset.user_text == ("24 year old male technician", "23 year old male writer", "53 year old female")


def test_movielens_100k_takes_genre_names_from_u_genre(tmp_path: Path) -> None:
    folder = made_up.movielens_100k(tmp_path / "ml")
    names = ["unknown", *(f"genre {i}" for i in range(1, made_up.FLAGS))]
    (folder / "u.genre").write_text("".join(f"{name}|{i}\n" for i, name in enumerate(names)) + "\n")
    assert read_dataset(folder).catalogue.categories[0] == ("genre 3", "genre 4", "genre 5")


def test_movielens_1m(tmp_path: Path) -> None:
    dataset = read_dataset(made_up.movielens_1m(tmp_path / "ml"))
    assert dataset.catalogue.titles == ("Wooden Toys", "Café: Noir :: Two")
    assert dataset.catalogue.categories == (("Animation", "Comedy"), ("Drama",))
    assert rows(dataset) == [("1", "1", 978300760), ("1", "2", 978302109), ("2", "1", 978301968)]
    assert dataset.user_text == ("under 18 year old female K-12 student", "56+ year old male self-employed person")


def test_movielens_10m_and_its_tags(tmp_path: Path) -> None:
    dataset = read_dataset(made_up.movielens_10m(tmp_path / "ml"))
    assert dataset.catalogue.titles == ("Wooden Toys", "Café Noir")
    assert dataset.interactions.value is not None
    assert dataset.interactions.value.tolist() == [3.5, 0.5, 4.0]
    assert dataset.interactions.text == ["warm; funny: very", "", ""]
    assert dataset.dropped.counts == {"tag without a rating by the same user": 1}


def test_movielens_csv_and_its_tags(tmp_path: Path) -> None:
    dataset = read_dataset(made_up.movielens_csv(tmp_path / "ml"))
    assert dataset.catalogue.titles == ("Wooden Toys", "American Mayor, The", 'The "Big" One')
    assert dataset.catalogue.fields["year"] == ("1995", "1995", "")
    assert dataset.catalogue.categories == (("Animation", "Comedy"), ("Comedy", "Romance"), ())
    assert rows(dataset) == [("1", "1", 964982703), ("1", "11", 964981247), ("2", "11", 964982224)]
    assert dataset.interactions.text == ["", "", "dull, long; politics"]
    assert dataset.dropped.counts == {"tag without a rating by the same user": 1}


def test_tags_meet_the_ratings_that_a_threshold_leaves(tmp_path: Path) -> None:
    dataset = read_dataset(made_up.movielens_csv(tmp_path / "ml"), min_value=4)
    assert rows(dataset) == [("1", "1", 964982703), ("1", "11", 964981247)]
    assert dataset.interactions.text == ["", ""]
    assert dataset.dropped.counts == {"value below 4": 1, "tag without a rating by the same user": 3}


def test_recbole(tmp_path: Path) -> None:
    dataset = read_dataset(made_up.recbole(tmp_path / "ml"))
    assert dataset.name == "ml"
    assert dataset.catalogue.titles == ("Wooden Toys", "Café Noir", "unkonwn")
    assert dataset.catalogue.fields["year"] == ("1995", "1950", "")
    assert dataset.catalogue.categories == (("Animation", "Children's", "Comedy"), ("Film-Noir",), ())
    assert rows(dataset) == [("u1", "1", 881250949), ("u2", "2", 881250950), ("u1", "2", 881250951)]
    assert dataset.user_text == ("24 year old male technician", "53 year old female")


def test_recbole_without_items_and_users_takes_the_items_of_the_interactions(tmp_path: Path) -> None:
    folder = made_up.recbole(tmp_path / "ml")
    (folder / "ml.item").unlink()
    (folder / "ml.user").unlink()
    dataset = read_dataset(folder / "ml.inter")
    assert dataset.catalogue.titles == ("1", "2")
    assert dataset.user_text is None


def test_recbole_with_other_names_for_its_columns(tmp_path: Path) -> None:
    folder = made_up.recbole(tmp_path / "ml")
    inter = folder / "ml.inter"
    inter.write_text(inter.read_text().replace("user_id", "who").replace("item_id", "what").replace("rating", "liking"))
    dataset = read_dataset(folder, columns={"user": "who", "item": "what", "value": "liking"})
    assert rows(dataset)[0] == ("u1", "1", 881250949)
    assert dataset.user_text is not None
    assert dataset.catalogue.titles[0] == "Wooden Toys"


def test_recbole_asks_which_of_several_files(tmp_path: Path) -> None:
    folder = made_up.recbole(tmp_path / "ml")
    for name in ("a", "b"):
        (folder / f"{name}.inter").write_bytes((folder / "ml.inter").read_bytes())
    assert len(read_dataset(folder).interactions) == 3, "the one called like the folder is taken"
    (folder / "ml.inter").unlink()
    with pytest.raises(DataError, match=r"several \.inter files \(a\.inter, b\.inter\)"):
        read_dataset(folder)


@pytest.mark.parametrize("compressed", [True, False])
def test_amazon(tmp_path: Path, compressed: bool) -> None:
    folder = made_up.amazon(tmp_path / "soap", compressed=compressed)
    dataset = read_dataset(folder)
    assert dataset.name == "Soap"
    assert dataset.catalogue.ids == ("B01", "B02", "B03")
    assert dataset.catalogue.titles == ("Lemon Soap", "Comb of horn", "B03")
    assert dataset.catalogue.categories == (("Bath", "Soap"), ("All Beauty",), ())
    assert dataset.catalogue.fields["store"] == ("Soapworks", "", "")
    assert dataset.catalogue.fields["description"] == ("A bar of soap. Yellow & round.", "Comb of horn", "")
    assert rows(dataset) == [("AEA", "B01", 1588687728), ("AEB", "B02", 1588687728)]
    assert dataset.interactions.text == ["Lovely. Smells of lemon. Twice!", "Broke"]
    reviews = folder / ("Soap.jsonl.gz" if compressed else "Soap.jsonl")
    assert rows(read_dataset(reviews)) == rows(dataset), "the path of the reviews will do"


def test_mind_places_the_history_before_the_first_impression(tmp_path: Path) -> None:
    dataset = read_dataset(made_up.mind(tmp_path / "mind"))

    def utc(*when: int) -> int:
        return calendar.timegm(datetime.datetime(*when).timetuple())

    first = utc(2019, 11, 10, 0, 0, 1)
    assert sorted(rows(dataset)) == sorted(
        [
            ("U1", "N1", first - 2),
            ("U1", "N2", first - 1),
            ("U1", "N4", first),
            ("U1", "N3", utc(2019, 11, 11, 9, 5, 58)),
            ("U2", "N2", utc(2019, 11, 12, 12, 30, 0)),
        ]
    )
    histories = dict(zip(dataset.interactions.user_ids, dataset.interactions.histories(), strict=True))
    assert [dataset.catalogue.ids[i] for i in histories["U1"]] == ["N1", "N2", "N4", "N3"]
    assert "U3" not in histories, "a user who clicked nothing has no interaction"
    assert dataset.catalogue.categories[0] == ("sports", "soccer")
    assert dataset.catalogue.categories[2] == ("lifestyle",)
    assert dataset.catalogue.titles[2] == 'A "Recipe"'
    assert dataset.catalogue.fields["description"] == ("Eleven against eleven.", "", "Soup.", "It rains.")


def test_csv_with_items_in_the_same_rows(tmp_path: Path) -> None:
    dataset = read_dataset(made_up.shop_csv(tmp_path))
    assert dataset.catalogue.ids == ("soap", "comb")
    assert dataset.catalogue.titles == ("Lemon Soap", "Comb")
    assert dataset.catalogue.categories == (("Bath", "Soap"), ())
    assert rows(dataset) == [("ann", "soap", 1588687728), ("bob", "comb", 1588687729), ("ann", "comb", 1588687730)]
    assert dataset.interactions.text == ['nice, "very" nice\nindeed', "", ""]
    assert dataset.interactions.value is not None
    assert dataset.interactions.value.tolist() == [5, 1.5, 3]


def test_csv_with_a_mapping_a_file_of_items_and_another_unit_of_time(tmp_path: Path) -> None:
    (tmp_path / "buys.csv.gz").write_bytes(gzip.compress(b"who;what;when\na;1;1588687728923\nb;2;1588687729001\n"))
    (tmp_path / "goods.csv").write_text('id,name,kind,year\n1,Soap (2001),"Bath, Home & Garden",\n2,Comb,,1999\n3,Cold,Bath,\n')
    columns = {"user": "who", "item": "what", "time": "when", "items": "goods.csv", "time_unit": "ms", "categories": "kind"}
    dataset = read_dataset(tmp_path / "buys.csv.gz", columns={**columns, "title": "name", "category_separator": ","})
    assert rows(dataset) == [("a", "1", 1588687728), ("b", "2", 1588687729)]
    assert dataset.catalogue.titles == ("Soap", "Comb", "Cold")
    assert dataset.catalogue.fields["year"] == ("2001", "1999", "")
    assert dataset.catalogue.categories == (("Bath", "Home & Garden"), (), ("Bath",))
    assert dataset.interactions.value is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["2020-05-05 14:08:48", "2020-05-05T14:08:49"], [1588687728, 1588687729]),
        (["2020-05-05T14:08:48.923Z", "2020-05-05T16:08:49+02:00"], [1588687728, 1588687729]),
        (["1970-01-02", "1969-12-31 23:59:59.5"], [86400, -1]),
        (["12.9", "-0.5"], [12, -1]),
    ],
)
def test_csv_times_as_iso_dates_or_numbers_round_down(tmp_path: Path, written: list[str], expected: list[int]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"u,i,{when}\n" for when in written))
    assert read_dataset(path).interactions.time.tolist() == expected


def test_csv_without_times_takes_the_order_of_the_file_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("uid,iid\na,x\na,y\nb,x\na,x\n")
    with pytest.raises(DataError, match=r"t\.csv:1: missing column for 'time'.*order of the file"):
        read_dataset(path)
    dataset = read_dataset(path, columns={"time": ""})
    assert dataset.interactions.time.tolist() == [0, 1, 2, 3]


def table(**columns: object) -> pa.Table:
    return pa.table(columns)


def test_parquet_with_numbers_timestamps_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "shop.parquet"
    when = pa.array([1588687728923, 1588687729001, 1588687730000], pa.timestamp("ms", "UTC"))
    content = table(
        user=[1, 2, 1], item=["soap", "comb", "comb"], time=when, rating=[5.0, 1.5, 3.0],
        title=["Lemon Soap", "Comb", "x"], genres=[["Bath", "Soap"], [], ["y"]],
    )  # fmt: skip
    parquet.write_table(content, path, row_group_size=2)
    dataset = read_dataset(path)
    assert rows(dataset) == [("1", "soap", 1588687728), ("2", "comb", 1588687729), ("1", "comb", 1588687730)]
    assert dataset.catalogue.titles == ("Lemon Soap", "Comb")
    assert dataset.catalogue.categories == (("Bath", "Soap"), ())
    assert dataset.interactions.value is not None
    assert dataset.interactions.value.tolist() == [5, 1.5, 3]


def test_parquet_folder_with_a_file_of_items(tmp_path: Path) -> None:
    parquet.write_table(table(item=[1, 2, 3], title=["A", "B", "C"], genres=["x|y", None, ""]), tmp_path / "items.parquet")
    for part, user in enumerate(("a", "b")):
        parquet.write_table(table(user=[user, user], item=[1, 2], ts=[10.5 + part, 20 + part]), tmp_path / f"part-{part}.parquet")
    dataset = read_dataset(tmp_path, columns={"items": "items.parquet"})
    assert rows(dataset) == [("a", "1", 10), ("a", "2", 20), ("b", "1", 11), ("b", "2", 21)]
    assert dataset.catalogue.titles == ("A", "B", "C")
    assert dataset.catalogue.categories == (("x", "y"), (), ())


def test_a_row_that_repeats_user_item_and_time_is_dropped_and_a_later_meeting_stays(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("user,item,time,value\na,x,1,5\na,y,1,4\na,x,1,2\na,x,2,1\nb,x,1,3\na,x,1,5\n")
    dataset = read_dataset(path)
    assert rows(dataset) == [("a", "x", 1), ("a", "y", 1), ("a", "x", 2), ("b", "x", 1)]
    assert dataset.interactions.value is not None
    assert dataset.interactions.value.tolist() == [5, 4, 1, 3], "the earliest row is the one that is kept"
    assert dataset.dropped.counts == {"same user, item and time as an earlier row": 2}
    assert dataset.dropped.examples["same user, item and time as an earlier row"] == "item 'x' again at time 1"


def test_min_value_drops_rows_and_users_but_no_items(tmp_path: Path) -> None:
    dataset = read_dataset(made_up.shop_csv(tmp_path), min_value=3)
    assert rows(dataset) == [("ann", "soap", 1588687728), ("ann", "comb", 1588687730)]
    assert dataset.interactions.user_ids == ("ann",)
    assert len(dataset.interactions.text or ()) == 2
    assert dataset.dropped.counts == {"value below 3": 1}


def test_min_value_needs_values(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="have no values"):
        read_dataset(made_up.mind(tmp_path / "mind"), min_value=3)


def test_filter_users_renumbers_and_counts(tmp_path: Path) -> None:
    dataset = read_dataset(made_up.movielens_100k(tmp_path / "ml"))
    assert filter_users(dataset, 2) is dataset
    path = tmp_path / "t.csv"
    path.write_text("user,item,time\na,x,1\nb,x,1\nb,y,2\nc,x,3\nd,y,1\nd,x,2\nd,z,3\n")
    kept = filter_users(read_dataset(path), 2)
    assert kept.interactions.user_ids == ("b", "d")
    assert rows(kept) == [("b", "x", 1), ("b", "y", 2), ("d", "y", 1), ("d", "x", 2), ("d", "z", 3)]
    assert kept.dropped.counts == {"user has fewer than 2 interactions": 2}
    assert len(kept.catalogue) == 3
    with pytest.raises(DataError, match="no user has 9 interactions"):
        filter_users(kept, 9)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    for name, write in FORMATS.items():
        seen: list[tuple[int, int]] = []
        read_dataset(write(tmp_path / name), progress=lambda done, total, seen=seen: seen.append((done, total)))
        done, total = np.array(seen).T
        assert (np.diff(done) >= 0).all(), name
        assert done[-1] == total[-1], name


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("nothing to read")
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path)
    assert all(name in str(caught.value) for name in formats())
    with pytest.raises(DataError, match=r"unknown format 'excel'; known are: amazon-2023, csv"):
        read_dataset(tmp_path, format="excel")
    with pytest.raises(DataError, match="no such file or folder"):
        read_dataset(tmp_path / "nowhere")


def test_several_formats_that_match_must_be_chosen_from(tmp_path: Path) -> None:
    made_up.movielens_100k(tmp_path)
    made_up.movielens_csv(tmp_path)
    with pytest.raises(DataError, match=r"several formats match \(movielens-100k, movielens-csv\)"):
        read_dataset(tmp_path)
    assert len(read_dataset(tmp_path, format="movielens-csv").catalogue) == 3


def test_a_format_is_added_by_a_decorator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.data.readers.registry.READERS", dict[str, Reader](READERS))
    from common.data.readers import registry

    @reader("sevens", about="NAME.seven", detect=lambda path: path.suffix == ".seven")
    def read(path: Path, reading: object) -> Dataset:
        return read_dataset(made_up.shop_csv(path.parent))

    (tmp_path / "a.seven").write_text("7")
    assert registry.choose(tmp_path / "a.seven").read is read
    with pytest.raises(ValueError, match="two readers are called"):
        reader("sevens", about="", detect=lambda path: True)(read)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": "nobody"}, r"shop\.csv:1: missing column 'nobody' \(for user\); the file has: user, item"),
        ({"colour": "x"}, "unknown column 'colour' in the column mapping; allowed are: user, item"),
        ({"time_unit": "hours"}, "time_unit is 'hours'; allowed are: s, ms, us, ns"),
        ({"items": "nowhere.csv"}, "file of items, 'nowhere.csv', does not exist"),
        ({"item": ""}, "column for item cannot be left out"),
    ],
)
def test_a_wrong_mapping_is_explained(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_dataset(made_up.shop_csv(tmp_path), columns=columns)


def test_formats_with_fixed_columns_take_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"movielens-100k has fixed columns .*csv, parquet, recbole"):
        read_dataset(made_up.movielens_100k(tmp_path), columns={"user": "uid"})
