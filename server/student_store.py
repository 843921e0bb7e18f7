"""A run's student on the disk: ``RUN/student/`` holds its weights and the account of how it was made.

``student.safetensors`` are the weights, and the axes of text vectors that were turned; ``distillation.json`` every loss, the
seconds, the settings and what the student was made of. A student that was made of the same things with the same settings is not
made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.config import Config
from common.durable import write_durably
from common.errors import DataError
from common.model.recommender import Recommender
from common.model.student import Student
from server.distill import Distilled, Told, distil, student_of
from server.teachers import Teachers

FOLDER, WEIGHTS, ACCOUNT = "student", "student.safetensors", "distillation.json"
AXES = "axes"
VERSION = 1


def student_in(
    run: Path,
    teachers: Teachers,
    config: Config,
    *,
    public: Sequence[NDArray[np.integer]] = (),
    again: bool = False,
    told: Told | None = None,
) -> tuple[Student, dict[str, Any]]:
    """The student of a run and its account; distilled now unless the folder holds the very same, or ``again`` is said.

    ``config`` is the run's, its ``distillation`` perhaps changed.
    """
    folder, made_of = run / FOLDER, _made_of(teachers, config, public)
    account = _account(folder)
    if not again and account is not None and account["made_of"] == made_of:
        return _load(folder, teachers.models[0], config), account
    distilled = distil(teachers.models, config, public=public, told=told)
    account = {
        "version": VERSION,
        "made_of": made_of,
        "settings": config.distillation.model_dump(mode="json"),
        "teachers": len(teachers.models),
        "public_histories": len(public),
        "parameters": n_parameters(distilled.student),
        "agreement@10": distilled.agreement,
        "seconds": {"sampling": distilled.sampling_seconds, "training": distilled.training_seconds},
        "epochs": [asdict(epoch) for epoch in distilled.epochs],
    }
    _save(folder, distilled, account)
    return distilled.student, account


def n_parameters(student: Student) -> int:
    """Trained numbers, item factors and biases included."""
    return sum(parameter.numel() for parameter in student.parameters())


def _made_of(teachers: Teachers, config: Config, public: Sequence[NDArray[np.integer]]) -> str:
    """SHA-256 (hex) of all that decides what the student becomes."""
    seen = hashlib.sha256()
    for history in public:
        seen.update(np.asarray(history, dtype=np.int64).tobytes() + b"|")
    parts = {
        "version": VERSION,
        "teachers": teachers.digests,
        "catalogue": teachers.catalogue.fingerprint,
        "distillation": config.distillation.model_dump(mode="json"),
        "model": config.model.model_dump(mode="json"),
        "seed": config.run.seed,
        "public": seen.hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _save(folder: Path, distilled: Distilled, account: dict[str, Any]) -> None:
    """The weights first: an account says that they are there."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    (folder / ACCOUNT).unlink(missing_ok=True)
    weights = {name: value.contiguous() for name, value in distilled.student.state_dict().items()}
    if distilled.axes is not None:
        weights[AXES] = torch.from_numpy(distilled.axes).contiguous()
    write_durably(folder / WEIGHTS, save(weights))
    write_durably(folder / ACCOUNT, (json.dumps(account, indent=2) + "\n").encode())


def _account(folder: Path) -> dict[str, Any] | None:
    try:
        account = json.loads((folder / ACCOUNT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"damaged ({error}); remove the folder, or distil again", folder / ACCOUNT) from None
    return account if isinstance(account, dict) and account.get("version") == VERSION else None


def _load(folder: Path, teacher: Recommender, config: Config) -> Student:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / WEIGHTS)
        with torch.random.fork_rng(devices=[]):
            student = student_of(teacher, config, weights.pop(AXES, None))
        student.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(
            f"not this run's student, or damaged ({str(error).splitlines()[0]}); distil again", folder / WEIGHTS
        ) from None
    return student.eval()
