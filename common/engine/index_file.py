"""An index on disk: kept by the digest of its bundle, and used only if it is whole.

Beside the cells (NumPy's ``.npz``) lies a small JSON file with their SHA-256 and what was measured. The hash finds damage, not
malice: the folder has to be the operator's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from common.durable import sync_folder, write_durably
from common.engine.approximate import CELLS_PER_ROOT, HEAD, WIDTH, Cells, Depth, Facts

log = logging.getLogger(__name__)

FORMAT: Final = {"version": 2, "cells_per_root": CELLS_PER_ROOT, "head": HEAD, "width": WIDTH}

_ARRAYS: Final = ("centres", "order", "starts", "promise")


def save_index(folder: Path, facts: Facts, cells: Cells) -> None:
    """Keep an index; where that fails it is only said in the log: the index at hand is good."""
    path, about = _paths(folder, facts.digest)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(partial, "w+b") as file:
            np.savez(file, **{name: getattr(cells, name) for name in _ARRAYS})
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        about.unlink(missing_ok=True)  # it speaks of the file before
        os.replace(partial, path)
        sync_folder(folder)
        write_durably(about, json.dumps({"format": FORMAT, "sha256": sha256, "facts": asdict(facts)}).encode())
    except OSError as error:
        log.warning("%s: the index is not kept (%s)", path, error)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def load_index(folder: Path, digest: str, n_items: int) -> tuple[Facts, Cells] | None:
    """What :func:`save_index` kept for a bundle, or None if it is not there, of another format or damaged."""
    path, about = _paths(folder, digest)
    try:
        kept = json.loads(about.read_bytes())
        if kept["format"] != FORMAT:
            return None
        facts = _facts(kept["facts"])
        with open(path, "rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == kept["sha256"]
        if not whole or facts.digest != digest:
            raise ValueError("it is not the file that was written")
        with np.load(path, allow_pickle=False) as arrays:
            cells = Cells(**{name: arrays[name] for name in _ARRAYS})
        if len(cells.order) != n_items or len(cells.starts) != len(cells) + 1:
            raise ValueError("it is another catalogue's")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        log.warning("%s: damaged, built again (%s)", path, error)
        return None
    return facts, cells


def _facts(kept: dict[str, Any]) -> Facts:
    depths = tuple(Depth(**depth) for depth in kept["depths"])
    return Facts(**kept | {"depths": depths})


def _paths(folder: Path, digest: str) -> tuple[Path, Path]:
    return folder / f"{digest}.npz", folder / f"{digest}.json"
