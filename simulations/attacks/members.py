"""Was this user in the training data? Membership inference against a silo's users, with few shadow models.

Each user of a silo is put into the training data by a fair coin, a run is trained on those who are in, and the attacker gets the
adapter that is handed out and everybody's history. The attacker also trains *shadow models*, by the same procedure, on halves of
the users that they choose by coins of their own, and compares how well target and shadows predict each user. Two ways to compare:

* **LiRA**, offline (Carlini et al. 2022, arXiv 2112.03570): a user's logit-scaled confidence under shadows that were trained
  *without* the user is taken as normal; the score is how far out the target's confidence lies.
* **RMIA** (Zarifzadeh, Liu & Shokri 2024, arXiv 2312.03262): how often the user's likelihood ratio passes that of another user.
  Made for few shadows. ``rmia`` also uses shadows that were trained with the user; ``rmia-offline`` only those without.

The signal of a user is the mean cross-entropy of the latest window, ``l``, so that ``p = exp(-l)`` is the geometric mean of the
probabilities of the items that came.

What it shows about epsilon is said twice. ``one_run`` is a bound that holds for one training run, because coins are fair and
independent (Steinke et al. 2023). ``implied`` is what the rates would mean if every user came from a training run of their own;
it is how such figures are usually stated, and it is no bound here. A weak attack is no evidence of privacy: both come with their
ceiling.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.errors import PrivacyError
from common.privacy.accountant import epsilon
from common.privacy.audit.one_run import OneRunResult, audit_scores
from common.privacy.audit.roc import RateAtFpr, Roc, clopper_pearson, roc
from common.privacy.plan import PrivacyPlan
from simulations.attacks.claims import check_attackable
from simulations.attacks.target import check_fits, mean_losses, some_users, trained_adapter
from simulations.watch import Silent, Watch

if TYPE_CHECKING:
    from client.silo_data import SiloData

Method = Literal["rmia", "rmia-offline", "lira"]
METHODS: tuple[Method, ...] = get_args(Method)
Direction = Literal["members", "non-members"]

#: False positive rates at which an attack is judged.
FALSE_POSITIVE_RATES = (0.01, 0.001)

#: Points of a ROC that are kept for plots.
ROC_POINTS = 200

#: Offline scales that are tried, as in the authors' experiments.
SCALES = tuple(round(0.1 * step, 1) for step in range(11))


@dataclass(frozen=True)
class ImpliedEpsilon:
    """What rates mean for epsilon if all guesses were independent, at ``confidence``; see :func:`implied_epsilon`.

    ``direction`` is ``members`` for ``log((TPR - delta) / FPR)`` and ``non-members`` for ``log((TNR - delta) / FNR)``, ``rate``
    the FPR or FNR that was allowed. ``ceiling`` is the largest value that so many users could have given.
    """

    epsilon_lower: float
    ceiling: float
    direction: Direction
    rate: float
    delta: float
    confidence: float


@dataclass(frozen=True)
class MembershipResult:
    """Outcome of one attack.

    Parameters
    ----------
    claimed_epsilon:
        Of the whole run at ``delta``; None where nothing is protected.
    users, members:
        How many the attack guessed about, and how many of them were trained on. ``unmeasured`` users have too little history to
        be told from anybody and are left out.
    loss_members, loss_non_members:
        Mean cross-entropy under the target in nats; their difference is the gap that an attack lives on.
    offline_scale:
        ``a`` of ``rmia-offline``, chosen by attacking a shadow model; else None.
    false_positive_rate, true_positive_rate:
        The ROC, thinned for plots.
    rates:
        True positives at 1 % and 0.1 % false positives.
    """

    method: Method
    mode: str
    claimed_epsilon: float | None
    delta: float
    shadows: int
    users: int
    members: int
    unmeasured: int
    confidence: float
    loss_members: float
    loss_non_members: float
    offline_scale: float | None
    auc: float
    auc_low: float
    auc_high: float
    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]
    rates: tuple[RateAtFpr, ...]
    one_run: OneRunResult
    implied: ImpliedEpsilon

    @property
    def non_members(self) -> int:
        return self.users - self.members

    def sentences(self) -> list[str]:
        """What a privacy officer should read."""
        claim = (
            "no protection" if self.claimed_epsilon is None else f"epsilon {self.claimed_epsilon:.3g} at delta {self.delta:.2g}"
        )
        above = self.auc_low > 0.5
        return [
            f"{self.method} with {self.shadows} shadow models against {self.users} users, {self.members} of them members; the "
            f"run claims {claim}.",
            f"A member is ranked above a non-member with probability {self.auc:.3f} ({self.confidence:.0%} interval "
            f"{self.auc_low:.3f} to {self.auc_high:.3f}): {'better than' if above else 'not distinguishable from'} chance.",
            *(rate.sentence for rate in self.rates),
            self.one_run.sentence.replace("canaries", "users"),
            f"If every user came from a training run of their own, the rates would mean epsilon above "
            f"{self.implied.epsilon_lower:.2f} (at most {self.implied.ceiling:.2f} could be seen). They do not, so this is an "
            "indication and no bound.",
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"non_members": self.non_members, "sentences": self.sentences()}


@dataclass(frozen=True, eq=False)
class Signals:
    """What target and shadows tell of each user that can be told from others.

    Parameters
    ----------
    losses:
        float64 ``(m, 1 + shadows)``, mean cross-entropy in nats; the target first.
    inside:
        bool of the same shape: who was in which model's data.
    unmeasured:
        How many more users there were, with nothing to predict.
    """

    losses: NDArray[np.float64]
    inside: NDArray[np.bool_]
    unmeasured: int


def attack_members(
    config: Config,
    data: SiloData,
    plan: PrivacyPlan,
    *,
    shadows: int = 8,
    method: Method = "rmia",
    seed: int,
    confidence: float = 0.95,
    progress: Watch | None = None,
) -> MembershipResult:
    """Train a target and ``shadows`` shadow models of this silo and guess who was in the target's data.

    Parameters
    ----------
    plan:
        Of a silo with half of ``data``'s users: that is how many each model is trained on.
    shadows:
        An even number, since shadows come in pairs that share out the users (:func:`coins`). At least 2, and 4 for ``lira`` and
        ``rmia-offline``, which need two shadows without each user.
    seed:
        Decides the coins, and in mode ``none`` the training.

    Raises
    ------
    PrivacyError
        If the arguments do not fit, or there are too few users.
    """
    _check(method, shadows)
    signals = member_signals(config, data, plan, shadows=shadows, seed=seed, progress=progress)
    return judge_members(signals, plan, method=method, confidence=confidence)


def member_signals(
    config: Config, data: SiloData, plan: PrivacyPlan, *, shadows: int, seed: int, progress: Watch | None = None
) -> Signals:
    """The training that an attack needs: the part that takes time. One set of signals serves all methods."""
    check_attackable(plan.mode)
    check_fits(config, data, plan)
    watch = progress or Silent()
    rng = np.random.default_rng(seed)
    inside = coins(len(data.histories), shadows, rng)
    losses = np.empty(inside.shape)
    watch.stage("membership inference", inside.shape[1])
    for model in range(inside.shape[1]):
        chosen = some_users(data, np.flatnonzero(inside[:, model]))
        adapter = trained_adapter(config, chosen, plan, seed=int(rng.integers(2**31)))
        losses[:, model] = mean_losses(config, data, adapter)
        watch.step(model + 1)
    measured = np.isfinite(losses).all(axis=1)
    return Signals(losses[measured], inside[measured], int((~measured).sum()))


def judge_members(signals: Signals, plan: PrivacyPlan, *, method: Method = "rmia", confidence: float = 0.95) -> MembershipResult:
    """Guess from what was trained, and say how well that went."""
    target, shadows = signals.losses[:, 0], signals.losses[:, 1:]
    member, inside = signals.inside[:, 0], signals.inside[:, 1:]
    _check(method, shadows.shape[1])
    if min(member.sum(), (~member).sum()) < 2:
        raise PrivacyError(
            f"{len(member)} users with something to predict are too few to attack: it takes two members and two non-members"
        )
    scale = choose_scale(shadows, inside) if method == "rmia-offline" else None
    if method == "lira":
        scores = lira_scores(target, shadows, inside)
    else:
        scores = rmia_scores(target, shadows, inside, offline_scale=scale)
    curve = roc(scores, member, confidence=confidence)
    fpr, tpr = thinned(curve)
    spent = epsilon(plan.all_events(), plan.delta)
    return MembershipResult(
        method=method,
        mode=plan.mode,
        claimed_epsilon=spent if math.isfinite(spent) else None,
        delta=plan.delta,
        shadows=shadows.shape[1],
        users=len(member),
        members=int(member.sum()),
        unmeasured=signals.unmeasured,
        confidence=confidence,
        loss_members=float(target[member].mean()),
        loss_non_members=float(target[~member].mean()),
        offline_scale=scale,
        auc=curve.auc,
        auc_low=curve.auc_low,
        auc_high=curve.auc_high,
        false_positive_rate=fpr,
        true_positive_rate=tpr,
        rates=tuple(curve.tpr_at(rate) for rate in FALSE_POSITIVE_RATES),
        one_run=audit_scores(scores, member, delta=plan.delta, confidence=confidence),
        implied=implied_epsilon(scores, member, delta=plan.delta, confidence=confidence),
    )


def _check(method: Method, shadows: int) -> None:
    if method not in METHODS:
        raise PrivacyError(f"method = {method!r}, must be one of {', '.join(METHODS)}")
    least = 2 if method == "rmia" else 4
    if shadows < least or shadows % 2:
        raise PrivacyError(f"shadows = {shadows}: {method} needs an even number, at least {least}")


def coins(n_users: int, shadows: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Who is in which model, ``(n_users, 1 + shadows)``: first the target, then pairs of shadows that share out the users."""
    inside = np.empty((n_users, 1 + shadows), dtype=np.bool_)
    inside[:, 0] = rng.random(n_users) < 0.5
    for model in range(1, 1 + shadows, 2):
        inside[:, model] = rng.random(n_users) < 0.5
        inside[:, model + 1] = ~inside[:, model]
    return inside


def lira_scores(target: NDArray[np.float64], shadows: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Offline LiRA: ``-log Pr[Z > φ]`` with ``Z ~ N(μ_out, σ_out²)``, which orders users as the paper's ``1 - Pr[Z > φ]``.

    ``φ = log(p / (1 - p))``. The variance is one for all users, pooled around each user's own mean: with few shadows the paper,
    too, prefers a global one.

    Parameters
    ----------
    target, shadows, inside:
        Mean losses ``(m,)`` under the target and ``(m, K)`` under the shadows; whether the user was in that shadow's data.
    """
    from scipy.stats import norm

    out = ~inside
    confidence, shadow = _logit_confidence(target), _logit_confidence(shadows)
    n_out = out.sum(axis=1)
    mean = np.where(out, shadow, 0.0).sum(axis=1) / n_out
    squares = np.where(out, (shadow - mean[:, None]) ** 2, 0.0).sum()
    std = math.sqrt(squares / max(int((n_out - 1).sum()), 1))
    return -np.asarray(norm.logsf(confidence, mean, max(std, 1e-12)))


def rmia_scores(
    target: NDArray[np.float64],
    shadows: NDArray[np.float64],
    inside: NDArray[np.bool_],
    *,
    gamma: float = 1.0,
    offline_scale: float | None = None,
) -> NDArray[np.float64]:
    """RMIA: the share of other users ``z`` with ``(Pr(x|θ)/Pr(x)) / (Pr(z|θ)/Pr(z)) >= gamma``.

    ``Pr(z)`` is the mean over all shadows, of which half were trained with ``z``. ``Pr(x)`` is half the mean over shadows with
    and half that over shadows without the user; offline it is ``((1 + a) Pr(x)_out + (1 - a)) / 2`` with ``a = offline_scale``,
    the authors' linear guess at how far training raises a probability. With ``gamma = 1`` users are ranked by their own ratio.

    Parameters
    ----------
    target, shadows, inside:
        As for :func:`lira_scores`.
    """
    p, of_shadows = np.exp(-target), np.exp(-shadows)
    mean_out = np.where(inside, 0.0, of_shadows).sum(axis=1) / (~inside).sum(axis=1)
    if offline_scale is None:
        mean_in = np.where(inside, of_shadows, 0.0).sum(axis=1) / inside.sum(axis=1)
        prior = (mean_in + mean_out) / 2
    else:
        prior = ((1 + offline_scale) * mean_out + (1 - offline_scale)) / 2
    of_x, of_z = p / prior, p / of_shadows.mean(axis=1)
    passed = np.searchsorted(np.sort(of_z), of_x / gamma, side="right")
    itself = of_z <= of_x / gamma
    return np.asarray((passed - itself) / (len(p) - 1))


def choose_scale(shadows: NDArray[np.float64], inside: NDArray[np.bool_]) -> float:
    """The offline scale with which an attack on the first shadow succeeds best; the target has no part in the choice."""
    others = slice(2, None)  # the second shadow was trained on exactly those whom the first one was not

    def success(scale: float) -> float:
        scores = rmia_scores(shadows[:, 0], shadows[:, others], inside[:, others], offline_scale=scale)
        return roc(scores, inside[:, 0]).auc

    return max(SCALES, key=success)


def implied_epsilon(
    scores: NDArray[np.float64], member: NDArray[np.bool_], *, delta: float, confidence: float = 0.95
) -> ImpliedEpsilon:
    """Largest epsilon that rates of errors refute when guesses are independent, in both directions.

    Differential privacy for adding and removing a user asks ``TPR <= e^ε FPR + δ`` and ``TNR <= e^ε FNR + δ`` of every attack
    (Kairouz, Oh & Viswanath 2015). Thresholds are set by the rates of :data:`FALSE_POSITIVE_RATES`, once among non-members for
    the first and once among members for the second inequality; rates enter by Clopper & Pearson's bounds, and the four share the
    error probability. Thresholds are order statistics, for which these bounds are exact.
    """
    tests = 2 * len(FALSE_POSITIVE_RATES)
    each = 1 - (1 - confidence) / tests
    found: list[tuple[float, Direction, float]] = []
    curves: dict[Direction, Roc] = {
        "members": roc(scores, member, confidence=each),
        "non-members": roc(-scores, ~member, confidence=each),
    }
    for direction, curve in curves.items():
        for rate in FALSE_POSITIVE_RATES:
            at = curve.tpr_at(rate)
            found.append((_log_ratio(at.low, at.fpr_high, delta), direction, rate))
    best = max(found)
    top = max(
        _log_ratio(clopper_pearson(hits, hits, each)[0], clopper_pearson(0, misses, each)[1], delta)
        for hits, misses in ((curve.n_members, curve.n_non_members) for curve in curves.values())
    )
    return ImpliedEpsilon(best[0], top, best[1], best[2], delta, confidence)


def thinned(curve: Roc, points: int = ROC_POINTS) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """False and true positive rates of at most ``points`` points of a ROC: half spread evenly, half by orders of magnitude."""
    last = len(curve.fpr) - 1
    if last < points:
        return tuple(curve.fpr.tolist()), tuple(curve.tpr.tolist())
    even = np.linspace(0, last, points // 2)
    early = np.geomspace(1, last, points - points // 2) - 1
    keep = np.unique(np.rint(np.concatenate([even, early])).astype(np.int64))
    return tuple(curve.fpr[keep].tolist()), tuple(curve.tpr[keep].tolist())


def _logit_confidence(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """``log(p / (1 - p))`` of ``p = exp(-loss)``, without loss of digits near either end."""
    return -losses - np.log(-np.expm1(-np.maximum(losses, 1e-300)))


def _log_ratio(hit: float, miss: float, delta: float) -> float:
    return max(0.0, math.log((hit - delta) / miss)) if hit > delta and miss > 0 else 0.0
