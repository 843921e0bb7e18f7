"""What one update tells a curious coordinator of a silo's users: unprotected, masked and private, side by side.

Two questions, each asked of the same silos in the three views of :mod:`simulations.attacks.views`: which items did the users of a
small silo meet (:mod:`simulations.attacks.recovery`), and which of a pool of candidates were in a larger one
(:mod:`simulations.attacks.candidates`). The truth comes from the simulated silo. The trainer draws windows of histories at
random, so an update need not touch every item that counts as met here: the question is what the users did.

A view is judged by its best reader, so intervals and p-values are corrected for the number of readers; a finding is called more
than chance only where its p-value also pays for the number of findings (Bonferroni, both times). "Private" is one round only; a
run has several, and their budget adds up (:mod:`simulations.attacks.members` looks at whole runs).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.errors import PrivacyError
from common.privacy.accountant import epsilon
from common.privacy.audit.gaussian_bound import check_level
from common.privacy.plan import PrivacyPlan
from simulations.attacks.candidates import Users, attack_candidates
from simulations.attacks.claims import check_attackable
from simulations.attacks.recovery import AttackedSilo, Guessing, Items, attack_silo, item_reading, summarise
from simulations.attacks.target import check_fits, some_users
from simulations.attacks.views import VIEWS, Mask, View, uniform_words, updates
from simulations.watch import Silent, Watch

if TYPE_CHECKING:
    from client.silo_data import SiloData


@dataclass(frozen=True)
class ReconstructionResult:
    """Everything that was measured.

    ``epsilon`` is that of one private update alone at ``delta``; ``left_out`` names readers of items that were not tried, with
    the reason.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    confidence: float
    items: tuple[Items, ...]
    guessing: tuple[Guessing, ...]
    users: tuple[Users, ...]
    left_out: dict[str, str]

    def best_items(self, view: View, users: int) -> Items:
        """The reader that named most items rightly in silos of that many users."""
        return max((r for r in self.items if r.view == view and r.users == users), key=lambda r: (r.precision, r.auc))

    def best_users(self, view: View) -> Users:
        """The reader that told candidates apart best."""
        return max((r for r in self.users if r.view == view), key=lambda r: r.auc)

    def table(self) -> list[dict[str, Any]]:
        """One row a view: precision of named items for each size of silo, and AUC of telling candidates apart."""
        rows = []
        for view in VIEWS:
            row: dict[str, Any] = {"view": view}
            for guess in self.guessing:
                row[f"items_of_{guess.users}"] = self.best_items(view, guess.users).precision
            rows.append(row | {"users_auc": self.best_users(view).auc})
        return rows

    def sentences(self) -> list[str]:
        """What a privacy officer should read, one finding each."""
        level = f"{self.confidence:.0%} interval"
        out = [
            f"The private update is one round of the plan: epsilon {self.epsilon:.3g} at delta {self.delta:.2g}, "
            f"noise multiplier {self.noise_multiplier:.3g}."
        ]
        for guess in self.guessing:
            whose = "one user" if guess.users == 1 else f"{guess.users} users"
            for view in VIEWS:
                best = self.best_items(view, guess.users)
                out.append(
                    f"From one {view} update of a silo of {whose} the coordinator names {best.named} items, and "
                    f"{best.precision:.0%} of the names are right ({level} {best.precision_low:.0%} to "
                    f"{best.precision_high:.0%}; by popularity {guess.popularity:.0%}, at random {guess.random:.0%}): "
                    f"{self._verdict(best.p_value)}."
                )
        for view in VIEWS:
            found = self.best_users(view)
            out.append(
                f"From one {view} update the coordinator ranks a candidate who was in the silo above one who was not with "
                f"probability {found.auc:.3f} ({level} {found.auc_low:.3f} to {found.auc_high:.3f}; {found.present} of "
                f"{found.candidates} candidates were in): {self._verdict(found.p_value)}."
            )
        return out

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"table": self.table(), "sentences": self.sentences()}

    def _verdict(self, p_value: float) -> str:
        findings = len(VIEWS) * (len(self.guessing) + 1)
        if p_value <= (1 - self.confidence) / findings:
            return f"more than chance (p = {p_value:.2g})"
        return f"not distinguishable from chance (p = {p_value:.2g})"


def reconstruct(
    config: Config,
    data: SiloData,
    plan: PrivacyPlan,
    *,
    seed: int,
    silos: int = 40,
    batch: int = 4,
    named: int = 3,
    candidates: int = 200,
    confidence: float = 0.95,
    mask: Mask = uniform_words,
    progress: Watch | None = None,
) -> ReconstructionResult:
    """Attack single updates of small silos made of ``data``'s users, in all three views.

    Parameters
    ----------
    plan:
        Of a private mode; the same for silos of all sizes, since nothing in it may depend on who is there.
    seed:
        Decides who is in which silo and what the unprotected updates' windows are; nothing in private updates depends on it.
    silos:
        How many silos of one user, and how many of ``batch`` users, are attacked; of one user at most as many as there are users.
    named:
        How many items the coordinator names in each silo. Users who have met fewer take no part.
    candidates:
        At most so many people are in the pool.
    mask:
        Makes the masks; a protocol may bring its own.

    Raises
    ------
    PrivacyError
        If the plan is for mode ``none``, or there are too few users with something to find.
    """
    from common.model.adapter import from_vector
    from common.model.resident import resident

    check_attackable(plan.mode)
    if plan.mode == "none":
        raise PrivacyError("reconstruction compares a private update with an unprotected one: give a plan of a private mode")
    if silos < 1 or batch < 2 or named < 1 or candidates < 4:
        raise PrivacyError(
            f"silos = {silos}, batch = {batch}, named = {named}, candidates = {candidates}: at least 1, 2, 1 and 4 are needed"
        )
    check_level(confidence)
    check_fits(config, data, plan)
    least = max(2, named)
    eligible = np.flatnonzero([len(np.unique(history)) >= least for history in data.histories])
    if len(eligible) < max(4, 2 * batch):
        raise PrivacyError(
            f"{len(eligible)} users have met {least} different items, {max(4, 2 * batch)} are needed: attack a larger silo, "
            "or name fewer items"
        )
    watch, rng, home = progress or Silent(), np.random.default_rng(seed), resident(config)
    start = home.start
    watch.stage("reconstruction", 2 * silos + 2)
    try:
        reading = item_reading(config, data, plan, start, rng)
        watch.step(1)
        met = _met(data)
        items: list[Items] = []
        guessing: list[Guessing] = []
        for done, size in ((1, 1), (1 + silos, batch)):
            attacked: list[AttackedSilo] = []
            for users in _deal(eligible, size, silos, rng):
                seen = updates(config, some_users(data, users), plan, start, seed=int(rng.integers(2**31)), mask=mask)
                others = (met.sum(axis=0) - met[users].sum(axis=0)).astype(np.float64)
                attacked.append(attack_silo(seen, _anybody(met[users]), others, reading, named, rng))
                watch.step(done + len(attacked))
            found, guess = summarise(attacked, size, confidence)
            items += found
            guessing.append(guess)
        pool = rng.permutation(eligible)[:candidates]
        told = attack_candidates(
            config, data, plan, start, pool, confidence=confidence, seed=int(rng.integers(2**31)), mask=mask, rng=rng
        )
        watch.step(2 * silos + 2)
    finally:
        from_vector(home.model, start, home.manifest)
    return ReconstructionResult(
        epsilon=epsilon([plan.train_event(1)], plan.delta),
        delta=plan.delta,
        noise_multiplier=plan.noise_multiplier,
        confidence=confidence,
        items=tuple(items),
        guessing=tuple(guessing),
        users=told,
        left_out=reading.left_out,
    )


def _met(data: SiloData) -> NDArray[np.bool_]:
    """``(n_users, n_items)``: who met what."""
    met = np.zeros((len(data.histories), data.n_items), dtype=np.bool_)
    for user, history in enumerate(data.histories):
        met[user, history] = True
    return met


def _anybody(met: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``(n_items,)``: what at least one of some users met."""
    return np.asarray(met.any(axis=0))


def _deal(eligible: NDArray[np.int64], size: int, silos: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Who is in each silo: different users in silos of one, else users who may be in several silos."""
    if size == 1:
        return list(rng.permutation(eligible)[:silos].reshape(-1, 1))
    return [rng.choice(eligible, size, replace=False) for _ in range(silos)]
