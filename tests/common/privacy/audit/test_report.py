"""The audit's page says what its JSON says, to anybody, and asks nothing of anybody."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError, DataError
from common.privacy.audit import report
from common.privacy.audit.evidence import load_evidence
from common.privacy.audit.report import audit, read_attacks, write_audit
from common.privacy.audit.statement import ABOUT, read_about
from tests.common.privacy.audit.made_up_attacks import made_up_attacks
from tests.common.privacy.audit.made_up_evidence import Federation, configuration, sharing
from tests.simulations.page import Page

ROOT = Path(__file__).parents[4]
TEMPLATE = ROOT / "common" / "privacy" / "audit" / "templates" / "audit.html.j2"
NOBODY = "not an origin"  # who asks where Chromium itself does: for updates and the time
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def document_of(folder: Path, federation: Federation | None = None, **options: Any) -> dict[str, Any]:
    federation = federation or Federation()
    federation.write(folder, result=federation.result(versions={"torch": "2.13.0"}))
    return audit(load_evidence(folder), clock=lambda: 1_750_000_000.0, **options)


def page_of(document: dict[str, Any], folder: Path) -> Page:
    written, page = write_audit(document, folder)
    assert json.loads(written.read_text(encoding="utf-8")) == document
    return Page(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("demo")
    federation = Federation()
    document = document_of(folder, federation, attacks=made_up_attacks(federation.run))
    return page_of(document, folder), document, folder


def numbers_in(value: Any) -> set[float]:
    if isinstance(value, dict):
        return set().union(*map(numbers_in, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(numbers_in, value)) if value else set()
    return {float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else set()


def strings_in(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [str(key) for key in value] + [text for inner in value.values() for text in strings_in(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in strings_in(inner)]
    return [value] if isinstance(value, str) else []


def test_every_figure_on_the_page_is_one_of_the_json(demo):
    page, document, _ = demo
    shown = [json.loads(a["value"] or "") for tag, a in page.tags if tag == "data"]
    assert len(shown) > 80
    assert {float(value) for value in shown} <= numbers_in(document)


def test_every_other_word_with_a_digit_is_in_the_json_or_the_template(demo):
    _, document, folder = demo
    source = (folder / "audit.html").read_text(encoding="utf-8")
    for element in ("style", "svg", "data"):
        source = re.sub(rf"<{element}[ >].*?</{element}>", "\0", source, flags=re.DOTALL)
    texts = [text for part in re.split(r"<[^>]*>", source) for text in part.split("\0")]
    told = " ".join(strings_in(document))
    template = TEMPLATE.read_text(encoding="utf-8")
    for text in texts:
        for word in re.findall(r"\S*\d\S*", html.unescape(text)):
            assert word in told or word in template or word.strip(".,;:()") in told, f"{word!r} in {text!r}"


def test_table_of_silos_equals_the_json(demo):
    page, document, _ = demo
    rows = page.rows("table-silos")
    assert list(rows) == ["north", "south"]
    for silo in document["claims"]["silos"]:
        row = rows[silo["silo"]]
        for column, value in (
            ("Declared users", silo["declared_users"]),
            ("ε by RDP", silo["epsilon"]),
            ("ε by PLD", silo["epsilon_pld"]),
            ("Charges", silo["charges"]),
            ("ε of the ledger", silo["total"]["epsilon"]),
            ("Limit of the policy", silo["policy"]["epsilon"]),
            ("δ of the policy", silo["total"]["delta"]),
            ("Rényi order", silo["total"]["order"]),
            ("Open reservations", silo["open"]),
        ):
            assert row[column][1] == [value]
        assert float(row["ε by RDP"][0]) >= silo["epsilon"], "a guarantee is rounded up"


def test_table_of_checks_equals_the_json(demo):
    page, document, _ = demo
    rows = page.rows("table-checks")
    assert list(rows) == [check["name"] for check in document["verified"]["checks"]]
    for check in document["verified"]["checks"]:
        row = rows[check["name"]]
        assert check["outcome"] in row["Outcome"][0]
        (shown, _) = row["What is checked, and on what evidence"]
        assert check["statement"] in shown
        assert check["evidence"] in shown


def test_table_of_accountants_equals_the_json(demo):
    page, document, _ = demo
    rows = page.rows("table-recomputed")
    for ledger in document["recomputed"]:
        figures, row = ledger["figures"], rows[ledger["silo"]]
        assert row["RDP, dp_accounting"][1] == [figures["rdp"]["epsilon"]]
        assert row["RDP, computed again"][1] == [figures["reference"]["epsilon"]]
        assert row["PLD, dp_accounting"][1] == [figures["pld"][key] for key in ("epsilon", "low", "high")]
        assert row["PRV, Opacus"][1] == [figures["prv"][key] for key in ("epsilon", "low", "high")]
        assert "holds" in row["Agree"][0]
    rules = page.rows("table-rules-1")
    assert list(rules) == [rule["name"] for rule in document["recomputed"][0]["rules"]]


def test_tables_of_attacks_equal_the_json(demo):
    page, document, _ = demo
    rows = page.rows("table-bounds")
    assert len(document["bounds"]) == 2
    for bound in document["bounds"]:
        row = rows[bound["title"]]
        assert row["ε claimed"][1] == [bound["claimed"]]
        assert row["ε at least"][1] == [bound["found"]]
        assert row["At most it could show"][1] == [bound["ceiling"]]
        assert row["Right guesses"][1] == [bound["correct"], bound["guesses"]]
        assert row["Confidence"][1] == [bound["confidence"]]
    assert "yes" in rows["1,000 gradient canaries"]["Could refute the claim"][0]
    assert "it can say nothing against it" in rows["membership of 97 users"]["Could refute the claim"][0]
    attacks = document["attacks"]["attacks"]
    for test, row in zip(attacks["canaries"]["fit"]["tests"], page.rows("table-fit").values(), strict=True):
        assert [row[c][1] for c in ("Expected", "Observed", "p-value")] == [
            [test["expected"]],
            [test["observed"]],
            [test["p_corrected"]],
        ]
    updates = page.rows("table-updates")
    for line in attacks["reconstruction"]["table"]:
        row = updates[line["view"]]
        assert [row[f"Items, silo of {n}"][1] for n in ("1 user", "4 users")] == [[line["items_of_1"]], [line["items_of_4"]]]
        assert row["AUC of users"][1] == [line["users_auc"]]
    for sentence in (attacks["canaries"]["sentence"], attacks["conformance"]["sentence"], *attacks["members"]["sentences"]):
        assert sentence in page.text


def test_figures_draw_what_the_json_says(demo):
    page, document, _ = demo
    labels = [a["aria-label"] or "" for tag, a in page.tags if tag == "svg"]
    assert len(labels) == 6, "three figures, each for wide and for narrow screens"
    for ledger in document["history"]:
        last = ledger["points"][-1]
        assert f"{ledger['silo']}: ε spent, ε spent: " in labels[0]
        assert f"{last['epsilon']:.4g} in round {last['round']}." in labels[0]
    assert f"limit of the policy {document['history'][0]['limit']:g}" in labels[0]
    assert "1,000 gradient canaries: 2.346 of at most 5.912" in labels[2]
    assert "ROC curves" in labels[4]
    assert "members of the run (rmia), AUC 0.543" in labels[4]


def test_history_is_the_auditors_own_and_equals_what_ledgers_recorded(demo):
    _, document, _ = demo
    for ledger in document["history"]:
        assert [point["round"] for point in ledger["points"]] == [0, 1, 2, 3]
        for point in ledger["points"]:
            assert point["epsilon"] == pytest.approx(point["recorded"], rel=1e-9)


def test_page_names_unit_neighbours_and_whom_to_trust(demo):
    page, document, _ = demo
    claims = document["claims"]
    assert claims["unit"] in page.text
    assert claims["neighbours"] in page.text
    assert all(who in page.text for who in claims["trusted"] + claims["not_trusted"])
    assert all(what in page.text for what in document["not_covered"])
    assert document["verdict"] in page.text
    assert document["holds"]
    assert claims["epsilon"] == pytest.approx(Federation().result()["epsilon"], rel=1e-12)
    assert claims["epsilon_pld"] == pytest.approx(Federation().result()["epsilon_pld"], rel=1e-12)


REGISTRY = {
    "basic": {
        "name", "data_curators", "description", "intended_use", "data_product_type", "data_product_region", "data_product_sector",
        "publication_date",
    },
    "dp_variant": {"variant_name", "data_domain", "unprotected_quantities"},
    "privacy_loss": {
        "privacy_unit", "privacy_unit_details", "number_of_privacy_units", "privacy_parameters", "privacy_parameters_details",
    },
    "deployment_model": {
        "model_name", "model_name_details", "trust_assumptions", "actors", "release_type", "release_type_details",
        "data_source_type", "data_source_type_details", "access_type", "access_type_details",
    },
    "accounting": {"composition", "post_processing"},
    "implementation": {
        "preprocessing_and_hyperparameter_tuning", "mechanisms", "justification", "utility", "additional_information",
    },
    "administrative": {"status", "registry_authors"},
}  # fmt: skip


def test_deployment_statement_has_the_registrys_fields(demo):
    page, document, _ = demo
    deployment = document["deployment"]
    for section, fields in REGISTRY.items():
        assert fields <= deployment[section].keys()
        for name in deployment[section]:
            assert name.replace("_", " ") in page.text
    assert deployment["privacy_loss"]["privacy_parameters"] == {
        "epsilon": document["claims"]["epsilon"],
        "delta": document["claims"]["delta"],
    }
    assert deployment["basic"]["data_curators"] == ["north", "south"]
    assert deployment["basic"]["intended_use"] == "not stated"


def test_operators_state_what_only_they_know(tmp_path):
    about = tmp_path / "about.toml"
    about.write_text(
        'name = "Books"\nintended_use = "What to read next"\ndata_curators = ["North", "South"]\npublication_date = 2026-03-01\n'
    )
    document = document_of(tmp_path / "run", about=read_about(about))
    basic = document["deployment"]["basic"]
    assert (basic["name"], basic["intended_use"]) == ("Books", "What to read next")
    assert (basic["data_curators"], basic["publication_date"]) == (["North", "South"], "2026-03-01")
    for text, message in (
        ('nme = "x"', "unknown field 'nme'"),
        ("data_curators = 'x'", "must be a list"),
        ("name = [1]", "must be a text"),
        ("=", "not a TOML"),
    ):
        about.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_about(about)
    with pytest.raises(ConfigError, match="no such file"):
        read_about(tmp_path / "nowhere.toml")
    assert {"intended_use", "publication_date", "justification"} <= ABOUT.keys()


def test_checklist_goes_through_the_pyramid_and_points_to_what_is_there(demo):
    page, document, _ = demo
    topics = [row["topic"] for row in document["checklist"]]
    assert topics == [
        "Privacy parameters", "Unit of privacy", "Definition and neighbouring data", "Algorithms and their correctness",
        "Sampling and amplification", "Composition and budget tracking", "Trust model", "Utility", "Bias", "Floating point",
        "Randomness", "Timing and other side channels", "Data security and access control", "Data collection exposure",
    ]  # fmt: skip
    names = {check["name"] for check in document["verified"]["checks"]}
    for row in document["checklist"]:
        assert row["state"] in ("done", "partly", "not covered")
        for path in re.findall(r"(?:tests|docs)/[\w/.]+\w", row["shown"]):
            assert (ROOT / path).exists(), path
        for listed in re.findall(r"checks? ([a-z, ]+?)(?: \(|;|$)", row["shown"]):
            assert {name.strip() for name in listed.split(",")} <= names, row["shown"]
        assert row["topic"] in page.text


def test_evidence_that_does_not_hold_is_said_loudly_with_the_entry(tmp_path):
    federation = Federation(paid=lambda silo, action, number: (True, not (silo == 1 and number == 2)))
    document = document_of(tmp_path, federation)
    page = page_of(document, tmp_path)
    assert not document["holds"]
    assert "does not bear out" in document["verdict"]
    assert "answers" in document["verdict"]
    assert "DOES NOT HOLD" in page.text
    assert f"entry {federation.seq(1, 2)} of south.jsonl" in page.text
    assert 'section class="protected"' not in (tmp_path / "audit.html").read_text()


def test_a_refuted_claim_does_not_hold(tmp_path):
    federation = Federation()
    attacks = made_up_attacks(federation.run, refuted=["canaries: claim refuted"])
    document = document_of(tmp_path, federation, attacks=attacks)
    assert document["verified"]["holds"]
    assert not document["holds"]
    assert "an attack speaks against the claim (canaries: claim refuted)" in document["verdict"]


def test_accountants_that_do_not_agree_make_the_audit_fail(tmp_path, monkeypatch):
    honest = report.recompute_ledgers

    def tampered(evidence: Any) -> list[dict[str, Any]]:
        rows = honest(evidence)
        return [{**row, "holds": False} for row in rows]

    monkeypatch.setattr(report, "recompute_ledgers", tampered)
    document = document_of(tmp_path)
    assert not document["holds"]
    assert "the accountants do not agree" in document["verdict"]


def test_attacks_on_other_settings_are_marked(tmp_path):
    document = document_of(tmp_path, attacks=made_up_attacks("f" * 64))
    assert document["attacks_on_this_run"] is False
    assert "made on other settings than the run’s" in page_of(document, tmp_path).text


def test_without_attacks_the_page_says_so(tmp_path):
    document = document_of(tmp_path)
    page = page_of(document, tmp_path)
    assert "None was made for this report." in page.text
    assert any("none was made for this report" in what for what in document["not_covered"])


def test_mode_none_says_that_nothing_is_protected(tmp_path):
    federation = Federation(config=configuration(privacy__mode="none"), said={"mode": "none"}, modes=("none",))
    federation.write(tmp_path, result={"mode": "none", "epsilon": None, "epsilon_pld": None, "delta": None, "silos": []})
    document = audit(load_evidence(tmp_path))
    assert document["holds"], document["verdict"]
    assert document["claims"]["epsilon"] is None
    assert document["deployment"]["privacy_loss"]["privacy_parameters"] == {"epsilon": None, "delta": None}
    page = page_of(document, tmp_path)
    assert "NOTHING is protected" in page.text
    assert "Nothing is protected" in page.text
    assert "unbounded" in page.text
    assert "nothing is protected: mode none" in document["verdict"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, dict[str, Any], Federation]:
    """Mode distributed: four silos, two of them counted on, one may collude."""
    folder = tmp_path_factory.mktemp("shared")
    federation = Federation(config=sharing())
    document = document_of(folder, federation)
    return page_of(document, folder), document, federation


def test_mode_distributed_claims_two_figures_and_says_whom_each_holds_against(shared):
    page, document, federation = shared
    claims, told = document["claims"], federation.result()
    assert document["holds"], document["verdict"]
    for key in ("epsilon", "epsilon_pld", "epsilon_if_others_collude", "epsilon_pld_if_others_collude"):
        assert claims[key] == pytest.approx(told[key], rel=1e-12)
    assert claims["epsilon"] <= 6.0 < claims["epsilon_if_others_collude"]
    assert (claims["mode"], claims["honest_silos"], claims["colluding_silos"]) == ("distributed", 2, 1)
    left = f"{math.ceil(100 * claims['epsilon_if_others_collude']) / 100:.2f}"
    assert claims["sharing"] == (
        "It holds against the coordinator and whoever gets the model, who see only sums with the noise of at least 2 honest "
        "silos in them, and with at most 1 other silo colluding. If all other silos collude with the coordinator, epsilon is "
        f"{left}, by the silo's own share of the noise."
    )
    assert claims["sharing"] in page.text
    assert claims["trusted"][0] == ("1 other silo in every sum: that each adds its share of the noise, and keeps it to itself")
    assert "the other silos" not in claims["not_trusted"]
    assert "1 of the other silos, colluding with the coordinator" in claims["not_trusted"]
    assert any("did add their shares of noise" in what for what in document["not_covered"])
    assert any("does not attack this mode" in what for what in document["not_covered"])
    assert not any("looks into the sums" in what for what in document["not_covered"]), "the run allows for one"


def test_tables_of_mode_distributed_equal_the_json(shared):
    page, document, _ = shared
    rows = page.rows("table-silos")
    assert set(rows) == {"north", "south", "east", "west"}
    for silo in document["claims"]["silos"]:
        row = rows[silo["silo"]]
        assert row["ε by RDP"][1] == [silo["epsilon"]]
        assert row["ε by RDP, if all others collude"][1] == [silo["epsilon_if_others_collude"]]
        assert row["ε by PLD, if all others collude"][1] == [silo["epsilon_pld_if_others_collude"]]
        assert row["Charges"][1] == [silo["charges"]]
        assert float(row["ε by RDP, if all others collude"][0]) >= silo["epsilon_if_others_collude"], "rounded up"
    rows = page.rows("table-recomputed")
    for ledger in document["recomputed"]:
        for name, counted in (
            (ledger["silo"], ledger),
            (f"{ledger['silo']}, if all others collude", ledger["if_others_collude"]),
        ):
            assert rows[name]["RDP, dp_accounting"][1] == [counted["figures"]["rdp"]["epsilon"]]
            assert rows[name]["RDP, computed again"][1] == [counted["figures"]["reference"]["epsilon"]]
            assert rows[name]["PRV, Opacus"][1] == [counted["figures"]["prv"][key] for key in ("epsilon", "low", "high")]
            assert "holds" in rows[name]["Agree"][0]
    for table in ("table-rules-1", "table-rules-1-left"):
        assert list(page.rows(table)) == [rule["name"] for rule in document["recomputed"][0]["rules"]]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_deployment_and_checklist_of_mode_distributed_say_what_it_rests_on(shared):
    page, document, federation = shared
    model = document["deployment"]["deployment_model"]
    assert model["model_name"] == "Distributed"
    assert document["claims"]["sharing"] in model["model_name_details"]
    assert "sees the sums only" in model["actors"]
    details = document["deployment"]["privacy_loss"]["privacy_parameters_details"]
    assert document["claims"]["sharing"] in details
    assert document["deployment"]["privacy_loss"]["privacy_parameters"]["epsilon"] == document["claims"]["epsilon"]
    mechanisms = document["deployment"]["implementation"]["mechanisms"]
    assert "noise multipliers are those of a sum with 2 honest silos in it" in mechanisms
    assert f"{federation.plan.noise_multiplier:.6g}" in mechanisms
    rows = {row["topic"]: row for row in document["checklist"]}
    assert document["claims"]["sharing"] in rows["Trust model"]["done"]
    assert "in whole numbers" in rows["Floating point"]["done"]
    for row in rows.values():
        for path in re.findall(r"(?:tests|docs)/[\w/.]+\w", row["shown"]):
            assert (ROOT / path).exists(), path
        assert row["topic"] in page.text


def test_where_no_silo_may_collude_another_silo_that_looks_into_sums_is_not_covered(tmp_path):
    federation = Federation(config=sharing(aggregation__corrupt=0.0))
    document = document_of(tmp_path, federation)
    claims = document["claims"]
    assert (claims["honest_silos"], claims["colluding_silos"]) == (3, 0)
    assert "and with no other silo colluding" in claims["sharing"]
    assert not any("other silos" in who for who in claims["not_trusted"])
    (found,) = (what for what in document["not_covered"] if "looks into the sums" in what)
    assert "this run allows for none" in found


def test_exports_of_mode_distributed_alone_still_tell_both_figures(tmp_path):
    Federation(config=sharing()).write(tmp_path, only=("exports",))
    document = audit(load_evidence(tmp_path))
    claims = document["claims"]
    assert (claims["mode"], claims["honest_silos"], claims["colluding_silos"]) == ("distributed", 2, None)
    assert claims["epsilon_if_others_collude"] > claims["epsilon"]
    assert "colluding. If" not in claims["sharing"]
    assert "answers, sums, plan, covered could not be checked" in document["verdict"]
    assert any("in its configuration, which is not here" in what for what in document["not_covered"])


def test_a_sum_that_nobody_signed_for_bears_out_nothing(tmp_path):
    federation = Federation(config=sharing())
    federation.sums = lambda: []  # type: ignore[method-assign]
    document = document_of(tmp_path, federation)
    assert not document["holds"]
    assert "sums" in document["verdict"]


def test_accountants_that_do_not_agree_on_what_is_left_make_the_audit_fail(tmp_path, monkeypatch):
    from common.privacy.audit import recompute as module

    real = module.recompute_if_others_collude

    def faulty(events: Any, delta: float) -> Any:
        found = real(events, delta)
        assert found is not None
        return module.replace(found, rules=(module.replace(found.rules[0], outcome="differs"), *found.rules[1:]))

    monkeypatch.setattr(module, "recompute_if_others_collude", faulty)
    document = document_of(tmp_path, Federation(config=sharing()))
    assert not document["holds"]
    assert "the accountants do not agree" in document["verdict"]
    page = page_of(document, tmp_path)
    assert "holds" in page.rows("table-recomputed")["north"]["Agree"][0]
    assert "does not hold" in page.rows("table-recomputed")["north, if all others collude"]["Agree"][0]


def test_other_modes_say_nothing_of_collusion(demo):
    page, document, _ = demo
    assert document["claims"]["sharing"] is document["claims"]["epsilon_if_others_collude"] is None
    assert all(ledger["if_others_collude"] is None for ledger in document["recomputed"])
    assert "if all others collude" not in page.text


def test_exports_alone_and_damaged_ones_render(tmp_path):
    Federation().write(tmp_path, only=("exports",))
    document = audit(load_evidence(tmp_path))
    assert document["claims"]["of"] == "everything in the ledgers"
    assert document["claims"]["epsilon"] is not None
    assert "as far as they go: answers, plan, covered could not be checked" in document["verdict"]
    assert "there is no transcript" in page_of(document, tmp_path).text
    for name in ("north.jsonl", "south.jsonl"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    document = audit(load_evidence(tmp_path))
    assert not document["holds"]
    assert "Nothing can be claimed from this evidence" in page_of(document, tmp_path).text


def test_a_ledger_that_nothing_was_charged_to_claims_nothing(tmp_path):
    federation = Federation(paid=lambda silo, action, number: (False, False))
    document = audit(load_evidence(federation.write(tmp_path, only=("exports",))))
    assert "Nothing was charged, so nothing is claimed." in document["verdict"]
    assert "There is no bounded total to draw." in page_of(document, tmp_path).text


HOSTILE = "<script>alert(1)</script>\"' onload=alert(2) &amp;"


def test_what_others_wrote_is_escaped(tmp_path):
    federation = Federation()
    attacks = made_up_attacks(federation.run, refuted=[HOSTILE], skipped={HOSTILE: HOSTILE})
    attacks["attacks"]["canaries"]["sentence"] = attacks["attacks"]["members"]["sentences"][0] = HOSTILE
    attacks["attacks"]["members"]["method"] = attacks["attacks"]["canaries"]["fit"]["tests"][0]["name"] = HOSTILE
    document = document_of(tmp_path, federation, attacks=attacks, about={"name": HOSTILE, "justification": HOSTILE})
    page = page_of(document, tmp_path)
    assert "<script" not in (tmp_path / "audit.html").read_text().lower()
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(HOSTILE) >= 6


def test_page_requests_nothing(demo):
    page, _, _ = demo
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "img", "image", "use", "base")
        for name in attributes.keys() & {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}:
            assert attributes[name] == "data:,"
    assert "url(" not in page.style
    assert "@import" not in page.style
    policy = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_page_suits_phones_dark_screens_printers_and_screen_readers(demo):
    page, _, _ = demo
    assert "prefers-color-scheme: dark" in page.style
    assert "@media print" in page.style
    assert "@page" in page.style
    assert any(a.get("name") == "viewport" for _, a in page.tags)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)
    assert all(a.get("scope") in ("row", "col") for tag, a in page.tags if tag == "th")
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 40 for tag, a in page.tags if tag == "svg")


def browse(page: Path, scratch: Path, *options: str) -> tuple[str, str, set[str]]:
    """What headless Chromium makes of a page: its document, its log, and what the page asked the network for."""
    log = scratch / "net.json"
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=3000",
        "--disable-background-networking", "--disable-component-update", "--no-first-run",
        f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}", *options, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    asked = {
        event["params"]["url"]
        for event in json.loads(log.read_text(errors="replace"))["events"]
        if "url" in (params := event.get("params", {})) and params.get("initiator", NOBODY) != NOBODY
    }
    return done.stdout, done.stderr, {url for url in asked if not url.startswith(("file:", "data:"))}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_opens_and_prints_the_page_without_a_complaint_or_a_request(demo, tmp_path):
    page, document, folder = demo
    shown, log, asked = browse(folder / "audit.html", tmp_path, "--dump-dom")
    assert "CONSOLE" not in log
    assert not asked
    assert Page(shown.split("<!DOCTYPE html>")[-1]).tables.keys() == page.tables.keys()
    assert document["verdict"] in shown
    printed = tmp_path / "audit.pdf"
    _, log, asked = browse(folder / "audit.html", tmp_path, f"--print-to-pdf={printed}")
    assert "CONSOLE" not in log
    assert not asked
    assert printed.read_bytes().startswith(b"%PDF")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_the_browser_would_notice_a_request_and_the_pages_policy_forbids_it(demo, tmp_path):
    source = (demo[2] / "audit.html").read_text(encoding="utf-8")
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(source.replace("</main>", '<img src="http://127.0.0.1:9/pixel" alt=""></main>'))
    _, log, asked = browse(spoilt, tmp_path, "--dump-dom")
    assert "violates the following Content Security Policy" in log
    assert not asked
    spoilt.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", spoilt.read_text()))
    assert browse(spoilt, tmp_path, "--dump-dom")[2] == {"http://127.0.0.1:9/pixel"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not what silorec audit attack"),
        ('{"schema": 2, "attacks": {}}', "schema 2, this version reads 1"),
    ],
)
def test_attacks_that_are_something_else_are_refused(tmp_path, content, message):
    path = tmp_path / "attacks.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_attacks(path)


def test_a_page_that_cannot_be_written_is_an_error(demo, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another folder with --out"):
        write_audit(demo[1], tmp_path / "file")
