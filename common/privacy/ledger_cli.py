"""``silorec ledger``: make, read, check and hand out the list of what a silo has spent. Nothing is sent anywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import LedgerError
from common.privacy.ledger_tables import facts_of, identity, policy_lines, print_ledger, print_verified

if TYPE_CHECKING:
    from common.privacy.entries import Chain
    from common.privacy.ledger import Ledger
    from common.privacy.signing import SigningKey

LEDGER, KEY = "ledger.sqlite", "ledger.key"

ledger_app = typer.Typer(help="The silo's ledger: what was spent, under which policy, signed.", no_args_is_help=True)

State = Annotated[Path, typer.Argument(metavar="STATE", help="The silo's folder, with the ledger in it.", show_default=False)]
KeyFile = Annotated[Path | None, typer.Option("--key", help="The silo's key.", show_default=f"STATE/{KEY}")]
PolicyFile = Annotated[Path, typer.Option("--policy", help="The policy, a TOML file.", show_default=False)]
Reason = Annotated[str, typer.Option("--reason", help="Why, in one line; auditors read it.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@ledger_app.callback()
def _ledger() -> None:
    """The silo's ledger: what was spent, under which policy, signed."""


@ledger_app.command()
def init(state: State, policy: PolicyFile, key: KeyFile = None, as_json: AsJson = False) -> None:
    """Make a ledger for a policy, and a key if there is none. Give the key's fingerprint to your auditor.

    Example: silorec ledger init /var/lib/silorec --policy policy.toml
    """
    from common.privacy.ledger import Ledger
    from common.privacy.policy import read_policy
    from common.privacy.signing import create_key, fingerprint, load_key
    from common.privacy.store import make_folder

    limits = read_policy(policy).resolved()
    if (state / LEDGER).exists():
        raise LedgerError(f"{state / LEDGER}: there is a ledger already; change its policy with: silorec ledger amend {state}")
    try:
        make_folder(state)
    except OSError as error:
        raise LedgerError(f"{state}: the folder cannot be made ({error.strerror})") from None
    path = key or state / KEY
    signing = load_key(path) if path.exists() else create_key(path)
    ledger = Ledger.create(state / LEDGER, limits, signing)
    facts = {
        "ledger": str(ledger.path),
        "key": str(path),
        "silo": limits.silo,
        "public_key": signing.public_key,
        "fingerprint": fingerprint(signing.public_key),
        "policy": ledger.policy.to_dict(),
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    typer.echo(f"ledger of {limits.silo}: {ledger.path}")
    for line in policy_lines(ledger.policy.to_dict()):
        typer.echo(f"  {line}")
    typer.echo(f"key: {path} (keep a copy, show it to nobody)")
    typer.echo(f"fingerprint: {fingerprint(signing.public_key)}")


@ledger_app.command()
def show(
    state: State,
    last: Annotated[int, typer.Option(min=0, help="How many of the last entries.")] = 10,
    tighter: Annotated[
        bool, typer.Option(help="Also epsilon at the best Rényi order and by PLD, valid for parameters fixed in advance.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the budget, what is spent and what is left, every run, and the last entries.

    After releases of mode distributed there are two figures: against whoever sees the sums over silos, which is what the budget
    counts, and if all other silos collude with the coordinator.

    Example: silorec ledger show /var/lib/silorec --last 20
    """
    from common.privacy.ledger import read_ledger
    from common.privacy.spent import spent_by

    chain = read_ledger(state / LEDGER)
    spent = spent_by(chain, tighter=tighter)
    if as_json:
        typer.echo(json.dumps(facts_of(chain, spent, last), indent=2))
    else:
        print_ledger(chain, spent, last)


@ledger_app.command()
def export(
    state: State,
    out: Annotated[Path, typer.Option(help="Where to write it.", show_default=False)],
    key: KeyFile = None,
) -> None:
    """Write the ledger as signed lines of JSON, for an auditor.

    Example: silorec ledger export /var/lib/silorec --out north.jsonl
    """
    from common.durable import write_durably

    ledger = _open(state, key)
    data = ledger.export()
    try:
        write_durably(out, data)
    except OSError as error:
        raise LedgerError(f"{out}: cannot be written ({error.strerror})") from None
    typer.echo(f"{out}: {len(ledger.entries)} entries, head {ledger.chain.head}")


@ledger_app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="An export, or a silo's folder.", show_default=False)],
    public_key: Annotated[
        str | None, typer.Option(help="Whose ledger it must be: public key or fingerprint.", show_default=False)
    ] = None,
    earlier: Annotated[
        Path | None, typer.Option(help="An earlier export, with which this one must begin.", show_default=False)
    ] = None,
    recompute: Annotated[
        bool, typer.Option(help="Compute every epsilon again and hold it against the policy; needs dp_accounting.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Check every hash, signature, limit and sum. The status is 1 if something does not hold, with the entry's number.

    Example: silorec ledger verify north.jsonl --public-key 0718-6f53-526f-c539-aab6-a90e-1f16-58db --earlier last-year.jsonl
    """
    from common.privacy.signing import fingerprint

    wrong: list[str] = []
    chain = None
    try:
        chain = _read(path)
    except _DoesNotHold as error:
        wrong.append(str(error))
    if chain is not None and earlier is not None:
        try:
            if not chain.extends(_read(earlier)):
                wrong.append(f"it does not begin with the entries of {earlier}: one of the two was cut off or went another way")
        except _DoesNotHold as error:
            wrong.append(f"the earlier export {earlier} does not hold: {error}")
    if chain is not None:
        if public_key not in (None, chain.public_key, fingerprint(chain.public_key)):
            wrong.append(f"entry 0: the ledger is that of key {chain.public_key}, not of {public_key}")
        wrong += [str(finding) for finding in chain.check(recompute=recompute)]
    if as_json:
        facts = {"path": str(path), "holds": not wrong, "wrong": wrong, "recomputed": recompute}
        typer.echo(json.dumps({**facts, **({} if chain is None else identity(chain))}, indent=2))
    else:
        for line in wrong:
            typer.echo(f"silorec: {path}: {line}", err=True)
        if chain is not None and not wrong:
            print_verified(chain, recompute=recompute, known=public_key is not None)
    if wrong:
        raise typer.Exit(1)


@ledger_app.command()
def amend(state: State, policy: PolicyFile, reason: Reason, key: KeyFile = None) -> None:
    """Put another policy in force. It is recorded, with the reason; what was spent stays spent.

    Example: silorec ledger amend /var/lib/silorec --policy policy.toml --reason "second season, agreed on 3 May"
    """
    from common.privacy.policy import read_policy

    ledger = _open(state, key)
    entry = ledger.amend(read_policy(policy), reason)
    typer.echo(f"{ledger.policy.silo}: a new policy is in force from entry {entry.seq} on")
    for line in policy_lines(ledger.policy.to_dict()):
        typer.echo(f"  {line}")


@ledger_app.command()
def close(state: State, reason: Reason, key: KeyFile = None) -> None:
    """End the ledger for good: nothing is released under it any more.

    Example: silorec ledger close /var/lib/silorec --reason "the data were deleted"
    """
    ledger = _open(state, key)
    entry = ledger.close(reason)
    typer.echo(f"{ledger.policy.silo}: closed with entry {entry.seq}")


@ledger_app.command()
def countersign(
    path: Annotated[Path, typer.Argument(help="An export to sign, or, with --add, a silo's folder.", show_default=False)],
    key: Annotated[
        Path | None,
        typer.Option(help=f"Your key, made if missing; with --add the silo's, by default STATE/{KEY}.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the countersignature.", show_default="print it")] = None,
    add: Annotated[
        Path | None, typer.Option(help="A countersignature to take into the ledger of a silo.", show_default=False)
    ] = None,
) -> None:
    """Auditors: sign that you have seen a ledger, so that nothing can be cut off it later. Silos: take such a signature in.

    An export with anything wrong in it is not signed.

    Example: silorec ledger countersign north.jsonl --key auditor.key --out north.countersignature.json

    Example: silorec ledger countersign /var/lib/silorec --add north.countersignature.json
    """
    if add is not None:
        ledger = _open(path, key)
        by, signature, head = _read_countersignature(add)
        entry = ledger.add_countersignature(by, signature, head)
        typer.echo(f"{ledger.policy.silo}: entry {entry.seq} holds the countersignature of {by}")
        return
    if key is None:
        raise LedgerError("say with which key: --key auditor.key")
    try:
        chain = _read(path)
    except _DoesNotHold as error:
        typer.echo(f"silorec: {path}: {error}; not signed", err=True)
        raise typer.Exit(1) from None
    if chain.findings:
        for finding in chain.findings:
            typer.echo(f"silorec: {path}: {finding}; not signed", err=True)
        raise typer.Exit(1)
    _write_countersignature(chain, _auditor_key(key), out)


class _DoesNotHold(Exception):
    """A chain that was there to be read, and is broken."""


def _read(path: Path) -> Chain:
    """The chain in an export or in a silo's folder."""
    from common.privacy.entries import read_export
    from common.privacy.ledger import read_ledger

    place = path / LEDGER if path.is_dir() else path
    if not place.exists():
        raise LedgerError(f"{place}: no such file")
    if not os.access(place, os.R_OK):
        raise LedgerError(f"{place}: it cannot be read by this user")
    try:
        return read_ledger(place) if path.is_dir() else read_export(place.read_bytes())
    except LedgerError as error:
        raise _DoesNotHold(str(error).removeprefix(f"{place.absolute()}: ")) from None
    except OSError as error:
        raise LedgerError(f"{place}: cannot be read ({error.strerror})") from None


def _open(state: Path, key: Path | None) -> Ledger:
    from common.privacy.ledger import Ledger
    from common.privacy.signing import load_key

    return Ledger.open(state / LEDGER, load_key(key or state / KEY))


def _auditor_key(path: Path) -> SigningKey:
    from common.privacy.signing import create_key, fingerprint, load_key

    if path.exists():
        return load_key(path)
    key = create_key(path)
    typer.echo(f"made a key: {path}, fingerprint {fingerprint(key.public_key)}", err=True)
    return key


def _write_countersignature(chain: Chain, key: SigningKey, out: Path | None) -> None:
    from common.durable import write_durably
    from common.privacy.entry import countersign as sign

    signed = {
        "silo": chain.silo,
        "entries": len(chain.entries),
        "head": chain.head,
        "by": key.public_key,
        "signature": sign(chain.head, key),
    }
    text = json.dumps({"countersignature": signed}, indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        write_durably(out, text.encode())
    except OSError as error:
        raise LedgerError(f"{out}: cannot be written ({error.strerror})") from None
    typer.echo(f"{out}: {chain.silo} countersigned up to entry {len(chain.entries) - 1}")


def _read_countersignature(path: Path) -> tuple[str, str, str]:
    try:
        signed = json.loads(path.read_bytes())["countersignature"]
        by, signature, head = (signed[name] for name in ("by", "signature", "head"))
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise LedgerError(f"{path}: not a countersignature as 'silorec ledger countersign' writes it") from None
    return by, signature, head
