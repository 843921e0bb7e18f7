"""How a ledger looks to the person who runs ``silorec ledger``, and to a program that reads its JSON."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from common.privacy.entries import Chain, Entry
    from common.privacy.spent import Collusion, Spent


def identity(chain: Chain) -> dict[str, Any]:
    """Whose ledger it is, how far it goes, and what an auditor looks for first."""
    from common.privacy.entry import Amendment, Countersignature
    from common.privacy.signing import fingerprint

    return {
        "silo": chain.silo,
        "public_key": chain.public_key,
        "fingerprint": fingerprint(chain.public_key),
        "entries": len(chain.entries),
        "head": chain.head,
        "closed": chain.closed,
        "amendments": [entry.seq for entry in chain.entries if isinstance(entry.what, Amendment)],
        "open_reservations": [entry.seq for entry in chain.open_reservations],
        "countersigned_by": sorted({entry.what.by for entry in chain.entries if isinstance(entry.what, Countersignature)}),
    }


def facts_of(chain: Chain, spent: Spent, last: int) -> dict[str, Any]:
    """All that ``show`` says; null stands for an epsilon without bound, or without limit.

    What is left if all other silos collude is there where something of mode ``distributed`` was released, and absent elsewhere.
    """
    left = spent.if_others_collude
    return {
        **identity(chain),
        "policy": chain.policy.to_dict(),
        "spent": {
            "epsilon": _finite(spent.epsilon),
            "delta": spent.delta,
            "order": spent.order,
            "limit": spent.limit,
            "left": _left(spent),
            "share": None if spent.share is None else _finite(spent.share),
            "reservations": spent.reservations,
            "open": spent.open,
            "today": _finite(spent.today),
            **({} if spent.best_rdp is None else {"best_rdp": _finite(spent.best_rdp)}),
            **({} if spent.pld is None else {"pld": _finite(spent.pld)}),
            **_facts_of_collusion(spent),
        },
        "runs": {
            run: {
                "epsilon": _finite(value),
                "releases": _releases(chain, run),
                **({} if left is None else {"epsilon_if_others_collude": _finite(left.runs[run])}),
            }
            for run, value in spent.runs.items()
        },
        "last": [entry.body for entry in chain.entries[len(chain.entries) - last :]] if last else [],
    }


def print_ledger(chain: Chain, spent: Spent, last: int) -> None:
    """What ``show`` says, as tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from common.privacy.signing import fingerprint

    console = Console()
    table = Table(title=escape(f"ledger of {chain.silo}{' (closed)' if chain.closed else ''}"), show_header=False)
    share = "" if spent.share is None else f" ({spent.share:.1%} of what the filter has room for)"
    left, collusion = _left(spent), spent.if_others_collude
    against = "" if collusion is None else ", against whoever sees the sums over silos"
    rows = {
        "key": fingerprint(chain.public_key),
        "budget": f"epsilon {'without limit' if spent.limit is None else f'{spent.limit:g}'} at delta {spent.delta:g}",
        "spent": f"epsilon {_figure(spent.epsilon)}{share}{against}",
        **({} if collusion is None else {"if others collude": _collusion_in_words(collusion)}),
        "left": "without limit" if left is None else f"epsilon {left:.4g}",
        "releases": f"{spent.reservations} paid for, {spent.open} of them without an answer",
        "filter": f"Rényi order {spent.order:g}, fixed",
        "policy": "\n".join(policy_lines(chain.policy.to_dict())),
    }
    if spent.best_rdp is not None and spent.pld is not None:
        rows["if fixed in advance"] = f"epsilon {_figure(spent.best_rdp)} (RDP), {_figure(spent.pld)} (PLD)"
        if collusion is not None and collusion.best_rdp is not None and collusion.pld is not None:
            both = f"epsilon {_figure(collusion.best_rdp)} (RDP), {_figure(collusion.pld)} (PLD)"
            rows["if fixed in advance"] += f"; if others collude, {both}"
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table)
    if spent.runs:
        runs = Table("run", "releases", "epsilon", *([] if collusion is None else ["if others collude"]), title="runs")
        for run, epsilon in spent.runs.items():
            second = [] if collusion is None else [_figure(collusion.runs[run])]
            runs.add_row(run[:16], str(_releases(chain, run)), _figure(epsilon), *second)
        console.print(runs)
    if last:
        entries = Table(
            "entry", "time (UTC)", "what", "", title=f"last {min(last, len(chain.entries))} of {len(chain.entries)} entries"
        )
        for entry in chain.entries[-last:]:
            time = datetime.fromtimestamp(entry.time, UTC).strftime("%Y-%m-%d %H:%M:%S")
            entries.add_row(str(entry.seq), time, entry.type, escape(_about(entry)))
        console.print(entries)


def print_verified(chain: Chain, *, recompute: bool, known: bool) -> None:
    """What ``verify`` says of a ledger that holds; ``known`` when its key was compared."""
    facts = identity(chain)
    checked = "hashes, signatures, order, policy" + (" and every epsilon" if recompute else "")
    typer.echo(f"{chain.silo}: {len(chain.entries)} entries hold: {checked}")
    typer.echo(f"head: {chain.head}")
    typer.echo(f"key: {facts['fingerprint']}{'' if known else ' (compare it with the one that the silo told you)'}")
    if facts["amendments"]:
        typer.echo(f"the policy was changed in entries {', '.join(map(str, facts['amendments']))}")
    if facts["open_reservations"]:
        typer.echo(f"paid for, without an answer: entries {', '.join(map(str, facts['open_reservations']))}")
    for by in facts["countersigned_by"]:
        typer.echo(f"countersigned by {by}")
    if not recompute:
        typer.echo("epsilon was not computed again")


def policy_lines(policy: dict[str, Any]) -> list[str]:
    """The settings that are set, one a line."""

    def said(value: Any) -> str:
        return ", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)

    return [f"{name} = {said(value)}" for name, value in policy.items() if value is not None and name != "silo"]


def _about(entry: Entry) -> str:
    from common.privacy import entry as kinds

    match entry.what:
        case kinds.Opening(software=software):
            return f"by {software}"
        case kinds.Reservation() as what:
            epsilon = "infinite" if what.epsilon is None else f"{what.epsilon:.4g}"
            kind = what.event["kind"] + (f" of {what.event['honest']} honest silos" if "honest" in what.event else "")
            return f"{what.action}, round {what.round}, run {what.run[:8]}: {kind}; epsilon {epsilon} in all"
        case kinds.Commitment(reservation=seq, answer=answer):
            return f"to entry {seq}: {answer[:16]}"
        case kinds.Countersignature(by=by):
            return f"by {by[:16]}"
        case kinds.Amendment(reason=reason) | kinds.Closing(reason=reason):
            return reason
    return ""


def _facts_of_collusion(spent: Spent) -> dict[str, Any]:
    left = spent.if_others_collude
    if left is None:
        return {}
    return {
        "epsilon_if_others_collude": _finite(left.epsilon),
        "honest_silos": left.honest,
        **({} if left.best_rdp is None else {"best_rdp_if_others_collude": _finite(left.best_rdp)}),
        **({} if left.pld is None else {"pld_if_others_collude": _finite(left.pld)}),
    }


def _collusion_in_words(left: Collusion) -> str:
    silos = "1 honest silo" if left.honest == 1 else f"up to {left.honest} honest silos"
    return f"epsilon {_figure(left.epsilon)}, by this silo's own noise alone; the budget counts on {silos} in every sum"


def _releases(chain: Chain, run: str) -> int:
    return sum(what.run == run for _, what in chain.reservations)


def _left(spent: Spent) -> float | None:
    return None if spent.limit is None else max(0.0, spent.limit - spent.epsilon)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _figure(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "without bound"
