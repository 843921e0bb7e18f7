"""What every secure sum of a run must keep to, from public numbers: how many silos it takes, and whose honesty is counted on.

Both sides compute these rules from the configuration. A silo holds the coordinator to its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from common.config import Config
from common.errors import ConfigError, SecAggError
from common.secagg.graph import SMALL, Plan, complete, plan, portion

MIN_SILOS = 3


@dataclass(frozen=True)
class Rules:
    """The rules of sums over ``silos`` silos, of which ``dropout`` may vanish and ``corrupt`` collude with the coordinator.

    Parameters
    ----------
    silos:
        In the roster, n.
    dropout, corrupt:
        Shares of n; what they come to is rounded down.

    Raises
    ------
    ConfigError
        If there are too few silos to hide one among others, or a share is none.
    """

    silos: int
    dropout: float = 1 / 3
    corrupt: float = 0.1

    def __post_init__(self) -> None:
        if self.silos < MIN_SILOS:
            raise ConfigError(
                f"secure aggregation hides a silo among others and needs {MIN_SILOS} of them, not {self.silos}; "
                "take aggregation.method = 'plain'"
            )
        for name in ("dropout", "corrupt"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: a share of the silos is from 0 and below 1, not {getattr(self, name)!r}")
        self.plan(self.silos)

    @classmethod
    def of(cls, config: Config) -> Rules:
        """As the configuration says."""
        n = len(config.federation.declared_users) or config.partition.silos
        return cls(n, config.aggregation.dropout, config.aggregation.corrupt)

    @property
    def least(self) -> int:
        """A sum over fewer silos is not made."""
        return self.silos - portion(self.dropout, self.silos)

    @property
    def corrupted(self) -> int:
        """Most silos that collude with the coordinator."""
        return portion(self.corrupt, self.silos)

    @property
    def honest(self) -> int:
        """Silos in every sum whose shares of noise are counted on in mode ``distributed``.

        Each silo knows its own share and sees what becomes of the sum. So unless ``corrupt`` is 0, which says that no silo looks,
        at least one of them is not counted, however few there are.
        """
        return self.least - (max(1, self.corrupted) if self.corrupt else 0)

    def plan(self, advertised: int) -> Plan:
        """Degree, threshold and quorum of a sum for which ``advertised`` silos have shown their keys.

        Raises
        ------
        SecAggError
            If they are fewer than :attr:`least`, or more than there are.
        ConfigError
            If no plan keeps what the shares promise.
        """
        if not self.least <= advertised <= self.silos:
            raise SecAggError(f"{advertised} of {self.silos} silos are there; a sum takes {self.least} or more")
        corrupt = float(Fraction(self.corrupted, advertised))
        if advertised <= SMALL:
            found = complete(advertised, self.least, corrupt=corrupt)
            if found.quorum > self.least:
                raise ConfigError(
                    f"of {self.silos} silos {self.corrupted} may collude and {self.silos - self.least} vanish: the {self.least} "
                    f"left are no quorum of {found.quorum}, which rules out two different sets of survivors; lower "
                    "aggregation.dropout or aggregation.corrupt"
                )
            return found
        return plan(advertised, dropout=float(Fraction(advertised - self.least, advertised)), corrupt=corrupt)
