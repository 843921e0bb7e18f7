"""The one family of exceptions that a person is meant to read, and the codes by which errors travel.

Everything that a user can cause and can mend is a :class:`SilorecError`: the command line prints it as one sentence and
exits with 2. Anything else is a bug and shows its traceback.

Between a silo and the coordinator an error is a member of :class:`ErrorCode` and nothing more: the text of an exception
may quote private data.
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path


class SilorecError(Exception):
    """Something the user can mend; the message says what was wrong, where, and what to do."""


class ConfigError(SilorecError):
    """A setting is unknown, or its value is not allowed."""


class AssetError(SilorecError):
    """A public model or data set could not be had, or is damaged."""


class DataError(SilorecError):
    """Input data are malformed; carries the place.

    Parameters
    ----------
    message:
        What was wrong.
    path, line:
        The file, and the line in it (from 1), where known; put before the message.
    """

    def __init__(self, message: str, path: str | Path | None = None, line: int | None = None) -> None:
        where = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(where + message)
        self.reason, self.path, self.line = message, path, line


class ModelError(SilorecError):
    """A backbone cannot be used, or an adapter does not fit the model."""


class PrivacyError(SilorecError):
    """A privacy parameter is impossible, or a release would pass the budget."""


class BudgetExhausted(PrivacyError):
    """A release would pass a limit of the silo's policy; nothing was released."""


class PolicyRefused(PrivacyError):
    """The silo's policy does not allow what was asked; nothing was touched."""


class LedgerError(PrivacyError):
    """A ledger is damaged, in use, closed, or cannot be written; nothing was released."""


class BundleError(SilorecError):
    """A bundle is not what its signer made, was signed by nobody who is trusted, or does not fit together; it was not used."""


class ServingError(SilorecError):
    """A request for recommendations cannot be answered as it stands, or the service cannot be started or reached."""


class ConsortiumError(SilorecError):
    """A key, certificate, invitation or roster is expired, revoked, foreign or damaged; it was not used."""


class FederationError(SilorecError):
    """A round cannot go on: too few silos answered, or their updates do not fit."""


class RoundFailed(FederationError):
    """Too few silos answered in a round; ``again`` says whether trying it again may help and costs no silo anything."""

    def __init__(self, message: str, *, again: bool = True) -> None:
        super().__init__(message)
        self.again = again


class SecAggError(FederationError):
    """A message of secure aggregation is forged, replayed, altered or does not fit; no sum was made of it."""


class ErrorCode(IntEnum):
    """Why a silo did not answer with an update. Codes start at 1000: Flower's own end below."""

    INTERNAL = 1000
    BAD_REQUEST = 1001
    MANIFEST_MISMATCH = 1002
    BUDGET_EXHAUSTED = 1003
    DATA_UNAVAILABLE = 1004
    POLICY_REFUSED = 1005
    LEDGER_UNAVAILABLE = 1006
    REPLAYED = 1007
    SECAGG_REFUSED = 1008
