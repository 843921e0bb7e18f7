"""What a coordinator's transcript says of secure sums is held against what the silos signed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.privacy.audit.check import Check
from common.privacy.audit.evidence import load_evidence
from common.privacy.audit.verify import verify
from tests.common.privacy.audit.made_up_evidence import Federation, sharing, write_transcript
from tests.common.privacy.ledgers import key_of

Sums = list[dict[str, Any]]


def checked(folder: Path, change: Callable[[Sums], object]) -> Check:
    """The check of a run whose coordinator wrote something else of its sums."""
    federation = Federation(sharing(), said={"mode": "distributed"})
    sums = federation.sums()
    change(sums)
    federation.write(folder, only=("exports", "config"))
    write_transcript(folder / "transcript.jsonl", federation.facts(), federation.answers, sums=sums)
    return verify(load_evidence(folder)).check("sums")


def test_signed_sums_hold(tmp_path: Path) -> None:
    check = checked(tmp_path, lambda sums: None)
    assert check.outcome == "holds"
    assert check.evidence == "4 attempts, 4 sums, 16 signatures of silos checked"


def test_an_attempt_that_ended_without_a_sum_is_no_fault(tmp_path: Path) -> None:
    failed = {"survivors": [], "signatures": {}, "outcome": "too few silos"}
    assert checked(tmp_path, lambda sums: sums.insert(1, {**sums[1], **failed})).outcome == "holds"


def test_plain_aggregation_has_no_sums_to_check(tmp_path: Path) -> None:
    federation = Federation()
    assert verify(load_evidence(federation.write(tmp_path))).check("sums").outcome == "not applicable"


def _resigned(sums: Sums) -> None:
    """A coordinator that signs for silo 2 with a key of its own."""
    sums[1]["signatures"]["2"] = key_of("nobody").sign(b"these are the survivors").hex()


def _fewer(sums: Sums) -> None:
    """The same signatures, but it claims that silo 3 was not in the sum."""
    sums[2]["survivors"] = [0, 1, 2]
    del sums[2]["signatures"]["3"]


def _too_few(sums: Sums) -> None:
    sums[0]["survivors"] = [0, 1]
    sums[0]["signatures"] = {silo: sums[0]["signatures"][silo] for silo in ("0", "1")}


def _no_quorum(sums: Sums) -> None:
    sums[3]["signatures"] = {"0": sums[3]["signatures"]["0"]}


def _another_round(sums: Sums) -> None:
    sums[2]["signatures"] = sums[1]["signatures"]


def _another_question(sums: Sums) -> None:
    """One silo was asked something else, and the transcript shows the others' question."""
    sums[1]["question"] = sums[2]["question"]


def _stranger(sums: Sums) -> None:
    sums[1]["survivors"] = [0, 1, 2]


def _garbage(sums: Sums) -> None:
    sums[1]["signatures"] = {"0": "no hex"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_resigned, "the signature of silo 2 is not that of the key of"),
        (_fewer, "is not that of the key of"),
        (_too_few, "2 survivors, and a sum is over 3 or more"),
        (_no_quorum, "1 signature of survivors, and the quorum is 3"),
        (_another_round, "is not that of the key of"),
        (_another_question, "is not that of the key of"),
        (_stranger, "silo 3 signed and is no survivor"),
        (_garbage, "its entry is not in order"),
        (lambda sums: sums[1].pop("nonce"), "its entry is not in order"),
        (lambda sums: sums.pop(2), "train of round 2: in no secure sum"),
        (lambda sums: sums.clear(), "in no secure sum"),
    ],
)
def test_a_sum_that_silos_did_not_sign_is_found(change: Callable[[Sums], object], said: str, tmp_path: Path) -> None:
    check = checked(tmp_path, change)
    assert check.outcome == "does not hold"
    assert said in " | ".join(str(named) for named in check.named)
