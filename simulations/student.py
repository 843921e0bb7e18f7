"""How much of a run's quality its student keeps: only a simulation may ask, since it looks at everybody's held-out items.

The figures go into the run's ``result.json`` as ``student``, and from there into the card of a bundle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from common.bundle.contents import Bundle
from common.config import Config
from common.data.population import load_population
from common.data.split import Held
from common.durable import write_durably
from common.engine import Engine
from common.errors import DataError
from common.model.adapter import manifest_of, to_vector
from common.model.recommender import Batch
from common.model.student import Student
from server.bundle_cli import KEY, signing_key
from server.bundling import RESULT, Compressed, card_of, compress, make_bundle
from server.distill import Told
from server.student_store import student_in
from server.teachers import Teachers, load_teachers
from simulations.evaluate import BATCH, Evaluator
from simulations.report import write_report
from simulations.watch import Watch

Scores = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pupil:
    """A run's student in its three forms: PyTorch, int8 as in a bundle, and the account of how it was made."""

    teachers: Teachers
    config: Config
    student: Student
    compressed: Compressed
    account: dict[str, Any]

    def bundle(self, run: Path) -> Bundle:
        """What a signed bundle would hold; nobody has signed it."""
        card = card_of(run, self.config, self.teachers.catalogue, self.student, self.account)
        return Bundle("0" * 64, "0" * 64, card, self.teachers.catalogue, self.compressed.items, self.compressed.model)


@dataclass(frozen=True)
class Kept:
    """NDCG@k on held-out items: the model, the student in PyTorch, and the int8 student with int8 item vectors."""

    k: int
    teacher: float
    student: float
    bundle: float

    @property
    def retained(self) -> float:
        """The bundle's share of the model's NDCG."""
        return self.bundle / self.teacher


def pupil_of(run: Path, watch: Watch, config: Config | None = None) -> Pupil:
    """The run's student, distilled now if that is not done yet."""
    teachers = load_teachers(run)
    config = config or teachers.config
    student, account = student_in(run, teachers, config, told=told_by(watch))
    return Pupil(teachers, config, student, compress(student), account)


def keep(run: Path, pupil: Pupil, held: Held = "test", cache: Path | None = None) -> Kept:
    """Measure a student beside its teacher.

    Parameters
    ----------
    cache:
        A folder where the teacher's scores are kept, so that they need not be computed again. They tell of users.
    """
    config, teacher = pupil.config, pupil.teachers.models[0]
    evaluator = Evaluator(config, load_population(config), teacher, manifest_of(teacher))
    histories, k = evaluator.histories(held), config.evaluation.k

    def ndcg(scores: Scores) -> float:
        return float(evaluator.rank(scores, held).ndcg(k).mean())

    path = None if cache is None else cache / f"scores-{pupil.teachers.digests[0][:16]}-{held}.npy"
    if path is not None and path.is_file():
        taught = cast(Scores, np.load(path, allow_pickle=False))
    else:
        taught = evaluator.scores(to_vector(teacher), histories)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, taught, allow_pickle=False)
    engine = Engine(pupil.bundle(run), search="exact")
    return Kept(
        k,
        ndcg(taught),
        ndcg(student_scores(pupil.student, histories)),
        ndcg(engine.scores([history.tolist() for history in histories])),
    )


def student_scores(student: Student, histories: Sequence[NDArray[np.int32]]) -> Scores:
    """``(len(histories), n_items)`` by PyTorch in float32."""
    out = np.empty((len(histories), student.shape.n_items), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(histories), BATCH):
            batch = Batch.of_histories(histories[start : start + BATCH], student.shape.window)
            out[start : start + BATCH] = student(batch, last_only=True).numpy()
    return out


def distil_run(run: Path, watch: Watch) -> dict[str, Any]:
    """Distil a simulation's run, measure the student, write both into result and report, and make the bundle ``RUN/NAME.bundle``.

    Returns
    -------
    The entry ``student`` of the result.
    """
    pupil = pupil_of(run, watch)
    watch.stage("measuring the student")
    kept = keep(run, pupil)
    entry = entry_of(pupil, kept)
    path = run / RESULT
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"not the result of a simulation, or damaged ({error})", path) from None
    result["student"] = entry
    write_durably(path, (json.dumps(result, indent=2) + "\n").encode())
    write_report(run)
    made = make_bundle(run, run / f"{pupil.config.name}.bundle", signing_key(run / KEY), config=pupil.config)
    watch.say(f"bundle: {made.path}, {made.bundle_bytes / 1e6:.2f} MB, {kept.retained:.1%} of the model's NDCG@{kept.k}")
    return entry


def entry_of(pupil: Pupil, kept: Kept) -> dict[str, Any]:
    """The student in ``result.json``."""
    account, name = pupil.account, f"ndcg@{kept.k}"
    return {
        "made_of": account["made_of"],
        "k": kept.k,
        f"teacher_{name}": kept.teacher,
        f"student_{name}": kept.student,
        f"bundle_{name}": kept.bundle,
        "retained": kept.retained,
        "agreement@10": account["agreement@10"],
        "epochs": account["epochs"],
        "seconds": account["seconds"],
        "parameters": account["parameters"],
        "model_bytes": len(pupil.compressed.model),
    }


def told_by(watch: Watch) -> Told:
    """Progress of a distillation, shown by ``watch``."""
    stages: list[str] = []

    def told(stage: str, done: int, total: int, note: str) -> None:
        if stages[-1:] != [stage]:
            stages.append(stage)
            watch.stage(stage, total)
        watch.step(done, note)

    return told
