"""A run that goes on as another one: a silo has joined between rounds, or the coordinator has another signing key.

The silos of a run, the users that they declare and the coordinator's key are part of its configuration, and so of its name, the
hash of it, under which ledgers, questions and signatures know it. When one of them changes, the run therefore ends and a
successor begins where it stopped: with its adapter, its optimiser and its history, in a folder of its own, under the hash of the
new configuration. The successor's transcript names its predecessors in its first line. There is no second count: nothing is asked
that was asked before.

What a silo is charged in both runs together is what the whole run would have cost, because noise follows from settings that may
not change, and the operator's limit holds over all runs anyway. That is also why a successor must have the delta that its
predecessor had: unset, it follows from the smallest silo, so where a smaller one joins it has to be set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.config import Config, to_dict
from common.durable import write_durably
from common.errors import FederationError
from common.privacy.plan import delta_for
from common.privacy.transcript import FILE as TRANSCRIPT
from common.privacy.transcript import Transcript, read_transcript
from common.protocol import config_hash
from server.checkpoint import FILE, START, Checkpoint, load, save
from server.federation import facts_of_run

#: Settings in which a successor may differ freely: they say who asks, and how long silos are waited for, and change no answer.
MAY_CHANGE = frozenset(
    {
        "name",
        "federation.coordinator",
        "federation.quorum",
        "federation.deadline",
        "federation.stage_deadline",
        "federation.enrolment_deadline",
        "federation.patience",
        "federation.backoff_rounds",
        "federation.round_attempts",
        "federation.round_pause",
        "federation.ask_budgets",
    }
)

#: Settings that are compared by what they mean.
_COMPARED = frozenset({"federation.declared_users", "partition.silos", "privacy.delta"})


def is_successor(before: Config, config: Config) -> bool:
    """Whether a run under ``config`` may go on from one under ``before``; :func:`why_not` says why it may not."""
    return not why_not(before, config)


def why_not(before: Config, config: Config) -> str:
    """Why a run under ``config`` may not go on from one under ``before``: a part of a sentence, empty if it may."""
    old, new = _flat(to_dict(before)), _flat(to_dict(config))
    other = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key not in MAY_CHANGE | _COMPARED)
    if other:
        return f"it has another {', '.join(other)}"
    were, are = before.federation.declared_users, config.federation.declared_users
    if not were or are[: len(were)] != were:
        return f"it declares {list(are)} users, which does not begin with the {list(were)} of the silos that were there"
    if before.privacy.mode != "none" and delta_for(before, were) != delta_for(config, are):
        return (
            f"its delta would be {delta_for(config, are):g} and no more {delta_for(before, were):g}, because a smaller silo has "
            f"joined: set privacy.delta = {delta_for(before, were)!r}"
        )
    return ""


def succeed(last: Path, folder: Path, before: Config, config: Config) -> Path | None:
    """Let the run in ``last``, under ``before``, go on in ``folder``, under ``config``; returns the new checkpoint, or None where
    there is none yet to go on from.

    What ``folder`` holds of this already is kept, so it may be called again after a crash.

    Raises
    ------
    FederationError
        If the configuration may not follow, or the checkpoint or the transcript in ``last`` is damaged or does not fit.
    """
    if why := why_not(before, config):
        raise FederationError(f"{folder}: the run cannot go on from {last}: {why}")
    this = config_hash(config)
    if (folder / FILE).exists():
        load(folder, config_hash=this)
        return folder / FILE
    state = load(last, config_hash=config_hash(before))
    if state is None or state.round < 0:
        return None
    entry = _continues(last, state)
    facts = facts_of_run(config, state.manifest_hash) | {"continues": entry}
    transcript = Transcript(folder / TRANSCRIPT, facts)
    if read_transcript(folder / TRANSCRIPT).run.get("continues") != entry:
        raise FederationError(f"{folder / TRANSCRIPT}: the transcript of a run that does not go on from {last}")
    if (last / START).exists():
        write_durably(folder / START, (last / START).read_bytes())
    return save(folder, replace(state, config_hash=this, seed=config.run.seed, transcript=transcript.mark))


def _continues(last: Path, state: Checkpoint) -> dict[str, Any]:
    """What a successor says of the run before it: its name, its last round, its transcript, and who was before it."""
    record = read_transcript(last / TRANSCRIPT)
    if record.run.get("config") != state.config_hash:
        raise FederationError(f"{last / TRANSCRIPT}: not the transcript of the run whose checkpoint lies beside it")
    mark = state.transcript
    if mark is not None and not record.holds(mark):
        raise FederationError(f"{last / TRANSCRIPT}: was cut off or exchanged since the checkpoint beside it was written")
    return {
        "config": state.config_hash,
        "round": state.round,
        "transcript": record.mark.hash,
        "length": record.mark.length,
        "runs": [*record.predecessors, state.config_hash],
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out
