"""silorec's public face: the command line, and the few names that Python users import.

``from silorec import simulate, recommend``; both are loaded when first used, so that ``silorec --help`` stays quick.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

_NAMES = {"simulate": "simulations.run", "recommend": "simulations.recommend"}

__all__ = ["main", "recommend", "simulate"]  # noqa: F822  loaded by __getattr__


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'silorec' has no attribute {name!r}")


def main(arguments: list[str] | None = None) -> None:
    """The command ``silorec``: exits 0 when it did its job, 1 when a check does not hold, 2 on bad input."""
    import typer

    from common.cli import fetch_app
    from common.data.cli import data_app
    from common.errors import SilorecError
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

    @app.callback()
    def options(verbose: bool = typer.Option(False, "--verbose", "-v", help="Show what goes on inside.")) -> None:
        logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")

    try:
        app(arguments)
    except SilorecError as error:
        print(f"silorec: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
