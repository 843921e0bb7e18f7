"""``silorec bundle verify | show | seal | open | key``: what a silo does with a bundle that it was sent. Nothing is sent
anywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import BundleError

if TYPE_CHECKING:
    from common.bundle.contents import Bundle

SEALED = ".sealed"

bundle_app = typer.Typer(help="The signed bundle that is shipped and served: verify, show, seal, open.", no_args_is_help=True)

BundlePath = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="NAME.bundle, or a folder with its files.", show_default=False)
]
Signers = Annotated[
    list[str],
    typer.Option(
        "--signer",
        metavar="KEY",
        help="A trusted signer's public key (64 hex), or a file with keys; repeatable.",
        show_default=False,
    ),
]
MaxItems = Annotated[int | None, typer.Option(min=1, help="Refuse a larger catalogue before reading it.", show_default="1000000")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@bundle_app.callback()
def _bundle() -> None:
    """The signed bundle that is shipped and served: verify, show, seal, open."""


@bundle_app.command()
def verify(bundle: BundlePath, signer: Signers, max_items: MaxItems = None, as_json: AsJson = False) -> None:
    """Check signature, signer, every file's hash, and that model, items, catalogue and card fit together; nothing is run.

    The status is 1 if something does not hold, with the reason. Get the signer's public key by another way than the bundle.

    Example: silorec bundle verify shop.bundle --signer coordinator.pub
    """
    trusted = trusted_signers(signer)
    _check_there(bundle)
    opened, wrong = _opened(bundle, trusted, max_items)
    if as_json:
        facts = {} if opened is None else _identity(opened)
        typer.echo(json.dumps({"path": str(bundle), "holds": opened is not None, "wrong": wrong, **facts}, indent=2))
    elif opened is not None:
        typer.echo(f"{bundle}: holds; {opened.card.name}, {len(opened.items):,} items")
        typer.echo(f"  digest {opened.digest}")
        typer.echo(f"  signed by {opened.signer} ({_identity(opened)['fingerprint']})")
    if opened is None:
        typer.echo(f"silorec: {wrong}", err=True)
        raise typer.Exit(1)


@bundle_app.command()
def show(
    bundle: BundlePath,
    signer: Annotated[
        list[str] | None, typer.Option("--signer", metavar="KEY", help="As for verify; repeatable.", show_default=False)
    ] = None,
    max_items: MaxItems = None,
    as_json: AsJson = False,
) -> None:
    """Print the card of a bundle whose signer is trusted. Of any other, what its manifest claims, and the status is 1.

    Example: silorec bundle show shop.bundle --signer coordinator.pub
    """
    trusted = trusted_signers(signer or [])
    _check_there(bundle)
    opened, wrong = (None, "no signer was named: --signer") if not trusted else _opened(bundle, trusted, max_items)
    if opened is None:
        _show_unverified(bundle, wrong, as_json=as_json)
        raise typer.Exit(1)
    if as_json:
        facts = {"path": str(bundle), "verified": True, **_identity(opened), "card": opened.card.model_dump(mode="json")}
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    from common.bundle.card_tables import print_card

    print_card(opened)


@bundle_app.command()
def seal(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="NAME.bundle, one file.", show_default=False)],
    to: Annotated[
        list[str],
        typer.Option("--to", metavar="KEY", help="A silo's public key x25519:…, or its file; repeatable.", show_default=False),
    ],
    out: Annotated[Path | None, typer.Option(help="Where to write it.", show_default=f"BUNDLE{SEALED}")] = None,
    max_items: MaxItems = None,
    as_json: AsJson = False,
) -> None:
    """Encrypt a bundle so that only the named silos can open it. Its signature stays inside and is still to be verified.

    Example: silorec bundle seal shop.bundle --to north.key.pub --to south.key.pub
    """
    from common.bundle.files import MAX_ITEMS, verify_bundle
    from common.bundle.recipients import recipient
    from common.bundle.sealing import seal_file

    recipients = [recipient(text) for text in to]
    _check_there(bundle)
    if bundle.is_dir():
        raise BundleError(f"{bundle}: a folder is not sealed; seal the bundle that is one file")
    verified = verify_bundle(bundle, None, max_items=max_items or MAX_ITEMS)  # what is no bundle is not sent as one
    target = out or bundle.with_name(bundle.name + SEALED)
    seal_file(bundle, target, recipients)
    facts = {"sealed": str(target), "digest": verified.digest, "recipients": len(set(recipients))}
    _tell(facts, f"{target}: sealed to {len(set(recipients))}, digest {verified.digest}", as_json=as_json)


@bundle_app.command(name="open")
def open_(
    sealed: Annotated[Path, typer.Argument(metavar="SEALED", help="What was sealed to this silo.", show_default=False)],
    key: Annotated[Path, typer.Option(help="This silo's private key, from 'silorec bundle key'.", show_default=False)],
    signer: Signers,
    out: Annotated[Path | None, typer.Option(help="Where to write the bundle.", show_default=f"without {SEALED}")] = None,
    max_items: MaxItems = None,
    as_json: AsJson = False,
) -> None:
    """Decrypt a sealed bundle and verify it; it is written only if it holds, else the status is 1.

    Example: silorec bundle open shop.bundle.sealed --key north.key --signer coordinator.pub
    """
    from common.bundle.recipients import load_recipient_key
    from common.bundle.sealing import open_file

    trusted, private = trusted_signers(signer), load_recipient_key(key)
    _check_there(sealed)
    target = out or _unsealed_name(sealed)
    candidate = target.with_name(f".{target.name}.{os.getpid()}.unverified")
    try:
        opened, wrong = None, ""
        try:
            open_file(sealed, candidate, private)
        except BundleError as error:
            wrong = str(error)
        else:
            opened, wrong = _opened(candidate, trusted, max_items)
            wrong = wrong.replace(str(candidate), f"what is sealed in {sealed}")
        if opened is None:
            typer.echo(f"silorec: {wrong}; nothing was written", err=True)
            raise typer.Exit(1)
        os.replace(candidate, target)
    finally:
        candidate.unlink(missing_ok=True)
    _tell({"bundle": str(target), **_identity(opened)}, f"{target}: holds, digest {opened.digest}", as_json=as_json)


@bundle_app.command()
def key(
    path: Annotated[Path, typer.Argument(metavar="KEY", help="Where to write the private key.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Make a silo's pair of X25519 keys: KEY stays here, KEY.pub goes to whoever seals bundles.

    Example: silorec bundle key north.key
    """
    from common.bundle.recipients import create_recipient_key, public_path

    made = create_recipient_key(path)
    facts = {"key": str(path), "public": str(public_path(path)), "public_key": made.public_key}
    _tell(facts, f"{path}: keep it, show it to nobody\n{public_path(path)}: {made.public_key}", as_json=as_json)


def trusted_signers(named: list[str]) -> frozenset[str]:
    """Public keys from the values of ``--signer``: keys themselves, or files with one key a line (``#`` begins a remark).

    Raises
    ------
    BundleError
        If a value is neither, or a file holds something else.
    """
    from common.privacy.signing import is_public_key

    keys: set[str] = set()
    for text in named:
        if is_public_key(text):
            keys.add(text)
            continue
        try:
            with Path(text).open("rb") as file:
                lines = file.read(1 << 16).decode("utf-8", "replace").splitlines()
        except (OSError, ValueError):
            raise BundleError(f"--signer {text}: neither a public key (64 lower-case hex) nor a file that can be read") from None
        found = [line.partition("#")[0].strip() for line in lines]
        found = [line for line in found if line]
        if not found or not all(map(is_public_key, found)):
            raise BundleError(f"--signer {text}: the file must hold public keys, 64 lower-case hex characters a line")
        keys.update(found)
    return frozenset(keys)


def _opened(path: Path, trusted: frozenset[str], max_items: int | None) -> tuple[Bundle | None, str]:
    """The bundle, or None and why it does not hold."""
    from common.bundle.files import MAX_ITEMS, read_bundle
    from common.bundle.sealing import is_sealed

    if is_sealed(path):
        return None, f"{path}: is sealed; open it first: silorec bundle open {path} --key KEY --signer KEY"
    try:
        return read_bundle(path, trusted, max_items=max_items or MAX_ITEMS), ""
    except BundleError as error:
        return None, str(error)


def _show_unverified(path: Path, wrong: str, *, as_json: bool) -> None:
    from common.bundle.files import read_manifest
    from common.privacy.signing import fingerprint

    manifest, signer = None, ""
    try:
        manifest, signer = read_manifest(path)
    except BundleError as error:
        wrong = str(error)
    files = {} if manifest is None else manifest.files
    if as_json:
        claims = {name: {"size": facts.size, "sha256": facts.sha256} for name, facts in files.items()}
        typer.echo(
            json.dumps({"path": str(path), "verified": False, "wrong": wrong, "signer": signer, "files": claims}, indent=2)
        )
    elif manifest is not None:
        typer.echo(f"NOT VERIFIED: this is what {path} claims, and no more ({wrong})")
        typer.echo(f"  signed by {signer} ({fingerprint(signer)}), whoever that is")
        for name, facts in files.items():
            typer.echo(f"  {name}: {facts.size:,} bytes, SHA-256 {facts.sha256}")
    typer.echo(f"silorec: NOT VERIFIED: {wrong}", err=True)


def _identity(bundle: Bundle) -> dict[str, Any]:
    from common.privacy.signing import fingerprint

    return {
        "digest": bundle.digest,
        "signer": bundle.signer,
        "fingerprint": fingerprint(bundle.signer),
        "name": bundle.card.name,
        "created": bundle.card.created,
        "items": len(bundle.items),
        "catalogue_fingerprint": bundle.catalogue_fingerprint,
    }


def _check_there(path: Path) -> None:
    """What cannot be looked at at all is bad input, not a bundle that does not hold."""
    if not path.exists():
        raise BundleError(f"{path}: no such file")
    if not os.access(path, os.R_OK):
        raise BundleError(f"{path}: it cannot be read by this user")


def _unsealed_name(path: Path) -> Path:
    if path.suffix != SEALED or not path.stem:
        raise BundleError(f"{path}: say where to write the bundle: --out NAME.bundle")
    target = path.with_suffix("")
    if target.exists():
        raise BundleError(f"{target}: there is a file already; say where to write the bundle: --out NAME.bundle")
    return target


def _tell(facts: dict[str, Any], text: str, *, as_json: bool) -> None:
    typer.echo(json.dumps(facts, indent=2) if as_json else text)
