"""A run's folder with made-up figures in the documented format, for tests of what reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.config import load, to_toml

REFERENCES = (("ease", "EASE", 0.0426), ("popularity", "Popularity", 0.0255), ("tf-idf", "TF-IDF content", 0.0118))
EXAMPLE = {
    "title": "Space opera",
    "history": ["Star Saga (1977)", "Moon Harbour (1983)"],
    "recommendations": ["Comet Song (1980)", "The Long Orbit (1999)", "Tin Robots (1986)"],
}


def figures(rng: np.random.Generator, ndcg: float, k: int = 10, *, intervals: bool = True) -> dict[str, Any]:
    """All metrics of one recommender around its NDCG."""
    low = {f"ndcg@{k}": ndcg, f"hr@{k}": 1.9 * ndcg, "mrr": 0.9 * ndcg, "auc": 0.8}
    values: dict[str, Any] = {name: float(value * rng.uniform(0.97, 1.03)) for name, value in low.items()}
    values[f"ndcg@{k}"] = ndcg
    if intervals:
        values["intervals"] = {name: [0.85 * value, 1.15 * value] for name, value in values.items()}
    beyond = {f"coverage@{k}": 0.2, f"novelty@{k}": 3.1, f"diversity@{k}": 0.7}
    return values | {name: float(value * rng.uniform(0.9, 1.1)) for name, value in beyond.items()}


def made_up(
    *,
    mode: str = "silo",
    rounds: int = 6,
    planned: int = 6,
    silos: int = 4,
    k: int = 10,
    seed: int = 0,
    examples: Sequence[dict[str, Any]] = (EXAMPLE,),
    test_every_round: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """``result.json`` and the lines of ``rounds.jsonl``."""
    rng = np.random.default_rng(seed)
    private, shared = mode != "none", mode == "distributed"
    spent = [1.2 + 6.79 * (r / planned) ** 0.5 for r in range(rounds + 1)]
    quality = [0.0402 + 0.0024 * r / planned for r in range(rounds + 1)]
    lines = [
        {
            "round": r,
            "seconds": float(rng.uniform(20, 40)),
            "answered": silos,
            "silos": silos,
            "loss": 6.9 - 0.02 * r,
            "epsilon": spent[r] if private else None,
            "validation": figures(rng, 1.1 * quality[r] + float(rng.normal(0, 5e-4)), k, intervals=False),
            "test": figures(rng, quality[r], k, intervals=False) if test_every_round else None,
            "update_norm": float(rng.uniform(0.1, 0.2)) if r else None,
            "selected": True,
        }
        for r in range(rounds + 1)
    ]
    users = np.maximum(rng.dirichlet(np.full(silos, 2.0)) * 943, 5).astype(int).tolist()
    result: dict[str, Any] = {
        "schema": 1,
        "name": "demo",
        "status": "finished" if rounds == planned else "interrupted",
        "mode": mode,
        "statement": f"(ε = {spent[-1]:.3f}, δ = 0.0007)-DP per user and silo" if private else "No protection.",
        "epsilon": spent[-1] if private else None,
        "epsilon_pld": 0.93 * spent[-1] if private else None,
        "delta": 1 / 1380 if private else None,
        **({"honest_silos": 3, "colluding_silos": 1} if shared else {}),
        **({"epsilon_if_others_collude": 2.1 * spent[-1], "epsilon_pld_if_others_collude": 1.9 * spent[-1]} if shared else {}),
        "k": k,
        "dataset": {"name": "ml-100k", "users": 943, "items": 1682, "interactions": 100000},
        **figures(rng, quality[-1], k),
        "confidence": 0.95,
        "validation": figures(rng, 1.1 * quality[-1], k, intervals=False),
        "before_training": figures(rng, quality[0], k, intervals=False),
        "released_metrics": None,
        "selected_round": rounds,
        "rounds": rounds,
        "rounds_planned": planned,
        "selection": "last",
        "silos": [
            {
                "name": f"silo-{i}",
                "declared_users": n,
                "users": n,
                **figures(rng, quality[-1] * float(rng.uniform(0.7, 1.3)), k),
                "epsilon": spent[-1] if private else None,
                "epsilon_pld": 0.93 * spent[-1] if private else None,
                **(
                    {"epsilon_if_others_collude": 2.1 * spent[-1], "epsilon_pld_if_others_collude": 1.9 * spent[-1]}
                    if shared
                    else {}
                ),
                "noise_multiplier": 1.234 if private else 0.0,
            }
            for i, n in enumerate(users)
        ],
        "references": [
            {"name": name, "title": title, **figures(rng, ndcg, k), "seconds": float(rng.uniform(0.1, 9))}
            for name, title, ndcg in REFERENCES
        ],
        "examples": list(examples),
        "parameters": 151_936,
        "backbone": "minilm",
        "seed": seed,
        "grid": "in-process",
        "seconds": 431.7,
        "seconds_by_part": {"model": 12.5, "federation": 340.2, "references": 79.0},
        "peak_rss_mb": 1234.5,
        "versions": {"python": "3.11.9", "torch": "2.13.0", "flwr": "1.41.0"},
    }
    return result, lines


def write_run(folder: Path, result: dict[str, Any], rounds: Sequence[dict[str, Any]], overrides: Sequence[str] = ()) -> Path:
    """Put a run on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in rounds), encoding="utf-8")
    settings = {"privacy": {"mode": result["mode"]}}
    one_step = {"training": {"local_steps": 1}} if result["mode"] == "distributed" else {}
    (folder / "config.toml").write_text(to_toml(load(settings, one_step, overrides=overrides)), encoding="utf-8")
    return folder
