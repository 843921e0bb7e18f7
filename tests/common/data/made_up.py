"""Tiny data sets in the exact formats of the public ones; every line is made up."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

FLAGS = 19


def movielens_100k(folder: Path) -> Path:
    """Three users, four films (one untouched, one with an accent in Latin-1), six ratings."""
    folder.mkdir(parents=True, exist_ok=True)

    def film(number: int, title: str, date: str, *genres: int) -> str:
        flags = "|".join("1" if i in genres else "0" for i in range(FLAGS))
        return f"{number}|{title}|{date}||http://example.org/?{number}|{flags}"

    films = [
        film(1, "Wooden Toys (1995)", "01-Jan-1995", 3, 4, 5),
        film(2, "Café Noir, Le (1950)", "01-Jan-1950", 10),
        film(3, "Untouched (1990)", "01-Jan-1990", 8),
        film(4, "unknown", "", 0),
    ]
    (folder / "u.item").write_bytes(("\n".join(films) + "\n").encode("latin-1"))
    (folder / "u.data").write_text(
        "7\t1\t5\t881250949\n9\t2\t3\t881250950\n7\t2\t4\t881250951\n9\t4\t1\t881250952\n8\t1\t2\t881250953\n8\t2\t5\t881250953\n"
    )
    (folder / "u.user").write_text("7|24|M|technician|85711\n8|53|F|other|94043\n9|23|M|writer|32067\n")
    return folder


def movielens_1m(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "movies.dat").write_bytes(
        "1::Wooden Toys (1995)::Animation|Comedy\n2::Café: Noir :: Two (1950)::Drama\n".encode("latin-1")
    )
    (folder / "ratings.dat").write_text("1::1::5::978300760\n1::2::3::978302109\n2::1::4::978301968\n")
    (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    return folder


def movielens_10m(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "movies.dat").write_text("1::Wooden Toys (1995)::Animation|Comedy\n2::Café Noir (1950)::Drama\n", encoding="utf-8")
    (folder / "ratings.dat").write_text("1::1::3.5::978300760\n1::2::0.5::978302109\n2::1::4::978301968\n")
    (folder / "tags.dat").write_text("1::1::warm::978300999\n1::1::funny: very::978301000\n2::2::never rated::978301001\n")
    return folder


def movielens_csv(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "movies.csv").write_text(
        "movieId,title,genres\n"
        "1,Wooden Toys (1995),Animation|Comedy\n"
        '11,"American Mayor, The (1995)",Comedy|Romance\n'
        '12,"The ""Big"" One",(no genres listed)\n',
        encoding="utf-8",
    )
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,11,4.5,964981247\n2,11,0.5,964982224\n", encoding="utf-8"
    )
    (folder / "tags.csv").write_text(
        'userId,movieId,tag,timestamp\n2,11,"dull, long",1445714994\n2,11,politics,1445714996\n1,12,unseen,1445714996\n',
        encoding="utf-8",
    )
    return folder


def recbole(folder: Path) -> Path:
    """Column names differ from ML-100K's on purpose; titles end in blanks, as some published files' do."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / folder.name
    stem.with_suffix(".inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\t1\t4.0\t881250949.0\nu2\t2\t3\t8.81250950E8\nu1\t2\t1\t881250951\n"
    )
    stem.with_suffix(".item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tgenre:token_seq\n"
        "1\tWooden Toys \t1995\tAnimation Children's Comedy\n2\tCafé Noir\t1950.0\tFilm-Noir\n3\tunkonwn\tunkonwn\tunknown\n",
        encoding="utf-8",
    )
    stem.with_suffix(".user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\nu1\t24\tM\ttechnician\t85711\nu2\t53\tF\tother\t94043\n"
    )
    return folder


def amazon(folder: Path, *, compressed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    products = [
        {
            "main_category": "All Beauty", "title": "Lemon Soap", "features": ["Smells nice"], "store": "Soapworks",
            "description": ["A bar of soap.", "Yellow &amp; round."], "categories": ["Bath", "Soap"], "parent_asin": "B01",
        },
        {
            "main_category": "All Beauty", "title": None, "features": ["Comb of horn"], "description": [], "store": None,
            "categories": [], "parent_asin": "B02",
        },
        {"main_category": None, "title": "", "features": [], "description": [], "categories": [], "parent_asin": "B03"},
    ]  # fmt: skip
    reviews = [
        {
            "rating": 5.0, "title": "Lovely", "text": "Smells of lemon.<br />Twice!", "asin": "B0X", "parent_asin": "B01",
            "user_id": "AEA", "timestamp": 1588687728923, "helpful_vote": 0, "verified_purchase": True,
        },
        {
            "rating": 1.0, "title": "", "text": "Broke", "asin": "B02", "parent_asin": "B02",
            "user_id": "AEB", "timestamp": 1588687728001,
        },
    ]  # fmt: skip
    for name, rows in {"meta_Soap": products, "Soap": reviews}.items():
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        if compressed:
            (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(data))
        else:
            (folder / f"{name}.jsonl").write_bytes(data)
    return folder


def mind(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    news = [
        ("N1", "sports", "soccer", "A Match", "Eleven against eleven.", "https://example.org/1", "[]", "[]"),
        ("N2", "news", "newspolitics", "A Vote", "", "https://example.org/2", "[]", "[]"),
        ("N3", "lifestyle", "lifestyle", 'A "Recipe"', "Soup.", "https://example.org/3", "[]", "[]"),
        ("N4", "weather", "weather", "Rain", "It rains.", "https://example.org/4", "[]", "[]"),
    ]
    (folder / "news.tsv").write_text("".join("\t".join(row) + "\n" for row in news), encoding="utf-8")
    behaviours = [
        ("1", "U1", "11/11/2019 9:05:58 AM", "N1 N2", "N3-1 N4-0"),
        ("2", "U1", "11/10/2019 12:00:01 AM", "N1 N2", "N4-1 N3-0"),
        ("3", "U2", "11/12/2019 12:30:00 PM", "", "N1-0 N2-1"),
        ("4", "U3", "11/12/2019 6:11:30 PM", "", "N1-0"),
    ]
    (folder / "behaviors.tsv").write_text("".join("\t".join(row) + "\n" for row in behaviours), encoding="utf-8")
    return folder


def shop_csv(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "shop.csv"
    path.write_text(
        "user,item,time,value,text,title,categories\n"
        'ann,soap,1588687728,5,"nice, ""very"" nice\nindeed",Lemon Soap,Bath|Soap\n'
        "bob,comb,1588687729,1.5,,Comb,\n"
        "ann,comb,1588687730,3,,ignored,Other\n",
        encoding="utf-8",
    )
    return path
