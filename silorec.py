"""silorec's public face: the command line, and the few names that Python users import.

``from silorec import simulate, recommend, load_bundle, audit``; they are loaded when first used, so that ``silorec --help`` stays
quick.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import typer

_NAMES = {
    "audit": "common.privacy.audit.verify",
    "load_bundle": "common.bundle.files",
    "recommend": "simulations.recommend",
    "simulate": "simulations.run",
}

# Modules that the base goes without; a command that misses one says which extra brings it.
_OPTIONAL = frozenset(
    {
        "dp_accounting", "flwr", "gguf", "implicit", "jinja2", "matplotlib", "mpmath", "onnx", "opacus", "peft", "psutil", "ray",
        "scipy", "sklearn", "tensorboard", "threadpoolctl", "torch", "transformers",
    }
)  # fmt: skip

# The same for what answers with a bundle.
_SERVING = frozenset(
    {"fastapi", "google", "grpc", "grpc_health", "grpc_reflection", "onnxruntime", "prometheus_client", "uvicorn"}
)

__all__ = ["audit", "load_bundle", "main", "recommend", "simulate"]  # noqa: F822  loaded by __getattr__


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'silorec' has no attribute {name!r}")


def command_line() -> typer.Typer:
    """All commands, each role's small app mounted in one."""
    import typer

    from client.cli import client_app
    from client.gateway_cli import gateway_app
    from common.bundle.cli import bundle_app
    from common.cli import fetch_app
    from common.consortium.cli import consortium_app
    from common.data.cli import data_app
    from common.doctor.cli import doctor_app
    from common.logs import configure
    from common.privacy.audit.cli import audit_app
    from common.privacy.ledger_cli import ledger_app
    from common.status.cli import status_app
    from server.bundle_cli import bundle_making_app
    from server.cli import server_app
    from server.serving.cli import serve_app
    from simulations.attacks.cli import attack_app
    from simulations.cli import simulations_app

    app = typer.Typer(
        name="silorec",
        help="A recommender that several organisations train together without showing each other their users.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.add_typer(simulations_app)
    app.add_typer(fetch_app)
    app.add_typer(data_app, name="data")
    app.add_typer(doctor_app)
    app.add_typer(ledger_app, name="ledger")
    app.add_typer(consortium_app, name="consortium")
    app.add_typer(server_app, name="server")
    app.add_typer(client_app, name="client")
    app.add_typer(gateway_app)
    app.add_typer(serve_app)
    app.add_typer(status_app)
    audits = typer.Typer(help=audit_app.info.help, no_args_is_help=True)
    audits.add_typer(audit_app)
    audits.add_typer(attack_app)
    app.add_typer(audits, name="audit")
    bundles = typer.Typer(help=bundle_app.info.help, no_args_is_help=True)
    bundles.registered_commands += [*bundle_making_app.registered_commands, *bundle_app.registered_commands]
    app.add_typer(bundles, name="bundle")

    @app.callback()
    def options(
        verbose: bool = typer.Option(False, "--verbose", "-v", help="Show what goes on inside."),
        log_format: str = typer.Option(
            None, help="text, or json: one object a line.", show_default="text, or SILOREC_LOG_FORMAT"
        ),
    ) -> None:
        configure(verbose or None, log_format)

    return app


def main(arguments: list[str] | None = None) -> None:
    """The command ``silorec``: exits 0 when it did its job, 1 when a check does not hold, 2 on bad input, 130 on Ctrl-C."""
    from common.errors import SilorecError

    try:
        command_line()(arguments, prog_name="silorec")
    except SilorecError as error:
        _end(str(error), 2)
    except ModuleNotFoundError as error:
        if error.name not in _OPTIONAL | _SERVING:
            raise
        extra = {**dict.fromkeys(_SERVING, "serve"), "tensorboard": "tensorboard"}.get(error.name, "simulate")
        _end(f"{error.name} is not installed: this needs the extra '{extra}': pip install 'silorec[{extra}]'", 2)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except SystemExit as done:
        if done.code == 130:  # what Typer makes of Ctrl-C, without a word
            _end("interrupted", 130)
        raise


def _end(line: str, status: int) -> NoReturn:
    print(f"silorec: {line}", file=sys.stderr)
    raise SystemExit(status) from None


if __name__ == "__main__":
    main()
