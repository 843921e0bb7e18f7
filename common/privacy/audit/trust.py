"""Who must be trusted for a claim of privacy, and who need not be.

In mode ``silo`` that is short: nobody outside of the silo. In mode ``distributed`` each silo adds a share of the noise, and the
claim is made of two figures: one against whoever sees sums over silos, which counts on the shares of some honest silos, and one
for the case that all other silos collude (:class:`Sharing`).
"""

from __future__ import annotations

from dataclasses import dataclass

from common.report.words import epsilon as rounded_up
from common.report.words import plural

#: Who must be trusted, for the guarantee of a private run.
TRUSTED: tuple[str, ...] = (
    "each silo's own machine, its operating system and whoever administers them",
    "the silo's software: that what its signed entries say was charged is what was computed (tests and canaries try this)",
    "PyTorch, Opacus' per-user gradients, NumPy and dp_accounting, as far as tests and audits do not reach",
    "the cipher behind the noise, and the operating system's source of randomness",
    "that declared numbers of users are not derived from the data in a way that matters",
)

#: Who need not be.
NOT_TRUSTED: tuple[str, ...] = (
    "the coordinator, whatever it asks and whatever adapters it sends",
    "the other silos",
    "whoever gets the model, now or later, with any other knowledge",
    "the network, as far as reading goes",
)


@dataclass(frozen=True)
class Sharing:
    """Of mode ``distributed``: on whose noise the first figure counts, and what is left without it.

    Parameters
    ----------
    honest:
        Silos in every sum whose shares of noise are counted on; the silo that the figure speaks of is one of them.
    colluding:
        Other silos that may collude with the coordinator; None where the configuration is not known.
    epsilon_if_others_collude:
        What is left if all other silos do; None where that is unbounded.
    """

    honest: int
    colluding: int | None
    epsilon_if_others_collude: float | None

    @property
    def in_words(self) -> str:
        """Whom the first figure holds against, and the second figure."""
        left = self.epsilon_if_others_collude
        share = "by the silo's own share of the noise"
        otherwise = "there is no bound" if left is None else f"epsilon is {rounded_up(left)}, {share}"
        many = "no other silo" if self.colluding == 0 else f"at most {plural(self.colluding or 0, 'other silo')}"
        collude = "" if self.colluding is None else f", and with {many} colluding"
        return (
            "It holds against the coordinator and whoever gets the model, who see only sums with the noise of at least "
            f"{plural(self.honest, 'honest silo')} in them{collude}. If all other silos collude with the coordinator, "
            f"{otherwise}."
        )


def trusted(sharing: Sharing | None) -> tuple[str, ...]:
    """Who must be trusted for the first figure of a private run."""
    if sharing is None:
        return TRUSTED
    others = sharing.honest - 1
    share = f"{plural(others, 'other silo')} in every sum: that each adds its share of the noise, and keeps it to itself"
    roster = "the roster of keys: that each key is its silo's, or the coordinator could play silos of its own"
    return (*([share, roster] if others else []), *TRUSTED)


def not_trusted(sharing: Sharing | None) -> tuple[str, ...]:
    """Who need not be."""
    if sharing is None:
        return NOT_TRUSTED
    coordinator, _, *rest = NOT_TRUSTED
    silos = []
    if sharing.colluding != 0:
        many = "some" if sharing.colluding is None else str(sharing.colluding)
        silos = [f"{many} of the other silos, colluding with the coordinator"]
    return (f"{coordinator}, as it sees sums only", *silos, *rest)


def own_share(sharing: Sharing) -> list[str]:
    """What is not covered where no colluding silo is allowed for: every silo knows its own share of the noise."""
    if sharing.colluding:
        return []
    return [
        "Another silo that looks into the sums: it knows its own share of the noise, so it counts as one that colludes, whether "
        "it tells anybody or not, and this run allows for none (aggregation.corrupt)."
        if sharing.colluding == 0
        else "Another silo that looks into the sums: it knows its own share of the noise, so it counts as one that colludes. "
        "Whether the run allows for one is in its configuration, which is not here."
    ]
