"""An index on disk: kept by the digest of its bundle, and used only if it is whole.

Beside the graph lies a small JSON file with its SHA-256 and what was measured. The hash finds damage, not malice: the graph's
format is not made to be read from strangers, so the folder has to be the operator's own.
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

from common.durable import sync_folder, write_durably
from common.engine.approximate import CONNECTIVITY, EXPANSION_ADD, Depth, Facts, Geometry

log = logging.getLogger(__name__)

FORMAT: Final = {"version": 1, "connectivity": CONNECTIVITY, "expansion_add": EXPANSION_ADD}


def save_index(folder: Path, facts: Facts, graph: Any) -> None:
    """Keep an index; where that fails it is only said in the log: the index at hand is good."""
    path, about = _paths(folder, facts.digest)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        graph.save(str(partial))
        with open(partial, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        about.unlink(missing_ok=True)  # it speaks of the graph before
        os.replace(partial, path)
        sync_folder(folder)
        write_durably(about, json.dumps({"format": FORMAT, "sha256": sha256, "facts": asdict(facts)}).encode())
    except (OSError, RuntimeError) as error:
        log.warning("%s: the index is not kept (%s)", path, error)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def load_index(folder: Path, digest: str) -> tuple[Facts, Any] | None:
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
        from usearch.index import Index

        graph = Index.restore(str(path))
        if graph is None:
            raise ValueError("it is no index")
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: damaged, built again (%s)", path, error)
        return None
    return facts, graph


def _facts(kept: dict[str, Any]) -> Facts:
    depths = tuple(Depth(**depth) for depth in kept["depths"])
    return Facts(**kept | {"geometry": Geometry(**kept["geometry"]), "depths": depths})


def _paths(folder: Path, digest: str) -> tuple[Path, Path]:
    return folder / f"{digest}.usearch", folder / f"{digest}.json"
