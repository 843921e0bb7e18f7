"""``silorec ledger``: what the operator and the auditor see, and with which status each command ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import silorec
from common.privacy.accountant import epsilon
from common.privacy.entries import read_export
from common.privacy.ledger import Ledger, read_ledger
from common.privacy.ledger_cli import KEY, LEDGER, ledger_app
from common.privacy.signing import create_key, fingerprint, load_key
from tests.common.privacy.ledgers import COUNT, RUN, SHARED_COUNT, asks, digest, full_ledger, policy, shared_step, steps


@pytest.fixture
def policy_file(folder: Path) -> Path:
    return written(folder / "policy.toml", coordinators=("any",))


@pytest.fixture
def state(folder: Path, policy_file: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A silo's folder with two releases, one of them answered."""
    place = folder / "state"
    assert run(capsys, "init", str(place), "--policy", str(policy_file))[0] == 0
    ledger = Ledger.open(place / LEDGER, load_key(place / KEY))
    first = ledger.reserve(asks(COUNT), digest("count"))
    ledger.commit(first.seq, digest("answer"))
    ledger.reserve(asks(steps(1)), digest("round 1"))
    return place


def written(path: Path, **changes: Any) -> Path:
    path.write_text(policy(**changes).to_toml())
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of ``silorec ledger``."""
    with pytest.raises(SystemExit) as ended:
        silorec.main(["ledger", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence with which bad input ends."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("silorec: ")
    assert len(err.splitlines()) == 1
    return err.removeprefix("silorec: ").strip()


def exported(capsys: pytest.CaptureFixture[str], state: Path, name: str = "north.jsonl") -> Path:
    out = state.parent / name
    assert run(capsys, "export", str(state), "--out", str(out))[0] == 0
    return out


def test_every_command_has_a_help_with_an_example(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    names = {str(command.callback.__name__) for command in ledger_app.registered_commands if command.callback}
    assert names == {"init", "show", "export", "verify", "amend", "close", "countersign"}
    for name in names:
        status, out, _ = run(capsys, name, "--help")
        assert status == 0
        assert f"Example: silorec ledger {name} " in " ".join(out.split())


def test_init_makes_ledger_and_key_and_tells_limits_and_fingerprint(
    capsys: pytest.CaptureFixture[str], folder: Path, policy_file: Path
) -> None:
    place = folder / "new" / "state"
    status, out, err = run(capsys, "init", str(place), "--policy", str(policy_file))
    assert (status, err) == (0, "")
    key = load_key(place / KEY)
    for said in ("ledger of north", "epsilon = 8", "delta = 1e-05", "order = 4", fingerprint(key.public_key)):
        assert said in out
    assert Ledger.open(place / LEDGER, key).policy == policy(coordinators=("any",)).resolved()


def test_init_tells_a_program_the_same(capsys: pytest.CaptureFixture[str], folder: Path, policy_file: Path) -> None:
    status, out, _ = run(capsys, "init", str(folder / "s"), "--policy", str(policy_file), "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["public_key"] == read_ledger(folder / "s" / LEDGER).public_key
    assert facts["fingerprint"] == fingerprint(facts["public_key"])
    assert facts["policy"]["order"] == 4.0


def test_init_takes_a_key_that_is_there_and_makes_one_that_is_not(
    capsys: pytest.CaptureFixture[str], folder: Path, policy_file: Path
) -> None:
    mine = create_key(folder / "mine.key")
    assert run(capsys, "init", str(folder / "a"), "--policy", str(policy_file), "--key", str(folder / "mine.key"))[0] == 0
    assert read_ledger(folder / "a" / LEDGER).public_key == mine.public_key
    assert not (folder / "a" / KEY).exists()
    assert run(capsys, "init", str(folder / "b"), "--policy", str(policy_file), "--key", str(folder / "new.key"))[0] == 0
    assert read_ledger(folder / "b" / LEDGER).public_key == load_key(folder / "new.key").public_key


def test_init_overwrites_nothing_and_leaves_nothing_after_a_bad_policy(
    capsys: pytest.CaptureFixture[str], folder: Path, state: Path, policy_file: Path
) -> None:
    before = (state / LEDGER).read_bytes(), (state / KEY).read_bytes()
    assert "there is a ledger already; change its policy with" in refused(
        capsys, "init", str(state), "--policy", str(policy_file)
    )
    assert ((state / LEDGER).read_bytes(), (state / KEY).read_bytes()) == before
    policy_file.write_text(policy_file.read_text().replace("epsilon = 8.0", "epsilom = 8.0"))
    assert "unknown setting 'epsilom'; did you mean 'epsilon'" in refused(
        capsys, "init", str(folder / "n"), "--policy", str(policy_file)
    )
    assert "no such file" in refused(capsys, "init", str(folder / "n"), "--policy", str(folder / "none.toml"))
    assert not (folder / "n").exists()


def test_show_tells_budget_spent_left_runs_and_last_entries(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    status, out, _ = run(capsys, "show", str(state), "--last", "2")
    assert status == 0
    spent = read_ledger(state / LEDGER).spending().epsilon(4.0, 1e-5)
    for said in (
        "ledger of north", "epsilon 8 at delta 1e-05", f"epsilon {spent:.4g}", f"epsilon {8 - spent:.4g}",
        "2 paid for, 1 of them without an answer", RUN[:16], "last 2 of 4 entries", "commitment", "train, round 1",
    ):  # fmt: skip
        assert said in out
    assert "opening" not in out


def test_show_tells_a_program_the_same(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    status, out, _ = run(capsys, "show", str(state), "--json", "--tighter", "--last", "1")
    facts = json.loads(out)
    chain = read_ledger(state / LEDGER)
    spent = chain.spending().epsilon(4.0, 1e-5)
    assert status == 0
    assert facts["spent"]["epsilon"] == spent
    assert facts["spent"]["left"] == 8 - spent
    assert (facts["spent"]["reservations"], facts["spent"]["open"]) == (2, 1)
    assert facts["spent"]["best_rdp"] == epsilon([COUNT, steps(1)], 1e-5, "rdp")
    assert facts["spent"]["pld"] == epsilon([COUNT, steps(1)], 1e-5, "pld")
    assert facts["runs"] == {RUN: {"epsilon": spent, "releases": 2}}
    assert facts["last"] == [chain.entries[-1].body]
    assert facts["open_reservations"] == [3]
    assert facts["head"] == chain.head


@pytest.fixture
def shared(folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A silo's folder with three releases, two of them sums over silos."""
    written(folder / "shared.toml", coordinators=("any",), modes=("silo", "distributed"), max_honest_silos=4)
    place = folder / "shared"
    assert run(capsys, "init", str(place), "--policy", str(folder / "shared.toml"))[0] == 0
    ledger = Ledger.open(place / LEDGER, load_key(place / KEY))
    ledger.reserve(asks(SHARED_COUNT), digest("count"))
    ledger.reserve(asks(shared_step(1)), digest("round 1"))
    ledger.reserve(asks(steps(1), run=digest("another run")), digest("another"))
    return place


def test_show_tells_what_is_left_if_all_other_silos_collude(
    capsys: pytest.CaptureFixture[str], shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    status, out, _ = run(capsys, "show", str(shared), "--tighter")
    assert status == 0
    spending = read_ledger(shared / LEDGER).spending()
    seen, left = spending.epsilon(4.0, 1e-5), spending.if_others_collude().epsilon(4.0, 1e-5)
    assert left > seen
    told = " ".join(out.split())
    for said in (
        f"epsilon {seen:.4g} (", "against whoever sees the sums over silos",
        f"epsilon {left:.4g}, by this silo's own noise alone", "the budget counts on up to 4 honest silos in every sum",
        f"epsilon {8 - seen:.4g}",
        "distributed-step of 4 honest silos", "max_honest_silos = 4", "; if others collude, epsilon ",
    ):  # fmt: skip
        assert said in told
    facts = json.loads(run(capsys, "show", str(shared), "--json", "--tighter")[1])
    spent, runs = facts["spent"], facts["runs"]
    assert (spent["epsilon"], spent["epsilon_if_others_collude"], spent["honest_silos"]) == (seen, left, 4)
    assert spent["left"] == 8 - seen, "the budget counts the first figure"
    assert spent["pld"] < spent["pld_if_others_collude"] < spent["best_rdp_if_others_collude"] <= left
    other = digest("another run")
    assert runs[RUN]["epsilon_if_others_collude"] > runs[RUN]["epsilon"]
    assert runs[other]["epsilon_if_others_collude"] == runs[other]["epsilon"]


def test_show_says_nothing_of_collusion_where_nothing_is_shared(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    assert "collude" not in run(capsys, "show", str(state), "--tighter")[1]
    assert "collude" not in run(capsys, "show", str(state), "--tighter", "--json")[1]


def test_show_of_a_ledger_without_limit_is_json_too(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    from common.privacy.events import Unprotected

    written(folder / "p.toml", epsilon=None, modes=("none",), coordinators=("any",))
    assert run(capsys, "init", str(folder / "s"), "--policy", str(folder / "p.toml"))[0] == 0
    ledger = Ledger.open(folder / "s" / LEDGER, load_key(folder / "s" / KEY))
    ledger.reserve(asks(Unprotected("update", 1), mode="none"), digest("q"))
    spent = json.loads(run(capsys, "show", str(folder / "s"), "--json")[1])["spent"]
    assert (spent["epsilon"], spent["limit"], spent["left"], spent["share"]) == (None, None, None, None)
    out = run(capsys, "show", str(folder / "s"))[1]
    assert "epsilon without bound" in out
    assert "epsilon without limit" in out


def test_show_needs_no_key_and_changes_nothing(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    (state / KEY).unlink()
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    assert run(capsys, "show", str(state))[0] == 0
    assert run(capsys, "verify", str(state))[0] == 0
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before


def test_an_export_is_what_the_ledger_says(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    out = exported(capsys, state)
    assert read_export(out.read_bytes()).entries == read_ledger(state / LEDGER).entries
    assert "cannot be written" in refused(capsys, "export", str(state), "--out", str(state / LEDGER / "x"))


def test_verify_of_a_sound_export_or_folder_is_status_0(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    export = exported(capsys, state)
    chain = read_ledger(state / LEDGER)
    for path in (export, state):
        status, out, err = run(capsys, "verify", str(path))
        assert (status, err) == (0, "")
        assert "north: 4 entries hold" in out
        assert chain.head in out
        assert "compare it with the one that the silo told you" in out
        assert "paid for, without an answer: entries 3" in out
    for key in (chain.public_key, fingerprint(chain.public_key)):
        status, out, _ = run(capsys, "verify", str(export), "--public-key", key)
        assert status == 0
        assert "compare it" not in out
    facts = json.loads(run(capsys, "verify", str(export), "--json")[1])
    assert (facts["holds"], facts["wrong"], facts["entries"], facts["head"]) == (True, [], 4, chain.head)


def test_verify_of_an_altered_export_is_status_1_and_names_the_entry(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    export = exported(capsys, state)
    lines = export.read_bytes().splitlines(keepends=True)
    export.write_bytes(b"".join([*lines[:2], lines[2].replace(digest("answer").encode(), digest("other").encode()), *lines[3:]]))
    status, out, err = run(capsys, "verify", str(export))
    assert (status, out) == (1, "")
    assert err == f"silorec: {export}: entry 2: the hash is not that of the entry: it was altered or damaged\n"
    status, out, _ = run(capsys, "verify", str(export), "--json")
    facts = json.loads(out)
    assert (status, facts["holds"]) == (1, False)
    assert facts["wrong"] == ["entry 2: the hash is not that of the entry: it was altered or damaged"]


def test_verify_of_another_key_is_status_1(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    status, _, err = run(capsys, "verify", str(exported(capsys, state)), "--public-key", "a" * 64)
    assert status == 1
    assert "entry 0: the ledger is that of key" in err


def test_verify_against_an_earlier_export_finds_a_ledger_that_went_back(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    shutil.copytree(state, state.with_name("backup"))
    early = exported(capsys, state, "early.jsonl")
    ledger = Ledger.open(state / LEDGER, load_key(state / KEY))
    ledger.reserve(asks(steps(2)), digest("round 2"))
    late = exported(capsys, state, "late.jsonl")
    assert run(capsys, "verify", str(late), "--earlier", str(early))[0] == 0
    shutil.rmtree(state)
    shutil.copytree(state.with_name("backup"), state)
    Ledger.open(state / LEDGER, load_key(state / KEY)).close("went back")
    back = exported(capsys, state, "back.jsonl")
    assert run(capsys, "verify", str(back), "--earlier", str(early))[0] == 0
    status, _, err = run(capsys, "verify", str(back), "--earlier", str(late))
    assert status == 1
    assert f"does not begin with the entries of {late}" in err
    late.write_bytes(late.read_bytes()[:-1])
    status, _, err = run(capsys, "verify", str(back), "--earlier", str(late))
    assert status == 1
    assert f"the earlier export {late} does not hold: after entry 4: " in err


def test_verify_tells_every_breach_of_the_policy(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    from tests.common.privacy.test_entries import Forger

    book = Forger(policy(min_noise_multiplier=3.0))
    book.reserve(steps(1))
    book.reserve(COUNT)
    book.reserve(steps(2), epsilon=1.0)
    (folder / "forged.jsonl").write_bytes(book.export())
    status, out, err = run(capsys, "verify", str(folder / "forged.jsonl"))
    assert (status, out) == (1, "")
    assert [line.split(": ")[2] for line in err.splitlines()] == ["entry 1", "entry 3", "entry 3"]
    status, _, err = run(capsys, "verify", str(folder / "forged.jsonl"), "--no-recompute")
    assert [line.split(": ")[2] for line in err.splitlines()] == ["entry 1", "entry 3"]


def test_verify_without_recomputing_says_so(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    status, out, _ = run(capsys, "verify", str(state), "--no-recompute")
    assert status == 0
    assert "epsilon was not computed again" in out
    assert json.loads(run(capsys, "verify", str(state), "--no-recompute", "--json")[1])["recomputed"] is False


def test_bad_input_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str], folder: Path, state: Path) -> None:
    nowhere = str(folder / "nowhere")
    assert "no such file" in refused(capsys, "verify", nowhere)
    assert "no such file" in refused(capsys, "verify", str(folder))  # a folder without a ledger
    assert "no such file" in refused(capsys, "verify", str(state), "--earlier", nowhere)
    assert "there is no ledger" in refused(capsys, "show", nowhere)
    assert "there is no key" in refused(capsys, "export", nowhere, "--out", str(folder / "x"))
    assert "there is no key" in refused(capsys, "close", str(state), "--reason", "x", "--key", nowhere)
    assert "reason = ''" in refused(capsys, "close", str(state), "--reason", "")
    (state / KEY).chmod(0o644)
    assert f"chmod 600 {state / KEY}" in refused(capsys, "export", str(state), "--out", str(folder / "x"))
    assert not (folder / "x").exists()


def test_an_amendment_is_put_in_force_with_its_reason(capsys: pytest.CaptureFixture[str], folder: Path, state: Path) -> None:
    more = written(folder / "more.toml", epsilon=12.0, coordinators=("any",))
    status, out, _ = run(capsys, "amend", str(state), "--policy", str(more), "--reason", "a second season")
    assert status == 0
    assert "a new policy is in force from entry 4 on" in out
    assert "epsilon = 12" in out
    chain = read_ledger(state / LEDGER)
    assert chain.policy.epsilon == 12.0
    assert chain.entries[-1].body["reason"] == "a second season"
    assert "a second season" in run(capsys, "show", str(state))[1]
    assert "the policy was changed in entries 4" in run(capsys, "verify", str(state))[1]
    other = written(folder / "other.toml", order=7.0, coordinators=("any",))
    assert "it was fixed at 4" in refused(capsys, "amend", str(state), "--policy", str(other), "--reason", "x")


def test_a_closed_ledger_says_so(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    status, out, _ = run(capsys, "close", str(state), "--reason", "the data were deleted")
    assert (status, out) == (0, "north: closed with entry 4\n")
    assert "ledger of north (closed)" in run(capsys, "show", str(state))[1]
    assert "the ledger is closed" in refused(capsys, "close", str(state), "--reason", "again")


def test_an_auditor_countersigns_and_the_silo_takes_it_in(capsys: pytest.CaptureFixture[str], folder: Path, state: Path) -> None:
    export = exported(capsys, state)
    signed = folder / "signed.json"
    status, out, err = run(capsys, "countersign", str(export), "--key", str(folder / "auditor.key"), "--out", str(signed))
    auditor = load_key(folder / "auditor.key")
    assert status == 0
    assert "north countersigned up to entry 3" in out
    assert f"made a key: {folder / 'auditor.key'}, fingerprint {fingerprint(auditor.public_key)}" in err
    Ledger.open(state / LEDGER, load_key(state / KEY)).reserve(asks(steps(2)), digest("meanwhile"))
    status, out, _ = run(capsys, "countersign", str(state), "--add", str(signed))
    assert status == 0
    assert f"entry 5 holds the countersignature of {auditor.public_key}" in out
    assert f"countersigned by {auditor.public_key}" in run(capsys, "verify", str(state))[1]
    printed = json.loads(run(capsys, "countersign", str(export), "--key", str(folder / "auditor.key"))[1])
    assert printed == json.loads(signed.read_text())
    assert set(printed["countersignature"]) == {"silo", "entries", "head", "by", "signature"}


def test_nothing_wrong_is_countersigned_or_taken_in(capsys: pytest.CaptureFixture[str], folder: Path, state: Path) -> None:
    from tests.common.privacy.test_entries import Forger

    key = str(folder / "auditor.key")
    export = exported(capsys, state)
    (folder / "cut.jsonl").write_bytes(b"".join(export.read_bytes().splitlines(keepends=True)[:-1]))
    status, out, err = run(capsys, "countersign", str(folder / "cut.jsonl"), "--key", key)
    assert (status, out) == (1, "")
    assert "not signed" in err
    book = Forger()
    book.reserve(COUNT, epsilon=0.0)
    (folder / "forged.jsonl").write_bytes(book.export())
    status, out, err = run(capsys, "countersign", str(folder / "forged.jsonl"), "--key", key)
    assert (status, out) == (1, "")
    assert "entry 1: the recorded epsilon is 0" in err
    assert not (folder / "auditor.key").exists()
    assert "say with which key" in refused(capsys, "countersign", str(export))

    full_ledger(folder / "other")
    other = folder / "other.jsonl"
    other.write_bytes(full_ledger(folder / "another").export())
    assert run(capsys, "countersign", str(other), "--key", key, "--out", str(folder / "foreign.json"))[0] == 0
    assert "no entry before it has" in refused(capsys, "countersign", str(state), "--add", str(folder / "foreign.json"))
    (folder / "junk.json").write_text('{"countersignature": {"by": 1, "signature": [], "head": null}}')
    assert "is not as it must be" in refused(capsys, "countersign", str(state), "--add", str(folder / "junk.json"))
    (folder / "junk.json").write_text("[]")
    assert "not a countersignature" in refused(capsys, "countersign", str(state), "--add", str(folder / "junk.json"))
    assert "cannot be read" in refused(capsys, "countersign", str(state), "--add", str(folder / "none.json"))
    assert len(read_ledger(state / LEDGER).entries) == 4
