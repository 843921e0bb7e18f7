"""``silorec doctor``: a sound home has no fault, an ill one ends with 1, no home with 2; nothing is changed or shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import silorec
from common.doctor.checklist import CHECKS, examine
from common.doctor.subject import Subject
from tests.common.doctor.deployment import SOUND, Deployment


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        silorec.main(["doctor", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("at", ["silo", "coordinator"])
def test_a_sound_home_has_no_fault_and_is_not_changed(deployment: Deployment, at: str) -> None:
    home = deployment.silo if at == "silo" else deployment.coordinator
    before = contents(home.folder)
    examined = examine(Subject(home.folder, machine=SOUND))
    assert examined.role == at
    others = [found for found in examined.findings if found.name != "assets"]  # which depends on this machine's cache
    assert {found.outcome for found in others} == {"ok"}, others
    assert {found.name for found in examined.findings} == {
        check.name for check in CHECKS if at in check.roles and check.name not in ("configuration", "metrics port")
    }
    assert contents(home.folder) == before


def test_a_problem_ends_with_one_and_json_says_which(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    deployment.set(device="cpu")
    deployment.silo.node_key.chmod(0o644)
    status, out, err = doctor(capsys, str(deployment.silo.folder), "--json")
    told = json.loads(out)
    (wrong,) = (check for check in told["checks"] if check["outcome"] == "problem")
    assert (status, err, told["role"], told["problems"]) == (1, "", "silo", 1)
    assert wrong["name"] == "keys"
    assert wrong["do"] == f"chmod 600 {deployment.silo.node_key}"


def test_for_people_every_fault_has_a_line_that_says_what_to_do(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.set(device="cpu")
    deployment.silo.node_key.chmod(0o644)
    status, out, _ = doctor(capsys, str(deployment.silo.folder))
    lines = out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("problem     keys: "))
    assert status == 1
    assert lines[at + 1].strip() == f"do: chmod 600 {deployment.silo.node_key}"
    assert "1 problem" in lines[-1]


def test_no_private_key_and_no_row_is_shown(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    (deployment.silo.folder / "shop.csv").write_text("user,item,time\nAda Lovelace,Sketches,1\nAda Lovelace,Notes,soon\n")
    deployment.set(device="cpu")
    _, out, _ = doctor(capsys, str(deployment.silo.folder), "--json")
    assert '"problem"' in out
    assert "Lovelace" not in out
    for key in ("ledger.key", "node.key", "tls.key"):
        secret = (deployment.silo.folder / key).read_text().splitlines()[1:-1]
        assert not [line for line in secret if line[-20:] in out]


def test_without_a_path_the_installation_is_examined(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = doctor(capsys, "--json")
    told = json.loads(out)
    assert (status, told["role"], told["path"]) == (0, "installation", None)
    assert {check["name"] for check in told["checks"]} >= {"python", "packages", "memory"}


def test_what_is_no_home_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = doctor(capsys, str(tmp_path))
    assert (status, out) == (2, "")
    assert "neither a silo's home (no silo.toml) nor a coordinator's" in err
    status, _, err = doctor(capsys, str(tmp_path / "none"))
    assert status == 2
    assert "there is no such folder" in err


def test_a_home_without_its_settings_is_still_known_for_what_it_is(deployment: Deployment) -> None:
    deployment.silo.settings_file.unlink()
    deployment.coordinator.settings_file.unlink()
    assert Subject(deployment.silo.folder).role == "silo"
    assert Subject(deployment.coordinator.folder).role == "coordinator"
