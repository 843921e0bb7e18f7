"""``audit.json`` and ``audit.html``: an audit for a privacy officer, on one page that needs nothing else.

First :func:`audit` puts everything together as plain values: claims, checks, the recomputation, attacks, what is not covered, the
deployment statement and the checklist. That is ``audit.json``. The page is made from it and from nothing else, so the two cannot
differ. It requests nothing and has no scripts; shown figures are rounded, the full value is in the ``value`` attribute of their
``<data>`` element.

jinja2 is needed for the page, and only here.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.durable import write_durably
from common.errors import DataError
from common.privacy.accountant import Method, epsilon, epsilon_if_others_collude
from common.privacy.audit.checklist import checklist
from common.privacy.audit.evidence import Evidence
from common.privacy.audit.matching import Matching
from common.privacy.audit.statement import Facts, deployment_statement, not_covered
from common.privacy.audit.trust import Sharing, not_trusted, trusted
from common.privacy.audit.verify import verify
from common.privacy.events import NEIGHBOURS, UNIT, Distributed, Event
from common.privacy.plan import delta_for
from common.privacy.policy import Policy
from common.secagg.rules import Rules

SCHEMA = 1
JSON, HTML = "audit.json", "audit.html"

#: What decides the figures.
PACKAGES = ("silorec", "dp-accounting", "opacus", "torch", "numpy", "cryptography")

#: Checks without which a claim rests on the silos' word: that everything received was charged, and at the configuration's price.
VITAL = ("answers", "plan", "covered")

#: And in mode ``distributed``, that what was received are sums over enough silos.
VITAL_IF_SHARED = (*VITAL, "sums")

Progress = Callable[[str], None]


def audit(
    evidence: Evidence,
    *,
    attacks: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda stage: None,
    clock: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Everything that the report says, as finite plain values. Some seconds for each different ledger.

    Parameters
    ----------
    attacks:
        What ``silorec audit attack --out`` wrote.
    about:
        What the operators state, see :func:`common.privacy.audit.statement.read_about`.
    progress:
        Told each stage.
    """
    progress("verifying")
    run = Matching(evidence)
    verified = verify(evidence).as_dict()
    progress("computing what was charged, by four accountants")
    recomputed = recompute_ledgers(evidence)
    sharing = _sharing(run, evidence)
    claims = _claims(run, evidence, sharing)
    bounds = lower_bounds(attacks or {})
    facts = Facts(
        name=evidence.config.name if evidence.config is not None else evidence.path.name,
        mode=claims["mode"],
        epsilon=claims["epsilon"],
        epsilon_pld=claims["epsilon_pld"],
        delta=claims["delta"],
        silos=[ledger["silo"] for ledger in verified["ledgers"]],
        config=evidence.config,
        plan=run.plan(None),
        versions=_versions(evidence),
        verified=verified,
        recomputed=bool(recomputed),
        lower_bounds=[bound["sentence"] for bound in bounds],
        utility=_utility(evidence),
        sharing=sharing,
    )
    refuted = list((attacks or {}).get("refuted") or ())
    agree = all(ledger["holds"] for ledger in recomputed)
    document = {
        "schema": SCHEMA,
        "name": facts.name,
        "made": {"time": int(clock()), "date": time.strftime("%Y-%m-%d", time.gmtime(clock())), "software": _software()},
        "holds": verified["holds"] and agree and not refuted,
        "verdict": _verdict(verified, agree, refuted, claims["mode"]),
        "claims": claims,
        "verified": verified,
        "recomputed": recomputed,
        "attacks": None if attacks is None else dict(attacks),
        "attacks_on_this_run": None if attacks is None else attacks.get("run") == run.run,
        "bounds": bounds,
        "history": _history(run),
        "not_covered": not_covered(facts),
        "deployment": deployment_statement(facts, about or {}),
        "checklist": checklist(facts),
    }
    plain: dict[str, Any] = _finite(document)
    return plain


def write_audit(document: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write ``audit.json`` and ``audit.html`` into ``folder``; the page's path comes second."""
    from common.privacy.audit.page import render

    content = json.dumps(document, indent=2, allow_nan=False) + "\n"
    page = render(json.loads(content))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = write_durably(folder / JSON, content.encode())
        return written, write_durably(folder / HTML, page.encode("utf-8", "replace"))
    except OSError as error:
        raise DataError(f"the report cannot be written ({error.strerror}); choose another folder with --out", folder) from None


def recompute_ledgers(evidence: Evidence) -> list[dict[str, Any]]:
    """Every ledger's reservations by all accountants, at its policy's delta; those that were charged alike are computed once.

    ``if_others_collude`` has the same for the case that all other silos collude, None where mode ``distributed`` plays no part;
    ``holds`` and ``complete`` speak of both.
    """
    from common.privacy.audit.recompute import recompute, recompute_if_others_collude

    known: dict[tuple[tuple[Event, ...], float], dict[str, Any]] = {}
    out = []
    for name, chain in evidence.current.items():
        events, delta = tuple(what.released for _, what in chain.reservations), chain.policy.delta
        if (events, delta) not in known:
            seen, left = recompute(events, delta), recompute_if_others_collude(events, delta)
            both = [seen] if left is None else [seen, left]
            known[events, delta] = {
                **seen.as_dict(),
                "holds": all(found.holds for found in both),
                "complete": all(found.complete for found in both),
                "if_others_collude": None if left is None else left.as_dict(),
            }
        out.append({"ledger": name, "silo": chain.silo, **known[events, delta]})
    return out


def read_attacks(path: Path) -> dict[str, Any]:
    """What ``silorec audit attack --out`` wrote.

    Raises
    ------
    DataError
        If it is something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", path) from None
    except ValueError as error:
        raise DataError(f"not JSON: {error}", path) from None
    if not isinstance(values, dict) or not isinstance(values.get("attacks"), dict):
        raise DataError("not what silorec audit attack --out writes: there are no attacks in it", path)
    if values.get("schema") != 1:
        raise DataError(f"schema {values.get('schema')!r}, this version reads 1: attack again, or use the other version", path)
    return values


def lower_bounds(attacks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each lower bound that an attack gave, beside the claim and the most that it could have shown."""
    out = []
    found = attacks.get("attacks") or {}
    if canaries := found.get("canaries"):
        out.append(
            {
                "attack": "canaries",
                "title": f"{canaries['canaries']:,} gradient canaries",
                "claimed": canaries["claim"]["epsilon"],
                "found": canaries["epsilon_lower"],
                "ceiling": canaries["ceiling"],
                "guesses": canaries["guesses"],
                "correct": canaries["correct"],
                "confidence": canaries["confidence"],
                "can_refute": canaries["ceiling"] > canaries["claim"]["epsilon"],
                "sentence": canaries["sentence"],
            }
        )
    if members := found.get("members"):
        bound, claimed = members["one_run"], members["claimed_epsilon"]
        out.append(
            {
                "attack": "members",
                "title": f"membership of {members['users']:,} users",
                "claimed": claimed,
                "found": bound["epsilon_lower"],
                "ceiling": bound["ceiling"],
                "guesses": bound["n_guesses"],
                "correct": bound["n_correct"],
                "confidence": bound["confidence"],
                "can_refute": claimed is not None and bound["ceiling"] > claimed,
                "sentence": bound["sentence"].replace("canaries", "users"),
            }
        )
    return out


def _events(run: Matching, ledger: str) -> list[Event]:
    """What the run charged in one ledger; where no run is known, everything in it."""
    if run.run is not None:
        return run.events(ledger)
    return [what.released for _, what in run.evidence.current[ledger].reservations]


def _delta(run: Matching, evidence: Evidence) -> float | None:
    """That the claim is stated for: the run's, else the largest of the ledgers' policies."""
    if evidence.config is not None and run.plan(None) is not None:
        return delta_for(evidence.config, evidence.config.federation.declared_users)
    return max((chain.policy.delta for chain in evidence.current.values()), default=None)


def _sharing(run: Matching, evidence: Evidence) -> Sharing | None:
    """On how many silos' noise the claim counts, and what is left without it; None where mode ``distributed`` plays no part."""
    charged = [_events(run, ledger) for ledger in evidence.current]
    honest = [event.honest for events in charged for event in events if isinstance(event, Distributed)]
    delta = _delta(run, evidence)
    if not honest or delta is None:
        return None
    rules = Rules.of(evidence.config) if evidence.config is not None and run.plan(None) is not None else None
    left = _largest(epsilon_if_others_collude(events, delta) for events in charged)
    return Sharing(max(honest), None if rules is None else rules.corrupted, left)


def _claims(run: Matching, evidence: Evidence, sharing: Sharing | None) -> dict[str, Any]:
    """What is claimed, from the ledgers; of the run where there is one, else of everything in them."""
    config = evidence.config if run.plan(None) is not None else None
    modes = {what.mode for _, _, what in run.reservations()} or {
        what.mode for chain in evidence.current.values() for _, what in chain.reservations
    }
    mode = config.privacy.mode if config is not None else "none" if "none" in modes else next(iter(sorted(modes)), "silo")
    delta = _delta(run, evidence)
    silos = []
    for name, chain in evidence.current.items():
        events = _events(run, name)
        policy = chain.policy
        total = chain.spending().epsilon(policy.order or 0.0, policy.delta)
        silos.append(
            {
                "silo": chain.silo,
                "ledger": name,
                "place": run.silo_of.get(name),
                "declared_users": _declared(run, name),
                "epsilon": None if delta is None else epsilon(events, delta),
                "epsilon_pld": None if delta is None else epsilon(events, delta, "pld"),
                **_collusion(sharing, events, delta),
                "charges": len(events),
                "total": {
                    "epsilon": total,
                    "delta": policy.delta,
                    "order": policy.order,
                    "reservations": len(chain.reservations),
                },
                "policy": _limits(policy),
                "open": len(chain.open_reservations),
            }
        )
    return {
        "unit": UNIT,
        "neighbours": NEIGHBOURS,
        "mode": mode,
        "epsilon": _largest(silo["epsilon"] for silo in silos),
        "epsilon_pld": _largest(silo["epsilon_pld"] for silo in silos),
        "epsilon_if_others_collude": _largest(silo["epsilon_if_others_collude"] for silo in silos),
        "epsilon_pld_if_others_collude": _largest(silo["epsilon_pld_if_others_collude"] for silo in silos),
        "honest_silos": None if sharing is None else sharing.honest,
        "colluding_silos": None if sharing is None else sharing.colluding,
        "sharing": None if sharing is None else sharing.in_words,
        "delta": delta if mode != "none" else None,
        "agreed": None if config is None or mode == "none" else config.privacy.epsilon,
        "of": "the run" if run.run is not None else "everything in the ledgers",
        "silos": silos,
        "trusted": list(trusted(sharing)) if mode != "none" else ["everybody who gets anything from a silo"],
        "not_trusted": list(not_trusted(sharing)) if mode != "none" else [],
    }


def _collusion(sharing: Sharing | None, events: Sequence[Event], delta: float | None) -> dict[str, float | None]:
    """One silo's figures if all others collude; None where mode ``distributed`` plays no part."""
    methods: tuple[tuple[str, Method], ...] = (("epsilon_if_others_collude", "rdp"), ("epsilon_pld_if_others_collude", "pld"))
    if sharing is None or delta is None:
        return dict.fromkeys((key for key, _ in methods), None)
    return {key: epsilon_if_others_collude(events, delta, method) for key, method in methods}


def _largest(values: Any) -> float | None:
    """None where there is none, or one is unbounded."""
    known = list(values)
    if not known or any(value is None or math.isinf(value) for value in known):
        return None
    return float(max(known))


def _declared(run: Matching, ledger: str) -> int | None:
    return next((what.declared_users for _, _, what in run.reservations(ledger)), None)


def _limits(policy: Policy) -> dict[str, Any]:
    """What is set of a policy."""
    return {key: value for key, value in policy.to_dict().items() if value is not None}


def _history(run: Matching) -> list[dict[str, Any]]:
    """Each ledger's running total as the auditor computes it, entry by entry."""
    from common.privacy.entries import charge_of
    from common.privacy.filter import Spending

    out = []
    for name, chain in run.evidence.current.items():
        policy, spending, points = chain.policy, Spending(), []
        for entry, what in chain.reservations:
            spending.add(charge_of(entry, what))
            total = spending.epsilon(policy.order or 0.0, policy.delta)
            points.append(
                {
                    "entry": entry.seq,
                    "action": what.action,
                    "round": what.round,
                    "of_this_run": what.run == run.run,
                    "epsilon": total,
                    "recorded": what.epsilon,
                    "released": entry.seq in chain.commitments,
                }
            )
        out.append({"ledger": name, "silo": chain.silo, "limit": policy.epsilon, "delta": policy.delta, "points": points})
    return out


def _verdict(verified: Mapping[str, Any], agree: bool, refuted: Sequence[str], mode: str) -> str:
    outcomes = [check["outcome"] for check in verified["checks"]]
    broken = [check["name"] for check in verified["checks"] if check["outcome"] == "does not hold"]
    counted = f"{outcomes.count('holds')} of {len(outcomes)} checks hold, {outcomes.count('not applicable')} not applicable"
    against = [f"checks that do not hold: {', '.join(broken)}"] if broken else []
    against += [] if agree else ["the accountants do not agree"]
    against += [f"an attack speaks against the claim ({what})" for what in refuted]
    if against:
        return f"The evidence does not bear out what is claimed: {'; '.join(against)}. {counted}."
    if mode == "none":
        return f"The books are in order, and nothing is protected: mode none. {counted}."
    if not any(ledger["reservations"] for ledger in verified["ledgers"]):
        return f"Nothing was charged, so nothing is claimed. {counted}."
    vital = VITAL_IF_SHARED if mode == "distributed" else VITAL
    missing = [check["name"] for check in verified["checks"] if check["outcome"] == "not applicable" and check["name"] in vital]
    if missing:
        names = ", ".join(missing)
        return f"The ledgers bear out what is claimed, as far as they go: {names} could not be checked. {counted}."
    return f"The evidence bears out what is claimed. {counted}."


def _utility(evidence: Evidence) -> str:
    result = evidence.result or {}
    key = f"ndcg@{result.get('k')}"
    if result.get(key) is None:
        return "Not told by this evidence."
    before = (result.get("before_training") or {}).get(key)
    words = f"{key.upper()} {result[key]:.4f} on held-out interactions" + (
        "" if before is None else f", {before:.4f} before training"
    )
    popular = next((r for r in result.get("references") or () if r.get("name") == "popularity" and r.get(key) is not None), None)
    words += "" if popular is None else f"; recommending what is popular gives {popular[key]:.4f}"
    return f"{words}. Measured on the users themselves, which only a simulation may do; these figures are not protected."


def _versions(evidence: Evidence) -> dict[str, str]:
    """Of the run where it says so, else of this machine."""
    told = (evidence.result or {}).get("versions")
    if isinstance(told, dict):
        return {str(name): str(number) for name, number in told.items()}
    out = {}
    for name in PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def _software() -> str:
    try:
        return f"silorec {version('silorec')}"
    except PackageNotFoundError:
        return "silorec"


def _finite(value: Any) -> Any:
    """Tuples as lists, what is infinite as None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
