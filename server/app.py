"""The coordinator's Flower app: ``server.app:app``.

It reads the run's configuration, builds the adapter to start from, runs the federation, and writes the last adapter into the
run's ``app.out`` folder, with the one before the first round. It holds no data but the public catalogue.

In a deployment ``app.home`` is the coordinator's folder, which has its key and the consortium's roster; what a bundle is made of
is then written too. Without one, where the configuration names the coordinator's key, ``app.key`` is the path of its private
half; ``app.roster`` is that of the roster of the silos' keys.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from common.config import Config
from common.errors import ConfigError, FederationError
from common.privacy.plan import plan_for
from common.protocol import config_hash, read_run_config
from common.secagg.roster import ROSTER, KeyRoster, read_roster
from server.attendance import Tell
from server.checkpoint import START, Checkpoint, save_final
from server.exchange import Roster, Sign
from server.federation import FederationResult, RoundReport, Start, run_federation

app = ServerApp()

STOP = "stop"
"""A file in the run's folder: end after this round, to be taken up again."""

PARTS_WITHIN = 20.0
"""Seconds that the parts of one answer may take once it was announced. A silo that dies in between would hold up all others."""

LOCK = ".lock"
LOCK_SECONDS = 30.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation as ``context.run_config`` says."""
    from common.model.adapter import save_adapter
    from common.model.resident import resident

    _pull_eagerly()
    config, app_settings = read_run_config(context.run_config)
    folder = Path(str(app_settings["out"])) if app_settings.get("out") else None
    home = Path(str(app_settings["home"])) if app_settings.get("home") else None
    with contextlib.ExitStack() as stack:
        listeners: list[Tell] = []
        if folder is not None:
            stack.enter_context(_alone(folder))
        if folder is not None and home is not None:
            listeners = _listeners(folder, home, stack)
        start = start_of(config)

        def keep_start(report: RoundReport) -> None:
            if folder is not None and report.round == 0:
                save_adapter(folder / START, report.vector, resident(config).manifest)

        def tell(event: Mapping[str, Any]) -> None:
            for listener in listeners:
                listener(event)

        result = run_federation(
            grid,
            config,
            start,
            Roster.of(config.federation),
            folder=folder,
            sign=_signer(config, _key_file(home, app_settings.get("key"))),
            key_roster=_key_roster(config, folder, home, app_settings.get("roster")),
            on_round=keep_start,
            stop=None if folder is None else (folder / STOP).exists,
            tell=tell,
        )
        if folder is not None and not result.stopped:
            _finish(config, folder, start, result, deployed=home is not None)


def _pull_eagerly() -> None:
    """An answer that has begun to come is waited for as long as :data:`PARTS_WITHIN`; it may be asked for again, and is kept."""
    from common.pulling import eager

    http_grid = importlib.import_module("flwr.superlink.grid.http_grid")
    if not hasattr(http_grid.pull_objects, "__wrapped__"):
        http_grid.pull_objects = eager(  # type: ignore[attr-defined]
            http_grid.pull_objects, lambda: PARTS_WITHIN
        )


def start_of(config: Config) -> Start:
    """The adapter before training, and how item biases get into it; the same in every process."""
    from common.model.recommender import biases_from_counts
    from common.model.resident import resident

    home = resident(config)

    def biased(vector: NDArray[np.float32], counts: NDArray[np.float64], noise_std: float) -> NDArray[np.float32]:
        out = vector.copy()
        out[home.manifest.slice("bias.weight")] = biases_from_counts(counts, noise_std, config.model)
        return out

    smallest = min(config.federation.declared_users)
    return Start(
        vector=home.start,
        manifest_hash=home.manifest.hash,
        biased=biased if config.model.bias_weight else None,
        count_noise_std=plan_for(config, smallest, smallest).count_noise_std,
        n_items=home.model.n_items,
        frozen=None if config.model.train_bias else home.manifest.slice("bias.weight"),
        metrics_noise_std=plan_for(config, smallest, smallest).metrics_noise_std,
    )


def _finish(config: Config, folder: Path, start: Start, result: FederationResult, *, deployed: bool) -> None:
    """What the run comes to; the final adapter last, for it is the sign that all is there."""
    if deployed:
        from common.data.catalogue_file import write_catalogue
        from common.data.population import load_catalogue
        from common.model.adapter import save_adapter
        from common.model.files import ADAPTER, CATALOGUE
        from common.model.resident import resident

        write_catalogue(folder / CATALOGUE, load_catalogue(config))
        save_adapter(folder / ADAPTER, result.vector, resident(config).manifest)
    save_final(folder, Checkpoint(config_hash(config), start.manifest_hash, result.vector, result.round), result.metrics)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else writes into a run's folder: a process that was killed may live a moment longer than its coordinator."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise FederationError(f"{folder}: another process runs this federation; end it first") from None


def _key_roster(
    config: Config, folder: Path | None, home: Path | None, path: object
) -> KeyRoster | Callable[[], KeyRoster] | None:
    """The roster of a deployment, read anew whenever it is asked for; the one that the operator names; or that of the run's
    folder, where a simulation puts it.
    """
    if home is not None:
        from common.consortium.home import CoordinatorHome
        from common.consortium.roster import read_signed

        place = CoordinatorHome(home)
        return lambda: read_signed(place.roster, place.authority).key_roster(datetime.now(UTC))
    if not config.is_secure:
        return None
    if not path and folder is not None:
        path = folder / ROSTER
    return read_roster(Path(str(path))) if path else None


def _listeners(folder: Path, home: Path, stack: contextlib.ExitStack) -> list[Tell]:
    """Who hears of a deployed run's events: its status and events on the disk, and TensorBoard where the operator wants it."""
    from common.consortium.home import CoordinatorHome
    from server.status import StatusFile

    listeners: list[Tell] = [stack.enter_context(StatusFile(folder, _names(home))).tell]
    if CoordinatorHome(home).settings().tensorboard:
        from common.status.tensorboard import TensorBoardWriter

        listeners.append(stack.enter_context(TensorBoardWriter(folder / "tensorboard")).tell)
    return listeners


def _names(home: Path) -> tuple[str, ...]:
    """Of the silos, by number."""
    from common.consortium.home import CoordinatorHome
    from common.consortium.roster import read_signed

    place = CoordinatorHome(home)
    return tuple(member.name for member in read_signed(place.roster, place.authority).members)


def _key_file(home: Path | None, path: object) -> object:
    from common.consortium.home import CoordinatorHome

    return path or (None if home is None else CoordinatorHome(home).key)


def _signer(config: Config, path: object) -> Sign | None:
    """Signs with the key at ``path``, which must be the one that the configuration names."""
    named = config.federation.coordinator
    if not named and not path:
        return None
    if not path:
        raise ConfigError(f"federation.coordinator names the key {named[:16]}…: give app.key, the path of its private half")
    from common.privacy.signing import load_key

    key = load_key(Path(str(path)))
    if key.public_key != named:
        raise ConfigError(f"{path}: its public half is {key.public_key}; set federation.coordinator to it")
    return key.sign
