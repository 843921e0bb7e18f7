"""The report says what the run's files say, to anybody, without asking anything of anybody."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError, DataError
from simulations.report import MOST_SILOS, read_run, write_report
from tests.simulations.made_up_run import EXAMPLE, made_up, write_run
from tests.simulations.page import Cell, Page

ATTRIBUTES_THAT_FETCH = {
    "src",
    "href",
    "xlink:href",
    "srcset",
    "poster",
    "action",
    "data",
    "background",
    "formaction",
    "manifest",
}


def page_of(folder: Path, overrides: tuple[str, ...] = (), **options: Any) -> tuple[Page, dict[str, Any], list[dict[str, Any]]]:
    result, rounds = made_up(**options)
    path = write_report(write_run(folder, result, rounds, overrides))
    return Page(path.read_text(encoding="utf-8")), result, rounds


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, dict[str, Any], list[dict[str, Any]]]:
    return page_of(tmp_path_factory.mktemp("demo"))


COLUMNS = {
    "NDCG@10": ("ndcg@10", 4),
    "HR@10": ("hr@10", 4),
    "MRR": ("mrr", 4),
    "AUC": ("auc", 4),
    "Coverage@10": ("coverage@10", 4),
    "Novelty@10": ("novelty@10", 2),
    "Diversity@10": ("diversity@10", 4),
}


def check_cell(cell: Cell, source: dict[str, Any], key: str, digits: int) -> None:
    expected = [source[key], *source.get("intervals", {}).get(key, [])]
    shown, values = cell
    assert values == expected
    assert re.findall(r"\d+\.\d+", shown) == [f"{value:.{digits}f}" for value in expected]


def test_table_of_metrics_equals_the_json(demo):
    page, result, _ = demo
    rows = page.rows("table-metrics")
    sources = {
        "This run": result,
        "This run, before training": result["before_training"],
        "This run, on validation items": result["validation"],
        **{reference["title"]: reference for reference in result["references"]},
    }
    assert set(rows) == set(sources)
    for title, source in sources.items():
        for column, (key, digits) in COLUMNS.items():
            check_cell(rows[title][column], source, key, digits)
    assert rows["EASE"]["Seconds to fit"][1] == [result["references"][0]["seconds"]]


def test_table_of_silos_equals_the_json(demo):
    page, result, _ = demo
    rows = page.rows("table-silos")
    assert list(rows) == [silo["name"] for silo in result["silos"]]
    for silo in result["silos"]:
        row = rows[silo["name"]]
        for column in ("NDCG@10", "HR@10", "MRR", "AUC"):
            check_cell(row[column], silo, *COLUMNS[column])
        for column, key in (
            ("Declared users", "declared_users"),
            ("Users measured", "users"),
            ("ε spent", "epsilon"),
            ("ε (PLD)", "epsilon_pld"),
            ("Noise multiplier", "noise_multiplier"),
        ):
            assert row[column][1] == [silo[key]]


def test_table_of_rounds_equals_the_json(demo):
    page, _, rounds = demo
    table = list(page.rows("table-rounds").values())
    assert len(table) == len(rounds)
    for row, line in zip(table, rounds, strict=True):
        assert row["NDCG@10 validation"][1] == [line["validation"]["ndcg@10"]]
        assert "NDCG@10 test" not in row, "nothing was tested in between"
        assert row["Loss on validation, nats"][1] == [line["loss"]]
        assert row["ε spent"][1] == [line["epsilon"]]
        assert row["Silos answered"][1] == [line["answered"], line["silos"]]
        assert row["Length of the mean update"][1] == ([] if line["update_norm"] is None else [line["update_norm"]])
        assert row["Seconds"][1] == [line["seconds"]]


def test_page_names_the_facts_of_the_run(demo):
    page, result, _ = demo
    for words in (
        "943 users, 1,682 items, 100,000 interactions",
        "151,936 trained parameters",
        "7 min 12 s",
        "1,234 MB",
        "[privacy]",
    ):
        assert words in page.text
    assert page.rows("table-versions") == {name: {"Version": (v, [])} for name, v in result["versions"].items()}
    assert {name: row["Seconds"][1][0] for name, row in page.rows("table-seconds").items()} == result["seconds_by_part"]
    assert result["statement"] in page.text
    for title in EXAMPLE["history"] + EXAMPLE["recommendations"]:
        assert title in page.text


def test_page_requests_nothing(demo):
    page, _, _ = demo
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "img", "image", "use", "base")
        for name in attributes.keys() & ATTRIBUTES_THAT_FETCH:
            assert attributes[name] == "data:," or (tag, name) == ("data", "value")
        assert not any(name.startswith("on") for name in attributes)
        assert "url(" not in (attributes.get("style") or "")
    assert "url(" not in page.style
    assert "@import" not in page.style
    policy = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_page_suits_phones_dark_screens_and_screen_readers(demo):
    page, _, _ = demo
    assert "prefers-color-scheme: dark" in page.style
    assert any(a.get("name") == "viewport" for _, a in page.tags)
    assert ("html", {"lang": "en"}) in page.tags
    figures = [a for tag, a in page.tags if tag == "svg"]
    assert len(figures) == 6, "three figures, each for wide and for narrow screens"
    for figure in figures:
        assert figure["role"] == "img"
        assert len(figure["aria-label"] or "") > 40
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)
    assert all(a.get("scope") in ("row", "col") for tag, a in page.tags if tag == "th")


def luminance(colour: str) -> float:
    """WCAG 2.1, relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_of_text_and_marks_have_contrast_of_wcag_aa(demo, scheme):
    blocks = re.findall(r":root \{(.*?)\}", demo[0].style, flags=re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[scheme]))

    def contrast(ink: str, paper: str) -> float:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[paper])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    pairs = [
        (ink, paper) for ink in ("ink", "soft", "own", "test", "validation", "reference", "spent") for paper in ("card", "page")
    ]
    pairs += [
        ("good", "good-soft"),
        ("bad", "bad-soft"),
        ("warn", "warn-soft"),
        ("own", "own-soft"),
        ("soft", "own-soft"),
        ("page", "bad"),
    ]
    for ink, paper in pairs:
        assert contrast(ink, paper) >= 4.5, f"{ink} on {paper}: {contrast(ink, paper):.2f}"


def test_private_run_states_its_guarantee_in_plain_words(demo):
    page, _, _ = demo
    assert "Each user of each silo is protected: ε = 7.99, δ = 7.3×10⁻⁴" in page.text
    assert "user-level (add/remove" in page.text
    assert "holds against everybody, the coordinator included" in page.text
    assert "The figures on this page are not private." in page.text
    assert "NOTHING" not in page.text


def test_run_without_privacy_says_so_loudly(tmp_path):
    page, _, rounds = page_of(tmp_path, mode="none")
    assert page.text.count("NOTHING") >= 3
    assert "NOT PRIVATE" in page.text
    assert "is protected: ε" not in page.text
    assert "demo · silorec run · NOT PRIVATE" in page.text, "the title of the window"
    table = list(page.rows("table-rounds").values())
    assert [row["Loss on validation, nats"][1] for row in table] == [[line["loss"]] for line in rounds]
    assert "ε spent" not in table[0]


def test_run_of_mode_distributed_says_whom_its_guarantee_holds_against_and_what_is_left(tmp_path):
    page, result, _ = page_of(tmp_path, mode="distributed")
    spent, left = (f"{math.ceil(100 * result[key]) / 100:.2f}" for key in ("epsilon", "epsilon_if_others_collude"))
    assert f"is protected: ε = {spent}" in page.text
    assert (
        "who see only sums with the noise of at least 3 honest silos in them, and with at most 1 other silo colluding"
        in page.text
    )
    assert (
        f"If all other silos collude with the coordinator, epsilon is {left}, by the silo's own share of the noise." in page.text
    )
    assert "what the coordinator received were sums over silos with noise" in page.text
    assert "holds against everybody" not in page.text
    assert "NOT PRIVATE" not in page.text


ATTACK = "<script>alert(1)</script>"


def test_titles_are_escaped_wherever_they_come_from(tmp_path):
    hostile = f"{ATTACK}\"' onload=alert(2) x='&amp;"
    result, rounds = made_up(examples=[{"title": hostile, "history": [hostile], "recommendations": [hostile]}])
    result["statement"] = result["name"] = result["backbone"] = result["grid"] = hostile
    result["dataset"]["name"] = hostile
    result["references"][0]["title"] = result["silos"][0]["name"] = hostile
    result["versions"] = {hostile: hostile}
    result["seconds_by_part"] = {hostile: 1.0}
    folder = write_run(tmp_path, result, rounds, ['data.source="</pre><script>alert(3)</script>"'])
    source = write_report(folder).read_text(encoding="utf-8")
    assert "<script" not in source.lower()
    page = Page(source)
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(hostile) >= 12, "shown as it is, not dropped"
    labels = [a["aria-label"] or "" for tag, a in page.tags if tag == "svg"]
    assert any(hostile in label for label in labels)


def test_title_that_no_encoding_can_hold_does_not_stop_the_report(tmp_path):
    page, _, _ = page_of(tmp_path, examples=[{"title": "half \ud83d a pair", "history": [], "recommendations": ["شبح \u202e"]}])
    assert "half ? a pair" in page.text


@pytest.mark.parametrize("rounds", [0, 1, 2])
@pytest.mark.parametrize("mode", ["silo", "distributed", "none"])
def test_interrupted_run_renders(tmp_path, mode, rounds):
    page, result, _ = page_of(tmp_path, mode=mode, rounds=rounds)
    assert f"This run was stopped after {rounds} of 6 rounds." in page.text
    assert f"the model {f'after round {rounds}' if rounds else 'before training'}, the last there is" in page.text
    assert len(page.rows("table-rounds")) == rounds + 1
    check_cell(page.rows("table-metrics")["This run"]["NDCG@10"], result, "ndcg@10", 4)


@pytest.mark.parametrize("mode", ["silo", "distributed", "none"])
def test_run_that_was_interrupted_before_anything_was_measured_renders(tmp_path, mode):
    result, _ = made_up(mode=mode, rounds=0)
    bare = ("schema", "name", "status", "mode", "k", "rounds", "rounds_planned", "selected_round")
    for variant, kept in {
        "absent": {key: result[key] for key in bare},
        "null": {key: value if key in bare else None for key, value in result.items()},
    }.items():
        page = Page(write_report(write_run(tmp_path / variant, kept, [])).read_text(encoding="utf-8"))
        assert "Quality was not measured" in page.text
        assert "No round was evaluated." in page.text
        assert ("Privacy was not accounted for" in page.text) == (mode != "none")
        assert "is protected: ε" not in page.text
        assert page.rows("table-metrics")["This run"]["NDCG@10"] == ("–", [])


def test_run_that_was_interrupted_among_its_references_says_so(tmp_path):
    result, rounds = made_up()
    folder = write_run(tmp_path, result | {"status": "interrupted", "references": []}, rounds)
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "This run was stopped after its last round, while it was being compared." in page.text


def curves(page: Page) -> list[int]:
    """Number of points of each line, the legend's left out."""
    paths = [a.get("d") or "" for tag, a in page.tags if tag == "path" and a.get("class") == "curve"]
    return [path.count("L") + 1 for path in paths if "h26" not in path]


def test_test_items_are_drawn_as_a_line_only_if_they_were_asked_in_every_round(tmp_path, demo):
    validation_and_epsilon = [7, 7] * 2
    assert curves(demo[0]) == validation_and_epsilon
    label = next(a["aria-label"] or "" for tag, a in demo[0].tags if tag == "svg")
    before, after = demo[1]["before_training"]["ndcg@10"], demo[1]["ndcg@10"]
    assert f"test: {before:.4g} in round 0, {after:.4g} in round 6." in label
    page, _, rounds = page_of(tmp_path, test_every_round=True)
    assert curves(page) == [7, 7, 7] * 2
    assert [row["NDCG@10 test"][1] for row in page.rows("table-rounds").values()] == [
        [line["test"]["ndcg@10"]] for line in rounds
    ]


def test_rounds_that_were_not_evaluated_leave_a_gap_in_the_table_and_none_in_the_line(tmp_path):
    result, rounds = made_up()
    for line in rounds[1::2]:
        line["validation"] = line["loss"] = None
    page = Page(write_report(write_run(tmp_path, result, rounds)).read_text(encoding="utf-8"))
    assert [row["NDCG@10 validation"][0] == "–" for row in page.rows("table-rounds").values()] == [False, True] * 3 + [False]
    assert curves(page) == [4, 7] * 2


def test_caption_tells_how_references_were_made(demo, tmp_path):
    pooled, own = "without any privacy from all silos’ data", "References that are called silorec"
    assert pooled in demo[0].text
    assert own not in demo[0].text
    result, rounds = made_up()
    result["references"][0] |= {"name": "local-only", "title": "silorec, each silo alone"}
    both = Page(write_report(write_run(tmp_path, result, rounds)).read_text(encoding="utf-8"))
    assert pooled in both.text
    assert own in both.text


def test_other_k_is_carried_through(tmp_path):
    page, result, _ = page_of(tmp_path, k=5, overrides=("evaluation.k=5",))
    check_cell(page.rows("table-metrics")["This run"]["NDCG@5"], result, "ndcg@5", 4)
    assert "@10" not in page.text.replace("k = 10", "")


def test_of_many_silos_the_best_and_the_worst_are_drawn_and_all_are_listed(tmp_path):
    page, result, _ = page_of(tmp_path, silos=100)
    label = next(a["aria-label"] or "" for tag, a in page.tags if tag == "svg" and "silo-" in (a["aria-label"] or ""))
    drawn = set(re.findall(r"(silo-\d+) \(", label))
    ranked = [silo["name"] for silo in sorted(result["silos"], key=lambda s: s["ndcg@10"])]
    assert drawn == {*ranked[: MOST_SILOS // 2], *ranked[-MOST_SILOS // 2 :]}
    assert len(page.rows("table-silos")) == 100


def test_every_key_is_documented():
    docs = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    of_result, of_rounds = (docs.split(heading)[1].split("\n## ")[0] for heading in ("## `result.json`", "## `rounds.jsonl`"))
    result, rounds = made_up(test_every_round=True)
    nested = {"dataset": [result["dataset"]], **{name: result[name] for name in ("silos", "references", "examples")}}
    metrics = {f"{name}@k" for name in ("ndcg", "hr", "coverage", "novelty", "diversity")} | {"mrr", "auc", "intervals"}
    wanted = set(result) | {key for objects in nested.values() for one in objects for key in one}
    for name in wanted:
        assert f"`{name.replace('@10', '@k')}`" in of_result, name
    for name in rounds[0]:
        assert f"`{name}`" in of_rounds, name
    assert all(f"`{name}`" in docs for name in metrics)


def test_report_is_written_again_in_place(tmp_path):
    result, rounds = made_up()
    folder = write_run(tmp_path, result, rounds)
    first = write_report(folder).read_bytes()
    assert write_report(folder) == folder / "report.html"
    assert (folder / "report.html").read_bytes() == first
    assert {path.name for path in folder.iterdir()} == {"result.json", "rounds.jsonl", "config.toml", "report.html"}


@pytest.mark.parametrize("name", ["result.json", "rounds.jsonl"])
def test_missing_file_is_named(tmp_path, name):
    folder = write_run(tmp_path, *made_up())
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{re.escape(name)}: no such file: give the folder of a run"):
        write_report(folder)


def test_missing_or_wrong_configuration_is_named(tmp_path):
    folder = write_run(tmp_path, *made_up())
    (folder / "config.toml").write_text("[privacy]\nepsilom = 8\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"privacy\.epsilom"):
        write_report(folder)
    (folder / "config.toml").unlink()
    with pytest.raises(ConfigError, match=r"config\.toml: no such file"):
        write_report(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", "[1]", r"result\.json: expected a JSON object"),
        ("result.json", "{", r"result\.json:1: not JSON"),
        ("result.json", "{}", r"schema, name, .*missing"),
        ("rounds.jsonl", '{"round": 0}\n{"round": 1', r"rounds\.jsonl:2: not JSON"),
        ("rounds.jsonl", '{"round": 0}\n{"round": 1, "loss": NaN}\n', r"rounds\.jsonl:2: NaN is no JSON number"),
    ],
)
def test_malformed_file_is_named_with_its_line(tmp_path, name, content, message):
    folder = write_run(tmp_path, *made_up())
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_run(folder)


def test_file_in_another_encoding_or_of_another_version_is_refused(tmp_path):
    result, rounds = made_up()
    folder = write_run(tmp_path, result | {"schema": 2}, rounds)
    with pytest.raises(DataError, match="schema 2, this version reads 1"):
        read_run(folder)
    (folder / "result.json").write_bytes(b'{"name": "caf\xe9"}')
    with pytest.raises(DataError, match="not UTF-8"):
        read_run(folder)
