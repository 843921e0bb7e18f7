"""What a run's figures mean, in sentences for a person who never saw the project.

Sentences are made from the figures and nothing else, say when a difference is within the margin of error, and round a privacy
guarantee up, never down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.privacy.audit.trust import Sharing
from common.report.words import epsilon, odds, plural, small

OWN_REFERENCES = frozenset({"local-only", "centralised"})
"""References that are our own model."""

_COUNTS = ("Several", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")


@dataclass(frozen=True)
class Metric:
    """One column of the tables: its key in the JSON, its title, decimals, and what it means."""

    key: str
    title: str
    digits: int
    meaning: str


def metrics(k: int) -> tuple[Metric, ...]:
    """All metrics, the most important first."""
    return (
        Metric(
            f"ndcg@{k}",
            f"NDCG@{k}",
            4,
            f"How high the held-out item stands among the first {k} recommendations: 1 at the top, 0.63 in second place, "
            f"0.5 in third, 0 if it is not among them. The main figure of this page.",
        ),
        Metric(f"hr@{k}", f"HR@{k}", 4, f"Hit rate: share of users whose held-out item is among the first {k} recommendations."),
        Metric("mrr", "MRR", 4, "Mean of 1 / rank of the held-out item, without a cut-off."),
        Metric("auc", "AUC", 4, "Share of all other items that rank below the held-out item; 0.5 is chance."),
        Metric(f"coverage@{k}", f"Coverage@{k}", 4, f"Share of the catalogue that is among somebody’s first {k}."),
        Metric(
            f"novelty@{k}",
            f"Novelty@{k}",
            2,
            f"How unusual the first {k} are, in bits: an item that half of the users met has 1 bit, one that 1 % met has 6.6.",
        ),
        Metric(
            f"diversity@{k}",
            f"Diversity@{k}",
            4,
            f"One minus the mean similarity of the first {k} to each other: 0 is all alike, 1 nothing in common.",
        ),
    )


def quality(result: Mapping[str, Any]) -> tuple[str, str]:
    """The headline about quality, and what stands behind it."""
    k = result["k"]
    key = f"ndcg@{k}"
    own = result.get(key)
    if own is None:
        return "Quality was not measured", "The run ended before its model was evaluated."
    hits = result.get(f"hr@{k}")
    behind = (
        [] if hits is None else [f"For {100 * hits:.1f} % of users, the item they chose next is among the first {k} recommended."]
    )
    popular = _reference(result, "popularity")
    if popular is None or not popular.get(key):
        head = f"NDCG@{k} is {own:.4f}"
    else:
        head = _times(own / popular[key])
        behind.append(f"NDCG@{k} is {own:.4f}, a list of the most popular items has {popular[key]:.4f}.")
        intervals = [_interval(source, key) for source in (result, popular)]
        if intervals[0] and intervals[1] and _overlap(intervals[0], intervals[1]):
            behind.append("Their confidence intervals overlap: the difference is not certain.")
    before = (result.get("before_training") or {}).get(key)
    if before is not None:
        behind.append(f"Before training it was {before:.4f}.")
    best = max((r for r in result.get("references") or () if r.get(key) is not None), key=lambda r: r[key], default=None)
    if best is not None and best is not popular:
        behind.append(f"The best reference, {best['title']}, has {best[key]:.4f}.")
    return head, " ".join(behind)


def _times(ratio: float) -> str:
    if ratio >= 9.95:
        return f"{ratio:.0f} times as good as recommending what is popular"
    if ratio >= 1.05:
        return f"{ratio:.1f} times as good as recommending what is popular"
    if ratio > 0.95:
        return "About as good as recommending what is popular"
    return f"Worse than recommending what is popular ({ratio:.2f} times as good)"


def privacy(result: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The headline about privacy, and the guarantee in plain words, by paragraph."""
    if result["mode"] == "none":
        return "NOTHING is protected", [
            "This is a reference run without privacy: the updates of the silos were sent as they are, and the model may give "
            "away who was in the data and what they did. Use it to compare, not to protect anybody."
        ]
    spent, delta = result.get("epsilon"), result.get("delta")
    if spent is None or delta is None:
        return "Privacy was not accounted for", ["The run ended before its budget was computed: do not rely on any guarantee."]
    words = [
        "The guarantee is user-level (add/remove: one user of one silo, with everything they ever did, present or absent)"
        + (
            ". " + _sharing(result)
            if result["mode"] == "distributed"
            else " and holds against everybody, the coordinator included."
        ),
        f"In words: no outcome, whatever is looked at of what the silos sent or of the model, becomes more than {odds(spent)} "
        f"times likelier or less likely because one user took part, up to an exception of probability δ. This bounds the worst "
        f"case; a smaller ε protects more. Who is a user of several silos is protected in each of them separately.",
    ]
    tighter = result.get("epsilon_pld")
    if tighter is not None:
        words.append(
            f"Counted more tightly (privacy loss distributions, valid because the noise was fixed in advance), the same run has "
            f"ε = {epsilon(tighter)}."
        )
    return f"Each user of each silo is protected: ε\u00a0=\u00a0{epsilon(spent)}, δ\u00a0=\u00a0{small(delta)}", words


def _sharing(result: Mapping[str, Any]) -> str:
    """Mode ``distributed``: on whose noise the guarantee counts, and what is left without."""
    return Sharing(result["honest_silos"], result.get("colluding_silos"), result.get("epsilon_if_others_collude")).in_words


def lead(result: Mapping[str, Any]) -> str:
    """What happened, in two sentences."""
    silos = result.get("silos") or ()
    many = _COUNTS[len(silos)] if len(silos) < len(_COUNTS) else str(len(silos))
    who = "One organisation (silo)" if len(silos) == 1 else f"{many} organisations (silos)"
    noise = "with noise that bounds what they tell about any single user"
    sent = {"none": "updates without any protection", "distributed": f"sums over silos {noise}"}.get(
        result["mode"], f"updates {noise}"
    )
    return (
        f"{who} trained one recommender {'' if len(silos) == 1 else 'together '}in {plural(result['rounds'], 'round')}, "
        f"simulated on one machine. Users’ histories stayed with their silo; what the coordinator received were {sent}."
    )


def reported_round(result: Mapping[str, Any]) -> str:
    """Which state of the model the figures belong to; empty if there are none."""
    if result.get(f"ndcg@{result['k']}") is None:
        return ""
    number = result["selected_round"]
    state = "before training" if number == 0 else f"after round {number}"
    if result.get("selection") == "validation":
        return f"These are figures of the model {state}, chosen on the validation items, which reads private data unprotected."
    return (
        f"These are figures of the model {state}, the last {'there is' if number == result['rounds'] else 'that was evaluated'}."
    )


def interruption(result: Mapping[str, Any]) -> str:
    """What a reader must know of a run that was stopped before its time; empty if it was not."""
    done, planned = result["rounds"], result["rounds_planned"]
    if result["status"] == "finished":
        return ""
    when = (
        f"after {done} of {plural(planned, 'round')}" if done < planned else "after its last round, while it was being compared"
    )
    return f"This run was stopped {when}. What was not measured is shown as – or left out."


def student(result: Mapping[str, Any]) -> str:
    """What the student keeps of the model and what it weighs; empty if there is none."""
    found = result.get("student")
    if not found:
        return ""
    name = f"ndcg@{found['k']}"
    return (
        f"A student of {found['model_bytes'] / 1e6:.2f} MB was distilled from histories that the model made up itself, no silo’s "
        f"data. "
        f"As it is served, in int8, its {name.upper()} on the test items is {found[f'bundle_{name}']:.4f}, the model’s "
        f"{found[f'teacher_{name}']:.4f}: {100 * found['retained']:.1f} % are kept."
    )


def comparison(result: Mapping[str, Any]) -> str:
    """How the references were made, so far as a reader must know it to compare."""
    names = {reference["name"] for reference in result.get("references") or ()}
    own = names & OWN_REFERENCES
    words = []
    if names - own:
        words.append(
            "The reference recommenders learned without any privacy from all silos’ data in one place, which the silos would "
            "not allow."
        )
    if own:
        words.append(
            "References that are called silorec are this model trained in another way, in this run’s privacy mode and with its "
            "budget."
        )
    return " ".join(words)


def _reference(result: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    return next((r for r in result.get("references") or () if r["name"] == name), None)


def _interval(source: Mapping[str, Any], key: str) -> Sequence[float] | None:
    return (source.get("intervals") or {}).get(key)


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]
