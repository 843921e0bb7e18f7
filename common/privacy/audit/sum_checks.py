"""Checks of secure sums: was every masked answer meant for a sum, over enough silos, and did the silos sign for it?

The coordinator's transcript says of each attempt who took part. What it cannot make up is the survivors' signatures: they are
checked with the keys of the silos' own ledgers, which are the keys of the roster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import ConfigError, SecAggError
from common.privacy.audit.check import Check, Named, count, judged, not_applicable
from common.privacy.audit.matching import NO_TRANSCRIPT, Matching
from common.privacy.signing import verify
from common.protocol import config_hash
from common.secagg.context import RoundContext
from common.secagg.messages import round_id, survivors_statement
from common.secagg.rules import Rules


def check_sums(run: Matching) -> Check:
    """Whether a run whose configuration says secure aggregation had it."""
    name = "sums"
    statement = (
        "Every answer of the run went into a secure sum over enough silos, and a quorum of them signed who was in it; so the "
        "coordinator saw no answer alone."
    )
    evidence = run.evidence
    if evidence.transcript is None:
        return not_applicable(name, statement, NO_TRANSCRIPT)
    if evidence.config is None or config_hash(evidence.config) != run.run:
        return not_applicable(name, statement, "there is no configuration of this run, so what it demands is not known")
    if not evidence.config.is_secure:
        return not_applicable(name, statement, "aggregation is plain: the coordinator saw each silo's protected answers")
    try:
        rules = Rules.of(evidence.config)
    except ConfigError as error:
        return judged(name, statement, "the configuration's rules are impossible", [Named(str(error))])
    faults: list[Named] = []
    checked = signed = 0
    made = [entry for entry in evidence.transcript.sums if entry.get("outcome") == "sum"]
    for entry in evidence.transcript.sums:
        problem, good = _problem(run, rules, entry)
        if problem:
            faults.append(Named(f"{_place(entry)}: {problem}"))
        checked, signed = checked + 1, signed + good
    begun = {(entry.get("action"), entry.get("round")) for entry in evidence.transcript.sums}
    for answer, number in run.answers.items():
        if (answer.action, answer.round) not in begun:
            faults.append(Named(f"silo {answer.silo}, {answer.action} of round {answer.round}: in no secure sum", answer=number))
    told = f"{count(checked, 'attempt')}, {count(len(made), 'sum')}, {count(signed, 'signature')} of silos checked"
    return judged(name, statement, told, faults)


def _problem(run: Matching, rules: Rules, entry: Mapping[str, Any]) -> tuple[str, int]:
    """What is wrong with one attempt ("" if nothing), and how many signatures were checked with a silo's own key."""
    try:
        name = round_id(bytes.fromhex(entry["nonce"]), entry["question"])
        context, graph = RoundContext(str(run.run), name), bytes.fromhex(entry["graph"])
        survivors = tuple(int(silo) for silo in entry["survivors"])
        signatures = {int(silo): bytes.fromhex(signature) for silo, signature in entry["signatures"].items()}
        if entry["outcome"] != "sum" and not signatures:
            return "", 0  # nothing was opened
        statement = survivors_statement(context, graph, survivors)
        if len(survivors) < rules.least:
            return f"{count(len(survivors), 'survivor')}, and a sum is over {rules.least} or more", 0
        quorum = rules.plan(len(entry["advertised"])).quorum
    except (KeyError, TypeError, ValueError, SecAggError, ConfigError) as error:
        return f"its entry is not in order ({type(error).__name__})", 0
    if len(signatures) < quorum:
        return f"{count(len(signatures), 'signature')} of survivors, and the quorum is {quorum}", 0
    if strangers := sorted(signatures.keys() - set(survivors)):
        return f"silo {strangers[0]} signed and is no survivor", 0
    known = 0
    for silo, signature in signatures.items():
        ledger = run.ledger_of(silo)
        if ledger is None:
            continue
        if not verify(run.evidence.current[ledger].public_key, signature, statement):
            return f"the signature of silo {silo} is not that of the key of {ledger}", known
        known += 1
    return "", known


def _place(entry: Mapping[str, Any]) -> str:
    return f"sum of {entry.get('action')} in round {entry.get('round')}"
