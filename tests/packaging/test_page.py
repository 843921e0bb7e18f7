"""The page on packaging: its trial is carried out literally, with a stand-in for the engine; its other commands are there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.doctor.checklist import examine
from common.doctor.subject import Subject
from tests.common.doctor.deployment import SOUND
from tests.packaging.images import ROOT

PAGE = (ROOT / "docs" / "packaging.md").read_text(encoding="utf-8")


def blocks(language: str, after: str) -> list[str]:
    """Fenced blocks of a language in a section."""
    section = re.split(r"^## ", PAGE.split(f"\n## {after}\n")[1], maxsplit=1, flags=re.M)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trial of the page, done; each service's volume is a folder here."""
    folder = tmp_path_factory.mktemp("trial")
    shutil.copytree(ROOT / "packaging", folder / "packaging")
    for number, silo in enumerate(("north", "east", "south")):
        data = folder / "packaging" / "data" / silo
        data.mkdir(parents=True)
        rows = [f"{silo}{user},i{(user + number + time) % 30},{time}" for user in range(300) for time in range(4)]
        (data / "interactions.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")
    public = folder / "public.csv"
    public.write_text("user,item,time\n" + "".join(f"p{item},i{item},{time}\n" for item in range(30) for time in range(3)))
    (folder / "packaging" / "run.toml").write_text(
        f'[data]\nsource = "{public}"\n[model]\nbackbone = "tiny-bert"\nencoder = "hashing"\n[partition]\nsilos = 3\n'
    )
    programs = folder / "programs"
    programs.mkdir()
    docker = programs / "docker"
    docker.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/packaging/stand_in.py {folder} "$@"\n')
    docker.chmod(0o755)
    (script,) = blocks("bash", "A trial on one host")
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_trial_leaves_three_silos_that_lack_nothing_but_a_coordinator_that_runs(tried: Path) -> None:
    for silo in ("north", "east", "south"):
        examined = examine(Subject(tried / silo / "silo", config=tried / "coordinator" / "run.toml", machine=SOUND))
        assert [found.name for found in examined.problems] == ["coordinator"], examined.problems
        assert [found.seen for found in examined.of("data")] == ["30 of 30 of the silo's items are in the run's catalogue of 30"]
        assert examined.of("standing")[0].outcome == "ok"
        assert examined.of("budget")[0].outcome == "ok"


def test_the_trial_leaves_a_coordinator_that_can_start(tried: Path) -> None:
    examined = examine(Subject(tried / "coordinator" / "coordinator", config=tried / "coordinator" / "run.toml", machine=SOUND))
    assert [found.seen for found in examined.of("standing")] == ["3 of 3 silos are valid"]
    assert {found.name for found in examined.problems} <= {"listen port"}, examined.problems


def test_the_trial_builds_before_it_runs_and_starts_at_the_end(tried: Path) -> None:
    assert (tried / "noted").read_text().splitlines() == ["compose build coordinator north", "compose up --detach"]


def test_no_private_key_left_its_volume(tried: Path) -> None:
    passed = b"".join(file.read_bytes() for file in (tried / "packaging").iterdir() if file.is_file())
    assert b"BEGIN CERTIFICATE" in passed
    assert b"PRIVATE KEY" not in passed


def test_images_that_are_built_are_those_that_the_page_and_the_compose_file_name() -> None:
    built = dict(re.findall(r"docker build -f (packaging/docker/[\w-]+\.Dockerfile) -t (\S+) \.", PAGE))
    assert {ROOT / path for path in built} == set((ROOT / "packaging" / "docker").glob("*.Dockerfile"))
    for path, image in built.items():
        assert f"docker build -f {path} -t {image} ." in (ROOT / path).read_text()
    compose = (ROOT / "packaging" / "compose.yaml").read_text()
    assert set(re.findall(r"image: (\S+)", compose)) <= set(built.values())


def test_files_that_are_installed_are_there() -> None:
    (script,) = blocks("bash", "systemd")
    for path in re.findall(r"packaging/\S+", script):
        assert (ROOT / path).is_file(), path
    from tests.test_docs import parse

    for line in re.findall(r"/opt/silorec/bin/silorec (.*)", script):
        parse(line.split())


def test_the_exposure_that_is_told_is_what_systemd_says(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    (tmp_path / "open.service").write_text("[Service]\nExecStart=/bin/true\n")
    units = [*(ROOT / "packaging" / "systemd").glob("*.service"), tmp_path / "open.service"]
    told = []
    for unit in units:
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", str(unit)], capture_output=True, text=True, check=False
        )
        told.append(re.findall(r"Overall exposure level for .*: ([\d.]+)", done.stdout)[0])
    version = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    if version != "252":
        pytest.skip(f"the page's figures are those of systemd 252, this is {version}")
    assert re.findall(r"exposure of ([\d.]+) of 10; a unit without any of this has ([\d.]+\d)", PAGE) == [(told[0], told[2])]
    assert told[0] == told[1]


def test_the_page_says_that_no_engine_was_there() -> None:
    assert "there is no container engine" in PAGE
    assert "nobody has seen here" in PAGE
