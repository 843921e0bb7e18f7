"""``silorec serve``: the coordinator's service, over gRPC."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ServingError

if TYPE_CHECKING:
    from common.serving import Live
    from server.serving.counting import Counts
    from server.serving.engine_process import EngineProcess
    from server.serving.limits import Limits
    from server.serving.running import Endpoint

serve_app = typer.Typer()

SWITCH_SECONDS = 0.001
"""For which a thread may keep the interpreter: Python's 5 ms would be longer than an answer takes."""

GARBAGE = 50_000
"""New objects after which garbage is looked for. Calls leave no circles, and a look at thousands of them makes all wait."""


class Search(StrEnum):
    """How the best items are found."""

    auto = "auto"
    exact = "exact"
    approximate = "approximate"


@serve_app.command()
def serve(
    bundle: Annotated[
        Path, typer.Option(help="A bundle, or a folder in which the newest *.bundle counts; it is watched.", show_default=False)
    ],
    signer: Annotated[
        list[str],
        typer.Option(help="Public key that must have signed it, or a file with keys; may be repeated.", show_default=False),
    ],
    tls_cert: Annotated[Path | None, typer.Option(help="The service's certificate, PEM.", show_default=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.", show_default=False)] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Certificate of the authority that signs silos' certificates, PEM.", show_default=False)
    ] = None,
    allow: Annotated[
        Path | None,
        typer.Option(
            help="File with the silos that may ask, a name or a certificate's SHA-256 a line.",
            show_default="all whom the authority signed",
        ),
    ] = None,
    deny: Annotated[
        Path | None, typer.Option(help="File with revoked ones, alike. Changes of both count at once.", show_default=False)
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS, for a loopback address alone.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 50051,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of this machine alone for Prometheus; 0: any.", show_default="no metrics"),
    ] = None,
    rate: Annotated[float, typer.Option(help="Questions a second that one silo may ask, on average.")] = 500.0,
    burst: Annotated[int, typer.Option(help="Questions that it may ask at once after a pause.")] = 1_000,
    under_way: Annotated[int, typer.Option(help="Calls under way at once; further ones are refused.")] = 1_024,
    under_way_of_one: Annotated[int, typer.Option(help="Of these, of one silo.")] = 256,
    waiting: Annotated[int, typer.Option(help="Questions that may wait for the engine.")] = 1_024,
    deadline: Annotated[float, typer.Option(help="Longest seconds of a call; a caller's own may be shorter.")] = 5.0,
    grace: Annotated[float, typer.Option(min=0.0, help="Seconds that calls under way have after SIGTERM.")] = 10.0,
    pause: Annotated[float, typer.Option(min=0.0, help="Seconds that health says NOT_SERVING before calls are refused.")] = 0.0,
    watch: Annotated[bool, typer.Option(help="Take a new bundle as soon as it lies there.")] = True,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Take a bundle that was made before the current one.")
    ] = False,
    not_before: Annotated[
        datetime | None, typer.Option(help="Refuse bundles that were made before this time (UTC).", show_default=False)
    ] = None,
    search: Annotated[Search, typer.Option(help="How the best items are found.")] = Search.auto,
    index_folder: Annotated[
        Path | None, typer.Option(help="Where the index of a large catalogue is kept between starts.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as JSON when ready.")] = False,
) -> None:
    """Answer silos' anonymous questions over gRPC, and hand out the bundle. A silo's certificate is its permission.

    A question holds no user, no session and no time, and is refused if it carries anything more. Nothing about a question is logged;
    calls are counted by silo and status. SIGTERM ends it: calls under way are answered first.

    Example: silorec serve --bundle shop.bundle --signer coordinator.pub --tls-cert service.pem --tls-key service.key --client-ca silos.pem --host 0.0.0.0

    Example: silorec serve --bundle shop.bundle --signer coordinator.pub --insecure
    """  # noqa: E501  an example is one line
    started = time.perf_counter()
    sys.setswitchinterval(SWITCH_SECONDS)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by NumPy's libraries: one thread has the engine, the others speak gRPC
    from common.bundle.cli import trusted_signers
    from common.serving import Live
    from server.serving.counting import Counts
    from server.serving.engine_process import EngineProcess
    from server.serving.issued import issuing
    from server.serving.limits import Limits
    from server.serving.running import Endpoint, new_event_loop
    from server.serving.tls import Admission, NameList, server_credentials

    limits = Limits(
        rate=rate, burst=burst, under_way=under_way, under_way_of_one=under_way_of_one, waiting=waiting, deadline=deadline
    )
    files = [path for path in (tls_cert, tls_key, client_ca) if path is not None]
    if insecure == bool(files) or len(files) not in (0, 3):
        raise ServingError("give --tls-cert, --tls-key and --client-ca together, or --insecure to serve this machine alone")
    if insecure:
        if allow is not None or deny is not None:
            raise ServingError("--allow and --deny are about certificates, which nobody shows with --insecure")
        endpoint = Endpoint(host, port)
    else:
        assert tls_cert is not None
        assert tls_key is not None
        assert client_ca is not None
        lists = [None if path is None else NameList(path) for path in (allow, deny)]
        endpoint = Endpoint(host, port, server_credentials(tls_cert, tls_key, client_ca), Admission(*lists))
    oldest = None if not_before is None else not_before.replace(tzinfo=not_before.tzinfo or UTC)
    live = Live(
        bundle,
        trusted_signers(signer),
        open_engine=lambda opened: EngineProcess(opened, search=search.value, index_folder=index_folder),
        allow_older=allow_older,
        not_before=oldest,
        prepare=issuing(bundle),
    )
    if watch:
        live.watch()
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_run(live, endpoint, limits, Counts(), metrics_port, grace, pause, as_json, started))
    finally:
        live.close()


async def _run(
    live: Live[EngineProcess],
    endpoint: Endpoint,
    limits: Limits,
    counts: Counts,
    metrics_port: int | None,
    grace: float,
    pause: float,
    as_json: bool,
    started: float,
) -> None:
    from server.serving.running import serve as answer

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics, close = (None, None) if metrics_port is None else counts.open_port(metrics_port)

    def ready(port: int) -> None:
        gc.collect()
        gc.freeze()  # what is loaded now stays: collecting garbage need not look at it again and again
        gc.set_threshold(GARBAGE, 50, 100)
        status, seconds = live.status, time.perf_counter() - started
        address = f"{endpoint.host}:{port}"
        if as_json:
            facts = {
                "address": address,
                "tls": endpoint.credentials is not None,
                "bundle": status.digest,
                "signer": status.signer,
            }
            typer.echo(json.dumps(facts | {"metrics_port": metrics, "seconds": round(seconds, 3)}))
            return
        items = len(live.engine.bundle.items)
        secured = "mutual TLS" if endpoint.credentials is not None else "no TLS, this machine alone"
        typer.echo(f"{address}: {items:,} items of bundle {status.digest[:12]}, {secured}, ready in {seconds:.2f} s")

    try:
        await answer(live, endpoint, limits, counts, stop=stop, ready=ready, grace=grace, pause=pause)
    finally:
        if close is not None:
            close()
