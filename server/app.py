"""The coordinator's Flower app: ``server.app:app``.

It reads the run's configuration, builds the adapter to start from, runs the federation, and writes the last adapter into the
run's ``app.out`` folder, with the one before the first round. Where the configuration names the coordinator's key, ``app.key`` is
the path of its private half; ``app.roster`` is that of the roster of the silos' keys. It holds no data but the public catalogue.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from common.config import Config
from common.errors import ConfigError
from common.privacy.plan import plan_for
from common.protocol import config_hash, read_run_config
from common.secagg.roster import ROSTER, KeyRoster, read_roster
from server.checkpoint import START, Checkpoint, save_final
from server.exchange import Roster, Sign
from server.federation import RoundReport, Start, run_federation

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation as ``context.run_config`` says."""
    from common.model.adapter import save_adapter
    from common.model.resident import resident

    config, app_settings = read_run_config(context.run_config)
    roster = Roster.of(config.federation)
    folder = Path(str(app_settings["out"])) if app_settings.get("out") else None
    start = start_of(config)

    def keep_start(report: RoundReport) -> None:
        if folder is not None and report.round == 0:
            save_adapter(folder / START, report.vector, resident(config).manifest)

    sign = _signer(config, app_settings.get("key"))
    keys = _key_roster(config, folder, app_settings.get("roster"))
    result = run_federation(grid, config, start, roster, folder=folder, sign=sign, key_roster=keys, on_round=keep_start)
    if folder is not None:
        save_final(folder, Checkpoint(config_hash(config), start.manifest_hash, result.vector, result.round), result.metrics)


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


def _key_roster(config: Config, folder: Path | None, path: object) -> KeyRoster | None:
    """The roster that the operator of the coordinator names, else that of the run's folder, where a simulation puts it."""
    if not config.is_secure:
        return None
    if not path and folder is not None:
        path = folder / ROSTER
    return read_roster(Path(str(path))) if path else None


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
