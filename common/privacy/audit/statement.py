"""What a deployment tells the public: the fields of the Differential Privacy Deployments Registry.

The registry is registry.opendp.org (Dwork, Kohli & Mulligan 2019, "Differential Privacy in Practice: Expose Your Epsilons";
Nanayakkara, Ghazi & Vadhan 2025, arXiv:2509.13509). The statement is written from an audit's findings. What only the operators
can know is theirs to state (:func:`read_about`); until they do, it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import Config, read_toml
from common.errors import ConfigError
from common.privacy.audit.trust import Sharing, own_share, trusted
from common.privacy.plan import PrivacyPlan
from common.report.words import epsilon as rounded_up
from common.report.words import plural, small

NOT_STATED = "not stated"

#: What operators state themselves, by field, with what it means.
ABOUT: dict[str, str] = {
    "name": "name of the data product",
    "description": "what the data product is",
    "data_curators": "who publishes it, a list of names; unset: the silos of the ledgers",
    "intended_use": "what it is for",
    "data_product_region": "whose data: country or region",
    "data_product_sector": "for example Technology or Government",
    "publication_date": "first publication, YYYY-MM-DD",
    "data_domain": "which data sets could have been there",
    "unprotected_quantities": "what is published without protection; unset: what silorec makes public",
    "preprocessing_and_hyperparameter_tuning": "what was done with the data before, and whether it was accounted for",
    "justification": "why these parameters",
    "additional_information": "anything else",
    "registry_authors": "who wrote the statement, a list of names",
}


@dataclass(frozen=True)
class Facts:
    """What a statement is made of.

    Parameters
    ----------
    epsilon, delta:
        Of the run, from the ledgers; epsilon is None where it is unbounded or nothing is known.
    sharing:
        Of mode ``distributed``: how many silos' noise is counted on; None where that mode plays no part.
    silos:
        Names, as the ledgers' openings say.
    verified:
        :meth:`common.privacy.audit.verify.Verified.as_dict`.
    lower_bounds:
        Sentences of attacks, empty where none was made.
    """

    name: str
    mode: str
    epsilon: float | None
    epsilon_pld: float | None
    delta: float | None
    silos: Sequence[str]
    config: Config | None
    plan: PrivacyPlan | None
    versions: Mapping[str, str]
    verified: Mapping[str, Any]
    recomputed: bool
    lower_bounds: Sequence[str]
    utility: str
    sharing: Sharing | None = None

    @property
    def protected(self) -> bool:
        return self.mode != "none" and self.epsilon is not None

    def outcome(self, *names: str) -> str:
        """Of the named checks: the worst."""
        outcomes = [check["outcome"] for check in self.verified["checks"] if check["name"] in names]
        return next((o for o in ("does not hold", "not applicable") if o in outcomes), "holds")


def read_about(path: Path) -> dict[str, Any]:
    """What the operators state of their deployment: a TOML file with keys of :data:`ABOUT`.

    Raises
    ------
    ConfigError
        If it cannot be read, or has another key.
    """
    values = read_toml(path)
    if unknown := sorted(values.keys() - ABOUT.keys()):
        raise ConfigError(f"{path}: unknown field {unknown[0]!r} (allowed: {', '.join(ABOUT)})")
    for key, value in values.items():
        many = key in ("data_curators", "registry_authors")
        if many != isinstance(value, list) or not all(isinstance(part, str) for part in (value if many else [str(value)])):
            raise ConfigError(f"{path}: {key} must be {'a list of texts' if many else 'a text'}: {ABOUT[key]}")
    return {key: value if isinstance(value, list) else str(value) for key, value in values.items()}


def deployment_statement(facts: Facts, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The registry's fields, by its sections."""

    def stated(key: str, otherwise: Any = NOT_STATED) -> Any:
        return about.get(key, otherwise)

    dp, shared = facts.protected, facts.sharing is not None
    parameters = {"epsilon": facts.epsilon if dp else None, "delta": facts.delta if dp else None}
    return {
        "basic": {
            "name": stated("name", facts.name),
            "data_curators": stated("data_curators", list(facts.silos)),
            "description": stated("description", "A sequential recommender that several silos train together (silorec)."),
            "intended_use": stated("intended_use"),
            "data_product_type": "Machine learning model",
            "data_product_region": stated("data_product_region"),
            "data_product_sector": stated("data_product_sector"),
            "publication_date": stated("publication_date"),
        },
        "dp_variant": {
            "variant_name": "Approximate DP" if dp else "none: nothing is protected",
            "data_domain": stated(
                "data_domain", "Sets of users of one silo, each with any history of interactions with a public catalogue."
            ),
            "unprotected_quantities": stated(
                "unprotected_quantities",
                "The catalogue, the configuration, the roster, each silo's declared number of users, and whether a silo answers."
                if dp
                else "Everything.",
            ),
        },
        "privacy_loss": {
            "privacy_unit": "User-level: one user of one silo",
            "privacy_unit_details": "Adjacent data sets differ in one user of one silo, with all interactions and texts, "
            "added or removed. Who is a user of several silos has one guarantee in each; they add up.",
            "number_of_privacy_units": 1,
            "privacy_parameters": parameters,
            "privacy_parameters_details": parameters_in_words(facts),
        },
        "deployment_model": {
            "model_name": "none" if not dp else "Distributed" if shared else "Central",
            "model_name_details": _model_in_words(facts) if dp else "Silos send what they computed as it is.",
            "trust_assumptions": "; ".join(trusted(facts.sharing)) if dp else "Everybody who gets anything from a silo.",
            "actors": f"Silos hold data, train and add {'shares of the noise' if shared else 'noise'}. A coordinator "
            f"{'adds up masked vectors, and sees the sums only' if shared else 'averages protected updates'}. Auditors read "
            "signed ledgers. Whoever gets the model is not trusted.",
            "release_type": "Many releases",
            "release_type_details": _releases(facts),
            "data_source_type": "Static",
            "data_source_type_details": "A run trains on what a silo holds while it runs. A user's budget does not start "
            "again: the ledger counts over all runs.",
            "access_type": "Non-interactive",
            "access_type_details": "Only the coordinator asks, and only what the configuration and each silo's policy allow.",
        },
        "accounting": {
            "composition": _composition(facts),
            "post_processing": f"{'Dividing sums by public numbers' if shared else 'Averaging over silos'}, the server's "
            "optimiser, item biases from the noised count, and every use of the model afterwards.",
        },
        "implementation": {
            "preprocessing_and_hyperparameter_tuning": stated("preprocessing_and_hyperparameter_tuning"),
            "mechanisms": mechanisms_in_words(facts),
            "software": ", ".join(f"{name} {version}" for name, version in facts.versions.items()) or NOT_STATED,
            "justification": stated("justification"),
            "utility": facts.utility,
            "additional_information": stated("additional_information", "The audit of which this statement is a part."),
        },
        "administrative": {
            "status": "Draft",
            "registry_authors": stated("registry_authors", [NOT_STATED]),
        },
    }


def not_covered(facts: Facts) -> list[str]:
    """What no check in the report speaks of."""
    out = [
        "A silo that computes something else than its signed entry says. The entry is a statement; canaries test the "
        "software in a simulation, not the machine of a silo.",
        "A silo and a coordinator that agree to leave an answer out of ledger and transcript both.",
        "Everything else that an operator does with the same data: reports, other models, copies.",
        "The choice of settings by looking at results on the same data.",
        "Figures of an evaluation, where a simulation measured them on users' own data.",
        "Timing, and whether a silo answers at all: both may depend on its data.",
        "Users who are the same person in several silos, or groups of users who are alike: their guarantees are weaker, by "
        "composition and by group size.",
    ]
    if facts.outcome("transcript") == "not applicable":
        out.insert(
            0, "What the coordinator received: there is no transcript, so releases that were never charged cannot be found."
        )
    if facts.outcome("countersignatures") == "not applicable":
        out.append("That no ledger was put back from an older copy before anybody saw the newer one: nobody has countersigned.")
    if facts.sharing is not None:
        out.append(
            "That the other silos which are counted on did add their shares of noise: a ledger speaks for its own silo. If none "
            "of them did, what holds is the figure for the case that all others collude."
        )
        out += own_share(facts.sharing)
        out.append("Attacks on sums over silos: silorec audit attack trains one silo by itself, and does not attack this mode.")
    elif not facts.lower_bounds:
        out.append("What attacks achieve: none was made for this report (silorec audit attack).")
    if facts.mode == "none":
        out.insert(0, "Privacy: mode none protects nobody.")
    return out


def parameters_in_words(facts: Facts) -> str:
    """Epsilon and delta, or why there are none."""
    if facts.mode == "none":
        return "None: no noise was added to updates and counts."
    if facts.epsilon is None or facts.delta is None:
        return "Not known from this evidence."
    words = (
        f"Epsilon {rounded_up(facts.epsilon)} at delta {small(facts.delta)} for the run, the largest of all silos, by Rényi DP"
    )
    if facts.epsilon_pld is not None:
        words = f"{words}; {rounded_up(facts.epsilon_pld)} by privacy loss distributions. Rounded up; the parameters are not"
    return f"{words}." if facts.sharing is None else f"{words}. {facts.sharing.in_words}"


def _model_in_words(facts: Facts) -> str:
    if facts.sharing is None:
        return (
            "Each silo is the curator of its own users and adds all of its noise before anything leaves. "
            "Nobody outside of a silo is trusted with its data, the coordinator of the federation included."
        )
    return (
        "Each silo is the curator of its own users and adds a share of the noise. Secure aggregation shows the coordinator sums "
        f"over silos only. {facts.sharing.in_words}"
    )


def _releases(facts: Facts) -> str:
    if facts.plan is None:
        return "An update in each round, and a count before the first; see the ledgers."
    metrics = "" if facts.plan.withholds_metrics else ", figures of quality after the last"
    words = f"A count of interactions per item before the first round, an update in each of {facts.plan.rounds} rounds{metrics}."
    return words if facts.sharing is None else f"{words} Only their sums over silos are seen."


def _composition(facts: Facts) -> str:
    agreed = "" if facts.config is None or facts.mode == "none" else f" The run agreed on {facts.config.privacy.epsilon:g}."
    return (
        "All releases of all runs compose by Rényi DP at one order that was fixed with the policy: a privacy filter, valid "
        "when the "
        f"coordinator chooses as it goes (Feldman & Zrnic 2021; Lécuyer 2021).{agreed} Google's dp_accounting computes it."
    )


def mechanisms_in_words(facts: Facts) -> str:
    """What adds noise, with its parameters."""
    if facts.mode == "none":
        return "None."
    if facts.plan is None:
        return "Gaussian noise on the count, and DP-SGD with Poisson samples of users (Abadi et al. 2016); see the ledgers."
    plan = facts.plan
    metrics = (
        ""
        if plan.withholds_metrics
        else f" Gaussian mechanism on figures of quality, noise multiplier {plan.metrics_noise_multiplier:.6g}."
    )
    if plan.honest:
        return (
            f"Discrete Gaussian noise in the ring of the sums, a share of it from each silo; noise multipliers are those of a "
            f"sum with {plural(plan.honest, 'honest silo')} in it. Gaussian mechanism on the count, noise multiplier "
            f"{plan.count_noise_multiplier:.6g}. DP-SGD of all silos together on Poisson samples of users (Abadi et al. 2016): "
            f"one step in each of {plan.rounds} rounds, sampling probability {plan.sampling_probability:g}, clip "
            f"{plan.max_grad_norm:g}, noise multiplier {plan.noise_multiplier:.6g}; per-user gradients by Opacus.{metrics}"
        )
    return (
        f"Gaussian mechanism on the count, noise multiplier {plan.count_noise_multiplier:.6g}. DP-SGD on Poisson "
        f"samples of users "
        f"(Abadi et al. 2016): {plan.steps_per_round} steps in each of {plan.rounds} rounds, sampling probability "
        f"{plan.sampling_probability:g}, clip {plan.max_grad_norm:g}, noise multiplier {plan.noise_multiplier:.6g}; "
        f"per-user gradients by "
        f"Opacus.{metrics}"
    )
