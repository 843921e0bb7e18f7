"""How well the model recommends, beside the references: the numbers of the README."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from simulations.bench import Figure, register
from simulations.run import simulate
from simulations.watch import Watch

SEEDS = (0, 1, 2)
REFERENCES = ("popularity", "item-knn", "ease", "als", "bpr", "tf-idf", "sasrec")


@register("quality")
def quality(out: Path, watch: Watch) -> list[Figure]:
    """Test NDCG@10 on MovieLens-100K: references, no privacy in four silos and centralised, and epsilon = 8; about two hours."""
    figures: list[Figure] = []
    references: dict[str, float] = {}

    def runs(title: str, scenario: str, *overrides: str) -> list[dict[str, Any]]:
        results = []
        for seed in SEEDS:
            watch.say(f"{title}, seed {seed}")
            wanted: Sequence[str] = () if references else REFERENCES
            settings = [
                *overrides,
                f"run.seed={seed}",
                f"evaluation.references={json.dumps(list(wanted))}",
                f"name={title}-{seed}",
            ]
            folder = simulate(scenario, overrides=settings, out=out, watch=watch)
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            references.update({entry["name"]: entry["ndcg@10"] for entry in result["references"]})
            results.append(result)
        return results

    def add(name: str, values: Sequence[float]) -> None:
        figures.append(Figure(name, mean(values), "", "seeds: " + ", ".join(f"{value:.4f}" for value in values)))

    private = runs("private", "ml-100k")
    add("four silos, epsilon 8 ndcg@10", [r["ndcg@10"] for r in private])
    add("four silos, epsilon 8, over popularity", [r["ndcg@10"] / references["popularity"] for r in private])
    add("four silos, epsilon 8, over its start", [r["ndcg@10"] / r["before_training"]["ndcg@10"] for r in private])
    add("four silos, no privacy ndcg@10", [r["ndcg@10"] for r in runs("federated", "ml-100k-reference")])
    add("centralised, no privacy ndcg@10", [r["ndcg@10"] for r in runs("centralised", "ml-100k-reference", "partition.silos=1")])
    return [*(Figure(f"{name} ndcg@10", value) for name, value in references.items()), *figures]
