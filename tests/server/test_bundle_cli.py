"""``silorec bundle make`` and ``add-items``, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from common.bundle.files import read_bundle
from common.data.catalogue import Catalogue
from common.errors import BundleError, ConfigError, DataError, LedgerError
from common.privacy.signing import create_key, load_key
from server.student_store import ACCOUNT, FOLDER
from silorec import command_line
from tests.server import small_run
from tests.server.test_adding import big


def silorec(*arguments: object, status: int = 0) -> Result:
    done = CliRunner().invoke(command_line(), [str(part) for part in arguments], catch_exceptions=False)
    assert done.exit_code == status, done.output
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 150 items with its bundle."""
    folder = small_run.write(tmp_path_factory.mktemp("runs") / "run", big(), distillation__epochs=1)
    silorec("bundle", "make", folder, "--json")
    return folder


def test_make_writes_a_bundle_that_verifies(run: Path) -> None:
    bundle, public = run / "small.bundle", run / "bundle.key.pub"
    assert public.read_text().strip() == load_key(run / "bundle.key").public_key
    assert "holds" in silorec("bundle", "verify", bundle, "--signer", public).output
    opened = read_bundle(bundle, {public.read_text().strip()})
    assert opened.card.data.name == "shop.csv", "not the folder that the data lie in"
    assert opened.card.data.declared_users == 70
    assert (len(opened.items), opened.card.model.window) == (150, 6)
    assert opened.items.text_dim == 64
    assert opened.items.dim == 68
    assert {one.name for one in opened.card.quality} == {"teacher's first 10 kept", "divergence from the teacher"}


def test_a_private_run_says_what_was_promised(tmp_path: Path, catalogue: Catalogue) -> None:
    run = small_run.write(tmp_path / "run", catalogue, privacy__epsilon=3.0)
    privacy = json.loads(silorec("bundle", "make", run, "--json", "--key", tmp_path / "k").stdout)["card"]["privacy"]
    assert (privacy["mode"], privacy["epsilon"]) == ("silo", 3.0)
    assert privacy["delta"] == pytest.approx(1 / 300)
    assert "at most 3.00" in privacy["statement"]
    plain = small_run.write(tmp_path / "plain", catalogue, privacy__mode="none")
    privacy = json.loads(silorec("bundle", "make", plain, "--json", "--key", tmp_path / "k").stdout)["card"]["privacy"]
    assert privacy["epsilon"] is None
    assert "protects nobody" in privacy["statement"]


def test_the_card_tells_what_a_simulation_measured_unless_told_not_to(tmp_path: Path, catalogue: Catalogue) -> None:
    run = small_run.write(tmp_path / "run", catalogue)
    figures = {"ndcg@5": 0.25, "hr@5": 0.5, "mrr": 0.2, "intervals": {"ndcg@5": [0.2, 0.3]}}
    result = {"k": 5, "epsilon": 7.5, "statement": "As promised.", "status": "interrupted", "rounds": 2, "rounds_planned": 3}
    told = {"released_metrics": {"ndcg@5": 0.27}}
    (run / "result.json").write_text(json.dumps(figures | result | told))

    def card(*options: str) -> dict[str, list[dict[str, object]]]:
        return json.loads(silorec("bundle", "make", run, "--json", *options).stdout)["card"]

    whole = card()
    rows = [(one["name"], one["value"], one["low"]) for one in whole["quality"]]
    assert rows[:4] == [("ndcg@5", 0.27, None), ("ndcg@5", 0.25, 0.2), ("hr@5", 0.5, None), ("mrr", 0.2, None)]
    assert "with noise" in str(whole["quality"][0]["note"])
    assert "epsilon does not cover it" in str(whole["quality"][1]["note"])
    assert any("interrupted after round 2 of 3" in str(note) for note in whole["notes"])
    assert whole["privacy"]["epsilon"] == 7.5  # type: ignore[call-overload]
    less = card("--no-figures")
    assert less["quality"][0]["value"] == 0.27
    assert len(less["quality"]) == len(whole["quality"]) - 3
    assert any("left out" in str(note) for note in less["notes"])


def test_settings_are_changed_on_the_way_and_the_student_is_reused(tmp_path: Path, catalogue: Catalogue) -> None:
    run = small_run.write(tmp_path / "run", catalogue)
    silorec("bundle", "make", run, "--set", "distillation.epochs=2", "--json")
    account = json.loads((run / FOLDER / ACCOUNT).read_text())
    assert len(account["epochs"]) == 2
    silorec("bundle", "make", run, "--set", "distillation.epochs=2", "--out", tmp_path / "again.bundle", "--json")
    assert json.loads((run / FOLDER / ACCOUNT).read_text()) == account
    with pytest.raises(ConfigError, match="only settings of the section distillation"):
        silorec("bundle", "make", run, "--set", "privacy.epsilon=1")


def test_a_new_key_is_told_of_and_an_old_one_is_used(tmp_path: Path, catalogue: Catalogue) -> None:
    run = small_run.write(tmp_path / "run", catalogue)
    key = tmp_path / "keys" / "shop.key"
    first = silorec("bundle", "make", run, "--key", key)
    assert f"made a signing key: {key}" in first.stderr
    assert load_key(key).public_key in first.stdout
    second = silorec("bundle", "make", run, "--key", key)
    assert "made a signing key" not in second.stderr
    key.chmod(0o644)
    with pytest.raises(LedgerError, match="chmod 600"):
        silorec("bundle", "make", run, "--key", key)


def test_public_histories_and_more_teachers_may_be_named(tmp_path: Path, catalogue: Catalogue) -> None:
    run = small_run.write(tmp_path / "run", catalogue)
    other = small_run.write(tmp_path / "other", catalogue, seed=5)
    public = tmp_path / "public.csv"
    public.write_text("i1,i2\ni3\n")
    made = json.loads(silorec("bundle", "make", run, "--teacher", other, "--public", public, "--json").stdout)
    assert any("2 of which begin with public ones" in note for note in made["card"]["notes"])
    assert json.loads((run / FOLDER / ACCOUNT).read_text())["teachers"] == 2


def test_add_items_takes_a_table_of_items(run: Path, tmp_path: Path) -> None:
    table = tmp_path / "new.csv"
    table.write_text('id,title,categories,year,description\nn1,"Lantern, the harbour",drama|western,1999,Boats\nn2,Granite,,,\n')
    bundle = tmp_path / "more.bundle"
    done = silorec("bundle", "add-items", run / "small.bundle", table, "--out", bundle, "--key", run / "bundle.key", "--json")
    facts = json.loads(done.stdout)
    assert (facts["added"], facts["items"]) == (2, 152)
    opened = read_bundle(bundle, {facts["signer"]})
    assert opened.digest == facts["digest"]
    assert opened.catalogue.titles[-2:] == ("Lantern, the harbour", "Granite")
    assert opened.catalogue.categories[-2] == ("drama", "western")
    assert opened.catalogue.fields["description"][-2:] == ("Boats", "")
    other = tmp_path / "sku.csv"
    other.write_text("sku;name\nn9;Ferry\n")
    silorec("bundle", "add-items", bundle, other, "--key", run / "bundle.key", "--column", "item=sku", "--column", "title=name")
    assert read_bundle(bundle, None).catalogue.ids[-1] == "n9", "the bundle itself is replaced unless told otherwise"


def test_add_items_trusts_its_own_key_or_a_named_signer(run: Path, tmp_path: Path) -> None:
    table = tmp_path / "new.csv"
    table.write_text("id,title\nn1,Ferry\n")
    create_key(tmp_path / "other.key")
    command = [
        "bundle",
        "add-items",
        run / "small.bundle",
        table,
        "--out",
        tmp_path / "x.bundle",
        "--key",
        tmp_path / "other.key",
    ]
    with pytest.raises(BundleError, match="not among the 1 trusted signers"):
        silorec(*command)
    silorec(*command, "--signer", run / "bundle.key.pub")


def test_what_is_no_run_or_no_table_is_said_so(tmp_path: Path, run: Path) -> None:
    with pytest.raises(DataError, match=r"config\.toml is missing: not the folder of a run"):
        silorec("bundle", "make", tmp_path)
    with pytest.raises(DataError, match="no such file"):
        silorec("bundle", "add-items", run / "small.bundle", tmp_path / "absent.csv")


@pytest.mark.parametrize("command", ["make", "add-items"])
def test_help_has_an_example(command: str) -> None:
    text = " ".join(silorec("bundle", command, "--help").output.split())
    assert f"Example: silorec bundle {command}" in text


def test_both_are_mounted_beside_verify_and_show() -> None:
    group = typer.main.get_command(command_line()).commands["bundle"]  # type: ignore[attr-defined]
    assert {"make", "add-items", "verify", "show"} <= set(group.commands)
