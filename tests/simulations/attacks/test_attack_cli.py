"""``silorec audit attack`` on a real, tiny federation: from the run's folder to the page that shows what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from common.config import load
from common.errors import ConfigError, PrivacyError, SilorecError
from common.privacy.audit.evidence import load_evidence
from common.privacy.audit.report import audit, read_attacks, write_audit
from common.privacy.audit.verify import verify
from common.protocol import config_hash
from simulations.attacks.cli import attack_app
from simulations.attacks.suite import attack, refutations, target_of
from tests.simulations import small_run
from tests.simulations.page import Page

#: Enough users to attack, and SGD, with which canaries show all that there is.
ATTACKED = (
    *small_run.PRIVATE, "data.synthetic.users=120", "training.optimizer=sgd", "training.learning_rate=1.0", "partition.silos=1",
)  # fmt: skip

KINDS = {"canaries", "conformance", "members", "reconstruction"}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(attack_app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished private run."""
    return small_run.run(tmp_path_factory.mktemp("attacked"), *ATTACKED)


@pytest.fixture(scope="module")
def found(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """All attacks on it: what was printed, and the file."""
    out = tmp_path_factory.mktemp("found") / "attacks.json"
    return run(folder, "--canaries", "120", "--shadows", "2", "--seed", "7", "--out", out), out


def test_all_attacks_on_a_run_are_written_and_printed(folder, found):
    done, out = found
    assert done.exit_code == 0, done.output
    told = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert told["attacks"].keys() == KINDS
    assert told["skipped"] == {}
    assert told["refuted"] == []
    assert told["run"] == config_hash(load(folder / "config.toml")), "the run's own settings, declared users included"
    assert told["attacks"]["canaries"]["canaries"] == 120
    assert told["attacks"]["members"]["shadows"] == 2
    printed = " ".join(done.stdout.split())
    assert f"{told['attacks']['canaries']['epsilon_lower']:.3f}" in printed
    for sentence in (told["attacks"]["canaries"]["sentence"], told["attacks"]["conformance"]["sentence"]):
        assert sentence in printed
    for sentence in told["attacks"]["members"]["sentences"] + told["attacks"]["reconstruction"]["sentences"]:
        assert sentence in printed


def test_an_attack_leaves_the_runs_evidence_as_it_is(folder, found):
    assert verify(load_evidence(folder)).holds


def test_the_report_of_a_real_run_with_real_attacks(folder, found, tmp_path):
    document = audit(load_evidence(folder), attacks=read_attacks(found[1]))
    assert document["holds"], document["verdict"]
    assert document["attacks_on_this_run"]
    result = small_run.result(folder)
    assert document["claims"]["epsilon"] == pytest.approx(result["epsilon"], rel=1e-12)
    assert document["claims"]["epsilon_pld"] == pytest.approx(result["epsilon_pld"], rel=1e-12)
    for bound in document["bounds"]:
        assert bound["found"] <= bound["ceiling"]
    _, written = write_audit(document, tmp_path)
    page = Page(written.read_text(encoding="utf-8"))
    assert len(page.rows("table-bounds")) == 2
    assert list(page.rows("table-updates"))[:3] == ["unprotected", "masked", "private"]
    for row, line in zip(
        page.rows("table-updates").values(), document["attacks"]["attacks"]["reconstruction"]["table"], strict=False
    ):
        assert row["AUC of users"][1] == [line["users_auc"]]
    assert len(page.rows("table-fit")) == len(document["attacks"]["attacks"]["canaries"]["fit"]["tests"])


def test_a_scenario_will_do_and_its_population_may_be_changed(tmp_path, folder):
    config = target_of(folder, ["data.synthetic.users=200"])
    assert config.federation.declared_users != load(folder / "config.toml").federation.declared_users
    scenario = target_of("smoke", ["partition.silos=2"])
    assert len(scenario.federation.declared_users) == 2


def test_one_attack_that_cannot_be_made_is_bad_input_and_among_others_it_is_skipped(folder):
    too_many = run(folder, "--kind", "canaries", "--canaries", "1000000")
    assert isinstance(too_many.exception, PrivacyError)
    told = attack(target_of(folder), ["canaries", "members"], canaries=10**6, shadows=2)
    assert told["attacks"].keys() == {"members"}
    assert "canaries" in told["skipped"]["canaries"]


def test_mode_none_claims_nothing_and_its_members_can_be_attacked(folder):
    config = target_of(folder, ["privacy.mode=none"])
    told = attack(config, shadows=2)
    assert told["attacks"].keys() == {"members"}
    assert told["skipped"].keys() == {"canaries", "reconstruction"}
    assert told["attacks"]["members"]["claimed_epsilon"] is None
    assert told["refuted"] == []
    with pytest.raises(PrivacyError):
        attack(config, ["canaries"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--silo", "3"], "silo 3: the run has 1 silos, from 0 to 0"),
        (["--confidence", "1.5"], "must be above 0.5 and below 1"),
        (["--out", "/no/such/folder/attacks.json"], "there is no folder /no/such/folder"),
        (["--set", "privacy.epsilom=1"], "unknown setting"),
    ],
)
def test_bad_input_says_what_is_wrong(folder, arguments, message):
    done = run(folder, "--kind", "members", *arguments)
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


def test_what_is_no_run_and_no_scenario_is_bad_input(tmp_path):
    for target in (tmp_path, "no-such-scenario"):
        assert isinstance(run(target).exception, SilorecError)


def found_by(**attacks: Any) -> list[str]:
    return refutations(attacks)


def test_only_what_contradicts_the_claim_refutes():
    canaries = {"verdict": "cannot say", "refuted_by": [], "fit": {"holds": True}}
    members = {"claimed_epsilon": 3.0, "one_run": {"epsilon_lower": 2.9}}
    conformance = {"holds": True, "violations": []}
    assert found_by(canaries=canaries, members=members, conformance=conformance) == []
    assert found_by(canaries={**canaries, "fit": None}) == []
    assert found_by(canaries={**canaries, "verdict": "claim refuted", "refuted_by": ["curve"]}) == ["canaries: claim refuted"]
    assert len(found_by(canaries={**canaries, "verdict": "not the mechanism claimed", "fit": {"holds": False}})) == 1
    assert found_by(conformance={"holds": False, "violations": ["sampling"]}) == ["conformance: sampling"]
    assert len(found_by(members={**members, "one_run": {"epsilon_lower": 3.1}})) == 1
    assert found_by(members={"claimed_epsilon": None, "one_run": {"epsilon_lower": 9.0}}) == []


def test_a_training_that_clips_too_late_is_refuted_with_exit_status_1(folder, monkeypatch):
    """A clip of four times what the plan says: found by canaries with next to no noise."""
    from simulations.attacks import conformance, planting

    honest = planting.train_with_canaries

    def faulty(config: Any, plan: Any, *args: Any, **options: Any) -> Any:
        return 4.0 * honest(config, plan, *args, **options)

    monkeypatch.setattr(conformance, "train_with_canaries", faulty)
    done = run(folder, "--kind", "canaries", "--canaries", "60")
    assert done.exit_code == 1
    assert "REFUTED: conformance: " in done.stdout
