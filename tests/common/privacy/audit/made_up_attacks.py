"""What ``silorec audit attack --out`` writes, with made-up figures; the tests of that command have real ones."""

from __future__ import annotations

from typing import Any

_TEST_NAMES = ("noise: variance", "noise: distribution", "participation: mean")


def made_up_attacks(run: str, **changes: Any) -> dict[str, Any]:
    """All attacks, none of which refutes anything."""
    fit = {
        "holds": True,
        "violated": [],
        "tests": [
            {
                "name": name,
                "expected": 4.75 + i,
                "observed": 4.7361 + i,
                "p_value": 0.01 * (i + 2),
                "p_corrected": 0.07 * (i + 2),
                "holds": True,
            }
            for i, name in enumerate(_TEST_NAMES)
        ],
    }
    canaries = {
        "kind": "gradient",
        "verdict": "consistent",
        "sentence": "Nothing contradicts the claim of epsilon = 5.87. 611 of 999 guesses were right.",
        "canaries": 1000,
        "included": 503,
        "claim": {"epsilon": 5.8712, "method": "rdp", "epsilon_pld": 5.1234, "delta": 1 / 800, "events": 3},
        "confidence": 0.95,
        "epsilon_lower": 2.3456,
        "guesses": 333,
        "correct": 311,
        "ceiling": 5.9123,
        "refuted_by": [],
        "fit": fit,
    }
    members = {
        "method": "rmia",
        "claimed_epsilon": 5.9999,
        "users": 97,
        "auc": 0.5432,
        "confidence": 0.95,
        "false_positive_rate": [0.0, 0.1, 0.6, 1.0],
        "true_positive_rate": [0.0, 0.2, 0.7, 1.0],
        "one_run": {
            "epsilon_lower": 0.0,
            "n_guesses": 32,
            "n_correct": 17,
            "ceiling": 2.2222,
            "confidence": 0.95,
            "sentence": "17 of 32 guesses about 97 canaries were right. That refutes no epsilon.",
        },
        "sentences": ["rmia with 8 shadow models against 97 users.", "97 users can say nothing about a rate of 0.001."],
    }
    views = ("unprotected", "masked", "private")
    reconstruction = {
        "epsilon": 3.2109,
        "guessing": [{"users": 1, "popularity": 0.51, "random": 0.31}, {"users": 4, "popularity": 0.91, "random": 0.71}],
        "users": [
            {
                "view": v,
                "reader": "cosine",
                "auc": 0.801 - 0.1 * i,
                "false_positive_rate": [0.0, 0.5, 1.0],
                "true_positive_rate": [0.0, 0.9, 1.0],
            }
            for i, v in enumerate(views)
        ],
        "table": [
            {"view": v, "items_of_1": 0.991 - 0.2 * i, "items_of_4": 0.997 - 0.1 * i, "users_auc": 0.801 - 0.1 * i}
            for i, v in enumerate(views)
        ],
        "sentences": ["From one private update 45% of the names are right."],
    }
    return {
        "schema": 1,
        "run": run,
        "silo": 0,
        "attacks": {
            "canaries": canaries,
            "conformance": {"holds": True, "violations": [], "sentence": "With next to no noise, 1,000 canaries showed nothing."},
            "members": members,
            "reconstruction": reconstruction,
        },
        "skipped": {},
        "refuted": [],
        **changes,
    }
