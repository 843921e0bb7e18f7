"""Canaries against the real training: made-up users, each in the data by a fair coin, and how well the coins can be told after.

One run audits itself (Steinke, Nasr & Jagielski 2023). Two kinds of canaries:

``gradient``
    White box, the adversary of the accounting: sees every update, chose the canaries' gradients
    (:mod:`simulations.attacks.planting`), and knows everything else. Strong enough to come near a claim, and to test the
    mechanism itself.
``synthetic-users``
    Black box: users with made-up histories, and an adversary who sees the adapter that is handed out, and nothing else. The score
    is how much less surprising a canary's own sequence has become. Weak: what it does not find may still be there.

A silo of canaries alone is a data set like any other, so the claim holds for it, and nobody else's data hide them. Real users can
be put beside them as a background.

The verdict rests on two lower bounds and a test. Steinke et al.'s bound refutes a claim of epsilon, whatever the mechanism. The
f-DP bound refutes the claimed mechanism's whole curve. The fit of the mechanism compares what each gradient canary shows with the
distribution that the plan promises; it also sees what costs no privacy, such as too much noise.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.errors import PrivacyError
from common.privacy.audit.mechanism import MechanismFit, mechanism_fit
from common.privacy.audit.one_run import ceiling
from common.privacy.events import Event, PoissonGaussianSteps
from common.privacy.plan import PrivacyPlan
from simulations.attacks.claims import Claim, check_attackable
from simulations.attacks.guessing import OneRunBound, one_run_bound
from simulations.attacks.planting import (
    choose_canaries,
    log_likelihood_ratio,
    made_up_histories,
    train_with_canaries,
    with_users,
)
from simulations.watch import Silent, Watch

if TYPE_CHECKING:
    from client.silo_data import SiloData

Kind = Literal["gradient", "synthetic-users"]
Verdict = Literal["claim refuted", "not the mechanism claimed", "consistent", "cannot say"]

#: The fit of the mechanism wants more certainty than the bounds do, which hardly ever fail a sound run: once in ten thousand.
FIT_CONFIDENCE = 0.9999


@dataclass(frozen=True, eq=False)
class CanaryResult:
    """What ``n`` canaries showed of one run.

    Parameters
    ----------
    scores, included:
        ``(n,)``: higher for canaries that look included; whether they were.
    claim:
        The releases in which canaries took part: all rounds of training; for ``synthetic-users`` the count too, where there is
        one.
    bound:
        Steinke et al.'s, for any mechanism.
    curve_p_value:
        Of the claimed mechanism's curve, given the right guesses.
    epsilon_lower_fdp:
        Largest epsilon refuted among the claimed mechanism with more or less noise.
    ceiling:
        Of Steinke et al.'s bound: what no audit with so many canaries can pass, whatever its number of guesses.
    fit:
        Of the mechanism; None where it cannot be tested, and ``no_fit`` says why.
    """

    kind: Kind
    scores: NDArray[np.float64]
    included: NDArray[np.bool_]
    claim: Claim
    bound: OneRunBound
    curve_p_value: float
    epsilon_lower_fdp: float
    ceiling: float
    fit: MechanismFit | None
    no_fit: str
    background: int
    confidence: float
    seed: int
    seconds: float

    @property
    def n(self) -> int:
        return len(self.scores)

    @property
    def epsilon_lower(self) -> float:
        """Steinke et al.'s lower bound on epsilon at the claim's delta."""
        return self.bound.epsilon

    @property
    def reached(self) -> float:
        """The lower bound as a share of the claim."""
        return self.epsilon_lower / self.claim.epsilon

    @property
    def refuted_by(self) -> tuple[str, ...]:
        """What refutes the claimed epsilon: ``epsilon`` (Steinke et al.'s bound) and ``curve`` (f-DP), in this order."""
        found = {
            "epsilon": self.epsilon_lower > self.claim.epsilon,
            "curve": self.curve_p_value < 1 - self.confidence,
        }
        return tuple(name for name, refutes in found.items() if refutes)

    @property
    def verdict(self) -> Verdict:
        """``cannot say`` where Steinke et al.'s bound stays below the claim even if all guesses are right, and nothing else
        speaks against the claim."""
        if self.refuted_by:
            return "claim refuted"
        if self.fit is not None and not self.fit.holds:
            return "not the mechanism claimed"
        return "consistent" if self.bound.ceiling > self.claim.epsilon else "cannot say"

    @property
    def sentence(self) -> str:
        """The verdict and its reasons, for a report."""
        said = f"The claim of epsilon = {self.claim.epsilon:.2f} at delta = {self.claim.delta:g}"
        limit = f"With {self.n:,} canaries the bound for any mechanism cannot pass {self.bound.ceiling:.2f} here"
        if self.verdict == "claim refuted":
            how = {"epsilon": "by the bound for any mechanism", "curve": "by the curve of the claimed mechanism"}
            parts = [f"{said} is refuted {' and '.join(how[name] for name in self.refuted_by)}.", self._shown()]
        elif self.verdict == "not the mechanism claimed":
            parts = [f"{said} is not refuted, but what ran is not what the plan says.", self._shown()]
        elif self.verdict == "cannot say":
            parts = [
                f"{said} is out of reach: {limit[0].lower()}{limit[1:]}, nor {self.ceiling:.2f} in any audit.",
                "The curve of the claimed mechanism is not contradicted.",
                self._shown(),
            ]
        else:
            parts = [f"{said} is not contradicted.", self._shown(), f"{limit}."]
        if self.fit is None:
            parts.append(f"The fit of the mechanism was not tested: {self.no_fit}.")
        elif self.fit.holds:
            parts.append("What the canaries showed fits the claimed noise, clip and sampling.")
        else:
            least = min(test.p_corrected for test in self.fit.tests)
            parts.append(
                f"What the canaries showed does not fit the claimed {' and '.join(self.fit.violated)} (p = {least:.1g})."
            )
        if self.kind == "synthetic-users" and self.verdict != "claim refuted":
            parts.append("Made-up users are a weak attack: a small bound is no evidence of privacy.")
        return " ".join(parts)

    def _shown(self) -> str:
        who = {"gradient": "gradient canaries", "synthetic-users": "made-up users"}[self.kind]
        found = f"{self.n:,} {who}, {int(self.included.sum()):,} of them in the data: "
        found += f"{self.bound.best.correct} of {self.bound.best.n} guesses were right, "
        if self.epsilon_lower_fdp == 0:
            return found + "which refutes no epsilon."
        any_at_all = f"is above {self.epsilon_lower:.2f}" if self.epsilon_lower else "may be anything"
        return found + (
            f"so epsilon {any_at_all} for any mechanism, and is above {self.epsilon_lower_fdp:.2f} for the claimed one with more "
            f"or less noise ({self.confidence:.0%} confidence each)."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a report, infinite ones as None; scores and coins are left out."""
        from simulations.result import finite

        values = {
            "kind": self.kind,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "canaries": self.n,
            "included": int(self.included.sum()),
            "background": self.background,
            "claim": {
                "epsilon": self.claim.epsilon,
                "method": self.claim.method,
                "epsilon_pld": self.claim.epsilon_pld,
                "delta": self.claim.delta,
                "events": len(self.claim.events),
            },
            "confidence": self.confidence,
            "epsilon_lower": self.epsilon_lower,
            "epsilon_lower_fdp": self.epsilon_lower_fdp,
            "reached": self.reached,
            "guesses": self.bound.best.n,
            "correct": self.bound.best.correct,
            "grid": [guesses.n for guesses in self.bound.tried],
            "ceiling": self.bound.ceiling,
            "ceiling_of_any_audit": self.ceiling,
            "curve_p_value": self.curve_p_value,
            "refuted_by": list(self.refuted_by),
            "fit": None if self.fit is None else asdict(self.fit),
            "no_fit": self.no_fit,
            "seed": self.seed,
            "seconds": self.seconds,
        }
        return dict(finite(values))


def audit_canaries(
    config: Config,
    plan: PrivacyPlan,
    *,
    n: int = 1000,
    kind: Kind = "gradient",
    seed: int,
    background: SiloData | None = None,
    confidence: float = 0.95,
    watch: Watch | None = None,
) -> CanaryResult:
    """Train one silo with canaries as ``plan`` says and compare what they show with what the plan claims.

    Parameters
    ----------
    config:
        Model and training. With ``training.optimizer = "sgd"`` gradient canaries show all that an update holds and the fit is
        tested; other optimisers distort, so the bounds are weaker, and valid.
    n:
        Of canaries. More show more as long as ``n * plan.delta`` is small: Steinke et al.'s bound pays for delta that many times,
        and from ``n * plan.delta`` near 1 its ceiling sinks.
    seed:
        Draws the canaries and their coins, for the auditor alone. Samples and noise are the training's own.
    background:
        Real users beside the canaries.

    Raises
    ------
    PrivacyError
        If nothing is claimed (mode ``none``, or no round), or more gradient canaries are asked for than fit.
    """
    check_attackable(plan.mode)
    if plan.mode == "none" or plan.rounds < 1:
        raise PrivacyError(
            f"privacy.mode = {plan.mode!r} with {plan.rounds} rounds claims nothing for training that canaries could contradict"
        )
    if kind not in ("gradient", "synthetic-users"):
        raise PrivacyError(f"kind = {kind!r}, must be gradient or synthetic-users")
    if n < 1:
        raise PrivacyError(f"{n} canaries: at least 1 is needed")
    began, watch = time.monotonic(), watch or Silent()
    rng = np.random.default_rng(seed)
    included = rng.random(n) < 0.5
    events: list[Event] = [plan.train_event(number) for number in range(1, plan.rounds + 1)]
    fit: MechanismFit | None = None
    if kind == "gradient":
        scores, fit, no_fit = _gradient_scores(config, plan, included, events, rng, background, watch)
    else:
        scores, no_fit = _loss_scores(config, plan, included, rng, background, watch), "made-up users show no sum of gradients"
        events = [*([plan.count_event()] if config.model.bias_weight else []), *events]

    watch.stage("guessing")
    claim = Claim(tuple(events), plan.delta, config.privacy.accountant)
    bound = one_run_bound(scores, included, delta=plan.delta, confidence=confidence)
    return CanaryResult(
        kind=kind,
        scores=scores,
        included=included,
        claim=claim,
        bound=bound,
        curve_p_value=claim.p_value(bound.tried, n),
        epsilon_lower_fdp=claim.epsilon_lower(bound.tried, n, confidence),
        ceiling=ceiling(n, confidence, delta=plan.delta),
        fit=fit,
        no_fit=no_fit,
        background=0 if background is None else len(background.histories),
        confidence=confidence,
        seed=seed,
        seconds=time.monotonic() - began,
    )


def _gradient_scores(
    config: Config,
    plan: PrivacyPlan,
    included: NDArray[np.bool_],
    events: list[Event],
    rng: np.random.Generator,
    background: SiloData | None,
    watch: Watch,
) -> tuple[NDArray[np.float64], MechanismFit | None, str]:
    """Scores, and the fit or why there is none."""
    canaries = choose_canaries(config, plan, len(included), rng)
    watch.stage("training with canaries", plan.rounds)
    seen = train_with_canaries(config, plan, canaries, included, rng, background=background, watch=watch)
    if config.training.optimizer != "sgd":
        return seen.sum(axis=0), None, f"{config.training.optimizer} does not add gradients up; audit with sgd"
    scores = log_likelihood_ratio(seen, plan)
    if background is not None:
        return scores, None, "real users move the canaries' numbers too; audit without a background"
    if min(int(included.sum()), int((~included).sum())) < 10:
        return scores, None, "it takes 10 canaries of each kind"
    steps = [event for event in events if isinstance(event, PoissonGaussianSteps)]
    return scores, mechanism_fit(seen.sum(axis=0) * plan.max_grad_norm, included, claimed=steps, confidence=FIT_CONFIDENCE), ""


def _loss_scores(
    config: Config,
    plan: PrivacyPlan,
    included: NDArray[np.bool_],
    rng: np.random.Generator,
    background: SiloData | None,
    watch: Watch,
) -> NDArray[np.float64]:
    """By how much each canary's own sequence has become less surprising, in nats per prediction."""
    from dataclasses import replace

    from common.model.resident import resident
    from simulations.attacks.target import mean_losses, trained_adapter

    home = resident(config)
    histories = made_up_histories(len(included), config.model.window + 1, home.model.n_items, background, rng)
    there = tuple(history for history, is_in in zip(histories, included, strict=True) if is_in)
    watch.stage("training with made-up users")
    adapter = trained_adapter(config, with_users(config, there, background), plan, seed=0)
    canaries = with_users(config, histories, None)
    if background is not None:
        canaries = replace(canaries, item_mask=background.item_mask)
    after = mean_losses(config, canaries, adapter)
    return mean_losses(config, canaries, home.start) - after
