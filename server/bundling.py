"""From a run's folder to a signed bundle: distil, compress, describe, sign.

Whoever runs this needs the run's ``config.toml``, ``catalogue.jsonl`` and ``adapter.safetensors``, and the public weights of the
backbone; no silo's data. ``result.json`` adds figures of quality and what the ledgers say was spent, if a simulation wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from common.assets import ASSETS
from common.bundle.card import Card, DataFacts, Measured, ModelFacts, PrivacyFacts, TrainingFacts
from common.bundle.contents import ItemTable
from common.bundle.files import write_bundle
from common.config import Config
from common.data.catalogue import Catalogue
from common.errors import DataError
from common.model.student import Student
from common.privacy.audit.trust import Sharing, trusted
from common.privacy.plan import delta_for, plan_for
from common.privacy.signing import SigningKey
from common.report.words import epsilon as rounded_up
from common.report.words import small
from common.secagg.rules import Rules
from server.checkpoint import read_metrics
from server.compress import export, quantise
from server.distill import Told
from server.student_store import n_parameters, student_in
from server.teachers import load_teachers, read_public_histories

RESULT = "result.json"
UNIT = "one user of one silo, with all their interactions, added or removed"
UNPROTECTED = "of the model before distillation, on users' held-out items; computed without noise, epsilon does not cover it"


@dataclass(frozen=True, eq=False)
class Compressed:
    """A student as a bundle holds it: the ONNX file, int8, and the item table."""

    model: bytes
    items: ItemTable


@dataclass(frozen=True)
class Made:
    """A bundle that was written: where, its digest and signer, the sizes of it and of its model in bytes, and its card."""

    path: Path
    digest: str
    signer: str
    bundle_bytes: int
    model_bytes: int
    card: Card


def make_bundle(
    run: Path,
    path: Path,
    key: SigningKey,
    *,
    config: Config | None = None,
    teachers: Sequence[Path] = (),
    public: Path | None = None,
    again: bool = False,
    figures: bool = True,
    told: Told | None = None,
) -> Made:
    """Write the bundle of a run.

    Parameters
    ----------
    config:
        The run's, its ``distillation`` perhaps changed; None takes the folder's.
    teachers:
        More models to learn from, see :func:`server.teachers.load_teachers`.
    public:
        A file of histories that anybody may see.
    again:
        Distil even if the folder holds this very student.
    figures:
        Whether the card tells the quality that a simulation measured without protection.

    Raises
    ------
    SilorecError
        If the folder is not a run's, or the bundle cannot be written.
    """
    known = load_teachers(run, teachers)
    config = config or known.config
    histories = () if public is None else read_public_histories(public, known.catalogue)
    student, account = student_in(run, known, config, public=histories, again=again, told=told)
    compressed = compress(student)
    catalogue = replace(known.catalogue, name=data_name(config))
    card = card_of(run, config, catalogue, student, account, figures=figures)
    digest = write_bundle(path, card=card, catalogue=catalogue, items=compressed.items, model=compressed.model, key=key)
    return Made(path, digest, key.public_key, path.stat().st_size, len(compressed.model), card)


def compress(student: Student) -> Compressed:
    """The int8 model and item table of a student."""
    even = balanced(student)
    with torch.inference_mode():
        vectors, biases = even.item_vectors.numpy(), even.bias.weight.numpy()
    return Compressed(quantise(export(even)), ItemTable.quantised(vectors, biases, even.shape.text_dim))


def balanced(student: Student) -> Student:
    """The same function, with factors scaled so that an item's largest factor is about as large as its largest text column.

    Both parts of a vector share one int8 scale, so the smaller part would be rounded more coarsely than it need be.
    """
    even = Student(student.shape, student.text)
    even.load_state_dict(student.state_dict())
    with torch.no_grad():
        if even.factor_out is not None:
            largest = even.factors.abs().amax(1).mean().clamp(min=1e-6)
            by = largest / even.text.abs().amax(1).mean()
            even.factors.div_(by)
            even.factor_out.weight.mul_(by)
            even.token.weight[:, student.shape.text_dim :].mul_(by)
    return even.eval()


def data_name(config: Config) -> str:
    """What the data are called in public: never the folder that they lie in."""
    source = config.data.source
    return source if source in ASSETS or source == "synthetic" else Path(source).name or "data"


def card_of(
    run: Path, config: Config, catalogue: Catalogue, student: Student, account: dict[str, Any], *, figures: bool = True
) -> Card:
    """The card of a run's student."""
    result = _result(run)
    declared = config.federation.declared_users
    shape = student.shape
    return Card(
        name=config.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        data=DataFacts(
            name=catalogue.name, items=len(catalogue), silos=config.partition.silos, declared_users=max(1, sum(declared))
        ),
        training=TrainingFacts(
            rounds=int(result.get("selected_round", config.federation.rounds)),
            backbone=_public_name(config.model.backbone),
            encoder=_public_name(config.model.encoder),
            licence=_licence(config.model.backbone),
        ),
        privacy=_privacy(config, result),
        model=ModelFacts(
            window=shape.window, layers=shape.layers, width=shape.width, parameters=n_parameters(student), precision="int8"
        ),
        quality=tuple(_quality(run, result, account, figures)),
        notes=tuple(_notes(result, account, figures)),
    )


def _privacy(config: Config, result: dict[str, Any]) -> PrivacyFacts:
    """What the ledgers say was spent, where the result knows it, else the budget that the silos enforce."""
    mode, declared = config.privacy.mode, config.federation.declared_users
    if mode == "none":
        statement = "This model protects nobody: no noise was added to updates and counts. Use it for reference only."
        return PrivacyFacts(mode=mode, unit=UNIT, statement=statement, trust="everybody who gets the model or sees an update")
    if not declared:
        raise DataError("config.toml does not say what the silos declared (federation.declared_users), so delta is not known")
    spent, delta = result.get("epsilon", config.privacy.epsilon), delta_for(config, declared)
    sharing = None
    if mode == "distributed":
        plan = plan_for(config, min(declared), min(declared))
        sharing = Sharing(plan.honest, Rules.of(config).corrupted, result.get("epsilon_if_others_collude"))
    planned = "" if "epsilon" in result else " at most"
    statement = result.get("statement") or (
        f"Each user of each silo is protected by differential privacy with epsilon ={planned} {rounded_up(spent)} and "
        f"delta = {small(delta)} over the whole run (one user added or removed, all their interactions); each silo enforces it."
    )
    return PrivacyFacts(
        mode=mode,
        epsilon=spent,
        delta=None if spent is None else delta,
        unit=UNIT,
        statement=" ".join(statement.split()),
        trust="; ".join(trusted(sharing)),
    )


def _quality(run: Path, result: dict[str, Any], account: dict[str, Any], figures: bool) -> list[Measured]:
    k = result.get("k", 10)
    out = []
    for name, value in (result.get("released_metrics") or read_metrics(run)).items():
        out.append(Measured(name=name, value=value, note="told by the silos with noise, charged to their budgets"))
    if figures:
        intervals = result.get("intervals", {})
        for name in (f"ndcg@{k}", f"hr@{k}", "mrr"):
            if isinstance(result.get(name), float):
                low, high = intervals.get(name, (None, None))
                out.append(Measured(name=name, value=result[name], low=low, high=high, note=UNPROTECTED))
        out += _retained(result.get("student"), account)
    last = account["epochs"][-1]
    made_up = "on made-up histories that the student did not learn from"
    out.append(Measured(name="teacher's first 10 kept", value=account["agreement@10"], note=made_up))
    out.append(Measured(name="divergence from the teacher", value=last["held_out_divergence"], note=f"nats, {made_up}"))
    return out


def _retained(student: Any, account: dict[str, Any]) -> list[Measured]:
    """Of the same student, where a simulation measured it."""
    if not isinstance(student, dict) or student.get("made_of") != account["made_of"]:
        return []
    note = "of this bundle, on users' held-out items; computed without noise, epsilon does not cover it"
    name = f"ndcg@{student['k']}"
    return [
        Measured(name=f"{name} of the student", value=student[f"bundle_{name}"], note=note),
        Measured(name=f"{name}, student over model", value=student["retained"], note=note),
    ]


def _notes(result: dict[str, Any], account: dict[str, Any], figures: bool) -> list[str]:
    public = account["public_histories"]
    out = [
        f"The student learnt from {account['settings']['histories']:,} histories that the model made up"
        + (f", {public:,} of which begin with public ones" if public else "")
        + "; no user's record was read."
    ]
    if result.get("status") == "interrupted":
        out.append(f"Training was interrupted after round {result['rounds']} of {result['rounds_planned']}.")
    if not figures:
        out.append("Figures that were measured on users' data without noise were left out.")
    return out


def _result(run: Path) -> dict[str, Any]:
    """What a simulation wrote of the run, ``{}`` where none did."""
    try:
        found = json.loads((run / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"damaged ({error})", run / RESULT) from None
    return found if isinstance(found, dict) else {}


def _public_name(model: str) -> str:
    """A preset or an id as it is, of a folder its last name."""
    return Path(model).name if Path(model).is_dir() or Path(model).is_absolute() else model


def _licence(backbone: str) -> str:
    if backbone in ASSETS:
        return ASSETS[backbone].licence
    return "none: random weights" if backbone.startswith("tiny-") else "see the publisher of the base model"
