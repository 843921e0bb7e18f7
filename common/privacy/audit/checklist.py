"""What an evaluator asks: the pyramid of NIST SP 800-226, "Guidelines for Evaluating Differential Privacy Guarantees" (2025).

From its top, what is promised, to what everything rests on. For each part: is it done, what is done, and where is that shown?
"""

from __future__ import annotations

from typing import Literal

from common.privacy.audit.statement import Facts, mechanisms_in_words, parameters_in_words

State = Literal["done", "partly", "not covered"]


def checklist(facts: Facts) -> list[dict[str, str]]:
    """SP 800-226's pyramid, from the top: for each part its state, what is done, and where that is shown."""
    protected, plan, config = facts.protected, facts.plan, facts.config
    hardened = config is not None and config.privacy.noise == "hardened"
    sharing = facts.sharing
    books = facts.outcome("chain", "copies", "policy", "totals")
    released = facts.outcome("answers", "covered", "plan", *([] if facts.sharing is None else ["sums"]))
    rows: list[tuple[str, str, State, str, str]] = [
        (
            "guarantee",
            "Privacy parameters",
            "done" if protected else "not covered",
            parameters_in_words(facts),
            "Claims, and the recomputation by four accountants" if facts.recomputed else "Claims",
        ),
        (
            "guarantee",
            "Unit of privacy",
            "done" if protected else "not covered",
            "One user of one silo with everything that the user did there; one user is one example in training, clipped as one.",
            "every event in the ledgers; tests/client/test_gradients.py, tests/common/model/test_recommender.py",
        ),
        (
            "guarantee",
            "Definition and neighbouring data",
            "done" if protected else "not covered",
            "(epsilon, delta), users added or removed (unbounded). Delta is 1 / (10 times the declared users of the smallest "
            "silo) unless set.",
            "every event in the ledgers; docs/privacy.md",
        ),
        (
            "mechanism",
            "Algorithms and their correctness",
            "done" if protected and released == "holds" else "partly" if protected else "not covered",
            mechanisms_in_words(facts),
            "checks answers, plan, covered; " + ("attacks below" if facts.lower_bounds else "no attack was made")
            if sharing is None
            else "checks answers, plan, covered, sums; tests/common/privacy/test_distributed.py; this mode is not attacked",
        ),
        (
            "mechanism",
            "Sampling and amplification",
            "done" if protected else "not covered",
            "Users are sampled by independent coins from a cryptographic stream (Poisson), as the accounting assumes; an empty "
            "sample takes a noisy step." + ("" if plan is None else f" Sampling probability {plan.sampling_probability:g}."),
            "check plan; tests/client/test_trainer.py; canaries with next to no noise",
        ),
        (
            "mechanism",
            "Composition and budget tracking",
            "done" if books == "holds" else "partly",
            "A signed ledger in each silo, written before anything is computed; a filter at one fixed Rényi order refuses what "
            "would pass the operator's limit, over all runs.",
            f"checks chain, copies, policy, totals ({books}), open; tests/common/privacy",
        ),
        (
            "trust",
            "Trust model",
            "done" if protected else "not covered",
            "Each silo is trusted with its own users only; the coordinator and the other silos are not trusted."
            if sharing is None
            else f"Each silo is trusted with its own users, and with a share of the noise. {sharing.in_words}",
            "Claims; docs/privacy.md, who could do what",
        ),
        (
            "utility",
            "Utility",
            "partly",
            facts.utility,
            "report.html of the run, where it is a simulation",
        ),
        (
            "utility",
            "Bias",
            "partly",
            "Noise weighs more on small silos and on items that few users meet. Quality is told per silo; quality per group "
            "of users is not measured, because silos hold no such attributes.",
            "the table of silos in report.html",
        ),
        (
            "implementation",
            "Floating point",
            "done" if hardened or sharing is not None else "partly",
            "Noise is drawn exactly, in whole numbers, and added in the ring of the sums: it leaves no low bits."
            if sharing is not None
            else "Noise is added and rounded to a public grid exactly, by interval arithmetic where it matters (hardened)."
            if hardened
            else "Deployed silos harden their noise against attacks on the low bits unless told otherwise; simulations draw "
            "once, which does not withstand such attacks.",
            "privacy.noise of the configuration; tests/common/privacy/test_rounding.py"
            if sharing is None
            else "tests/common/privacy/test_discrete.py",
        ),
        (
            "implementation",
            "Randomness",
            "done",
            "Noise and samples of private rounds come from ChaCha20 under fresh keys of the operating system; what else is drawn "
            "(windows, dropout) from a secret seed of its own. No seed of the run plays a part.",
            "tests/common/privacy/test_noise.py, tests/client/test_trainer.py",
        ),
        (
            "implementation",
            "Timing and other side channels",
            "not covered",
            "How long a silo takes, and whether it answers, may depend on its data. Errors leave as one of a few codes.",
            "docs/privacy.md, not covered; tests/client/test_release.py",
        ),
        (
            "security",
            "Data security and access control",
            "partly",
            "Data stay on the silo's machine; ledger and key are readable by their owner only; requests can be signed by the "
            "coordinator. Encryption of disks and of the network, and who may log in, are the operator's.",
            "check coordinator; docs/budgets.md",
        ),
        (
            "security",
            "Data collection exposure",
            "not covered",
            "silorec trains on what a silo already holds. How it was collected, with whose consent and for how long it is "
            "kept is outside of it.",
            "to be stated by the curators",
        ),
    ]
    names = ("level", "topic", "state", "done", "shown")
    return [dict(zip(names, row, strict=True)) for row in rows]
