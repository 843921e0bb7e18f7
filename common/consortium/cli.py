"""``silorec consortium``: found a consortium, invite and admit silos, revoke them, renew what expires. Files only, no network."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import ConsortiumError

if TYPE_CHECKING:
    from common.consortium.authority import Authority
    from common.consortium.home import AuthorityHome, CoordinatorHome, SiloHome

consortium_app = typer.Typer(help="Who takes part: keys, certificates, and the signed roster.", no_args_is_help=True)

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The consortium's folder, with the authority in it.", show_default=False)
]
Days = Annotated[float, typer.Option(min=0.01, max=36500, help="Days from now for which it is valid.")]
San = Annotated[
    list[str] | None,
    typer.Option("--san", help="A further host name or address of the coordinator; repeatable.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@consortium_app.callback()
def _consortium() -> None:
    """Who takes part: keys, certificates, and the signed roster."""


@consortium_app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder to make.", show_default=False)],
    name: Annotated[str, typer.Option(help="The consortium's name.", show_default=False)],
    address: Annotated[str, typer.Option(help="host:port by which silos reach the coordinator.", show_default=False)],
    san: San = None,
    days: Days = 365,
    authority_days: Annotated[float, typer.Option(min=0.01, max=36500, help="Days for which the authority is valid.")] = 3650,
    as_json: AsJson = False,
) -> None:
    """Found a consortium: DIR/authority, which signs and can be kept off the network, and DIR/coordinator.

    Example: silorec consortium init shops --name shops --address federation.example.org:9092
    """
    from common.consortium.authority import found

    with _writing(folder):
        authority = found(folder, name, address, also=san or (), days=days, authority_days=authority_days)
    coordinator = authority.home.coordinator.folder
    facts = {
        "consortium": name,
        "authority": str(authority.home.folder),
        "coordinator": str(coordinator),
        "fingerprint": authority.fingerprint,
    }
    lines = [
        f"consortium {name}",
        f"authority: {authority.home.folder} (keep a copy; keep it off the network if you can)",
        f"coordinator: {coordinator}",
        f"the authority's fingerprint: {authority.fingerprint}",
        f"next: silorec consortium invite {folder} NAME",
    ]
    _tell(facts, lines, as_json)


@consortium_app.command()
def invite(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the silo is to be called.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where to write the invitation.", show_default="NAME.invite")] = None,
    days: Days = 14,
    as_json: AsJson = False,
) -> None:
    """Write an invitation for one silo, once. Send it in confidence, and tell the fingerprint by another way, such as by voice.

    Example: silorec consortium invite shops north
    """
    from common.consortium.roster import minute
    from common.durable import write_durably

    authority = _authority(folder)
    invitation, document = authority.invite(name, days)
    path = out or Path(f"{name}.invite")
    with _writing(path):
        write_durably(path, document, mode=0o600)
    facts = {
        "invitation": str(path),
        "silo": name,
        "expires": invitation.expires.isoformat(),
        "fingerprint": invitation.fingerprint,
    }
    lines = [
        f"{path}: for silo {name}, once, until {minute(invitation.expires)}; send it in confidence",
        f"tell them by voice: {invitation.fingerprint}",
    ]
    _tell(facts, lines, as_json)


@consortium_app.command()
def join(
    invitation: Annotated[Path, typer.Argument(metavar="INVITATION", help="The invitation.", show_default=False)],
    home: Annotated[Path, typer.Argument(metavar="HOME", help="The silo's folder, to make or to complete.", show_default=False)],
    declared_users: Annotated[
        int, typer.Option(min=1, help="How many users this silo declares: a public number that is kept.", show_default=False)
    ],
    fingerprint: Annotated[
        str | None, typer.Option(help="The authority's, as told by voice; another one is refused.", show_default=False)
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Where the data are, for silo.toml.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """On the silo: make its keys, which never leave it, its settings, and a request for admission to send back.

    Example: silorec consortium join north.invite /var/lib/silorec --declared-users 12000
    """
    from common.consortium.home import SiloHome
    from common.consortium.joining import join as begin
    from common.consortium.letters import read_invitation
    from common.consortium.signed import read_document
    from common.privacy.signing import fingerprint as short
    from common.privacy.signing import load_key

    silo, invited = SiloHome(home), read_invitation(read_document(invitation), str(invitation))
    with _writing(home):
        request = begin(silo, invited, declared_users, _now(), authority=fingerprint, data=data)
    identity = short(load_key(silo.identity_key).public_key)
    facts = {
        "silo": invited.silo,
        "home": str(home),
        "request": str(request),
        "authority": invited.fingerprint,
        "identity": identity,
    }
    compare = "is as you said" if fingerprint else "must be what they tell you by voice"
    lines = [
        f"silo {invited.silo} of {invited.consortium}: {home}",
        f"the authority's fingerprint, which {compare}: {invited.fingerprint}",
        f"this silo's identity, to tell them: {identity}",
        f"next: edit {silo.settings_file} and {silo.policy}, and send {request} to the authority",
    ]
    _tell(facts, lines, as_json)


@consortium_app.command()
def admit(
    folder: Folder,
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="What the silo sent.", show_default=False)],
    days: Days = 365,
    as_json: AsJson = False,
) -> None:
    """Take a silo into the roster by its request, or give it the new keys that it asks for.

    Example: silorec consortium admit shops north.request
    """
    from common.consortium.renewals import handed_out
    from common.consortium.roster import day
    from common.consortium.signed import read_document
    from common.privacy.signing import fingerprint

    authority = _authority(folder)
    member = authority.admit(read_document(request), str(request), days)
    consortium = authority.consortium
    facts = {
        "silo": member.name,
        "number": consortium.number_of(member.key),
        "identity": fingerprint(member.key),
        "declared_users": member.declared_users,
        "valid_until": member.valid_until.isoformat(),
        "version": consortium.version,
    }
    lines = [
        f"silo {facts['number']}: {member.name}, {member.declared_users} declared users, until {day(member.valid_until)}",
        f"its identity, which must be what they tell you by voice: {facts['identity']}",
        *handed_out(authority),
    ]
    _tell(facts, lines, as_json)


@consortium_app.command()
def roster(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="The consortium's folder, the coordinator's, or a silo's.", show_default=False)
    ],
    take: Annotated[
        Path | None,
        typer.Option("--import", help="First take this roster.toml in the place of the one here.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show who takes part and until when, and warn of what expires within 30 days. The status is 1 if something has expired.

    Example: silorec consortium roster /var/lib/silorec --import roster.toml
    """
    from common.consortium.expiry import expiries
    from common.consortium.home import AuthorityHome
    from common.consortium.roster import accept, read_signed
    from common.consortium.signed import read_document
    from common.consortium.tables import facts_of, print_roster

    home, now = _home(path), _now()
    if take is not None:
        if isinstance(home, AuthorityHome):
            raise ConsortiumError(f"{path}: the authority makes the roster, and imports none")
        with _writing(home.folder):
            accept(home, read_document(take), now)
    elif not home.roster.exists():
        raise ConsortiumError(f"{home.roster}: there is no roster yet; take the authority's with --import")
    consortium = read_signed(home.roster, home.authority)
    found = list(expiries(home, consortium))
    warnings = [warning for one in found if (warning := one.warning(now))]
    if as_json:
        typer.echo(json.dumps({**facts_of(consortium, now), "warnings": warnings}, indent=2))
    else:
        print_roster(consortium, now)
        for warning in warnings:
            typer.echo(f"silorec: {warning}", err=True)
    if any(one.has_expired(now) for one in found):
        raise typer.Exit(1)


@consortium_app.command()
def revoke(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The silo.", show_default=False)],
    reason: Annotated[str, typer.Option(help="Why, in one line; everybody reads it.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Take a silo out, for good. It keeps its number, and no other silo can have its name.

    Example: silorec consortium revoke shops north --reason "left the consortium"
    """
    from common.consortium.renewals import handed_out

    authority = _authority(folder)
    member = authority.revoke(name, reason)
    facts = {"silo": name, "reason": member.reason, "version": authority.consortium.version}
    _tell(facts, [f"{name} is revoked: {member.reason}", *handed_out(authority)], as_json)


@consortium_app.command()
def rotate(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A silo's folder, or the consortium's with one of the options.", show_default=False),
    ],
    server: Annotated[bool, typer.Option("--server", help="Sign a new certificate for the coordinator.")] = False,
    san: San = None,
    extend: Annotated[
        str | None, typer.Option(metavar="NAME", help="Extend a silo, with a new certificate.", show_default=False)
    ] = None,
    roster: Annotated[bool, typer.Option("--roster", help="Sign the roster anew, as it stands.")] = False,
    signing_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="Name another signing key of the coordinator: its public half, or the file.", show_default=False
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Name another address of the coordinator.", show_default=False)
    ] = None,
    days: Days = 365,
    as_json: AsJson = False,
) -> None:
    """Renew keys, or what expires.

    On a silo: new node and TLS keys, and a request to send to the authority. They come into use with the roster that has them.
    The identity key stays, since the ledger is signed with it: a silo that needs another one joins anew, with another ledger.

    On the coordinator: a new signing key. It comes into use with the roster that names it, and silos' policies must allow it.

    Example: silorec consortium rotate /var/lib/silorec

    Example: silorec consortium rotate shops --extend north --days 365
    """
    from common.consortium import renewals
    from common.consortium.home import AuthorityHome, SiloHome

    home, asked = _home(path), [server, extend is not None, roster, signing_key is not None, address is not None]
    if not isinstance(home, AuthorityHome):
        if any(asked) or san:
            whose = "a silo's" if isinstance(home, SiloHome) else "the coordinator's"
            raise ConsortiumError(f"{path} is {whose} folder, where keys are renewed without an option: they are the authority's")
        with _writing(home.folder):
            told = renewals.keys(home) if isinstance(home, SiloHome) else renewals.new_signing_key(home)
        _tell(*told, as_json)
        return
    if sum(asked) != 1 or (san and not (server or address)):
        raise ConsortiumError(
            "say what to renew: one of --server (with --san), --extend NAME, --roster, --signing-key KEY, --address HOST:PORT "
            "(with --san)"
        )
    authority = _authority(path)
    if server:
        told = renewals.server(authority, san or [], days)
    elif address is not None:
        told = renewals.move(authority, address, san or [], days)
    elif extend is not None:
        told = renewals.extend(authority, extend, days)
    elif signing_key is not None:
        told = renewals.signing_key(authority, _key_in(signing_key))
    else:
        told = renewals.roster(authority, days)
    _tell(*told, as_json)


@consortium_app.command()
def journal(path: Folder, as_json: AsJson = False) -> None:
    """Show what the authority did, or the coordinator, every line checked. The status is 1 if one does not hold.

    Example: silorec consortium journal shops
    """
    from common.consortium.home import SiloHome
    from common.consortium.tables import journal_lines
    from common.journal import read_journal

    home = _home(path)
    if isinstance(home, SiloHome):
        raise ConsortiumError(f"{path} is a silo's folder; its acts are in its ledger: silorec ledger show {path}")
    if not home.journal.exists():
        raise ConsortiumError(f"{home.journal}: there is no journal yet")
    try:
        acts = read_journal(home.journal)
    except ConsortiumError as error:
        if as_json:
            typer.echo(json.dumps({"path": str(home.journal), "holds": False, "wrong": str(error)}, indent=2))
        else:
            typer.echo(f"silorec: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        listed = [{"seq": act.seq, "time": act.time, "act": act.act, **act.facts} for act in acts]
        typer.echo(json.dumps({"path": str(home.journal), "holds": True, "acts": listed}, indent=2))
    else:
        for line in journal_lines(acts):
            typer.echo(line)


def _key_in(said: str) -> str:
    """A public key, or the one in the file of this name."""
    from common.consortium.signed import read_document

    path = Path(said)
    return read_document(path).decode(errors="replace").strip() if path.is_file() else said


def _authority(folder: Path) -> Authority:
    from common.consortium.authority import Authority
    from common.consortium.home import AuthorityHome

    home = _home(folder)
    if not isinstance(home, AuthorityHome):
        raise ConsortiumError(f"{folder}: the authority is not here")
    return Authority(home)


def _home(path: Path) -> AuthorityHome | CoordinatorHome | SiloHome:
    """Whose folder it is, by what lies in it."""
    from common.consortium.home import AuthorityHome, CoordinatorHome, SiloHome

    for authority in (AuthorityHome(path / "authority"), AuthorityHome(path)):
        if authority.key.exists():
            return authority
    for home in (CoordinatorHome(path), SiloHome(path)):
        if home.settings_file.exists():
            return home
    raise ConsortiumError(f"{path}: neither a consortium's folder nor the coordinator's nor a silo's")


def _tell(facts: dict[str, Any], lines: list[str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for line in lines:
        typer.echo(line)


def _now() -> Any:
    from datetime import UTC, datetime

    return datetime.now(UTC)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the operating system says of writing to ``path``, as a sentence."""
    try:
        yield
    except OSError as error:
        raise ConsortiumError(f"{error.filename or path}: cannot be written ({error.strerror})") from None
