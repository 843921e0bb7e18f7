"""The audit of a run of a deployment, over what an auditor would be sent."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from common.errors import FederationError
from common.privacy.audit.verify import Verified, audit
from simulations.trial.consortium import Federation

FROM_THE_COORDINATOR = ("config.toml", "transcript.jsonl")


def audited(trial: Federation, run: str = "run", names: Sequence[str] | None = None) -> Verified:
    """What the audit says of a run: of its configuration and transcript, and of the exported ledgers of ``names`` (all silos).

    Raises
    ------
    FederationError
        If a ledger cannot be exported.
    """
    folder = trial.folder / f"audit-of-{run}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in FROM_THE_COORDINATOR:
        shutil.copy(trial.run_folder(run) / name, folder / name)
    for name in names or trial.names:
        done = trial.command(name, "ledger", "export", str(trial.silo(name).folder), "--out", str(folder / f"{name}.jsonl"))
        if done.returncode:
            raise FederationError(f"the ledger of {name} was not exported: {done.stderr.strip()}")
    return audit(folder)
