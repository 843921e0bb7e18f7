"""Every fault that is planted is found, with the entry named; and evidence that is in order passes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.config import load, to_dict
from common.privacy.accountant import epsilon
from common.privacy.audit.check import Check
from common.privacy.audit.evidence import load_evidence
from common.privacy.audit.verify import Verified, verify
from common.privacy.entry import countersign
from common.privacy.events import Distributed, Event, PoissonGaussianSteps, if_others_collude
from common.protocol import COUNT, TRAIN
from tests.common.privacy.audit.made_up_evidence import DECLARED, ROUNDS, Answer, Book, Federation, configuration, sharing
from tests.common.privacy.ledgers import AUDITOR, digest, key_of

CHECKS = (
    "chain", "copies", "countersignatures", "policy", "totals", "configuration", "transcript", "declared users", "coordinator",
    "answers", "places", "open", "sums", "plan", "covered", "budget", "claims",
)  # fmt: skip


def audit(folder: Path) -> Verified:
    return verify(load_evidence(folder))


def broken(verified: Verified) -> dict[str, Check]:
    return {check.name: check for check in verified.broken}


def entries(check: Check, ledger: str) -> list[int | None]:
    return [named.entry for named in check.named if named.ledger == ledger]


def words(check: Check) -> str:
    return " | ".join(str(named) for named in check.named)


def test_evidence_in_order_passes_every_check(tmp_path):
    federation = Federation()
    for book in federation.books:
        book.countersign(AUDITOR)
    verified = audit(federation.write(tmp_path, result=federation.result()))
    assert [check.name for check in verified.checks] == list(CHECKS)
    plain = {"sums": "not applicable"}  # two silos cannot hide in each other's sum
    assert {check.name: check.outcome for check in verified.checks} == dict.fromkeys(CHECKS, "holds") | plain
    assert verified.holds
    assert [ledger["place"] for ledger in verified.ledgers] == [0, 1]
    assert json.loads(json.dumps(verified.as_dict(), allow_nan=False))["holds"]


def test_what_is_not_there_is_not_applicable_and_says_why(tmp_path):
    verified = audit(Federation().write(tmp_path, only=("exports",)))
    assert verified.holds
    assert {check.name for check in verified.skipped} == {
        "countersignatures", "configuration", "transcript", "declared users", "coordinator", "answers", "places", "plan",
        "covered", "budget", "claims", "sums",
    }  # fmt: skip
    assert all(check.evidence for check in verified.skipped)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_misreported_noise_is_found(tmp_path, factor):
    def charged(silo: int, action: str, event: Event) -> Event:
        assert not hasattr(event, "what")
        wrong = silo == 1 and event.round == 2
        return replace(event, noise_multiplier=factor * event.noise_multiplier) if wrong else event  # type: ignore[union-attr]

    federation = Federation(charged=charged, policy_epsilon=1e4)
    found = broken(audit(federation.write(tmp_path)))
    seq = federation.seq(1, 2)
    assert entries(found["plan"], "south.jsonl") == [seq]
    assert "noise_multiplier" in words(found["plan"])
    if factor > 1:  # less was charged than released
        assert set(found) == {"plan", "covered"}
        assert "silo 1 released" in words(found["covered"])
    else:  # more was charged than released, and more than agreed
        assert set(found) == {"plan", "budget"}


def test_a_charge_for_fewer_steps_than_the_plan_is_found(tmp_path):
    def charged(silo: int, action: str, event: Event) -> Event:
        return replace(event, steps=event.steps - 1) if isinstance(event, PoissonGaussianSteps) and event.round == 3 else event

    federation = Federation(charged=charged)
    found = broken(audit(federation.write(tmp_path)))
    assert set(found) == {"plan", "covered"}
    for silo, ledger in enumerate(("north.jsonl", "south.jsonl")):
        assert entries(found["plan"], ledger) == [federation.seq(silo, 3)]
    assert "steps = 3 is charged, the plan demands 4" in words(found["plan"])


@pytest.mark.parametrize("change", [{"sampling_probability": 0.2}, {"max_grad_norm": 0.5}], ids=["sampling", "clip"])
def test_a_charge_for_another_mechanism_is_found(tmp_path, change):
    def charged(silo: int, action: str, event: Event) -> Event:
        return replace(event, **change) if action == TRAIN and event.round == 1 and silo == 0 else event

    federation = Federation(charged=charged)
    found = broken(audit(federation.write(tmp_path)))
    assert entries(found["plan"], "north.jsonl") == [federation.seq(0, 1)]
    assert next(iter(change)) in words(found["plan"])


def test_epsilon_that_starts_again_in_each_round_is_found(tmp_path):
    def recorded(silo: int, event: Event) -> float | None:
        return epsilon([event], 1 / 800) if silo == 0 else None

    federation = Federation(recorded=recorded)
    found = broken(audit(federation.write(tmp_path)))
    assert set(found) == {"totals"}
    assert set(range(1, ROUNDS + 1)) <= {
        next(what.round for entry, what in federation.books[0].chain.reservations if entry.seq == seq)
        for seq in entries(found["totals"], "north.jsonl")
    }
    assert entries(found["totals"], "south.jsonl") == []


def test_a_release_without_commitment_is_found(tmp_path):
    federation = Federation(paid=lambda silo, action, number: (True, not (silo == 1 and number == 2)))
    found = broken(audit(federation.write(tmp_path)))
    assert set(found) == {"answers"}
    assert entries(found["answers"], "south.jsonl") == [federation.seq(1, 2)]
    assert "left before its ledger knew" in words(found["answers"])


def test_a_release_that_was_never_charged_is_found(tmp_path):
    federation = Federation(paid=lambda silo, action, number: (not (silo == 1 and number == 2),) * 2)
    verified = audit(federation.write(tmp_path))
    found = broken(verified)
    assert set(found) == {"answers", "covered"}
    assert [named.answer for named in found["answers"].named] == [6], "counts of both, round 1 of both, round 2 of silo 0 and 1"
    assert "silo 1 released" in words(found["covered"])


def test_a_silo_without_any_ledger_is_found(tmp_path):
    federation = Federation()
    federation.write(tmp_path)
    (tmp_path / "south.jsonl").unlink()
    found = broken(audit(tmp_path))
    assert set(found) == {"answers", "covered"}
    assert len(found["answers"].named) == 1 + ROUNDS
    assert "no ledger of it is here" in words(found["covered"])


def test_one_commitment_for_the_answers_of_two_rounds_is_found(tmp_path):
    federation = Federation(paid=lambda silo, action, number: (number != 3 or silo == 1,) * 2)
    again = next(a for a in federation.answers if (a.silo, a.round) == (0, 2))
    federation.answers = [replace(a, answer=again.answer) if (a.silo, a.round) == (0, 3) else a for a in federation.answers]
    found = broken(audit(federation.write(tmp_path)))
    commitment = federation.books[0].chain.commitments[federation.seq(0, 2)].seq
    assert set(found) == {"answers", "covered"}
    assert entries(found["answers"], "north.jsonl") == [commitment]
    assert "one commitment used for two answers" in words(found["answers"])


def test_one_commitment_for_two_answers_to_one_question_is_found(tmp_path):
    federation = Federation()
    first = next(a for a in federation.answers if (a.silo, a.round) == (0, 2))
    federation.answers.append(replace(first, answer=digest("another draw of the noise")))
    found = broken(audit(federation.write(tmp_path)))
    commitment = federation.books[0].chain.commitments[federation.seq(0, 2)].seq
    assert set(found) == {"answers", "covered"}
    assert entries(found["answers"], "north.jsonl") == [commitment]
    assert "two answers for one charge" in words(found["answers"])


def test_one_commitment_for_two_silos_is_found(tmp_path):
    federation = Federation(paid=lambda silo, action, number: (silo == 0,) * 2)
    of_north = {(a.action, a.round): a.answer for a in federation.answers if a.silo == 0}
    federation.answers = [replace(a, answer=of_north[a.action, a.round]) for a in federation.answers]
    found = broken(audit(federation.write(tmp_path)))
    assert {"answers", "places"} <= set(found)
    paid = [federation.books[0].chain.commitments[federation.seq(0, number)].seq for number in range(ROUNDS + 1)]
    assert entries(found["answers"], "north.jsonl") == paid
    assert "one charge for two" in words(found["answers"])
    assert "holds answers of silo 0 and of silo 1" in words(found["places"])


def test_a_commitment_in_two_ledgers_is_found(tmp_path):
    federation = Federation()
    answer = next(a for a in federation.answers if (a.silo, a.round) == (0, 2))
    event = federation.plan.train_event(2)
    seq = federation.books[1].reserve(federation.run, TRAIN, event, answer.question, declared_users=DECLARED[1])
    commitment = federation.books[1].commit(seq, answer.answer)
    found = broken(audit(federation.write(tmp_path)))
    assert f"entry {commitment} of south.jsonl" in words(found["answers"])
    assert "answers of silo 0 are in 2 ledgers" in words(found["places"])


def test_the_same_answer_given_again_is_no_second_release(tmp_path):
    federation = Federation()
    federation.answers.append(federation.answers[-1])
    verified = audit(federation.write(tmp_path, resumed_with=federation.facts()))
    assert verified.holds
    assert "1 of them given again unchanged" in verified.check("answers").evidence


def test_an_older_copy_of_a_ledger_is_found_because_the_transcript_goes_further(tmp_path):
    federation = Federation()
    federation.write(tmp_path)
    last = federation.seq(0, ROUNDS) - 1
    (tmp_path / "north.jsonl").write_bytes(federation.books[0].export(last + 1))
    found = broken(audit(tmp_path))
    assert set(found) == {"answers", "covered"}
    assert entries(found["answers"], "north.jsonl") == [last]
    assert "older copy" in words(found["answers"])


def test_an_older_copy_beside_the_ledger_is_its_beginning(tmp_path):
    federation = Federation()
    federation.write(tmp_path)
    (tmp_path / "a-north-of-last-week.jsonl").write_bytes(federation.books[0].export(4))
    verified = audit(tmp_path)
    assert verified.holds
    assert "1 earlier copy" in verified.check("copies").evidence
    assert len(verified.ledgers) == 2


def seen(head: str, silo: str = "north", **changes: str) -> str:
    signed = {"silo": silo, "entries": 1, "head": head, "by": AUDITOR.public_key, "signature": countersign(head, AUDITOR)}
    return json.dumps({"countersignature": signed | changes})


def test_an_older_copy_is_found_by_a_countersignature_that_an_auditor_kept(tmp_path):
    federation = Federation()
    federation.write(tmp_path, only=("exports",))
    kept = tmp_path / "north.countersignature.json"
    kept.write_text(seen(federation.books[0].entries[-1].hash))
    verified = audit(tmp_path)
    assert verified.holds
    assert f"up to entry {len(federation.books[0].entries) - 1}" in verified.check("countersignatures").evidence
    (tmp_path / "north.jsonl").write_bytes(federation.books[0].export(5))
    found = broken(audit(tmp_path))
    assert set(found) == {"countersignatures"}
    assert entries(found["countersignatures"], "north.jsonl") == [4]


@pytest.mark.parametrize("change", [{"by": key_of("somebody").public_key}, {"signature": "00" * 64}, {"signature": "?"}])
def test_a_countersignature_of_somebody_else_is_found(tmp_path, change):
    federation = Federation()
    federation.write(tmp_path)
    (tmp_path / "x.countersignature.json").write_text(seen(federation.books[0].entries[3].hash, **change))
    assert set(broken(audit(tmp_path))) == {"countersignatures"}
    (tmp_path / "x.countersignature.json").write_text("{}")
    assert "not a countersignature" in words(broken(audit(tmp_path))["countersignatures"])


def test_a_history_that_was_written_twice_is_found(tmp_path):
    federation = Federation()
    other = Federation(charged=lambda s, a, e: replace(e, noise_multiplier=9.0) if e.round == 2 else e)  # type: ignore[union-attr]
    federation.write(tmp_path)
    (tmp_path / "north-of-last-week.jsonl").write_bytes(other.books[0].export(other.seq(0, 2) + 1))
    found = broken(audit(tmp_path))
    assert set(found) == {"copies"}
    assert entries(found["copies"], "north-of-last-week.jsonl") == [other.seq(0, 2)]


def test_a_second_ledger_of_one_silo_is_found(tmp_path):
    federation = Federation()
    federation.write(tmp_path)
    fresh = Book("north", federation.books[0].policy, key_of("a fresh start"))
    (tmp_path / "fresh.jsonl").write_bytes(fresh.export())
    found = broken(audit(tmp_path))
    assert set(found) == {"copies"}
    assert "another ledger with another key" in words(found["copies"])


def test_a_policy_that_was_passed_is_found(tmp_path):
    plan = Federation().plan
    limit = (plan.epsilon_after(2) + plan.epsilon_after(3)) / 2  # room for the count and two rounds
    federation = Federation(policy_epsilon=limit)
    found = broken(audit(federation.write(tmp_path)))
    assert set(found) == {"policy"}
    assert entries(found["policy"], "north.jsonl") == [federation.seq(0, 3)]
    assert "epsilon would be" in words(found["policy"])


def test_a_parameter_that_the_policy_forbids_is_found_and_an_amendment_allows_it(tmp_path):
    federation = Federation()
    for book, steps in zip(federation.books, (3, 4), strict=True):
        book.amend(book.policy.model_copy(update={"max_steps_per_round": steps, "epsilon": 100.0}))
        book.reserve(digest("another run"), TRAIN, federation.plan.train_event(1), digest("q"))
    found = broken(audit(federation.write(tmp_path)))
    assert set(found) == {"policy"}
    assert entries(found["policy"], "north.jsonl") == [len(federation.books[0].entries) - 1]
    assert entries(found["policy"], "south.jsonl") == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("privacy.epsilon", 7.0), ("federation.rounds", 4), ("training.local_steps", 3), ("model.window", 31), ("name", "renamed")],
)
def test_a_changed_configuration_is_found(tmp_path, key, value):
    federation = Federation()
    changed = load(to_dict(federation.config), {key: value})
    found = broken(audit(federation.write(tmp_path, config=changed)))
    assert set(found) == {"configuration"}
    assert federation.run in words(found["configuration"])


def test_a_configuration_of_another_run_is_found_without_a_transcript(tmp_path):
    federation = Federation()
    changed = load(to_dict(federation.config), {"run.seed": 1})
    assert set(broken(audit(federation.write(tmp_path, config=changed, only=("exports", "config"))))) == {"configuration"}


@pytest.mark.parametrize(
    ("facts", "check"),
    [
        ({"declared_users": [100, 90]}, "declared users"),
        ({"coordinator": AUDITOR.public_key}, "coordinator"),
        ({"mode": "none"}, "transcript"),
    ],
)
def test_a_transcript_that_says_otherwise_is_found(tmp_path, facts, check):
    federation = Federation()
    assert set(broken(audit(federation.write(tmp_path, facts=federation.facts(**facts))))) == {check}


def test_a_transcript_that_was_taken_up_by_another_model_is_found(tmp_path):
    federation = Federation()
    folder = federation.write(tmp_path, resumed_with=federation.facts(manifest=digest("another")))
    assert "manifest" in words(broken(audit(folder))["transcript"])


@pytest.mark.parametrize(
    ("said", "check"),
    [({"declared_users": 99}, "declared users"), ({"coordinator": ""}, "coordinator"), ({"mode": "distributed"}, "plan")],
)
def test_reservations_that_say_otherwise_are_found(tmp_path, said, check):
    federation = Federation(said=said)
    found = broken(audit(federation.write(tmp_path)))
    assert check in found
    assert federation.seq(0, 2) in entries(found[check], "north.jsonl")


def test_an_altered_entry_is_found(tmp_path):
    folder = Federation().write(tmp_path)
    lines = (folder / "north.jsonl").read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"round":1', b'"round":2')
    (folder / "north.jsonl").write_bytes(b"".join(lines))
    found = broken(audit(folder))
    assert entries(found["chain"], "north.jsonl") == [3]


def test_an_altered_transcript_is_found(tmp_path):
    folder = Federation().write(tmp_path)
    text = (folder / "transcript.jsonl").read_text()
    (folder / "transcript.jsonl").write_text(text.replace('"silo":1', '"silo":0', 1))
    assert "transcript.jsonl:3" in words(broken(audit(folder))["transcript"]) or "3:" in words(
        broken(audit(folder))["transcript"]
    )


def test_an_unreadable_configuration_or_result_is_found(tmp_path):
    folder = Federation().write(tmp_path, result={})
    (folder / "config.toml").write_text("[privacy]\nepsilom = 8\n")
    (folder / "result.json").write_text("{")
    found = broken(audit(folder))
    assert set(found) == {"configuration", "claims"}
    assert "epsilom" in words(found["configuration"])


def test_open_reservations_are_listed_and_count_as_spent(tmp_path):
    federation = Federation(policy_epsilon=20.0)
    book = federation.books[1]
    seq = book.reserve(federation.run, TRAIN, federation.plan.train_event(3), digest("q"), declared_users=DECLARED[1])
    verified = audit(federation.write(tmp_path))
    assert entries(verified.check("open"), "south.jsonl") == [seq]
    assert set(broken(verified)) == {"budget"}, "a fourth round was paid for, beyond the configuration's epsilon"
    assert entries(verified.check("budget"), "south.jsonl") == [seq]


def test_answers_that_the_coordinator_left_out_are_listed(tmp_path):
    federation = Federation()
    federation.answers = federation.answers[:-1]
    verified = audit(federation.write(tmp_path))
    assert verified.holds
    commitment = federation.books[1].chain.commitments[federation.seq(1, ROUNDS)].seq
    assert entries(verified.check("open"), "south.jsonl") == [commitment]
    assert "not in the transcript" in words(verified.check("open"))


def test_a_release_that_the_plan_does_not_have_is_found(tmp_path):
    federation = Federation(policy_epsilon=20.0)
    event = PoissonGaussianSteps(5.0, 0.1, 1, 1.0, ROUNDS + 1)
    federation.answer(0, TRAIN, event)
    found = broken(audit(federation.write(tmp_path)))
    assert entries(found["plan"], "north.jsonl") == [federation.seq(0, ROUNDS + 1)]
    assert "the plan has no train of round 4" in words(found["plan"])


def test_releases_of_other_runs_are_not_held_against_this_one(tmp_path):
    federation = Federation(policy_epsilon=20.0)
    seq = federation.books[0].reserve(digest("another run"), COUNT, federation.plan.count_event(), digest("q"))
    federation.books[0].commit(seq, digest("a"))
    verified = audit(federation.write(tmp_path))
    assert verified.holds
    assert [ledger["of_this_run"] for ledger in verified.ledgers] == [1 + ROUNDS, 1 + ROUNDS]
    assert [ledger["reservations"] for ledger in verified.ledgers] == [2 + ROUNDS, 1 + ROUNDS]


@pytest.mark.parametrize("key", ["epsilon", "epsilon_pld", "delta", "mode"])
def test_a_result_that_claims_otherwise_is_found(tmp_path, key):
    federation = Federation()
    told = federation.result()
    told[key] = "none" if key == "mode" else told[key] * 0.99
    found = broken(audit(federation.write(tmp_path, result=told)))
    assert set(found) == {"claims"}
    assert f"result.json: {key} = " in words(found["claims"])


def test_a_result_that_claims_otherwise_of_one_silo_is_found(tmp_path):
    federation = Federation()
    told = federation.result()
    told["silos"][1]["epsilon"] *= 0.5
    found = broken(audit(federation.write(tmp_path, result=told)))
    assert [named.ledger for named in found["claims"].named] == ["south.jsonl"]


def test_a_result_cannot_be_confirmed_without_every_ledger(tmp_path):
    federation = Federation()
    folder = federation.write(tmp_path, result=federation.result(), only=("exports", "config"))
    (folder / "south.jsonl").unlink()
    assert "the ledger of silo 1 is not here" in words(broken(audit(folder))["claims"])


def test_noise_that_was_calibrated_by_pld_is_held_against_pld(tmp_path):
    federation = Federation(config=configuration(privacy__accountant="pld"))
    verified = audit(federation.write(tmp_path))
    assert verified.holds, words(verified.broken[0]) if verified.broken else ""
    assert "by PLD" in verified.check("budget").evidence


def test_a_transcript_without_ledgers_does_not_hold(tmp_path):
    found = broken(audit(Federation().write(tmp_path, only=("transcript", "config"))))
    assert set(found) == {"answers", "covered"}


def test_names_of_files_do_not_matter(tmp_path):
    """The transcript tells whose ledger is whose."""
    federation = Federation()
    federation.write(tmp_path)
    (tmp_path / "north.jsonl").rename(tmp_path / "z.jsonl")
    verified = audit(tmp_path)
    assert verified.holds
    assert {ledger["name"]: ledger["place"] for ledger in verified.ledgers} == {"z.jsonl": 0, "south.jsonl": 1}


def test_an_answer_of_a_silo_that_is_not_in_the_roster_is_found(tmp_path):
    federation = Federation()
    federation.answers.append(Answer(TRAIN, 1, 7, digest("q"), digest("a")))
    found = broken(audit(federation.write(tmp_path)))
    assert set(found) == {"answers", "covered"}
    assert "silo 7" in words(found["answers"])


def test_verifying_needs_neither_models_nor_flower_nor_templates(tmp_path):
    folder = Federation().write(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from common.privacy.audit.evidence import load_evidence; from common.privacy.audit.verify import verify\n"
        f"assert verify(load_evidence(Path({str(folder)!r}))).holds\n"
        "heavy = {'torch', 'flwr', 'transformers', 'opacus', 'jinja2', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[4])
    assert done.returncode == 0, done.stderr


def test_every_check_says_what_it_rests_on(tmp_path):
    told: dict[str, Any] = {check.name: check for check in audit(Federation().write(tmp_path)).checks}
    for check in told.values():
        assert check.statement.endswith(".")
        assert len(check.evidence) > 3


# Mode distributed


def test_a_run_of_mode_distributed_passes_every_check(tmp_path):
    federation = Federation(config=sharing())
    for book in federation.books:
        book.countersign(AUDITOR)
    verified = audit(federation.write(tmp_path, result=federation.result()))
    assert {check.name: check.outcome for check in verified.checks} == dict.fromkeys(CHECKS, "holds")
    assert "noise of a sum with 2 honest silos in it" in verified.check("plan").evidence
    assert "1 step in each of 3 rounds" in verified.check("plan").evidence
    assert "epsilon_if_others_collude" in verified.check("claims").evidence


@pytest.mark.parametrize("claimed", [3, 4, 1])
def test_a_ledger_that_counts_on_other_honest_silos_than_the_configuration_gives_is_found(tmp_path, claimed):
    def charged(silo: int, action: str, event: Event) -> Event:
        assert isinstance(event, Distributed)
        return replace(event, honest=claimed) if silo == 1 and event.round in (0, 2) else event  # type: ignore[type-var]

    federation = Federation(config=sharing(), charged=charged)
    found = broken(audit(federation.write(tmp_path)))
    assert set(found) == {"plan"}, "the coordinator's figure does not depend on it"
    assert entries(found["plan"], "south.jsonl") == [federation.seq(1, 0), federation.seq(1, 2)]
    assert f"honest = {claimed} is charged, the plan demands 2" in words(found["plan"])


def test_a_configuration_that_counts_on_more_honest_silos_is_another_run(tmp_path):
    federation = Federation(config=sharing())
    changed = load(to_dict(federation.config), {"aggregation.corrupt": 0.0})
    assert set(broken(audit(federation.write(tmp_path, config=changed)))) == {"configuration"}


def test_noise_of_one_silos_own_that_is_charged_as_shared_is_found(tmp_path):
    """Mode silo's releases in a run of mode distributed, and the other way round."""

    def charged(silo: int, action: str, event: Event) -> Event:
        return PoissonGaussianSteps(9.0, 0.25, 1, 1.0, event.round) if action == TRAIN and event.round == 1 else event

    federation = Federation(config=sharing(), charged=charged, policy_epsilon=100.0)
    found = broken(audit(federation.write(tmp_path / "shared")))
    assert "it charges poisson-gaussian-steps, the plan demands distributed-step" in words(found["plan"])
    assert "does not go with a release of kind" in words(found["policy"])
    federation = Federation(charged=lambda s, a, e: Federation(config=sharing()).plan.train_event(1) if e.round == 1 else e)
    found = broken(audit(federation.write(tmp_path / "alone")))
    assert "it charges distributed-step, the plan demands poisson-gaussian-steps" in words(found["plan"])


def test_a_policy_that_allows_fewer_honest_silos_is_found_to_be_passed(tmp_path):
    federation = Federation(config=sharing())
    book = federation.books[0]
    book.amend(book.policy.model_copy(update={"max_honest_silos": 1, "epsilon": 100.0}))
    seq = book.reserve(digest("another run"), TRAIN, federation.plan.train_event(1), digest("q"), mode="distributed")
    found = broken(audit(federation.write(tmp_path)))
    assert set(found) == {"policy"}
    assert entries(found["policy"], "north.jsonl") == [seq]
    assert "max_honest_silos" in words(found["policy"])


def test_misreported_noise_of_a_sum_is_found(tmp_path):
    def charged(silo: int, action: str, event: Event) -> Event:
        return replace(event, noise_multiplier=2 * event.noise_multiplier) if silo == 1 and event.round == 2 else event  # type: ignore

    federation = Federation(config=sharing(), charged=charged)
    found = broken(audit(federation.write(tmp_path)))
    assert set(found) == {"plan", "covered"}
    assert entries(found["plan"], "south.jsonl") == [federation.seq(1, 2)]


@pytest.mark.parametrize(
    "key", ["epsilon", "epsilon_pld", "epsilon_if_others_collude", "epsilon_pld_if_others_collude", "honest_silos", "mode"]
)
def test_a_result_of_mode_distributed_that_claims_otherwise_is_found(tmp_path, key):
    federation = Federation(config=sharing())
    told = federation.result()
    told[key] = "silo" if key == "mode" else 3 if key == "honest_silos" else told[key] * 0.99
    found = broken(audit(federation.write(tmp_path, result=told)))
    assert set(found) == {"claims"}
    assert f"result.json: {key} = " in words(found["claims"])


def test_a_result_that_claims_too_little_of_one_silo_if_others_collude_is_found(tmp_path):
    federation = Federation(config=sharing())
    told = federation.result()
    told["silos"][1]["epsilon_if_others_collude"] = told["silos"][1]["epsilon"]
    found = broken(audit(federation.write(tmp_path, result=told)))
    assert [named.ledger for named in found["claims"].named] == ["south.jsonl"]


def test_what_is_charged_is_what_the_coordinator_sees_and_more_is_left_if_others_collude(tmp_path):
    federation = Federation(config=sharing())
    federation.write(tmp_path, result=federation.result())
    charged = [what.released for _, what in federation.books[0].chain.reservations]
    assert (
        epsilon(charged, federation.plan.delta) <= 6.0 < epsilon([if_others_collude(e) for e in charged], federation.plan.delta)
    )
    assert "agreed 6 at delta" in audit(tmp_path).check("budget").evidence


def test_an_epsilon_of_sums_that_starts_again_in_each_round_is_found(tmp_path):
    federation = Federation(config=sharing(), recorded=lambda silo, event: epsilon([event], 1 / 800) if silo == 2 else None)
    found = broken(audit(federation.write(tmp_path)))
    assert set(found) == {"totals"}
    assert {named.ledger for named in found["totals"].named} == {"east.jsonl"}
