"""Dockerfiles, read as an engine would read them: their instructions, what of the repository they see, and what they copy."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = tuple(sorted((ROOT / "packaging" / "docker").glob("*.Dockerfile")))


@dataclass(frozen=True)
class Instruction:
    """One instruction; ``stage`` counts from 0."""

    name: str
    value: str
    stage: int

    def words(self) -> list[str]:
        """The value of CMD, ENTRYPOINT or VOLUME in its JSON form."""
        return [str(word) for word in json.loads(self.value)]


def instructions(path: Path) -> list[Instruction]:
    """Of a Dockerfile, in order; comments are left out."""
    parser = DockerfileParser(fileobj=io.BytesIO(path.read_bytes()))
    stage, found = -1, []
    for one in parser.structure:
        if one["instruction"] == "COMMENT":
            continue
        stage += one["instruction"] == "FROM"
        found.append(Instruction(one["instruction"], one["value"], stage))
    return found


def last(path: Path, name: str) -> Instruction:
    """The last instruction of this name, which is the one that counts."""
    return [one for one in instructions(path) if one.name == name][-1]


def sees(path: str) -> bool:
    """Whether a file goes to the engine, by ``.dockerignore``: the last rule counts that fits it or a folder above it."""
    seen = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = _pattern(rule.removeprefix("!"))
        above = [str(PurePosixPath(*PurePosixPath(path).parts[: n + 1])) for n in range(len(PurePosixPath(path).parts))]
        if any(pattern.fullmatch(one) for one in above):
            seen = rule.startswith("!")
    return seen


def _pattern(rule: str) -> re.Pattern[str]:
    """A rule as a regular expression: ``**/`` is any folders, ``*`` anything but a slash."""
    parts = re.split(r"(\*\*/|\*)", rule.strip("/"))
    return re.compile("".join({"**/": "(?:.*/)?", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts))


def context(folder: Path) -> Path:
    """What an engine is given of the repository, in ``folder``."""
    for file in _files():
        if sees(str(file)):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
    return folder


def _files() -> Iterator[PurePosixPath]:
    for top in sorted(ROOT.iterdir()):
        if not sees(top.name):  # no rule lets in what lies below it
            continue
        found = [top] if top.is_file() else [file for file in top.rglob("*") if file.is_file()]
        yield from (PurePosixPath(file.relative_to(ROOT).as_posix()) for file in found)


def copied(path: Path, given: Path, folder: Path) -> Path:
    """Do what the COPY instructions of the first stage say, from the context ``given`` into ``folder``."""
    for one in instructions(path):
        if one.name != "COPY" or one.stage:
            continue
        *sources, target = one.value.split()
        for source in sources:
            if (given / source).is_dir():
                shutil.copytree(given / source, folder / target)
            else:
                shutil.copy(given / source, folder / target)
    return folder
