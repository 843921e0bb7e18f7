"""``silorec audit verify | recompute | report``: exit status, what is printed, and what is left on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from common.errors import DataError, SilorecError
from common.privacy.audit.cli import audit_app
from tests.common.privacy.audit.made_up_attacks import made_up_attacks
from tests.common.privacy.audit.made_up_evidence import Federation, sharing


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(audit_app, [str(argument) for argument in arguments])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Federation().write(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def unsound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The second round of silo 1 was released without a commitment; and the entry that reserved it."""
    federation = Federation(paid=lambda silo, action, number: (True, not (silo == 1 and number == 2)))
    return federation.write(tmp_path_factory.mktemp("unsound")), federation.seq(1, 2)


def test_verify_exits_0_when_all_checks_hold_and_changes_nothing(sound):
    before = files(sound)
    done = run("verify", sound)
    assert done.exit_code == 0, done.output
    assert "14 of 17 checks hold, 3 not applicable" in done.stdout
    assert "compare it with the silo's by another way" in done.stdout
    assert files(sound) == before


def test_verify_exits_1_and_names_check_and_entry(unsound):
    folder, seq = unsound
    done = run("verify", folder)
    assert done.exit_code == 1
    assert f"entry {seq} of south.jsonl" in done.stdout
    assert "DOES NOT HOLD: answers" in done.stdout


def test_verify_answers_machines_in_json(sound, unsound):
    told = json.loads(run("verify", sound, "--json").stdout)
    assert told["holds"]
    assert [ledger["silo"] for ledger in told["ledgers"]] == ["north", "south"]
    done = run("verify", unsound[0], "--json")
    assert done.exit_code == 1
    (broken,) = [check for check in json.loads(done.stdout)["checks"] if check["outcome"] == "does not hold"]
    assert broken["name"] == "answers"
    assert [(named["ledger"], named["entry"]) for named in broken["named"]] == [("south.jsonl", unsound[1])]


@pytest.mark.parametrize("command", ["verify", "recompute", "report"])
def test_nothing_to_audit_is_bad_input(tmp_path, command):
    """:func:`silorec.main` makes exit status 2 of it."""
    done = run(command, tmp_path)
    assert isinstance(done.exception, DataError)
    assert "there is nothing to audit" in str(done.exception)


def test_recompute_prints_four_accountants_side_by_side(sound):
    done = run("recompute", sound)
    assert done.exit_code == 0, done.output
    told = json.loads(run("recompute", sound, "--json").stdout)
    assert [ledger["silo"] for ledger in told["ledgers"]] == ["north", "south"]
    for ledger in told["ledgers"]:
        assert ledger["holds"]
        for name in ("rdp", "reference", "pld", "prv"):
            assert f"{ledger['figures'][name]['epsilon']:.5f}" in done.stdout


def test_recompute_exits_1_when_accountants_do_not_agree(sound, monkeypatch):
    """As when dp_accounting took a quarter too little for a step."""
    from common.privacy.audit import recompute

    honest = recompute.rdp_figure

    def wrong(*args: object, **options: object) -> recompute.Figure:
        figure = honest(*args, **options)  # type: ignore[arg-type]
        return recompute.Figure(0.75 * (figure.epsilon or 0.0), high=0.75 * figure.high, order=figure.order)

    monkeypatch.setattr(recompute, "rdp_figure", wrong)
    done = run("recompute", sound)
    assert done.exit_code == 1
    assert "differs" in done.stdout


def test_recompute_without_a_readable_ledger_is_bad_input(tmp_path):
    (tmp_path / "north.jsonl").write_text("{}\n")
    done = run("recompute", tmp_path)
    assert isinstance(done.exception, SilorecError)
    assert "silorec audit verify says why" in str(done.exception)


def test_report_writes_page_and_json_and_exits_as_the_claim_does(sound, unsound, tmp_path):
    attacks = tmp_path / "attacks.json"
    attacks.write_text(json.dumps(made_up_attacks(Federation().run)))
    done = run("report", sound, "--attacks", attacks, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert set(files(tmp_path / "out")) == {"audit.html", "audit.json"}
    assert str(tmp_path / "out" / "audit.html") in done.stdout.replace("\n", "")
    told = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert told["attacks_on_this_run"]
    done = run("report", unsound[0], "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout) == json.loads((unsound[0] / "audit.json").read_text())


def test_a_report_in_the_evidences_folder_does_not_change_the_evidence(tmp_path):
    folder = Federation().write(tmp_path)
    assert run("report", folder).exit_code == 0
    assert run("verify", folder).exit_code == 0


def test_every_command_has_an_example():
    for command in ("verify", "recompute", "report"):
        assert f"Example: silorec audit {command} " in run(command, "--help").stdout.replace("\n", " ")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound run of mode distributed."""
    return Federation(config=sharing()).write(tmp_path_factory.mktemp("shared"))


def test_recompute_of_mode_distributed_has_a_second_line_for_each_ledger(shared, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = run("recompute", shared)
    assert done.exit_code == 0, done.output
    told = json.loads(run("recompute", shared, "--json").stdout)
    assert "RDP at whole orders" in done.stdout
    for ledger in told["ledgers"]:
        left = ledger["if_others_collude"]
        assert f"{ledger['silo']}, if all others collude" in done.stdout
        for name in ("rdp", "reference", "pld", "prv"):
            for figures in (ledger, left):
                assert f"{figures['figures'][name]['epsilon']:.5f}" in done.stdout
            assert left["figures"][name]["epsilon"] > ledger["figures"][name]["epsilon"]


def test_verify_of_mode_distributed_holds(shared):
    done = run("verify", shared)
    assert done.exit_code == 0, done.output
    assert "15 of 17 checks hold, 2 not applicable" in done.stdout
