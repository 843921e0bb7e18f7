"""``silorec gateway``: recommendations in the silo, over HTTP and on one page."""

from __future__ import annotations

import json
import os
import secrets
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ServingError

if TYPE_CHECKING:
    from common.serving import Live

gateway_app = typer.Typer()

TOKEN_BYTES = 24


class Search(StrEnum):
    """How the best items are found."""

    auto = "auto"
    exact = "exact"
    approximate = "approximate"


@gateway_app.command()
def gateway(
    bundle: Annotated[
        Path, typer.Option(help="A bundle, or a folder in which the newest *.bundle counts; it is watched.", show_default=False)
    ],
    signer: Annotated[
        list[str],
        typer.Option(help="Public key of who may have signed it, or a file with keys; repeatable.", show_default=False),
    ],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    title: Annotated[str, typer.Option(help="What the page is called.")] = "Recommendations",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further name under which it may be asked; repeatable.", show_default=False)
    ] = None,
    watch: Annotated[bool, typer.Option(help="Take a new bundle as soon as it lies there.")] = True,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Take a bundle that was made before the current one.")
    ] = False,
    not_before: Annotated[
        datetime | None, typer.Option(help="Refuse bundles that were made before this time (UTC).", show_default=False)
    ] = None,
    admin_token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token for /v1/rollback and /v1/reload; made if missing.", show_default="neither is allowed"
        ),
    ] = None,
    search: Annotated[Search, typer.Option(help="How the best items are found.")] = Search.auto,
    index_folder: Annotated[
        Path | None, typer.Option(help="Where the index of a large catalogue is kept between starts.", show_default=False)
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Requests computed at once.")] = 2,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait; further ones get 503.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as JSON when ready.")] = False,
) -> None:
    """Rank in the silo: an HTTP interface for its web server, and a page for people. No question leaves the machine.

    The bundle is verified before it is used. A newer one at the same place takes over without a request being lost; one that does
    not hold is refused, and the old one goes on. Nothing about a request is logged. There is no TLS: put a proxy before it if
    others than this machine ask.

    Example: silorec gateway --bundle shop.bundle --signer 9f2c…64 hex digits…

    Example: silorec gateway --bundle /var/lib/silorec/bundles --signer coordinator.pub --port 8090 --allow-host shop.example
    """
    started = time.perf_counter()
    from client.gateway.server import Server, address_of, hosts_for, listening
    from common.bundle.cli import trusted_signers
    from common.engine.threads import limit_numpy_threads
    from common.serving import Live, warmed

    limit_numpy_threads(1)  # requests run side by side, not each on all cores
    trusted = trusted_signers(signer)
    token = None if admin_token_file is None else _token(admin_token_file)
    listener = listening(host, port)
    try:
        from client.gateway.app import Settings, create_app
        from client.gateway.desk import Desk

        oldest = None if not_before is None else not_before.replace(tzinfo=not_before.tzinfo or UTC)
        live = Live(
            bundle,
            trusted,
            open_engine=lambda opened: warmed(opened, search.value, index_folder),
            allow_older=allow_older,
            not_before=oldest,
            prepare=Desk,
        )
        settings = Settings(title, hosts_for(host, allow_host or []), threads, waiting, token)

        def ready() -> None:
            _announce(live, address_of(listener), time.perf_counter() - started, as_json)

        if watch:
            live.watch()
        try:
            Server(create_app(live, settings), ready).run(sockets=[listener])
        finally:
            live.close()
    finally:
        listener.close()


def _announce(live: Live, address: str, seconds: float, as_json: bool) -> None:
    bundle = live.engine.bundle
    privacy = bundle.card.privacy
    if as_json:
        facts = {"address": address, "bundle": bundle.digest, "signer": bundle.signer, "mode": privacy.mode}
        typer.echo(json.dumps({**facts, "protected": privacy.protected, "seconds": round(seconds, 3)}))
        return
    typer.echo(f"{address}: {len(bundle.items):,} items of bundle {bundle.digest[:12]}, ready in {seconds:.2f} s")
    if not privacy.protected:
        typer.echo("This model protects nobody whose data it was trained on: it is for reference, not for use.")


def _token(path: Path) -> str:
    """The token in a file that its owner alone can read; a new one where there is no file."""
    try:
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(TOKEN_BYTES) + "\n")
        if path.stat().st_mode & 0o077:
            raise ServingError(f"{path}: others than its owner can read the token; run: chmod 600 {path}")
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ServingError(f"{path}: the token cannot be read or made ({error})") from None
    if len(token) < 16:
        raise ServingError(f"{path}: the token is shorter than 16 characters; delete the file, and a good one is made")
    return token
