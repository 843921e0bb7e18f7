"""Real runs pass the audit, however they went; and what is changed in their folders afterwards is found."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from client.place import KEY, LEDGER
from common.config import to_toml
from common.privacy.audit.check import Check
from common.privacy.audit.evidence import load_evidence
from common.privacy.audit.verify import Verified, verify
from common.privacy.entries import Chain, export
from common.privacy.ledger import read_ledger
from common.privacy.signing import create_key, load_key
from server.app import app as server_app
from tests import tiny
from tests.simulations import small_run


def audit(folder: Path) -> Verified:
    return verify(load_evidence(folder))


def broken(verified: Verified) -> dict[str, Check]:
    return {check.name: check for check in verified.broken}


def words(verified: Verified) -> str:
    return "; ".join(str(named) for check in verified.broken for named in check.named)


@pytest.fixture
def copy(private: Path, tmp_path: Path) -> Path:
    """The run's folder, to be spoilt."""
    return Path(shutil.copytree(private, tmp_path / "copy"))


def test_a_private_run_passes_every_check(private):
    verified = audit(private)
    assert verified.holds, words(verified)
    assert {check.name for check in verified.skipped} == {"countersignatures", "sums"}, "two silos: no secure sums"
    assert [ledger["place"] for ledger in verified.ledgers] == [0, 1]
    assert [ledger["silo"] for ledger in verified.ledgers] == ["silo-0", "silo-1"]


def test_a_run_without_privacy_has_its_books_in_order(plain):
    verified = audit(plain)
    assert verified.holds, words(verified)
    assert verified.check("plan").evidence.endswith("the configuration's mode protects nobody")
    assert verified.check("budget").outcome == "not applicable"


def test_a_run_that_was_interrupted_and_taken_up_again_passes(tmp_path):
    small_run.run(tmp_path, *small_run.PRIVATE, watch=small_run.CtrlC(1))
    folder = small_run.run(tmp_path, *small_run.PRIVATE, resume=True)
    verified = audit(folder)
    assert verified.holds, words(verified)
    assert small_run.result(folder)["status"] == "finished"


def test_a_run_that_releases_figures_of_quality_and_calibrates_by_pld_passes(tmp_path):
    folder = small_run.run(tmp_path, *small_run.PRIVATE, "privacy.metrics_share=0.2", "privacy.accountant=pld")
    verified = audit(folder)
    assert verified.holds, words(verified)
    assert "8 answers" in verified.check("answers").evidence, "count, two rounds and figures of quality of two silos"


def test_a_run_with_a_coordinator_who_signs_passes(tmp_path):
    key = create_key(tmp_path / "coordinator.key")
    config = tiny.config(privacy__mode="silo", federation__coordinator=key.public_key)
    out = tmp_path / "run"
    context = tiny.server_context(config, out)
    context.run_config["app.key"] = str(tmp_path / "coordinator.key")
    server_app(tiny.grid(config, out), context)
    (out / "config.toml").write_text(to_toml(config))
    verified = audit(out)
    assert verified.holds, words(verified)
    assert key.public_key in verified.check("coordinator").evidence


def test_a_ledger_that_lost_its_last_entry_is_found(copy):
    with sqlite3.connect(copy / "silos" / "1" / LEDGER) as ledger:
        ledger.execute("DROP TRIGGER no_delete")
        ledger.execute("DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries)")
    ledger.close()
    found = broken(audit(copy))
    assert {named.ledger for named in found["chain"].named} == {"silos/1/ledger.sqlite"}
    assert "covered" in found, "nothing pays for that silo's answers any more"


def test_an_older_copy_that_its_owner_signed_is_found(copy):
    silo = copy / "silos" / "1"
    chain, key = read_ledger(silo / LEDGER), load_key(silo / KEY)
    older = Chain(chain.entries[:-2])
    (copy / "silo-1.jsonl").write_bytes(export(older, key))
    shutil.rmtree(silo)
    found = broken(audit(copy))
    assert found.keys() == {"answers", "covered", "claims"}
    (named,) = found["answers"].named
    assert (named.ledger, named.entry) == ("silo-1.jsonl", older.entries[-1].seq)


def test_ledgers_that_changed_places_are_found(copy):
    (copy / "silos" / "0").rename(copy / "silos" / "x")
    (copy / "silos" / "1").rename(copy / "silos" / "0")
    (copy / "silos" / "x").rename(copy / "silos" / "1")
    assert "places" in broken(audit(copy))


def test_a_result_that_promises_more_is_found(copy):
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(result | {"epsilon": result["epsilon"] / 2}))
    assert broken(audit(copy)).keys() == {"claims"}


def test_a_configuration_that_promises_more_is_found(copy):
    text = (copy / "config.toml").read_text()
    changed = text.replace("epsilon = 8.0", "epsilon = 4.0")
    assert changed != text
    (copy / "config.toml").write_text(changed)
    assert broken(audit(copy)).keys() == {"configuration"}


def test_answers_that_were_taken_from_the_transcript_show_in_the_ledgers(copy):
    lines = (copy / "transcript.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "transcript.jsonl").write_bytes(b"".join(lines[:-1]))
    verified = audit(copy)
    assert verified.holds
    (named,) = verified.check("open").named
    assert named.ledger == "silos/1/ledger.sqlite"
    assert "is not in the transcript" in named.what
