"""Paying for what leaves a silo, and giving the same answer to the same question: around every release, in this order.

1. An answer that was given to this question before is given again; it is paid for.
2. The ledger reserves what the release costs, or refuses it. Only now are the data touched.
3. The answer is computed, and kept on the silo's disk.
4. The ledger commits to it. Only now may it leave.

A crash between any two of these leaves a charge without a release, never a release without a charge.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import ErrorCode
from common.privacy.entries import Chain
from common.privacy.entry import Commitment
from common.privacy.ledger import Ledger
from common.privacy.policy import Proposal
from common.protocol import Fields, Refusal, answer_digest

SALT_BYTES = 32


@dataclass(frozen=True, eq=False)
class Released:
    """An answer, and the digest of it that the ledger holds; with a secret salt the digest tells nothing of the answer."""

    fields: Fields
    digest: str


@dataclass(frozen=True, eq=False)
class Kept:
    """An answer on the silo's disk, with the salt of its digest."""

    fields: Fields
    salt: bytes = b""

    def digest(self, action: str) -> str:
        """As ledger and transcript have it."""
        return answer_digest(action, self.fields, self.salt)


@dataclass(frozen=True)
class Past:
    """A release that the ledger knows: ``answer`` is the digest of what was committed, None where nothing was."""

    seq: int
    round: int
    question: str
    answer: str | None


def release(
    ledger: Ledger,
    folder: Path,
    proposal: Proposal,
    question: str,
    compute: Callable[[], Fields],
    *,
    salted: bool = False,
    again: bool = False,
) -> Released:
    """The answer that was given to the same question before; else reserve, compute, keep and commit it.

    Parameters
    ----------
    folder:
        The silo's.
    question:
        Its digest, by which it is known again.
    salted:
        The answer will leave under a mask: the ledger's digest must tell nothing of it.
    again:
        A round may be answered more than once, at a charge each time.

    Raises
    ------
    Refusal
        ``REPLAYED`` if the run has gone past this question.
    PolicyRefused, BudgetExhausted, LedgerError
        From the ledger; then nothing was computed.
    """
    action = proposal.action
    past = past_of(ledger.refresh(), proposal.run, action)
    path = kept_answer(folder, proposal.run, action)
    kept = read_kept(path, question)
    if kept is not None and _is_paid(ledger, past, question, kept.digest(action)):
        return Released(kept.fields, kept.digest(action))
    _check_new(past, proposal, question, again)
    reservation = ledger.reserve(proposal, question)
    kept = Kept(compute(), secrets.token_bytes(SALT_BYTES) if salted else b"")
    write_kept(path, question, kept)
    ledger.commit(reservation.seq, kept.digest(action))
    return Released(kept.fields, kept.digest(action))


def past_of(chain: Chain, run: str, action: str) -> list[Past]:
    """The releases of one run that answered ``action``, in order."""
    out = []
    for entry, what in chain.reservations:
        if what.run == run and what.action == action:
            commitment = chain.commitments.get(entry.seq)
            answer = commitment.what.answer if commitment and isinstance(commitment.what, Commitment) else None
            out.append(Past(entry.seq, what.round, what.question, answer))
    return out


def kept_answer(folder: Path, run: str, action: str) -> Path:
    """Where the latest answer to ``action`` in a run is kept."""
    return folder / "answers" / f"{run[:16]}-{action.removeprefix('query.')}.safetensors"


def read_kept(path: Path, question: str) -> Kept | None:
    """What lies at ``path`` if it answers the same question; a damaged file answers nothing, which costs budget, not privacy."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            said = json.loads((file.metadata() or {}).get("silorec", "{}"))
            if said.get("question") == question:
                fields = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                return Kept(fields, bytes.fromhex(said.get("salt", "")))
    except (SafetensorError, OSError, ValueError):
        return None
    return None


def write_kept(path: Path, question: str, kept: Kept) -> None:
    """Keep an answer of arrays where only the silo's owner can read it; on the disk when this returns."""
    from safetensors.numpy import save

    from common.durable import write_durably

    arrays: dict[str, Any] = {name: np.ascontiguousarray(value) for name, value in kept.fields.items()}
    said = {"question": question, "salt": kept.salt.hex()}
    write_durably(path, save(arrays, {"silorec": json.dumps(said)}), mode=0o600)


def _is_paid(ledger: Ledger, past: Sequence[Past], question: str, answer: str) -> bool:
    """Whether an answer that is kept may leave: it was committed, or paid for by a process that died before it could say so."""
    same = [release for release in past if release.question == question]
    if any(release.answer == answer for release in same):
        return True
    unanswered = [release.seq for release in same if release.answer is None]
    if unanswered:
        ledger.commit(unanswered[-1], answer)
    return bool(unanswered)


def _check_new(past: Sequence[Past], proposal: Proposal, question: str, again: bool) -> None:
    """A run goes forward: no round before one that was reserved, no second question for one that was answered."""
    number = proposal.round
    for release in past:
        answered = release.round == number and release.answer and release.question != question
        if release.round > number or (answered and not again):
            raise Refusal(
                ErrorCode.REPLAYED,
                f"{proposal.action} of round {number} is asked after another question of round {release.round}; a new run needs "
                "another name or seed",
            )
